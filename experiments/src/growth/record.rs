//! What one way to go on came to, of one seed; a file each.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tinyonn::{Error, Result, files};

use super::{Arm, GrowthConfig};
use crate::compare::record::{REPEAT, read};

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Neurons of a layer.
    pub neurons: usize,
    /// Neurons of a layer that a token takes, mean over layers and tokens of the test split.
    pub taken: f64,
    /// Multiply-adds a token in feed-forwards and routers.
    pub operations: f64,
    /// Nats a token of the test split at half of the steps, grown or not.
    pub at_half: f64,
    /// The same at the end.
    pub at_end: f64,
    /// SHA-256 of the text.
    pub corpus_sha256: String,
    /// What its training took from the state that it began with.
    pub seconds: f64,
}

/// Where the record of `arm` and `seed` lies.
fn place(out: &Path, arm: &Arm, seed: u64) -> PathBuf {
    out.join("records").join(format!("{seed}-{}.json", arm.key))
}

impl Record {
    /// Reads it, if it is there.
    ///
    /// # Errors
    /// A file that is no record.
    pub fn read(out: &Path, arm: &Arm, seed: u64) -> Result<Option<Self>> {
        read(&place(out, arm, seed), REPEAT)
    }

    /// Writes it.
    ///
    /// # Errors
    /// What the system reports.
    pub(super) fn write(&self, out: &Path, arm: &Arm, seed: u64) -> Result<()> {
        let path = place(out, arm, seed);
        let folder = out.join("records");
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let json = serde_json::to_string_pretty(self).map_err(|e| Error::file(&path, e.to_string(), "report this"))?;
        files::write(path, json + "\n")
    }
}

/// Every record of the study, `[arm][seed]`; what was not run is `None`.
///
/// # Errors
/// A file that is no record.
pub fn records(config: &GrowthConfig) -> Result<Vec<(Arm, Vec<Option<Record>>)>> {
    let of_arm = |arm: Arm| {
        let found = config.seeds.iter().map(|seed| Record::read(&config.out, &arm, *seed)).collect::<Result<_>>()?;
        Ok((arm, found))
    };
    config.arms()?.into_iter().map(of_arm).collect()
}
