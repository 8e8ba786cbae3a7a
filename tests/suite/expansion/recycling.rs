//! Dead experts become children of overloaded ones while a model trains.

use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::checkpoint::ParamStore;
use tinyonn::data::Sampler;
use tinyonn::decoder::{Arch, Pass};
use tinyonn::interrupt::{Interrupt, Signal};
use tinyonn::metrics::MetricsLog;
use tinyonn::train::smk::SmkOutcome;
use tinyonn::train::{Checkpoints, OptimizerConfig, RecycleConfig, SmkConfig, train_smk};
use tinyonn::{Error, Result};

use super::young;
use crate::models::{self, CPU, bits, config, ids, message, variant};
use crate::tiny;

const VOCAB: u32 = 37;
const STEPS: u64 = 9;
const RECYCLE: RecycleConfig = RecycleConfig { every: 4, ..RecycleConfig::DEFAULT };

/// A model of `Moe2x4` whose routers choose expert 1 of each group as the first, and expert 2 never.
fn lopsided(cfg: &Arch) -> ParamStore {
    let store = young("Moe2x4", cfg, DType::F32);
    for layer in 0..2 {
        let name = format!("model.layers.{layer}.mlp.expert_router.log_prior");
        let priors = Tensor::new(&[[-2f32, 40.0, -90.0, -2.0], [-2.0, 40.0, -90.0, -2.0]], &CPU).unwrap();
        store.set(&name, &priors).unwrap();
    }
    store
}

fn settings(rate: f64) -> SmkConfig {
    let optimizer = OptimizerConfig { rate, ..OptimizerConfig::DEFAULT };
    // One expert of a group is taken: 4 × the mean.
    SmkConfig { steps: STEPS, batch: 4, min_k: 2, optimizer, recycle: RECYCLE, ..SmkConfig::DEFAULT }
}

fn train(
    cfg: &Arch,
    store: &ParamStore,
    config: &SmkConfig,
    place: (&TempDir, Option<&Checkpoints>),
) -> Result<SmkOutcome> {
    let set = tiny::tokens(3, &[200, 200], VOCAB);
    let sampler = Sampler::new(&set, 8, config.batch, 0, &Device::Cpu)?;
    let (dir, states) = place;
    let mut log = MetricsLog::open(dir.path().join("log.jsonl"))?;
    let text = (&sampler, Some(&set));
    train_smk((store, cfg, variant("Moe2x4")), &Pass::routed(), text, config, &mut log, states)
}

fn owners(store: &ParamStore, layer: usize) -> Vec<u32> {
    store.get(&format!("model.layers.{layer}.mlp.neuron_expert")).unwrap().to_vec1().unwrap()
}

/// At a rate of zero nothing but the rule moves anything: all active not a bit changes, widths stay, and what was dead has a share of the load.
#[test]
fn the_dead_get_a_share_of_the_load_and_all_active_nothing_changes() {
    let cfg = config(40, true);
    let (store, before) = (lopsided(&cfg), lopsided(&cfg));
    let dir = TempDir::new().unwrap();
    let found = train(&cfg, &store, &settings(0.0), (&dir, None)).unwrap();
    assert!(found.recycled >= 2, "{}", found.recycled);
    let load = |store: &ParamStore| {
        let model = models::sparse(&cfg, variant("Moe2x4"), store, DType::F32);
        tiny::load(&model, &ids((8, 16)), &Pass::routed()).figures(&variant("Moe2x4").spec)
    };
    let (old, new) = (load(&before), load(&store));
    assert!(new.dead() < old.dead() && new.max_over_mean() < old.max_over_mean(), "{old:?} {new:?}");
    let logits = |store: &ParamStore| {
        let model = models::sparse(&cfg, variant("Moe2x4"), store, DType::F32);
        bits(&model.logits(&ids((2, 9)), &Pass::all(), None).unwrap())
    };
    assert_eq!(logits(&before), logits(&store));
    for layer in 0..2 {
        let [old, new] = [&before, &store].map(|store| owners(store, layer));
        assert_ne!(old, new);
        let widths = |owners: &[u32]| (0..8).map(|e| owners.iter().filter(|o| **o == e).count()).collect::<Vec<_>>();
        assert_eq!(widths(&old), widths(&new));
    }
    let log = std::fs::read_to_string(dir.path().join("log.jsonl")).unwrap();
    assert!(log.contains("\"recycled\""), "{log}");
}

