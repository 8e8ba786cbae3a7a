//! What routers see of a run's text, and how much of it is kept in main memory, which depends on the model's width and layers and not on the length
//! of the text.
//!
//! Of each split and layer at most [`SAMPLES`] tokens are read, and 1 GiB of them over all layers is kept; windows' means, of which a text has
//! fewer, may take as much again. Where fewer tokens are kept than read, the scatter of the training split is summed up over all that
//! are read ([`ClassScatter`]).

use super::RunConfig;
use crate::decoder::Arch;
use crate::imaging::RouterInputs;
use crate::imaging::inputs::{Samples, Thinning, Window};
use crate::moe::{MoeSpec, RoutePer, Variant};
use crate::ops::ClassScatter;

/// Tokens a shared decision reads, where the variant does not say.
const FIRST: usize = 64;
/// Tokens of a split that are read in each layer, about.
const SAMPLES: usize = 32_768;
/// Bytes that the kept tokens of a split may take over all layers.
const KEPT_BYTES: usize = 1 << 30;

/// What routers see of a split.
#[derive(Default)]
pub struct SplitInputs {
    /// Single tokens, by layer.
    pub tokens: Vec<Samples>,
    /// What shares a decision, sequences or segments of them, by layer: the means over the tokens that it reads.
    pub sequences: Vec<Samples>,
}

impl SplitInputs {
    pub(super) fn of(seen: RouterInputs) -> Self {
        let [tokens, sequences] = seen.into_samples();
        Self { tokens, sequences }
    }

    /// Those that a variant decides by.
    #[must_use]
    pub fn own(&self, variant: &Variant) -> &[Samples] {
        match variant.spec.route_per {
            RoutePer::Token | RoutePer::Task => &self.tokens,
            RoutePer::Sequence { .. } | RoutePer::Segment { .. } => &self.sequences,
        }
    }

    /// Bytes of its rows in main memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let of = |samples: &Samples| size_of_val(&*samples.values) + ROW_BYTES * samples.tasks.len();
        self.tokens.iter().chain(&self.sequences).map(of).sum::<usize>() as u64
    }
}

/// What routers see of held-out text.
///
/// ```
/// use tinyonn::moe::variant;
/// use tinyonn::phases::{HeldInputs, SplitInputs};
///
/// let nothing = || SplitInputs { tokens: vec![], sequences: vec![] };
/// let held = HeldInputs { validation: nothing(), test: nothing() };
/// assert_eq!((held.test.own(variant("TinyOnn")?).len(), held.validation.bytes()), (0, 0));
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Default)]
pub struct HeldInputs {
    /// What fits are stopped and calibrated by.
    pub validation: SplitInputs,
    /// What is reported.
    pub test: SplitInputs,
}

/// Bytes of a row's task and document.
const ROW_BYTES: usize = 2 * size_of::<u32>();

/// What a split is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Split {
    /// Routers are fitted to it, and need its scatter.
    Fitted,
    /// Fits are stopped by it, or measured.
    HeldOut,
}

/// Decides how much of a split is kept, by counts alone.
#[derive(Clone, Copy)]
pub(super) struct Keeping<'a> {
    pub(super) config: &'a RunConfig,
    pub(super) spec: &'a MoeSpec,
    pub(super) cfg: &'a Arch,
}

impl Keeping<'_> {
    /// Of a split of which `targets[task]` tokens are read.
    pub(super) fn of(self, targets: &[usize], split: Split) -> Thinning {
        let kept = self.rows();
        let one_in = |count: usize| targets.iter().sum::<usize>().div_ceil(count);
        let (tokens, read) = (one_in(kept), one_in(SAMPLES));
        let weigh = self.config.router.projection.weighs().filter(|_| split == Split::Fitted && read < tokens);
        Thinning {
            tokens,
            window: self.window(),
            windows: self.windows(targets).div_ceil(kept),
            scatter: weigh.map(|weigh| (read, weigh)),
        }
    }

    /// Bytes in main memory of what [`of`](Self::of) keeps, and of the scatter with what it needs beside it while it is summed up.
    pub(super) fn bytes(self, targets: &[usize], split: Split) -> u64 {
        let width = self.cfg.hidden_size;
        let scatter = self.of(targets, split).scatter.map_or(0, |_| ClassScatter::bytes(width).iter().sum());
        let rows = self.kept(targets) as u64 * (size_of::<f32>() * width + ROW_BYTES) as u64;
        self.cfg.num_hidden_layers as u64 * (rows + scatter)
    }

    /// Bytes that a task's rows take on their way to where they are kept: as passes said them, side by side, and as values. Of the longest task.
    pub(super) fn bytes_on_the_way(self, targets: &[usize]) -> u64 {
        let all = targets.iter().sum::<usize>().max(1);
        let of_task = self.kept(targets) * targets.iter().max().unwrap_or(&0) / all;
        3 * (of_task * size_of::<f32>() * self.cfg.hidden_size * self.cfg.num_hidden_layers) as u64
    }

    /// Bytes of what learned projections make of the rows that routers are fitted to, in all layers.
    pub(super) fn projected_bytes(self, targets: &[usize]) -> u64 {
        let dim = self.spec.projection_width(self.cfg.hidden_size);
        (self.kept(targets) * size_of::<f32>() * dim * self.cfg.num_hidden_layers) as u64
    }

    /// Rows of each layer that are kept, tokens and windows.
    fn kept(self, targets: &[usize]) -> usize {
        let kept = self.of(targets, Split::HeldOut);
        let rows = |all: usize, stride: usize| all.div_ceil(stride.max(1));
        rows(targets.iter().sum(), kept.tokens) + rows(self.windows(targets), kept.windows)
    }

    /// Rows of each layer that are kept of a split at most, of tokens and of windows.
    pub(super) fn rows(self) -> usize {
        let row = size_of::<f32>() * self.cfg.hidden_size * self.cfg.num_hidden_layers;
        SAMPLES.min(KEPT_BYTES / row.max(1)).max(1)
    }

    /// What a shared decision reads.
    fn window(self) -> Window {
        match self.spec.route_per {
            RoutePer::Token | RoutePer::Task => Window::First(FIRST),
            RoutePer::Segment { tokens } => Window::Every(tokens),
            RoutePer::Sequence { first } => Window::First(first),
        }
    }

    /// Windows of a split, at most.
    fn windows(self, targets: &[usize]) -> usize {
        let of = |targets: &usize| match self.window() {
            Window::First(_) => targets.div_ceil(self.config.length.max(1)),
            Window::Every(length) => targets / length.max(1),
        };
        targets.iter().map(of).sum()
    }
}
