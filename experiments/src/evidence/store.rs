//! What a study keeps: its settings, and a file a cell, another of a finalist's answers, written whole, so that a study that was stopped goes on.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tinyonn::phases::summary;
use tinyonn::{Error, Result};

use super::{Cell, CellAnswers, CellRecord, EvidenceConfig, Speed};
use crate::compare::record::{REPEAT, read};
use crate::fragments::EVIDENCE;
use crate::places::claim;
use crate::study_folder::{CELLS, PLACES, StudyFolder};

/// The folder of the answers.
const ANSWERS: &str = "answers";
/// The folder of what was timed.
const SPEEDS: &str = "speeds";

/// What is not there of a cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lacking {
    /// Which.
    pub cell: Cell,
    /// Its losses.
    pub record: bool,
    /// Of a finalist, the answers that are asked for.
    pub answers: bool,
}

impl Lacking {
    /// Whether something is.
    #[must_use]
    pub fn any(&self) -> bool {
        self.record || self.answers
    }
}

/// The folder of a study.
#[derive(Clone, Debug)]
pub struct EvidenceStore {
    folder: StudyFolder,
}

impl EvidenceStore {
    /// In the folder `out`.
    #[must_use]
    pub fn new(out: &Path) -> Self {
        Self { folder: StudyFolder::new(out, EVIDENCE) }
    }

    /// Makes the folder, or checks that the study that was begun in it is this one. Which sources made a cell its record says.
    ///
    /// # Errors
    /// A folder of something else; records of other settings.
    pub fn begin(&self, config: &EvidenceConfig) -> Result<()> {
        self.folder.begin(config, &[ANSWERS], deciding)
    }

    /// The settings of the study that was begun in it.
    ///
    /// # Errors
    /// There is none.
    pub fn begun(&self) -> Result<EvidenceConfig> {
        self.folder.begun()
    }

    /// The record's file.
    #[must_use]
    pub fn file(&self, cell: &Cell) -> PathBuf {
        self.folder.file(CELLS, &cell.id())
    }

    /// What was found of `cell`, if it was made.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn record(&self, cell: &Cell) -> Result<Option<CellRecord>> {
        read(&self.file(cell), REPEAT)
    }

    /// Keeps it.
    ///
    /// # Errors
    /// A figure that is no finite number; what the system reports.
    pub fn keep(&self, record: &CellRecord) -> Result<()> {
        summary::write(record, &self.file(&record.cell))
    }

    /// What `cell` answers, if it was asked.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn answers(&self, cell: &Cell) -> Result<Option<CellAnswers>> {
        read(&self.answers_file(cell), REPEAT)
    }

    /// Keeps them.
    ///
    /// # Errors
    /// A figure that is no finite number; what the system reports.
    pub fn keep_answers(&self, answers: &CellAnswers) -> Result<()> {
        summary::write(answers, &self.answers_file(&answers.cell))
    }

    fn answers_file(&self, cell: &Cell) -> PathBuf {
        self.folder.file(ANSWERS, &cell.id())
    }

    /// What is lacking of `cell`. Answers to other items than `config` asks, or made of another dense model than that of the SHA-256, are none.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn lacking(&self, config: &EvidenceConfig, cell: &Cell, model_sha256: &str) -> Result<Lacking> {
        let whole = |answers: &CellAnswers| answers.are_asked(config) && answers.model_sha256 == model_sha256;
        let answers = config.is_final(cell) && !self.answers(cell)?.as_ref().is_some_and(whole);
        Ok(Lacking { cell: *cell, record: !self.file(cell).exists(), answers })
    }

    /// The file of its times.
    #[must_use]
    pub fn speed_file(&self, cell: &Cell) -> PathBuf {
        self.folder.file(SPEEDS, &cell.id())
    }

    /// How fast `cell` is, if it was timed.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn speed(&self, cell: &Cell) -> Result<Option<Speed>> {
        read(&self.speed_file(cell), "time it again: remove the file, and give --time")
    }

    /// Keeps it.
    ///
    /// # Errors
    /// A figure that is no finite number; what the system reports.
    pub fn keep_speed(&self, speed: &Speed) -> Result<()> {
        let folder = self.folder.out.join(SPEEDS);
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        summary::write(speed, &self.speed_file(&speed.cell))
    }

    /// The places of whoever makes `cells`: nobody else makes one of them as long as what is returned lives. `None` where another process has one.
    ///
    /// # Errors
    /// What the system reports.
    pub fn claim(&self, cells: &[Cell]) -> Result<Option<Vec<File>>> {
        let names: Vec<String> = cells.iter().map(Cell::id).collect();
        claim(&self.folder.out.join(PLACES), names.iter().map(String::as_str))
    }
}

/// The settings without what does not decide a cell's figures.
fn deciding(config: &EvidenceConfig) -> Value {
    let mut value = json!(config);
    if let Some(settings) = value.as_object_mut() {
        // Where it lies is each machine's own.
        let name = config.model.file_name().map(|name| name.to_string_lossy());
        settings.insert("model".into(), json!(name));
        // Answers say which items they are to.
        for key in ["out", "results", "material", "device", "seeds", "together", "items", "tasks"] {
            settings.remove(key);
        }
        // Where the steps are part of a cell's name.
        if let Some(distil) = settings.get_mut("distil").and_then(Value::as_object_mut) {
            distil.remove("steps");
        }
    }
    value
}
