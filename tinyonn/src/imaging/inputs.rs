//! What routers see: the inputs of every layer's feed-forward, sampled, with their tasks and documents; in the pseudo-dense pass, or in
//! a routed one.
//!
//! Routers are fitted at the unit they decide for, so two kinds of input are kept: of single tokens, and the mean over each
//! sequence's first tokens, or over each of its segments (DESIGN §1). Of a wide model with many layers memory holds too few of them to find a
//! projection by: then more are read than kept, and how they scatter is summed up on the way ([`ClassScatter`]), so that
//! nothing grows with the text.

use std::sync::Arc;

use candle_core::Tensor;

use super::{ScanOptions, Shard};
use crate::data::{Batch, NO_DOCUMENT, TokenSet};
use crate::decoder::{Ask, CausalLm, FeedForward, InputRows, Pass, Trace};
use crate::ops::{ClassScatter, Weigh, host};
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
    /// How more tokens than these scatter by task, where it was summed up: of tokens alone, weighed for one kind of projection; the other kind, and
    /// routers that decide by windows, are found from the rows themselves.
    pub scatter: Option<Arc<ClassScatter>>,
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

/// Which inputs are kept, and of how many more the scatter is summed up.
#[derive(Clone, Copy, Debug)]
pub struct Thinning {
    /// One token in so many is kept.
    pub tokens: usize,
    /// What a shared decision reads.
    pub window: Window,
    /// One window in so many is kept, as the mean of its tokens.
    pub windows: usize,
    /// Of one token in so many, the kept ones among them, the scatter by task is summed up; `None`: the kept ones say all.
    pub scatter: Option<(usize, Weigh)>,
}

impl Thinning {
    /// One token in `tokens` and every window, and no scatter of more.
    #[must_use]
    pub fn one_in(tokens: usize, window: Window) -> Self {
        Self { tokens, window, windows: 1, scatter: None }
    }
}

/// What routers saw of a text, as it is read.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::data::{TaskTokens, TokenSet};
/// use tinyonn::decoder::{CausalLm, Pass};
/// use tinyonn::imaging::inputs::{Samples, Thinning, Window};
/// use tinyonn::imaging::{RouterInputs, ScanOptions};
/// use tinyonn::phases::RunConfig;
///
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?;
/// let task = TaskTokens { name: "t".into(), tokens: (0..64).collect(), documents: vec![0; 64] };
/// let set = TokenSet { tasks: vec![task], documents: vec!["t/a".into()], eos: 0 };
///
/// // Every token, and of each sequence the mean over its first eight.
/// let mut inputs = RouterInputs::new(cfg.num_hidden_layers, Thinning::one_in(1, Window::First(8)));
/// let options = ScanOptions { length: 16, batch: 2, tokens_per_task: 64 };
/// inputs.collect(&model, &set, options, &Pass::all(), &Device::Cpu)?;
/// let [tokens, windows]: [Vec<Samples>; 2] = inputs.into_samples();
/// assert_eq!((tokens.len(), tokens[0].tensor(&Device::Cpu)?.dims()), (4, &[63, cfg.hidden_size][..]));
/// assert_eq!(windows[0].tasks, [0, 0, 0, 0]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug)]
pub struct RouterInputs {
    thinning: Thinning,
    /// Of the tokens that are asked for.
    positions: Positions,
    /// Windows read before.
    windows: u64,
    /// Batches begun before the next one.
    begun: u32,
    /// What the rows of the batch at hand are, and then of those that lie on the device.
    next: Option<BatchRows>,
    waiting: Vec<Waiting>,
    tokens: Vec<Samples>,
    sequences: Vec<Samples>,
    /// The batch of each row: of tokens, and of windows' means.
    batches: [Vec<u32>; 2],
    scatter: Vec<ClassScatter>,
}

/// Rows of a shard of a text, each with the batch that it was read in, of all batches of the text: what puts the rows of several shards in order.
pub(crate) struct ShardRows {
    /// By layer.
    pub(crate) samples: Vec<Samples>,
    /// The batch of each row, ascending.
    pub(crate) batches: Vec<u32>,
}

/// Task and document of each row of a batch that is kept: of tokens, and of windows' means.
#[derive(Debug)]
struct BatchRows {
    task: u32,
    batch: u32,
    /// (row of those asked for, document).
    tokens: Vec<(u32, u32)>,
    /// (row of the means, document).
    windows: Vec<(u32, u32)>,
}

/// Rows of every layer that are still on the device.
#[derive(Debug)]
struct Waiting {
    rows: BatchRows,
    tokens: Vec<Option<Tensor>>,
    means: Vec<Option<Tensor>>,
}

