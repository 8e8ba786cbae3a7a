//! A training that was stopped goes on as if it had not been: N steps are n steps, a stop and N − n more, bit for bit, log included.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device};
use proptest::prelude::*;
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::checkpoint::{MappedSafetensors, ParamStore, dense_params, grow_deltas};
use tinyonn::data::{Sampler, TokenSet};
use tinyonn::decoder::smk_rule::{Losers, Over, Per, Select, Surprise};
use tinyonn::decoder::{Learn, Pass, SmkRule};
use tinyonn::interrupt::{Interrupt, Signal};
use tinyonn::metrics::MetricsLog;
use tinyonn::train::smk::SmkOutcome;
use tinyonn::train::state::slots;
use tinyonn::train::{
    Checkpoints, Memory, OptimizerConfig, Precision, PretrainConfig, Rule, Said, Saving, Schedule, SmkConfig,
    TextGradient, TrainState, UpdateRule, Watch, pretrain, train, train_smk,
};
use tinyonn::{Error, Result};

use crate::models::{Way, hooked, message};
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
    let optimizer = OptimizerConfig { rate, ..OptimizerConfig::DEFAULT };
    dense_by(&PretrainConfig { steps, optimizer, ..CONFIG }, log, states)
}

const CONFIG: PretrainConfig = PretrainConfig { steps: STEPS, batch: 4, warmup: 3, ..PretrainConfig::DEFAULT };

fn dense_by(config: &PretrainConfig, log: &Path, states: Option<&Checkpoints>) -> Result<Bits> {
    let (set, held) = (text(), tiny::tokens(4, &[90, 70], VOCAB as u32));
    let sampler = Sampler::new(&set, 16, 4, 0, &Device::Cpu)?;
    let mut log = MetricsLog::open(log)?;
    let store = pretrain(&tiny::config(VOCAB), config, (&sampler, Some(&held)), 0, &mut log, states)?;
    Ok(tiny::bits(&store))
}

fn experts(name: &str, min_k: usize, log: &Path, states: Option<&Checkpoints>) -> Result<(Bits, SmkOutcome)> {
    let routers = name.starts_with("Even");
    let config = SmkConfig { steps: STEPS, batch: 4, min_k, routers, ..SmkConfig::DEFAULT };
    experts_by(name, &config, log, states)
}

fn experts_by(name: &str, config: &SmkConfig, log: &Path, states: Option<&Checkpoints>) -> Result<(Bits, SmkOutcome)> {
    let cfg = tiny::config(VOCAB);
    let (variant, mut store) = tiny::upcycled(&cfg, name, &tiny::dense_store(&cfg, 2));
    grow_deltas(&mut store, &cfg, &variant.spec)?;
    let (set, held) = (text(), tiny::tokens(4, &[90, 70], VOCAB as u32));
    let sampler = Sampler::new(&set, 16, 4, 0, &Device::Cpu)?;
    let mut log = MetricsLog::open(log)?;
    let text = (&sampler, Some(&held));
    let outcome = train_smk((&store, &cfg, variant), &Pass::routed(), text, config, &mut log, states)?;
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

/// Whatever a state holds beside weights and AdamW's moments.
#[rstest]
#[case::parts_of_a_batch(PretrainConfig { memory: Memory { micro_batches: 2, ..Memory::DEFAULT }, ..CONFIG })]
#[case::recomputed(PretrainConfig { memory: Memory { recompute: true, ..Memory::DEFAULT }, ..CONFIG })]
#[case::masters(PretrainConfig { memory: Memory { weights: Precision::Bf16, ..Memory::DEFAULT }, ..CONFIG })]
#[case::narrow(PretrainConfig { memory: NARROW, ..CONFIG })]
#[case::momentum(PretrainConfig { optimizer: OptimizerConfig { rule: UpdateRule::Sgd, ..CONFIG.optimizer }, ..CONFIG })]
#[case::lion(PretrainConfig { optimizer: OptimizerConfig { rule: UpdateRule::Lion, rate: 4e-4, ..CONFIG.optimizer }, ..CONFIG })]
#[case::the_best_so_far(PretrainConfig { look: 5, ..CONFIG })]
fn any_pretraining_goes_on_to_the_same_bits(#[case] config: PretrainConfig) {
    let (at_once, stopped) = (Place::new(), Place::new());
    let expected = dense_by(&config, &at_once.log(), None).unwrap();
    assert_eq!(step_by_step(&stopped, |log, states| dense_by(&config, log, Some(states))), expected);
    assert_eq!(fs::read(stopped.log()).unwrap(), fs::read(at_once.log()).unwrap());
    assert!(expected != dense(&Place::new().log(), None).unwrap() || config.memory.recompute || config.look > 0);
}

const NARROW: Memory =
    Memory { weights: Precision::Bf16, gradients: Precision::Bf16, moments: Precision::Bf16, ..Memory::DEFAULT };

/// The looks that a log tells of: step and loss.
fn looks(place: &Place) -> Vec<(u64, f64)> {
    let records = tinyonn::metrics::read(place.log()).unwrap().into_iter();
    let loss = |values: &[(String, f64)]| Some(values.iter().find(|(name, _)| name == "held_out_loss")?.1);
    records.filter_map(|record| Some((record.step, loss(&record.values)?))).collect()
}

/// The step of the least loss, which must not be the last.
fn best_of(looks: &[(u64, f64)]) -> u64 {
    let best = looks.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    assert!(best < STEPS - 1, "it never rises: {looks:?}");
    best
}

/// A rate at which the loss on held-out text rises again: the result is the best step's, not the last one's.
#[test]
fn looks_keep_the_best_weights() {
    let optimizer = OptimizerConfig { rate: 6e-2, ..CONFIG.optimizer };
    let config = PretrainConfig { look: 2, optimizer, schedule: Schedule::Constant, ..CONFIG };
    let place = Place::new();
    let kept = dense_by(&config, &place.log(), None).unwrap();
    let looks = looks(&place);
    assert_eq!(looks.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 22]);
    let best = best_of(&looks);
    // A rate that stays makes the first steps of a longer training those of a shorter one.
    let short = PretrainConfig { steps: best + 1, look: 0, ..config };
    assert_eq!(kept, dense_by(&short, &Place::new().log(), None).unwrap());
    let refused = message(pretrain(
        &tiny::config(VOCAB),
        &config,
        (&Sampler::new(&text(), 16, 4, 0, &Device::Cpu).unwrap(), None),
        0,
        &mut MetricsLog::open(place.log()).unwrap(),
        None,
    ));
    assert!(refused.contains("`pretrain.look`"), "{refused}");
}

