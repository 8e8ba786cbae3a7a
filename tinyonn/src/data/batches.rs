//! What reads tokens a batch at a time need not know whether they are in memory.

use candle_core::Device;

use super::pack::check_shape;
use super::{Batch, TaskTokens, TokenSet};
use crate::Result;

/// Tokens by task, whose batches are known by number: a [`TokenSet`] in memory, or a [`TokenFile`](super::TokenFile) on disk.
///
/// ```
/// use candle_core::Device;
/// use tinyonn::data::{Batches, TaskTokens, TokenSet};
///
/// let task = TaskTokens { name: "t".into(), tokens: (0..10).collect(), documents: vec![0; 10] };
/// let set = TokenSet { tasks: vec![task], documents: vec!["t/a".into()], eos: 0 };
/// let text: &dyn Batches = &set;
/// // Nine tokens have one before them: three rows of four, two batches of two rows.
/// assert_eq!((text.names(), text.targets(), text.counts((4, 2))?), (vec!["t".into()], vec![9], vec![2]));
/// let last = text.batch_of_task(0, 1, (4, 2), &Device::Cpu)?;
/// assert_eq!(last.inputs.to_vec2::<u32>()?[0][0], 8);
/// assert_eq!(text.sha256(), set.sha256());
/// # Ok::<(), tinyonn::Error>(())
/// ```
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