impl RouterInputs {
    /// Of `layers` layers.
    #[must_use]
    pub fn new(layers: usize, thinning: Thinning) -> Self {
        let asked = thinning.scatter.map_or(thinning.tokens, |(tokens, _)| tokens.min(thinning.tokens));
        Self {
            thinning,
            positions: Positions::new(asked),
            windows: 0,
            begun: 0,
            next: None,
            waiting: Vec::new(),
            tokens: vec![Samples::default(); layers],
            sequences: vec![Samples::default(); layers],
            batches: Default::default(),
            scatter: thinning.scatter.map_or(Vec::new(), |(_, weigh)| vec![ClassScatter::new(weigh); layers]),
        }
    }

    /// Whether it sums up how more rows scatter than it keeps.
    pub(crate) fn sums_scatter(&self) -> bool {
        !self.scatter.is_empty()
    }

    /// What to ask of a pass over `batch`, text of `task`.
    pub(crate) fn begin(&mut self, task: usize, batch: &Batch) -> Result<InputRows> {
        self.positions.begin(batch);
        let (b, t) = batch.inputs.dims2()?;
        let (length, count) = match self.thinning.window {
            Window::First(length) => (length.clamp(1, t), 1),
            Window::Every(length) => (length.max(1), t / length.max(1)),
        };
        let kept: Vec<u32> = self.positions.kept().map(|at| at as u32).collect();
        let mut windows = Vec::new();
        for (row, window) in (0..b).flat_map(|row| (0..count).map(move |window| (row, window))) {
            let first = row * t + window * length;
            let positions = first..first + length;
            // An end that was put between two documents has no target, and is no padding. What was not read whole decides nothing.
            let read = |at: usize| batch.counted[at] || batch.documents[at] == NO_DOCUMENT;
            let document = batch.documents[positions.clone()].iter().find(|document| **document != NO_DOCUMENT);
            if let Some(document) = document.filter(|_| positions.clone().all(read)) {
                if sampled(self.windows, self.thinning.windows) {
                    windows.push(((row * count + window) as u32, *document));
                }
                self.windows += 1;
            }
        }
        let tokens =
            kept.iter().enumerate().filter(|(_, at)| self.positions.belongs(**at as usize, self.thinning.tokens));
        let tokens = tokens.map(|(row, at)| (row as u32, batch.documents[*at as usize])).collect();
        let rows = kept.len();
        self.next = Some(BatchRows { task: task as u32, batch: self.begun, tokens, windows });
        self.begun += 1;
        Ok(InputRows { rows: Tensor::from_vec(kept, rows, batch.inputs.device())?, windows: (count, length) })
    }

    /// What a pass that was asked so says; it stays where it is until [`read`](Self::read).
    ///
    /// # Errors
    /// What the device reports.
    pub(crate) fn add(&mut self, traces: &[Trace]) -> Result<()> {
        let Some(rows) = self.next.take() else { return Ok(()) };
        for (scatter, trace) in self.scatter.iter_mut().zip(traces) {
            if let Some(x_nd) = &trace.inputs {
                scatter.push(x_nd, rows.task as usize)?;
            }
        }
        let kept = |x_nd: &Tensor, rows: &[(u32, u32)]| -> Result<Option<Tensor>> {
            if rows.len() == x_nd.dim(0)? {
                return Ok(Some(x_nd.clone()));
            }
            let rows: Vec<u32> = rows.iter().map(|(row, _)| *row).collect();
            let rows = (!rows.is_empty()).then(|| Tensor::new(rows, x_nd.device())).transpose()?;
            Ok(rows.map(|rows| x_nd.index_select(&rows, 0)).transpose()?)
        };
        let (mut tokens, mut means) = (Vec::new(), Vec::new());
        for trace in traces {
            tokens.push(match &trace.inputs {
                Some(x_nd) => kept(x_nd, &rows.tokens)?,
                None => None,
            });
            means.push(match &trace.means {
                Some(means) => kept(&means.flatten_to(1)?, &rows.windows)?,
                None => None,
            });
        }
        self.waiting.push(Waiting { rows, tokens, means });
        Ok(())
    }

    /// Copies to the host what was added since the last time, which is the rest of a task: all rows by one copy. Where scatter is summed up, each layer takes
    /// three more a task: the mean of its first rows, its sums and its products.
    pub(crate) fn read(&mut self) -> Result<()> {
        self.scatter.iter_mut().try_for_each(ClassScatter::close)?;
        let waiting = std::mem::take(&mut self.waiting);
        let kept = waiting.iter().flat_map(|waiting| waiting.tokens.iter().chain(&waiting.means).flatten());
        let flat = kept.map(Tensor::flatten_all).collect::<candle_core::Result<Vec<_>>>()?;
        if flat.is_empty() {
            return Ok(());
        }
        let values = host::values(&Tensor::cat(&flat, 0)?)?;
        let mut rest = values.as_slice();
        let mut take = |tensor: &Tensor| {
            let (own, others) = rest.split_at(tensor.elem_count());
            rest = others;
            own
        };
        for Waiting { rows, tokens, means } in &waiting {
            for (batches, rows_of) in self.batches.iter_mut().zip([&rows.tokens, &rows.windows]) {
                batches.extend(std::iter::repeat_n(rows.batch, rows_of.len()));
            }
            for (samples, tensor) in self.tokens.iter_mut().zip(tokens) {
                let Some(tensor) = tensor else { continue };
                let width = tensor.dim(1)?;
                for (row, (_, document)) in take(tensor).chunks_exact(width).zip(&rows.tokens) {
                    samples.push(row, rows.task, *document);
                }
            }
            for (samples, tensor) in self.sequences.iter_mut().zip(means) {
                let Some(tensor) = tensor else { continue };
                let width = tensor.dim(1)?;
                for (row, (_, document)) in take(tensor).chunks_exact(width).zip(&rows.windows) {
                    samples.push(row, rows.task, *document);
                }
            }
        }
        Ok(())
    }

