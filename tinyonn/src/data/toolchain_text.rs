//! Real text that any machine with this workspace and its Rust toolchain has, without a download of data: `--data toolchain`.
//!
//! | task | text |
//! |---|---|
//! | `rust` | the `.rs` files of the crates that `Cargo.lock` names, as cargo unpacked them |
//! | `prose` | their `.md` files: introductions, guides, change logs |
//! | `manifests` | their `Cargo.toml`, as its author wrote it |
//! | `manuals` | the manual pages of `cargo` and `rustc` |
//!
//! Written by hundreds of people, and the same on every machine: `Cargo.lock` and `rust-toolchain.toml` pin the versions. Crates of one owner share
//! text, manifests most of all. So **of each task one file an owner is taken**, and within a task a split by document never has one owner on both sides. The owner is
//! whose the repository is, or of a crate that names none the first part of its name. Files are taken in the order of the SHA-256 of
//! their names until [`DEFAULT_BYTES`] are full, of crates those of 1 KiB to 8 KiB, so that many are heard. The manual pages are of two programs,
//! cargo's share the sections on common options: there a split keeps pages apart and no more.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use super::source::{files_below, relative_id};
use super::{Corpus, DEFAULT_BYTES, Document, Task};
use crate::{Error, Result};

/// How many tasks it has.
pub const TOOLCHAIN_TASKS: usize = 4;
/// The name that stands for these tasks in place of `NAME=PATH`.
pub const TOOLCHAIN: &str = "toolchain";

/// Sizes in bytes of crates' files that are taken: shorter ones say nothing, longer ones would fill a split.
const OF_CRATES: RangeInclusive<u64> = 1024..=8 * 1024;
/// Of manual pages, which are fewer and longer.
const OF_MANUALS: RangeInclusive<u64> = 1024..=32 * 1024;
/// How to get what is missing.
const FETCH: &str = "run `cargo fetch --locked` in the workspace";

/// Where the text lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    /// The `Cargo.lock` that names the crates.
    pub lock: PathBuf,
    /// cargo's own folder, which holds `registry/src`.
    pub cargo_home: PathBuf,
    /// The folder of the manual pages.
    pub manuals: PathBuf,
}

impl Toolchain {
    /// That of the workspace at `root`, and of the `rustc` that is run in it.
    ///
    /// # Errors
    /// No `rustc` that tells where it is; no folder of cargo's.
    pub fn of_workspace(root: &Path) -> Result<Self> {
        let manuals = sysroot(root)?.join("share/man/man1");
        Ok(Self { lock: root.join("Cargo.lock"), cargo_home: cargo_home()?, manuals })
    }
}

/// A file that may be taken.
struct Candidate {
    id: String,
    path: PathBuf,
    owner: String,
}

/// The four tasks.
///
/// ```no_run
/// use tinyonn::data::{TOOLCHAIN, TOOLCHAIN_TASKS, Toolchain, toolchain_corpus, workspace_root};
///
/// fn main() -> tinyonn::Result<()> {
///     // `--data toolchain`: it reads the crates that cargo has unpacked for this workspace.
///     let found = Toolchain::of_workspace(&workspace_root()?)?;
///     let corpus = toolchain_corpus(&found)?;
///     println!("{TOOLCHAIN}: {} of {TOOLCHAIN_TASKS} tasks, {} bytes", corpus.tasks.len(), corpus.bytes());
///     Ok(())
/// }
/// ```
///
/// # Errors
/// A `Cargo.lock` that cannot be read; crates that cargo has not unpacked; a toolchain without manual pages; text that cannot be read.
pub fn toolchain_corpus(from: &Toolchain) -> Result<Corpus> {
    let crates = locked_crates(&from.lock, &from.cargo_home)?;
    let manuals = &from.manuals;
    let of_crates = |wanted: &dyn Fn(&Path) -> bool| -> Result<Vec<Candidate>> {
        let mut found = Vec::new();
        for Unpacked { folder, owner } in &crates {
            let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let files = files_below(folder)?.into_iter().filter(|path| wanted(path));
            let id = |path: &Path| format!("{name}/{}", relative_id(folder, path));
            found.extend(files.map(|path| Candidate { id: id(&path), path, owner: owner.clone() }));
        }
        Ok(found)
    };
    let extension = |extension: &'static str| move |path: &Path| path.extension().is_some_and(|e| e == extension);
    if !manuals.is_dir() {
        let remedy =
            "install the toolchain with rustup, whose parts bring their manual pages, or give --data NAME=PATH";
        return Err(Error::file(manuals, "holds no manual page", remedy));
    }
    let of_manuals = |path: PathBuf| {
        let id = relative_id(manuals, &path);
        Candidate { owner: id.clone(), id, path }
    };
    let manifest = |path: &Path| path.file_name().is_some_and(|name| name == "Cargo.toml.orig");
    let files = [
        ("rust", of_crates(&extension("rs"))?, OF_CRATES),
        ("prose", of_crates(&extension("md"))?, OF_CRATES),
        ("manifests", of_crates(&manifest)?, OF_CRATES),
        ("manuals", files_below(manuals)?.into_iter().map(of_manuals).collect(), OF_MANUALS),
    ];
    let tasks = files.into_iter().map(|(name, files, sizes)| task(name, files, &sizes)).collect::<Result<_>>()?;
    Ok(Corpus { tasks })
}

