//! What a study keeps: its settings, and a file a run, written whole, so that a study that was stopped goes on.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tinyonn::phases::ForgettingRecord;
use tinyonn::phases::summary;
use tinyonn::train::checkpoints::differences;
use tinyonn::{Error, Result, SOURCES_SHA256, files};

use super::{RunKey, StudyConfig};
use crate::compare::record::{REPEAT, read};

/// The file that holds a study's settings.
const BEGUN: &str = "forgetting.json";
/// The folder of the runs.
const RUNS: &str = "runs";

/// A run that was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Which.
    pub key: RunKey,
    /// What identifies the old text.
    pub corpus_sha256: String,
    /// What it found.
    pub record: ForgettingRecord,
}

/// What decides a study's runs, and what computed them.
#[derive(Serialize, Deserialize)]
struct Begun {
    /// SHA-256 of the library's sources.
    sources: String,
    /// Their commit.
    commit: String,
    settings: StudyConfig,
}

/// The folder of a study.
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

    /// Makes the folder, for runs computed by the sources at `commit`, or checks that the study that was begun in it is this one, whose commit stays. Trials and finalists may be
    /// others than they were: runs do not know of one another.
    ///
    /// # Errors
    /// A folder of something else; runs of other sources or settings, which are named.
    pub fn begin(&self, config: &StudyConfig, commit: &str) -> Result<()> {
        let path = self.out.join(BEGUN);
        let mut commit = commit.to_owned();
        if path.exists() {
            let begun = self.begun_as()?;
            if begun.sources != SOURCES_SHA256 {
                let problem = format!(
                    "was begun with other sources of the library (commit {}): runs would not be comparable",
                    begun.commit
                );
                return Err(Error::file(&self.out, problem, "name another folder with --out"));
            }
            let named = differences(&deciding(&begun.settings), &deciding(config));
            if !named.is_empty() {
                let problem = format!("was begun with other settings: {}", named.join("; "));
                return Err(Error::file(&self.out, problem, "give those, or name another folder with --out"));
            }
            // A machine that has the program alone does not know it, and the sources are the same.
            commit = begun.commit;
        } else if files::is_used(&self.out)? {
            let remedy = "name another folder with --out";
            return Err(Error::file(&self.out, "exists, is not empty, and is no study of forgetting", remedy));
        }
        let runs = self.out.join(RUNS);
        std::fs::create_dir_all(&runs).map_err(|e| Error::io(&runs, e))?;
        let begun = Begun { sources: SOURCES_SHA256.into(), commit, settings: config.clone() };
        let text = serde_json::to_string_pretty(&begun);
        let text = text.map_err(|e| Error::file(&path, e.to_string(), "report this as a defect"))?;
        files::write(path, text + "\n")
    }

    /// The settings of the study that was begun in it.
    ///
    /// # Errors
    /// There is none.
    pub fn begun(&self) -> Result<StudyConfig> {
        Ok(self.begun_as()?.settings)
    }

    /// What computed its runs, in words.
    ///
    /// # Errors
    /// There is no study.
    pub fn computed_by(&self) -> Result<String> {
        let begun = self.begun_as()?;
        Ok(format!("commit {}, sources of the library with SHA-256 {}", begun.commit, begun.sources))
    }

    fn begun_as(&self) -> Result<Begun> {
        let path = self.out.join(BEGUN);
        let remedy = "begin a study with exp_forgetting, or name its folder with --out";
        read(&path, REPEAT)?.ok_or_else(|| Error::file(&path, "is not there", remedy))
    }

    /// The file of a run.
    #[must_use]
    pub fn file(&self, key: &RunKey) -> PathBuf {
        self.out.join(RUNS).join(format!("{}.json", key.id()))
    }

    /// The record of a run, if it was made.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn record(&self, key: &RunKey) -> Result<Option<RunRecord>> {
        read(&self.file(key), REPEAT)
    }

    /// Keeps the record of a run.
    ///
    /// # Errors
    /// A figure that is no finite number; what the system reports.
    pub fn keep(&self, record: &RunRecord) -> Result<()> {
        summary::write(record, &self.file(&record.key))
    }
}

/// The settings without what does not decide a run's figures.
fn deciding(config: &StudyConfig) -> Value {
    let mut value = json!(config);
    if let Some(settings) = value.as_object_mut() {
        for key in ["out", "results", "trials", "finalists", "open_places", "seeds", "reference_rate", "margin"] {
            settings.remove(key);
        }
        if let Some(run) = settings.get_mut("run").and_then(Value::as_object_mut) {
            for key in ["out", "cache"] {
                run.remove(key);
            }
        }
    }
    value
}
