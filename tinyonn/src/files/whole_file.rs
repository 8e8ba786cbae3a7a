//! One file: write, fsync, rename.

use std::fs::{self, File};
use std::path::Path;

use super::staged_folder::parent_of;
use crate::{Error, Result};

/// Writes `content` to `path`; what the file held before is replaced.
///
/// # Errors
/// What the system reports, about `path`, whose old content then stays.
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

/// As [`write()`], for content that `fill` puts into the file it is given.
///
/// # Errors
/// Whatever `fill` or the system reports; the old content then stays.
pub fn write_with(path: impl AsRef<Path>, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    let Some(name) = path.file_name() else {
        return Err(Error::file(path, "is no file name", "name the file to write"));
    };
    // Two processes that write one file must not write into one staged file.
    let staged = path.with_file_name(format!(".{}.{}.writing", name.to_string_lossy(), std::process::id()));
    let place = || {
        File::open(&staged)?.sync_all()?;
        fs::rename(&staged, path)?;
        File::open(parent_of(path))?.sync_all()
    };
    fill(&staged).and_then(|()| place().map_err(|e| Error::io(path, e))).inspect_err(|_| {
        // The error to report is the first one; the file may not even exist.
        let _ = fs::remove_file(&staged);
    })
}
