//! A training that goes on with another number of ranks: the samples are the same, and a state is that of one rank.

use std::path::{Path, PathBuf};

use rstest::rstest;
use tempfile::TempDir;
use tinyonn::Error;
use tinyonn::checkpoint::{MappedSafetensors, ParamStore};
use tinyonn::interrupt::{Interrupt, Signal};
use tinyonn::train::{Checkpoints, Memory, OptimizerConfig, Precision, PretrainConfig, SmkConfig, UpdateRule};

use super::training::{DENSE, SMK, apart, dense, experts, on_ranks};
use crate::tiny;

/// States every seven steps.
pub(super) fn states(dir: &Path, interrupt: Interrupt) -> Checkpoints {
    Checkpoints { dir: dir.join("states"), every: 7, keep: 9, interrupt }
}

fn last(dir: &Path) -> PathBuf {
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(dir.join("states")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found.pop().unwrap()
}

/// Trains with each of these numbers of ranks in turn, each stopped behind its third step but the last.
fn in_turn(
    worlds: &[usize],
    train: &(dyn Fn(super::training::Rank, &Path, &Checkpoints) -> tinyonn::Result<ParamStore> + Sync),
) -> Vec<ParamStore> {
    let dir = TempDir::new().unwrap();
    for (at, ranks) in worlds.iter().enumerate() {
        let stops = at + 1 < worlds.len();
        let ended = on_ranks(*ranks, |rank, own| {
            let interrupt = Interrupt::default();
            if stops {
                interrupt.request(Signal::Terminate);
            }
            train(own, &dir.path().join(format!("{rank}.jsonl")), &states(dir.path(), interrupt))
        });
        if stops {
            assert!(ended.iter().all(|ended| matches!(ended, Err(Error::Interrupted { .. }))));
        } else {
            return ended.into_iter().map(|store| store.unwrap()).collect();
        }
    }
    Vec::new()
}

const MOMENTUM: PretrainConfig =
    PretrainConfig { optimizer: OptimizerConfig { rule: UpdateRule::Sgd, ..DENSE.optimizer }, ..DENSE };
const LOOKS: PretrainConfig = PretrainConfig { look: 4, ..DENSE };

#[rstest]
#[case::up_and_down(DENSE, &[1, 2, 1])]
#[case::halved(DENSE, &[4, 2])]
#[case::many(DENSE, &[8, 1, 4, 2])]
#[case::momentum(MOMENTUM, &[2, 4])]
#[case::the_best_so_far(LOOKS, &[2, 1, 4])]
fn a_training_goes_on_with_other_ranks(#[case] config: PretrainConfig, #[case] worlds: &[usize]) {
    let straight = in_turn(&[1], &|own, log, states| dense(&config, own, log, Some(states))).remove(0);
    let turned = in_turn(worlds, &|own, log, states| dense(&config, own, log, Some(states)));
    for store in &turned {
        assert!(apart(&straight, store) < 1e-5, "{}", apart(&straight, store));
        assert_eq!(tiny::bits(store), tiny::bits(&turned[0]));
    }
}

/// Experts that lost have fewer steps, by row: rows that are cut too.
#[rstest]
#[case(&[1, 2, 1])]
#[case(&[4, 1, 2])]
fn losers_go_on_with_other_ranks(#[case] worlds: &[usize]) {
    let train = |config: SmkConfig, worlds: &[usize]| {
        in_turn(worlds, &move |own, log, states| Ok(experts(("Moe7x3", &config), own, log, Some(states))?.0))
    };
    let straight = train(SMK, &[1]).remove(0);
    for store in train(SMK, worlds) {
        assert!(apart(&straight, &store) < 1e-5, "{}", apart(&straight, &store));
    }
}

const NARROW: Memory =
    Memory { weights: Precision::Bf16, gradients: Precision::Bf16, moments: Precision::Bf16, ..Memory::DEFAULT };

#[rstest]
#[case::f32(DENSE)]
#[case::narrow(PretrainConfig { memory: NARROW, ..DENSE })]
#[case::the_best_so_far(LOOKS)]
fn as_many_ranks_go_on_to_the_same_bits(#[case] config: PretrainConfig) {
    let train = |worlds: &[usize]| in_turn(worlds, &|own, log, states| dense(&config, own, log, Some(states)));
    let (straight, stopped) = (train(&[2]), train(&[2, 2, 2]));
    assert_eq!(tiny::bits(&straight[0]), tiny::bits(&stopped[0]));
    assert_eq!(tiny::bits(&stopped[0]), tiny::bits(&stopped[1]));
}

/// A state of several ranks has the names, types and shapes of one rank's, and nearly its values.
#[rstest]
#[case::dense(true)]
#[case::experts(false)]
fn a_state_is_that_of_one_rank(#[case] of_dense: bool) {
    let saved = |ranks: usize| {
        let dir = TempDir::new().unwrap();
        on_ranks(ranks, |rank, own| {
            let (log, states) = (dir.path().join(format!("{rank}.jsonl")), states(dir.path(), Interrupt::default()));
            if of_dense {
                dense(&DENSE, own, &log, Some(&states)).map(drop).unwrap();
            } else {
                experts(("Moe7x3", &SMK), own, &log, Some(&states)).map(drop).unwrap();
            }
        });
        (MappedSafetensors::open(last(dir.path())).unwrap(), dir)
    };
    let ((one, _kept), (two, _kept_too)) = (saved(1), saved(2));
    let mut names: Vec<&str> = one.names().collect();
    let mut others: Vec<&str> = two.names().collect();
    names.sort_unstable();
    others.sort_unstable();
    assert_eq!(names, others);
    for name in names {
        let [a, b] = [&one, &two].map(|saved| saved.load(name, &candle_core::Device::Cpu).unwrap());
        assert_eq!((a.dims(), a.dtype()), (b.dims(), b.dtype()), "{name}");
        let [a, b] = [a, b]
            .map(|x| x.to_dtype(candle_core::DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap());
        for (a, b) in a.iter().zip(&b) {
            assert!(!name.starts_with("steps/") || a == b, "{name}");
            approx::assert_abs_diff_eq!(*a, *b, epsilon = 1e-5);
        }
    }
}
