//! The one training loop: pretraining, router fits by gradient and Surprise Min-K all run on it. A step computes a gradient, updates the
//! weights and reads the numbers of the step before.
//!
//! Each step copies to the host once: loss, norm, whether all was finite, loads and learners. While step n runs, the numbers of step n − 1 are
//! read, so that the device never waits for the host.
//!
//! ```
//! use candle_core::{Device, Var};
//! use serde_json::{Value, json};
//! use tinyonn::checkpoint::Role;
//! use tinyonn::train::{Adjust, Descend, Gradient, Memory, OptimizerConfig, Rule, Said, Slot, TrainState, Verdict, Watch, train};
//!
//! /// Hears the losses, and stops where they are small.
//! #[derive(Default)]
//! struct Heard(Vec<f64>);
//!
//! impl Watch for Heard {
//!     fn hear(&mut self, said: &Said) -> tinyonn::Result<()> {
//!         self.0.push(said.loss);
//!         Ok(())
//!     }
//!
//!     fn look_every(&self) -> u64 {
//!         10
//!     }
//!
//!     fn look(&mut self, _: &mut TrainState) -> tinyonn::Result<Verdict> {
//!         Ok(if self.0.last().is_some_and(|loss| *loss < 1e-3) { Verdict::Stop } else { Verdict::GoOn })
//!     }
//!
//!     fn tally(&self) -> Value {
//!         json!(self.0.len())
//!     }
//! }
//!
//! // The least of (w − 3)².
//! let w = Var::new(&[1f32], &Device::Cpu)?;
//! let mut state = TrainState::new(vec![Slot::new("w", Role::Expert, 0, w.clone())], &Memory::DEFAULT)?;
//! let descend: &mut Descend<'_> = &mut |state| {
//!     let off = (w.as_tensor() - 3.0)?;
//!     state.grads.add_with(&w, || &off * 2.0)?;
//!     Ok(Some(Gradient::of(off.sqr()?.sum_all()?.detach())))
//! };
//! let adjust: &Adjust<'_> = &|_, _| Ok(()); // nothing else follows an update
//! let rule = Rule {
//!     stage: ("example", "example.optimizer"), steps: 200, tokens: None, optimizer: &OptimizerConfig::DEFAULT,
//!     rate: &|_| 0.1, batch: &|_| None, adjust: Some(adjust),
//! };
//! let mut heard = Heard::default();
//! train(&mut state, &rule, descend, None, &mut heard)?;
//! assert!((w.to_vec1::<f32>()?[0] - 3.0).abs() < 0.2 && heard.tally() == json!(state.step));
//! # Ok::<(), tinyonn::Error>(())
//! ```

use candle_core::{DType, Tensor};
use serde_json::Value;

use super::{OptimizerConfig, Saving, TrainState};
use crate::interrupt::{Interrupt, Signal};
use crate::metrics::{Progress, Stage};
use crate::ops::host;
use crate::{Error, Result};

/// The numbers that come with the gradient of a step; the gradient itself lies in [`TrainState::grads`].
#[derive(Clone, Debug)]
pub struct Gradient {
    /// What is minimised, a scalar.
    pub loss: Tensor,
    /// Tokens that each expert of each layer was given, where layers route, `[N]` f32.
    pub load: Vec<Tensor>,
    /// By layer, the experts that learn and those that compete, `[N]` u8 each.
    pub learners: Vec<[Tensor; 2]>,
}

impl Gradient {
    /// Of a step that routes nothing: a loss alone.
    #[must_use]
    pub fn of(loss: Tensor) -> Self {
        Self { loss, load: Vec::new(), learners: Vec::new() }
    }
}

/// Computes the gradient of the state's next step into [`TrainState::grads`]. `None` if it was asked to stop and did: the step is then not
/// taken.
pub type Descend<'a> = dyn FnMut(&mut TrainState) -> Result<Option<Gradient>> + 'a;

/// What is done after an update, given the load of every layer and a tensor that is 1 while all was finite.
pub type Adjust<'a> = dyn Fn(&[Tensor], &Tensor) -> Result<()> + 'a;

/// What a training does in every step.
pub struct Rule<'a> {
    /// Its name in progress and errors, and the key of its optimizer in the settings.
    pub stage: (&'a str, &'a str),
    /// Steps in all.
    pub steps: u64,
    /// The tokens of a step, where progress is shown.
    pub tokens: Option<u64>,
    /// The optimizer.
    pub optimizer: &'a OptimizerConfig,
    /// The learning rate of a step.
    pub rate: &'a dyn Fn(u64) -> f64,
    /// What a step reads, in words, for the message about one that went wrong.
    pub batch: &'a dyn Fn(u64) -> Option<String>,
    /// What else follows an update.
    pub adjust: Option<&'a Adjust<'a>>,
}

