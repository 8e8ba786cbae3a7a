//! What this process has staged and not yet named, so that a program that ends at once can take it away.
//!
//! A signal ends a process without dropping anything: without this list a hidden folder of gigabytes would stay until the same name is
//! written again.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

static UNDER_WAY: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// The list, while nobody else may change it. Whoever renames or removes a staged folder holds it: one that is being given its name
/// must not be cleared under way.
pub(super) struct Held(MutexGuard<'static, BTreeSet<PathBuf>>);

pub(super) fn hold() -> Held {
    // A set of paths is whole whatever a thread that panicked was about to do.
    Held(UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Held {
    pub(super) fn begin(&mut self, path: &Path) {
        self.0.insert(absolute(path));
    }

    pub(super) fn end(&mut self, path: &Path) {
        self.0.remove(&absolute(path));
    }
}

/// The working folder may change before the path is used.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// What became of the files and folders that a process had staged.
///
/// ```
/// use tinyonn::files::{Abandoned, abandon};
///
/// let line = |found: &Abandoned| format!("{} removed, {} left", found.removed.len(), found.left.len());
/// assert_eq!(abandon(line), "0 removed, 0 left"); // nothing was under way
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Abandoned {
    /// They are gone.
    pub removed: Vec<PathBuf>,
    /// The system would not let go of them.
    pub left: Vec<PathBuf>,
}

/// Removes every file and folder that this process is filling and has not yet named, then calls `end`, which is to end the process: as long
/// as it runs, no other thread stages, names or gives up anything.
///
/// ```
/// use tinyonn::files::{StagedFolder, abandon};
/// # let parent = tempfile::tempdir()?;
/// let staged = StagedFolder::new(parent.path().join("model"))?;
/// abandon(|found| assert_eq!(found.removed, [staged.path()])); // here a program would call std::process::exit
/// assert!(!staged.path().exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn abandon<R>(end: impl FnOnce(&Abandoned) -> R) -> R {
    let mut held = hold();
    let mut found = Abandoned::default();
    for path in std::mem::take(&mut *held.0) {
        // A file may not have been begun, or have its name already.
        if path.symlink_metadata().is_ok() {
            if cleared(&path) { found.removed.push(path) } else { found.left.push(path) }
        }
    }
    end(&found)
}

/// Removes a file or a folder.
pub(super) fn remove(path: &Path) -> std::io::Result<()> {
    if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Removes `path`, into which another thread may be writing a file right now: what comes to lie in a folder while it is emptied
/// makes the system refuse to remove it.
fn cleared(path: &Path) -> bool {
    for _ in 0..20 {
        if remove(path).is_ok() || fs::symlink_metadata(path).is_err() {
            return true;
        }
        sleep(Duration::from_millis(10));
    }
    false
}
