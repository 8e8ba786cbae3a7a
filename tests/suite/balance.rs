//! What keeps load even: the formulas of the papers in f64, and routers that are trained with them.

use candle_core::{DType, Device, Tensor, Var};
use proptest::prelude::*;
use rand::Rng;
use rstest::rstest;
use tinyonn::data::Sampler;
use tinyonn::decoder::{InTraining, Pass};
use tinyonn::metrics::MetricsLog;
use tinyonn::moe::balance::{auxiliary_loss, jitter, step};
use tinyonn::moe::{Balance, MoeSpec, Scores, Selection, select};
use tinyonn::random;
use tinyonn::train::{OptimizerConfig, SmkConfig, train_smk};

use crate::gradients::inputs;
use crate::routing::{by_input, hierarchy, layer_gates, log_p_of_experts, scores, slots, upcycled};
use crate::tiny;

mod declared {
    use tinyonn::moe::moe;

    #[moe(levels = [4], router = linear, top_k = 1, balance = bias(0.05), jitter = 0.1)]
    pub(crate) struct EvenByBias;

    #[moe(levels = [4], router = linear, top_k = 1, balance = loss(1), z_loss = 0.001)]
    pub(crate) struct EvenByLoss;

    #[moe(levels = [4], router = linear, top_k = 1)]
    pub(crate) struct Unbalanced;

    #[moe(levels = [4], router = linear, top_k = 1, jitter = 0.5)]
    pub(crate) struct Jittered;
}

/// c · N Σ f_n P_n and c_z · mean over inputs and routers of (log Σ exp ℓ)².
fn by_formula(spec: &MoeSpec, logits: &[Vec<Vec<f64>>], taken: &[Vec<f32>]) -> f64 {
    let routed = spec.routed_experts();
    let inputs = logits.len() as f64;
    let choices: f64 = taken.iter().flat_map(|row| &row[..routed]).map(|taken| f64::from(*taken)).sum();
    let p: Vec<Vec<f64>> =
        logits.iter().map(|l| log_p_of_experts(spec, l).into_iter().map(f64::exp).collect()).collect();
    let of_expert = |n: usize| {
        let f = taken.iter().map(|row| f64::from(row[n])).sum::<f64>() / choices;
        f * p.iter().map(|p| p[n]).sum::<f64>() / inputs
    };
    let switch = match spec.balance {
        Balance::Loss { coefficient } => coefficient * routed as f64 * (0..routed).map(of_expert).sum::<f64>(),
        Balance::None | Balance::Bias { .. } => 0.0,
    };
    let (mut squares, mut count) = (0.0, 0.0);
    for logits in logits {
        for (level, logits) in spec.levels.iter().zip(logits) {
            for (nodes, _) in slots(level) {
                squares += logits[nodes].iter().map(|l| l.exp()).sum::<f64>().ln().powi(2);
                count += 1.0;
            }
        }
    }
    switch + spec.z_loss * squares / count
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(80) })]

    #[test]
    fn auxiliary_losses_and_their_gradients_are_those_of_the_papers(seed in any::<u64>(), which in 0usize..3) {
        let [balance, z] = [[0.3, 0.0], [0.0, 0.2], [0.3, 0.2]][which];
        let spec = MoeSpec {
            balance: if balance > 0.0 { Balance::Loss { coefficient: balance } } else { Balance::None },
            z_loss: z,
            ..hierarchy(seed, false)
        };
        let drawn = scores(&spec, seed, 6, 4.0);
        let taken = select(&spec, &drawn.by_level().unwrap(), Selection::default()).unwrap();
        let rows = taken.to_vec2::<f32>().unwrap();
        let vars: Vec<Vec<Var>> =
            drawn.logits.iter().map(|runs| runs.iter().map(|run| Var::from_tensor(run).unwrap()).collect()).collect();
        let tracked = vars.iter().map(|runs| runs.iter().map(|run| run.as_tensor().clone()).collect()).collect();
        let loss = auxiliary_loss(&spec, &Scores { logits: tracked }, &taken.sum(0).unwrap()).unwrap().unwrap();
        let expected = by_formula(&spec, &by_input(&drawn), &rows);
        let found = f64::from(loss.to_scalar::<f32>().unwrap());
        prop_assert!((found - expected).abs() < 1e-5 * (1.0 + expected), "{found} {expected}");

        let grads = loss.backward().unwrap();
        let eps = 1e-4;
        for (level, runs) in vars.iter().enumerate() {
            for (run, var) in runs.iter().enumerate() {
                let v = inputs(seed ^ 1, &[var.dims()]).remove(0);
                let at = |step: f64| {
                    let wide = |run: &Tensor| run.to_dtype(DType::F64).unwrap();
                    let mut moved: Vec<Vec<Tensor>> =
                        drawn.logits.iter().map(|runs| runs.iter().map(wide).collect()).collect();
                    moved[level][run] = (&moved[level][run] + (&v * step).unwrap()).unwrap();
                    // What was taken stays: f has no gradient.
                    by_formula(&spec, &by_input(&Scores { logits: moved }), &rows)
                };
                let numeric = (at(eps) - at(-eps)) / (2.0 * eps);
                let grad = grads.get(var).unwrap().to_dtype(DType::F64).unwrap();
                let exact = (grad * &v).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
                // The difference of the definition in f64 is good to 1e-8, the gradient to f32's rounding of values of order one.
                prop_assert!((numeric - exact).abs() < 2e-5, "{level} {run}: {numeric} {exact}");
            }
        }
    }

    #[test]
    fn biases_step_against_the_load_of_each_router(seed in any::<u64>()) {
        let spec = MoeSpec { balance: Balance::Bias { rate: 0.25 }, ..hierarchy(seed, false) };
        let mut rng = random::stream(seed, "tests/load");
        let load: Vec<f64> = (0..spec.experts()).map(|_| f64::from(rng.random_range(0..3u8))).collect();
        let nodes: usize = spec.levels.iter().map(tinyonn::moe::LevelSpec::nodes).sum();
        let load_n = Tensor::new(load.as_slice(), &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        let moved = step(&spec, &Tensor::ones(nodes, DType::F32, &Device::Cpu).unwrap(), &load_n).unwrap();
        let bias = moved.to_vec1::<f32>().unwrap();
        let mut first = 0;
        for (level, declared) in spec.levels.iter().enumerate() {
            let under = spec.experts_under(level);
            for (choices, _) in slots(declared) {
                let per_expert = |experts: std::ops::Range<usize>| {
                    let count = experts.len() as f64;
                    load[experts].iter().sum::<f64>() / count
                };
                let all = under[choices.start].start..under[choices.end - 1].end;
                for node in choices {
                    let apart = per_expert(under[node].clone()) - per_expert(all.clone());
                    let expected = if apart.abs() < 1e-12 { 1.0 } else { 1.0 - 0.25 * apart.signum() as f32 };
                    prop_assert_eq!(bias[first + node], expected);
                }
            }
            first += declared.nodes();
        }
        // No other way of balancing has a bias.
        let still = step(&MoeSpec { balance: Balance::Loss { coefficient: 1.0 }, ..spec }, &moved, &load_n).unwrap();
        prop_assert_eq!(still.to_vec1::<f32>().unwrap(), bias);
    }
}

