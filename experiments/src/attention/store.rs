//! What the study keeps: its settings, directions of keys, and a file a cell, written whole, so that a study that was stopped goes on.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tinyonn::Result;
use tinyonn::checkpoint::KeyDirections;
use tinyonn::phases::summary;

use super::{AttentionConfig, AttentionRecord, Cell};
use crate::compare::record::{REPEAT, read};
use crate::fragments::ATTENTION;
use crate::places::claim;
use crate::study_folder::{CELLS, PLACES, StudyFolder};

/// The folder of a study.
#[derive(Clone, Debug)]
pub struct AttentionStore {
    folder: StudyFolder,
}

impl AttentionStore {
    /// In the folder `out`.
    #[must_use]
    pub fn new(out: &Path) -> Self {
        Self { folder: StudyFolder::new(out, ATTENTION) }
    }

    /// Makes the folder, or checks that the study that was begun in it is this one.
    ///
    /// # Errors
    /// A folder of something else; records of other settings.
    pub fn begin(&self, config: &AttentionConfig) -> Result<()> {
        self.folder.begin(config, &[], deciding)
    }

    /// The settings of the study that was begun in it.
    ///
    /// # Errors
    /// There is none.
    pub fn begun(&self) -> Result<AttentionConfig> {
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
    pub fn record(&self, cell: &Cell) -> Result<Option<AttentionRecord>> {
        read(&self.file(cell), REPEAT)
    }

    /// Keeps it.
    ///
    /// # Errors
    /// A figure that is no finite number; what the system reports.
    pub fn keep(&self, record: &AttentionRecord) -> Result<()> {
        summary::write(record, &self.file(&record.cell))
    }

    /// Where the directions of keys lie that all processes choose by.
    pub(super) fn directions(&self) -> PathBuf {
        KeyDirections::place(&self.folder.out)
    }

    /// The place of whoever makes `cell`, or `None` where another process has it.
    ///
    /// # Errors
    /// What the system reports.
    pub fn claim(&self, cell: &Cell) -> Result<Option<Vec<File>>> {
        claim(&self.folder.out.join(PLACES), [cell.id().as_str()])
    }
}

/// The settings without what does not decide a cell's figures.
fn deciding(config: &AttentionConfig) -> Value {
    let mut value = json!(config);
    if let Some(settings) = value.as_object_mut() {
        // Where it lies is each machine's own.
        let name = config.model.file_name().map(|name| name.to_string_lossy());
        settings.insert("model".into(), json!(name));
        for key in ["out", "results", "material", "device", "shares"] {
            settings.remove(key);
        }
    }
    value
}
