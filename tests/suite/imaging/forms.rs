//! The forms of the integral, each against its definition over every token's value.

use approx::assert_relative_eq;
use rstest::rstest;
use tinyonn::imaging::{ExpertForm, Form, Integral, NeuronScan, Norm, Score, Units};
use tinyonn::ops::{GradSite, Log1pScale, UnitSums};

use super::integral::{Values, integrated, standardised, streamed, values};

const TOKENS: [usize; 3] = [9, 31, 4];
const SCALES: [Log1pScale; 2] =
    [Log1pScale { activation: 0.7, surprise: 3.0 }, Log1pScale { activation: 2.0, surprise: 0.1 }];

/// Five neurons of two experts of uneven width.
fn units() -> Units {
    Units { neuron_expert: vec![vec![0, 1, 0, 0, 1], vec![1, 1, 0, 1, 1]], count: 2 }
}

/// Values of both layers, `[layer]`: of units that differ from layer to layer.
fn of_layers(purpose: &str, width: usize) -> [Values; 2] {
    [1, 2].map(|seed| {
        let mut values = values(seed, purpose, &TOKENS, width);
        values.iter_mut().flatten().flatten().for_each(|x| *x *= seed as f64);
        values
    })
}

fn mapped(values: &Values, f: impl Fn(usize, f64) -> f64) -> Values {
    let token = |token: &Vec<f64>| token.iter().enumerate().map(|(i, x)| f(i, *x)).collect();
    values.iter().map(|task| task.iter().map(token).collect()).collect()
}

fn unit_sums(a: &Values, s: &Values) -> Vec<UnitSums> {
    let task = |(a, s): (&Vec<Vec<f64>>, &Vec<Vec<f64>>)| {
        let mut sums = UnitSums::zero(a[0].len());
        for (values, [sum, squared]) in [
            (a, [&mut sums.activation, &mut sums.activation_squared]),
            (s, [&mut sums.surprise, &mut sums.surprise_squared]),
        ] {
            for token in values {
                token.iter().enumerate().for_each(|(i, x)| {
                    sum[i] += x;
                    squared[i] += x * x;
                });
            }
        }
        sums
    };
    a.iter().zip(s).map(task).collect()
}

/// A scan that saw `[a, S]` of neurons and of experts.
fn scan([a, s]: &[[Values; 2]; 2], [experts_a, experts_s]: &[[Values; 2]; 2]) -> NeuronScan {
    let names = ["a", "b", "c"].map(String::from).to_vec();
    let mut scan = NeuronScan::zero(names, 2, 5).measuring(GradSite::Weight, Some(&units()), Some(&SCALES));
    scan.tokens = TOKENS.map(|n| n as u64).to_vec();
    for layer in 0..2 {
        scan.sums[layer] = streamed(&a[layer], &s[layer], 1).sums.remove(0);
        scan.experts.as_mut().unwrap().sums[layer] = unit_sums(&experts_a[layer], &experts_s[layer]);
        let Log1pScale { activation, surprise } = SCALES[layer];
        let log1p = |values: &Values, scale: f64| mapped(values, |_, x| (1.0 + x / scale).ln());
        let widths = widths(layer);
        let narrowed = |values: &Values, scale: f64| log1p(&mapped(values, |n, x| x / widths[n]), scale);
        let scan = scan.log1p.as_mut().unwrap();
        scan.neurons[layer] = unit_sums(&log1p(&a[layer], activation), &log1p(&s[layer], surprise));
        scan.experts.as_mut().unwrap()[layer] =
            unit_sums(&narrowed(&experts_a[layer], activation), &narrowed(&experts_s[layer], surprise));
    }
    scan
}

/// √width of each expert.
fn widths(layer: usize) -> [f64; 2] {
    [0, 1].map(|n| (units().neuron_expert[layer].iter().filter(|unit| **unit == n).count() as f64).sqrt())
}

/// z over the tokens and units of all layers.
fn standardised_globally(layers: &[Values; 2]) -> [Values; 2] {
    // All layers' units of a token beside each other are one layer of all units.
    let beside = |task: usize, token: usize| [&layers[0][task][token][..], &layers[1][task][token]].concat();
    let all: Values = (0..3).map(|task| (0..TOKENS[task]).map(|token| beside(task, token)).collect()).collect();
    let z = standardised(&all);
    let width = layers[0][0][0].len();
    [0, 1].map(|layer| {
        z.iter().map(|task| task.iter().map(|token| token[layer * width..][..width].to_vec()).collect()).collect()
    })
}

/// ∫ per token, `[layer][task][unit]`, of what enters z.
fn expected(values: &[Values; 2], norm: Norm) -> [Vec<Vec<f64>>; 2] {
    let z = match norm {
        Norm::Global => standardised_globally(values),
        Norm::Layer | Norm::Log1p => values.each_ref().map(standardised),
    };
    z.each_ref().map(integrated)
}