/// Biases that even the load are moved beside the masters: they are those of the best step too, also where a training goes on.
#[test]
fn looks_keep_the_best_biases() {
    let optimizer = OptimizerConfig { rate: 3e-2, ..SmkConfig::DEFAULT.optimizer };
    let config = SmkConfig {
        steps: STEPS,
        batch: 4,
        min_k: 8,
        routers: true,
        look: 2,
        optimizer,
        schedule: Schedule::Constant,
        ..SmkConfig::DEFAULT
    };
    let run = |config: &SmkConfig, log: &Path, states: Option<&Checkpoints>| {
        Ok(experts_by("EvenByBias", config, log, states)?.0)
    };
    let (place, stopped) = (Place::new(), Place::new());
    let kept = run(&config, &place.log(), None).unwrap();
    let best = best_of(&looks(&place));
    let short = SmkConfig { steps: best + 1, look: 0, ..config };
    let expected = run(&short, &Place::new().log(), None).unwrap();
    let all = run(&SmkConfig { look: 0, ..config }, &Place::new().log(), None).unwrap();
    let biases = |bits: &Bits| bits.iter().filter(|(name, _)| name.contains("bias")).cloned().collect::<Bits>();
    assert!(!biases(&all).is_empty() && biases(&all) != biases(&expected), "the biases never moved");
    assert_eq!(kept, expected);
    assert_eq!(step_by_step(&stopped, |log, states| run(&config, log, Some(states))), expected);
}

struct Deaf;

impl Watch for Deaf {
    fn hear(&mut self, _: &Said) -> Result<()> {
        Ok(())
    }
}

