//! What a pretrained model still knows at equal learning, by document of its own text and by item of the benchmarks, so that two runs are compared in pairs.

use serde::Serialize;
use tinyonn::metrics::{Interval, interval};
use tinyonn::phases::{Crossing, ForgettingRecord};

/// At the targets, mean over the tasks that are compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Kept {
    /// By document the divergence from the original, summed over its tokens, and how many these are.
    pub documents: Vec<(f64, f64)>,
    /// By item of the benchmarks, how much more rightly it is answered than by the original.
    pub items: Vec<f64>,
}

impl Kept {
    /// Of a run that reached the targets of all tasks that are `compared` at `reached`; `None` where it did not, where none is compared, or of a model that
    /// is not pretrained.
    #[must_use]
    pub fn new(record: &ForgettingRecord, reached: &[Option<Crossing>], compared: &[bool]) -> Option<Self> {
        let places = reached.iter().zip(compared).enumerate().filter(|(_, (_, compared))| **compared);
        let places = places.map(|(task, (at, _))| Some((task, at.as_ref()?.step))).collect::<Option<Vec<_>>>()?;
        let mean = |of: &dyn Fn(usize, f64) -> Option<Vec<f64>>| {
            let all = places.iter().map(|(task, step)| of(*task, *step)).collect::<Option<Vec<_>>>()?;
            let count = all.len() as f64;
            all.into_iter().reduce(|sums, own| sums.iter().zip(own).map(|(a, b)| a + b).collect()).map(|sums| {
                let mean: Vec<f64> = sums.into_iter().map(|sum| sum / count).collect();
                mean
            })
        };
        let (sums, right) =
            (mean(&|task, step| record.old_sums_at(task, step))?, mean(&|task, step| record.right_at(task, step))?);
        let before = record.right_at(0, 0.0)?;
        Some(Self {
            documents: sums.into_iter().zip(record.old_tokens.iter().copied()).collect(),
            items: right.iter().zip(before).map(|(right, before)| right - before).collect(),
        })
    }

    /// The divergence, nats a token.
    #[must_use]
    pub fn divergence(&self, seed: u64) -> Interval {
        interval(&self.documents, seed)
    }

    /// How many more of the items are answered rightly, as a share.
    #[must_use]
    pub fn right(&self, seed: u64) -> Interval {
        interval(&self.items.iter().map(|item| (*item, 1.0)).collect::<Vec<_>>(), seed)
    }

    /// Both minus those of `other`, paired.
    #[must_use]
    pub fn minus(&self, other: &Self, seed: u64) -> (Interval, Interval) {
        let documents =
            self.documents.iter().zip(&other.documents).map(|(own, other)| (own.0 - other.0, own.1)).collect();
        let items = self.items.iter().zip(&other.items).map(|(own, other)| own - other).collect();
        let apart = Self { documents, items };
        (apart.divergence(seed), apart.right(seed))
    }
}
