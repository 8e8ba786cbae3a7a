//! A model that takes other numbers of choices than it declares.

use candle_core::DType;
use proptest::prelude::*;
use rstest::rstest;
use tinyonn::decoder::Pass;
use tinyonn::model::TinyOnnForCausalLm;
use tinyonn::moe::Pfag;

use crate::models::{self, bits, message};
use crate::tiny;

fn routed(name: &str, top_k: Option<(&[usize], Pfag)>, ctx: &Pass) -> Vec<u32> {
    let cfg = tiny::config(40);
    let dense = tiny::dense_store(&cfg, 1);
    let (variant, store) = tiny::upcycled(&cfg, name, &dense);
    let vb = store.builder(DType::F32, |_| false);
    let model = match top_k {
        Some((top_k, pfag)) => TinyOnnForCausalLm::taking(&cfg, variant, &vb, |_| top_k, pfag),
        None => TinyOnnForCausalLm::new(&cfg, variant, &vb),
    };
    bits(&model.unwrap().logits(&models::ids((2, 9)), ctx, None).unwrap())
}

#[rstest]
fn what_is_declared_taken_again_is_the_same_model(#[values("Moe2x4", "SegmentOf3", "Cortex")] name: &str) {
    let variant = tinyonn::moe::variant(name).unwrap();
    // The widths of the declaration, where the routers of a level share one.
    let widths: Vec<Vec<usize>> =
        variant.spec.levels.iter().map(|level| level.routers.iter().map(|run| run.top_k).collect()).collect();
    if widths.iter().any(|level| level.iter().any(|k| *k != level[0])) {
        return;
    }
    let top_k: Vec<usize> = widths.iter().map(|level| level[0]).collect();
    let ctx = Pass::routed();
    assert_eq!(routed(name, Some((&top_k, variant.spec.pfag)), &ctx), routed(name, None, &ctx));
}

/// All taken is the dense model bit for bit; one fewer is not.
#[rstest]
fn all_taken_is_the_dense_model(#[values("Moe2x4", "SegmentOf3")] name: &str) {
    let spec = &tinyonn::moe::variant(name).unwrap().spec;
    let all = spec.choices();
    let dense = routed(name, None, &Pass::all());
    assert_eq!(routed(name, Some((&all, Pfag::Off)), &Pass::routed()), dense);
    let fewer: Vec<usize> = all.iter().map(|k| k - 1).collect();
    assert_ne!(routed(name, Some((&fewer, Pfag::Off)), &Pass::routed()), dense);
}

#[rstest]
#[case(&[1, 1], 1)]
#[case(&[1, 3], 3)]
#[case(&[2, 3], 6)]
#[case(&[9, 9], 8)]
fn as_many_are_active_as_asked(#[case] top_k: &[usize], #[case] expected: usize) {
    let cfg = tiny::config(40);
    let dense = tiny::dense_store(&cfg, 1);
    let (variant, store) = tiny::upcycled(&cfg, "Moe2x4", &dense);
    let vb = store.builder(DType::F32, |_| false);
    let model = TinyOnnForCausalLm::taking(&cfg, variant, &vb, |_| top_k, Pfag::Off).unwrap();
    assert_eq!(model.spec().active_experts(), expected);
    let load = tiny::load(&model, &models::ids((2, 9)), &Pass::routed());
    for layer in load.figures(model.spec()).layers {
        assert_eq!(layer.experts_taken.into_iter().collect::<Vec<_>>(), [(expected, 18)]);
    }
}

/// An adaptive form takes what its router's certainty asks for: at the least mass one, at the whole of it all.
#[rstest]
#[case(Pfag::Nucleus { mass: 1e-6 }, 1)]
#[case(Pfag::Nucleus { mass: 0.999_999_9 }, 8)]
fn a_nucleus_takes_from_one_to_all(#[case] pfag: Pfag, #[case] expected: usize) {
    let cfg = tiny::config(40);
    let dense = tiny::dense_store(&cfg, 1);
    let (variant, store) = tiny::upcycled(&cfg, "Moe2x4", &dense);
    // Routers that know nothing: all choices alike.
    for (_, var) in store.trainable(|name| name.contains("_router.mean")) {
        var.set(&var.zeros_like().unwrap()).unwrap();
    }
    let vb = store.builder(DType::F32, |_| false);
    let all = variant.spec.choices();
    let model = TinyOnnForCausalLm::taking(&cfg, variant, &vb, |_| &all, pfag).unwrap();
    let load = tiny::load(&model, &models::ids((1, 5)), &Pass::routed());
    let taken = &load.figures(model.spec()).layers[0].experts_taken;
    assert_eq!(taken.iter().map(|(k, count)| (*k, *count)).collect::<Vec<_>>(), [(expected, 5)]);
}

