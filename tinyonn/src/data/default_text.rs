//! The corpus used when no `--data` is given: five tasks out of the workspace itself, without a download.
//!
//! | task | text |
//! |---|---|
//! | `rust` | the workspace's `.rs` files, without their documentation lines |
//! | `prose` | its `.md` files, and the `//!` and `///` lines of its `.rs` files, one document a file |
//! | `arithmetic`, `sorting`, `records` | generated ([`super::arithmetic`], …) |
//!
//! Each is at most [`DEFAULT_BYTES`] long, the library's files first: what a run takes, and what it finds, does not grow with the
//! workspace. The first two share no line. What the tools write themselves is left out: `RESULTS.md`, `runs/`, `target/`, the
//! tests' `fixtures/`; hidden folders too. Otherwise a run would change the corpus of the next.

use std::path::{Path, PathBuf};

use super::source::{files_below, relative_id};
use super::{Corpus, DEFAULT_BYTES, Document, Task, arithmetic, records, sorting};
use crate::{Error, Result};

/// How many tasks it has.
pub const DEFAULT_TASKS: usize = 5;
/// The folders of the workspace that hold its own text.
const FOLDERS: [&str; 7] = ["tinyonn", "tinyonn-spec", "tinyonn-macros", "experiments", "benches", "tests", "docs"];
/// Files and folders that tools write, at any depth of those folders.
const WRITTEN: [&str; 4] = ["RESULTS.md", "runs", "target", "fixtures"];

/// The five default tasks, from the workspace at `root`; `seed` draws the generated ones.
///
/// ```
/// use tinyonn::data::{DEFAULT_TASKS, default_corpus, workspace_root};
///
/// let corpus = default_corpus(&workspace_root()?, 0)?;
/// assert_eq!((corpus.tasks.len(), corpus.tasks[0].name.as_str()), (DEFAULT_TASKS, "rust"));
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// A file that cannot be read or is not UTF-8; a folder without Rust or without documentation.
pub fn default_corpus(root: &Path, seed: u64) -> Result<Corpus> {
    let mut rust = Task { name: "rust".into(), documents: Vec::new() };
    let mut prose = Task { name: "prose".into(), documents: Vec::new() };
    for path in workspace_files(root)? {
        let text = std::fs::read_to_string(&path).map_err(|source| Error::io(&path, source))?;
        let id = relative_id(root, &path);
        if has_extension(&path, "md") {
            push(&mut prose, id, text);
        } else {
            let (code, documentation) = separate_documentation(&text);
            push(&mut rust, id.clone(), code);
            push(&mut prose, id, documentation);
        }
    }
    for task in [&rust, &prose] {
        if task.documents.is_empty() {
            let problem = format!("there is no text for the default task `{}`", task.name);
            return Err(Error::file(root, problem, "name the workspace's folder, or give --data NAME=PATH"));
        }
    }
    let generated = [arithmetic, sorting, records].map(|generate| generate(seed, DEFAULT_BYTES));
    Ok(Corpus { tasks: [rust, prose].into_iter().chain(generated).collect() })
}

/// Adds a document, unless there is nothing in it or the task is full.
fn push(task: &mut Task, id: String, text: String) {
    let held: usize = task.documents.iter().map(|document| document.text.len()).sum();
    if !text.trim().is_empty() && held + text.len() <= DEFAULT_BYTES {
        task.documents.push(Document::new(id, text));
    }
}

/// The `.rs` and `.md` files of [`FOLDERS`] and the `.md` files at the root, without what tools write.
fn workspace_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = std::fs::read_dir(root).map_err(|source| Error::io(root, source))?;
    for entry in entries {
        let path = entry.map_err(|source| Error::io(root, source))?.path();
        if has_extension(&path, "md") && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    for folder in FOLDERS.map(|folder| root.join(folder)).into_iter().filter(|folder| folder.is_dir()) {
        files.extend(
            files_below(&folder)?.into_iter().filter(|path| has_extension(path, "rs") || has_extension(path, "md")),
        );
    }
    files.retain(|path| {
        let relative = path.strip_prefix(root).unwrap_or(path);
        let hidden = relative.iter().any(|part| part.to_string_lossy().starts_with('.'));
        !hidden && !relative.iter().any(|part| WRITTEN.iter().any(|written| part == *written))
    });
    Ok(files)
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|candidate| candidate == extension)
}

/// (code, documentation): lines that start with `//!` or `///` lose their mark and become documentation.
fn separate_documentation(text: &str) -> (String, String) {
    let (mut code, mut documentation) = (String::new(), String::new());
    for line in text.lines() {
        let trimmed = line.trim_start();
        let marked = trimmed.strip_prefix("//!").or_else(|| trimmed.strip_prefix("///"));
        let (to, line) = match marked {
            Some(rest) if !rest.starts_with('/') => (&mut documentation, rest.strip_prefix(' ').unwrap_or(rest)),
            _ => (&mut code, line),
        };
        to.push_str(line);
        to.push('\n');
    }
    (code, documentation)
}

/// The workspace that [`default_corpus`] reads: the nearest folder, from the current one upward, whose `Cargo.toml` has
/// a `[workspace]` and which holds `tinyonn/`; failing that, where this library was built, if it is still there.
///
/// # Errors
/// Neither is found; the remedy is `--data`.
pub fn workspace_root() -> Result<PathBuf> {
    let here = std::env::current_dir().map_err(|source| Error::io(".", source))?;
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    here.ancestors().chain(built).find(|folder| is_workspace(folder)).map(Path::to_path_buf).ok_or_else(|| {
        let problem =
            format!("no task is named, and {} lies outside the workspace whose text is the default", here.display());
        Error::setting("--data", problem, "give --data NAME=PATH for every task, or run inside the workspace")
    })
}

fn is_workspace(folder: &Path) -> bool {
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
    let has_workspace = manifest.parse::<toml::Table>().is_ok_and(|table| table.contains_key("workspace"));
    has_workspace && folder.join("tinyonn/Cargo.toml").is_file()
}
