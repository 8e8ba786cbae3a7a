//! Losses by token: what a shard of a text keeps, so that those of all shards, put in order by batch, are summed up as one process sums them, to the same bits.

use super::{DocumentLoss, Losses};
use crate::data::TokenSet;
use crate::moe::LoadMeter;
use crate::{Error, Result};

/// The tokens of a shard that are scored, in the order in which they are read.
#[derive(Clone, Debug, Default)]
pub(crate) struct ScoredTokens {
    /// The batch of each, of all batches of the text.
    pub(crate) batches: Vec<u32>,
    pub(crate) tasks: Vec<u32>,
    pub(crate) documents: Vec<u32>,
    /// In nats.
    pub(crate) losses: Vec<f64>,
    /// What routing took, by batch, where that was asked for.
    pub(crate) loads: Vec<(u32, LoadMeter)>,
}

impl ScoredTokens {
    pub(super) fn add(&mut self, batch: u32, (task, document): (usize, u32), loss: f64) {
        self.batches.push(batch);
        self.tasks.push(task as u32);
        self.documents.push(document);
        self.losses.push(loss);
    }

    /// Losses over all of `set`, whose tokens these are, but for the first `skip` of every sequence; `None` where they cannot be.
    pub(crate) fn sum(&self, set: &TokenSet, skip: usize) -> Result<Option<Losses>> {
        let mut sums = LossSums::new(set);
        for ((task, document), loss) in self.tasks.iter().zip(&self.documents).zip(&self.losses) {
            if *task as usize >= set.tasks.len() {
                return Ok(None);
            }
            sums.add((*task as usize, *document), *loss);
        }
        sums.losses(set, skip).map(Some)
    }
}

/// Sums of losses, in the order in which tokens are added.
pub(super) struct LossSums {
    /// By task.
    sums: Vec<f64>,
    counts: Vec<u64>,
    by_document: Vec<DocumentLoss>,
}

impl LossSums {
    /// Nothing seen of `set`.
    pub(super) fn new(set: &TokenSet) -> Self {
        let tasks = set.tasks.len();
        let by_document = vec![DocumentLoss::default(); set.documents.len()];
        Self { sums: vec![0.0; tasks], counts: vec![0; tasks], by_document }
    }

    /// A token of one of the set's tasks; a document that the set does not have, as of what stands between two, is none's.
    pub(super) fn add(&mut self, (task, document): (usize, u32), loss: f64) {
        self.sums[task] += loss;
        self.counts[task] += 1;
        if let Some(document) = self.by_document.get_mut(document as usize) {
            document.task = task;
            document.sum += loss;
            document.tokens += 1.0;
        }
    }

    /// Mean losses.
    pub(super) fn losses(self, set: &TokenSet, skip: usize) -> Result<Losses> {
        let Self { sums, counts, by_document } = self;
        if let Some(task) = counts.iter().position(|count| *count == 0) {
            let problem = format!("task `{}` has no token to score", set.tasks[task].name);
            let remedy = format!("give it more text, or sequences of more than {skip} tokens");
            return Err(Error::setting("evaluate", problem, remedy));
        }
        let by_task = sums.iter().zip(&counts).map(|(sum, count)| sum / *count as f64).collect();
        Ok(Losses { mean: sums.iter().sum::<f64>() / counts.iter().sum::<u64>().max(1) as f64, by_task, by_document })
    }
}
