//! What a finalist answers to benchmarks: kept beside its record, so that other items are asked without its losses being measured anew.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tinyonn::benchmark::{Answer, BenchmarkTask, TASKS, TaskFigures};
use tinyonn::{Error, Result};

use super::{Cell, EvidenceConfig, KindLosses};

/// Which items of each benchmark are asked: in a file `"all"`, or how many.
///
/// ```
/// use experiments::evidence::Items;
///
/// assert_eq!(serde_json::from_str::<Items>("1000").unwrap(), Items::First(1000));
/// assert_eq!(serde_json::to_string(&Items::All).unwrap(), "\"all\"");
/// assert!(serde_json::from_str::<Items>("\"some\"").is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Items {
    /// Every one.
    All,
    /// So many, those that stand first.
    First(usize),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Count(usize),
    Word(String),
}

impl From<Items> for Written {
    fn from(items: Items) -> Self {
        match items {
            Items::All => Self::Word("all".into()),
            Items::First(count) => Self::Count(count),
        }
    }
}

impl TryFrom<Written> for Items {
    type Error = String;

    fn try_from(written: Written) -> std::result::Result<Self, String> {
        match written {
            Written::Count(count) => Ok(Self::First(count)),
            Written::Word(word) if word == "all" => Ok(Self::All),
            Written::Word(word) => Err(format!("`{word}` says not which items; give a number, or \"all\"")),
        }
    }
}

/// Answers to a benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskAnswers {
    /// What they are worth.
    pub figures: TaskFigures,
    /// Of each item whether it is right.
    pub right: Vec<bool>,
}

impl TaskAnswers {
    pub(crate) fn new(figures: TaskFigures, answers: &[Answer]) -> Self {
        Self { figures, right: answers.iter().map(|answer| answer.right).collect() }
    }
}

/// Answers of a finalist. Records keep no models: where answers are asked for later than its losses, the model is made once more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellAnswers {
    /// Which.
    pub cell: Cell,
    /// SHA-256 of the sources of the library that made the model that answered.
    pub sources: String,
    /// SHA-256 of the dense model's weights.
    pub model_sha256: String,
    /// Items that were asked for.
    pub items: Items,
    /// Validation loss of the model that answered, nats a token, mean over kinds: that of the record, where both are of one model.
    pub validation: f64,
    /// Of that model, on the test split, how far the next token's distribution is from the dense model's, nats in place of losses: what tells models apart that
    /// learnt, where losses on text of the kinds that they learnt on do not. Of the dense model nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub divergence: Vec<KindLosses>,
    /// By benchmark.
    pub tasks: Vec<TaskAnswers>,
    /// Wall-clock by stage.
    pub seconds: BTreeMap<String, f64>,
}

impl CellAnswers {
    /// Whether they are to what the study asks.
    #[must_use]
    pub fn are_asked(&self, config: &EvidenceConfig) -> bool {
        let tasks = self.tasks.iter().map(|task| task.figures.task.as_str());
        self.items == config.items && tasks.eq(config.tasks.iter().map(String::as_str))
    }
}

impl EvidenceConfig {
    /// The benchmarks, with the items that are asked.
    pub(super) fn benchmarks(&self) -> Result<Vec<BenchmarkTask>> {
        let read = |name: &String| {
            let Some((_, folder)) = TASKS.iter().find(|(known, _)| known == name) else {
                let known = TASKS.map(|(known, _)| known).join(", ");
                return Err(Error::setting("tasks", format!("`{name}` is not known"), format!("choose from {known}")));
            };
            let mut task = BenchmarkTask::read(self.material.join("benchmarks").join(folder))?;
            if let Items::First(count) = self.items {
                task.items.truncate(count);
            }
            Ok(task)
        };
        self.tasks.iter().map(read).collect()
    }
}
