//! How often the host waits for the device: counted, in a process of its own, since the count is the process's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::float_cmp)]
// The suite's small models, of which a part is used here.
#![allow(dead_code)]

#[path = "suite/gradients.rs"]
mod gradients;
#[path = "suite/models.rs"]
mod models;
#[path = "suite/tiny.rs"]
mod tiny;

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::Device;
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::checkpoint::grow_deltas;
use tinyonn::data::{Sampler, TokenSet};
use tinyonn::decoder::smk_rule::{Losers, Over, Per, Select, Surprise};
use tinyonn::decoder::{Pass, SmkRule};
use tinyonn::imaging::inputs::{Thinning, Window};
use tinyonn::imaging::{Labels, ScanOptions};
use tinyonn::imaging::{
    Log1p, RouterInputs, ScanRequest, Score, TokenPass, TokenScore, Units, dump, scan, scan_with, token_labels,
};
use tinyonn::metrics::MetricsLog;
use tinyonn::ops::{Weigh, host};
use tinyonn::train::evaluate::{EvaluateOptions, evaluate_load};
use tinyonn::train::{Memory, PretrainConfig, SmkConfig, pretrain, rank_correlations, train_smk};

mod declared {
    use tinyonn::moe::moe;

    /// Everything that a training step could be tempted to look at: biases that follow the load, gates with gradients, noise.
    #[moe(groups = 2, experts = 3, router = linear, top_k = [1, 2], gate = scaled, balance = bias(0.01), jitter = 0.1)]
    struct Biased;

    #[moe(groups = 2, experts = 3, router = cosine, top_k = [2, 1], gate = straight_through, balance = loss(0.1), z_loss = 0.01)]
    struct WithLosses;

    #[moe(groups = 2, experts = 3, route_per = segment(4), pfag = surprisal)]
    struct BySegment;

    #[moe(groups = 2, experts = 3, combine = dispatch)]
    struct Dispatching;

    #[moe(groups = 2, experts = 2, experts_are = replicate, route_per = sequence(4))]
    struct Replicas;

    #[moe(groups = 2, experts = 2, experts_are = replicate, combine = dispatch, route_per = task)]
    struct ReplicasByTask;
}

const CPU: Device = Device::Cpu;
const VOCAB: usize = 40;
const STEPS: u64 = 7;

/// One test at a time: nobody else's copies are counted.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Copies that `work` makes.
fn copies<R>(work: impl FnOnce() -> R) -> (R, u64) {
    let before = host::copies();
    let found = work();
    (found, host::copies() - before)
}

fn text() -> TokenSet {
    tiny::tokens(4, &[300, 200, 100], VOCAB as u32)
}

fn log(dir: &TempDir) -> MetricsLog {
    MetricsLog::create(dir.path().join("log.jsonl")).unwrap()
}

#[test]
fn pretraining_copies_once_a_step() {
    let _alone = alone();
    let (dir, set) = (TempDir::new().unwrap(), text());
    let config = PretrainConfig { steps: STEPS, batch: 4, ..PretrainConfig::DEFAULT };
    let sampler = Sampler::new(&set, 16, 4, 0, &CPU).unwrap();
    let mut log = log(&dir);
    let (_, made) = copies(|| pretrain(&tiny::config(VOCAB), &config, (&sampler, None), 0, &mut log, None).unwrap());
    assert_eq!(made, STEPS);
}

#[rstest]
fn surprise_min_k_copies_once_a_step(
    #[values("Biased", "WithLosses", "BySegment", "Dispatching", "Replicas", "ReplicasByTask")] name: &str,
    #[values(false, true)] routers: bool,
) {
    let _alone = alone();
    let (dir, set, cfg) = (TempDir::new().unwrap(), text(), tiny::config(VOCAB));
    let (variant, mut store) = tiny::upcycled(&cfg, name, &tiny::dense_store(&cfg, 1));
    grow_deltas(&mut store, &cfg, &variant.spec).unwrap();
    let paths = Some(std::sync::Arc::new(Labels::random(3, 2, &variant.spec, 1).paths));
    let config = SmkConfig { steps: STEPS, batch: 4, min_k: 1, routers, ..SmkConfig::DEFAULT };
    let (sampler, mut log) = (Sampler::new(&set, 16, 4, 0, &CPU).unwrap(), log(&dir));
    let pass = Pass { paths, ..Pass::routed() };
    let (outcome, made) =
        copies(|| train_smk((&store, &cfg, variant), &pass, (&sampler, None), &config, &mut log, None).unwrap());
    assert_eq!(made, STEPS);
    assert!(outcome.updated_share < 1.0);
}

