//! A training that was stopped goes on as if it had not been: N steps are n steps, a stop and N − n more, bit for bit, log included.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;
use proptest::prelude::*;
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::checkpoint::{ParamStore, grow_deltas};
use tinyonn::data::{Sampler, TokenSet};
use tinyonn::interrupt::{Interrupt, Signal};
use tinyonn::metrics::MetricsLog;
use tinyonn::qwen3::Pass;
use tinyonn::train::smk::SmkOutcome;
use tinyonn::train::{AdamwConfig, Checkpoints, PretrainConfig, SmkConfig, pretrain, train_smk};
use tinyonn::{Error, Result};

use crate::models::message;
use crate::tiny;

const VOCAB: usize = 40;
const STEPS: u64 = 23;

type Bits = Vec<(String, Vec<u32>)>;

fn text() -> TokenSet {
    tiny::tokens(3, &[300, 300], VOCAB as u32)
}

/// A folder with a log and states.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn log(&self) -> PathBuf {
        self.0.path().join("log.jsonl")
    }

    fn states(&self) -> Checkpoints {
        Checkpoints { dir: self.0.path().join("states"), every: 4, keep: 2, interrupt: Interrupt::default() }
    }

    /// The names of the states, sorted.
    fn saved(&self) -> Vec<String> {
        let entries = fs::read_dir(self.states().dir).into_iter().flatten();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn remove(&self, state: &str) {
        fs::remove_file(self.states().dir.join(state)).unwrap();
    }
}

/// What a training is told apart by: its weights, its log, what it returned.
fn dense(log: &Path, states: Option<&Checkpoints>) -> Result<Bits> {
    dense_at(4e-3, STEPS, log, states)
}

fn dense_at(rate: f64, steps: u64, log: &Path, states: Option<&Checkpoints>) -> Result<Bits> {
    let set = text();
    let sampler = Sampler::new(&set, 16, 4, 0, &Device::Cpu)?;
    let adamw = AdamwConfig { rate, ..AdamwConfig::default() };
    let config = PretrainConfig { steps, batch: 4, warmup: 3, adamw };
    let mut log = MetricsLog::open(log)?;
    let store = pretrain(&tiny::config(VOCAB), &config, &sampler, &Device::Cpu, 0, &mut log, states)?;
    Ok(tiny::bits(&store))
}

fn experts(name: &str, min_k: usize, log: &Path, states: Option<&Checkpoints>) -> Result<(Bits, SmkOutcome)> {
    let cfg = tiny::config(VOCAB);
    let (variant, mut store) = tiny::upcycled(&cfg, name, &tiny::dense_store(&cfg, 2));
    grow_deltas(&mut store, &cfg, &variant.spec)?;
    let set = text();
    let sampler = Sampler::new(&set, 16, 4, 0, &Device::Cpu)?;
    let routers = name.starts_with("Even");
    let config = SmkConfig { steps: STEPS, batch: 4, min_k, routers, ..SmkConfig::default() };
    let mut log = MetricsLog::open(log)?;
    let outcome = train_smk((&store, &cfg, variant), &Pass::routed(), &sampler, &config, &mut log, states)?;
    Ok((tiny::bits(&store), outcome))
}

/// Calls `run` anew until it is not stopped any more; it is asked to stop in every step.
fn step_by_step<R>(place: &Place, run: impl Fn(&Path, &Checkpoints) -> Result<R>) -> R {
    let states = place.states();
    states.interrupt.request(Signal::Terminate);
    for step in 1.. {
        match run(&place.log(), &states) {
            Err(Error::Interrupted { signal, saved, .. }) => {
                assert_eq!(signal, Signal::Terminate);
                assert!(saved.starts_with(&format!("step {step} of {STEPS} of ")), "{saved}");
            }
            done => return done.unwrap(),
        }
    }
    unreachable!("a range without an end")
}

#[test]
fn pretraining_that_is_stopped_goes_on_to_the_same_bits() {
    let (at_once, stopped) = (Place::new(), Place::new());
    let expected = dense(&at_once.log(), None).unwrap();
    assert_eq!(step_by_step(&stopped, |log, states| dense(log, Some(states))), expected);
    assert_eq!(fs::read(stopped.log()).unwrap(), fs::read(at_once.log()).unwrap());
    assert_eq!(stopped.saved(), ["state-00000022.safetensors", "state-00000023.safetensors"]);
}

