//! A training goes on in the grown model: what its optimizer remembers, and who learns.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::checkpoint::{Expansion, MappedSafetensors, ParamStore, is_delta};
use tinyonn::data::Sampler;
use tinyonn::decoder::{Arch, Learn, Pass, SmkRule, smk_rule::Select};
use tinyonn::interrupt::Interrupt;
use tinyonn::metrics::MetricsLog;
use tinyonn::train::{Checkpoints, OptimizerConfig, SmkConfig, expand_state, train_smk};

use super::{expansion, young};
use crate::models::{self, bits, config, ids, learnt, message, variant};
use crate::tiny;

const VOCAB: u32 = 37;
const HALF: u64 = 4;

/// Everybody learns, by an optimizer that remembers, and forgets with the weights.
fn settings(min_k: usize) -> SmkConfig {
    let rule = SmkRule { select: if min_k == 0 { Select::All } else { Select::Smk }, ..SmkRule::DEFAULT };
    let optimizer = OptimizerConfig { rate: 1e-2, decay: 0.1, ..OptimizerConfig::DEFAULT };
    SmkConfig { steps: 2 * HALF, batch: 4, min_k: min_k.max(1), rule, optimizer, ..SmkConfig::DEFAULT }
}

/// Trains in place; a state of half of the steps stays in `dir`.
fn train((cfg, name, store): (&Arch, &str, &ParamStore), pass: &Pass, min_k: usize, dir: &Path) -> tinyonn::Result<()> {
    let set = tiny::tokens(3, &[200, 200], VOCAB);
    let config = settings(min_k);
    let sampler = Sampler::new(&set, 8, config.batch, 0, &Device::Cpu)?;
    std::fs::create_dir_all(dir).unwrap();
    let mut log = MetricsLog::open(dir.join("log.jsonl"))?;
    let states = Checkpoints { dir: dir.join("states"), every: HALF, keep: 2, interrupt: Interrupt::default() };
    let text = (&sampler, None);
    train_smk((store, cfg, variant(name)), pass, text, &config, &mut log, Some(&states)).map(drop)
}

fn state(dir: &Path) -> MappedSafetensors {
    MappedSafetensors::open(dir.join(format!("states/state-{HALF:08}.safetensors"))).unwrap()
}

/// Trains `from`, grows it at half of the steps and trains on; what both came to, by name, and the states at half.
struct Grown {
    before: ParamStore,
    after: ParamStore,
    states: [MappedSafetensors; 2],
    _dir: TempDir,
}

fn grown(cfg: &Arch, expansion: &Expansion<'_>, pass: &Pass, min_k: usize) -> Grown {
    let dir = TempDir::new().unwrap();
    let [old, new] = ["old", "new"].map(|name| dir.path().join(name));
    let [from, to] = expansion.variants().map(|variant| variant.spec.name.as_ref());
    let before = young(from, cfg, DType::F32);
    let after = expansion.store(&before).unwrap();
    train((cfg, from, &before), pass, min_k, &old).unwrap();
    assert_eq!(expand_state(&old.join("states"), &new.join("states"), expansion, &after).unwrap(), HALF);
    let states = [state(&old), state(&new)];
    train((&expansion.arch(), to, &after), pass, min_k, &new).unwrap();
    Grown { before, after, states, _dir: dir }
}

/// Where nothing but the partition changed and everybody learns, the training does not notice: weights, moments, counts and data go on to the same bits.
#[test]
fn a_training_of_slices_that_share_goes_on_to_the_same_bits() {
    let cfg = config(40, true);
    let Grown { before, after, states: [old, new], .. } =
        grown(&cfg, &expansion(&cfg, "Moe2x4", "Moe2x8", 0), &Pass::all(), 0);
    assert!(old.names().eq(new.names()));
    for name in old.names() {
        assert_eq!(old.bytes(name).unwrap(), new.bytes(name).unwrap(), "{name}");
    }
    let untouched = young("Moe2x4", &cfg, DType::F32);
    for (name, var) in before.iter().filter(|(name, _)| name.ends_with("_proj.weight") && name.contains(".mlp.")) {
        assert_eq!(bits(var), bits(after.get(name).unwrap()), "{name}");
        assert_ne!(bits(var), bits(untouched.get(name).unwrap()), "{name}: it learnt nothing");
    }
}