    /// Reads `set` through `model` under `pass`, forward only: all active ([`Pass::all`]), or as routers see it once they route
    /// ([`Pass::routed`]). Each sequence's task is added to the pass.
    ///
    /// # Errors
    /// Whatever the model reports.
    pub fn collect<F: FeedForward>(
        &mut self,
        model: &CausalLm<F>,
        set: &TokenSet,
        options: ScanOptions,
        pass: &Pass,
        device: &candle_core::Device,
    ) -> Result<()> {
        self.collect_shard(model, (set, Shard::WHOLE), options, pass, device)
    }

    /// The same of a shard of the batches of `set`: the rows that all of it would keep in these.
    pub(crate) fn collect_shard<F: FeedForward>(
        &mut self,
        model: &CausalLm<F>,
        (set, shard): (&TokenSet, Shard),
        options: ScanOptions,
        pass: &Pass,
        device: &candle_core::Device,
    ) -> Result<()> {
        let set = &options.part(set);
        for task in 0..set.tasks.len() {
            for batch in set.batches_of_task(task, options.length, options.batch, device)? {
                let batch = batch?;
                let (own, asked) = (shard.has(self.begun as usize), self.begin(task, &batch)?);
                if !own {
                    self.pass_over(task, asked.rows.dim(0)?);
                    continue;
                }
                let ask = Ask { inputs: Some(asked), ..Ask::default() };
                let (_, traces) = model.hidden(&batch.inputs, &Pass { ask, ..pass.of_tasks(&batch.tasks) })?;
                self.add(&traces)?;
            }
            self.read()?;
        }
        Ok(())
    }

    /// The batch that was begun is another shard's: `rows` of it are summed up there.
    fn pass_over(&mut self, task: usize, rows: usize) {
        self.next = None;
        self.scatter.iter_mut().for_each(|scatter| scatter.skip(rows, task));
    }

    /// As [`into_samples`](Self::into_samples), of a shard.
    pub(crate) fn into_shard_rows(mut self) -> [ShardRows; 2] {
        let [tokens, windows] = std::mem::take(&mut self.batches);
        let [of_tokens, of_windows] = self.into_samples();
        [(of_tokens, tokens), (of_windows, windows)].map(|(samples, batches)| ShardRows { samples, batches })
    }

    /// Single tokens, by layer; and means over the windows of sequences.
    #[must_use]
    pub fn into_samples(mut self) -> [Vec<Samples>; 2] {
        for (samples, scatter) in self.tokens.iter_mut().zip(self.scatter) {
            samples.scatter = Some(Arc::new(scatter));
        }
        [self.tokens, self.sequences]
    }
}

/// The positions of a pass over a text that belong to its sample: equal for all who sample the same pass.
#[derive(Debug)]
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
    pub(super) fn begin(&mut self, batch: &Batch) {
        self.read += self.counted.len() as u64;
        self.counted.clone_from(&batch.counted);
    }

    /// Those of this batch, ascending.
    pub(super) fn kept(&self) -> impl Iterator<Item = usize> {
        (0..self.counted.len()).filter(|at| self.belongs(*at, self.stride))
    }

    /// Whether a position of this batch belongs to a sample of one in `stride`; a sample of fewer is part of one of more.
    fn belongs(&self, at: usize, stride: usize) -> bool {
        self.counted[at] && sampled(self.read + at as u64, stride)
    }
}

/// Whether the n-th position belongs to a sample of one in `stride`. Multiples of the golden ratio modulo 1 are spread evenly
/// whatever the length of a row; every `stride`-th position would be the same few of each row.
fn sampled(n: u64, stride: usize) -> bool {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) <= u64::MAX / stride.max(1) as u64
}

/// At most `most` of `count` rows, evenly spread.
///
/// ```
/// use tinyonn::imaging::inputs::spread;
/// assert_eq!(spread(10, 4).collect::<Vec<_>>(), [0, 2, 5, 7]);
/// ```
pub fn spread(count: usize, most: usize) -> impl Iterator<Item = usize> {
    let kept = count.min(most);
    (0..kept).map(move |at| at * count / kept)
}