/// Files by the SHA-256 of their names, one an owner, until the task is full; what is not text is passed over.
fn task(name: &str, mut files: Vec<Candidate>, sizes: &RangeInclusive<u64>) -> Result<Task> {
    files.sort_by_cached_key(|file| (<[u8; 32]>::from(Sha256::digest(&file.id)), file.id.clone()));
    let (mut documents, mut held, mut heard) = (Vec::new(), 0, BTreeSet::new());
    for Candidate { id, path, owner } in files {
        let size = std::fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
        if !sizes.contains(&size) || held + size as usize > DEFAULT_BYTES || heard.contains(&owner) {
            continue;
        }
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        if let Some(text) = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0')) {
            held += text.len();
            documents.push(Document::new(id, text));
            heard.insert(owner);
        }
    }
    if documents.is_empty() {
        let problem = format!("there is no text for the task `{name}`");
        return Err(Error::setting("--data toolchain", problem, format!("{FETCH}, or give --data NAME=PATH")));
    }
    Ok(Task { name: name.into(), documents })
}

/// A crate as cargo unpacked it.
struct Unpacked {
    folder: PathBuf,
    owner: String,
}

/// The crates that `lock` names from elsewhere, in its order.
fn locked_crates(lock: &Path, cargo_home: &Path) -> Result<Vec<Unpacked>> {
    let text = std::fs::read_to_string(lock).map_err(|e| Error::io(lock, e))?;
    let refused = |problem: String| Error::file(lock, problem, "restore the file, or give --data NAME=PATH");
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| refused(e.message().to_owned()))?;
    let sources = cargo_home.join("registry/src");
    let registries: Vec<PathBuf> = match std::fs::read_dir(&sources) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::file(&sources, "holds no unpacked crate", FETCH));
        }
        Err(e) => return Err(Error::io(&sources, e)),
    };
    let packages = table.get("package").and_then(toml::Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut unpacked = Vec::new();
    // What has no source is the workspace's own.
    for package in packages.iter().filter(|package| package.get("source").is_some()) {
        let key = |key: &str| package.get(key).and_then(toml::Value::as_str);
        let (Some(name), Some(version)) = (key("name"), key("version")) else {
            return Err(refused("a package lacks its name or version".into()));
        };
        let folder = registries.iter().map(|registry| registry.join(format!("{name}-{version}"))).find(|f| f.is_dir());
        let folder = folder.ok_or_else(|| {
            Error::file(&sources, format!("the crate {name} {version} of Cargo.lock is not unpacked here"), FETCH)
        })?;
        unpacked.push(Unpacked { owner: owner(&folder, name)?, folder });
    }
    Ok(unpacked)
}

/// Whose a crate is: the first part of the path of its repository's address, `dtolnay` of `https://github.com/dtolnay/syn`; or else the first part
/// of its name.
fn owner(folder: &Path, name: &str) -> Result<String> {
    let path = folder.join("Cargo.toml");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let broken = |e: toml::de::Error| Error::file(&path, e.message().to_owned(), FETCH);
    let table: toml::Table = text.parse().map_err(broken)?;
    let repository = table.get("package").and_then(|package| package.get("repository")).and_then(toml::Value::as_str);
    let host_and_path = repository.and_then(|address| address.split_once("://")).map(|(_, rest)| rest);
    let of_address = host_and_path.and_then(|rest| rest.split('/').nth(1)).filter(|owner| !owner.is_empty());
    let of_name = || name.split(['-', '_']).next().unwrap_or(name);
    Ok(of_address.unwrap_or_else(of_name).to_lowercase())
}

fn cargo_home() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = variable("CARGO_HOME").or_else(|| variable("HOME").map(|home| home.join(".cargo")));
    home.ok_or_else(|| Error::setting("CARGO_HOME", "neither it nor HOME is set", "set it to cargo's folder"))
}

fn sysroot(root: &Path) -> Result<PathBuf> {
    let problem = |problem: String| {
        let remedy = "install Rust with rustup, or give --data NAME=PATH";
        Error::setting("--data toolchain", format!("`rustc --print sysroot` {problem}"), remedy)
    };
    let output = Command::new("rustc").args(["--print", "sysroot"]).current_dir(root).output();
    let output = output.map_err(|e| problem(format!("cannot be run: {e}")))?;
    if !output.status.success() {
        return Err(problem(format!("ended with {}", output.status)));
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}
