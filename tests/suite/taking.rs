//! A model that takes other numbers of choices than it declares.

use candle_core::DType;
use rstest::rstest;
use std::sync::Arc;
use tinyonn::model::TinyOnnForCausalLm;
use tinyonn::moe::{LoadMeter, Pfag};
use tinyonn::qwen3::RouteCtx;

use crate::models::{self, bits, message};
use crate::tiny;

fn routed(name: &str, top_k: Option<(&[usize], Pfag)>, ctx: &RouteCtx) -> Vec<u32> {
    let cfg = tiny::config(40);
    let dense = tiny::dense_store(&cfg, 1);
    let (variant, store) = tiny::upcycled(&cfg, name, &dense);
    let vb = store.builder(DType::F32, |_| false);
    let model = match top_k {
        Some((top_k, pfag)) => TinyOnnForCausalLm::taking(&cfg, variant, &vb, top_k, pfag),
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
    let ctx = RouteCtx::routed();
    assert_eq!(routed(name, Some((&top_k, variant.spec.pfag)), &ctx), routed(name, None, &ctx));
}

/// All taken is the dense model bit for bit; one fewer is not.
#[rstest]
fn all_taken_is_the_dense_model(#[values("Moe2x4", "SegmentOf3")] name: &str) {
    let spec = &tinyonn::moe::variant(name).unwrap().spec;
    let all = spec.choices();
    let dense = routed(name, None, &RouteCtx::all());
    assert_eq!(routed(name, Some((&all, Pfag::Off)), &RouteCtx::routed()), dense);
    let fewer: Vec<usize> = all.iter().map(|k| k - 1).collect();
    assert_ne!(routed(name, Some((&fewer, Pfag::Off)), &RouteCtx::routed()), dense);
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
    let model = TinyOnnForCausalLm::taking(&cfg, variant, &vb, top_k, Pfag::Off).unwrap();
    assert_eq!(model.spec().active_experts(), expected);
    let load = Arc::new(LoadMeter::new(cfg.num_hidden_layers, 8));
    let ctx = RouteCtx { observer: Some(load.clone()), ..RouteCtx::routed() };
    model.logits(&models::ids((2, 9)), &ctx, None).unwrap();
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
    let model = TinyOnnForCausalLm::taking(&cfg, variant, &vb, &variant.spec.choices(), pfag).unwrap();
    let load = Arc::new(LoadMeter::new(cfg.num_hidden_layers, 8));
    model.logits(&models::ids((1, 5)), &RouteCtx { observer: Some(load.clone()), ..RouteCtx::routed() }, None).unwrap();
    let taken = &load.figures(model.spec()).layers[0].experts_taken;
    assert_eq!(taken.iter().map(|(k, count)| (*k, *count)).collect::<Vec<_>>(), [(expected, 5)]);
}

#[test]
fn an_adaptive_form_of_what_no_router_decides_is_refused() {
    let cfg = tiny::config(40);
    let dense = tiny::dense_store(&cfg, 1);
    let (variant, store) = tiny::upcycled(&cfg, "ByTask", &dense);
    let vb = store.builder(DType::F32, |_| false);
    let refused = TinyOnnForCausalLm::taking(&cfg, variant, &vb, &variant.spec.choices(), Pfag::Entropy);
    assert!(message(refused).contains("pfag"), "names the setting");
}