/// Whatever the rule, who learns is decided on the device.
#[rstest]
fn every_rule_copies_once_a_step(
    #[values(Select::All, Select::RandomK, Select::MaxK, Select::MinLoad)] select: Select,
    #[values(Surprise::Token, Surprise::Exact)] surprise: Surprise,
    #[values(Per::Layer, Per::Group)] per: Per,
) {
    let _alone = alone();
    let (dir, set, cfg) = (TempDir::new().unwrap(), text(), tiny::config(VOCAB));
    let (variant, store) = tiny::upcycled(&cfg, "Dispatching", &tiny::dense_store(&cfg, 1));
    let rule =
        SmkRule { select, surprise, per, losers: Losers::ZeroGrad, over: Some(Over::MicroBatch), ..SmkRule::DEFAULT };
    let memory = Memory { micro_batches: 2, ..Memory::DEFAULT };
    let config = SmkConfig { steps: STEPS, batch: 4, min_k: 1, rule, memory, ..SmkConfig::DEFAULT };
    let (sampler, mut log) = (Sampler::new(&set, 16, 4, 0, &CPU).unwrap(), log(&dir));
    let pass = Pass::routed();
    let (_, made) =
        copies(|| train_smk((&store, &cfg, variant), &pass, (&sampler, None), &config, &mut log, None).unwrap());
    assert_eq!(made, STEPS);
    let (_, made) = copies(|| rank_correlations((&store, &cfg, variant), &pass, (&sampler, 4)).unwrap());
    assert_eq!(made, 1);
}

#[rstest]
fn a_scan_copies_once_a_task(#[values(false, true)] experts: bool, #[values(false, true)] log1p: bool) {
    let _alone = alone();
    let cfg = tiny::config(VOCAB);
    let (model, set) = (tiny::dense(&cfg, &tiny::dense_store(&cfg, 1)), text());
    let options = ScanOptions { length: 16, batch: 2, tokens_per_task: usize::MAX };
    let request = ScanRequest {
        units: experts.then(|| Units { neuron_expert: vec![(0..26).map(|i| i % 5).collect(); 2], count: 5 }),
        log1p: if log1p { Log1p::Measured } else { Log1p::Off },
        ..ScanRequest::new(options)
    };
    let (_, made) = copies(|| scan_with(&model, &set, &request, &CPU, None).unwrap());
    // Scales are read before the scan, from the first batch of every task.
    assert_eq!(made, if log1p { 6 } else { 3 });
    // What routers see comes by a copy of its own.
    let mut inputs = RouterInputs::new(2, Thinning::one_in(3, Window::First(4)));
    let (_, made) = copies(|| scan(&model, &set, options, &CPU, Some(&mut inputs)).unwrap());
    assert_eq!(made, 6);
    let mut inputs = RouterInputs::new(2, Thinning::one_in(3, Window::First(4)));
    let ((), made) = copies(|| inputs.collect(&model, &set, options, &Pass::all(), &CPU).unwrap());
    assert_eq!(made, 3);
}

#[test]
fn scatter_is_read_twice_a_layer_and_task() {
    let _alone = alone();
    let cfg = tiny::config(VOCAB);
    let (model, set) = (tiny::dense(&cfg, &tiny::dense_store(&cfg, 1)), text());
    let options = ScanOptions { length: 16, batch: 2, tokens_per_task: usize::MAX };
    let thinning = Thinning { scatter: Some((1, Weigh::Classes)), ..Thinning::one_in(3, Window::First(4)) };
    let mut inputs = RouterInputs::new(2, thinning);
    let ((), made) = copies(|| inputs.collect(&model, &set, options, &Pass::all(), &CPU).unwrap());
    // Three tasks, two layers: the kept rows; of each layer where it counts from, products and sums.
    assert_eq!(made, 3 + 3 * 2 * 3);
}

#[rstest]
#[case(Score::Sps, false)]
#[case(Score::Taylor, true)]
fn token_labels_copy_once_a_batch(#[case] score: Score, #[case] contrast: bool) {
    let _alone = alone();
    let cfg = tiny::config(VOCAB);
    let (model, set) = (tiny::dense(&cfg, &tiny::dense_store(&cfg, 1)), text());
    let options = ScanOptions { length: 16, batch: 2, tokens_per_task: usize::MAX };
    let (first, spec) = (scan(&model, &set, options, &CPU, None).unwrap(), tiny::spec(&[(2, 1), (3, 2)]));
    let units = vec![(0..26).map(|i| i % 6).collect(); 2];
    let by = TokenScore { scan: &first, score, contrast, units: &units, spec: &spec, prices: None };
    let pass = TokenPass { model: &model, set: &set, options, stride: 1, device: &CPU };
    let (_, made) = copies(|| token_labels(&pass, by).unwrap());
    // 299, 199 and 99 targets in rows of 16, two a batch.
    assert_eq!(made, 10 + 7 + 4);
}

#[test]
fn evaluating_copies_once_a_batch_and_a_dump_once() {
    let _alone = alone();
    let cfg = tiny::config(VOCAB);
    let (variant, store) = tiny::upcycled(&cfg, "Biased", &tiny::dense_store(&cfg, 1));
    let (model, set) = (tiny::sparse(&cfg, variant, &store), text());
    let options = EvaluateOptions { length: 16, batch: 2, skip: 0 };
    let (_, made) = copies(|| evaluate_load(model.lm(), &set, options, &Pass::routed(), &CPU, 6).unwrap());
    assert_eq!(made, 10 + 7 + 4);
    let units = model.neuron_experts().unwrap().unwrap();
    let ids = tinyonn::checkpoint::tokens::random_tokens(VOCAB, (2, 9), 5, &CPU).unwrap();
    let (_, made) = copies(|| dump(model.lm(), &ids, &units, 6).unwrap());
    assert_eq!(made, 1);
}
