//! A task read from disk: a folder, one text file, or JSON lines.
//!
//! - **Folder**: every text file below it, in the order of the relative paths, is a document. Text means valid UTF-8
//!   without NUL; other files are skipped, and a warning counts them. Skipped as well: hidden files and folders,
//!   folders that carry a `CACHEDIR.TAG`, and a `target` folder beside a `Cargo.toml`. Symbolic links are followed.
//! - **Text file**: cut at blank lines or line ends into documents of about 4 KiB, so that one file can still be
//!   split by document; a file above 1 MiB inside a folder is cut the same way. The parts put together are the file.
//! - **`.jsonl`**, also inside a folder: one JSON object a line, whose `text` is a document.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use walkdir::{DirEntry, WalkDir};

use super::{Corpus, Document, Task};
use crate::{Error, Result};

/// Size a part of a cut file aims at, in bytes.
const PART_BYTES: usize = 4 << 10;
/// A file in a folder above this size, in bytes, is cut into parts.
const WHOLE_FILE_BYTES: usize = 1 << 20;

/// `NAME=PATH`: a task's name and where its text lies.
///
/// ```
/// use tinyonn::data::DataSource;
/// let source: DataSource = "law=/corpora/law".parse()?;
/// assert_eq!(source.name, "law");
/// let error = "law".parse::<DataSource>().unwrap_err().to_string();
/// assert!(error.contains("NAME=PATH"), "{error}");
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataSource {
    /// The task's name: letters, digits, `-`, `_` and `.`, because it becomes part of file names.
    pub name: String,
    /// A folder, a text file or a `.jsonl` file.
    pub path: PathBuf,
}

impl FromStr for DataSource {
    type Err = Error;

    fn from_str(argument: &str) -> Result<Self> {
        let refuse = |problem: String| {
            Error::setting(
                "--data",
                problem,
                "write NAME=PATH, for example law=corpora/law, with a name of letters, digits, `-`, `_` or `.`",
            )
        };
        let Some((name, path)) = argument.split_once('=') else {
            return Err(refuse(format!("`{argument}` has no `=`")));
        };
        if name.is_empty() || path.is_empty() {
            return Err(refuse(format!("`{argument}` lacks a name or a path")));
        }
        if name.starts_with('.') || !name.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c)) {
            return Err(refuse(format!("`{name}` cannot name a task")));
        }
        Ok(Self { name: name.to_owned(), path: PathBuf::from(path) })
    }
}

impl DataSource {
    /// Reads the task.
    ///
    /// # Errors
    /// A missing path, a file the system refuses, a single file that is not UTF-8, a line of a `.jsonl` that is not an
    /// object with a `text`, and a path without any text; each names the file.
    pub fn read(&self) -> Result<Task> {
        let path = &self.path;
        let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => {
                Error::file(path, "no such file or folder", format!("correct the path after `{}=`", self.name))
            }
            _ => Error::io(path, source),
        })?;
        let documents = if metadata.is_dir() { read_folder(path)? } else { read_file(path)? };
        if documents.is_empty() {
            return Err(Error::file(
                path,
                format!("task `{}` finds no text here", self.name),
                "name a folder with text files, a text file, or a .jsonl file with a `text` on every line",
            ));
        }
        Ok(Task { name: self.name.clone(), documents })
    }
}

/// Reads several tasks into one corpus, in the order given.
///
/// # Errors
/// Those of [`DataSource::read`]; no source at all; two sources of one name.
pub fn read_sources(sources: &[DataSource]) -> Result<Corpus> {
    if sources.is_empty() {
        return Err(Error::setting("--data", "no task is named", "give at least one NAME=PATH"));
    }
    let mut names = BTreeSet::new();
    for source in sources {
        if !names.insert(&source.name) {
            let problem = format!("the task name `{}` is used twice", source.name);
            return Err(Error::setting("--data", problem, "give every task a name of its own"));
        }
    }
    Ok(Corpus { tasks: sources.iter().map(DataSource::read).collect::<Result<_>>()? })
}

fn read_file(path: &Path) -> Result<Vec<Document>> {
    let name = path.file_name().map_or_else(|| "text".into(), |name| name.to_string_lossy().into_owned());
    let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::file(path, format!("not UTF-8 at byte {at}"), "convert the file, for example with `iconv -t UTF-8`")
    })?;
    if is_json_lines(path) { read_json_lines(path, &name, &text) } else { Ok(parts(&name, &text)) }
}

