//! Places that processes hold while they make the cells of a study, so that no two make one.

use std::fs::{File, TryLockError};
use std::path::Path;

use tinyonn::{Error, Result};

/// The places of these names in `folder`: nobody else has one of them as long as what is returned lives. `None` where another process has one.
///
/// # Errors
/// What the system reports.
pub(crate) fn claim<'n>(folder: &Path, names: impl IntoIterator<Item = &'n str>) -> Result<Option<Vec<File>>> {
    let mut places = Vec::new();
    for name in names {
        let path = folder.join(name);
        let place = File::options().create(true).truncate(false).write(true).open(&path);
        let place = place.map_err(|e| Error::io(&path, e))?;
        match place.try_lock() {
            Ok(()) => places.push(place),
            Err(TryLockError::WouldBlock) => return Ok(None),
            // As on a file system without locks, where two processes would make one cell.
            Err(TryLockError::Error(e)) => return Err(Error::io(&path, e)),
        }
    }
    Ok(Some(places))
}
