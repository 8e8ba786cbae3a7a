//! What routers see: the inputs of every layer's feed-forward, sampled, with their tasks and documents; in the pseudo-dense pass, or in
//! a routed one.
//!
//! Routers are fitted at the unit they decide for, so two kinds of input are kept: of single tokens, and the mean over each
//! sequence's first tokens, or over each of its segments (DESIGN §1).

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Tensor};

use super::ScanOptions;
use crate::data::{Batch, NO_DOCUMENT, NO_TARGET, TokenSet};
use crate::qwen3::{FeedForward, Observer, Qwen3ForCausalLm, RouteCtx};
use crate::{Error, Result};

/// Inputs of one layer with their tasks.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// Row-major `[count, d]`.
    pub values: Vec<f32>,
    /// The task of each row.
    pub tasks: Vec<u32>,
    /// The document of each row, an index into [`TokenSet::documents`]: of the token that its position predicts; of a window's mean that
    /// of its first position. Rows of one document are no independent draws: intervals are taken over documents.
    pub documents: Vec<u32>,
}

impl Samples {
    fn push(&mut self, row: &[f32], task: u32, document: u32) {
        self.values.extend_from_slice(row);
        self.tasks.push(task);
        self.documents.push(document);
    }

    /// Rows as a tensor `[count, d]`.
    ///
    /// # Errors
    /// No rows.
    pub fn tensor(&self, device: &candle_core::Device) -> Result<Tensor> {
        if self.tasks.is_empty() {
            return Err(Error::setting("inputs", "none were collected", "scan at least one sequence of each task"));
        }
        let width = self.values.len() / self.tasks.len();
        Ok(Tensor::from_vec(self.values.clone(), (self.tasks.len(), width), device)?)
    }
}

/// The tokens of a sequence that a shared decision reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The first so many, or all of a shorter one.
    First(usize),
    /// Each segment of so many.
    Every(usize),
}

/// An observer that keeps router inputs.
pub struct RouterInputs {
    window: Window,
    state: Mutex<State>,
}

struct State {
    task: u32,
    documents: Vec<u32>,
    positions: Positions,
    tokens: Vec<Samples>,
    sequences: Vec<Samples>,
}

impl RouterInputs {
    /// For `layers` layers: one token in `stride`, and the mean of every window of every sequence.
    #[must_use]
    pub fn new(layers: usize, stride: usize, window: Window) -> Self {
        let state = State {
            task: 0,
            documents: Vec::new(),
            positions: Positions::new(stride),
            tokens: vec![Samples::default(); layers],
            sequences: vec![Samples::default(); layers],
        };
        Self { window, state: Mutex::new(state) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whose text comes next.
    pub(crate) fn begin(&self, task: usize, batch: &Batch) -> Result<()> {
        let mut state = self.lock();
        state.task = task as u32;
        state.documents.clone_from(&batch.documents);
        state.positions.begin(batch)
    }

    /// Reads `set` through `model` under `ctx`, forward only: all active ([`RouteCtx::all`]), or as routers see it once they route
    /// ([`RouteCtx::routed`]). Each sequence's task is added to the context, and this observer takes the place of its own.
    ///
    /// # Errors
    /// Whatever the model reports.
    pub fn collect<F: FeedForward>(
        self: &Arc<Self>,
        model: &Qwen3ForCausalLm<F>,
        set: &TokenSet,
        options: ScanOptions,
        ctx: &RouteCtx,
        device: &candle_core::Device,
    ) -> Result<()> {
        let set = &options.part(set);
        for task in 0..set.tasks.len() {
            for batch in set.batches_of_task(task, options.length, options.batch, device)? {
                let batch = batch?;
                self.begin(task, &batch)?;
                let tasks = Some(Arc::from(batch.tasks.as_slice()));
                model.hidden(&batch.inputs, &RouteCtx { tasks, observer: Some(self.clone()), ..ctx.clone() })?;
            }
        }
        Ok(())
    }

    /// Single tokens, by layer.
    #[must_use]
    pub fn tokens(&self) -> Vec<Samples> {
        self.lock().tokens.clone()
    }

    /// Means over the windows of sequences, by layer.
    #[must_use]
    pub fn sequences(&self) -> Vec<Samples> {
        self.lock().sequences.clone()
    }
}

impl Observer for RouterInputs {
    fn feed_forward_input(&self, layer: usize, x: &Tensor) -> Result<()> {
        let (b, t, d) = x.dims3()?;
        let x = x.detach().to_dtype(DType::F32)?;
        let (length, windows) = match self.window {
            Window::First(length) => (length.clamp(1, t), 1),
            Window::Every(length) => (length.max(1), t / length.max(1)),
        };
        let mean = |window: usize| x.narrow(1, window * length, length)?.mean(1)?.flatten_all()?.to_vec1::<f32>();
        let means = (0..windows).map(mean).collect::<candle_core::Result<Vec<_>>>()?;
        let values = x.flatten_all()?.to_vec1::<f32>()?;
        let mut guard = self.lock();
        let state = &mut *guard;
        let (task, documents) = (state.task, &state.documents);
        for row in 0..b {
            // What was not read whole decides nothing.
            for (window, means) in means.iter().enumerate() {
                let first = row * t + window * length;
                let positions = first..first + length;
                // An end that was put between two documents has no target, and is no padding.
                let read = |at: usize| state.positions.counted[at] || documents[at] == NO_DOCUMENT;
                let document = documents[positions.clone()].iter().find(|document| **document != NO_DOCUMENT);
                if let Some(document) = document.filter(|_| positions.clone().all(read)) {
                    state.sequences[layer].push(&means[row * d..][..d], task, *document);
                }
            }
        }
        for at in state.positions.kept() {
            state.tokens[layer].push(&values[at * d..][..d], task, documents[at]);
        }
        Ok(())
    }
}

/// The positions of a pass over a text that belong to its sample: equal for all who sample the same pass.
pub(super) struct Positions {
    stride: usize,
    /// Positions read before this batch.
    read: u64,
    /// Those of this batch that have a target.
    counted: Vec<bool>,
}

impl Positions {
    /// One in `stride`.
    pub(super) fn new(stride: usize) -> Self {
        Self { stride: stride.max(1), read: 0, counted: Vec::new() }
    }

    /// The next batch.
    pub(super) fn begin(&mut self, batch: &Batch) -> Result<()> {
        self.read += self.counted.len() as u64;
        let targets = batch.targets.flatten_all()?.to_vec1::<u32>()?;
        self.counted = targets.iter().map(|target| *target != NO_TARGET).collect();
        Ok(())
    }

    /// Those of this batch, ascending.
    pub(super) fn kept(&self) -> impl Iterator<Item = usize> {
        let kept = |at: &usize| self.counted[*at] && sampled(self.read + *at as u64, self.stride);
        (0..self.counted.len()).filter(kept)
    }
}

/// Whether the n-th position belongs to a sample of one in `stride`. Multiples of the golden ratio modulo 1 are spread evenly
/// whatever the length of a row; every `stride`-th position would be the same few of each row.
fn sampled(n: u64, stride: usize) -> bool {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) <= u64::MAX / stride as u64
}

/// At most `most` of `count` rows, evenly spread.
pub(crate) fn spread(count: usize, most: usize) -> impl Iterator<Item = usize> {
    let kept = count.min(most);
    (0..kept).map(move |at| at * count / kept)
}
