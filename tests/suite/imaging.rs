//! The scan and what it is read for: per-token values against candle's own tape, sums, refusals, and ∫SPS against its definition.

mod files;
mod forged_scans;
mod forms;
mod grad_site;
mod integral;
mod on_disk;
mod own_weights;
mod router_inputs;
mod shards;
mod token_labels;

use std::sync::Arc;

use approx::assert_relative_eq;
use candle_core::{Device, Tensor};
use rstest::rstest;
use tinyonn::data::{TaskTokens, TokenSet};
use tinyonn::decoder::{Arch, CausalLm, ImageAsk, Learn, Pass};
use tinyonn::imaging::{NeuronScan, ScanOptions, dump, scan};

use crate::models::learnt;
use crate::tiny;
use own_weights::image;

const VOCAB: u32 = 40;

/// The library works in f32 (2⁻²⁴ = 6e-8 an operation) through two layers and back: some hundred roundings of mixed sign. What is
/// this much smaller than the largest value of its kind comes from cancellation.
const F32: f64 = 1e-4;

fn close(found: f64, expected: f64, largest: f64) {
    assert_relative_eq!(found, expected, max_relative = F32, epsilon = F32 * 1e-2 * largest);
}

fn options(length: usize, batch: usize) -> ScanOptions {
    ScanOptions { length, batch, tokens_per_task: usize::MAX }
}

fn scanned(seed: u64, set: &TokenSet, options: ScanOptions) -> NeuronScan {
    let cfg = tiny::config(VOCAB as usize);
    scan(&tiny::dense(&cfg, &tiny::dense_store(&cfg, seed)), set, options, &Device::Cpu, None).unwrap()
}

#[rstest]
#[case::neurons(0, 26, "silu")]
#[case::uneven_experts(1, 7, "silu")]
#[case::one_expert(2, 1, "silu")]
#[case::gelu(3, 26, "gelu")]
#[case::an_activation_of_ones_own(4, 7, "tanh_square")]
fn dump_is_the_gradient_of_each_tokens_own_weights(
    #[case] seed: u64,
    #[case] experts: usize,
    #[case] hidden_act: &str,
) {
    let cfg = Arch { hidden_act: hidden_act.into(), ..tiny::config(VOCAB as usize) };
    let store = tiny::dense_store(&cfg, seed);
    let set = tiny::tokens(seed, &[11, 11], VOCAB);
    let rows: Vec<&[u32]> = set.tasks.iter().map(|task| task.tokens.as_slice()).collect();
    let ids = Tensor::new(rows.concat(), &Device::Cpu).unwrap().reshape((2, 11)).unwrap();
    let units: Vec<Vec<u32>> =
        (0..2).map(|layer| (0..26).map(|i| ((i * 5 + layer) % experts) as u32).collect()).collect();

    let seen = dump(&tiny::dense(&cfg, &store), &ids, &units, experts).unwrap();
    let images = rows.iter().map(|row| image(&cfg, &store, row, &row[1..])).collect::<Vec<_>>();
    assert_relative_eq!(seen.loss_sum, images.iter().map(|image| image.loss).sum::<f64>(), max_relative = 1e-5);
    for layer in 0..2 {
        let own = |f: fn(&own_weights::Layer) -> &Vec<Vec<f64>>| -> Vec<Vec<f64>> {
            images.iter().flat_map(|image| f(&image.layers[layer]).clone()).collect()
        };
        let measures = [(&seen.activation, own(|l| &l.activation)), (&seen.surprise, own(|l| &l.surprise))];
        for (found, expected) in measures {
            let found = found[layer].to_vec2::<f32>().unwrap();
            assert_eq!((found.len(), found[0].len()), (22, experts));
            let of_expert = |values: &[f64], expert: usize| {
                let own = values.iter().zip(&units[layer]).filter(|(_, unit)| **unit as usize == expert);
                own.map(|(x, _)| x * x).sum::<f64>().sqrt()
            };
            let largest = expected.iter().flatten().copied().fold(0.0, f64::max);
            for (found, expected) in found.iter().zip(&expected) {
                for (expert, found) in found.iter().enumerate() {
                    close(f64::from(*found), of_expert(expected, expert), largest);
                }
            }
        }
        // The last position has no target and nobody reads the last layer's other positions.
        let last = seen.surprise[1].get(10).unwrap().to_vec1::<f32>().unwrap();
        assert!(last.iter().all(|s| *s == 0.0));
    }
}