#[test]
fn the_auxiliary_loss_of_a_uniform_router_is_its_coefficient() {
    let spec = MoeSpec { balance: Balance::Loss { coefficient: 0.7 }, ..tiny::spec(&[(4, 1), (5, 2)]) };
    let scores = scores(&spec, 0, 9, 0.0);
    let taken = select(&spec, &scores.by_level().unwrap(), Selection::default()).unwrap();
    let loss = auxiliary_loss(&spec, &scores, &taken.sum(0).unwrap()).unwrap().unwrap().to_scalar::<f32>().unwrap();
    approx::assert_relative_eq!(loss, 0.7, max_relative = 1e-6);
    assert!(auxiliary_loss(&tiny::spec(&[(4, 1)]), &scores, &taken.sum(0).unwrap()).unwrap().is_none());
}

#[test]
fn jitter_stays_within_its_bounds_and_follows_its_seed_and_layer() {
    let spec = MoeSpec { jitter: 0.25, ..tiny::spec(&[(2, 1)]) };
    let x = Tensor::full(2f32, (40, 25), &Device::Cpu).unwrap();
    let noise_of = |layer, training: &InTraining, x: &Tensor| {
        jitter(&spec, layer, training, x).unwrap().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let noise = |layer, seed| noise_of(layer, &InTraining::whole(seed), &x);
    let drawn = noise(0, 7);
    // Of two ranks the second has the noise of the second half of the rows.
    let second = InTraining { before: 1, ..InTraining::whole(7) };
    assert_eq!(noise_of(0, &second, &x.narrow(0, 20, 20).unwrap()), drawn[500..]);
    assert!(drawn.iter().all(|x| (0.75..=1.25).contains(x)));
    // Of 1000 uniform values some lie in each hundredth at the ends, but for a chance of e^-10; and the seed is fixed.
    assert!(drawn.iter().any(|x| *x < 0.755) && drawn.iter().any(|x| *x > 1.245));
    assert_eq!(drawn, noise(0, 7));
    assert!(drawn != noise(1, 7) && drawn != noise(0, 8));
    assert!(jitter(&MoeSpec { jitter: 0.0, ..spec.clone() }, 0, &InTraining::whole(7), &x).unwrap().is_none());
}

#[test]
fn jitter_moves_choices_in_training_only() {
    let gates = |name: &str, training: Option<u64>| {
        let (cfg, variant, store) = upcycled("Unbalanced");
        let variant = if name == "Unbalanced" { variant } else { tinyonn::moe::variant(name).unwrap() };
        let layer = (variant.build)(&cfg, 0, store.builder(DType::F32, |_| false).pp("model.layers.0.mlp")).unwrap();
        let x = inputs(11, &[&[4, 50, cfg.hidden_size]]).remove(0).to_dtype(DType::F32).unwrap();
        layer_gates(&layer, &x, &Pass { training: training.map(InTraining::whole), ..Pass::routed() })
    };
    assert!(gates("Jittered", None) == gates("Unbalanced", None));
    assert!(gates("Unbalanced", Some(1)) == gates("Unbalanced", None));
    assert!(gates("Jittered", Some(1)) == gates("Jittered", Some(1)));
    assert!(gates("Jittered", Some(1)) != gates("Jittered", None));
    assert!(gates("Jittered", Some(1)) != gates("Jittered", Some(2)));
}

const ADAMW: OptimizerConfig = OptimizerConfig {
    rate: 2e-2,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    decay: 0.0,
    clip: 1e9,
    ..OptimizerConfig::DEFAULT
};

/// Trains a variant whose routers all prefer expert 0 at the start. The largest load of an expert before and after, and the names of
/// the parameters of routers, biases included, that moved.
fn trained(name: &str, routers: bool) -> (f64, f64, Vec<String>) {
    let (cfg, variant, store) = upcycled(name);
    for layer in 0..2 {
        let bias = Tensor::new(&[2.5f32, 0.0, 0.0, 0.0], &Device::Cpu).unwrap();
        store.set(&format!("model.layers.{layer}.mlp.expert_router.bias"), &bias).unwrap();
    }
    let set = tiny::tokens(4, &[2000, 2000], 40);
    let sampler = Sampler::new(&set, 32, 8, 0, &Device::Cpu).unwrap();
    let largest = || {
        let model = tiny::sparse(&cfg, variant, &store);
        let meter = tiny::load(&model, &sampler.batch_at(0).unwrap().inputs, &Pass::routed());
        let largest = |load: &Vec<f64>| load.iter().copied().fold(0.0, f64::max);
        meter.load().iter().map(largest).sum::<f64>() / 2.0
    };
    let router = |name: &str| name.contains("_router.") || name.ends_with("balance_bias");
    let snapshot =
        || -> Vec<(String, Vec<u32>)> { tiny::bits(&store).into_iter().filter(|(name, _)| router(name)).collect() };
    let (before, start) = (largest(), snapshot());
    let config = SmkConfig { steps: 40, batch: 8, min_k: 4, routers, optimizer: ADAMW, ..SmkConfig::DEFAULT };
    let folder = tempfile::tempdir().unwrap();
    let mut log = MetricsLog::create(folder.path().join("smk.jsonl")).unwrap();
    train_smk((&store, &cfg, variant), &Pass::routed(), (&sampler, None), &config, &mut log, None).unwrap();
    let moved = snapshot().into_iter().zip(start).filter(|(now, then)| now.1 != then.1).map(|(now, _)| now.0);
    (before, largest(), moved.collect())
}

#[rstest]
#[case("EvenByBias", 0.15)]
#[case("EvenByLoss", 0.15)]
fn load_gets_evener_where_it_is_asked_to(#[case] name: &str, #[case] by: f64) {
    let (before, after, moved) = trained(name, true);
    assert!(before > 0.7, "nothing is skewed: {before}");
    assert!(after < before - by, "{name}: {before} to {after}");
    let biased = moved.iter().filter(|name| name.ends_with("balance_bias")).count();
    assert_eq!(biased, if name == "EvenByBias" { 2 } else { 0 });
    // Unit gates hold no p: only the auxiliary losses reach routers.
    assert_eq!(moved.len() - biased, if name == "EvenByLoss" { 4 } else { 0 }, "{moved:?}");
}

#[rstest]
fn frozen_routers_and_their_biases_stay(#[values("EvenByBias", "EvenByLoss", "Unbalanced")] name: &str) {
    let (_, _, moved) = trained(name, false);
    assert!(moved.is_empty(), "{moved:?}");
}