/// So it does with new neurons for as long as these are zero: moments and counts of the others stay, theirs begin at zero, and they learn.
#[rstest]
#[case(0)]
#[case(3)]
fn new_neurons_begin_without_moments_and_learn(#[case] min_k: usize) {
    let cfg = config(40, true);
    let Grown { after, states: [old, new], .. } =
        grown(&cfg, &expansion(&cfg, "Moe2x4", "Moe2x8", 3), &Pass::routed(), min_k);
    for name in old.names() {
        let [old, new] = [&old, &new].map(|state| state.load(name, &Device::Cpu).unwrap());
        let rows = old.dim(0).unwrap();
        assert_eq!(bits(&new.narrow(0, 0, rows).unwrap()), bits(&old), "{name}");
        let added = new.dim(0).unwrap() - rows;
        assert_eq!(added, if rows == 1 { 0 } else { 24 }, "{name}");
        if name.contains('/') && added > 0 {
            assert!(bits(&new.narrow(0, rows, added).unwrap()).iter().all(|bits| *bits == 0), "{name}");
        }
    }
    let w_d = after.get("model.layers.0.mlp.down_proj.weight").unwrap().narrow(0, 40, 24).unwrap();
    assert!(bits(&w_d).iter().any(|bits| *bits != 0), "no new neuron has learnt");
}

/// A replica's children have its moments, each a copy.
#[test]
fn children_of_replicas_have_their_parents_moments() {
    let cfg = config(40, true);
    let expansion = expansion(&cfg, "Replicas3", "Replicas6", 0);
    let Grown { states: [old, new], .. } = grown(&cfg, &expansion, &Pass::routed(), 2);
    for name in new.names() {
        let (kept, parameter) = name.split_once('/').map_or(("", name), |(kept, rest)| (&name[..=kept.len()], rest));
        assert!(is_delta(parameter), "{name}");
        let (mlp, rest) = parameter.split_once(".delta.").unwrap();
        let (child, projection) = rest.split_once('.').unwrap();
        let parent = child.parse::<usize>().unwrap() / 2;
        let of = format!("{kept}{mlp}.delta.{parent}.{projection}");
        assert_eq!(new.bytes(name).unwrap(), old.bytes(&of).unwrap(), "{name}");
    }
    assert_eq!(new.names().count(), 2 * old.names().count());
}

/// W_d of a new neuron is zero, so what reaches its W_g and W_u is nothing yet; its own W_d learns first.
#[test]
fn the_first_gradient_reaches_the_new_rows_of_w_d() {
    let cfg = config(40, true);
    let grown = expansion(&cfg, "Moe2x4", "Moe2x8", 3);
    let store = grown.store(&young("Moe2x4", &cfg, DType::F32)).unwrap();
    let picked: fn(&str) -> bool = |name| name.contains(".mlp.") && name.ends_with("_proj.weight");
    let builder = store.builder(DType::F32, picked);
    let model = tinyonn::model::TinyOnnForCausalLm::new(&grown.arch(), variant("Moe2x8"), &builder).unwrap();
    let (ids, targets) = (ids((2, 9)), ids((2, 9)));
    let found = learnt(model.lm(), (&store, &picked), (&ids, &targets), &Pass::all(), &Learn::default());
    for layer in 0..2 {
        for (projection, learns) in [("gate", false), ("up", false), ("down", true)] {
            let name = format!("model.layers.{layer}.mlp.{projection}_proj.weight");
            let gradient: &Tensor = found.grads.get(store.get(&name).unwrap()).unwrap();
            let new = bits(&gradient.narrow(0, 40, 24).unwrap());
            assert_eq!(new.iter().any(|bits| bits << 1 != 0), learns, "{name}");
        }
    }
}

#[test]
fn states_that_cannot_grow_are_refused_by_name() {
    let cfg = config(40, true);
    let dir = TempDir::new().unwrap();
    let [old, new] = ["old", "new"].map(|name| dir.path().join(name));
    let grown = expansion(&cfg, "Moe2x4", "Moe2x8", 0);
    let before = young("Moe2x4", &cfg, DType::F32);
    let after = grown.store(&before).unwrap();
    let refused = message(expand_state(&old, &new, &grown, &after));
    assert!(refused.contains("holds no state"), "{refused}");
    train((&cfg, "Moe2x4", &before), &Pass::all(), 0, &old).unwrap();
    let other = expansion(&cfg, "Scaled4", "Scaled8", 0);
    let refused = message(expand_state(&old.join("states"), &new, &other, &after));
    assert!(
        refused.contains("is of another model than the one that grows") && refused.contains("variant"),
        "{refused}"
    );
    // A state goes on over the weights that it was made with, and over no others.
    expand_state(&old.join("states"), &new.join("states"), &grown, &after).unwrap();
    let changed = (after.get("model.norm.weight").unwrap().as_tensor() * 2.0).unwrap();
    after.set("model.norm.weight", &changed).unwrap();
    let refused = message(train((&cfg, "Moe2x8", &after), &Pass::all(), 0, &new));
    assert!(refused.contains("`weights`"), "{refused}");
    assert_eq!(models::bits(after.get("model.norm.weight").unwrap()), models::bits(&changed));
}
