//! One training on several ranks, which are threads here: the samples, losers, norms and losses of one rank, but for the order of sums.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::checkpoint::{ParamStore, grow_deltas};
use tinyonn::data::Sampler;
use tinyonn::decoder::smk_rule::{Losers, Per, Scope, Select, Surprise};
use tinyonn::decoder::{Pass, SmkRule};
use tinyonn::interrupt::{Interrupt, Signal};
use tinyonn::metrics::MetricsLog;
use tinyonn::ranks::{Collective, Threads};
use tinyonn::train::{
    Checkpoints, Memory, OptimizerConfig, Precision, PretrainConfig, RecycleConfig, SmkConfig, UpdateRule, pretrain,
    train_smk,
};
use tinyonn::{Error, Result};

use crate::models::{message, on};
use crate::tiny;

pub(super) const VOCAB: usize = 40;
const STEPS: u64 = 20;

/// A rank among several, or the only one.
pub(super) type Rank = Option<Arc<dyn Collective>>;

/// What every rank returns, by rank; 1: alone.
pub(super) fn on_ranks<R: Send>(ranks: usize, run: impl Fn(usize, Rank) -> R + Sync) -> Vec<R> {
    if ranks == 1 {
        return vec![run(0, None)];
    }
    std::thread::scope(|scope| {
        let run = &run;
        let start = |rank: Threads| scope.spawn(move || run(rank.rank(), Some(Arc::new(rank))));
        let threads: Vec<_> = Threads::new(ranks).into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

pub(super) const DENSE: PretrainConfig =
    PretrainConfig { steps: STEPS, batch: 8, warmup: 3, ..PretrainConfig::DEFAULT };

pub(super) fn dense(
    config: &PretrainConfig,
    rank: Rank,
    log: &Path,
    states: Option<&Checkpoints>,
) -> Result<ParamStore> {
    dense_on(&Device::Cpu, config, rank, log, states)
}

pub(super) fn dense_on(
    device: &Device,
    config: &PretrainConfig,
    rank: Rank,
    log: &Path,
    states: Option<&Checkpoints>,
) -> Result<ParamStore> {
    let (set, held) = (tiny::tokens(3, &[300, 300], VOCAB as u32), tiny::tokens(4, &[90, 70], VOCAB as u32));
    let sampler = Sampler::new(&set, 16, config.batch, 0, device)?.among(rank);
    let mut log = MetricsLog::open(log)?;
    pretrain(&tiny::config(VOCAB), config, (&sampler, Some(&held)), 0, &mut log, states)
}

pub(super) const SMK: SmkConfig = SmkConfig { steps: STEPS, batch: 8, min_k: 2, ..SmkConfig::DEFAULT };

pub(super) fn experts(
    of: (&str, &SmkConfig),
    rank: Rank,
    log: &Path,
    states: Option<&Checkpoints>,
) -> Result<(ParamStore, f64)> {
    experts_on(&Device::Cpu, of, rank, log, states)
}

pub(super) fn experts_on(
    device: &Device,
    (name, config): (&str, &SmkConfig),
    rank: Rank,
    log: &Path,
    states: Option<&Checkpoints>,
) -> Result<(ParamStore, f64)> {
    let cfg = tiny::config(VOCAB);
    let (variant, mut store) = tiny::upcycled(&cfg, name, &tiny::dense_store(&cfg, 2));
    grow_deltas(&mut store, &cfg, &variant.spec)?;
    let mut store = if device.is_cpu() { store } else { on(&store, device) };
    if rank.is_some() {
        // Each rank has its share of the masters on its card, and none has all of them there.
        store.keep_on_host(|name| name.contains(".mlp.") && name.ends_with("_proj.weight"))?;
    }
    let (set, held) = (tiny::tokens(3, &[300, 300], VOCAB as u32), tiny::tokens(4, &[90, 70], VOCAB as u32));
    let sampler = Sampler::new(&set, 16, config.batch, 0, device)?.among(rank);
    let mut log = MetricsLog::open(log)?;
    let text = (&sampler, Some(&held));
    let outcome = train_smk((&store, &cfg, variant), &Pass::routed(), text, config, &mut log, states)?;
    Ok((store, outcome.updated_share))
}

/// The largest difference of a weight, and the largest move of one.
pub(super) fn apart(a: &ParamStore, b: &ParamStore) -> f64 {
    let values = |var: &Tensor| var.flatten_all().unwrap().to_dtype(candle_core::DType::F64).unwrap();
    a.iter()
        .map(|(name, var)| {
            let apart = (values(var) - values(b.get(name).unwrap())).unwrap().abs().unwrap();
            if apart.elem_count() == 0 { 0.0 } else { apart.max_all().unwrap().to_scalar::<f64>().unwrap() }
        })
        .fold(0.0, f64::max)
}

/// The losses and norms that a log tells of.
pub(super) fn said(log: &Path, name: &str) -> Vec<f64> {
    let records = tinyonn::metrics::read(log).unwrap();
    let values = records.iter().flat_map(|record| record.values.iter().filter(|(own, _)| own == name));
    values.map(|(_, value)| *value).collect()
}

fn pretrained(config: &PretrainConfig, ranks: usize) -> (Vec<ParamStore>, Vec<Vec<f64>>) {
    let dir = TempDir::new().unwrap();
    let run = |rank: usize, own: Rank| {
        let log = dir.path().join(format!("{rank}.jsonl"));
        let store = dense(config, own, &log, None).unwrap();
        (store, [said(&log, "loss"), said(&log, "gradient_norm"), said(&log, "held_out_loss")].concat())
    };
    on_ranks(ranks, run).into_iter().unzip()
}

/// Sums in another order move f32 weights by some units in the last place of their size, which twenty steps do not carry beyond 1e-5.
#[rstest]
#[case::two(DENSE, 2, 1e-5)]
#[case::four(DENSE, 4, 1e-5)]
#[case::eight(DENSE, 8, 1e-5)]
#[case::in_parts(PretrainConfig { memory: Memory { micro_batches: 2, ..Memory::DEFAULT }, ..DENSE }, 2, 1e-5)]
#[case::recomputed(PretrainConfig { memory: Memory { recompute: true, ..Memory::DEFAULT }, ..DENSE }, 2, 1e-5)]
#[case::momentum(PretrainConfig { optimizer: OptimizerConfig { rule: UpdateRule::Sgd, rate: 0.1, ..DENSE.optimizer }, ..DENSE }, 2, 1e-5)]
#[case::clipped(PretrainConfig { optimizer: OptimizerConfig { clip: 0.01, ..DENSE.optimizer }, ..DENSE }, 2, 1e-5)]
#[case::the_best_of_looks(PretrainConfig { look: 5, ..DENSE }, 2, 1e-5)]
fn several_ranks_train_what_one_does(#[case] config: PretrainConfig, #[case] ranks: usize, #[case] most: f64) {
    let (one, alone) = pretrained(&config, 1);
    let (all, logs) = pretrained(&config, ranks);
    for (store, log) in all.iter().zip(&logs) {
        assert!(apart(&one[0], store) < most, "{}", apart(&one[0], store));
        assert_eq!(tiny::bits(store), tiny::bits(&all[0]), "ranks differ");
        assert_eq!(log, &logs[0]);
        assert_eq!(log.len(), alone[0].len());
        log.iter().zip(&alone[0]).for_each(|(a, b)| approx::assert_relative_eq!(*a, *b, max_relative = 1e-4));
    }
    // Nothing would be seen of weights that hardly move.
    let untrained = pretrained(&PretrainConfig { steps: 1, look: 0, ..config }, 1).0;
    assert!(apart(&one[0], &untrained[0]) > 1e3 * most);
    assert_eq!(tiny::bits(&pretrained(&config, ranks).0[0]), tiny::bits(&all[0]), "not the same bits again");
}

/// Work weights and gradients of 8 bits follow their roundings: the losses stay together.
#[rstest]
#[case::masters(Precision::F32, Precision::F32)]
#[case::gradients(Precision::Bf16, Precision::F32)]
#[case::moments(Precision::Bf16, Precision::Bf16)]
fn narrow_weights_stay_together(#[case] gradients: Precision, #[case] moments: Precision) {
    let memory = Memory { weights: Precision::Bf16, gradients, moments, ..Memory::DEFAULT };
    let config = PretrainConfig { memory, look: 10, ..DENSE };
    let ((_, alone), (stores, logs)) = (pretrained(&config, 1), pretrained(&config, 2));
    assert_eq!(tiny::bits(&stores[0]), tiny::bits(&stores[1]), "masters are not whole");
    alone[0].iter().zip(&logs[0]).for_each(|(a, b)| approx::assert_relative_eq!(*a, *b, max_relative = 5e-2));
    let losses = 3;
    alone[0][..losses].iter().zip(&logs[0]).for_each(|(a, b)| approx::assert_relative_eq!(*a, *b, max_relative = 5e-3));
}

/// Weights and gradients of 8 bits, for two hundred steps.
pub(super) const LONG_NARROW: PretrainConfig = PretrainConfig {
    steps: 200,
    memory: Memory { weights: Precision::Bf16, gradients: Precision::Bf16, ..Memory::DEFAULT },
    ..DENSE
};

/// The mean of the last twenty losses that were logged, of every tenth step: a single one is as far from its neighbours as two trainings are from each other.
pub(super) fn last_losses(losses: &[f64]) -> f64 {
    let last = &losses[losses.len().saturating_sub(20)..];
    last.iter().sum::<f64>() / last.len() as f64
}

/// What narrow weights learn stays within 0.5 %.
#[test]
fn narrow_weights_learn_the_same() {
    let (one, two) = (pretrained(&LONG_NARROW, 1).1.remove(0), pretrained(&LONG_NARROW, 2).1.remove(0));
    // As many gradient norms lie behind them.
    let losses = |log: &[f64]| last_losses(&log[..log.len() / 2]);
    approx::assert_relative_eq!(losses(&one), losses(&two), max_relative = 5e-3);
    // Nothing would be seen of a training that has learnt nothing.
    assert!(losses(&one) < 0.9 * one[0], "{} of {}", losses(&one), one[0]);
}

const EXACT: SmkRule = SmkRule { surprise: Surprise::Exact, ..SmkRule::DEFAULT };
const ONLY_ROUTERS_AND_EXPERTS: SmkConfig = SmkConfig { routers: true, ..SMK };

fn differentiated(name: &str, config: &SmkConfig, ranks: usize) -> Vec<(ParamStore, f64)> {
    let dir = TempDir::new().unwrap();
    on_ranks(ranks, |rank, own| experts((name, config), own, &dir.path().join(format!("{rank}.jsonl")), None).unwrap())
}

/// All ranks choose the losers that one does, of whatever the choice is made.
#[rstest]
#[case::surprise("Moe7x3", SMK)]
#[case::several_parts("Moe7x3", SmkConfig { memory: Memory { micro_batches: 2, ..Memory::DEFAULT }, ..SMK })]
#[case::by_group("Moe7x3", SmkConfig { rule: SmkRule { per: Per::Group, ..SmkRule::DEFAULT }, min_k: 1, ..SMK })]
#[case::drawn("Moe7x3", SmkConfig { rule: SmkRule { select: Select::RandomK, ..SmkRule::DEFAULT }, ..SMK })]
#[case::by_load("Moe7x3", SmkConfig { rule: SmkRule { select: Select::MinLoad, ..SmkRule::DEFAULT }, ..SMK })]
#[case::those_without_a_token("Moe7x3", SmkConfig { rule: SmkRule { scope: Scope::All, ..SmkRule::DEFAULT }, ..SMK })]
#[case::losers_that_step("Moe7x3", SmkConfig { rule: SmkRule { losers: Losers::ZeroGrad, ..SmkRule::DEFAULT }, ..SMK })]
#[case::all("Moe2x4", SmkConfig { min_k: 8, ..SMK })]
#[case::biases_and_noise("EvenByBias", ONLY_ROUTERS_AND_EXPERTS)]
#[case::a_loss_for_balance("EvenByLoss", ONLY_ROUTERS_AND_EXPERTS)]
#[case::whole_gradients("Moe7x3", SmkConfig { rule: EXACT, ..SMK })]
#[case::whole_gradients_of_each_part("Moe7x3", SmkConfig { rule: EXACT, memory: Memory { micro_batches: 2, ..Memory::DEFAULT }, ..SMK })]
fn several_ranks_choose_the_losers_that_one_does(#[case] name: &str, #[case] config: SmkConfig) {
    let one = differentiated(name, &config, 1).remove(0);
    for ranks in [2, 4] {
        let all = differentiated(name, &config, ranks);
        for (store, share) in &all {
            assert!(apart(&one.0, store) < 1e-5, "{ranks} ranks: {}", apart(&one.0, store));
            // Who learnt is counted: a single other loser would show.
            approx::assert_relative_eq!(*share, one.1, max_relative = 1e-12);
            assert_eq!(tiny::bits(store), tiny::bits(&all[0].0));
        }
    }
    let untrained = differentiated(name, &SmkConfig { steps: 1, ..config }, 1).remove(0);
    assert!(apart(&one.0, &untrained.0) > 1e-4);
}

#[rstest]
#[case::replicas("MergedBySequence", SMK, "experts_are")]
#[case::recycled("Moe7x3", SmkConfig { recycle: RecycleConfig { every: 5, ..RecycleConfig::DEFAULT }, ..ONLY_ROUTERS_AND_EXPERTS }, "recycle")]
#[case::a_batch_that_does_not_divide("Moe7x3", SmkConfig { batch: 7, ..SMK }, "use 6 or 8")]
fn what_several_ranks_cannot_do_is_refused(#[case] name: &str, #[case] config: SmkConfig, #[case] part: &str) {
    let dir = TempDir::new().unwrap();
    let refused = on_ranks(2, |rank, own| {
        message(experts((name, &config), own, &dir.path().join(format!("{rank}.jsonl")), None))
    });
    for said in refused {
        assert!(said.contains(part), "{said}");
    }
}

/// Whichever rank is asked, all save the same step and say what asked.
#[rstest]
#[case(0, Signal::Terminate)]
#[case(1, Signal::Interrupt)]
#[case(1, Signal::Requeue)]
fn ranks_stop_behind_one_step(#[case] asked: usize, #[case] signal: Signal) {
    let dir = TempDir::new().unwrap();
    let stopped = on_ranks(2, |rank, own| {
        let interrupt = Interrupt::default();
        if rank == asked {
            interrupt.request(signal);
        }
        let states = Checkpoints { dir: dir.path().join("states"), every: 100, keep: 2, interrupt };
        dense(&DENSE, own, &dir.path().join(format!("{rank}.jsonl")), Some(&states)).map(drop)
    });
    for stopped in stopped {
        let Err(Error::Interrupted { signal: by, saved, .. }) = stopped else { panic!("{stopped:?}") };
        assert_eq!(by, signal);
        // Told with the numbers of the first step, which are read while the second runs.
        assert!(saved.starts_with("step 2 of 20 of pretraining is saved"), "{saved}");
    }
    let saved: Vec<_> = std::fs::read_dir(dir.path().join("states")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(saved, ["state-00000002.safetensors"]);
}

/// A rank that cannot go on leaves no other waiting.
#[test]
fn a_rank_that_is_gone_is_named() {
    let ended = on_ranks(3, |rank, own| {
        let ranks = own.unwrap();
        if rank == 1 {
            return String::new();
        }
        message(ranks.all_reduce(&Tensor::zeros(2, candle_core::DType::F32, &Device::Cpu).unwrap()))
    });
    assert_eq!(ended.concat().matches("rank 1: is gone").count(), 2, "{ended:?}");
}
