//! Training batches as a pure function of (seed, step): to resume, ask for the next step.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use candle_core::Device;
use rand::Rng as _;

use super::order::Order;
use super::pack::{Batch, Row, TokenSet, check_shape};
use crate::files::Digest;
use crate::ranks::Collective;
use crate::{Error, Result, random};

/// Draws training batches from a [`TokenSet`].
///
/// Rows are dealt to the tasks in turn, and the turn goes on from batch to batch, so all tasks get equal shares whatever
/// their sizes. Within a task every full row is visited once an epoch, in an order shuffled anew each epoch that does
/// not depend on the other tasks.
///
/// ```
/// use candle_core::Device;
/// use tinyonn::data::{Sampler, TaskTokens, TokenSet};
/// let task = |name: &str| TaskTokens { name: name.into(), tokens: (0..99).collect(), documents: vec![0; 99] };
/// let set = TokenSet { tasks: vec![task("a"), task("b")], documents: vec!["a/x".into()], eos: 0 };
/// let sampler = Sampler::new(&set, 8, 3, 0, &Device::Cpu)?;
/// assert_eq!(sampler.batch_at(0)?.tasks, [0, 1, 0]);
/// assert_eq!(sampler.batch_at(1)?.tasks, [1, 0, 1]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sampler<'a> {
    set: &'a TokenSet,
    length: usize,
    batch: usize,
    seed: u64,
    device: Device,
    ranks: Option<Arc<dyn Collective>>,
}

impl<'a> Sampler<'a> {
    /// Batches of `batch` rows of `length` positions, from all tasks of `set`.
    ///
    /// # Errors
    /// No task; a length or batch of zero; a task with too few tokens for one full row.
    pub fn new(set: &'a TokenSet, length: usize, batch: usize, seed: u64, device: &Device) -> Result<Self> {
        check_shape(length, batch)?;
        if set.tasks.is_empty() {
            return Err(Error::setting("--data", "there is no task to train on", "give at least one NAME=PATH"));
        }
        if let Some(task) = set.tasks.iter().find(|task| task.full_rows(length) == 0) {
            return Err(Error::setting(
                "length",
                format!(
                    "task `{}` has {} tokens, too few for a row of {length} and its target",
                    task.name,
                    task.tokens.len()
                ),
                format!("use {} or less, or give the task more text", task.targets()),
            ));
        }
        Ok(Self { set, length, batch, seed, device: device.clone(), ranks: None })
    }

    /// The same batches, of whose rows each of `ranks` reads its part: a step has the same samples whatever their number.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use candle_core::Device;
    /// use tinyonn::data::{Sampler, TaskTokens, TokenSet};
    /// use tinyonn::ranks::{Collective, Threads};
    ///
    /// let task = TaskTokens { name: "a".into(), tokens: (0..99).collect(), documents: vec![0; 99] };
    /// let set = TokenSet { tasks: vec![task], documents: vec!["a/x".into()], eos: 0 };
    /// let second: Arc<dyn Collective> = Arc::new(Threads::new(2).pop().expect("two ranks"));
    /// let sampler = Sampler::new(&set, 8, 4, 0, &Device::Cpu)?.among(Some(second));
    /// assert_eq!(sampler.ranks().map(|ranks| ranks.rank()), Some(1));
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    #[must_use]
    pub fn among(self, ranks: Option<Arc<dyn Collective>>) -> Self {
        Self { ranks: ranks.filter(|ranks| ranks.ranks() > 1), ..self }
    }

    /// Who reads them together, where there are several.
    #[must_use]
    pub fn ranks(&self) -> Option<&Arc<dyn Collective>> {
        self.ranks.as_ref()
    }

