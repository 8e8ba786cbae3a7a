//! What answers are worth: accuracy beside what is had without any model, and bits a byte.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::{Answer, BenchmarkTask, Metric};
use crate::metrics::{Interval, interval};
use crate::{Error, Result};

/// The figures of a task. Intervals are 95 % percentile bootstraps over items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TaskFigures {
    /// As the task's config.json calls it.
    pub task: String,
    /// How it is answered.
    pub metric: Metric,
    /// Items answered.
    pub items: usize,
    /// Identifies them: [`BenchmarkTask::sha256`].
    pub items_sha256: String,
    /// The share of right answers.
    pub accuracy: Interval,
    /// The share that guessing gets right: the mean of 1 / choices.
    pub chance: f64,
    /// The share that the best constant answer gets right: [`best_constant`].
    pub constant: f64,
    /// The greater of the two: what an accuracy has to be compared with.
    pub floor: f64,
    /// Whether the lower end of the accuracy lies above the floor. Without it the accuracy says nothing of the model, and only bits a byte do.
    pub signal: bool,
    /// Of the right choices, the mean over items of −ℓ / (n ln 2), n bytes.
    pub bits_per_byte: Interval,
    /// Items of which the model could not read the whole context.
    pub cut: usize,
}

impl TaskFigures {
    /// Of all items of `task`, in their order; `seed` draws the intervals.
    ///
    /// # Errors
    /// Answers to other items.
    pub fn new(task: &BenchmarkTask, answers: &[Answer], seed: u64) -> Result<Self> {
        if answers.is_empty() || !answers.iter().map(|answer| answer.item).eq(task.items.iter().map(|item| item.id)) {
            let problem =
                format!("{} answers are not those to the {} items of {}", answers.len(), task.items.len(), task.name);
            return Err(Error::setting("answers", problem, "give one for each item, in their order"));
        }
        let mean = |value: &dyn Fn(&Answer) -> f64| {
            interval(&answers.iter().map(|answer| (value(answer), 1.0)).collect::<Vec<_>>(), seed)
        };
        let accuracy = mean(&|answer| f64::from(u8::from(answer.right)));
        let (chance, constant) = (chance(task), best_constant(task));
        let floor = chance.max(constant);
        Ok(Self {
            task: task.name.clone(),
            metric: task.metric,
            items: answers.len(),
            items_sha256: task.sha256(),
            accuracy,
            chance,
            constant,
            floor,
            signal: accuracy.low > floor,
            bits_per_byte: mean(&Answer::bits_per_byte),
            cut: answers.iter().filter(|answer| answer.cut > 0).count(),
        })
    }
}

/// Nobody guesses what is to be written freely.
fn chance(task: &BenchmarkTask) -> f64 {
    if task.metric == Metric::GreedyMatch {
        return 0.0;
    }
    task.items.iter().map(|item| 1.0 / item.choices.len() as f64).sum::<f64>() / task.items.len() as f64
}

/// The share of items that the best constant answer gets right: the same text wherever it is a choice (yes, of yes and no), or the same
/// place among the choices. A place where *all* right answers stand is how a file was written, and no answer: it does not count.
///
/// ```
/// use tinyonn::benchmark::{BenchmarkTask, Choice, Item, Metric, best_constant};
///
/// let choices = || ["yes", "no"].map(|text| Choice { context: "?".into(), continuation: text.into() }).to_vec();
/// let item = |id, gold| Item { id, choices: choices(), gold };
/// let task = BenchmarkTask { name: "asked".into(), metric: Metric::Sum, items: vec![item(0, 0), item(1, 0), item(2, 1)] };
/// // Who always says yes is right twice in three times: more than the half that guessing gets.
/// assert_eq!(best_constant(&task), 2.0 / 3.0);
/// ```
#[must_use]
pub fn best_constant(task: &BenchmarkTask) -> f64 {
    let (mut texts, mut places) = (HashMap::<&str, usize>::new(), HashMap::<usize, usize>::new());
    for item in &task.items {
        let continuations: HashSet<&str> = item.choices.iter().map(|choice| choice.continuation.as_str()).collect();
        // Where two choices read alike, their text is no answer.
        if continuations.len() == item.choices.len() {
            *texts.entry(&item.choices[item.gold].continuation).or_default() += 1;
        }
        *places.entry(item.gold).or_default() += 1;
    }
    let place = if places.len() > 1 { places.into_values().max() } else { None };
    let text = texts.into_values().max();
    text.max(place).unwrap_or(0) as f64 / task.items.len().max(1) as f64
}