#[rstest]
#[case::slices("Moe7x3", 2)]
#[case::slices_all_learn("Moe2x4", 8)]
#[case::replicas("MergedBySequence", 1)]
#[case::routers_and_biases("EvenByBias", 2)]
#[case::routers_and_losses("EvenByLoss", 2)]
fn surprise_min_k_that_is_stopped_goes_on_to_the_same_bits(#[case] name: &str, #[case] min_k: usize) {
    let (at_once, stopped) = (Place::new(), Place::new());
    let expected = experts(name, min_k, &at_once.log(), None).unwrap();
    assert_eq!(step_by_step(&stopped, |log, states| experts(name, min_k, log, Some(states))), expected);
    assert_eq!(fs::read(stopped.log()).unwrap(), fs::read(at_once.log()).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    /// A machine that stops loses the states behind one; the log has got ahead of it, perhaps to within a line.
    #[test]
    fn a_log_that_is_ahead_of_the_state_is_taken_back(keep in 0usize..5, cut in 0usize..40) {
        let (at_once, killed) = (Place::new(), Place::new());
        let expected = experts("Moe7x3", 2, &at_once.log(), None).unwrap();
        let all = Checkpoints { keep: 9, ..killed.states() };
        prop_assert_eq!(&experts("Moe7x3", 2, &killed.log(), Some(&all)).unwrap(), &expected);
        let saved = killed.saved();
        prop_assert_eq!(saved.len(), 5); // of steps 4, 8, 12, 16 and 20
        saved[keep..].iter().for_each(|state| killed.remove(state));
        let mut log = fs::read(killed.log()).unwrap();
        log.truncate(log.len() - cut);
        fs::write(killed.log(), log).unwrap();
        prop_assert_eq!(&experts("Moe7x3", 2, &killed.log(), Some(&all)).unwrap(), &expected);
        if keep > 2 || cut == 0 {
            prop_assert_eq!(fs::read(killed.log()).unwrap(), fs::read(at_once.log()).unwrap());
        }
    }
}

#[test]
fn only_the_last_states_stay() {
    let place = Place::new();
    dense(&place.log(), Some(&place.states())).unwrap();
    assert_eq!(place.saved(), ["state-00000016.safetensors", "state-00000020.safetensors"]);
}

#[test]
fn other_settings_are_refused_by_name() {
    let place = Place::new();
    dense(&place.log(), Some(&place.states())).unwrap();
    let log = fs::read(place.log()).unwrap();
    let refused = message(dense_at(3e-3, STEPS, &place.log(), Some(&place.states())));
    let named = "`pretrain.adamw.rate` was 0.004 and is 0.003";
    assert!(refused.contains(named) && refused.contains("/states: "), "{refused}");
    let refused = message(dense_at(4e-3, STEPS + 1, &place.log(), Some(&place.states())));
    assert!(refused.contains("`pretrain.steps` was 23 and is 24;"), "{refused}");
    let refused = message(experts("Moe7x3", 2, &place.log(), Some(&place.states())));
    assert!(refused.contains("`smk` was null and is {"), "{refused}");
    assert_eq!(fs::read(place.log()).unwrap(), log);
}

#[rstest]
#[case::cut_off(|bytes: &mut Vec<u8>| bytes.truncate(1000), "state-00000020.safetensors")]
#[case::of_another_version(|bytes: &mut Vec<u8>| replace(bytes, br#"\"version\":1"#, br#"\"version\":7"#), "is a state of version 7")]
fn a_state_that_cannot_be_used_is_refused(#[case] spoil: fn(&mut Vec<u8>), #[case] says: &str) {
    let place = Place::new();
    dense(&place.log(), Some(&place.states())).unwrap();
    let path = place.states().dir.join("state-00000020.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    spoil(&mut bytes);
    fs::write(&path, bytes).unwrap();
    let refused = message(dense(&place.log(), Some(&place.states())));
    assert!(refused.contains(says) && !refused.contains('\n'), "{refused}");
}

fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    let at = bytes.windows(old.len()).position(|window| window == old).unwrap();
    bytes[at..at + new.len()].copy_from_slice(new);
}

#[test]
fn a_state_that_cannot_be_written_leaves_the_one_before_it() {
    let place = Place::new();
    // A folder of that name is in the way: the system refuses the rename.
    fs::create_dir_all(place.states().dir.join("state-00000008.safetensors/in-the-way")).unwrap();
    let refused = message(dense(&place.log(), Some(&place.states())));
    assert!(refused.contains("state-00000008.safetensors: cannot be written"), "{refused}");
    assert!(place.saved().contains(&"state-00000004.safetensors".to_owned()), "{:?}", place.saved());
    fs::remove_dir_all(place.states().dir.join("state-00000008.safetensors")).unwrap();
    let at_once = Place::new();
    let expected = dense(&at_once.log(), None).unwrap();
    assert_eq!(dense(&place.log(), Some(&place.states())).unwrap(), expected);
}

#[test]
fn a_number_that_is_not_finite_leaves_the_state_before_it() {
    let (blown, good) = (Place::new(), Place::new());
    // One step at this rate makes weights so large that the next loss is no number.
    let refused = message(dense_at(f64::MAX, STEPS, &blown.log(), Some(&blown.states())));
    assert!(refused.contains("at step 1 of pretraining") && refused.contains("task `task"), "{refused}");
    assert_eq!(blown.saved(), ["state-00000001.safetensors"]);
    let states = good.states();
    states.interrupt.request(Signal::Interrupt);
    dense_at(f64::MAX, STEPS, &good.log(), Some(&states)).unwrap_err();
    let of = |place: &Place| fs::read(place.states().dir.join("state-00000001.safetensors")).unwrap();
    assert!(of(&blown) == of(&good), "the state is not that before the step");
}

/// The store is the caller's: a training that goes on with other weights than it began with would be another training.
#[test]
fn other_weights_are_refused() {
    let place = Place::new();
    experts("Moe7x3", 2, &place.log(), Some(&place.states())).unwrap();
    let cfg = tiny::config(VOCAB);
    let (variant, store): (_, ParamStore) = tiny::upcycled(&cfg, "Moe7x3", &tiny::dense_store(&cfg, 9));
    let set = text();
    let sampler = Sampler::new(&set, 16, 4, 0, &Device::Cpu).unwrap();
    let config = SmkConfig { steps: STEPS, batch: 4, min_k: 2, ..SmkConfig::default() };
    let mut log = MetricsLog::open(place.log()).unwrap();
    let states = place.states();
    let refused =
        message(train_smk((&store, &cfg, variant), &Pass::routed(), &sampler, &config, &mut log, Some(&states)));
    assert!(refused.contains("`weights` was"), "{refused}");
}
