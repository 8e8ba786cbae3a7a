//! What a model answers to each item of a task.

use std::path::Path;

use serde::Serialize;

use super::request_tokens::encode;
use super::{BenchmarkTask, Item, Metric};
use crate::data::TextTokenizer;
use crate::decoder::{Continuation, Likelihood};
use crate::metrics::Progress;
use crate::{Error, Result, files};

/// The answer to one item: figures alone, none of its text.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Answer {
    /// The item's number in the file.
    pub item: u64,
    /// Of each choice, in nats (in a file null, where it is not a number).
    pub log_likelihoods: Vec<f64>,
    /// Of each continuation: tokens that were scored, ..
    pub tokens: Vec<usize>,
    /// .. bytes, ..
    pub bytes: Vec<usize>,
    /// .. and characters.
    pub characters: Vec<usize>,
    /// The choice that is the model's answer, if there is one: [`Metric::answer`].
    pub answer: Option<usize>,
    /// The right one.
    pub gold: usize,
    /// Whether they are the same.
    pub right: bool,
    /// Tokens of a context that were left out so that the model could read the rest, at most.
    pub cut: usize,
}

impl Answer {
    /// −ℓ / (n ln 2) of the right choice, n its bytes: how many bits a model needs for a byte of it.
    #[must_use]
    pub fn bits_per_byte(&self) -> f64 {
        -self.log_likelihoods[self.gold] / (self.bytes[self.gold] as f64 * std::f64::consts::LN_2)
    }
}

/// The answers to all items of `task` of a model that reads `most` positions. `likelihoods` is that model: of the continuations of `together` items at once, with the
/// flag whether greedy matches are asked for, it says how probable each is. One item at a time shares its context and reads least; several, those of like length, fill a GPU.
///
/// # Errors
/// A continuation longer than the model can read; what tokenizer and model report.
pub fn answers(
    task: &BenchmarkTask,
    tokenizer: &TextTokenizer,
    most: usize,
    together: usize,
    mut likelihoods: impl FnMut(&[Continuation], bool) -> Result<Vec<Likelihood>>,
) -> Result<Vec<Answer>> {
    let progress = Progress::new(task.items.len() as u64, &task.name);
    let mut asked = Vec::with_capacity(task.items.len());
    for item in &task.items {
        let encoded = item.choices.iter().map(|choice| encode(tokenizer, choice, most)).collect::<Result<Vec<_>>>();
        let (own, cut): (Vec<Continuation>, Vec<usize>) =
            encoded.map_err(|error| of_item(error, &task.name, item.id))?.into_iter().unzip();
        asked.push((own, cut.into_iter().max().unwrap_or(0)));
    }
    // Items together of which as much is given, and that are of like length: what one begins with is read once, and the shorter ones of a batch are padded to its longest.
    let mut order: Vec<usize> = (0..asked.len()).collect();
    if together > 1 {
        let given = |at: &usize| asked[*at].0.iter().map(|one| one.from).min();
        order.sort_by_key(|at| (given(at), asked[*at].0.iter().map(|one| one.tokens.len()).max()));
    }
    let mut found: Vec<Option<Answer>> = vec![None; asked.len()];
    let mut done = 0;
    for items in order.chunks(together.max(1)) {
        let own: Vec<Continuation> = items.iter().flat_map(|at| asked[*at].0.iter().cloned()).collect();
        let said = likelihoods(&own, task.metric == Metric::GreedyMatch)?;
        if said.len() != own.len() {
            let problem = format!("{} for {} continuations", said.len(), own.len());
            return Err(Error::setting("likelihoods", problem, "give one for each"));
        }
        let mut answered = own.iter().zip(said);
        for at in items {
            let item = &task.items[*at];
            let said: Vec<(&Continuation, Likelihood)> = answered.by_ref().take(item.choices.len()).collect();
            found[*at] = Some(answer(task.metric, item, &said, asked[*at].1));
        }
        done += items.len();
        progress.update(done as u64, &[], own.iter().map(|one| one.tokens.len() as u64).sum());
    }
    progress.finish();
    Ok(found.into_iter().flatten().collect())
}

/// What an item's choices were said to be.
fn answer(metric: Metric, item: &Item, said: &[(&Continuation, Likelihood)], cut: usize) -> Answer {
    let continuations = || item.choices.iter().map(|choice| &choice.continuation);
    let log_likelihoods: Vec<f64> = said.iter().map(|(_, one)| one.log_likelihood).collect();
    let characters: Vec<usize> = continuations().map(|text| text.chars().count()).collect();
    let greedy: Vec<Option<bool>> = said.iter().map(|(_, one)| one.greedy).collect();
    let answer = metric.answer(&log_likelihoods, &characters, &greedy);
    Answer {
        item: item.id,
        tokens: said.iter().map(|(one, _)| one.tokens.len() - one.from).collect(),
        bytes: continuations().map(String::len).collect(),
        characters,
        log_likelihoods,
        answer,
        gold: item.gold,
        right: answer == Some(item.gold),
        cut,
    }
}

/// Writes `answers` to the file `path`, one JSON object a line.
///
/// # Errors
/// What the system reports.
pub fn write_answers(path: impl AsRef<Path>, answers: &[Answer]) -> Result<()> {
    let path = path.as_ref();
    let mut lines = String::new();
    for answer in answers {
        let line = serde_json::to_string(answer);
        lines += &line.map_err(|e| Error::file(path, e.to_string(), "report this as a defect"))?;
        lines.push('\n');
    }
    files::write(path, lines)
}

/// What is wrong with a text, said of the item that it is of.
fn of_item(error: Error, task: &str, item: u64) -> Error {
    match error {
        Error::Setting { name, problem, remedy } => {
            Error::Setting { name, problem: format!("item {item} of {task}: {problem}"), remedy }
        }
        other => other,
    }
}
