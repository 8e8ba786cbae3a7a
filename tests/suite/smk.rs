//! Surprise Min-K: who learns, by the formula over every token and neuron; and that nobody else moves.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use approx::assert_relative_eq;
use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::checkpoint::ParamStore;
use tinyonn::data::{Sampler, TokenSet};
use tinyonn::metrics::MetricsLog;
use tinyonn::moe::Variant;
use tinyonn::ops::{self, MlpBackward, MlpProbe, WeightGrads};
use tinyonn::qwen3::{Qwen3Config, RouteCtx};
use tinyonn::train::smk::{Choice, SmkOutcome};
use tinyonn::train::{AdamW, AdamwConfig, Smk, SmkConfig, train_smk};

use crate::tiny;

const VOCAB: usize = 40;

/// ε this large makes an update proportional to the gradient: rounding of a gradient near zero cannot turn its sign's worth.
const ADAMW: AdamwConfig = AdamwConfig { rate: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-2, decay: 0.0, clip: 1.0 };

fn upcycled(name: &str) -> (Qwen3Config, &'static Variant, ParamStore) {
    let cfg = tiny::config(VOCAB);
    let (variant, store) = tiny::upcycled(&cfg, name, &tiny::dense_store(&cfg, 2));
    (cfg, variant, store)
}

fn is_expert(name: &str) -> bool {
    ["gate_proj.weight", "up_proj.weight", "down_proj.weight"].iter().any(|matrix| name.ends_with(matrix))
}

/// Asks [`Smk`], and decides as well by loops over the definition.
struct Referee {
    smk: Smk,
    units: Vec<Vec<u32>>,
    experts: usize,
    min_k: usize,
    expected: Mutex<Vec<Choice>>,
}

fn rows(x: &Tensor) -> Vec<Vec<f64>> {
    x.to_dtype(DType::F64).unwrap().to_vec2().unwrap()
}

fn squared(row: &[f64]) -> f64 {
    row.iter().map(|x| x * x).sum()
}

impl MlpProbe for Referee {
    fn observe(&self, layer: usize, pass: &MlpBackward<'_>) -> candle_core::Result<WeightGrads> {
        let [x, h, dy, dg, du] = [pass.x_td, pass.h_ti, pass.delta_y_td, pass.delta_g_ti, pass.delta_u_ti].map(rows);
        let gate = pass.gate_ti.map(rows);
        let units = &self.units[layer];
        let mut surprises = Vec::new();
        for expert in 0..self.experts {
            let own: Vec<usize> = (0..units.len()).filter(|i| units[*i] as usize == expert).collect();
            let routed: Vec<usize> =
                (0..x.len()).filter(|t| gate.as_ref().is_none_or(|gate| gate[*t][own[0]] != 0.0)).collect();
            if routed.is_empty() {
                continue;
            }
            let at = |t: usize, i: usize| {
                let c = gate.as_ref().map_or(1.0, |gate| gate[t][i]);
                squared(&dy[t]) * (c * h[t][i]).powi(2) + (dg[t][i].powi(2) + du[t][i].powi(2)) * squared(&x[t])
            };
            let sum: f64 = routed.iter().flat_map(|t| own.iter().map(move |i| (*t, *i))).map(|(t, i)| at(t, i)).sum();
            surprises.push(((sum / (routed.len() * own.len()) as f64).sqrt(), expert as u32));
        }
        let active = surprises.iter().map(|(_, expert)| *expert).collect();
        surprises.sort_by(|a, b| a.partial_cmp(b).unwrap());
        let mut learners: Vec<u32> = surprises.iter().take(self.min_k).map(|(_, expert)| *expert).collect();
        learners.sort_unstable();
        self.expected.lock().unwrap()[layer] = Choice { active, learners };
        self.smk.observe(layer, pass)
    }
}

