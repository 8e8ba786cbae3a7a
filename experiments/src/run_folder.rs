//! The folder of a run, what is needed to repeat it (its `config.json`), and what a run that was stopped goes on from.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;
use serde_json::{Value, json};
use tinyonn::files::{self, StagedFolder};
use tinyonn::train::{Checkpoints, checkpoints};
use tinyonn::{Error, Result};

use crate::{DeviceName, interrupt};

/// A folder for the results of one run. It is filled beside its name, which it takes when it is whole: see [`StagedFolder`]. A run
/// that ends before leaves an old folder as it was, and the states of its training in the sibling `.NAME.states`: the same command goes on
/// from them, a command of other settings is refused.
#[derive(Debug)]
pub struct RunFolder {
    out: PathBuf,
    // Before the staged folder, whose lock keeps another process away until these are dropped.
    states: States,
    staged: StagedFolder,
}

/// In the folder of the states, what they are of.
const RUN: &str = "run.json";
/// States that stay: the last, and one before it for a disk that lost the last.
const KEEP: usize = 2;

impl RunFolder {
    /// Begins `out` with its `config.json`: the program's name, versions, commit and command line, seed, device, and `settings`,
    /// the full effective configuration, defaults included. With `replace` it will take the place of an old folder.
    ///
    /// # Errors
    /// `out` exists and is not empty, and is not to be replaced; another process is filling it; the system refuses it.
    pub fn create(out: &Path, settings: &impl Serialize, seed: u64, device: DeviceName, replace: bool) -> Result<Self> {
        let staged = if replace { StagedFolder::replacing(out) } else { StagedFolder::new(out) }?;
        // The path of the program itself may be anything.
        let command: Vec<String> =
            std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
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
        // Other code may compute other bits: said now, not when the states are read.
        let run = json!({ "program": program, "code": tinyonn::SOURCES_SHA256, "settings": settings });
        Ok(Self { out: out.to_path_buf(), staged, states: States::of(out, &run)? })
    }

    /// Where the run's training saves its state, `every` so many steps.
    ///
    /// # Errors
    /// A run of other settings was stopped in it; what the system reports.
    pub fn checkpoints(&self, every: u64) -> Result<Checkpoints> {
        self.states.go_on_or_clear()?;
        Ok(Checkpoints { dir: self.states.dir.clone(), every, keep: KEEP, interrupt: interrupt() })
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
        self.states.remove()?;
        Ok(self.out)
    }
}

/// The folder `.NAME.states` beside that of a run: what the run goes on from. Dropped without a state in it, it goes.
#[derive(Debug)]
struct States {
    dir: PathBuf,
    /// The program and its settings.
    run: Value,
}

impl States {
    fn of(out: &Path, run: &Value) -> Result<Self> {
        Ok(Self { dir: files::states_of(out)?, run: run.clone() })
    }

    /// Leaves a folder as it is that holds states of this run; one without a state is made anew.
    fn go_on_or_clear(&self) -> Result<()> {
        let (dir, path) = (&self.dir, self.dir.join(RUN));
        if !path.exists() || !checkpoints::are_in(dir)? {
            self.remove()?;
            std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
            return files::write(path, format!("{:#}\n", self.run));
        }
        let remedy = format!(
            "give those to go on with it, name another folder with --out, or remove {} to begin anew",
            dir.display()
        );
        let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let was = serde_json::from_slice(&text).map_err(|e| Error::file(&path, e.to_string(), remedy.clone()))?;
        let names = checkpoints::differences(&was, &self.run);
        if names.is_empty() {
            return Ok(());
        }
        let (what, remedy) = if names.iter().any(|name| name.starts_with("`code`")) {
            ("of other sources or settings", remedy.replacen("give those", "take the program that began it", 1))
        } else {
            ("of other settings", remedy)
        };
        Err(Error::file(dir, format!("holds a run that was stopped, {what}: {}", names.join("; ")), remedy))
    }

    fn remove(&self) -> Result<()> {
        let gone = |removed: std::io::Result<()>| match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&self.dir, e)),
            _ => Ok(()),
        };
        // First what they are of: states that a kill in between leaves behind are nobody's.
        gone(std::fs::remove_file(self.dir.join(RUN)))?;
        gone(std::fs::remove_dir_all(&self.dir))
    }
}

impl Drop for States {
    fn drop(&mut self) {
        if matches!(checkpoints::are_in(&self.dir), Ok(false)) {
            // What cannot be removed now, the next run in this folder removes.
            let _ = self.remove();
        }
    }
}

/// The first of `base`, `base-2`, `base-3` … that is neither used nor being filled: a run without `--out` never overwrites another.
///
/// # Errors
/// What the system reports.
pub fn first_free(base: &Path) -> Result<PathBuf> {
    let mut dir = base.to_path_buf();
    let mut number = 1u32;
    let put_aside = |dir: &Path| if StagedFolder::is_under_way(dir) { Ok(()) } else { StagedFolder::restore(dir) };
    put_aside(&dir)?;
    while files::is_used(&dir)? || StagedFolder::is_under_way(&dir) {
        number += 1;
        dir = PathBuf::from(format!("{}-{number}", base.display()));
        put_aside(&dir)?;
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
