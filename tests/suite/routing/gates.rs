//! Probabilities down the hierarchy, gates, and their gradients, against loops over the definitions in f64.

use candle_core::{DType, Device, Tensor, Var};
use proptest::prelude::*;
use rstest::rstest;
use tinyonn::decoder::{FeedForward, Learn, Pass};
use tinyonn::moe::gate::gates;
use tinyonn::moe::{Gate, LevelSpec, MoeSpec, Scores, Selection, select};
use tinyonn::ops::{Grads, Hierarchy};

use super::{by_input, hierarchy, layer_gates, log_p_of_experts, scores, upcycled};
use crate::gradients::{devices, inputs};
use crate::models::bits;

const SCALED: [Gate; 3] = [Gate::Scaled, Gate::Normalised, Gate::StraightThrough];

/// The gate of every expert by its definition; `straight_through` is what its gradient is of, p.
fn by_definition(spec: &MoeSpec, logits: &[Vec<f64>], taken: &[f32]) -> Vec<f64> {
    let routed = spec.routed_experts();
    let p: Vec<f64> = log_p_of_experts(spec, logits).iter().map(|l| l.exp()).collect();
    let chosen: Vec<usize> = (0..routed).filter(|n| taken[*n] > 0.0).collect();
    let total: f64 = chosen.iter().map(|n| p[*n]).sum();
    let mut gate = vec![0.0; spec.experts()];
    for n in chosen.iter().copied() {
        gate[n] = match spec.gate {
            Gate::Unit => 1.0,
            Gate::Scaled => chosen.len() as f64 * p[n] / total,
            Gate::Normalised => p[n] / total,
            Gate::StraightThrough => p[n],
        };
    }
    gate[routed..].fill(1.0);
    gate
}

