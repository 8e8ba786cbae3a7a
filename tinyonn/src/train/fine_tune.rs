//! Fine-tuning: what is there already learns further text, all of its feed-forwards' weights or a part of them, with a look at it now and then.
//!
//! [`train_smk`](super::train_smk()) is this for a variant's experts, watched by a log, looks at held-out text and recycling; a study of forgetting asks for any
//! feed-forward, a fixed part that learns, decay towards the start, and figures of its own at each look.

use candle_core::{Tensor, Var};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Adjust, Anchor, Rule, Said, Saving, Slot, SmkConfig, TextGradient, TrainState, Verdict, Watch, train};
use crate::data::Sampler;
use crate::decoder::{CausalLm, FeedForward, Learn, Pass};
use crate::{Error, Result};

/// Who learns, and how.
pub struct FineTune<'a, F> {
    /// What reads; it was built from the Vars of `slots`.
    pub model: &'a CausalLm<F>,
    /// The weights that may learn.
    pub slots: Vec<Slot>,
    /// Which of them do.
    pub learn: Learn,
    /// Which experts take part.
    pub pass: Pass,
    /// The first positions of each sequence, which are read and not scored.
    pub open: usize,
    /// Towards what they decay.
    pub anchor: Option<&'a Anchor>,
}

/// Trains for `config.steps` steps on the batches of `sampler`, at `config`'s rate. `look` is called with the number of steps taken, every `config.look`
/// of them (0: never but behind the last) and behind the last. Returns how many experts competed and learnt, where there was a choice of them.
///
/// With `saving` it goes on behind the last state of the same training.
///
/// # Errors
/// An optimizer or memory that cannot be; a loss or gradient that is no finite number (`fine_tune.optimizer.rate`); what `look`, the model or the disk
/// reports.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::{ParamStore, dense_params, Role};
/// use tinyonn::data::{Sampler, TaskTokens, TokenSet};
/// use tinyonn::decoder::{Arch, CausalLm, Learn, Pass};
/// use tinyonn::train::{FineTune, SmkConfig, fine_tune, state};
///
/// let cfg = Arch::from_json(&serde_json::json!({
///     "model_type": "qwen3", "vocab_size": 280, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
///     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
/// }), "config.json")?;
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let work = store.work_weights(DType::F32, |name| name.contains(".mlp.").then_some(DType::F32))?;
/// let model = CausalLm::dense(&cfg, work.builder())?;
/// let slots = state::slots(&work, dense_params(&cfg).into_iter().filter(|param| param.role == Role::Expert));
///
/// let task = TaskTokens { name: "count".into(), tokens: (0..200).collect(), documents: vec![0; 200] };
/// let set = TokenSet { tasks: vec![task], documents: vec!["count/a".into()], eos: 0 };
/// let config = SmkConfig { steps: 3, batch: 2, look: 2, ..SmkConfig::DEFAULT };
/// let sampler = Sampler::new(&set, 32, config.batch, 0, &Device::Cpu)?;
/// let what = FineTune { model: &model, slots, learn: Learn::default(), pass: Pass::all(), open: 0, anchor: None };
/// let mut looks = Vec::new();
/// fine_tune(what, &sampler, &config, None, &mut |step| { looks.push(step); Ok(()) })?;
/// assert_eq!(looks, [2, 3]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub fn fine_tune<F: FeedForward>(
    what: FineTune<'_, F>,
    sampler: &Sampler<'_>,
    config: &SmkConfig,
    saving: Option<&Saving<'_>>,
    look: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Option<LearnersMean>> {
    config.memory.check("fine_tune.memory", sampler.batch())?;
    if what.slots.is_empty() {
        return Err(Error::setting("fine_tune", "no weight learns", "give the slots of those that do"));
    }
    let every = if config.look == 0 { config.steps } else { config.look };
    let stage = Stage { name: ("fine-tuning", "fine_tune.optimizer"), shown: false, beside: Vec::new(), adjust: None };
    let watched = teach(what, (sampler, config), stage, saving, |_, tally| Ok(Looking { tally, every, look }))?;
    let Sums { learnt, competed, count } = watched.tally;
    let mean = |sum: f64| sum / count as f64;
    Ok((count > 0).then(|| LearnersMean { learnt: mean(learnt), competed: mean(competed) }))
}