/// One row of eight tokens routes to few of many experts.
#[rstest]
#[case("Moe7x3", 1)]
#[case("Moe7x3", 4)]
#[case("Moe7x3", 100)]
#[case("Moe2x4", 2)]
#[case("Moe2x4", 8)]
#[case("MoeSequence", 5)]
fn the_least_surprised_of_the_active_learn(#[case] name: &str, #[case] min_k: usize) {
    let (cfg, variant, store) = upcycled(name);
    let trainable = store.builder(DType::F32, is_expert);
    let model = tinyonn::model::TinyOnnForCausalLm::new(&cfg, variant, &trainable).unwrap();
    let (units, experts) = (model.neuron_experts().unwrap().unwrap(), variant.spec.experts());
    for seed in 0..4 {
        let referee = Arc::new(Referee {
            smk: Smk::new(min_k, experts, units.clone()).unwrap(),
            units: units.clone(),
            experts,
            min_k,
            expected: Mutex::new(vec![Choice::default(); 2]),
        });
        let set = tiny::tokens(seed, &[9], VOCAB as u32);
        let batch = set.batches_of_task(0, 8, 1, &Device::Cpu).unwrap().next().unwrap().unwrap();
        let ctx = RouteCtx { probe: Some(referee.clone()), ..RouteCtx::routed() };
        let loss = model.lm().token_losses(&batch.inputs, &batch.targets, &ctx).unwrap().mean_all().unwrap();
        let grads = ops::backward(&loss).unwrap();
        let choices = referee.smk.choices();
        assert_eq!(choices, *referee.expected.lock().unwrap());
        if name == "Moe7x3" {
            assert!(choices.iter().all(|choice| choice.active.len() < experts), "no expert idles: the test is blind");
        }
        for (layer, choice) in choices.iter().enumerate() {
            assert!(choice.learners.iter().all(|expert| choice.active.contains(expert)));
            assert_eq!(choice.learners.len(), min_k.min(choice.active.len()));
            for matrix in ["gate", "up", "down"] {
                let name = format!("model.layers.{layer}.mlp.{matrix}_proj.weight");
                let grad = grads.get(store.get(&name).unwrap()).unwrap();
                let by_neuron = if matrix == "down" { rows(&grad.t().unwrap()) } else { rows(grad) };
                let lines = referee.smk.lines(&name).unwrap();
                assert_eq!(lines.axis, usize::from(matrix == "down"));
                for (i, gradient) in by_neuron.iter().enumerate() {
                    let learns = choice.learners.contains(&units[layer][i]);
                    assert_eq!((lines.learn[i], squared(gradient) > 0.0), (learns, learns), "{name}, neuron {i}");
                }
            }
        }
        for other in ["model.norm.weight", "model.layers.0.mlp.group_router.mean", "model.layers.9.mlp.up_proj.weight"]
        {
            assert!(referee.smk.lines(other).is_none(), "{other}");
        }
    }
}

/// Experts of equal surprise: the lower index learns.
#[test]
fn ties_go_to_the_lower_index() {
    let ones = |columns: usize| Tensor::ones((3, columns), DType::F32, &Device::Cpu).unwrap();
    let (td, ti) = (ones(4), ones(6));
    let gate = Tensor::new(&[[0f32, 1., 1., 1., 1., 1.]; 3], &Device::Cpu).unwrap();
    let pass = MlpBackward {
        x_td: &td,
        h_ti: &ti,
        gate_ti: Some(&gate),
        delta_y_td: &td,
        delta_h_ti: &ti,
        delta_g_ti: &ti,
        delta_u_ti: &ti,
        input_matrices: None,
    };
    let smk = Smk::new(2, 4, vec![vec![0, 3, 2, 1, 2, 3]]).unwrap();
    assert_eq!(smk.observe(0, &pass).unwrap(), WeightGrads::Neurons(vec![2, 3, 4]));
    assert_eq!(smk.choices(), [Choice { active: vec![1, 2, 3], learners: vec![1, 2] }]);
}

/// What a shared decision reads runs all active: nobody was routed there, and its surprise counts for nobody.
#[test]
fn open_positions_make_no_expert_active() {
    let gate = [[1f32; 6], [0., 1., 1., 1., 1., 1.], [0., 1., 1., 1., 1., 1.]];
    let gate = Tensor::from_vec([gate, gate].concat().concat(), (6, 6), &Device::Cpu).unwrap();
    // Expert 2 is least surprised where it was routed, most where all are active.
    let h = [[1f32, 1., 9., 1., 9., 1.], [1., 2., 0.5, 2., 0.5, 1.], [1., 2., 0.5, 2., 0.5, 1.]];
    let h = Tensor::from_vec([h, h].concat().concat(), (6, 6), &Device::Cpu).unwrap();
    let (td, ti) = (h.ones_like().unwrap(), h.zeros_like().unwrap());
    let pass = MlpBackward {
        x_td: &td,
        h_ti: &h,
        gate_ti: Some(&gate),
        delta_y_td: &td,
        delta_h_ti: &ti,
        delta_g_ti: &ti,
        delta_u_ti: &ti,
        input_matrices: None,
    };
    let smk = |open| Smk::new(1, 4, vec![vec![0, 3, 2, 1, 2, 3]]).unwrap().behind(open, 3);
    let choice = |smk: Smk| {
        smk.observe(0, &pass).unwrap();
        smk.choices().remove(0)
    };
    assert_eq!(choice(smk(0)), Choice { active: vec![0, 1, 2, 3], learners: vec![0] });
    assert_eq!(choice(smk(1)), Choice { active: vec![1, 2, 3], learners: vec![2] });
}

