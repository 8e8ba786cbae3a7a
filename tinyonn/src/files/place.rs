//! Where a folder is staged: on the file system that the user named, through links and at mount points as well.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// What the hidden places of a folder are for: `.NAME.saving` and so on.
pub(super) const SAVING: &str = "saving";
pub(super) const WHOLE: &str = "whole";
pub(super) const REPLACING: &str = "replacing";
pub(super) const REPLACED: &str = "replaced";
const STATES: &str = "states";
const PURPOSES: [&str; 5] = [SAVING, WHOLE, REPLACING, REPLACED, STATES];
/// What an empty file system of some kinds holds at its root.
const OF_THE_SYSTEM: &str = "lost+found";
/// Links from one to the next, at most; as the system has it.
const MOST_LINKS: usize = 40;

/// A folder, and where its hidden companions lie: beside it, or, where it is a mount point or its parent cannot be written, in it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The folder itself: where a link was named, what it leads to.
    pub(super) dir: PathBuf,
    /// Its companions lie in it, because no rename can give it a name that another has.
    pub(super) inside: bool,
    name: String,
}

impl Place {
    /// Of the folder that `dir` names or will name.
    pub(super) fn of(dir: &Path) -> Result<Self> {
        let dir = resolved(dir)?;
        let Some(name) = dir.file_name().map(|name| name.to_string_lossy().into_owned()) else {
            return Err(Error::file(dir, "has no name of its own", "name a new folder"));
        };
        let inside = dir.is_dir() && (is_mount_point(&dir) || !takes_folders(&parent_of(&dir), &name));
        Ok(Self { dir, inside, name })
    }

    /// The companion for `purpose`.
    pub(super) fn hidden(&self, purpose: &str) -> PathBuf {
        let folder = if self.inside { self.dir.clone() } else { parent_of(&self.dir) };
        folder.join(hidden_name(&self.name, purpose))
    }

    /// What lies in `folder` and is no companion of this one.
    pub(super) fn entries(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let io = |e| Error::io(folder, e);
        let entries = fs::read_dir(folder).map_err(io)?.map(|entry| Ok(entry.map_err(io)?.path()));
        let mut entries = entries.collect::<Result<Vec<PathBuf>>>()?;
        entries.retain(|path| path.file_name().is_some_and(|name| !is_hidden(name, &self.name)));
        Ok(entries)
    }

    #[cfg(test)]
    pub(super) fn inside(dir: &Path) -> Result<Self> {
        Ok(Self { inside: true, ..Self::of(dir)? })
    }
}

/// Where the states of a training lie whose results will be in the folder `dir`: on the same file system as these.
///
/// ```
/// use std::path::Path;
/// assert_eq!(tinyonn::files::states_of("runs/phase2")?, Path::new("runs/.phase2.states"));
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// `dir` has no name of its own, or is a link that leads nowhere.
pub fn states_of(dir: impl AsRef<Path>) -> Result<PathBuf> {
    Ok(Place::of(dir.as_ref())?.hidden(STATES))
}

/// Whether `dir` is a folder that holds anything but what is staged in it, or what the system itself put there.
///
/// ```
/// use tinyonn::files::is_used;
///
/// # let parent = tempfile::tempdir()?;
/// # let dir = parent.path().join("out");
/// assert!(!is_used(&dir)?); // not there yet
/// std::fs::create_dir(&dir)?;
/// assert!(!is_used(&dir)?);
/// std::fs::write(dir.join("config.json"), "{}")?;
/// assert!(is_used(&dir)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// It is no folder, or one that cannot be read.
pub fn is_used(dir: impl AsRef<Path>) -> Result<bool> {
    let dir = dir.as_ref();
    // Of a folder without a name nothing is staged.
    let name = resolved(dir)?.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries {
                if !is_hidden(&entry.map_err(|e| Error::io(dir, e))?.file_name(), &name) {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io(dir, e)),
    }
}

/// The folder that holds `path`.
pub(crate) fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// What `path` leads to, if it is a link, whether that is there or not: a new file or folder lies where the link leads, and the link stays.
pub(super) fn resolved(path: &Path) -> Result<PathBuf> {
    // Without a slash at its end, which would be a look through the link already.
    let mut at: PathBuf = path.components().collect();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&at) {
            Ok(to) => at = parent_of(&at).join(to),
            Err(_) => return Ok(at),
        }
    }
    Err(Error::file(path, "is a link that leads back to itself", "remove it, or name another place"))
}

fn hidden_name(name: &str, purpose: &str) -> String {
    format!(".{name}.{purpose}")
}

fn is_hidden(entry: &OsStr, name: &str) -> bool {
    entry == OF_THE_SYSTEM || PURPOSES.iter().any(|purpose| entry == hidden_name(name, purpose).as_str())
}

/// Whether the folder `dir` is the root of a file system other than its parent's.
#[cfg(unix)]
fn is_mount_point(dir: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    // By `..`, which is the parent of the folder itself.
    let [own, parent] = [dir.to_path_buf(), dir.join("..")].map(|path| fs::metadata(path).map(|found| found.dev()));
    matches!((own, parent), (Ok(own), Ok(parent)) if own != parent)
}

#[cfg(not(unix))]
fn is_mount_point(_: &Path) -> bool {
    false
}

/// Whether a folder can be made in `parent`.
fn takes_folders(parent: &Path, name: &str) -> bool {
    let tried = parent.join(hidden_name(name, &format!("{}.trying", std::process::id())));
    match fs::create_dir(&tried) {
        Ok(()) => fs::remove_dir(&tried).is_ok(),
        Err(e) => !matches!(e.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem),
    }
}