#[test]
fn an_adaptive_form_of_what_no_router_decides_is_refused() {
    let cfg = tiny::config(40);
    let dense = tiny::dense_store(&cfg, 1);
    let (variant, store) = tiny::upcycled(&cfg, "ByTask", &dense);
    let vb = store.builder(DType::F32, |_| false);
    let all = variant.spec.choices();
    let refused = TinyOnnForCausalLm::taking(&cfg, variant, &vb, |_| &all, Pfag::Entropy);
    assert!(message(refused).contains("pfag"), "names the setting");
}

/// Each layer takes its own number.
#[test]
fn layers_may_take_different_numbers() {
    let cfg = tiny::config(40);
    let dense = tiny::dense_store(&cfg, 1);
    let (variant, store) = tiny::upcycled(&cfg, "Moe2x4", &dense);
    let vb = store.builder(DType::F32, |_| false);
    let by_layer = [[1, 2], [2, 4]];
    let model = TinyOnnForCausalLm::taking(&cfg, variant, &vb, |layer| &by_layer[layer], Pfag::Off).unwrap();
    let load = tiny::load(&model, &models::ids((2, 9)), &Pass::routed());
    for (layer, (load, expected)) in load.figures(model.spec()).layers.iter().zip([2, 8]).enumerate() {
        assert_eq!(load.experts_taken.iter().map(|(k, count)| (*k, *count)).collect::<Vec<_>>(), [(expected, 18)]);
        assert_eq!(model.moe(layer).spec().active_experts(), expected);
    }
    approx::assert_relative_eq!(load.expert_share(), 10.0 / 16.0, max_relative = 1e-6);
}

/// What 10 × 10 experts over four layers are asked for, they activate exactly, with one number or two neighbours.
#[rstest]
#[case(25, &[[5, 5]])]
#[case(50, &[[5, 10]])]
#[case(75, &[[7, 10], [8, 10]])]
#[case(90, &[[9, 10]])]
fn a_hundred_experts_meet_what_is_asked(#[case] percent: usize, #[case] expected: &[[usize; 2]]) {
    let found = tiny::spec(&[(10, 1), (10, 2)]).top_k_at(percent, 4);
    assert_eq!(found, (0..4).map(|layer| expected[layer % expected.len()]).collect::<Vec<_>>());
    let active: usize = found.iter().map(|top_k| top_k.iter().product::<usize>()).sum();
    assert_eq!(active, 4 * percent);
}

#[test]
fn uneven_hierarchies_meet_what_is_asked_too() {
    let spec = &tinyonn::moe::variant("Cortex").unwrap().spec;
    let by_layer = spec.top_k_at(75, 3);
    let of = |top_k: &[usize]| spec.taking(top_k, Pfag::Off).active_experts() as f64;
    let mean = by_layer.iter().map(|top_k| of(top_k)).sum::<f64>() / 3.0;
    let nearest =
        spec.every_top_k().iter().map(|k| (of(k) - 0.75 * spec.experts() as f64).abs()).fold(f64::MAX, f64::min);
    assert!((mean - 0.75 * spec.experts() as f64).abs() <= nearest + 1e-9, "{by_layer:?}");
}

proptest! {
    /// As near as half a step of one layer, never further than the best single number, two numbers at most, evenly dealt.
    #[test]
    fn a_share_is_met_as_nearly_as_layers_can(
        choices in prop::collection::vec(1usize..7, 1..5), layers in 1usize..10, percent in 1usize..100,
    ) {
        let spec = tiny::spec(&choices.iter().map(|choices| (*choices, 1)).collect::<Vec<_>>());
        let active = |top_k: &Vec<usize>| top_k.iter().product::<usize>() as f64;
        let wanted = spec.experts() as f64 * percent as f64 / 100.0;
        let found = spec.top_k_at(percent, layers);
        prop_assert_eq!(found.len(), layers);
        let numbers: Vec<f64> = found.iter().map(active).collect();
        let miss = (numbers.iter().sum::<f64>() / layers as f64 - wanted).abs();
        // f64 means of small whole numbers.
        let near = |a: f64, b: f64| a <= b + 1e-9;
        let all: Vec<f64> = spec.every_top_k().iter().map(active).collect();
        prop_assert_eq!(all.len(), choices.iter().product::<usize>());
        prop_assert!(all.iter().all(|single| near(miss, (single - wanted).abs())));
        let below = all.iter().copied().filter(|x| *x <= wanted).fold(f64::NAN, f64::max);
        let above = all.iter().copied().filter(|x| *x >= wanted).fold(f64::NAN, f64::min);
        if below.is_finite() {
            prop_assert!(near(miss, (above - below) / (2.0 * layers as f64)), "{found:?} {miss}");
        }
        let (low, high) = numbers.iter().fold((f64::MAX, 0f64), |(low, high), x| (low.min(*x), high.max(*x)));
        prop_assert!(numbers.iter().all(|x| *x == low || *x == high));
        let raised = |layers: usize| numbers[..layers].iter().filter(|x| **x > low).count() as f64;
        for first in 0..=layers {
            prop_assert!((raised(first) - raised(layers) * first as f64 / layers as f64).abs() < 1.0, "{numbers:?}");
        }
    }
}
