//! The proof that a model taken apart is the dense one: all active, after writing it and reading it back, its logits are the dense model's bit for bit.

use serde::{Deserialize, Serialize};

use super::run::Run;
use super::weights;
use crate::Result;
use crate::checkpoint::{ParamStore, TinyOnnFolder};
use crate::decoder::Pass;
use crate::model::ActiveMode;
use crate::ops::host;

/// Tokens of a task in each of the two batches whose logits are compared, about; of a large vocabulary fewer, whose logits are at most so many.
const COMPARED: usize = 1024;
const LOGITS: usize = 1 << 26;

/// The sparse model against the dense one on test text, all active, after writing it and reading it back.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LosslessFigures {
    /// The largest difference of two logits.
    pub max_abs_diff: f64,
    /// Whether all logits are equal bit for bit.
    pub bit_equal: bool,
}

impl Run<'_> {
    /// Writes the upcycled model, reads it back and compares logits with the dense model's on test text.
    ///
    /// ```
    /// use tinyonn::checkpoint::ParamStore;
    /// use tinyonn::phases::{LosslessFigures, Run};
    ///
    /// /// Whether a model made of the run's dense one is that model, bit for bit.
    /// fn is_lossless(run: &Run<'_>, store: &ParamStore) -> tinyonn::Result<bool> {
    ///     let found: LosslessFigures = run.lossless(store)?;
    ///     Ok(found.bit_equal)
    /// }
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the system or the device reports.
    pub fn lossless(&self, store: &ParamStore) -> Result<LosslessFigures> {
        let dir = self.config.out.join("upcycled");
        self.write(store, &dir, ActiveMode::All, None, None)?;
        let read = weights::load(TinyOnnFolder::open(&dir)?.folder(), self.config.dtype, &self.device)?;
        let dense = self.dense_model()?;
        let sparse = self.model(&read)?;
        let mut figures = LosslessFigures { max_abs_diff: 0.0, bit_equal: true };
        for task in 0..self.text.tasks.len() {
            let most = COMPARED.min(LOGITS / self.dense.cfg.vocab_size.max(1));
            let batch = self.config.batch.min(most.div_ceil(self.config.length)).max(1);
            let batches = self.tokens.test.batches_of_task(task, self.config.length, batch, &self.device)?;
            for batch in batches.take(2) {
                let ids = batch?.inputs;
                let a = host::values(&dense.logits(&ids, &Pass::all(), None)?)?;
                let b = host::values(&sparse.logits(&ids, &Pass::all(), None)?)?;
                for (a, b) in a.iter().zip(&b) {
                    let equal = a.to_bits() == b.to_bits();
                    // Where one of the two is no number the difference has no size.
                    let apart = if equal { 0.0 } else { f64::from((a - b).abs()) };
                    figures.max_abs_diff = figures.max_abs_diff.max(if apart.is_nan() { f64::INFINITY } else { apart });
                    figures.bit_equal &= equal;
                }
            }
        }
        Ok(figures)
    }
}
