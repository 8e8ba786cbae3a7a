//! What a run of several tasks leaves, and the figures of it.
//!
//! R[i][j] is the held-out loss of task j (from 1) behind task i, R[0][j] before the first; O[i] that of the old text; T tasks, losses in nats a token.
//! - Forgetting of a task: R[T][j] − min over j ≤ i < T of R[i][j], final minus best earlier loss (Chaudhry et al., 2018, for losses); the average is over
//!   j < T. Of the old text: O[T] − min over i < T of O[i].
//! - Forward transfer: the mean over j > 1 of R[0][j] − R[j−1][j], what earlier tasks took off a task's loss before it was taught (Lopez-Paz and Ranzato,
//!   2017, for losses).
//! - At matched learning: between the looks at task j, the first place where its loss reaches a target, and what the old text's loss and ‖Δθ‖ are there,
//!   between two looks linearly.

use serde::{Deserialize, Serialize};

use super::KnowledgeRecord;
use crate::metrics::{Interval, interval};

/// A look at a model that learns a task.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// The task, by its place in the order, from 0.
    pub task: usize,
    /// Steps taken in it.
    pub step: u64,
    /// Held-out loss of the task.
    pub new: f64,
    /// Held-out loss of the old text; of a pretrained model its divergence there ([`OldKnowledge`](super::OldKnowledge)), here and wherever the old text's loss is meant.
    pub old: f64,
    /// ‖Δθ‖: how far all that learns is from the dense weights.
    pub distance: f64,
}

/// A place between two looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crossing {
    /// Steps taken in the task.
    pub step: f64,
    /// Held-out loss of the task.
    pub new: f64,
    /// Held-out loss of the old text.
    pub old: f64,
    /// ‖Δθ‖.
    pub distance: f64,
}

/// What a run leaves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForgettingRecord {
    /// The tasks, in their order.
    pub tasks: Vec<String>,
    /// R, `[stage][task]`: stage 0 is before the first task.
    pub losses: Vec<Vec<f64>>,
    /// O, by stage.
    pub old: Vec<f64>,
    /// The old text's tasks.
    pub old_tasks: Vec<String>,
    /// Their losses, `[stage][task]`.
    pub old_by_task: Vec<Vec<f64>>,
    /// Σ of losses by document of the old text, `[stage][document]`.
    pub old_sums: Vec<Vec<f64>>,
    /// Tokens of these documents.
    pub old_tokens: Vec<f64>,
    /// All looks.
    pub looks: Vec<Look>,
    /// Weights that may learn.
    pub learnable: usize,
    /// Of these, those that a step changes: mean over steps.
    pub stepped: f64,
    /// Weights of the MLPs that are not what they were.
    pub moved: usize,
    /// The message of a loss or a gradient that was no finite number; what comes behind it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diverged: Option<String>,
    /// What a pretrained model knew besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub knowledge: Option<KnowledgeRecord>,
    /// Multiply-adds of all steps and looks, counted.
    pub multiply_adds: f64,
    /// Wall-clock.
    pub seconds: f64,
}

impl ForgettingRecord {
    /// Average forgetting of all tasks but the last; `None` of a run that was not finished.
    ///
    /// ```
    /// # use tinyonn::phases::ForgettingRecord;
    /// # fn of(losses: Vec<Vec<f64>>) -> ForgettingRecord {
    /// #     serde_json::from_value(serde_json::json!({
    /// #         "tasks": ["a", "b"], "losses": losses, "old": [2.0, 2.5, 2.25], "old_tasks": [], "old_by_task": [], "old_sums": [],
    /// #         "old_tokens": [], "looks": [], "learnable": 0, "stepped": 0.0, "moved": 0, "multiply_adds": 0.0, "seconds": 0.0,
    /// #     })).unwrap()
    /// # }
    /// let record = of(vec![vec![5.0, 4.0], vec![1.0, 3.5], vec![1.5, 0.5]]); // before, behind `a`, behind `b`
    /// assert_eq!(record.forgetting(), Some(0.5)); // `a` from 1.0 to 1.5
    /// assert_eq!(record.forward_transfer(), Some(0.5)); // `a` took `b` from 4.0 to 3.5
    /// assert_eq!(record.old_forgetting(), Some(0.25)); // from 2.0 to 2.25
    /// ```
    #[must_use]
    pub fn forgetting(&self) -> Option<f64> {
        let last = self.finished()?;
        let of = |task: usize| {
            let best = (task + 1..last).map(|stage| self.losses[stage][task]).fold(f64::INFINITY, f64::min);
            self.losses[last][task] - best
        };
        Some((0..last - 1).map(of).sum::<f64>() / (last - 1) as f64)
    }

    /// Forgetting of the old text; `None` of a run that was not finished.
    #[must_use]
    pub fn old_forgetting(&self) -> Option<f64> {
        let last = self.finished()?;
        Some(self.old[last] - self.old[..last].iter().copied().fold(f64::INFINITY, f64::min))
    }

    /// Forward transfer; `None` of a run that was not finished.
    #[must_use]
    pub fn forward_transfer(&self) -> Option<f64> {
        let last = self.finished()?;
        let of = |task: usize| self.losses[0][task] - self.losses[task][task];
        Some((1..last).map(of).sum::<f64>() / (last - 1) as f64)
    }

    /// The number of tasks, if all of two or more were learnt.
    fn finished(&self) -> Option<usize> {
        let count = self.tasks.len();
        (count > 1 && self.losses.len() == count + 1 && self.old.len() == count + 1).then_some(count)
    }

