//! The folder of a run, and what is needed to repeat it: its `config.json`.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;
use serde_json::{Value, json};
use tinyonn::Result;
use tinyonn::files::{self, StagedFolder};

use crate::DeviceName;

/// A folder for the results of one run. It is filled beside its name, which it takes when it is whole: see [`StagedFolder`]. A run
/// that ends before leaves nothing, and an old folder as it was.
#[derive(Debug)]
pub struct RunFolder {
    out: PathBuf,
    staged: StagedFolder,
}

impl RunFolder {
    /// Begins `out` with its `config.json`: the program's name, versions, commit and command line, seed, device, and `settings`,
    /// the full effective configuration, defaults included. With `replace` it will take the place of an old folder.
    ///
    /// # Errors
    /// `out` exists and is not empty, and is not to be replaced; another process is filling it; the system refuses it.
    pub fn create(out: &Path, settings: &impl Serialize, seed: u64, device: DeviceName, replace: bool) -> Result<Self> {
        let staged = if replace { StagedFolder::replacing(out) } else { StagedFolder::new(out) }?;
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
        files::write(staged.path().join("config.json"), format!("{config:#}\n"))?;
        Ok(Self { out: out.to_path_buf(), staged })
    }

    /// Where the run writes.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.staged.path()
    }

    /// The run is whole: its folder takes its name, in place of an old one if there is one. Returns it.
    ///
    /// # Errors
    /// What the system reports; an old folder then stays.
    pub fn finish(self) -> Result<PathBuf> {
        self.staged.publish()?;
        Ok(self.out)
    }
}

/// The first of `base`, `base-2`, `base-3` … that is neither used nor being filled: a run without `--out` never overwrites another.
///
/// # Errors
/// What the system reports.
pub fn first_free(base: &Path) -> Result<PathBuf> {
    let mut dir = base.to_path_buf();
    let mut number = 1u32;
    while files::is_used(&dir)? || StagedFolder::is_under_way(&dir) {
        number += 1;
        dir = PathBuf::from(format!("{}-{number}", base.display()));
    }
    Ok(dir)
}

/// The commit of the sources in a word, `-dirty` where they were changed since.
#[must_use]
pub fn git_commit() -> String {
    let git = git();
    let changed = if git["dirty"] == Value::Bool(true) { "-dirty" } else { "" };
    format!("{}{changed}", git["commit"].as_str().unwrap_or("unknown"))
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