/// What a step said.
#[derive(Clone, Debug)]
pub struct Said {
    /// Its number, from 0.
    pub step: u64,
    /// What is minimised: of text the mean cross-entropy of the scored tokens, in nats.
    pub loss: f64,
    /// The gradient's norm before clipping.
    pub norm: f64,
    /// The learning rate.
    pub rate: f64,
    /// Tokens that each expert of each layer was given, where layers route; `[layer][expert]`.
    pub load: Vec<Vec<f64>>,
    /// By layer: experts that learnt, and those that competed.
    pub learners: Vec<(f64, f64)>,
}

/// Whether a training goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    GoOn,
    /// It has its result.
    Stop,
}

/// Who watches a training.
pub trait Watch {
    /// Hears of every step in its order.
    ///
    /// # Errors
    /// What ends the training: a log that cannot be written.
    fn hear(&mut self, said: &Said) -> Result<()>;

    /// Steps between two looks at the weights; 0: there are none.
    fn look_every(&self) -> u64 {
        0
    }

    /// A look at the weights, every so many steps and after the last. By then every step before it has been heard, and the next has not begun.
    ///
    /// # Errors
    /// What ends the training.
    fn look(&mut self, state: &mut TrainState) -> Result<Verdict> {
        let _ = state;
        Ok(Verdict::GoOn)
    }

    /// What the watcher has summed up so far; it is saved with the state.
    fn tally(&self) -> Value {
        Value::Null
    }
}

/// Trains what `state` holds, by the gradients of `descend`, from `state.step` on.
///
/// With `saving` a state is written every so many steps, when the training is asked to stop, and of the last step before a number that
/// is not finite. Several ranks ([`TrainState::among`]) stop behind the same step, whichever of them was asked: a signal is told to all by the numbers
/// of a step.
///
/// # Errors
/// Constants that no optimizer can work with. A loss or gradient that is no finite number: the state is then that before the step.
/// [`Error::Interrupted`]. What the model, the disk or the watcher reports.
pub fn train(
    state: &mut TrainState,
    rule: &Rule<'_>,
    descend: &mut Descend<'_>,
    saving: Option<&Saving<'_>>,
    watch: &mut dyn Watch,
) -> Result<()> {
    let (name, key) = rule.stage;
    rule.optimizer.check(key)?;
    let rate_key = format!("{key}.rate");
    let _heeded = saving.map(|saving| saving.checkpoints.interrupt.heed());
    let mut ears = Ears {
        rule,
        rate_key: &rate_key,
        saving,
        began: state.step,
        progress: rule.tokens.map(|_| Progress::resumed(state.step, rule.steps, name)),
        before: None,
        asked: None,
    };
    refuse_other_steps(state)?;
    let looks = watch.look_every();
    while state.step < rule.steps {
        let unread = step(state, rule, descend, saving.map(|saving| &saving.checkpoints.interrupt))?;
        let taken = unread.is_some();
        if let Some(unread) = unread.and_then(|unread| ears.before.replace(unread)) {
            ears.hear(&unread, state, watch)?;
        }
        let ended = state.step == rule.steps;
        let due = |every: u64| state.step.is_multiple_of(every.max(1));
        let look = looks > 0 && taken && (ended || due(looks));
        let asked = match state.ranks() {
            Some(_) => ears.asked,
            None => saving.and_then(|saving| saving.checkpoints.interrupt.requested()),
        };
        let save = saving.filter(|saving| asked.is_some() || (!ended && due(saving.checkpoints.every)));
        // Before a look or a save, the last step must have been heard.
        if (ended || look || save.is_some())
            && let Some(unread) = ears.before.take()
        {
            ears.hear(&unread, state, watch)?;
        }
        let verdict = if look { watch.look(state)? } else { Verdict::GoOn };
        if let Some(saving) = save {
            let path = saving.save(state, watch.tally())?;
            if let Some(signal) = asked {
                let saved = format!("step {} of {} of {name} is saved in {}", state.step, rule.steps, path.display());
                return Err(Error::interrupted(signal, saved, "the same command goes on from there"));
            }
        }
        if verdict == Verdict::Stop {
            break;
        }
    }
    state.gather()?;
    state.meet()?;
    if let Some(progress) = &ears.progress {
        progress.finish();
    }
    Ok(())
}

/// Refuses ranks that do not begin with the same step.
fn refuse_other_steps(state: &TrainState) -> Result<()> {
    let Some(ranks) = state.ranks() else { return Ok(()) };
    let all = ranks.all_gather(&Tensor::new(&[state.step as f64], state.finite().device())?)?;
    let steps = host::read(&[&all])?.concat();
    match steps.iter().position(|step| *step != steps[0]) {
        None => Ok(()),
        Some(rank) => {
            let problem = format!("goes on from step {}, and rank 0 from step {}", steps[rank], steps[0]);
            Err(Error::rank(rank, problem, "give all ranks one --out on a file system that their hosts share"))
        }
    }
}

/// Reads the steps that were taken, one step late.
struct Ears<'a> {
    rule: &'a Rule<'a>,
    /// Of the optimizer, in the settings.
    rate_key: &'a str,
    saving: Option<&'a Saving<'a>>,
    /// The step that the training began with.
    began: u64,
    progress: Option<Progress>,
    /// Taken and not read yet.
    before: Option<Unread>,
    /// The signal that one of several ranks was sent.
    asked: Option<Signal>,
}

