//! What the study keeps: its settings, directions of keys, and a file a cell, written whole, so that a study that was stopped goes on.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tinyonn::checkpoint::KeyDirections;
use tinyonn::phases::summary;
use tinyonn::train::checkpoints::differences;
use tinyonn::{Error, Result, files};

use super::{AttentionConfig, AttentionRecord, Cell};
use crate::compare::record::{REPEAT, read};
use crate::places::claim;

/// The file that a study's settings are in.
const BEGUN: &str = "attention.json";
/// The folder of the records.
const CELLS: &str = "cells";
/// The folder of the places that processes hold while they make a cell.
const PLACES: &str = "places";

#[derive(Serialize, Deserialize)]
struct Begun {
    settings: AttentionConfig,
}

/// The folder of a study.
#[derive(Clone, Debug)]
pub struct AttentionStore {
    out: PathBuf,
}

impl AttentionStore {
    /// In the folder `out`.
    #[must_use]
    pub fn new(out: &Path) -> Self {
        Self { out: out.to_path_buf() }
    }

    /// Makes the folder, or checks that the study that was begun in it is this one.
    ///
    /// # Errors
    /// A folder of something else; records of other settings.
    pub fn begin(&self, config: &AttentionConfig) -> Result<()> {
        let path = self.out.join(BEGUN);
        if path.exists() {
            let named = differences(&deciding(&self.begun()?), &deciding(config));
            if !named.is_empty() {
                let problem = format!("was begun with other settings: {}", named.join("; "));
                return Err(Error::file(&self.out, problem, "give those, or name another folder with --out"));
            }
        } else if files::is_used(&self.out)? {
            let remedy = "name another folder with --out";
            return Err(Error::file(&self.out, "exists, is not empty, and is no study of attention", remedy));
        }
        for folder in [CELLS, PLACES] {
            let folder = self.out.join(folder);
            fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        }
        let text = serde_json::to_string_pretty(&Begun { settings: config.clone() });
        let text = text.map_err(|e| Error::file(&path, e.to_string(), "report this as a defect"))?;
        files::write(path, text + "\n")
    }

    /// The settings of the study that was begun in it.
    ///
    /// # Errors
    /// There is none.
    pub fn begun(&self) -> Result<AttentionConfig> {
        let path = self.out.join(BEGUN);
        let remedy = "begin a study with exp_attention, or name its folder with --out";
        let begun: Option<Begun> = read(&path, REPEAT)?;
        Ok(begun.ok_or_else(|| Error::file(&path, "is not there", remedy))?.settings)
    }

    /// The record's file.
    #[must_use]
    pub fn file(&self, cell: &Cell) -> PathBuf {
        self.out.join(CELLS).join(format!("{}.json", cell.id()))
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
        KeyDirections::place(&self.out)
    }

    /// The place of whoever makes `cell`, or `None` where another process has it.
    ///
    /// # Errors
    /// What the system reports.
    pub fn claim(&self, cell: &Cell) -> Result<Option<Vec<File>>> {
        claim(&self.out.join(PLACES), [cell.id().as_str()])
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
