//! What routers see: the inputs of every layer's feed-forward in the pseudo-dense pass, sampled, with their tasks.
//!
//! Routers are fitted at the unit they decide for, so two kinds of input are kept: of single tokens, and the mean over each
//! sequence's first tokens, or over each of its segments (DESIGN §1).

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Tensor};

use super::ScanOptions;
use crate::data::{Batch, NO_TARGET, TokenSet};
use crate::qwen3::{FeedForward, Observer, Qwen3ForCausalLm, RouteCtx};
use crate::{Error, Result};

/// Inputs of one layer with their tasks.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// Row-major `[count, d]`.
    pub values: Vec<f32>,
    /// The task of each row.
    pub tasks: Vec<u32>,
}

impl Samples {
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
    stride: usize,
    state: Mutex<State>,
}

struct State {
    task: u32,
    /// Positions read before this batch.
    read: u64,
    counted: Vec<bool>,
    tokens: Vec<Samples>,
    sequences: Vec<Samples>,
}

impl RouterInputs {
    /// For `layers` layers: one token in `stride`, and the mean of every window of every sequence.
    #[must_use]
    pub fn new(layers: usize, stride: usize, window: Window) -> Self {
        let state = State {
            task: 0,
            read: 0,
            counted: Vec::new(),
            tokens: vec![Samples::default(); layers],
            sequences: vec![Samples::default(); layers],
        };
        Self { window, stride: stride.max(1), state: Mutex::new(state) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whose text comes next.
    pub(crate) fn begin(&self, task: usize, batch: &Batch) -> Result<()> {
        let mut state = self.lock();
        state.task = task as u32;
        state.read += state.counted.len() as u64;
        state.counted =
            batch.targets.flatten_all()?.to_vec1::<u32>()?.iter().map(|target| *target != NO_TARGET).collect();
        Ok(())
    }

    /// Reads `set` through `model`, all active, forward only.
    ///
    /// # Errors
    /// Whatever the model reports.
    pub fn collect<F: FeedForward>(
        self: &Arc<Self>,
        model: &Qwen3ForCausalLm<F>,
        set: &TokenSet,
        options: ScanOptions,
        device: &candle_core::Device,
    ) -> Result<()> {
        let ctx = RouteCtx { observer: Some(self.clone()), ..RouteCtx::all() };
        let set = &options.part(set);
        for task in 0..set.tasks.len() {
            for batch in set.batches_of_task(task, options.length, options.batch, device)? {
                let batch = batch?;
                self.begin(task, &batch)?;
                model.model().forward(&batch.inputs, &ctx, None)?;
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
        for row in 0..b {
            // What was not read whole decides nothing.
            for (window, means) in means.iter().enumerate() {
                let first = row * t + window * length;
                if state.counted[first..first + length].iter().all(|counted| *counted) {
                    state.sequences[layer].values.extend_from_slice(&means[row * d..][..d]);
                    state.sequences[layer].tasks.push(state.task);
                }
            }
            let read = state.read;
            let kept = |at: &usize| sampled(read + *at as u64, self.stride) && state.counted[*at];
            for at in (row * t..(row + 1) * t).filter(kept) {
                state.tokens[layer].values.extend_from_slice(&values[at * d..][..d]);
                state.tokens[layer].tasks.push(state.task);
            }
        }
        Ok(())
    }
}

/// Whether the n-th position belongs to a sample of one in `stride`. Multiples of the golden ratio modulo 1 are spread evenly
/// whatever the length of a row; every `stride`-th position would be the same few of each row.
fn sampled(n: u64, stride: usize) -> bool {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) <= u64::MAX / stride as u64
}