#[test]
fn dump_refuses_what_is_not_of_this_model() {
    let cfg = tiny::config(VOCAB as usize);
    let model = tiny::dense(&cfg, &tiny::dense_store(&cfg, 0));
    let ids = |count: usize| Tensor::zeros((1, count), candle_core::DType::U32, &Device::Cpu).unwrap();
    let units = vec![vec![0u32; 26]; 2];
    assert!(dump(&model, &ids(1), &units, 1).unwrap_err().to_string().contains("`tokens`"));
    for (units, count) in [(&units[..1], 1), (&vec![vec![0; 25]; 2][..], 1), (&vec![vec![1; 26]; 2][..], 1)] {
        assert!(dump(&model, &ids(4), units, count).unwrap_err().to_string().contains("`units`"));
    }
}

/// Rows of 8 from 22 tokens: the last holds 5 inputs and is padded.
#[rstest]
#[case::one_row_a_batch(1)]
#[case::padding_beside_whole_rows(4)]
fn scan_sums_the_real_positions_and_no_others(#[case] batch: usize) {
    let cfg = tiny::config(VOCAB as usize);
    let store = tiny::dense_store(&cfg, 3);
    let set = tiny::tokens(3, &[22, 14], VOCAB);
    let seen = scan(&tiny::dense(&cfg, &store), &set, options(8, batch), &Device::Cpu, None).unwrap();
    assert_eq!(seen.tokens, [21, 13]);
    for (task, TaskTokens { tokens, .. }) in set.tasks.iter().enumerate() {
        let rows = (0..tokens.len() - 1).step_by(8).map(|from| (from, (from + 8).min(tokens.len() - 1)));
        let images: Vec<_> =
            rows.map(|(from, to)| image(&cfg, &store, &tokens[from..to], &tokens[from + 1..=to])).collect();
        assert_relative_eq!(seen.loss[task], images.iter().map(|i| i.loss).sum::<f64>(), max_relative = 1e-5);
        for (layer, sums) in seen.sums.iter().enumerate() {
            let total = |f: &dyn Fn(&own_weights::Layer, usize, usize) -> f64| -> Vec<f64> {
                let over_rows = |i: usize| images.iter().map(move |image| (image.layers.get(layer).unwrap(), i));
                (0..26)
                    .map(|i| over_rows(i).map(|(l, i)| (0..l.activation.len()).map(|t| f(l, t, i)).sum::<f64>()).sum())
                    .collect()
            };
            let expected = [
                total(&|l, t, i| l.activation[t][i]),
                total(&|l, t, i| l.activation[t][i].powi(2)),
                total(&|l, t, i| l.surprise[t][i]),
                total(&|l, t, i| l.surprise[t][i].powi(2)),
            ];
            for (found, expected) in sums[task].each().into_iter().zip(&expected) {
                let largest = expected.iter().copied().fold(0.0, f64::max);
                found.iter().zip(expected).for_each(|(found, expected)| close(*found, *expected, largest));
            }
            assert!(sums[task].surprised.iter().all(|n| *n <= seen.tokens[task] as f64));
            // Terms of both signs cancel in the one and not in the other.
            let pairs = || sums[task].taylor.iter().zip(&sums[task].taylor_magnitude);
            assert!(pairs().all(|(sum, magnitude)| sum.abs() <= magnitude * (1.0 + 1e-12)));
            assert!(pairs().any(|(sum, magnitude)| sum.abs() < 0.9 * magnitude));
        }
    }
}

/// A single token's Taylor score cancels with nothing.
#[test]
fn of_one_token_the_magnitude_is_the_scores() {
    let seen = scanned(4, &tiny::tokens(4, &[2, 2], VOCAB), options(8, 1));
    for sums in seen.sums.iter().flatten() {
        assert!(sums.taylor.iter().zip(&sums.taylor_magnitude).all(|(score, magnitude)| score.abs() == *magnitude));
        assert!(sums.taylor.iter().any(|score| *score < 0.0) && sums.taylor.iter().any(|score| *score > 0.0));
    }
}

