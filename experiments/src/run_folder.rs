//! The folder of a run, and what is needed to repeat it: its `config.json`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;
use serde_json::{Value, json};
use tinyonn::files::{self, StagedFolder};
use tinyonn::{Error, Result};

use crate::DeviceName;
use crate::overwrite::replaces;

/// A folder for the results of one run.
///
/// A new one is written to in place, file by file, each whole. One that replaces another is staged beside it, and takes its place
/// when [`RunFolder::finish`] is called. A run that ends without it leaves no folder that is bare, and an old one as it was.
#[derive(Debug)]
pub struct RunFolder {
    out: PathBuf,
    staged: Option<StagedFolder>,
    finished: bool,
}

impl RunFolder {
    /// Creates `out` with its `config.json`: the program's name, versions, commit and command line, seed, device, and `settings`,
    /// the full effective configuration, defaults included. With `replace` an old folder stays until the new one is whole.
    ///
    /// # Errors
    /// `out` exists and is not empty, and is not to be replaced; the system refuses it.
    pub fn create(out: &Path, settings: &impl Serialize, seed: u64, device: DeviceName, replace: bool) -> Result<Self> {
        let staged = replace.then(|| StagedFolder::replacing(out)).transpose()?;
        if staged.is_none() {
            replaces(out, false, &[])?;
            fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
        }
        let command: Vec<String> = std::env::args().collect();
        let program = command.first().and_then(|path| Path::new(path).file_name()).map(|name| name.to_string_lossy());
        let config = json!({
            "program": program,
            "versions": {
                "tinyonn": env!("CARGO_PKG_VERSION"),
                "candle": env!("EXPERIMENTS_CANDLE"),
                "rustc": env!("EXPERIMENTS_RUSTC"),
            },
            "git": git(),
            "command": command,
            "seed": seed,
            "device": device,
            "settings": settings,
        });
        let folder = Self { out: out.to_path_buf(), staged, finished: false };
        files::write(folder.dir().join("config.json"), format!("{config:#}\n"))?;
        Ok(folder)
    }

    /// Where the run writes.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.staged.as_ref().map_or(&self.out, StagedFolder::path)
    }

    /// The run is whole: its folder replaces the old one, if there is one. Returns the folder under its own name.
    ///
    /// # Errors
    /// What the system reports; the old folder then stays.
    pub fn finish(mut self) -> Result<PathBuf> {
        self.staged.take().map_or(Ok(()), StagedFolder::publish)?;
        self.finished = true;
        Ok(self.out.clone())
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let names =
            |entries: fs::ReadDir| entries.filter_map(std::result::Result::ok).map(|entry| entry.file_name()).collect();
        let names: Vec<_> = fs::read_dir(self.dir()).map(names).unwrap_or_default();
        if names.is_empty() || names == ["config.json"] {
            // What cannot be removed stays: the error that ended the run matters more.
            let _ = fs::remove_dir_all(self.dir());
        }
    }
}

/// The first of `base`, `base-2`, `base-3` … that is not in use: a run without `--out` never overwrites another.
///
/// # Errors
/// What the system reports.
pub fn first_free(base: &Path) -> Result<PathBuf> {
    let mut dir = base.to_path_buf();
    let mut number = 1u32;
    while files::is_used(&dir)? {
        number += 1;
        dir = PathBuf::from(format!("{}-{number}", base.display()));
    }
    Ok(dir)
}

/// Commit of the sources, and whether they were changed since; both "unknown" outside a working copy.
fn git() -> Value {
    let ask = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    match (ask(&["rev-parse", "HEAD"]), ask(&["status", "--porcelain"])) {
        (Some(commit), Some(changes)) => json!({ "commit": commit, "dirty": !changes.is_empty() }),
        _ => json!({ "commit": "unknown", "dirty": "unknown" }),
    }
}