impl Ears<'_> {
    /// Reads a step. If its numbers are not finite, the state is still the one before that step; it is saved, unless the training began with it.
    fn hear(&mut self, unread: &Unread, state: &mut TrainState, watch: &mut dyn Watch) -> Result<()> {
        let (said, asked) = unread.read()?;
        self.asked = self.asked.or(asked);
        let Err(error) = self.check(&said) else {
            if let Some((progress, tokens)) = self.progress.as_ref().zip(self.rule.tokens) {
                let shown = [("loss", said.loss)];
                progress.update(said.step + 1, if said.step.is_multiple_of(10) { &shown } else { &[] }, tokens);
            }
            return watch.hear(&said);
        };
        if let Some(saving) = self.saving.filter(|_| said.step > self.began) {
            state.step = said.step;
            // The error to report is the first one, whether or not this can be saved.
            let _ = saving.save(state, watch.tally());
        }
        Err(error)
    }

    fn check(&self, said: &Said) -> Result<()> {
        let stage = Stage { name: self.rule.stage.0, rate_key: self.rate_key, rate: self.rule.optimizer.rate };
        let batch = || (self.rule.batch)(said.step);
        stage.check("gradient's norm", said.norm, said.step, batch)?;
        stage.check("loss", said.loss, said.step, batch)
    }
}

/// What a step said, still on the device.
struct Unread {
    step: u64,
    rate: f64,
    norm: Tensor,
    gradient: Gradient,
    /// By signal, how many of several ranks were sent it.
    signals: Option<Tensor>,
}

/// In the order in which ranks tell each other of them.
const SIGNALS: [Signal; 3] = [Signal::Interrupt, Signal::Terminate, Signal::Requeue];

impl Unread {
    fn read(&self) -> Result<(Said, Option<Signal>)> {
        let Gradient { loss, load, learners } = &self.gradient;
        let learners = learners.iter().flatten();
        let numbers = [loss, &self.norm].into_iter().chain(&self.signals);
        let tensors: Vec<&Tensor> = numbers.chain(load).chain(learners).collect();
        let mut values = host::read(&tensors)?.into_iter();
        let mut number = || values.next().and_then(|values| values.first().copied()).unwrap_or(f64::NAN);
        let (loss, norm) = (number(), number());
        let sent = self.signals.as_ref().and_then(|_| values.next()).unwrap_or_default();
        let asked = SIGNALS.into_iter().zip(sent).find(|(_, ranks)| *ranks > 0.0).map(|(signal, _)| signal);
        let load: Vec<Vec<f64>> = values.by_ref().take(load.len()).collect();
        let sums: Vec<f64> = values.map(|marks| marks.iter().sum()).collect();
        let learners = sums.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        Ok((Said { step: self.step, loss, norm, rate: self.rate, load, learners }, asked))
    }
}

fn step(
    state: &mut TrainState,
    rule: &Rule<'_>,
    descend: &mut Descend<'_>,
    interrupt: Option<&Interrupt>,
) -> Result<Option<Unread>> {
    let (number, rate) = (state.step, (rule.rate)(state.step));
    let Some(mut gradient) = descend(state)? else {
        state.grads.begin();
        return Ok(None);
    };
    gradient.loss = gradient.loss.to_dtype(DType::F64)?;
    let signals = add_up(state, &mut gradient, interrupt.and_then(Interrupt::requested))?;
    state.require_finite(&gradient.loss)?;
    let norm = state.update(rule.optimizer, rate)?;
    if let Some(adjust) = rule.adjust {
        adjust(&gradient.load, state.finite())?;
    }
    Ok(Some(Unread { step: number, rate, norm, gradient, signals }))
}

/// Adds up over several ranks what each said of its part of a step, and which of them were asked to stop, in one sum.
fn add_up(state: &TrainState, gradient: &mut Gradient, asked: Option<Signal>) -> Result<Option<Tensor>> {
    let device = state.finite().device();
    let Some(ranks) = state.ranks() else { return Ok(None) };
    let own = Tensor::new(SIGNALS.map(|signal| f64::from(u8::from(asked == Some(signal)))).as_slice(), device)?;
    let mut parts = vec![own, gradient.loss.reshape(1)?];
    for load in &gradient.load {
        parts.push(load.to_dtype(DType::F64)?);
    }
    let all = ranks.all_reduce(&Tensor::cat(&parts, 0)?)?;
    let mut from = SIGNALS.len() + 1;
    gradient.loss = all.narrow(0, SIGNALS.len(), 1)?.reshape(())?;
    for load in &mut gradient.load {
        let experts = load.dim(0)?;
        *load = all.narrow(0, from, experts)?.to_dtype(load.dtype())?;
        from += experts;
    }
    Ok(Some(all.narrow(0, 0, SIGNALS.len())?))
}
