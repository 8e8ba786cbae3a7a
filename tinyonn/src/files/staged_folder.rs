//! One folder: filled beside its name, then given it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::under_way::{self, remove};
use crate::{Error, Result};

/// A folder that is being filled as the sibling `.NAME.saving`, and takes its name by [`StagedFolder::publish`].
///
/// A lock keeps two processes from filling one; the system frees it if the process dies, and what such a process left behind
/// the next one clears. Dropped without being published, it is removed; so it is by [`abandon`](super::abandon), which ends a program that is
/// interrupted.
///
/// ```
/// use tinyonn::files::StagedFolder;
/// # let parent = tempfile::tempdir()?;
/// # let dir = parent.path().join("model");
///
/// let staged = StagedFolder::new(&dir)?;
/// std::fs::write(staged.path().join("config.json"), "{}")?;
/// assert!(!dir.exists());
/// staged.publish()?;
/// assert!(dir.join("config.json").exists());
/// assert!(StagedFolder::new(&dir).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct StagedFolder {
    path: PathBuf,
    /// The name it will have.
    dir: PathBuf,
    /// Where the folder of that name goes, if it is to be replaced.
    aside: PathBuf,
    replace: bool,
    published: bool,
    /// Holds the lock.
    handle: File,
}

impl StagedFolder {
    /// Begins the new folder `dir`.
    ///
    /// # Errors
    /// `dir` exists and is not empty; another process is filling it; the system refuses the sibling.
    pub fn new(dir: impl AsRef<Path>) -> Result<Self> {
        refuse_used(dir.as_ref())?;
        let staged = Self::open(dir.as_ref(), false)?;
        // A replacement that was cut off is undone by now: better said here than when all the work is done.
        refuse_used(dir.as_ref())?;
        Ok(staged)
    }

    /// Begins a folder that will replace `dir`, if there is one: only [`StagedFolder::publish`] removes the old one.
    ///
    /// # Errors
    /// Another process is filling it; the system refuses the sibling.
    pub fn replacing(dir: impl AsRef<Path>) -> Result<Self> {
        Self::open(dir.as_ref(), true)
    }

    /// Gives `dir` its folder back if a process that was to replace it was killed when the old one was put aside and the new one
    /// had no name yet.
    ///
    /// # Errors
    /// Another process is filling it; the system refuses it.
    pub fn restore(dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        let aside = sibling(dir, "replaced").is_some_and(|aside| aside.exists());
        if aside && !dir.exists() {
            drop(Self::open(dir, true)?);
        }
        Ok(())
    }

    /// Whether a process is filling `dir` now.
    #[must_use]
    pub fn is_under_way(dir: impl AsRef<Path>) -> bool {
        let handle = sibling(dir.as_ref(), "saving").and_then(|path| File::open(path).ok());
        handle.is_some_and(|handle| matches!(handle.try_lock(), Err(TryLockError::WouldBlock)))
    }

    fn open(dir: &Path, replace: bool) -> Result<Self> {
        let (Some(path), Some(aside)) = (sibling(dir, "saving"), sibling(dir, "replaced")) else {
            return Err(Error::file(dir, "has no name of its own", "name a new folder"));
        };
        fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        let handle = File::open(&path).map_err(|e| Error::io(&path, e))?;
        // A file system without locks still gets the whole-or-nothing rename.
        if let Err(TryLockError::WouldBlock) = handle.try_lock() {
            return Err(Error::file(dir, "is being saved by another process", "wait for it, or name another folder"));
        }
        under_way::hold().begin(&path);
        let staged = Self { path, dir: dir.to_path_buf(), aside, replace, published: false, handle };
        recover(&staged.aside, dir)?;
        for entry in fs::read_dir(&staged.path).map_err(|e| Error::io(&staged.path, e))? {
            let left = entry.map_err(|e| Error::io(&staged.path, e))?.path();
            remove(&left).map_err(|e| Error::io(&left, e))?;
        }
        Ok(staged)
    }

    /// Where to write.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Brings it to disk and gives it its name. The files in it must have been synchronised by whoever wrote them.
    ///
    /// # Errors
    /// What the system reports; a folder that was to be replaced is then still there.
    pub fn publish(mut self) -> Result<()> {
        let dir = self.dir.clone();
        let io = |e| Error::io(&dir, e);
        self.handle.sync_all().map_err(io)?;
        // From here to the end: neither half of an exchange is cleared as if it were an unfinished folder.
        let mut held = under_way::hold();
        let replaced = self.replace && dir.exists();
        if replaced {
            fs::rename(&dir, &self.aside).map_err(io)?;
        } else {
            refuse_used(&dir)?;
        }
        if let Err(e) = fs::rename(&self.path, &dir) {
            recover(&self.aside, &dir)?;
            return Err(io(e));
        }
        self.published = true;
        held.end(&self.path);
        File::open(parent_of(&dir)).and_then(|parent| parent.sync_all()).map_err(io)?;
        if replaced { remove(&self.aside).map_err(io) } else { Ok(()) }
    }
}

impl Drop for StagedFolder {
    fn drop(&mut self) {
        if !self.published {
            let mut held = under_way::hold();
            // What cannot be cleared now, the next process that fills this folder clears.
            let _ = fs::remove_dir_all(&self.path);
            held.end(&self.path);
        }
    }
}

/// A replacement that was cut off between its two renames is undone; one that was cut off later is finished.
fn recover(aside: &Path, dir: &Path) -> Result<()> {
    let undone = match (aside.exists(), dir.exists()) {
        (false, _) => Ok(()),
        (true, false) => fs::rename(aside, dir),
        (true, true) => remove(aside),
    };
    undone.map_err(|e| Error::io(aside, e))
}

/// `.NAME.purpose` beside `dir`.
fn sibling(dir: &Path, purpose: &str) -> Option<PathBuf> {
    Some(parent_of(dir).join(format!(".{}.{purpose}", dir.file_name()?.to_string_lossy())))
}

/// The folder that holds `path`.
pub(crate) fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Whether `dir` is a folder that holds anything.
///
/// # Errors
/// It is no folder, or one that cannot be read.
pub fn is_used(dir: impl AsRef<Path>) -> Result<bool> {
    match fs::read_dir(&dir) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io(dir, e)),
    }
}

fn refuse_used(dir: &Path) -> Result<()> {
    if is_used(dir)? {
        return Err(Error::file(dir, "exists and is not empty", "name a new folder, or remove this one first"));
    }
    Ok(())
}
