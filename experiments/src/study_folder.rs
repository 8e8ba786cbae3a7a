//! The folder of a study of cells: its settings, which a later command must share, and the folders of what it finds.

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tinyonn::train::checkpoints::differences;
use tinyonn::{Error, Result, files};

use crate::compare::record::{REPEAT, read};
use crate::fragments::Study;

/// The folder of the records.
pub(crate) const CELLS: &str = "cells";
/// The folder of the places that processes hold while they make a cell.
pub(crate) const PLACES: &str = "places";

#[derive(Serialize, Deserialize)]
struct Begun<C> {
    settings: C,
}

/// The folder `out` of a study, whose settings lie in `NAME.json`.
#[derive(Clone, Debug)]
pub(crate) struct StudyFolder {
    pub(crate) out: PathBuf,
    study: Study,
}

impl StudyFolder {
    pub(crate) fn new(out: &Path, study: Study) -> Self {
        Self { out: out.to_path_buf(), study }
    }

    fn settings(&self) -> PathBuf {
        self.out.join(self.study.name).with_extension("json")
    }

    /// Makes the folder with `own` folders in it, or checks that the study that was begun there is that of `config`: by what `deciding` leaves of the settings.
    ///
    /// # Errors
    /// A folder of something else; records of other settings.
    pub(crate) fn begin<C>(&self, config: &C, own: &[&str], deciding: impl Fn(&C) -> Value) -> Result<()>
    where
        C: Serialize + DeserializeOwned,
    {
        let path = self.settings();
        if path.exists() {
            let named = differences(&deciding(&self.begun()?), &deciding(config));
            if !named.is_empty() {
                let problem = format!("was begun with other settings: {}", named.join("; "));
                return Err(Error::file(&self.out, problem, "give those, or name another folder with --out"));
            }
        } else if files::is_used(&self.out)? {
            let problem = format!("exists, is not empty, and is no study of {}", self.study.name);
            return Err(Error::file(&self.out, problem, "name another folder with --out"));
        }
        for folder in [CELLS, PLACES].iter().chain(own) {
            let folder = self.out.join(folder);
            fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        }
        let text = serde_json::to_string_pretty(&Begun { settings: config });
        let text = text.map_err(|e| Error::file(&path, e.to_string(), "report this as a defect"))?;
        files::write(path, text + "\n")
    }

    /// The settings of the study that was begun in it.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn begun<C: DeserializeOwned>(&self) -> Result<C> {
        let path = self.settings();
        let remedy = format!("begin a study with {}, or name its folder with --out", self.study.program);
        let begun: Option<Begun<C>> = read(&path, REPEAT)?;
        Ok(begun.ok_or_else(|| Error::file(&path, "is not there", remedy))?.settings)
    }

    /// The file of a cell by its name, in one of the folders.
    pub(crate) fn file(&self, folder: &str, cell: &str) -> PathBuf {
        self.out.join(folder).join(format!("{cell}.json"))
    }
}

/// Those of `cells` that are named, or all where none is.
///
/// # Errors
/// A name that is none of theirs.
pub fn named<C>(cells: Vec<C>, names: &[String], id: impl Fn(&C) -> String) -> Result<Vec<C>> {
    let known: Vec<String> = cells.iter().map(id).collect();
    if let Some(name) = names.iter().find(|name| !known.contains(name)) {
        let problem = format!("`{name}` is none of the study's");
        return Err(Error::setting("--cell", problem, "name one that --dry-run prints"));
    }
    let asked = cells.into_iter().zip(known).filter(|(_, id)| names.is_empty() || names.contains(id));
    Ok(asked.map(|(cell, _)| cell).collect())
}