fn read_folder(root: &Path) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    let mut skipped: Vec<String> = Vec::new();
    for path in files_below(root)? {
        let id = relative_id(root, &path);
        let bytes = std::fs::read(&path).map_err(|source| Error::io(&path, source))?;
        let text = match String::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => text,
            _ => {
                skipped.push(id);
                continue;
            }
        };
        if is_json_lines(&path) {
            documents.extend(read_json_lines(&path, &id, &text)?);
        } else if text.len() > WHOLE_FILE_BYTES {
            documents.extend(parts(&id, &text));
        } else if !text.trim().is_empty() {
            documents.push(Document { id, text });
        }
    }
    if let Some(first) = skipped.first() {
        let count = skipped.len();
        tracing::warn!("{}: {count} files are not UTF-8 text and were skipped, the first is {first}", root.display());
    }
    Ok(documents)
}

/// All files below `root` that are not hidden or in a build or cache folder, ordered by relative path.
pub(super) fn files_below(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = WalkDir::new(root).follow_links(true).sort_by_file_name().into_iter();
    for entry in entries.filter_entry(|entry| entry.depth() == 0 || !is_left_out(entry)) {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(root).to_path_buf();
            let problem = error.to_string();
            match error.into_io_error() {
                Some(source) => Error::io(path, source),
                None => Error::file(path, problem, "remove the link that leads back to its own folder"),
            }
        })?;
        if entry.file_type().is_file() {
            files.push(entry.into_path());
        }
    }
    Ok(files)
}

fn is_left_out(entry: &DirEntry) -> bool {
    if entry.file_name().to_string_lossy().starts_with('.') {
        return true;
    }
    let path = entry.path();
    let beside_manifest = || path.parent().is_some_and(|parent| parent.join("Cargo.toml").is_file());
    entry.file_type().is_dir()
        && (path.join("CACHEDIR.TAG").is_file() || (entry.file_name() == "target" && beside_manifest()))
}

fn is_json_lines(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("jsonl"))
}

/// The path below `root`, with `/` on every system.
pub(super) fn relative_id(root: &Path, path: &Path) -> String {
    let relative = path.strip_prefix(root).unwrap_or(path);
    relative.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

fn read_json_lines(path: &Path, id: &str, text: &str) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = index + 1;
        let refuse = |problem: String| {
            Error::file(path, format!("line {number}: {problem}"), "write one JSON object a line, with a string `text`")
        };
        let value: serde_json::Value = serde_json::from_str(line).map_err(|error| refuse(error.to_string()))?;
        let text = value.get("text").ok_or_else(|| refuse("no field `text`".into()))?;
        let text = text.as_str().ok_or_else(|| refuse("`text` is not a string".into()))?;
        if !text.trim().is_empty() {
            documents.push(Document { id: format!("{id}#{number}"), text: text.to_owned() });
        }
    }
    Ok(documents)
}

/// Cuts `text` into documents of about [`PART_BYTES`]; their texts put together are `text`.
fn parts(id: &str, text: &str) -> Vec<Document> {
    let mut documents: Vec<Document> = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (part, tail) = rest.split_at(cut_at(rest));
        rest = tail;
        match documents.last_mut() {
            // White space is no document of its own.
            Some(previous) if part.trim().is_empty() => previous.text.push_str(part),
            _ => documents.push(Document { id: format!("{id}#{}", documents.len() + 1), text: part.to_owned() }),
        }
    }
    documents.retain(|document| !document.text.trim().is_empty());
    documents
}

/// Where to cut: after the first blank line past the size aimed at; failing that within twice that size, after the
/// first line end; failing that, between two characters.
fn cut_at(text: &str) -> usize {
    let (from, to) = (text.ceil_char_boundary(PART_BYTES), text.ceil_char_boundary(2 * PART_BYTES));
    if text.len() <= from {
        return text.len();
    }
    let window = &text[from..to];
    let after = |pattern: &str| window.find(pattern).map(|at| from + at + pattern.len());
    after("\n\n").or_else(|| after("\n\r\n")).or_else(|| after("\n")).unwrap_or(to)
}
