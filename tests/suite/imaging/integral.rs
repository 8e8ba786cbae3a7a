//! ∫SPS against its definition: every token's z, summed, from values that the streamed form never keeps.

use approx::assert_relative_eq;
use proptest::prelude::*;
use rand::Rng;
use rstest::rstest;
use tinyonn::imaging::{Integral, NeuronScan, Score};
use tinyonn::random;

use super::{VOCAB, options, scanned};
use crate::tiny;

/// Values of one quantity by `[task][token][neuron]`.
pub(super) type Values = Vec<Vec<Vec<f64>>>;

pub(super) fn values(seed: u64, purpose: &str, tokens: &[usize], width: usize) -> Values {
    let mut rng = random::stream(seed, purpose);
    let mut token = |task: usize| (0..width).map(|i| rng.random::<f64>().powi(3) * (1 + i + 2 * task) as f64).collect();
    tokens.iter().enumerate().map(|(task, count)| (0..*count).map(|_| token(task)).collect()).collect()
}

/// A scan that saw these values in every one of `layers`.
pub(super) fn streamed(activation: &Values, surprise: &Values, layers: usize) -> NeuronScan {
    let width = activation[0][0].len();
    let mut scan = NeuronScan::zero((0..activation.len()).map(|t| t.to_string()).collect(), layers, width);
    scan.tokens = activation.iter().map(|task| task.len() as u64).collect();
    for layer in &mut scan.sums {
        for (task, sums) in layer.iter_mut().enumerate() {
            for (a, s) in activation[task].iter().zip(&surprise[task]) {
                for i in 0..width {
                    sums.activation[i] += a[i];
                    sums.activation_squared[i] += a[i] * a[i];
                    sums.surprise[i] += s[i];
                    sums.surprise_squared[i] += s[i] * s[i];
                }
            }
        }
    }
    scan
}

/// z of every value, over all tokens and neurons; each task weighs the same however many tokens it has.
pub(super) fn standardised(values: &Values) -> Values {
    let mean_of = |f: &dyn Fn(f64) -> f64| {
        let of_task = |task: &Vec<Vec<f64>>| {
            let all: Vec<f64> = task.iter().flatten().map(|x| f(*x)).collect();
            all.iter().sum::<f64>() / all.len() as f64
        };
        values.iter().map(of_task).sum::<f64>() / values.len() as f64
    };
    let mean = mean_of(&|x| x);
    let deviation = mean_of(&|x| (x - mean) * (x - mean)).sqrt();
    let z = |x: &f64| if deviation <= 1e-9 { 0.0 } else { (x - mean) / deviation };
    values.iter().map(|task| task.iter().map(|token| token.iter().map(z).collect()).collect()).collect()
}

/// ∫ per token, `[task][neuron]`.
pub(super) fn integrated(z: &Values) -> Vec<Vec<f64>> {
    let of_task = |task: &Vec<Vec<f64>>| {
        (0..task[0].len()).map(|i| task.iter().map(|token| token[i]).sum::<f64>() / task.len() as f64).collect()
    };
    z.iter().map(of_task).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn the_streamed_integral_is_the_sum_of_every_tokens_z(
        seed in any::<u64>(),
        tokens in prop::collection::vec(1usize..40, 1..5),
        width in 2usize..9,
    ) {
        let (a, s) = (values(seed, "a", &tokens, width), values(seed, "s", &tokens, width));
        let scan = streamed(&a, &s, 2);
        let (za, zs) = (integrated(&standardised(&a)), integrated(&standardised(&s)));
        let [sps, activation, surprise, calm, both, ..] = Score::ALL.map(|score| Integral::new(&scan, score));
        for task in 0..tokens.len() {
            for layer in 0..2 {
                for i in 0..width {
                    // Values of order 1 in f64; the difference E[x²] − m² costs some digits of sixteen.
                    assert_relative_eq!(activation.neurons[task][layer][i], za[task][i], epsilon = 1e-9);
                    assert_relative_eq!(sps.neurons[task][layer][i], za[task][i] - zs[task][i], epsilon = 1e-9);
                    assert_relative_eq!(surprise.neurons[task][layer][i], zs[task][i], epsilon = 1e-9);
                    assert_relative_eq!(calm.neurons[task][layer][i], -zs[task][i], epsilon = 1e-9);
                    assert_relative_eq!(both.neurons[task][layer][i], za[task][i] + zs[task][i], epsilon = 1e-9);
                }
            }
        }
    }

    #[test]
    fn contrasts_sum_to_zero_over_tasks_and_units_are_means(
        seed in any::<u64>(),
        tasks in 1usize..5,
        count in 1usize..6,
    ) {
        let width = 11;
        let (a, s) = (values(seed, "a", &vec![5; tasks], width), values(seed, "s", &vec![5; tasks], width));
        let integral = Integral::new(&streamed(&a, &s, 2), Score::Sps);
        let contrasted = integral.contrasted();
        let units: Vec<Vec<u32>> = (0..2).map(|layer| (0..width).map(|i| ((i * 7 + layer) % count) as u32).collect()).collect();
        let (by_unit, by_unit_contrasted) = (integral.by_unit(&units, count), contrasted.by_unit(&units, count));
        for layer in 0..2 {
            for i in 0..width {
                assert_relative_eq!(contrasted.neurons.iter().map(|t| t[layer][i]).sum::<f64>(), 0.0, epsilon = 1e-12);
                let (averaged, negated) = (integral.averaged(), integral.negated());
                // Contrasting moves all tasks alike.
                let moved = |task: usize| integral.neurons[task][layer][i] - contrasted.neurons[task][layer][i];
                for task in 0..tasks {
                    assert_relative_eq!(moved(task), moved(0), epsilon = 1e-12);
                    assert_relative_eq!(averaged.neurons[task][layer][i], moved(0), epsilon = 1e-12);
                    assert_eq!(negated.neurons[task][layer][i], -integral.neurons[task][layer][i]);
                }
            }
            for unit in 0..count {
                let own: Vec<usize> = (0..width).filter(|i| units[layer][*i] as usize == unit).collect();
                for task in 0..tasks {
                    let mean = own.iter().map(|i| integral.neurons[task][layer][*i]).sum::<f64>() / own.len() as f64;
                    assert_relative_eq!(by_unit[task][layer][unit], mean, epsilon = 1e-12);
                }
                // Means and contrasts commute: both are linear.
                let over_tasks = by_unit.iter().map(|t| t[layer][unit]).sum::<f64>() / tasks as f64;
                for task in 0..tasks {
                    let expected = by_unit[task][layer][unit] - over_tasks;
                    assert_relative_eq!(by_unit_contrasted[task][layer][unit], expected, epsilon = 1e-12);
                }
            }
        }
    }
}

