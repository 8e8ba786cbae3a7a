//! The folder of a run, and what is needed to repeat it: its `config.json`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;
use serde_json::{Value, json};
use tinyonn::{Error, Result};

use crate::DeviceName;

/// A new folder for the results of one run.
#[derive(Debug)]
pub struct RunFolder {
    dir: PathBuf,
}

impl RunFolder {
    /// Creates `dir` with its `config.json`: the program's name, versions, commit and command line, seed, device, and `settings`,
    /// the full effective configuration, defaults included.
    ///
    /// # Errors
    /// `dir` exists and is not empty, or the system refuses it.
    pub fn create(dir: &Path, settings: &impl Serialize, seed: u64, device: DeviceName) -> Result<Self> {
        refuse_used(dir)?;
        fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
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
        let folder = Self { dir: dir.to_path_buf() };
        let path = folder.path("config.json");
        fs::write(&path, format!("{config:#}\n")).map_err(|e| Error::io(&path, e))?;
        Ok(folder)
    }

    /// Removes the folder if the run left nothing in it but its `config.json`: a run that was refused leaves no trace.
    pub fn remove_if_bare(&self) {
        let names =
            |entries: fs::ReadDir| entries.filter_map(std::result::Result::ok).map(|entry| entry.file_name()).collect();
        let names: Vec<_> = fs::read_dir(&self.dir).map(names).unwrap_or_default();
        if names == ["config.json"] {
            // What cannot be removed stays: the error that ended the run matters more.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of `name` in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// The first of `base`, `base-2`, `base-3` … that is not in use: a run without `--out` never overwrites another.
///
/// # Errors
/// What the system reports.
pub fn first_free(base: &Path) -> Result<PathBuf> {
    let mut dir = base.to_path_buf();
    let mut number = 1u32;
    while dir.is_dir() && refuse_used(&dir).is_err() {
        number += 1;
        dir = PathBuf::from(format!("{}-{number}", base.display()));
    }
    refuse_used(&dir).map(|()| dir)
}

/// Refuses an output folder that holds anything, before work is spent on it.
///
/// # Errors
/// It exists and is not empty, or is no folder.
pub fn refuse_used(dir: &Path) -> Result<()> {
    let used = match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(Error::io(dir, e)),
    };
    if used {
        return Err(Error::file(
            dir,
            "exists and is not empty",
            "name a new folder with --out, or remove this one first",
        ));
    }
    Ok(())
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