    /// By how much the old text's loss rises over the task at place `task`, paired by document; `None` where that task was not finished.
    #[must_use]
    pub fn old_rise(&self, task: usize, seed: u64) -> Option<Interval> {
        let (before, behind) = (self.old_sums.get(task)?, self.old_sums.get(task + 1)?);
        let documents = before.iter().zip(behind).zip(&self.old_tokens);
        let clusters: Vec<(f64, f64)> =
            documents.map(|((before, behind), tokens)| (behind - before, *tokens)).collect();
        Some(interval(&clusters, seed))
    }

    /// Where the loss of the task at place `task` first is `target` or less.
    #[must_use]
    pub fn at_loss(&self, task: usize, target: f64) -> Option<Crossing> {
        self.crossing(task, |look| target - look.new)
    }

    /// Where ‖Δθ‖ first is `distance` or more, in the task at place `task`.
    #[must_use]
    pub fn at_distance(&self, task: usize, distance: f64) -> Option<Crossing> {
        self.crossing(task, |look| look.distance - distance)
    }

    /// Σ by document of the old text behind so many steps of the task at place `task`, between two looks linearly; of a pretrained model.
    ///
    /// ```
    /// use tinyonn::phases::ForgettingRecord;
    ///
    /// /// The mean loss of the old text behind ten steps of the first task, of a pretrained model.
    /// fn old_mean(record: &ForgettingRecord) -> Option<f64> {
    ///     Some(record.old_sums_at(0, 10.0)?.iter().sum::<f64>() / record.old_tokens.iter().sum::<f64>())
    /// }
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    #[must_use]
    pub fn old_sums_at(&self, task: usize, step: f64) -> Option<Vec<f64>> {
        let looks = self.looks.iter().zip(&self.knowledge.as_ref()?.old_sums_by_look);
        between(looks.filter(|(look, _)| look.task == task).map(|(look, sums)| (look.step, sums.clone())), step)
    }

    /// Of each item of the benchmarks, how far it is answered rightly (from 0 to 1) behind so many steps of the task at place `task`, between two rounds of
    /// questions linearly.
    ///
    /// ```
    /// # use tinyonn::phases::{ForgettingRecord, KnowledgeRecord};
    /// # let mut record: ForgettingRecord = serde_json::from_value(serde_json::json!({
    /// #     "tasks": ["a", "b"], "losses": [[5.0, 4.0], [1.0, 3.5]], "old": [0.0, 0.5], "old_tasks": [], "old_by_task": [], "old_sums": [],
    /// #     "old_tokens": [2.0], "looks": [], "learnable": 0, "stepped": 0.0, "moved": 0, "multiply_adds": 0.0, "seconds": 0.0,
    /// # }))?;
    /// use tinyonn::phases::Asked;
    ///
    /// let asked = |step, right: [bool; 2]| Asked { task: 0, step, right: right.to_vec() };
    /// let asked = vec![asked(0, [true, false]), asked(10, [false, false])];
    /// record.knowledge = Some(KnowledgeRecord { benchmarks: vec![], asked, old_sums_by_look: vec![] });
    /// assert_eq!(record.right_at(0, 4.0), Some(vec![0.6, 0.0]));
    /// assert_eq!(record.right_gained(0, 0).map(|gained| gained.mean), Some(-0.5));
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    #[must_use]
    pub fn right_at(&self, task: usize, step: f64) -> Option<Vec<f64>> {
        let rounds = self.knowledge.as_ref()?.asked.iter().filter(|asked| asked.task == task);
        let numbers = |right: &[bool]| right.iter().map(|right| f64::from(u8::from(*right))).collect();
        between(rounds.map(|asked| (asked.step, numbers(&asked.right))), step)
    }

    /// By how much more of the items are answered rightly behind the task at place `task` than before it, paired by item; `None` where that task was not
    /// finished, or nothing was asked.
    #[must_use]
    pub fn right_gained(&self, task: usize, seed: u64) -> Option<Interval> {
        // A task that was finished has a stage behind it.
        self.losses.get(task + 1)?;
        let (before, behind) = (self.right_at(task, 0.0)?, self.right_at(task, f64::INFINITY)?);
        let items: Vec<(f64, f64)> = before.iter().zip(behind).map(|(before, behind)| (behind - before, 1.0)).collect();
        Some(interval(&items, seed))
    }

    /// The first place where `beyond`, linear between looks, is 0 or more.
    fn crossing(&self, task: usize, beyond: impl Fn(&Look) -> f64) -> Option<Crossing> {
        let looks: Vec<&Look> = self.looks.iter().filter(|look| look.task == task).collect();
        let at = looks.iter().position(|look| beyond(look) >= 0.0)?;
        let end = looks[at];
        let start = looks[at.saturating_sub(1)];
        let (from, to) = (beyond(start), beyond(end));
        let share = if at == 0 || to <= from { 1.0 } else { from / (from - to) };
        let between = |a: f64, b: f64| a + share * (b - a);
        Some(Crossing {
            step: between(start.step as f64, end.step as f64),
            new: between(start.new, end.new),
            old: between(start.old, end.old),
            distance: between(start.distance, end.distance),
        })
    }
}

/// What `points` of (step, values), in their order, say at `step`: between two of them linearly, beyond the last as the last.
fn between(points: impl Iterator<Item = (u64, Vec<f64>)>, step: f64) -> Option<Vec<f64>> {
    let mut last: Option<(f64, Vec<f64>)> = None;
    for (at, values) in points {
        let at = at as f64;
        if at >= step {
            let Some((from, before)) = last.filter(|(from, _)| *from < at) else { return Some(values) };
            let share = (step - from) / (at - from);
            return Some(before.iter().zip(values).map(|(a, b)| a + share * (b - a)).collect());
        }
        last = Some((at, values));
    }
    last.map(|(_, values)| values)
}
