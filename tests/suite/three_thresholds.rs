//! Layers whose gates read a part of x, of whose neurons a part goes on to W_d: what is asked of each is found by damage, met, kept, and refused where it cannot be.

use proptest::prelude::*;
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::imaging::neuron_damage::cuts_of_a_gate;
use tinyonn::imaging::{Choose, Cut, LayerDamage, cuts_by_layer};
use tinyonn::phases::{Shares, SparsifyConfig, SparsifySummary, sparsify, sparsify_from};

use crate::models::message;
use crate::sparse_routers::config;

/// The share is met on held-out text, trained behind that or not; all active it is the dense model, bit for bit; a run that goes on from it finds the same.
#[rstest]
fn a_share_is_met(
    #[values(Shares::ByLayer, Shares::Uniform)] shares: Shares,
    #[values(None, Some(0.8))] candidates: Option<f64>,
    #[values(0, 3)] steps: u64,
) {
    let dir = TempDir::new().unwrap();
    let mut config = SparsifyConfig { shares, candidates, inputs: Some(0.5), ..config(&dir, "OwnGate") };
    (config.distil.steps, config.distil.batch) = (steps, 4);
    let found = sparsify(&config, None).unwrap();
    let SparsifySummary { lossless, operations, asked, taken, loss, .. } = found;
    assert!(lossless.bit_equal && loss.sparse.is_finite());
    let cost = asked.iter().map(|cut| cut.operations()).sum::<f64>() / asked.len() as f64;
    assert!((cost - 0.5).abs() < 1e-9 && asked.iter().all(|cut| cut.neurons <= cut.candidates), "{asked:?}");
    // What text differs by from text, of 16 channels and 26 neurons.
    assert!((operations - 0.5).abs() < 0.1, "{operations}");
    for (asked, taken) in asked.iter().zip(&taken) {
        assert!((asked.inputs - 0.5).abs() < 1e-9 && (taken.inputs - 0.5).abs() < 0.1, "{taken:?}");
    }
    if steps == 0 {
        let again = SparsifyConfig { out: dir.path().join("again"), ..config.clone() };
        let SparsifySummary { loss: of_again, operations: as_many, .. } =
            sparsify_from(&config.out, &again, None).unwrap();
        assert_eq!((of_again, as_many), (loss, operations));
    }
}

/// Where nothing is said layers find it themselves; by number gates read all.
#[rstest]
fn what_gates_read_is_found(#[values(Choose::Threshold, Choose::TopK)] choose: Choose) {
    let dir = TempDir::new().unwrap();
    let asked = sparsify(&SparsifyConfig { choose: Some(choose), ..config(&dir, "OwnGate") }, None).unwrap().asked;
    assert_eq!(asked.iter().any(|cut| cut.inputs < 1.0), choose == Choose::Threshold, "{asked:?}");
}

#[rstest]
#[case::none("OwnGate", 0.0, None, 0.5, &["inputs", "is 0", "more than 0"])]
#[case::number("OwnGate", f64::NAN, None, 0.5, &["inputs", "NaN"])]
#[case::by_number("OwnGate", 0.5, Some(Choose::TopK), 0.5, &["inputs", "top_k", "use 1"])]
#[case::behind_routers("GatedSix", 0.5, None, 0.5, &["inputs", "routers choose before"])]
#[case::of_one_set("Pruned", 0.5, None, 0.5, &["inputs", "same neurons for every token"])]
#[case::of_groups("WholeSix", 0.5, None, 0.5, &["inputs", "whole experts"])]
#[case::too_much("OwnGate", 0.25, None, 0.9, &["active_share", "0.750", "more candidates or inputs"])]
fn inputs_that_cannot_be_are_refused(
    #[case] variant: &str,
    #[case] inputs: f64,
    #[case] choose: Option<Choose>,
    #[case] active_share: f64,
    #[case] words: &[&str],
) {
    let dir = TempDir::new().unwrap();
    let config = SparsifyConfig { inputs: Some(inputs), choose, active_share, ..config(&dir, variant) };
    let refused = message(sparsify(&config, None));
    assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
}

/// A summary of an earlier version has no share of inputs: they were all read.
#[test]
fn cuts_of_earlier_versions_are_read() {
    let old = r#"{"candidates":1.0,"neurons":0.4}"#;
    let cut: Cut = serde_json::from_str(old).unwrap();
    assert_eq!((cut, serde_json::to_string(&cut).unwrap().as_str()), (Cut::of(1.0, 0.4), old));
    let part = Cut { inputs: 0.5, ..cut };
    assert_eq!(serde_json::from_str::<Cut>(&serde_json::to_string(&part).unwrap()).unwrap(), part);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    /// Between cuts that read other shares of x the cost is what was asked for, and no share leaves its range.
    #[test]
    fn cuts_between_others_cost_what_was_asked(seed in any::<u64>(), operations in 0.2f64..1.0) {
        let cuts = cuts_of_a_gate(None, None);
        // Damage that falls with cost, apart from what a seed makes of it.
        let damage = |layer: usize| cuts.iter().enumerate().map(move |(at, cut)| {
            let noise = (seed.wrapping_mul(6364136223846793005).wrapping_add((at * 31 + layer) as u64) >> 33) as f64;
            if *cut == Cut::WHOLE { 0.0 } else { (1.0 - cut.operations() + 0.01) * (0.5 + noise / 2f64.powi(31)) }
        });
        let layers = [0, 1].map(|layer| LayerDamage { cuts: cuts.clone(), damage: damage(layer).collect() });
        let found = cuts_by_layer(&layers, operations).unwrap();
        let cost = found.iter().map(|cut| cut.operations()).sum::<f64>() / 2.0;
        prop_assert!((cost - operations).abs() < 1e-9, "{cost} {operations}");
        for cut in found {
            prop_assert!(cut.neurons <= cut.candidates + 1e-12 && cut.inputs <= 1.0 + 1e-12 && cut.inputs > 0.2, "{cut:?}");
        }
    }
}