/// Of one sequence two experts are routed, though all twelve see what the decision reads: one learner is half of them.
#[rstest]
#[case("SequenceOf2", 12)]
#[case("MergedBySequence", 6)]
fn training_lets_only_routed_experts_compete(#[case] name: &str, #[case] experts: usize) {
    let (cfg, variant, mut store) = upcycled(name);
    assert_eq!((variant.spec.experts(), variant.spec.active_experts()), (experts, 2));
    tinyonn::checkpoint::grow_deltas(&mut store, &cfg, &variant.spec).unwrap();
    let set = tiny::tokens(3, &[200], VOCAB as u32);
    let sampler = Sampler::new(&set, 8, 1, 0, &Device::Cpu).unwrap();
    let config = SmkConfig { steps: 5, batch: 1, min_k: 1, adamw: ADAMW, ..SmkConfig::default() };
    let folder = tempfile::tempdir().unwrap();
    let mut log = MetricsLog::create(folder.path().join("smk.jsonl")).unwrap();
    let outcome = train_smk((&store, &cfg, variant), &RouteCtx::routed(), &sampler, &config, &mut log).unwrap();
    approx::assert_relative_eq!(outcome.updated_share, 0.5);
}

#[test]
fn no_learner_at_all_is_refused() {
    assert!(Smk::new(0, 4, vec![]).map(drop).unwrap_err().to_string().starts_with("`min_k`: no expert would learn"));
    let (cfg, variant, store) = upcycled("Moe2x4");
    let before = tiny::bits(&store);
    assert!(
        trained(
            &cfg,
            variant,
            &store,
            &SmkConfig { steps: 1, batch: 4, min_k: 0, adamw: ADAMW, ..SmkConfig::default() }
        )
        .is_err()
    );
    assert_eq!(tiny::bits(&store), before);
}

#[test]
fn units_of_another_model_are_refused() {
    let words = |error: &str| error.contains("units") && error.contains("neuron_experts");
    let refused = Smk::new(2, 4, vec![vec![0, 4]]).map(drop).unwrap_err().to_string();
    assert!(words(&refused) && refused.contains("expert 4"), "{refused}");
    let (td, ti) = (
        Tensor::ones((3, 4), DType::F32, &Device::Cpu).unwrap(),
        Tensor::ones((3, 6), DType::F32, &Device::Cpu).unwrap(),
    );
    let pass = MlpBackward {
        x_td: &td,
        h_ti: &ti,
        gate_ti: None,
        delta_y_td: &td,
        delta_h_ti: &ti,
        delta_g_ti: &ti,
        delta_u_ti: &ti,
        input_matrices: None,
    };
    let smk = Smk::new(2, 4, vec![vec![0, 3, 2, 1, 2, 3], vec![0; 5]]).unwrap();
    smk.observe(0, &pass).unwrap();
    // Another width; no such layer.
    for layer in [1, 2] {
        let refused = smk.observe(layer, &pass).unwrap_err().to_string();
        assert!(words(&refused) && refused.contains(&format!("layer {layer}")), "{refused}");
    }
}

fn text() -> TokenSet {
    tiny::tokens(11, &[200, 200], VOCAB as u32)
}

fn trained(
    cfg: &Qwen3Config,
    variant: &'static Variant,
    store: &ParamStore,
    config: &SmkConfig,
) -> tinyonn::Result<SmkOutcome> {
    let (dir, set) = (TempDir::new().unwrap(), text());
    let sampler = Sampler::new(&set, 8, config.batch, 0, &Device::Cpu).unwrap();
    let mut log = MetricsLog::create(dir.path().join("log.jsonl")).unwrap();
    train_smk((store, cfg, variant), &RouteCtx::routed(), &sampler, config, &mut log)
}

/// The experts whose neurons' weights differ between two stores, by layer and matrix.
fn moved(before: &ParamStore, after: &ParamStore, layer: usize, matrix: &str) -> BTreeSet<u32> {
    let name = format!("model.layers.{layer}.mlp.{matrix}_proj.weight");
    let owners = after.get(&format!("model.layers.{layer}.mlp.neuron_expert")).unwrap().to_vec1::<u32>().unwrap();
    let by_neuron = |store: &ParamStore| {
        let weights = store.get(&name).unwrap().as_detached_tensor();
        if matrix == "down" { rows(&weights.t().unwrap()) } else { rows(&weights) }
    };
    let pairs = by_neuron(before).into_iter().zip(by_neuron(after)).zip(owners);
    pairs.filter(|((a, b), _)| a != b).map(|(_, owner)| owner).collect()
}