/// By how much removing a neuron would raise the loss, a token.
#[test]
fn taylor_is_its_mean_over_a_tasks_tokens() {
    let mut scan = NeuronScan::zero(vec!["a".into(), "b".into()], 1, 2);
    scan.tokens = vec![4, 8];
    scan.sums[0][0].taylor = vec![2.0, -6.0];
    scan.sums[0][1].taylor = vec![8.0, 0.0];
    scan.sums[0][0].taylor_magnitude = vec![4.0, 6.0];
    assert_eq!(Integral::new(&scan, Score::Taylor).neurons, [[[0.5, -1.5]], [[1.0, 0.0]]]);
    assert_eq!(Integral::new(&scan, Score::TaylorMagnitude).neurons, [[[1.0, 1.5]], [[0.0, 0.0]]]);
}

/// One value everywhere has no deviation but that of rounding, whatever the value and the tasks' sizes.
#[rstest]
#[case(0.0)]
#[case(0.1)]
#[case(0.7)]
#[case(1234.567)]
fn flat_values_score_nothing(#[case] value: f64) {
    let flat = |tokens: [usize; 3]| tokens.map(|count| vec![vec![value; 5]; count]).to_vec();
    let lively = values(1, "a", &[7, 1000, 13], 5);
    let both = Integral::new(&streamed(&flat([7, 1000, 13]), &flat([7, 1000, 13]), 1), Score::Sps);
    assert!(both.neurons.iter().flatten().flatten().all(|x| *x == 0.0));
    // A flat surprise leaves the activation, a flat activation minus the surprise.
    let expected = integrated(&standardised(&lively));
    for (flat_first, sign) in [(false, 1.0), (true, -1.0)] {
        let still = flat([7, 1000, 13]);
        let (a, s) = if flat_first { (&still, &lively) } else { (&lively, &still) };
        let found = Integral::new(&streamed(a, s, 1), Score::Sps);
        for (found, expected) in found.neurons.iter().flat_map(|t| &t[0]).zip(expected.iter().flatten()) {
            assert_relative_eq!(*found, sign * expected, epsilon = 1e-9);
        }
    }
}

/// Text twice as long says nothing new: neither the task's own integral a token nor another task's moves.
#[test]
fn a_task_weighs_the_same_however_long_its_text() {
    let set = tiny::tokens(2, &[81, 49], VOCAB);
    let mut doubled = set.clone();
    // Whole rows of 8 that end where they began, so that the second reading is the first again.
    let mut once = set.clone();
    once.tasks[0].tokens[80] = once.tasks[0].tokens[0];
    doubled.tasks[0].tokens = [&once.tasks[0].tokens[..80], &once.tasks[0].tokens[..]].concat();
    doubled.tasks[0].documents = vec![0; 161];
    let (once, doubled) = (scanned(2, &once, options(8, 1)), scanned(2, &doubled, options(8, 1)));
    assert_eq!((&once.tokens[..], &doubled.tokens[..]), (&[80, 48][..], &[160, 48][..]));
    for score in [Score::Sps, Score::Activation] {
        let (once, doubled) = (Integral::new(&once, score), Integral::new(&doubled, score));
        for (once, doubled) in once.neurons.iter().flatten().flatten().zip(doubled.neurons.iter().flatten().flatten()) {
            assert_relative_eq!(once, doubled, epsilon = 1e-9);
        }
    }
}
