//! One file: write, fsync, rename.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::place::{parent_of, resolved};
use super::under_way;
use crate::{Error, Result};

/// Writes `content` to `path`; what the file held before is replaced.
///
/// # Errors
/// There is no folder to write it in; what the system reports, about `path`, whose old content then stays.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("summary.json");
/// tinyonn::files::write(&path, "{}")?;
/// assert_eq!(std::fs::read_to_string(&path)?, "{}");
/// assert_eq!(std::fs::read_dir(dir.path())?.count(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<()> {
    let path = path.as_ref();
    write_with(path, |staged| fs::write(staged, content).map_err(|e| Error::io(path, e)))
}

/// As [`write()`], for content that `fill` puts into the file it is given: an empty one, which it may also replace by another. Whatever
/// the mode of that other one, the file gets the mode that every new file of this process gets. Where `path` is a link, the file that it leads to
/// is written, and the link stays.
///
/// ```
/// use tinyonn::{Error, files};
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("scan.safetensors");
/// files::write(&path, "old")?;
/// let failed = files::write_with(&path, |_| Err(Error::setting("--steps", "is 0", "give at least 1")));
/// assert!(failed.is_err());
/// assert_eq!(std::fs::read(&path)?, b"old");
/// files::write_with(&path, |staged| std::fs::write(staged, "new").map_err(|e| Error::io(staged, e)))?;
/// assert_eq!(std::fs::read(&path)?, b"new");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// There is no folder to write it in; whatever `fill` or the system reports; the old content then stays.
pub fn write_with(path: impl AsRef<Path>, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    let (place, staged) = staged(path)?;
    under_way::hold().begin(&staged);
    let io = |e| Error::io(path, e);
    let write = || {
        // Libraries that write through a temporary file of their own leave it to its owner alone (mode 0600); this one has the umask's.
        let permissions = File::create(&staged).and_then(|file| file.metadata()).map_err(io)?.permissions();
        fill(&staged)?;
        let name = || {
            fs::set_permissions(&staged, permissions)?;
            File::open(&staged)?.sync_all()?;
            fs::rename(&staged, &place)?;
            File::open(parent_of(&place))?.sync_all()
        };
        name().map_err(io)
    };
    let written = write().inspect_err(|_| {
        // The error to report is the first one; the file may not even exist.
        let _ = fs::remove_file(&staged);
    });
    under_way::hold().end(&staged);
    written
}

/// Refuses what [`write()`] could only refuse when all the work is done; leaves nothing behind.
///
/// ```
/// use tinyonn::files::try_write;
///
/// # let dir = tempfile::tempdir()?;
/// let path = dir.path().join("summary.json");
/// try_write(&path)?;
/// assert!(!path.exists());
/// assert!(try_write(dir.path().join("no/summary.json")).is_err()); // before hours of work, not behind them
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// There is no folder to write `path` in, or the system keeps files from being made there; something that is no file has its name.
pub fn try_write(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let (_, staged) = staged(path)?;
    File::create(&staged).and_then(|_| fs::remove_file(&staged)).map_err(|e| Error::io(path, e))
}

/// Where the process `process` stages the file `path`, for others that fill it too ([`write_with`]).
///
/// # Errors
/// As of [`write_with`].
pub(crate) fn staged_by(path: &Path, process: u32) -> Result<PathBuf> {
    let (place, _) = staged(path)?;
    let name = place.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(place.with_file_name(staged_name(&name, process)))
}

fn staged_name(name: &str, process: u32) -> String {
    format!(".{name}.{process}.writing")
}

/// The file that `path` leads to, and where it is staged.
fn staged(path: &Path) -> Result<(PathBuf, PathBuf)> {
    let place = resolved(path)?;
    let Some(name) = place.file_name() else {
        return Err(Error::file(path, "is no file name", "name the file to write"));
    };
    // A rename would put a file in the place of a device.
    if place.exists() && !place.is_file() {
        return Err(Error::file(path, "is there, and is no file", "name another file to write"));
    }
    let parent = parent_of(&place);
    // Said of the folder: that a file which is yet to be written cannot be found helps nobody.
    if !parent.exists() {
        return Err(Error::file(&parent, "there is no such folder", "make it, or check the path"));
    }
    // Two processes that write one file must not write into one staged file.
    let staged = place.with_file_name(staged_name(&name.to_string_lossy(), std::process::id()));
    Ok((place, staged))
}