/// What sets one fine-tuning apart from another, beside who learns.
pub(super) struct Stage<'a> {
    /// Its name in progress and errors, and the key of its optimizer in the settings.
    pub(super) name: (&'a str, &'a str),
    /// Whether its progress is shown.
    pub(super) shown: bool,
    /// What changes beside the weights that learn, and belongs to a state.
    pub(super) beside: Vec<(String, Var)>,
    /// What else follows an update.
    pub(super) adjust: Option<&'a Adjust<'a>>,
}

/// Trains by `config`, watched by what `watch` makes of the step that it begins with and of the tally that was saved there. The weights are in the end those of the
/// best look, where looks told a best.
pub(super) fn teach<F: FeedForward, T: DeserializeOwned + Default, W: Watch>(
    what: FineTune<'_, F>,
    (sampler, config): (&Sampler<'_>, &SmkConfig),
    stage: Stage<'_>,
    saving: Option<&Saving<'_>>,
    watch: impl FnOnce(u64, T) -> Result<W>,
) -> Result<W> {
    if let (Some(_), Some(ranks)) = (what.anchor, sampler.ranks()) {
        let problem = format!("moves all weights, of which each of {} ranks has a part", ranks.ranks());
        return Err(Error::setting("anchor", problem, "leave it out, or use one rank"));
    }
    let mut state = TrainState::among(what.slots, &config.memory, sampler.ranks())?;
    state.beside = stage.beside;
    let tally = saving.map_or(Ok(None), |saving| saving.resume(&mut state))?;
    let text = TextGradient {
        model: what.model,
        sampler,
        pass: what.pass,
        learn: what.learn,
        open: what.open,
        memory: config.memory,
        interrupt: saving.map(|saving| &saving.checkpoints.interrupt),
    };
    let rate = |step: u64| config.schedule.rate(config.optimizer.rate, config.warmup, config.steps, step);
    let taken = std::cell::Cell::new(state.step);
    let adjust = |load: &[Tensor], finite: &Tensor| -> Result<()> {
        let at = rate(taken.get());
        taken.set(taken.get() + 1);
        stage.adjust.map_or(Ok(()), |adjust| adjust(load, finite))?;
        what.anchor.map_or(Ok(()), |anchor| anchor.pull(at, finite))
    };
    let rule = Rule {
        stage: stage.name,
        steps: config.steps,
        tokens: stage.shown.then(|| text.tokens()),
        optimizer: &config.optimizer,
        rate: &rate,
        batch: &|step| Some(sampler.describe(step)),
        adjust: Some(&adjust),
    };
    let mut watch = watch(state.step, tally.unwrap_or_default())?;
    train(&mut state, &rule, &mut |state| text.descend(state), saving, &mut watch)?;
    state.return_to_best()?;
    Ok(watch)
}

/// Experts of a layer, mean over steps and layers.
///
/// ```
/// use tinyonn::train::LearnersMean;
/// let share = |learners: &LearnersMean| learners.learnt / learners.competed;
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearnersMean {
    /// Those that learnt.
    pub learnt: f64,
    /// Those that competed.
    pub competed: f64,
}

/// Sums over steps and layers, and how many these were.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Sums {
    learnt: f64,
    competed: f64,
    count: u64,
}

struct Looking<'a> {
    tally: Sums,
    every: u64,
    look: &'a mut dyn FnMut(u64) -> Result<()>,
}

impl Watch for Looking<'_> {
    fn hear(&mut self, said: &Said) -> Result<()> {
        for (learnt, competed) in &said.learners {
            self.tally.learnt += learnt;
            self.tally.competed += competed;
            self.tally.count += 1;
        }
        Ok(())
    }

    fn look_every(&self) -> u64 {
        self.every
    }

    fn look(&mut self, state: &mut TrainState) -> Result<Verdict> {
        (self.look)(state.step)?;
        Ok(Verdict::GoOn)
    }

    fn tally(&self) -> serde_json::Value {
        serde_json::json!(self.tally)
    }
}