fn assert_integral(
    found: &Integral,
    a: &[Vec<Vec<f64>>; 2],
    s: &[Vec<Vec<f64>>; 2],
    unit: impl Fn(usize, usize) -> usize,
) {
    for (task, layers) in found.neurons.iter().enumerate() {
        for (layer, values) in layers.iter().enumerate() {
            for (i, found) in values.iter().enumerate() {
                let at = unit(layer, i);
                // Values of order 1 in f64; the difference E[x²] − m² costs some digits of sixteen.
                assert_relative_eq!(*found, a[layer][task][at] - s[layer][task][at], epsilon = 1e-9);
            }
        }
    }
}

#[rstest]
fn every_form_is_the_sum_of_every_tokens_z(
    #[values(Norm::Layer, Norm::Global, Norm::Log1p)] norm: Norm,
    #[values(ExpertForm::Mean, ExpertForm::Norm)] expert: ExpertForm,
) {
    let neurons = ["a", "s"].map(|purpose| of_layers(purpose, 5));
    let experts = ["A", "S"].map(|purpose| of_layers(purpose, 2));
    let found = Integral::of(&scan(&neurons, &experts), Score::Sps, Form { norm, expert }).unwrap();
    let of_experts = expert == ExpertForm::Norm;
    let [a, s] = [0, 1].map(|which| {
        let values = if of_experts { &experts[which] } else { &neurons[which] };
        let entering = [0, 1].map(|layer| {
            let scale = [SCALES[layer].activation, SCALES[layer].surprise][which];
            let widths = widths(layer);
            mapped(&values[layer], |at, x| {
                let x = if of_experts { x / widths[at] } else { x };
                if norm == Norm::Log1p { (1.0 + x / scale).ln() } else { x }
            })
        });
        expected(&entering, norm)
    });
    let units = units();
    let unit = |layer: usize, i: usize| if of_experts { units.neuron_expert[layer][i] as usize } else { i };
    assert_integral(&found, &a, &s, unit);
    if of_experts {
        // Every neuron stands for its expert, so an expert's mean is its value.
        let by_unit = found.by_unit(&units.neuron_expert, units.count);
        for (task, layer, n) in [(0, 0, 0), (1, 1, 1), (2, 0, 1)] {
            assert_relative_eq!(by_unit[task][layer][n], a[layer][task][n] - s[layer][task][n], epsilon = 1e-9);
        }
    }
}

#[test]
fn the_plain_form_is_the_default() {
    let neurons = ["a", "s"].map(|purpose| of_layers(purpose, 5));
    let experts = ["A", "S"].map(|purpose| of_layers(purpose, 2));
    let scan = scan(&neurons, &experts);
    for score in Score::ALL {
        assert_eq!(Integral::of(&scan, score, Form::default()).unwrap(), Integral::new(&scan, score));
    }
}

#[test]
fn forms_that_a_scan_does_not_hold_are_refused() {
    let plain = NeuronScan::zero(vec!["a".into()], 1, 3);
    let refused = |scan: &NeuronScan, score, norm, expert| {
        Integral::of(scan, score, Form { norm, expert }).unwrap_err().to_string()
    };
    let error = refused(&plain, Score::Sps, Norm::Layer, ExpertForm::Norm);
    assert!(error.starts_with("`expert`") && error.contains("scan with the partition known"), "{error}");
    let error = refused(&plain, Score::Sps, Norm::Log1p, ExpertForm::Mean);
    assert!(error.starts_with("`norm`") && error.contains("scan with norm = log1p"), "{error}");
    let units = Units { neuron_expert: vec![vec![0, 0, 1]], count: 2 };
    let known = NeuronScan::zero(vec!["a".into()], 1, 3).measuring(GradSite::Weight, Some(&units), None);
    let error = refused(&known, Score::Taylor, Norm::Layer, ExpertForm::Norm);
    assert!(error.starts_with("`expert`") && error.contains("Taylor"), "{error}");
}

/// A share may hold nothing of a task: the others are standardised as if it were not there, and it stands at their mean.
#[test]
fn a_task_without_tokens_moves_nothing() {
    let neurons = ["a", "s"].map(|purpose| of_layers(purpose, 5));
    let experts = ["A", "S"].map(|purpose| of_layers(purpose, 2));
    let mut with = scan(&neurons, &experts);
    let mut without = with.clone();
    with.tokens[2] = 0;
    for layer in 0..2 {
        with.sums[layer][2] = tinyonn::ops::NeuronSums::zero(5);
        without.sums[layer].truncate(2);
    }
    without.tasks.truncate(2);
    without.tokens.truncate(2);
    for norm in [Norm::Layer, Norm::Global] {
        let form = Form { norm, ..Form::default() };
        let [with, without] = [&with, &without].map(|scan| Integral::of(scan, Score::Sps, form).unwrap());
        assert_eq!(with.neurons[..2], without.neurons);
        assert!(with.neurons[2].iter().flatten().all(|x| *x == 0.0));
    }
}
