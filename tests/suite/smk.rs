//! Surprise Min-K: who learns, by the formula over every token and neuron; and that nobody else moves.

mod choice;
mod forms;
mod losers;
mod rule;

use std::collections::BTreeSet;

use approx::assert_relative_eq;
use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::checkpoint::{ParamStore, Role};
use tinyonn::data::{Sampler, TokenSet};
use tinyonn::decoder::{Arch, Learn, Pass};
use tinyonn::metrics::MetricsLog;
use tinyonn::moe::Variant;
use tinyonn::train::smk::SmkOutcome;
use tinyonn::train::{Memory, OptimizerConfig, Slot, SmkConfig, TrainState, train_smk};

use crate::models::{self, message};
use crate::tiny;

const VOCAB: usize = 40;

/// ε this large makes an update proportional to the gradient: rounding of a gradient near zero cannot turn its sign's worth.
const ADAMW: OptimizerConfig = OptimizerConfig {
    rate: 1e-2,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-2,
    decay: 0.0,
    clip: 1.0,
    ..OptimizerConfig::DEFAULT
};

fn upcycled(name: &str) -> (Arch, &'static Variant, ParamStore) {
    let cfg = tiny::config(VOCAB);
    let (variant, store) = tiny::upcycled(&cfg, name, &tiny::dense_store(&cfg, 2));
    (cfg, variant, store)
}

fn is_expert(name: &str) -> bool {
    ["gate_proj.weight", "up_proj.weight", "down_proj.weight"].iter().any(|matrix| name.ends_with(matrix))
}

fn rows(x: &Tensor) -> Vec<Vec<f64>> {
    x.to_dtype(DType::F64).unwrap().to_vec2().unwrap()
}

/// Where all replicas run, min_k still chooses who learns.
#[test]
fn min_k_chooses_among_replicas_that_all_run() {
    let (cfg, variant, mut store) = upcycled("MergedBySequence");
    tinyonn::checkpoint::grow_deltas(&mut store, &cfg, &variant.spec).unwrap();
    let set = tiny::tokens(3, &[200], VOCAB as u32);
    let sampler = Sampler::new(&set, 8, 1, 0, &Device::Cpu).unwrap();
    let config = SmkConfig { steps: 1, batch: 1, min_k: 1, ..SmkConfig::DEFAULT };
    let folder = TempDir::new().unwrap();
    let mut log = MetricsLog::create(folder.path().join("log.jsonl")).unwrap();
    let found = train_smk((&store, &cfg, variant), &Pass::all(), (&sampler, None), &config, &mut log, None).unwrap();
    assert_relative_eq!(found.updated_share, 1.0 / 6.0);
    let moved = |expert: &usize| {
        let name = format!("model.layers.0.mlp.delta.{expert}.up_proj.weight");
        models::bits(store.get(&name).unwrap()).iter().any(|bits| *bits != 0)
    };
    assert_eq!((0..variant.spec.experts()).filter(moved).count(), 1);
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
    let config = SmkConfig { steps: 5, batch: 1, min_k: 1, optimizer: ADAMW, ..SmkConfig::DEFAULT };
    let folder = tempfile::tempdir().unwrap();
    let mut log = MetricsLog::create(folder.path().join("smk.jsonl")).unwrap();
    let outcome =
        train_smk((&store, &cfg, variant), &Pass::routed(), (&sampler, None), &config, &mut log, None).unwrap();
    approx::assert_relative_eq!(outcome.updated_share, 0.5);
}

#[test]
fn no_learner_at_all_is_refused() {
    let (cfg, variant, store) = upcycled("Moe2x4");
    let before = tiny::bits(&store);
    let config = SmkConfig { steps: 1, batch: 4, min_k: 0, optimizer: ADAMW, ..SmkConfig::DEFAULT };
    let refused = message(trained(&cfg, variant, &store, &config));
    assert!(refused.contains("`smk.min_k`") && refused.contains("no expert would learn"), "{refused}");
    assert_eq!(tiny::bits(&store), before);
}

fn text() -> TokenSet {
    tiny::tokens(11, &[200, 200], VOCAB as u32)
}

fn trained(
    cfg: &Arch,
    variant: &'static Variant,
    store: &ParamStore,
    config: &SmkConfig,
) -> tinyonn::Result<SmkOutcome> {
    let (dir, set) = (TempDir::new().unwrap(), text());
    let sampler = Sampler::new(&set, 8, config.batch, 0, &Device::Cpu).unwrap();
    let mut log = MetricsLog::create(dir.path().join("log.jsonl")).unwrap();
    train_smk((store, cfg, variant), &Pass::routed(), (&sampler, None), config, &mut log, None)
}

/// The experts whose neurons' weights differ between two stores, by layer and matrix.
fn moved(before: &ParamStore, after: &ParamStore, layer: usize, matrix: &str) -> BTreeSet<u32> {
    let name = format!("model.layers.{layer}.mlp.{matrix}_proj.weight");
    let owners = after.get(&format!("model.layers.{layer}.mlp.neuron_expert")).unwrap().to_vec1::<u32>().unwrap();
    let by_neuron = |store: &ParamStore| rows(&store.get(&name).unwrap().as_detached_tensor());
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
    let optimizer = OptimizerConfig { decay: 0.1, ..ADAMW };
    let outcome =
        trained(&cfg, variant, &store, &SmkConfig { steps, batch: 4, min_k, optimizer, ..SmkConfig::DEFAULT }).unwrap();
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
    trained(&cfg, variant, &store, &SmkConfig { steps: 1, batch: 4, min_k, optimizer: ADAMW, ..SmkConfig::DEFAULT })
        .unwrap();

    let vb = plain.builder(DType::F32, is_expert);
    let model = tinyonn::model::TinyOnnForCausalLm::new(&cfg, variant, &vb).unwrap();
    let set = text();
    let batch = Sampler::new(&set, 8, 4, 0, &Device::Cpu).unwrap().batch_at(0).unwrap();
    let forward = model.lm().forward(&batch.inputs, &batch.targets, &Pass::routed().kept()).unwrap();
    // What a shared decision reads is no routed text; a whole sequence that is read leaves its last token.
    let open = variant.spec.open_positions().min(7);
    let scored = 1.0 / (4 * (8 - open)) as f32;
    let each: Vec<f32> = (0..4 * 8).map(|at| if at % 8 < open { 0.0 } else { scored }).collect();
    let dlosses = Tensor::from_vec(each, (4, 8), &Device::Cpu).unwrap();
    let slots =
        plain.trainable(is_expert).into_iter().map(|(name, var)| Slot::new(name, Role::Expert, 0, var)).collect();
    let mut state = TrainState::new(slots, &Memory::DEFAULT).unwrap();
    model.lm().backward(forward.saved, &dlosses, &Learn::default(), &mut state.grads).unwrap();
    state.update(&ADAMW, ADAMW.rate).unwrap();
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
            optimizer: OptimizerConfig { eps: 1e-8, ..ADAMW },
            ..SmkConfig::DEFAULT
        };
        train_smk((&store, &cfg, variant), &Pass::routed(), (&sampler, None), &config, &mut log, None).unwrap();
        (tiny::bits(&store), tinyonn::metrics::read(&path).unwrap())
    };
    let (first, again) = (run(), run());
    assert_eq!(first.0, again.0);
    let losses: Vec<f64> = first.1.iter().map(|record| record.values[0].1).collect();
    assert_eq!(first.1.iter().map(|record| record.step).collect::<Vec<_>>(), [0, 10, 20, 30, 40]);
    assert!(losses[4] < losses[0] - 0.1, "{losses:?}");
}