fn taken(spec: &MoeSpec, scores: &Scores) -> Tensor {
    select(spec, &scores.log_probs().unwrap(), Selection::default()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn a_hierarchy_is_the_product_of_its_probabilities(seed in any::<u64>()) {
        let spec = hierarchy(seed, false);
        let scores = scores(&spec, seed, 4, 8.0);
        let found = scores.experts(&spec).unwrap().to_vec2::<f32>().unwrap();
        for (found, logits) in found.iter().zip(by_input(&scores)) {
            // Sums of up to four rounded logarithms of sizes up to 10.
            let expected = log_p_of_experts(&spec, &logits);
            prop_assert!(found.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
            prop_assert!((found.iter().map(|l| f64::from(*l).exp()).sum::<f64>() - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn gates_are_those_of_their_definitions(seed in any::<u64>()) {
        let drawn = hierarchy(seed, false);
        let scores = scores(&drawn, seed, 4, 8.0);
        let taken = taken(&drawn, &scores);
        let rows = taken.to_vec2::<f32>().unwrap();
        for gate in [Gate::Unit, Gate::Scaled, Gate::Normalised, Gate::StraightThrough] {
            let spec = MoeSpec { gate, ..drawn.clone() };
            let found = gates(&spec, &scores, &taken, DType::F32).unwrap().to_vec2::<f32>().unwrap();
            for ((found, taken), logits) in found.iter().zip(&rows).zip(by_input(&scores)) {
                if matches!(gate, Gate::Unit | Gate::StraightThrough) {
                    prop_assert_eq!(found, taken);
                    continue;
                }
                for (found, expected) in found.iter().zip(by_definition(&spec, &logits, taken)) {
                    prop_assert!((f64::from(*found) - expected).abs() <= 1e-5 * (1.0 + expected), "{found} {expected}");
                    prop_assert_eq!(*found == 0.0, expected == 0.0);
                }
            }
        }
    }

    /// On a GPU a kernel makes them, forward and back, from the same logits; elsewhere there is none.
    #[test]
    fn a_kernel_makes_the_same_gates(seed in any::<u64>(), normalised in any::<bool>()) {
        let gate = if normalised { Gate::Normalised } else { Gate::Scaled };
        let spec = MoeSpec { gate, ..hierarchy(seed, false) };
        let choices = |level: &LevelSpec| level.slots().map(|slot| (slot.nodes, slot.top_k)).collect();
        let levels: Vec<Vec<_>> = spec.levels.iter().map(choices).collect();
        let scores = scores(&spec, seed, 4, 8.0);
        let logits = Tensor::cat(&scores.by_level().unwrap(), 1).unwrap();
        let dgates = inputs(seed, &[&[4, spec.experts()]]).remove(0).to_dtype(DType::F32).unwrap();
        for device in devices() {
            let kernel = Hierarchy::new(&levels, spec.always_experts(), normalised, &device).unwrap();
            prop_assert_eq!(kernel.is_some(), device.is_cuda());
            let Some(kernel) = kernel else { continue };
            let taken = taken(&spec, &scores);
            let (found, on_device) = (kernel.gates(&logits.to_device(&device).unwrap(), DType::F32).unwrap(), |x: &Tensor| x.to_device(&device).unwrap());
            prop_assert_eq!(bits(&found[0].to_device(&Device::Cpu).unwrap()), bits(&taken));
            let vars: Vec<Vec<Var>> =
                scores.logits.iter().map(|runs| runs.iter().map(|run| Var::from_tensor(run).unwrap()).collect()).collect();
            let tape = Scores { logits: vars.iter().map(|runs| runs.iter().map(|var| var.as_tensor().clone()).collect()).collect() };
            let expected = gates(&spec, &tape, &taken, DType::F32).unwrap();
            let store = (&expected * &dgates).unwrap().sum_all().unwrap().backward().unwrap();
            let of_level = |runs: &Vec<Var>| {
                let flat: Vec<Tensor> = runs.iter().map(|var| store.get(var).unwrap().flatten_from(1).unwrap()).collect();
                Tensor::cat(&flat, 1).unwrap()
            };
            let dlogits = Tensor::cat(&vars.iter().map(of_level).collect::<Vec<_>>(), 1).unwrap();
            let back = kernel.backward(&on_device(&logits), &on_device(&taken), &on_device(&dgates)).unwrap();
            // Sums in f32 of a few dozen terms of order one, in another order.
            for (found, expected) in [(&found[1], &expected.detach()), (&back, &dlogits)] {
                let found = found.to_device(&Device::Cpu).unwrap();
                let apart = (&found - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                prop_assert!(apart < 1e-4, "{apart}");
            }
        }
    }

    /// Central differences in f64 of the definition, along random directions, against gradients in f32: what is left is f32 rounding
    /// of sums of a few dozen terms of order one.
    #[test]
    fn gradients_are_those_of_the_definitions(seed in any::<u64>(), which in 0usize..3) {
        let spec = MoeSpec { gate: SCALED[which], ..hierarchy(seed, false) };
        let drawn = scores(&spec, seed, 3, 4.0);
        let vars: Vec<Vec<Var>> =
            drawn.logits.iter().map(|runs| runs.iter().map(|run| Var::from_tensor(run).unwrap()).collect()).collect();
        let tracked =
            Scores { logits: vars.iter().map(|runs| runs.iter().map(|run| run.as_tensor().clone()).collect()).collect() };
        let taken = taken(&spec, &drawn);
        let weights = inputs(seed, &[&[3, spec.experts()]]).remove(0);
        let gate = gates(&spec, &tracked, &taken, DType::F32).unwrap();
        let loss = (gate * weights.to_dtype(DType::F32).unwrap()).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();

        let (weights, rows) = (weights.to_vec2::<f64>().unwrap(), taken.to_vec2::<f32>().unwrap());
        let loss = |scores: &Scores| -> f64 {
            let mut sum = 0.0;
            for (at, logits) in by_input(scores).iter().enumerate() {
                let gate = by_definition(&spec, logits, &rows[at]);
                sum += gate.iter().zip(&weights[at]).map(|(gate, weight)| gate * weight).sum::<f64>();
            }
            sum
        };
        let eps = 1e-4;
        for (level, runs) in vars.iter().enumerate() {
            for (run, var) in runs.iter().enumerate() {
                let v = inputs(seed ^ 1, &[var.dims()]).remove(0);
                let at = |step: f64| {
                    let mut moved: Vec<Vec<Tensor>> =
                        drawn.logits.iter().map(|runs| runs.iter().map(|run| run.to_dtype(DType::F64).unwrap()).collect()).collect();
                    moved[level][run] = (&moved[level][run] + (&v * step).unwrap()).unwrap();
                    loss(&Scores { logits: moved })
                };
                let numeric = (at(eps) - at(-eps)) / (2.0 * eps);
                let exact = grads.get(var).map_or(0.0, |grad| {
                    (grad.to_dtype(DType::F64).unwrap() * &v).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
                });
                prop_assert!((numeric - exact).abs() < 1e-4 * (1.0 + numeric.abs()), "{level} {run}: {numeric} {exact}");
            }
        }
    }
}

/// A bias may choose what is so improbable that its p is 0 in f32; its share is still a share.
#[rstest]
fn shares_of_what_a_bias_chose_are_numbers(#[values(Gate::Scaled, Gate::Normalised)] gate: Gate) {
    let spec = MoeSpec { gate, ..crate::tiny::spec(&[(4, 2)]) };
    let scores = Scores { logits: vec![vec![Tensor::new(&[[[0f32, -1.0, -400.0, -401.0]]], &Device::Cpu).unwrap()]] };
    let bias = [Tensor::new(&[0f32, 0.0, 2.0, 2.0], &Device::Cpu).unwrap()];
    let with = Selection { bias: Some(&bias), surprisal: None };
    let taken = select(&spec, &scores.log_probs().unwrap(), with).unwrap();
    assert_eq!(taken.to_vec2::<f32>().unwrap(), [[0.0, 0.0, 1.0, 1.0]]);
    let found = gates(&spec, &scores, &taken, DType::F32).unwrap().to_vec2::<f32>().unwrap().remove(0);
    let share = 1.0 / (1.0 + (-1f32).exp());
    let k = if gate == Gate::Scaled { 2.0 } else { 1.0 };
    for (found, expected) in found.iter().zip([0.0, 0.0, k * share, k * (1.0 - share)]) {
        approx::assert_abs_diff_eq!(*found, expected, epsilon = 1e-4);
    }
}

/// `scaled` loses nothing where all are chosen and equally probable: behind uneven groups that takes priors by their size.
#[test]
fn scaled_gates_of_equal_experts_are_ones() {
    for seed in 0..40 {
        let mut spec = MoeSpec { gate: Gate::Scaled, ..hierarchy(seed, false) };
        for level in spec.levels.to_mut() {
            level.routers.to_mut().iter_mut().for_each(|run| run.top_k = run.choices);
        }
        let logits = spec.levels.iter().enumerate().map(|(level, declared)| {
            let mut under = spec.experts_under(level).into_iter();
            let of_run = |run: &tinyonn::moe::RouterSpec| {
                let sizes = under.by_ref().take(run.parents * run.choices).map(|experts| (experts.len() as f32).ln());
                Tensor::from_vec(sizes.collect::<Vec<_>>(), (1, run.parents, run.choices), &Device::Cpu).unwrap()
            };
            declared.routers.iter().map(of_run).collect()
        });
        let scores = Scores { logits: logits.collect() };
        let found = gates(&spec, &scores, &taken(&spec, &scores), DType::F32).unwrap().to_vec2::<f32>().unwrap();
        // The bound that the documentation states.
        assert!(found[0].iter().all(|gate| (gate - 1.0).abs() <= 1e-6), "{:?}", found[0]);
    }
}

/// Gates that hold p make every fitted parameter of every router learn, and no drawn one.
#[rstest]
fn gradients_reach_what_is_fitted_and_nothing_that_was_drawn(
    #[values(
        "Flat5",
        "Deep3",
        "Deep4",
        "Cortex",
        "Linear3x4",
        "Cosine3x4",
        "Random3x4",
        "Custom3x4",
        "Isotropic3x4",
        "Identity3x4",
        "Drawn3x4",
        "SegmentOf1"
    )]
    name: &str,
) {
    let (cfg, variant, store) = upcycled(name);
    let router = |name: &str| name.starts_with("model.layers.0.") && name.contains("_router.");
    let layer = (variant.build)(&cfg, 0, store.builder(DType::F32, router).pp("model.layers.0.mlp")).unwrap();
    let x = inputs(4, &[&[3, 20, cfg.hidden_size]]).remove(0).to_dtype(DType::F32).unwrap();
    let (y, _, saved) = layer.forward(&x, &Pass::routed().kept()).unwrap();
    let dy = inputs(5, &[y.dims()]).remove(0).to_dtype(DType::F32).unwrap();
    let mut grads = Grads::new(store.trainable(router).iter().map(|(_, var)| (var.as_tensor(), 0))).unwrap();
    let learn = Learn { routers: true, ..Learn::default() };
    layer.backward(saved.unwrap(), &dy, &learn, false, &mut grads).unwrap();
    for (parameter, var) in store.trainable(router) {
        let size = grads.get(&var).map(|grad| grad.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        let drawn = name == "Random3x4" || (name == "Drawn3x4" && parameter.ends_with("projection"));
        // Unit gates hold no p. Behind groups of which one is taken p_group cancels from every share, and one choice has p = 1.
        let blind = variant.spec.gate == Gate::Unit
            || (name == "SegmentOf1" && parameter.contains("group_router"))
            || parameter.contains("lone_router");
        match size {
            None => assert!(drawn || variant.spec.gate == Gate::Unit, "{parameter} has no gradient"),
            Some(size) if blind => assert!(size < 1e-3, "{parameter}: {size}"),
            Some(size) => assert!(!drawn && size.is_finite() && size > 1e-6, "{parameter}: {size}"),
        }
    }
}

#[test]
fn experts_that_always_take_part_weigh_one_in_every_type() {
    let (cfg, variant, store) = upcycled("Cortex");
    for dtype in [DType::F32, DType::BF16] {
        let layer = (variant.build)(&cfg, 0, store.builder(dtype, |_| false).pp("model.layers.0.mlp")).unwrap();
        let x = inputs(6, &[&[2, 7, cfg.hidden_size]]).remove(0).to_dtype(dtype).unwrap();
        for row in layer_gates(&layer, &x, &Pass::routed()) {
            assert_eq!(row[9..], [1.0, 1.0]);
            let taken = row[..9].iter().filter(|gate| **gate > 0.0).count();
            assert!((2..=5).contains(&taken), "{row:?}");
        }
    }
}
