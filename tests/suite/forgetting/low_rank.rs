//! Low-rank differences: what learns, where they begin, and the derivative.

use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use tinyonn::checkpoint::{ParamStore, Role, grow_lora, lora_params};
use tinyonn::data::Sampler;
use tinyonn::decoder::{Arch, CausalLm, Learn, LowRankMlp, Pass};
use tinyonn::ops::Grads;
use tinyonn::train::{FineTune, OptimizerConfig, SmkConfig, fine_tune, state};

use crate::models::message;
use crate::tiny;

const VOCAB: usize = 37;

fn grown(rank: usize) -> (Arch, ParamStore) {
    let cfg = tiny::config(VOCAB);
    let mut store = tiny::dense_store(&cfg, 4);
    grow_lora(&mut store, &cfg, rank, 9).unwrap();
    (cfg, store)
}

fn model(cfg: &Arch, store: &ParamStore, rank: usize) -> CausalLm<LowRankMlp> {
    let vb = store.builder(DType::F32, |name| name.contains("lora"));
    CausalLm::new(cfg, &vb, |layer, vb| LowRankMlp::new(cfg, layer, rank, &vb)).unwrap()
}

fn ids() -> Tensor {
    Tensor::new(&[[3u32, 1, 4, 1, 5, 9, 2, 6]], &Device::Cpu).unwrap()
}

fn logits(model: &CausalLm<LowRankMlp>) -> Vec<u32> {
    let logits = model.logits(&ids(), &Pass::all(), None).unwrap().flatten_all().unwrap();
    logits.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[rstest]
fn before_a_step_the_function_is_the_dense_one_bit_for_bit(#[values(1, 3, 16)] rank: usize) {
    let (cfg, store) = grown(rank);
    let dense = tiny::dense(&cfg, &store).logits(&ids(), &Pass::all(), None).unwrap().flatten_all().unwrap();
    let dense: Vec<u32> = dense.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
    assert_eq!(logits(&model(&cfg, &store, rank)), dense);
    let count: usize = lora_params(&cfg, rank).iter().map(|param| param.stored.iter().product::<usize>()).sum();
    assert_eq!(count, 2 * 3 * rank * (16 + 26));
}

/// Only A and B get gradients and move; and B alone in the first step, since A's gradient is Bᵀ times something.
#[test]
fn the_base_is_frozen() {
    let (cfg, store) = grown(3);
    let before = store.deep_copy().unwrap();
    let work = store.work_weights(DType::F32, |name| name.contains("lora").then_some(DType::F32)).unwrap();
    let model = CausalLm::new(&cfg, work.builder(), |layer, vb| LowRankMlp::new(&cfg, layer, 3, &vb)).unwrap();
    let start = logits(&model);
    let set = tiny::tokens(11, &[200], VOCAB as u32);
    let sampler = Sampler::new(&set, 8, 4, 0, &Device::Cpu).unwrap();
    let step = |steps: u64| {
        let what = FineTune {
            model: &model,
            slots: state::slots(&work, lora_params(&cfg, 3)),
            learn: Learn::default(),
            pass: Pass::all(),
            open: 0,
            anchor: None,
        };
        let optimizer = OptimizerConfig { decay: 0.0, ..OptimizerConfig::DEFAULT };
        let config = SmkConfig { steps, batch: 4, optimizer, ..SmkConfig::DEFAULT };
        fine_tune(what, &sampler, &config, None, &mut |_| Ok(())).unwrap();
    };
    let moved = |name: &str| {
        let [old, new] = [&before, &store].map(tiny::bits);
        let at = old.iter().position(|(other, _)| other == name).unwrap();
        old[at].1 != new[at].1
    };
    step(1);
    for (name, _) in tiny::bits(&store) {
        assert_eq!(moved(&name), name.ends_with("lora_b"), "{name}");
    }
    step(2);
    for (name, _) in tiny::bits(&store) {
        assert_eq!(moved(&name), name.contains("lora"), "{name}");
    }
    assert_ne!(logits(&model), start);
}

/// ∂L/∂A and ∂L/∂B against what a step of either does to the loss.
#[test]
fn gradients_are_those_of_the_loss() {
    let rank = 2;
    let (cfg, store) = grown(rank);
    for (name, var) in store.iter().filter(|(name, _)| name.ends_with("lora_b")) {
        let seed = name.len() as f64;
        let values: Vec<f32> = (0..var.elem_count()).map(|at| (0.3 * (seed + at as f64).sin()) as f32).collect();
        var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    let model = model(&cfg, &store, rank);
    let targets = Tensor::new(&[[1u32, 4, 1, 5, 9, 2, 6, 5]], &Device::Cpu).unwrap();
    let names: Vec<String> = lora_params(&cfg, rank).into_iter().map(|param| param.name).collect();
    assert!(lora_params(&cfg, rank).iter().all(|param| param.role == Role::Delta));
    let mut grads = Grads::new(names.iter().map(|name| (store.get(name).unwrap().as_tensor(), 0))).unwrap();
    let forward = model.forward(&ids(), &targets, &Pass::all().kept()).unwrap();
    let ones = forward.losses.ones_like().unwrap();
    model.backward(forward.saved, &ones, &Learn::default(), &mut grads).unwrap();
    let loss = || {
        let losses = model.token_losses(&ids(), &targets, &Pass::all()).unwrap();
        losses.to_dtype(DType::F64).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
    };
    for name in &names {
        let var = store.get(name).unwrap();
        let gradient = grads.get(var).unwrap().copy().unwrap();
        let start = var.as_detached_tensor().copy().unwrap();
        // Along the gradient itself: dL = ε ‖g‖, by a central difference whose error is of order ε².
        let norm = f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt();
        let at = |eps: f64| {
            var.set(&(&start + (&gradient * (eps / norm)).unwrap()).unwrap()).unwrap();
            let found = loss();
            var.set(&start).unwrap();
            found
        };
        let (eps, expected) = (1e-2, norm);
        let found = (at(eps) - at(-eps)) / (2.0 * eps);
        // f32 sums of eight losses: 1e-6 over 2e-2.
        assert!((found - expected).abs() < 0.02 * expected + 1e-3, "{name}: {found} {expected}");
    }
}

#[test]
fn a_rank_of_nothing_is_refused() {
    let (cfg, store) = grown(1);
    let vb = store.builder(DType::F32, |_| false);
    let said = message(CausalLm::new(&cfg, &vb, |layer, vb| LowRankMlp::new(&cfg, layer, 0, &vb)));
    assert!(said.contains("`rank`") && said.contains("nothing would learn"), "{said}");
}
