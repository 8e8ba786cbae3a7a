//! Train, validation and test: divided by document, so that no text is on both sides. Copies of a document go with it; that there are some is
//! said, and that documents share most of their text with the other side.

use std::collections::BTreeSet;

use rand::seq::SliceRandom;

use super::copies::{first_copies, near_copies};
use super::{Corpus, Task};
use crate::{Error, Result, random};

/// The shares of a task's *bytes* that the splits aim at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SplitShares {
    /// Scan, partition, labels, fit and SMK.
    pub train: f64,
    /// Stopping and calibration.
    pub validation: f64,
    /// Reported once.
    pub test: f64,
}

impl Default for SplitShares {
    fn default() -> Self {
        Self { train: 0.8, validation: 0.1, test: 0.1 }
    }
}

/// A corpus divided by document (`DESIGN.md` § 3). Each part has the same tasks in the same order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Splits {
    /// Scan, partition, labels, fit and SMK.
    pub train: Corpus,
    /// Stopping and calibration.
    pub validation: Corpus,
    /// Reported once.
    pub test: Corpus,
}

impl Splits {
    /// Divides every task: its documents, in an order drawn from `seed`, go one by one to the split that lacks most
    /// bytes of its share, each together with its copies. A task's division does not depend on the other tasks. Warns of copies, and of texts that
    /// share most of their words with the training text.
    ///
    /// ```
    /// use tinyonn::data::{Corpus, SplitShares, Splits, arithmetic};
    /// let corpus = Corpus { tasks: vec![arithmetic(0, 20_000)] };
    /// let splits = Splits::new(&corpus, SplitShares::default(), 0)?;
    /// assert_eq!(splits.train.bytes() + splits.validation.bytes() + splits.test.bytes(), corpus.bytes());
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// Shares that are not positive or do not add up to 1; a task of fewer than three documents that differ.
    pub fn new(corpus: &Corpus, shares: SplitShares, seed: u64) -> Result<Self> {
        let shares = [shares.train, shares.validation, shares.test];
        if shares.iter().any(|share| !share.is_finite() || *share <= 0.0)
            || (shares.iter().sum::<f64>() - 1.0).abs() > 1e-6
        {
            let problem = format!("{shares:?} do not divide a corpus in three");
            return Err(Error::setting("shares", problem, "give three positive shares that add up to 1"));
        }
        let mut parts = [Corpus::default(), Corpus::default(), Corpus::default()];
        for task in &corpus.tasks {
            for (part, task) in parts.iter_mut().zip(split_task(task, shares, seed)?) {
                part.tasks.push(task);
            }
        }
        let [train, validation, test] = parts;
        let near = near_copies(&[&validation, &test], &train);
        for (at, (task, near)) in corpus.tasks.iter().zip(near).enumerate().filter(|(_, (_, near))| *near > 0) {
            let held = validation.tasks[at].documents.len() + test.tasks[at].documents.len();
            tracing::warn!(
                "task {}: {near} of {held} held-out documents share half of their text or more with the training text; \
                 what is measured on them is not of new text",
                task.name
            );
        }
        Ok(Self { train, validation, test })
    }
}

fn split_task(task: &Task, shares: [f64; 3], seed: u64) -> Result<[Task; 3]> {
    let count = task.documents.len();
    let first = first_copies(&task.documents);
    // By its first document, all that have its text.
    let mut copies: Vec<Vec<usize>> = vec![Vec::new(); count];
    first.iter().enumerate().for_each(|(at, first)| copies[*first].push(at));
    let distinct = copies.iter().filter(|copies| !copies.is_empty()).count();
    if distinct < 3 {
        let differ = if distinct < count { format!(", of which {distinct} differ,") } else { String::new() };
        return Err(Error::setting(
            format!("task {}", task.name),
            format!("{count} documents{differ} cannot be divided into train, validation and test"),
            "give a folder with three files or more, a longer text file, or JSON lines with more of them",
        ));
    }
    if distinct < count {
        tracing::warn!(
            "task {}: {} of {count} documents are copies of others; they stay on one side of the split and count as one",
            task.name,
            count - distinct
        );
    }
    let mut order: Vec<usize> = (0..count).collect();
    order.shuffle(&mut random::stream(seed, &format!("data/split/{}", task.name)));

    let total = task.bytes() as f64;
    let mut lacking = shares.map(|share| share * total);
    let mut members: [Vec<usize>; 3] = Default::default();
    for index in order {
        // Where the first of its copies came, all went.
        let all = std::mem::take(&mut copies[first[index]]);
        if all.is_empty() {
            continue;
        }
        let to = (1..3).fold(0, |best, split| if lacking[split] > lacking[best] { split } else { best });
        lacking[to] -= all.iter().map(|at| task.documents[*at].text.len()).sum::<usize>() as f64;
        members[to].push(first[index]);
    }
    // A few large documents can leave a split without any: the fullest one gives its last.
    while let Some(empty) = members.iter().position(Vec::is_empty) {
        let fullest =
            (1..3).fold(0, |best, split| if members[split].len() > members[best].len() { split } else { best });
        let moved = members[fullest].pop();
        members[empty].extend(moved);
    }
    Ok(members.map(|firsts| {
        let firsts: BTreeSet<usize> = firsts.into_iter().collect();
        let documents = task.documents.iter().zip(&first).filter(|(_, first)| firsts.contains(first));
        Task { name: task.name.clone(), documents: documents.map(|(document, _)| document.clone()).collect() }
    }))
}
