//! Runs compared at equal learning, and at equal distance from the dense weights.

use serde::Serialize;
use tinyonn::phases::{Crossing, ForgettingRecord};

use super::Kept;

/// For each task of a run, by its place, the loss at which it counts as learnt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Targets {
    /// The losses.
    pub losses: Vec<f64>,
    /// ‖Δθ‖ of dense fine-tuning where it had learnt the first task.
    pub distance: f64,
    /// Whether dense fine-tuning at the rate in question makes the old text worse over the task, beyond the interval over its documents; and of a pretrained
    /// model what benchmarks say as well, beyond that over their items.
    pub forgets: Vec<bool>,
}

impl Targets {
    /// By dense fine-tuning of the same seed and order: its last loss of each task, and `margin` of its drop from where it began. `None` where it did not get
    /// through.
    #[must_use]
    pub fn of(dense: &ForgettingRecord, margin: f64, seed: u64) -> Option<Self> {
        let tasks = dense.tasks.len();
        if dense.losses.len() != tasks + 1 {
            return None;
        }
        let target = |task: usize| {
            let (start, end) = (dense.losses[task][task], dense.losses[task + 1][task]);
            end + margin * (start - end).max(0.0)
        };
        let losses: Vec<f64> = (0..tasks).map(target).collect();
        let distance = dense.at_loss(0, losses[0])?.distance;
        Some(Self { losses, distance, forgets: forgets(dense, seed) })
    }

    /// The same for a rate at which dense fine-tuning is `dense`: a task is compared where it forgets at both rates, so that means are over the same tasks.
    #[must_use]
    pub fn gated_by(&self, dense: &ForgettingRecord, seed: u64) -> Self {
        let both = self.forgets.iter().zip(forgets(dense, seed)).map(|(here, there)| *here && there);
        Self { forgets: both.collect(), ..self.clone() }
    }
}

/// Of each task, whether what was known before is worse behind it, with 95 % confidence over documents and items. Of one that was not finished it is not known.
fn forgets(dense: &ForgettingRecord, seed: u64) -> Vec<bool> {
    (0..dense.tasks.len()).map(|task| forgets_over(dense, task, seed)).collect()
}

/// The same of one task.
pub(super) fn forgets_over(dense: &ForgettingRecord, task: usize, seed: u64) -> bool {
    let old = dense.old_rise(task, seed).is_some_and(|rise| rise.low > 0.0);
    let items = dense.knowledge.is_none() || dense.right_gained(task, seed).is_some_and(|gained| gained.high < 0.0);
    old && items
}

/// A run at the targets.
#[derive(Clone, Debug, PartialEq)]
pub struct Matched {
    /// By task, where its loss reached the target.
    pub reached: Vec<Option<Crossing>>,
    /// By task that is compared, the old text's loss there minus that of the dense model; none where the target was not reached, or where there is no
    /// forgetting to compare.
    pub rises: Vec<Option<f64>>,
    /// Whether a task is compared.
    pub compared: Vec<bool>,
    /// In the first task, where ‖Δθ‖ is that of dense fine-tuning at its target, the old text's loss minus that of the dense model, and the task's loss.
    pub at_distance: Option<(f64, f64)>,
    /// Of a pretrained model, what it still knows there.
    pub kept: Option<Kept>,
}

impl Matched {
    /// Of a run of the same seed and order.
    #[must_use]
    pub fn new(record: &ForgettingRecord, targets: &Targets) -> Self {
        let before = record.old.first().copied().unwrap_or(f64::NAN);
        let reached: Vec<Option<Crossing>> =
            targets.losses.iter().enumerate().map(|(task, target)| record.at_loss(task, *target)).collect();
        let rise = |(at, compared): (&Option<Crossing>, &bool)| at.filter(|_| *compared).map(|at| at.old - before);
        let rises = reached.iter().zip(&targets.forgets).map(rise).collect();
        let at_distance = record.at_distance(0, targets.distance).map(|at| (at.old - before, at.new));
        let kept = Kept::new(record, &reached, &targets.forgets);
        Self { reached, rises, compared: targets.forgets.clone(), at_distance, kept }
    }

    /// Whether every task was learnt.
    #[must_use]
    pub fn learns_all(&self) -> bool {
        self.reached.iter().all(Option::is_some)
    }

    /// The tasks that were learnt.
    #[must_use]
    pub fn learnt(&self) -> usize {
        self.reached.iter().flatten().count()
    }

    /// By how much the old text has risen at equal learning, mean over the tasks that are compared; `None` where one of them was not learnt, or where
    /// none is compared.
    #[must_use]
    pub fn rise(&self) -> Option<f64> {
        self.mean_compared(self.rises.iter().copied())
    }

    /// Steps that a task took to its target, mean over the tasks that are compared; `None` as of [`rise`](Self::rise).
    #[must_use]
    pub fn steps(&self) -> Option<f64> {
        self.mean_compared(self.reached.iter().map(|at| Some(at.as_ref()?.step)))
    }

    /// Over the tasks that are compared; `None` where one of them has no value, or where none is compared.
    fn mean_compared(&self, values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
        let compared = values.zip(&self.compared).filter(|(_, compared)| **compared);
        let values = compared.map(|(value, _)| value).collect::<Option<Vec<f64>>>()?;
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    /// Whether dense fine-tuning forgets nothing at this rate: there is nothing to compare.
    #[must_use]
    pub fn is_without_forgetting(&self) -> bool {
        self.compared.iter().all(|compared| !compared)
    }
}
