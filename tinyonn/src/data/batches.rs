//! What reads tokens a batch at a time need not know whether they are in memory.

use candle_core::Device;

use super::pack::check_shape;
use super::{Batch, TaskTokens, TokenSet};
use crate::Result;

/// Tokens by task, whose batches are known by number: a [`TokenSet`] in memory, or a [`TokenFile`](super::TokenFile) on disk.
pub trait Batches {
    /// The tasks' names, in the order that numbers them.
    fn names(&self) -> Vec<String>;

    /// The tokens of each task that have one before them: what there is to predict.
    fn targets(&self) -> Vec<usize>;

    /// The batch `number` (from 0) of a task, as [`TokenSet::batch_of_task`] has it.
    ///
    /// # Errors
    /// A task or number that there is not; a length or batch of zero; what the system reports.
    fn batch_of_task(&self, task: usize, number: usize, shape: (usize, usize), device: &Device) -> Result<Batch>;

    /// As [`TokenSet::sha256`].
    fn sha256(&self) -> String;

    /// The batches of each task, of `batch` rows of `length`.
    ///
    /// # Errors
    /// A length or batch of zero.
    fn counts(&self, (length, batch): (usize, usize)) -> Result<Vec<usize>> {
        check_shape(length, batch)?;
        Ok(self.targets().into_iter().map(|targets| targets.div_ceil(length).div_ceil(batch)).collect())
    }
}

impl Batches for TokenSet {
    fn names(&self) -> Vec<String> {
        self.tasks.iter().map(|task| task.name.clone()).collect()
    }

    fn targets(&self) -> Vec<usize> {
        self.tasks.iter().map(TaskTokens::targets).collect()
    }

    fn batch_of_task(&self, task: usize, number: usize, shape: (usize, usize), device: &Device) -> Result<Batch> {
        Self::batch_of_task(self, task, number, shape, device)
    }

    fn sha256(&self) -> String {
        Self::sha256(self)
    }
}