#[rstest]
#[case("Moe7x3", 2, 1)]
#[case("Moe7x3", 2, 3)]
#[case("Moe2x4", 1, 6)]
#[case("Moe2x4", 8, 6)]
#[case("MoeSequence", 3, 4)]
fn only_learners_move(#[case] name: &str, #[case] min_k: usize, #[case] steps: u64) {
    let (cfg, variant, store) = upcycled(name);
    let before = store.deep_copy().unwrap();
    // Decay and momentum would move a loser that stepped.
    let adamw = AdamwConfig { decay: 0.1, ..ADAMW };
    let outcome =
        trained(&cfg, variant, &store, &SmkConfig { steps, batch: 4, min_k, adamw, ..SmkConfig::default() }).unwrap();
    for ((name, old), (_, new)) in tiny::bits(&before).iter().zip(&tiny::bits(&store)) {
        assert_eq!(old != new, is_expert(name), "{name}");
    }
    for layer in 0..2 {
        let [gate, up, down] = ["gate", "up", "down"].map(|matrix| moved(&before, &store, layer, matrix));
        assert!(gate == up && up == down, "{gate:?} {up:?} {down:?}");
        assert!(gate.len() <= min_k * steps as usize);
        // In a single step every learner moves, and in several no fewer.
        assert!(gate.len() >= min_k.min(variant.spec.active_experts()), "{gate:?}");
    }
    assert!(outcome.updated_share > 0.0 && outcome.updated_share <= 1.0);
    assert_eq!(outcome.updated_share == 1.0, min_k >= variant.spec.experts(), "{outcome:?}");
}

/// As many learners as there are experts is training as usual: the same step as an optimizer that knows no lines.
#[rstest]
#[case("Moe7x3", 21)]
#[case("Moe2x4", 8)]
#[case("MoeSequence", 1000)]
fn min_k_of_all_is_plain_training(#[case] name: &str, #[case] min_k: usize) {
    let (cfg, variant, store) = upcycled(name);
    let plain = store.deep_copy().unwrap();
    trained(&cfg, variant, &store, &SmkConfig { steps: 1, batch: 4, min_k, adamw: ADAMW, ..SmkConfig::default() })
        .unwrap();

    let vb = plain.builder(DType::F32, is_expert);
    let model = tinyonn::model::TinyOnnForCausalLm::new(&cfg, variant, &vb).unwrap();
    let set = text();
    let batch = Sampler::new(&set, 8, 4, 0, &Device::Cpu).unwrap().batch_at(0).unwrap();
    let losses = model.lm().token_losses(&batch.inputs, &batch.targets, &RouteCtx::routed()).unwrap();
    // What a shared decision reads is no routed text; a whole sequence that is read leaves its last token.
    let open = variant.spec.open_positions().min(7);
    let loss = losses.reshape((4, 8)).unwrap().narrow(1, open, 8 - open).unwrap().mean_all().unwrap();
    let grads = ops::backward(&loss).unwrap();
    AdamW::new(ADAMW).step(&plain.trainable(is_expert), &grads, |_| None).unwrap();
    for (name, var) in store.iter().filter(|(name, _)| is_expert(name)) {
        let (found, expected) = (rows(var.as_tensor()), rows(plain.get(name).unwrap().as_tensor()));
        // Steps of at most 1e-2; products over fewer neurons round otherwise.
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert_relative_eq!(found, expected, epsilon = 1e-6);
        }
    }
}

#[test]
fn the_same_steps_give_the_same_bits_and_the_loss_falls() {
    let dir = TempDir::new().unwrap();
    let run = || {
        let (cfg, variant, store) = upcycled("Moe2x4");
        let set = text();
        let sampler = Sampler::new(&set, 8, 4, 0, &Device::Cpu).unwrap();
        let path = dir.path().join("smk.jsonl");
        let mut log = MetricsLog::create(&path).unwrap();
        let config = SmkConfig {
            steps: 41,
            batch: 4,
            min_k: 2,
            adamw: AdamwConfig { eps: 1e-8, ..ADAMW },
            ..SmkConfig::default()
        };
        train_smk((&store, &cfg, variant), &RouteCtx::routed(), &sampler, &config, &mut log).unwrap();
        (tiny::bits(&store), tinyonn::metrics::read(&path).unwrap())
    };
    let (first, again) = (run(), run());
    assert_eq!(first.0, again.0);
    let losses: Vec<f64> = first.1.iter().map(|record| record.values[0].1).collect();
    assert_eq!(first.1.iter().map(|record| record.step).collect::<Vec<_>>(), [0, 10, 20, 30, 40]);
    assert!(losses[4] < losses[0] - 0.1, "{losses:?}");
}