/// Removing neuron i changes the loss by −taylor_i to first order: half-way between, the derivative along its removal.
#[test]
fn taylor_is_the_derivative_of_the_loss_along_a_removal() {
    let cfg = tiny::config(VOCAB as usize);
    let set = tiny::tokens(4, &[17], VOCAB);
    let store = tiny::dense_store(&cfg, 4);
    let seen = scan(&tiny::dense(&cfg, &store), &set, options(8, 2), &Device::Cpu, None).unwrap();
    let name = "model.layers.0.mlp.down_proj.weight";
    let whole = store.get(name).unwrap().as_detached_tensor().to_vec2::<f32>().unwrap();
    let loss_with = |neuron: usize, factor: f32| -> f64 {
        let mut changed = whole.clone();
        changed[neuron].iter_mut().for_each(|weight| *weight *= factor);
        let other = store.deep_copy().unwrap();
        other.set(name, &Tensor::new(changed, &Device::Cpu).unwrap()).unwrap();
        (0..2)
            .map(|row| &set.tasks[0].tokens[8 * row..=8 * row + 8])
            .map(|row| image(&cfg, &other, &row[..8], &row[1..]).loss)
            .sum()
    };
    for neuron in [0, 9, 25] {
        // f64 losses of weights that f32 holds to 6e-8: central differences over 2 × 1e-3 are good to 1e-4 or so.
        let slope = (loss_with(neuron, 1.0 + 1e-3) - loss_with(neuron, 1.0 - 1e-3)) / 2e-3;
        let taylor = seen.sums[0][0].taylor[neuron];
        assert_relative_eq!(taylor, -slope, max_relative = 2e-3, epsilon = 2e-3);
    }
}

#[test]
fn scans_of_two_halves_add_up() {
    let (whole, sizes) = (tiny::tokens(5, &[65, 65], VOCAB), 33);
    let half = |from: usize| {
        let mut set = whole.clone();
        for task in &mut set.tasks {
            task.tokens = task.tokens[from..from + sizes].to_vec();
            task.documents.truncate(sizes);
        }
        set
    };
    let (mut sum, expected) = (scanned(5, &half(0), options(8, 2)), scanned(5, &whole, options(8, 2)));
    sum.merge(&scanned(5, &half(32), options(8, 2))).unwrap();
    assert_eq!((&sum.tokens, &sum.tasks), (&expected.tokens, &expected.tasks));
    let same = |found: &f64, expected: &f64| assert_relative_eq!(found, expected, max_relative = 1e-12);
    sum.loss.iter().zip(&expected.loss).for_each(|(found, expected)| same(found, expected));
    for (found, expected) in sum.sums.iter().flatten().zip(expected.sums.iter().flatten()) {
        for (which, (found, expected)) in found.each().into_iter().zip(expected.each()).enumerate() {
            // A sum of mixed signs (taylor, the fifth) is exact relative to its terms, not to itself.
            let epsilon = if which == 4 { 1e-12 } else { 0.0 };
            for (found, expected) in found.iter().zip(expected) {
                assert_relative_eq!(found, expected, max_relative = 1e-12, epsilon = epsilon);
            }
        }
    }
    let other = scanned(5, &tiny::tokens(5, &[65], VOCAB), options(8, 2));
    assert!(sum.merge(&other).unwrap_err().to_string().contains("different tasks"));
}

#[test]
fn reruns_give_the_same_bits_and_change_nothing() {
    let cfg = tiny::config(VOCAB as usize);
    let store = tiny::dense_store(&cfg, 6);
    let (model, set, before) = (tiny::dense(&cfg, &store), tiny::tokens(6, &[300, 200], VOCAB), tiny::bits(&store));
    let once = scan(&model, &set, options(16, 8), &Device::Cpu, None).unwrap();
    let again = scan(&model, &set, options(16, 8), &Device::Cpu, None).unwrap();
    assert_eq!(once, again);
    assert_eq!(tiny::bits(&store), before);
    // A random model surprises everywhere; f32 has 1e-38 to spare.
    assert!(once.gradient_nonzero_share() > 0.999, "{}", once.gradient_nonzero_share());
}

