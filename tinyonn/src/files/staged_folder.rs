//! One folder: filled beside its name, then given it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::exchange::{give_name, recover, was_cut_off};
use super::place::{Place, REPLACED, SAVING, is_used, parent_of};
use super::under_way::{self, Held, remove};
use crate::{Error, Result};

/// A folder that is being filled as the sibling `.NAME.saving`, and takes its name by [`StagedFolder::publish`].
///
/// Where a link is named, all this is done where it leads, and the link stays. A folder that cannot be renamed, because it is a mount point
/// or its parent cannot be written, is staged in itself.
///
/// A lock keeps two processes from filling one; the system frees it if the process dies, and what such a process left behind
/// the next one clears. Dropped without being published, it is removed; so it is by [`abandon`](super::abandon), which ends a program that is
/// interrupted. What was whole and could not be given its name stays, and the error says where.
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
    /// As it was named.
    named: PathBuf,
    place: Place,
    replace: bool,
    /// It has its name, or another that was said.
    named_now: bool,
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
    /// ```
    /// use tinyonn::files::StagedFolder;
    ///
    /// # let parent = tempfile::tempdir()?;
    /// # let dir = parent.path().join("model");
    /// # std::fs::create_dir(&dir)?;
    /// # std::fs::write(dir.join("step"), "1")?;
    /// let staged = StagedFolder::replacing(&dir)?;
    /// std::fs::write(staged.path().join("step"), "2")?;
    /// assert!(StagedFolder::is_under_way(&dir)); // a second process would be refused
    /// assert_eq!(std::fs::read_to_string(dir.join("step"))?, "1");
    /// staged.publish()?;
    /// assert_eq!(std::fs::read_to_string(dir.join("step"))?, "2");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Another process is filling it; the system refuses the sibling.
    pub fn replacing(dir: impl AsRef<Path>) -> Result<Self> {
        Self::open(dir.as_ref(), true)
    }

    /// Gives `dir` its folder back if a process that was to replace it was killed when the old one was put aside and the new one
    /// had no name yet.
    ///
    /// ```
    /// use tinyonn::files::StagedFolder;
    ///
    /// # let parent = tempfile::tempdir()?;
    /// # let dir = parent.path().join("model");
    /// # std::fs::create_dir(&dir)?;
    /// // Where nobody was killed there is nothing to give back.
    /// StagedFolder::restore(&dir)?;
    /// assert!(dir.is_dir());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Another process is filling it; the system refuses it.
    pub fn restore(dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        // What has no name of its own is no folder that could have been replaced.
        if Place::of(dir).is_ok_and(|place| was_cut_off(&place)) {
            drop(Self::open(dir, true)?);
        }
        Ok(())
    }

    /// Whether a process is filling `dir` now.
    #[must_use]
    pub fn is_under_way(dir: impl AsRef<Path>) -> bool {
        let handle = Place::of(dir.as_ref()).ok().and_then(|place| File::open(place.hidden(SAVING)).ok());
        handle.is_some_and(|handle| matches!(handle.try_lock(), Err(TryLockError::WouldBlock)))
    }

    fn open(dir: &Path, replace: bool) -> Result<Self> {
        let place = Place::of(dir)?;
        let path = place.hidden(SAVING);
        fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        let handle = File::open(&path).map_err(|e| Error::io(&path, e))?;
        // A file system without locks still gets the whole-or-nothing rename.
        if let Err(TryLockError::WouldBlock) = handle.try_lock() {
            return Err(Error::file(dir, "is being saved by another process", "wait for it, or name another folder"));
        }
        under_way::hold().begin(&path);
        let staged = Self { path, named: dir.to_path_buf(), place, replace, named_now: false, handle };
        recover(&staged.place)?;
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
    /// What the system reports; a folder that was to be replaced is then still there. What is whole and cannot have its name stays under another,
    /// which the error says.
    pub fn publish(mut self) -> Result<()> {
        let io = |e| Error::io(&self.named, e);
        self.handle.sync_all().map_err(io)?;
        // From here to the end: neither half of an exchange is cleared as if it were an unfinished folder.
        let mut held = under_way::hold();
        let free = if self.replace { Ok(()) } else { refuse_used(&self.named) };
        if let Err(e) = free.and_then(|()| give_name(&self.path, &self.place, self.replace)) {
            return Err(self.keep(&mut held, &e));
        }
        self.named_now = true;
        held.end(&self.path);
        let io = |e| Error::io(&self.named, e);
        File::open(parent_of(&self.place.dir)).and_then(|parent| parent.sync_all()).map_err(io)?;
        let aside = self.place.hidden(REPLACED);
        if aside.exists() { remove(&aside).map_err(io) } else { Ok(()) }
    }

    /// The work is done: it stays, where nobody clears it.
    fn keep(&mut self, held: &mut Held, why: &Error) -> Error {
        let name = self.place.dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut candidates = (1..).map(|number| self.path.with_file_name(format!("{name}-finished-{number}")));
        let kept = candidates.find(|path| path.symlink_metadata().is_err()).unwrap_or_default();
        let lies = if fs::rename(&self.path, &kept).is_ok() { kept } else { self.path.clone() };
        self.named_now = true;
        held.end(&self.path);
        let problem = match why {
            Error::Io { source, .. } => source.to_string(),
            Error::File { problem, .. } => problem.clone(),
            other => other.to_string(),
        };
        let problem = format!("could not be given to what is finished: {problem}");
        Error::file(&self.named, problem, format!("nothing is lost: it lies in {}; move it yourself", lies.display()))
    }
}