    /// Of the rows of a batch that is passed in so many equal `parts`, those of part number `part` that this rank reads.
    ///
    /// # Errors
    /// A batch that is not cut into so many parts for each rank; the nearest ones that are are named.
    ///
    /// ```
    /// # use candle_core::Device;
    /// # use tinyonn::data::{Sampler, TaskTokens, TokenSet};
    /// # let task = TaskTokens { name: "a".into(), tokens: (0..99).collect(), documents: vec![0; 99] };
    /// # let set = TokenSet { tasks: vec![task], documents: vec!["a/x".into()], eos: 0 };
    /// let sampler = Sampler::new(&set, 8, 4, 0, &Device::Cpu)?;
    /// assert_eq!(sampler.own_rows(2, 1)?, 2..4);
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    pub fn own_rows(&self, parts: usize, part: usize) -> Result<Range<usize>> {
        let (rank, ranks) = self.ranks.as_ref().map_or((0, 1), |ranks| (ranks.rank(), ranks.ranks()));
        let cuts = parts.max(1) * ranks;
        if !self.batch.is_multiple_of(cuts) {
            let problem = format!("{} rows are not cut into {parts} parts for each of {ranks} ranks", self.batch);
            let (below, above) = (self.batch / cuts * cuts, self.batch.next_multiple_of(cuts));
            let remedy = if below == 0 { format!("use {above}") } else { format!("use {below} or {above}") };
            return Err(Error::setting("batch", problem, remedy));
        }
        let rows = self.batch / cuts;
        let first = (part * ranks + rank) * rows;
        Ok(first..first + rows)
    }

    /// Positions of a row.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Rows of a batch.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// SHA-256 of all that decides the batches: text, shape, seed.
    ///
    /// ```
    /// use candle_core::Device;
    /// use tinyonn::data::{Sampler, TaskTokens, TokenSet};
    ///
    /// let task = TaskTokens { name: "a".into(), tokens: (0..99).collect(), documents: vec![0; 99] };
    /// let set = TokenSet { tasks: vec![task], documents: vec!["a/x".into()], eos: 0 };
    /// let [sampler, other] = [0, 1].map(|seed| Sampler::new(&set, 8, 3, seed, &Device::Cpu));
    /// let (sampler, other) = (sampler?, other?);
    /// assert_eq!((sampler.length(), sampler.batch()), (8, 3));
    /// assert_ne!(sampler.digest(), other.digest());
    /// assert_ne!(sampler.seed_at(0, 0), sampler.seed_at(0, 1)); // each part of a batch has noise of its own
    /// assert!(sampler.describe(0).contains("a/x") && sampler.device().is_cpu());
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    #[must_use]
    pub fn digest(&self) -> String {
        let mut digest = Digest::new();
        for task in &self.set.tasks {
            digest.text(&task.name);
            digest.words(&task.tokens);
            digest.words(&task.documents);
        }
        [self.length as u64, self.batch as u64, self.seed].into_iter().for_each(|number| digest.number(number));
        digest.hex()
    }

    /// The tasks and documents of the batch of `step`, in words: for whoever has to find out what was wrong with it.
    #[must_use]
    pub fn describe(&self, step: u64) -> String {
        let mut read: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let first = step * self.batch as u64;
        for row in (first..first + self.batch as u64).map(|draw| self.row(draw)) {
            let task = &self.set.tasks[row.task];
            let documents = task.documents.iter().skip(row.index * self.length).take(self.length + 1);
            let names = documents.filter_map(|document| self.set.documents.get(*document as usize));
            read.entry(&task.name).or_default().extend(names.map(String::as_str));
        }
        let of_task = |(task, documents): (&str, BTreeSet<&str>)| {
            format!("task `{task}` ({})", documents.into_iter().collect::<Vec<_>>().join(", "))
        };
        read.into_iter().map(of_task).collect::<Vec<_>>().join(", ")
    }

    /// Where batches lie.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The seed of whatever else is random in a part of a step's batch (0 is the first, or the whole), noise on routers' inputs for one.
    #[must_use]
    pub fn seed_at(&self, step: u64, part: usize) -> u64 {
        let part = if part == 0 { String::new() } else { format!("/{part}") };
        random::stream(self.seed, &format!("data/step/{step}{part}")).random()
    }

    /// The batch of `step`, counted from 0.
    pub fn batch_at(&self, step: u64) -> Result<Batch> {
        let first = step * self.batch as u64;
        let rows: Vec<Row> = (first..first + self.batch as u64).map(|draw| self.row(draw)).collect();
        self.set.batch(&rows, self.length, &self.device)
    }

    /// The row dealt as number `draw` since the start of training.
    fn row(&self, draw: u64) -> Row {
        let count = self.set.tasks.len() as u64;
        let task = (draw % count) as usize;
        let visit = draw / count;
        let tokens = &self.set.tasks[task];
        let rows = tokens.full_rows(self.length) as u64;
        let order = Order::new(rows, self.seed, &format!("data/order/{}/{}", tokens.name, visit / rows));
        Row { task, index: order.at(visit % rows) as usize }
    }
}