/// Every layer answers, whether a weight learns or not; and asking makes no weight learn.
#[test]
fn asking_a_frozen_model_forms_no_weight_gradient() {
    let cfg = tiny::config(VOCAB as usize);
    let store = tiny::dense_store(&cfg, 7);
    let batch = tiny::tokens(7, &[17], VOCAB).batches_of_task(0, 8, 2, &Device::Cpu).unwrap().next().unwrap().unwrap();
    let model = CausalLm::dense(&cfg, &store.builder(candle_core::DType::F32, |_| true)).unwrap();
    let asked = |learns: &dyn Fn(&str) -> bool| {
        let image = ImageAsk::Sums {
            counted_t: batch.counted_t().unwrap(),
            site: tinyonn::ops::GradSite::Weight,
            experts: Arc::from([]),
            scales: Arc::from([]),
        };
        let learn = Learn { image: Some(Arc::new(image)), ..Learn::default() };
        let found = learnt(&model, (&store, learns), (&batch.inputs, &batch.targets), &Pass::all(), &learn);
        let sums = found.answers.iter().map(|answers| answers.sums.as_ref().unwrap().neurons.to_vec2::<f64>().unwrap());
        let gradients = store.iter().filter(|(_, var)| found.grads.get(var).is_some()).count();
        (gradients, sums.collect::<Vec<_>>())
    };
    let (frozen, all) = (asked(&|_| false), asked(&|_| true));
    assert_eq!((frozen.0, all.0), (0, store.len()));
    assert_eq!(frozen.1.len(), 2);
    assert_eq!(frozen.1, all.1);
    assert!(frozen.1.iter().flatten().all(|sums| sums.iter().any(|sum| *sum != 0.0)));
}

#[rstest]
#[case(1)]
#[case(20)]
#[case(32)]
#[case(1000)]
fn no_more_tokens_are_read_than_asked_for(#[case] most: usize) {
    let set = tiny::tokens(8, &[49, 30], VOCAB);
    let seen = scanned(8, &set, ScanOptions { tokens_per_task: most, ..options(8, 3) });
    assert_eq!(seen.tokens, [48.min(most as u64), 29.min(most as u64)]);
    let mut cut = set.clone();
    cut.tasks.iter_mut().for_each(|task| task.tokens.truncate(most + 1));
    cut.tasks.iter_mut().for_each(|task| task.documents.truncate(most + 1));
    assert_eq!(seen, scanned(8, &cut, options(8, 3)));
}

#[rstest]
#[case::no_target(&[1, 1], usize::MAX, "task `task0` has no token with a target")]
#[case::one_task_without(&[9, 1], usize::MAX, "task `task1` has no token with a target")]
#[case::nothing_asked_for(&[9, 9], 0, "has no token with a target")]
fn text_without_targets_is_refused(#[case] sizes: &[usize], #[case] most: usize, #[case] problem: &str) {
    let cfg = tiny::config(VOCAB as usize);
    let model = tiny::dense(&cfg, &tiny::dense_store(&cfg, 0));
    let options = ScanOptions { tokens_per_task: most, ..options(8, 2) };
    let error = scan(&model, &tiny::tokens(0, sizes, VOCAB), options, &Device::Cpu, None).unwrap_err().to_string();
    assert!(error.starts_with("`scan`") && error.contains(problem), "{error}");
}

#[test]
fn a_model_without_gradients_is_refused() {
    let cfg = tiny::config(VOCAB as usize);
    let store = tiny::dense_store(&cfg, 0);
    let head = store.get("lm_head.weight").unwrap();
    head.set(&head.zeros_like().unwrap()).unwrap();
    let (model, set) = (tiny::dense(&cfg, &store), tiny::tokens(0, &[30], VOCAB));
    let error = scan(&model, &set, options(8, 2), &Device::Cpu, None).unwrap_err().to_string();
    assert!(error.starts_with("`scan`: every surprise of the scan is zero"), "{error}");
}

#[rstest]
#[case("Moe1x1")]
#[case("Moe2x4")]
#[case("Moe7x3")]
#[case("MoeSequence")]
fn upcycled_all_active_is_scanned_like_the_dense_model(#[case] variant: &str) {
    let cfg = tiny::config(VOCAB as usize);
    let store = tiny::dense_store(&cfg, 9);
    let set = tiny::tokens(9, &[100, 70], VOCAB);
    let dense = scan(&tiny::dense(&cfg, &store), &set, options(16, 3), &Device::Cpu, None).unwrap();
    let (variant, store) = tiny::upcycled(&cfg, variant, &store);
    let model = tiny::sparse(&cfg, variant, &store);
    assert_eq!(scan(model.lm(), &set, options(16, 3), &Device::Cpu, None).unwrap(), dense);
}
