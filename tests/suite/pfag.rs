//! Adaptive gating in whole models: where surprisal comes from, and that counts follow the difficulty.

use std::collections::BTreeSet;

use candle_core::{D, Device, Tensor};
use rstest::rstest;
use tinyonn::decoder::Pass;
use tinyonn::imaging::Labels;
use tinyonn::moe::Pfag;

use crate::routing::{asking_gates, gates_of, upcycled};
use crate::tiny;

#[rstest]
#[case(-3.0, 0.1)]
#[case(0.1, 0.1)]
#[case(1.7, 1.7)]
#[case(5.0, 5.0)]
#[case(80.0, 5.0)]
fn the_mass_of_a_surprisal_is_its_sigmoid_between_bounds(#[case] surprisal: f32, #[case] clamped: f64) {
    let expected = 1.0 / (1.0 + (-clamped).exp());
    approx::assert_relative_eq!(f64::from(Pfag::Surprisal.mass(surprisal)), expected, max_relative = 1e-6);
}

#[test]
fn more_surprise_or_doubt_takes_no_fewer() {
    let log_p = |p: &[f32]| -> Vec<f32> { p.iter().map(|p| p.ln()).collect() };
    let skewed = log_p(&[0.02, 0.6, 0.08, 0.05, 0.25]);
    let counts: Vec<usize> = [0.1, 0.8, 2.0, 3.0, 5.0]
        .iter()
        .map(|surprisal| Pfag::Surprisal.count(&skewed, 5, Pfag::Surprisal.mass(*surprisal)))
        .collect();
    // σ = 0.525, 0.690, 0.881, 0.953, 0.993 of 0.6, 0.85, 0.93, 0.98, 1.
    assert_eq!(counts, [1, 2, 3, 4, 5]);
    for choices in 1..=64 {
        let uniform = log_p(&vec![1.0 / choices as f32; choices]);
        assert_eq!(Pfag::Entropy.count(&uniform, choices, 1.0), choices);
        let mut certain = vec![-200.0; choices];
        certain[choices / 2] = 0.0;
        assert_eq!(Pfag::Entropy.count(&certain, choices, 1.0), 1);
        assert_eq!(Pfag::Nucleus { mass: 0.99 }.count(&certain, choices, 0.99), 1);
        // f32 may not gather quite all of it: then all are taken.
        assert_eq!(Pfag::Nucleus { mass: 1.0 }.count(&uniform, choices, 1.0), choices);
    }
}

fn gates(name: &str, surprisal: Option<Tensor>, ids: &Tensor) -> Vec<Vec<Vec<f32>>> {
    let (cfg, variant, store) = upcycled(name);
    let pass = asking_gates(&Pass { surprisal, ..Pass::routed() });
    let (_, traces) = tiny::sparse(&cfg, variant, &store).traced_logits(ids, &pass).unwrap();
    traces.iter().map(gates_of).collect()
}

/// −log p of each token given those before it, in the pass of all experts; the first is as surprising as one drawn blindly.
fn surprisal(name: &str, ids: &Tensor) -> Tensor {
    let (cfg, variant, store) = upcycled(name);
    let logits = tiny::sparse(&cfg, variant, &store).logits(ids, &Pass::all(), None).unwrap();
    let log_p = candle_nn::ops::log_softmax(&logits, D::Minus1).unwrap().to_vec3::<f32>().unwrap();
    let of_row = |(ids, log_p): (Vec<u32>, Vec<Vec<f32>>)| -> Vec<f32> {
        let of = |t: usize| if t == 0 { (cfg.vocab_size as f32).ln() } else { -log_p[t - 1][ids[t] as usize] };
        (0..ids.len()).map(of).collect()
    };
    let rows: Vec<Vec<f32>> = ids.to_vec2::<u32>().unwrap().into_iter().zip(log_p).map(of_row).collect();
    Tensor::new(rows, &Device::Cpu).unwrap()
}

#[rstest]
fn surprisal_is_that_of_the_input_under_all_experts(
    #[values("BySurprisal", "SegmentBySurprisal")] name: &str,
    #[values(1, 2, 9)] length: usize,
) {
    let ids = tinyonn::checkpoint::tokens::random_tokens(40, (3, length), 5, &Device::Cpu).unwrap();
    let by_hand = surprisal(name, &ids);
    let found = gates(name, None, &ids);
    assert!(found == gates(name, Some(by_hand.clone()), &ids));
    if length == 9 {
        // Blind to surprisal, both would be alike.
        assert!(found != gates(name, Some(by_hand.affine(0.0, 5.0).unwrap()), &ids));
        assert!(found != gates(name, Some(by_hand.zeros_like().unwrap()), &ids));
    }
}

#[rstest]
fn tokens_take_different_numbers_of_experts(#[values("ByEntropy", "ByNucleus", "BySurprisal")] name: &str) {
    let ids = tinyonn::checkpoint::tokens::random_tokens(40, (3, 20), 5, &Device::Cpu).unwrap();
    let taken: BTreeSet<usize> =
        gates(name, None, &ids).iter().flatten().map(|row| row.iter().filter(|gate| **gate > 0.0).count()).collect();
    assert!(taken.len() > 1 && *taken.first().unwrap() >= 1, "{taken:?}");
}

/// All that `pfag` may take is no label: paths are as wide as those of a variant without it.
#[rstest]
fn labels_of_adaptive_variants_choose(#[values("ByEntropy", "ByNucleus", "BySurprisal")] name: &str) {
    let (_, variant, _) = upcycled(name);
    let labels = Labels::random(5, 2, &variant.spec, 1);
    assert!(labels.paths.experts.iter().flatten().all(|path| path.len() == 2), "{labels:?}");
    assert!(labels.statistics(&variant.spec).distinct_paths > 1);
}
