//! The one training loop: forward, backward, update, and a look at what the step before said.
//!
//! A step reads the host once: loss, norm, whether all was finite, loads and learners in one copy; and while step n runs, it is step n − 1's
//! that are read, so that the device never waits for the host.

use candle_core::{DType, Tensor};

use serde::Serialize;

use super::{AdamwConfig, Saving, TrainState};
use crate::data::Sampler;
use crate::metrics::{Progress, Stage};
use crate::ops::host;
use crate::qwen3::{Ask, FeedForward, Learn, Pass, Qwen3ForCausalLm, Trace};
use crate::{Error, Result};

/// What follows an update: given what the layers said of the step, and 1 while all was finite.
pub type Adjust<'a> = dyn Fn(&[Trace], &Tensor) -> Result<()> + 'a;

/// What a training does in every step.
pub struct Rule<'a> {
    /// Its name in progress and errors, and the key of its rate.
    pub stage: (&'static str, &'static str),
    /// Steps in all.
    pub steps: u64,
    /// How text is read; the tasks of a batch are added.
    pub pass: Pass,
    /// Who learns.
    pub learn: Learn,
    /// `surprise = exact`: of each layer's experts the so many whose whole gradient is least learn.
    pub exact: Option<usize>,
    /// The first positions of every row, which are read and not scored: what a shared decision reads.
    pub open: usize,
    /// The optimizer.
    pub adamw: AdamwConfig,
    /// The learning rate of a step.
    pub rate: &'a dyn Fn(u64) -> f64,
    /// What else follows an update: given what the layers said of the step, and 1 while all was finite.
    pub adjust: Option<&'a Adjust<'a>>,
}