/// Steps of four parts each, over two layers; it is asked to stop in the forward pass of number `at`, of a layer.
fn in_parts(at: usize, states: &Checkpoints) -> Result<Bits> {
    let cfg = tiny::config(VOCAB);
    let store = tiny::dense_store(&cfg, 2);
    let (left, interrupt) = (AtomicUsize::new(at), states.interrupt.clone());
    let work = store.work_weights(DType::F32, |_| Some(DType::F32))?;
    let model = hooked(&cfg, work.builder(), move |way| {
        if way == Way::Forward && left.fetch_sub(1, Ordering::Relaxed) == 1 {
            interrupt.request(Signal::Terminate);
        }
        Ok(())
    });
    let memory = Memory { micro_batches: 4, ..Memory::DEFAULT };
    let mut state = TrainState::new(slots(&work, dense_params(&cfg)), &memory)?;
    let set = text();
    let sampler = Sampler::new(&set, 16, 4, 0, &Device::Cpu)?;
    let text = TextGradient {
        model: &model,
        sampler: &sampler,
        pass: Pass::all(),
        learn: Learn::default(),
        open: 0,
        memory,
        interrupt: Some(&states.interrupt),
    };
    let rule = Rule {
        stage: ("parts", "parts"),
        steps: 5,
        tokens: Some(text.tokens()),
        optimizer: &OptimizerConfig::DEFAULT,
        rate: &|_| 1e-2,
        batch: &|_| None,
        adjust: None,
    };
    let saving = Saving { checkpoints: states, settings: serde_json::Value::Null };
    saving.resume::<()>(&mut state)?;
    train(&mut state, &rule, &mut |state| text.descend(state), Some(&saving), &mut Deaf)?;
    Ok(tiny::bits(&store))
}

/// Asked to stop between two parts of a step, a training leaves the state before it, and takes the step anew.
#[rstest]
#[case::in_the_first_part(17, 2)]
#[case::in_the_second(19, 2)]
#[case::in_the_third_s_last_layer(22, 2)]
#[case::in_the_last(23, 3)]
fn a_training_goes_on_within_an_accumulation(#[case] at: usize, #[case] saved: u64) {
    let (at_once, stopped) = (Place::new(), Place::new());
    let expected = in_parts(usize::MAX, &at_once.states()).unwrap();
    let states = stopped.states();
    let said = message(in_parts(at, &states));
    assert!(said.contains(&format!("step {saved} of 5 of parts is saved")), "{said}");
    assert_eq!(in_parts(usize::MAX, &stopped.states()).unwrap(), expected);
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

/// What is drawn is a function of seed, step and micro-batch: nothing of it is in a state.
#[rstest]
#[case::drawn(SmkRule { select: Select::RandomK, ..SmkRule::DEFAULT }, 2)]
#[case::drawn_over_the_step(SmkRule { select: Select::RandomK, surprise: Surprise::Exact, ..SmkRule::DEFAULT }, 2)]
#[case::parts_apart(SmkRule { surprise: Surprise::Exact, over: Some(Over::MicroBatch), ..SmkRule::DEFAULT }, 2)]
#[case::losers_that_step(SmkRule { select: Select::MaxK, losers: Losers::ZeroGrad, per: Per::Group, ..SmkRule::DEFAULT }, 1)]
fn every_rule_goes_on_to_the_same_bits(#[case] rule: SmkRule, #[case] micro_batches: usize) {
    let memory = Memory { micro_batches, ..Memory::DEFAULT };
    let config = SmkConfig { steps: STEPS, batch: 4, min_k: 2, rule, memory, ..SmkConfig::DEFAULT };
    let (at_once, stopped) = (Place::new(), Place::new());
    let expected = experts_by("Moe7x3", &config, &at_once.log(), None).unwrap();
    assert_eq!(step_by_step(&stopped, |log, states| experts_by("Moe7x3", &config, log, Some(states))), expected);
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
    let named = "`pretrain.optimizer.rate` was 0.004 and is 0.003";
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
    // One step at this rate makes weights so large, and finite, that the next loss is no number.
    let rate = 1e30;
    let refused = message(dense_at(rate, STEPS, &blown.log(), Some(&blown.states())));
    assert!(refused.contains("at step 1 of pretraining") && refused.contains("task `task"), "{refused}");
    assert_eq!(blown.saved(), ["state-00000001.safetensors"]);
    let states = good.states();
    states.interrupt.request(Signal::Interrupt);
    dense_at(rate, STEPS, &good.log(), Some(&states)).unwrap_err();
    let of = |place: &Place| fs::read(place.states().dir.join("state-00000001.safetensors")).unwrap();
    assert!(of(&blown) == of(&good), "the state is not that before the step");
    let state = MappedSafetensors::open(blown.states().dir.join("state-00000001.safetensors")).unwrap();
    for name in state.names() {
        let values = state.load(name, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        let most = values.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(most.is_finite(), "{name}");
    }
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
    let config = SmkConfig { steps: STEPS, batch: 4, min_k: 2, ..SmkConfig::DEFAULT };
    let mut log = MetricsLog::open(place.log()).unwrap();
    let states = place.states();
    let refused = message(train_smk(
        (&store, &cfg, variant),
        &Pass::routed(),
        (&sampler, None),
        &config,
        &mut log,
        Some(&states),
    ));
    assert!(refused.contains("`weights` was"), "{refused}");
}
