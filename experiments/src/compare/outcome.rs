//! What the records of a comparison say together: means over seeds, and differences paired by seed and document.

use std::collections::BTreeMap;

use super::record::{self, CellRecord, LossRecord, Store, SubjectRecord};
use super::{Cell, CompareConfig};
use crate::frontier::recovery;
use tinyonn::metrics::{Interval, interval};
use tinyonn::phases::LabelUnit;
use tinyonn::{Error, Result};

/// A subject and its cells by id.
pub struct Finished {
    /// The dense model.
    pub subject: SubjectRecord,
    /// The cells that are done.
    pub cells: BTreeMap<String, CellRecord>,
}

/// All subjects of a comparison.
pub struct Outcome {
    /// By corpus in the configuration's order, then by seed.
    pub corpora: Vec<(String, Vec<Finished>)>,
    seed: u64,
}

/// Where a loss is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Along the labels' paths, no router between.
    Paths,
    /// Through fitted routers.
    Routers,
    /// Along the paths of the labels that those routers were fitted to.
    RoutersLabels,
}

impl Finished {
    /// What `cell` gave, whatever else than it reads it says.
    #[must_use]
    pub fn cell(&self, cell: &Cell) -> Option<&CellRecord> {
        self.cells.get(&cell.canonical().id())
    }
}

impl CellRecord {
    /// The loss, where it was measured.
    #[must_use]
    pub fn loss(&self, via: Via) -> Option<&LossRecord> {
        match via {
            Via::Paths => Some(&self.paths),
            Via::Routers => self.routed.as_ref().map(|routed| &routed.loss),
            Via::RoutersLabels => {
                // Where nothing is drawn, and a task is what is labelled, there is but one path.
                let one = self.draws.is_empty() && self.cell.label == LabelUnit::Task;
                self.routed.as_ref()?.own_paths.as_ref().or(one.then_some(&self.paths))
            }
        }
    }
}

impl Outcome {
    /// Reads all records.
    ///
    /// # Errors
    /// A subject that has not been run; a record that cannot be read.
    pub fn read(config: &CompareConfig) -> Result<Self> {
        let store = Store::new(&config.out);
        let finished = |corpus: &str, seed: u64| -> Result<Finished> {
            let path = store.subject_file(corpus, seed);
            let missing = || Error::file(&path, "is not there", "run exp_compare again: it goes on where it stopped");
            let subject: SubjectRecord = record::read(&path, record::REPEAT)?.ok_or_else(missing)?;
            let (documents, tasks) = (subject.documents.len(), subject.tasks.len());
            let is_square = |of: &Vec<Vec<f64>>| of.len() == tasks && of.iter().all(|row| row.len() == tasks);
            if [&subject.dense, &subject.without].into_iter().any(|loss| loss.sums.len() != documents)
                || !subject.causal.iter().all(|found| is_square(&found.delta))
            {
                let problem = "is not whole: its losses are not of its documents, or its causal part not of its tasks";
                return Err(Error::file(&path, problem, record::REPEAT));
            }
            let cells = config.cells().into_iter().filter_map(|cell| {
                let path = store.cell_file(corpus, seed, &cell);
                let found = record::read::<CellRecord>(&path, record::REPEAT).transpose()?;
                let fits = |found: CellRecord| {
                    let documents = subject.documents.len();
                    let losses = found.routed.iter().flat_map(|routed| [Some(&routed.loss), routed.own_paths.as_ref()]);
                    let whole = losses.flatten().chain([&found.paths]).all(|loss| loss.sums.len() == documents);
                    if whole && found.routed.as_ref().is_none_or(|routed| !routed.accuracy.is_empty()) {
                        return Ok((cell.id(), found));
                    }
                    let problem = "is not whole: it is of other documents than its subject, or of no level";
                    Err(Error::file(&path, problem, "remove it, and run exp_compare again"))
                };
                Some(found.and_then(fits))
            });
            let cells = cells.collect::<Result<_>>()?;
            Ok(Finished { subject, cells })
        };
        let of_corpus = |corpus: &super::CorpusConfig| {
            let seeds = config.seeds.iter().map(|seed| finished(&corpus.name, *seed)).collect::<Result<Vec<_>>>()?;
            Ok((corpus.name.clone(), seeds))
        };
        Ok(Self {
            corpora: config.corpora.iter().map(of_corpus).collect::<Result<_>>()?,
            seed: config.seeds.first().copied().unwrap_or(0),
        })
    }

    /// The cells of the grid that have no record, by text, seed and name.
    #[must_use]
    pub fn not_run(&self, config: &CompareConfig) -> Vec<String> {
        let cells = config.cells();
        let of = |(name, finished): (&String, &Finished)| {
            let left = cells.iter().filter(|cell| !finished.cells.contains_key(&cell.id()));
            left.map(|cell| format!("{name}-{}/{}", finished.subject.seed, cell.id())).collect::<Vec<_>>()
        };
        let all = self.corpora.iter().flat_map(|(name, seeds)| seeds.iter().map(move |finished| (name, finished)));
        all.flat_map(of).collect()
    }

    /// The mean loss of each seed; empty unless all seeds have it.
    #[must_use]
    pub fn by_seed(&self, corpus: &[Finished], cell: &Cell, via: Via) -> Vec<f64> {
        let losses = corpus.iter().map(|finished| Some(finished.cell(cell)?.loss(via)?.mean));
        losses.collect::<Option<Vec<_>>>().unwrap_or_default()
    }

    /// L(a) − L(b) in nats a token, drawn over the documents of all seeds, each document read under both.
    #[must_use]
    pub fn paired(&self, corpus: &[Finished], a: (&Cell, Via), b: (&Cell, Via)) -> Option<Interval> {
        let mut clusters = Vec::new();
        for finished in corpus {
            let sums = |(cell, via): (&Cell, Via)| Some(&finished.cell(cell)?.loss(via)?.sums);
            let documents = sums(a)?.iter().zip(sums(b)?).zip(&finished.subject.documents);
            clusters.extend(documents.map(|((a, b), (_, tokens))| (a - b, *tokens)));
        }
        Some(interval(&clusters, self.seed))
    }

    /// L(a) − L(b) in nats a token, of each seed.
    #[must_use]
    pub fn paired_by_seed(&self, corpus: &[Finished], a: (&Cell, Via), b: (&Cell, Via)) -> Option<Vec<f64>> {
        let of_seed = |finished: &Finished| {
            let sums = |(cell, via): (&Cell, Via)| Some(&finished.cell(cell)?.loss(via)?.sums);
            let difference: f64 = sums(a)?.iter().zip(sums(b)?).map(|(a, b)| a - b).sum();
            Some(difference / finished.subject.documents.iter().map(|(_, tokens)| tokens).sum::<f64>())
        };
        corpus.iter().map(of_seed).collect()
    }

    /// (L_noMLP − L)/(L_noMLP − L_dense), over the documents of all seeds; none where the MLPs are worth nothing.
    #[must_use]
    pub fn recovery(&self, corpus: &[Finished], cell: &Cell, via: Via) -> Option<Interval> {
        let mut documents = Vec::new();
        for finished in corpus {
            let (subject, own) = (&finished.subject, &finished.cell(cell)?.loss(via)?.sums);
            let of = own.iter().zip(&subject.dense.sums).zip(&subject.without.sums);
            documents.extend(of.map(|((own, dense), without)| [*own, *dense, *without]));
        }
        recovery(documents.into_iter(), self.seed)
    }
}

/// The mean of some numbers.
#[cfg(feature = "pictures")]
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
