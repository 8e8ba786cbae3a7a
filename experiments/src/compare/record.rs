//! What a comparison keeps: a file for each subject and each cell, written whole, so that a comparison that was stopped goes on.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Cell;
use crate::causal::Intervention;
use tinyonn::imaging::LabelStatistics;
use tinyonn::moe::LoadFigures;
use tinyonn::train::Losses;
use tinyonn::{Error, Result};

/// A dense model and its text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SubjectRecord {
    /// The corpus' name.
    pub corpus: String,
    /// The seed.
    pub seed: u64,
    /// What identifies the text.
    pub corpus_sha256: String,
    /// The tasks' names.
    pub tasks: Vec<String>,
    /// The documents that losses are taken over, by task and tokens.
    pub documents: Vec<(usize, f64)>,
    /// Parameters of the dense model.
    pub parameters: usize,
    /// All active.
    pub dense: LossRecord,
    /// No MLP at all.
    pub without: LossRecord,
    /// What ablating and amplifying does.
    pub causal: Vec<Intervention>,
    /// Wall-clock, without pretraining.
    pub seconds: f64,
}

/// What one cell gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CellRecord {
    /// The cell.
    pub cell: Cell,
    /// Along the labels' paths, the task known.
    pub paths: LossRecord,
    /// The means of the draws, where labels are drawn; `paths` is their mean.
    pub draws: Vec<f64>,
    /// How much the labels say.
    pub labels: LabelStatistics,
    /// Through routers fitted to the labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routed: Option<RoutedRecord>,
    /// Wall-clock.
    pub seconds: f64,
}

/// What routers made of labels.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RoutedRecord {
    /// The loss.
    pub loss: LossRecord,
    /// Along the paths of the labels that the routers were fitted to, of those drawn the first; none where tokens have their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_paths: Option<LossRecord>,
    /// Held-out accuracy by level, mean over layers, and that of the commonest path.
    pub accuracy: Vec<(f64, f64)>,
    /// Neurons that a routed token uses.
    pub active_share: f64,
    /// What each expert was given to do.
    pub load: LoadFigures,
    /// One sentence for each layer whose load has collapsed beside what the labels ask for.
    pub collapsed: Vec<String>,
}

/// Losses on the test split.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LossRecord {
    /// Nats a token.
    pub mean: f64,
    /// The same by task.
    pub by_task: Vec<f64>,
    /// Σ over each of the subject's documents.
    pub sums: Vec<f64>,
}

impl LossRecord {
    /// The mean over draws.
    #[must_use]
    pub fn mean_of(draws: &[Losses]) -> Self {
        let over = |f: &dyn Fn(&Losses) -> f64| draws.iter().map(f).sum::<f64>() / draws.len().max(1) as f64;
        let first = draws.first();
        let (tasks, documents) = first.map_or((0, 0), |losses| (losses.by_task.len(), losses.by_document.len()));
        Self {
            mean: over(&|losses| losses.mean),
            by_task: (0..tasks).map(|task| over(&|losses| losses.by_task[task])).collect(),
            sums: (0..documents).map(|at| over(&|losses| losses.by_document[at].sum)).collect(),
        }
    }
}

/// Where a comparison keeps what.
#[derive(Clone, Debug)]
pub struct Store {
    out: PathBuf,
}

impl Store {
    /// In the folder `out`.
    #[must_use]
    pub fn new(out: &Path) -> Self {
        Self { out: out.to_path_buf() }
    }

    /// The folder of a subject.
    #[must_use]
    pub fn subject(&self, corpus: &str, seed: u64) -> PathBuf {
        self.out.join("subjects").join(format!("{corpus}-{seed}"))
    }

    /// The file of a subject's own record.
    #[must_use]
    pub fn subject_file(&self, corpus: &str, seed: u64) -> PathBuf {
        self.subject(corpus, seed).join("subject.json")
    }

    /// The file of a cell.
    #[must_use]
    pub fn cell_file(&self, corpus: &str, seed: u64, cell: &Cell) -> PathBuf {
        self.subject(corpus, seed).join("cells").join(format!("{}.json", cell.id()))
    }
}

/// Writes `record`.
pub(super) fn write(record: &impl Serialize, path: &Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    }
    tinyonn::phases::summary::write(record, path)
}

/// What to do with the record of a subject or a cell that cannot be read.
pub(crate) const REPEAT: &str = "remove the file: what it holds is measured again";

/// Reads a record; `None` where there is none. Of one that cannot be read, `remedy` is said.
pub(crate) fn read<R: DeserializeOwned>(path: &Path, remedy: &str) -> Result<Option<R>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
    };
    serde_json::from_slice(&text).map(Some).map_err(|e| Error::file(path, e.to_string(), remedy))
}