impl Drop for StagedFolder {
    fn drop(&mut self) {
        if !self.named_now {
            let mut held = under_way::hold();
            // What cannot be cleared now, the next process that fills this folder clears.
            let _ = fs::remove_dir_all(&self.path);
            held.end(&self.path);
        }
    }
}

fn refuse_used(dir: &Path) -> Result<()> {
    if is_used(dir)? {
        return Err(Error::file(dir, "exists and is not empty", "name a new folder, or remove this one first"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::place::{REPLACING, WHOLE};
    use super::*;

    type Tested = std::result::Result<(), Box<dyn std::error::Error>>;

    /// A folder that is staged in itself, as a mount point is, with `old` in it.
    fn place() -> std::result::Result<(tempfile::TempDir, Place), Box<dyn std::error::Error>> {
        let parent = tempfile::tempdir()?;
        let dir = parent.path().join("run");
        fs::create_dir_all(dir.join("lost+found"))?;
        fs::write(dir.join("old"), "old")?;
        let place = Place::inside(&dir)?;
        Ok((parent, place))
    }

    fn fill(folder: &Path) -> std::io::Result<()> {
        fs::create_dir_all(folder.join("model"))?;
        ["model/weights", "config.json"].iter().try_for_each(|name| fs::write(folder.join(name), "new"))
    }

    fn names(place: &Place) -> std::io::Result<Vec<String>> {
        let name = |entry: std::io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
        let mut names = fs::read_dir(&place.dir)?.map(name).collect::<std::io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    #[test]
    fn a_folder_that_cannot_be_renamed_is_filled_in_itself() -> Tested {
        let (_parent, place) = place()?;
        let staged = place.hidden(SAVING);
        fill(&staged)?;
        assert_eq!((staged.parent(), is_used(&place.dir)?), (Some(place.dir.as_path()), true));
        give_name(&staged, &place, true)?;
        recover(&place)?;
        assert_eq!(names(&place)?, ["config.json", "lost+found", "model"]);
        Ok(())
    }

    #[test]
    fn what_the_system_put_there_and_what_is_staged_there_are_no_use_of_a_folder() -> Tested {
        let (_parent, place) = place()?;
        fs::remove_file(place.dir.join("old"))?;
        fill(&place.hidden(SAVING))?;
        assert!(!is_used(&place.dir)?);
        give_name(&place.hidden(SAVING), &place, false)?;
        recover(&place)?;
        assert_eq!(names(&place)?, ["config.json", "lost+found", "model"]);
        Ok(())
    }

    /// Wherever a kill falls, the next process finds the old content or finishes the new.
    #[test]
    fn an_exchange_that_was_killed_is_finished() -> Tested {
        for moment in 0..5 {
            let (_parent, place) = place()?;
            let [whole, replacing, replaced] = [WHOLE, REPLACING, REPLACED].map(|purpose| place.hidden(purpose));
            fill(&whole)?;
            if moment > 0 {
                fs::create_dir(&replacing)?;
            }
            if moment > 1 {
                fs::rename(place.dir.join("old"), replacing.join("old"))?;
            }
            if moment > 2 {
                fs::rename(&replacing, &replaced)?;
            }
            if moment > 3 {
                fs::rename(whole.join("model"), place.dir.join("model"))?;
            }
            assert!(was_cut_off(&place));
            recover(&place)?;
            assert_eq!(names(&place)?, ["config.json", "lost+found", "model"], "moment {moment}");
        }
        Ok(())
    }
}