/// The model that trains is the one that the rule changed: it goes on otherwise than without the rule.
/// So does one that looks at held-out text between, whose result is the best look's, partition and routers included.
#[rstest]
#[case(0)]
#[case(3)]
fn the_training_goes_on_in_the_changed_model_and_resumes_to_the_same_bits(#[case] look: u64) {
    let cfg = config(40, true);
    let run = |config: &SmkConfig| {
        let (store, dir) = (lopsided(&cfg), TempDir::new().unwrap());
        train(&cfg, &store, config, (&dir, None)).unwrap();
        (tiny::bits(&store), std::fs::read(dir.path().join("log.jsonl")).unwrap())
    };
    let config = SmkConfig { look, ..settings(1e-2) };
    let expected = run(&config);
    assert_ne!(expected.0, run(&SmkConfig { recycle: RecycleConfig::DEFAULT, ..config }).0);
    let dir = TempDir::new().unwrap();
    let states = Checkpoints { dir: dir.path().join("states"), every: 4, keep: 2, interrupt: Interrupt::default() };
    states.interrupt.request(Signal::Terminate);
    loop {
        let store = lopsided(&cfg);
        match train(&cfg, &store, &config, (&dir, Some(&states))) {
            Err(Error::Interrupted { .. }) => {}
            done => {
                done.unwrap();
                assert_eq!(tiny::bits(&store), expected.0);
                assert_eq!(std::fs::read(dir.path().join("log.jsonl")).unwrap(), expected.1);
                return;
            }
        }
    }
}

#[rstest]
#[case::bounds("Moe2x4", RecycleConfig { dead: 1.5, ..RECYCLE }, false, &["`smk.recycle`", "dead = 1.5"])]
#[case::replicas("Replicas3", RECYCLE, false, &["`Replicas3` has replicas", "lose its delta"])]
#[case::by_task("ByTask2x2", RECYCLE, false, &["`ByTask2x2` is routed by its task"])]
#[case::routers_learn("Moe2x4", RECYCLE, true, &["routers learn", "routers = false"])]
#[case::linear("Scaled4", RECYCLE, false, &["`expert_router` of `Scaled4` has no variances to split"])]
#[case::dispatched("Dispatched4", RECYCLE, false, &["`Dispatched4` is dispatched"])]
#[case::shared_variances("Young", RECYCLE, false, &["`words_router` of `Young` has no variances to split"])]
fn what_cannot_be_recycled_is_refused_by_name(
    #[case] name: &str,
    #[case] recycle: RecycleConfig,
    #[case] routers: bool,
    #[case] words: &[&str],
) {
    let config = SmkConfig { recycle, routers, ..SmkConfig::DEFAULT };
    let refused = message(config.check("smk", &variant(name).spec));
    assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
    SmkConfig { recycle: RecycleConfig { every: 0, ..recycle }, ..config }.check("smk", &variant(name).spec).unwrap();
}

/// Where all run, nobody is dead.
#[test]
fn a_pass_that_is_not_routed_is_refused() {
    let (cfg, dir) = (config(40, true), TempDir::new().unwrap());
    let set = tiny::tokens(3, &[200], VOCAB);
    let sampler = Sampler::new(&set, 8, 4, 0, &Device::Cpu).unwrap();
    let mut log = MetricsLog::open(dir.path().join("log.jsonl")).unwrap();
    let model = (&lopsided(&cfg), &cfg, variant("Moe2x4"));
    let refused = message(train_smk(model, &Pass::all(), (&sampler, None), &settings(1e-2), &mut log, None));
    assert!(refused.contains("`smk.recycle`") && refused.contains("is not routed"), "{refused}");
}
