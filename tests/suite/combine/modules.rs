//! Replicas that have learnt, as modules: whatever shares a decision and however they are combined, a token gets what the loop over
//! experts gives it under its own gates.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use tinyonn::checkpoint::{grow_deltas, is_delta};
use tinyonn::decoder::{FeedForward as _, Pass};
use tinyonn::imaging::{Labels, ScanOptions, scan};
use tinyonn::moe::Combine;

use super::{F32, naive_mlp};
use crate::gradients::{inputs, relative_difference};
use crate::models::message;
use crate::routing::{asking_gates, gates_of, upcycled};

mod declared {
    use tinyonn::moe::moe;

    #[moe(groups = 2, experts = 3, router = linear, top_k = [2, 2], experts_are = replicate, combine = dispatch)]
    pub(super) struct DispatchedByToken;

    #[moe(groups = 2, experts = 3, top_k = [1, 2], experts_are = replicate, combine = dispatch, route_per = segment(3))]
    pub(super) struct DispatchedBySegment;

    #[moe(groups = 2, experts = 3, top_k = [2, 1], experts_are = replicate, combine = dispatch, route_per = sequence(2))]
    pub(super) struct DispatchedBySequence;

    #[moe(groups = 2, experts = 3, top_k = [1, 2], experts_are = replicate, combine = dispatch, route_per = task)]
    pub(super) struct DispatchedByTask;

    #[moe(groups = 2, experts = 3, router = cosine, top_k = [2, 2], experts_are = replicate)]
    pub(super) struct MergedByToken;

    #[moe(groups = 2, experts = 3, top_k = [1, 2], experts_are = replicate, route_per = segment(3))]
    pub(super) struct MergedBySegment;

    #[moe(groups = 2, experts = 3, top_k = [1, 2], experts_are = replicate, route_per = sequence(2))]
    pub(super) struct MergedBySequence;

    #[moe(groups = 2, experts = 3, top_k = [1, 2], experts_are = replicate, route_per = task)]
    pub(super) struct MergedByTask;
}

#[rstest]
fn a_module_of_replicas_is_the_loop_over_its_experts(
    #[values(
        "DispatchedByToken",
        "DispatchedBySegment",
        "DispatchedBySequence",
        "DispatchedByTask",
        "MergedByToken",
        "MergedBySegment",
        "MergedBySequence",
        "MergedByTask"
    )]
    name: &str,
    #[values(false, true)] all: bool,
) {
    let (cfg, variant, mut store) = upcycled(name);
    let (b, t, d, experts) = (2, 8, cfg.hidden_size, variant.spec.experts());
    grow_deltas(&mut store, &cfg, &variant.spec).unwrap();
    for (seed, (_, var)) in store.iter().filter(|(name, _)| is_delta(name)).enumerate() {
        let delta = (inputs(seed as u64, &[var.dims()]).remove(0) * 0.1).unwrap();
        var.set(&delta.to_dtype(DType::F32).unwrap()).unwrap();
    }
    let module = (variant.build)(&cfg, 0, store.builder(DType::F32, |_| false).pp("model.layers.0.mlp")).unwrap();
    let x = inputs(99, &[&[b, t, d]]).remove(0).to_dtype(DType::F32).unwrap();
    let routed = Pass {
        paths: Some(Arc::new(Labels::random(2, 2, &variant.spec, 4).paths)),
        ..Pass::routed().of_tasks(&[0, 1])
    };
    let pass = asking_gates(&if all { Pass::all() } else { routed });
    let (y, trace, _) = module.forward(&x, &pass).unwrap();
    let y_td = y.reshape((b * t, d)).unwrap();
    let gates = if all { vec![vec![1.0; experts]; b * t] } else { gates_of(&trace) };
    assert!(all || gates.iter().any(|row| row.contains(&0.0)), "nobody is left out: the test is blind");

    let weight = |name: String| store.get(&format!("model.layers.0.mlp.{name}")).unwrap().as_detached_tensor();
    // W_base + Σ w ΔW.
    let mixed = |projection: &str, weights: &[(usize, f64)]| {
        weights.iter().fold(weight(format!("{projection}.weight")), |sum, (n, w)| {
            (sum + (weight(format!("delta.{n}.{projection}.weight")) * *w).unwrap()).unwrap()
        })
    };
    let mlp = |x: &Tensor, weights: &[(usize, f64)]| {
        let [gate, up, down] = ["gate_proj", "up_proj", "down_proj"].map(|projection| mixed(projection, weights));
        naive_mlp(x, &gate, &up, &down).unwrap()
    };
    let x_td = x.reshape((b * t, d)).unwrap();
    let rows = gates.iter().enumerate().map(|(token, gates)| {
        let x = x_td.narrow(0, token, 1).unwrap();
        let sum: f32 = gates.iter().sum();
        let weights: Vec<(usize, f64)> = gates.iter().enumerate().map(|(n, w)| (n, f64::from(w / sum))).collect();
        match variant.spec.combine {
            Combine::Merge => mlp(&x, &weights),
            _ => weights
                .iter()
                .fold(x.zeros_like().unwrap(), |y, (n, w)| (y + (mlp(&x, &[(*n, 1.0)]) * *w).unwrap()).unwrap()),
        }
    });
    let expected = Tensor::cat(&rows.collect::<Vec<_>>(), 0).unwrap();
    let difference = relative_difference(&y_td, &expected);
    assert!(difference < F32, "{difference}");
}

/// What has no neurons of its own is not imaged in silence.
#[rstest]
fn learnt_replicas_are_not_imaged(
    #[values("DispatchedByToken", "MergedBySegment")] name: &str,
    #[values(false, true)] learnt: bool,
) {
    let (cfg, variant, mut store) = upcycled(name);
    if learnt {
        grow_deltas(&mut store, &cfg, &variant.spec).unwrap();
    }
    let model = crate::tiny::sparse(&cfg, variant, &store);
    let options = ScanOptions { length: 8, batch: 2, tokens_per_task: 30 };
    let found = scan(model.lm(), &crate::tiny::tokens(1, &[40], 40), options, &Device::Cpu, None);
    // Until they differ they are the dense MLP.
    assert_eq!(found.is_err(), learnt);
    if learnt {
        assert!(message(found).contains("`image`: replicas that have learnt"));
    }
}