/// What a step said.
#[derive(Clone, Debug)]
pub struct Said {
    /// Its number, from 0.
    pub step: u64,
    /// The mean cross-entropy of the scored tokens, in nats.
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

/// Trains `model`, whose weights `state` holds, on the sampler's batches from `state.step` on; `after` hears of every step in its order
/// and sums it up in `tally`, which is saved with the state.
///
/// With `saving` a state is written every so many steps, when the training is asked to stop, and of the last step before a number that
/// is not finite.
///
/// # Errors
/// A loss or gradient that is no finite number: the state is then that before the step. [`Error::Interrupted`]. What the model, the disk
/// or `after` reports.
pub fn train<F: FeedForward, T: Serialize>(
    model: &Qwen3ForCausalLm<F>,
    state: &mut TrainState,
    (sampler, rule): (&Sampler<'_>, &Rule<'_>),
    saving: Option<&Saving<'_>>,
    tally: &mut T,
    mut after: impl FnMut(&mut T, &Said) -> Result<()>,
) -> Result<()> {
    let (name, rate_key) = rule.stage;
    let _heeded = saving.map(|saving| saving.checkpoints.interrupt.heed());
    let progress = Progress::resumed(state.step, rule.steps, name);
    let tokens = (sampler.batch() * sampler.length()) as u64;
    let mut hear = |tally: &mut T, said: &Said| -> Result<()> {
        let stage = Stage { name, rate_key, rate: rule.adamw.rate };
        let batch = || Some(sampler.describe(said.step));
        stage.check_batch("gradient's norm", said.norm, said.step, batch)?;
        stage.check_batch("loss", said.loss, said.step, batch)?;
        let shown = [("loss", said.loss)];
        progress.update(said.step + 1, if said.step.is_multiple_of(10) { &shown } else { &[] }, tokens);
        after(tally, said)
    };
    let began = state.step;
    let mut before: Option<Unread> = None;
    while state.step < rule.steps {
        let unread = step(model, state, sampler, rule)?;
        if let Some(unread) = before.replace(unread) {
            heard_or_saved((state, began), saving, tally, &unread, &mut hear)?;
        }
        if state.step == rule.steps
            && let Some(unread) = before.take()
        {
            heard_or_saved((state, began), saving, tally, &unread, &mut hear)?;
        }
        let asked = saving.and_then(|saving| saving.checkpoints.interrupt.requested());
        let regular = |every: u64| state.step < rule.steps && state.step.is_multiple_of(every.max(1));
        if let Some(saving) = saving.filter(|saving| asked.is_some() || regular(saving.checkpoints.every)) {
            // What is saved has been heard of to its last step.
            if let Some(unread) = before.take() {
                heard_or_saved((state, began), Some(saving), tally, &unread, &mut hear)?;
            }
            let path = saving.save(state, tally)?;
            if let Some(signal) = asked {
                let saved = format!("step {} of {} of {name} is saved in {}", state.step, rule.steps, path.display());
                return Err(Error::interrupted(signal, saved, "the same command goes on from there"));
            }
        }
    }
    progress.finish();
    Ok(())
}

/// Hears of a step; behind one whose numbers are not finite, the state is that before it, and is saved unless the training began with it.
fn heard_or_saved<T: Serialize>(
    (state, began): (&mut TrainState, u64),
    saving: Option<&Saving<'_>>,
    tally: &mut T,
    unread: &Unread,
    hear: &mut impl FnMut(&mut T, &Said) -> Result<()>,
) -> Result<()> {
    let said = unread.read()?;
    let heard = hear(tally, &said);
    let finite = said.loss.is_finite() && said.norm.is_finite();
    if let Some(saving) = saving.filter(|_| !finite && said.step > began) {
        state.step = said.step;
        // The error to report is the first one.
        return heard.and(saving.save(state, tally).map(drop));
    }
    heard
}

/// What a step said, still on the device.
struct Unread {
    step: u64,
    rate: f64,
    loss: Tensor,
    norm: Tensor,
    load: Vec<Tensor>,
    /// Those that learn and those that compete, by layer.
    learners: Vec<[Tensor; 2]>,
}

impl Unread {
    fn read(&self) -> Result<Said> {
        let learners = self.learners.iter().flatten();
        let tensors: Vec<&Tensor> = [&self.loss, &self.norm].into_iter().chain(&self.load).chain(learners).collect();
        let mut values = host::read(&tensors)?.into_iter();
        let mut number = || values.next().and_then(|values| values.first().copied()).unwrap_or(f64::NAN);
        let (loss, norm) = (number(), number());
        let load: Vec<Vec<f64>> = values.by_ref().take(self.load.len()).collect();
        let sums: Vec<f64> = values.map(|marks| marks.iter().sum()).collect();
        let learners = sums.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        Ok(Said { step: self.step, loss, norm, rate: self.rate, load, learners })
    }
}

fn step<F: FeedForward>(
    model: &Qwen3ForCausalLm<F>,
    state: &mut TrainState,
    sampler: &Sampler<'_>,
    rule: &Rule<'_>,
) -> Result<Unread> {
    let (number, rate) = (state.step, (rule.rate)(state.step));
    let batch = sampler.batch_at(number)?;
    let pass = Pass {
        training: rule.learn.routers.then(|| sampler.seed_at(number)),
        ask: Ask { load: true, ..Ask::default() },
        ..rule.pass.of_tasks(&batch.tasks).kept()
    };
    let forward = model.forward(&batch.inputs, &batch.targets, &pass)?;
    let (b, t) = batch.targets.dims2()?;
    let open = rule.open.min(t - 1);
    let loss = forward.losses.narrow(1, open, t - open)?.mean_all()?;
    let share = 1.0 / (b * (t - open)) as f64;
    let scored = Tensor::full(share as f32, (b, t - open), forward.losses.device())?;
    let dlosses = if open == 0 { scored } else { scored.pad_with_zeros(1, open, 0)? };
    let answers = model.backward(forward.saved, &dlosses, &rule.learn, &mut state.grads)?;
    let load: Vec<Tensor> =
        forward.traces.iter().filter_map(|trace| trace.load.as_ref().map(|load| load.tokens_n.clone())).collect();
    let mut choices: Vec<_> = answers.into_iter().filter_map(|answers| answers.min_k).collect();
    if let Some(k) = rule.exact {
        for (layer, tokens_n) in model.model().layers().iter().zip(&load) {
            choices.extend(layer.mlp().keep_least(k, tokens_n, &mut state.grads)?);
        }
    }
    state.require_finite(&loss)?;
    let norm = state.update(&rule.adamw, rate)?;
    if let Some(adjust) = rule.adjust {
        adjust(&forward.traces, state.finite())?;
    }
    let learners = choices.into_iter().map(|choice| [choice.learn_n, choice.active_n]).collect();
    Ok(Unread { step: number, rate, loss: loss.to_dtype(DType::F64)?, norm, load, learners })
}
