//! Giving a staged folder its name, and undoing or finishing what a process began that was killed at it.
//!
//! Beside its name a folder is renamed, an old one put aside before; a kill between the two leaves the old one to be put back. In the folder
//! that was named, which cannot be renamed itself, the staged one becomes `.NAME.whole` at once and is then moved out of it, entry by
//! entry, `config.json` last; a kill in between leaves what the next process finishes.

use std::fs::{self, File, TryLockError};
use std::path::Path;

use super::place::{Place, REPLACED, REPLACING, WHOLE};
use super::under_way::remove;
use crate::{Error, Result};

/// What tells that a folder is of a model or a run: it comes last.
const LAST: &str = "config.json";

/// Gives `staged` the name of `place`, in the place of what is there if `replace`.
pub(super) fn give_name(staged: &Path, place: &Place, replace: bool) -> Result<()> {
    if place.inside { move_in(staged, place, replace) } else { rename(staged, place, replace) }
}

fn rename(staged: &Path, place: &Place, replace: bool) -> Result<()> {
    let (dir, aside) = (&place.dir, place.hidden(REPLACED));
    let io = |e| Error::io(dir, e);
    if replace && dir.exists() {
        fs::rename(dir, &aside).map_err(io)?;
    }
    if let Err(e) = fs::rename(staged, dir) {
        recover(place)?;
        return Err(io(e));
    }
    Ok(())
}

fn move_in(staged: &Path, place: &Place, replace: bool) -> Result<()> {
    let io = |e| Error::io(&place.dir, e);
    if !replace {
        // As if all that was there had been put aside already: nothing was.
        fs::create_dir_all(place.hidden(REPLACED)).map_err(io)?;
    }
    fs::rename(staged, place.hidden(WHOLE)).map_err(io)?;
    finish(place)
}

/// Moves what is whole out into the folder itself; begun again, it goes on.
fn finish(place: &Place) -> Result<()> {
    let [whole, replacing, replaced] = [WHOLE, REPLACING, REPLACED].map(|purpose| place.hidden(purpose));
    let io = |e| Error::io(&place.dir, e);
    let move_all = |mut entries: Vec<std::path::PathBuf>, to: &Path| {
        entries.sort_by_key(|path| path.file_name().is_some_and(|name| name == LAST));
        entries.iter().try_for_each(|path| fs::rename(path, to.join(path.file_name().unwrap_or_default()))).map_err(io)
    };
    if !replaced.exists() {
        fs::create_dir_all(&replacing).map_err(io)?;
        move_all(place.entries(&place.dir)?, &replacing)?;
        fs::rename(&replacing, &replaced).map_err(io)?;
    }
    move_all(place.entries(&whole)?, &place.dir)?;
    File::open(&place.dir).and_then(|dir| dir.sync_all()).map_err(io)?;
    fs::remove_dir(&whole).map_err(io)
}

/// Whether a process that was killed left something to [`recover`] that hides a whole folder.
pub(super) fn was_cut_off(place: &Place) -> bool {
    if place.inside { place.hidden(WHOLE).exists() } else { place.hidden(REPLACED).exists() && !place.dir.exists() }
}

/// A replacement that was cut off before the new folder had its name is undone; one that was cut off later is finished.
pub(super) fn recover(place: &Place) -> Result<()> {
    let aside = place.hidden(REPLACED);
    let whole = place.hidden(WHOLE);
    if place.inside && whole.exists() {
        let handle = File::open(&whole).map_err(|e| Error::io(&whole, e))?;
        if let Err(TryLockError::WouldBlock) = handle.try_lock() {
            return Err(Error::file(&place.dir, "is being saved by another process", "wait for it"));
        }
        finish(place)?;
    }
    let undone = match (aside.exists(), place.dir.exists()) {
        (false, _) => Ok(()),
        (true, false) => fs::rename(&aside, &place.dir),
        (true, true) => remove(&aside),
    };
    undone.map_err(|e| Error::io(&aside, e))
}
