//! A task read from disk: a folder, one text file, or JSON lines.
//!
//! - **Folder**: every text file below it, in the order of the relative paths, is a document. Text means valid UTF-8
//!   without NUL; other files are skipped, and a warning counts them. Skipped as well: hidden files and folders,
//!   folders that carry a `CACHEDIR.TAG`, and a `target` folder beside a `Cargo.toml`. Symbolic links are followed.
//! - **Text file**: cut at blank lines or line ends into documents of about 4 KiB, so that one file can still be
//!   split by document; a file above 1 MiB inside a folder is cut the same way. The parts put together are the file.
//! - **JSON lines**: one JSON object a line, whose `text` is a document, or whose `messages` are one: a conversation, which the model's chat template makes
//!   text of, and of which the assistant's turns are learnt. So are read a `.jsonl` or `.ndjson`, whatever else is called otherwise
//!   and reads so from its first line, and in a folder of what is called otherwise that whose first line has a `text` or `messages`.
//!
//! A byte order mark is no text. What is compressed, or a table of another format, is refused by name, whatever it is called; in a folder only what is called
//! like text, other such files being left out like pictures.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use walkdir::{DirEntry, WalkDir};

use super::text_file::{Each, TextFile, not_utf8};
use super::text_kind::{TextKind, is_meant};
use super::{Corpus, Document, Documents, Task};
use crate::{Error, Result};

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
    /// A folder, a text file or a file of JSON lines.
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
        let mut documents = Vec::new();
        self.told(&mut |document| {
            documents.push(document);
            Ok(())
        })?;
        Ok(Task { name: self.name.clone(), documents })
    }

    /// The documents of the task, none of which is kept.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn count(&self) -> Result<usize> {
        let mut count = 0;
        self.told(&mut |_| {
            count += 1;
            Ok(())
        })?;
        Ok(count)
    }

    /// Visits the documents, warns of files that are left out, and refuses a path without any text.
    fn told(&self, each: Each<'_>) -> Result<()> {
        let mut any = false;
        let left_out = self.visit(&mut |document| {
            any = true;
            each(document)
        })?;
        let path = &self.path;
        if let Some(first) = left_out.first {
            let count = left_out.count;
            tracing::warn!(
                "{}: {count} files are not UTF-8 text and were skipped, the first is {first}",
                path.display()
            );
        }
        if any {
            return Ok(());
        }
        Err(Error::file(
            path,
            format!("task `{}` finds no text here", self.name),
            "name a folder with text files, a text file, or JSON lines with a `text` on every line",
        ))
    }

    fn visit(&self, each: Each<'_>) -> Result<LeftOut> {
        let path = &self.path;
        let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => {
                Error::file(path, "no such file or folder", format!("correct the path after `{}=`", self.name))
            }
            _ => Error::io(path, source),
        })?;
        if metadata.is_dir() { visit_folder(path, each) } else { visit_file(path, each).map(|()| LeftOut::default()) }
    }
}

/// Files are read as they are visited: at no time is more in memory than one document, or a small file.
impl Documents for Vec<DataSource> {
    fn names(&self) -> Vec<String> {
        self.iter().map(|source| source.name.clone()).collect()
    }

    fn count(&self, task: usize) -> Result<usize> {
        self[task].count()
    }

    fn visit(&self, task: usize, each: &mut dyn FnMut(Document) -> Result<()>) -> Result<()> {
        self[task].visit(each).map(drop)
    }
}

/// Files of a folder that are not text.
#[derive(Default)]
struct LeftOut {
    count: usize,
    first: Option<String>,
}

/// Reads several tasks into one corpus, in the order given.
///
/// ```
/// use tinyonn::data::{DataSource, check_sources, read_sources};
///
/// # let dir = tempfile::tempdir()?;
/// std::fs::write(dir.path().join("a.txt"), "To be, or not to be.")?;
/// std::fs::write(dir.path().join("b.jsonl"), "{\"text\": \"one\"}\n{\"text\": \"two\"}\n")?;
/// let source = |name: &str, file: &str| DataSource { name: name.into(), path: dir.path().join(file) };
/// let sources = [source("play", "a.txt"), source("counts", "b.jsonl")];
/// assert_eq!((sources[1].count()?, sources[0].read()?.bytes()), (2, 20));
/// assert_eq!(read_sources(&sources)?.task_names(), ["play", "counts"]);
/// assert!(check_sources(&[source("play", "a.txt"), source("play", "b.jsonl")]).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Those of [`DataSource::read`]; no source at all; two sources of one name.
pub fn read_sources(sources: &[DataSource]) -> Result<Corpus> {
    check_sources(sources)?;
    Ok(Corpus { tasks: sources.iter().map(DataSource::read).collect::<Result<_>>()? })
}

/// Refuses what is no list of tasks, before any of it is read.
///
/// # Errors
/// No source at all; two sources of one name.
pub fn check_sources(sources: &[DataSource]) -> Result<()> {
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
    Ok(())
}

fn visit_file(path: &Path, each: Each<'_>) -> Result<()> {
    let name = path.file_name().map_or_else(|| "text".into(), |name| name.to_string_lossy().into_owned());
    let file = TextFile::open(path)?;
    if let Some(refused) = file.packed() {
        return Err(refused);
    }
    if let Some(at) = file.check()?.invalid_at {
        return Err(not_utf8(path, at));
    }
    match file.kind(true)? {
        TextKind::JsonLines => file.json_lines(&name, each),
        TextKind::Prose => file.parts(&name, each),
    }
}

fn visit_folder(root: &Path, each: Each<'_>) -> Result<LeftOut> {
    let mut left_out = LeftOut::default();
    for path in files_below(root)? {
        let id = relative_id(root, &path);
        let file = TextFile::open(&path)?;
        let packed = file.packed();
        if is_meant(&path)
            && let Some(refused) = packed
        {
            return Err(refused);
        }
        let checked = file.check()?;
        if packed.is_some() || checked.nul || checked.invalid_at.is_some() {
            left_out.count += 1;
            left_out.first.get_or_insert(id);
        } else if file.kind(false)? == TextKind::JsonLines {
            file.json_lines(&id, each)?;
        } else if file.is_large() {
            file.parts(&id, each)?;
        } else {
            let text = file.text()?;
            if !text.trim().is_empty() {
                each(Document::new(id, text))?;
            }
        }
    }
    Ok(left_out)
}

/// All files below `root` that are not hidden or in a build or cache folder, ordered by relative path.
pub(super) fn files_below(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = WalkDir::new(root).follow_links(true).sort_by_file_name().into_iter();
    for entry in entries.filter_entry(|entry| entry.depth() == 0 || !is_left_out(entry)) {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(root).to_path_buf();
            let problem = error.to_string();
            let leads_to = std::fs::read_link(&path).ok().filter(|_| !path.exists());
            if let Some(to) = leads_to {
                let problem = format!("is a link to {}, which is not there", to.display());
                return Error::file(path, problem, "remove the link, or restore what it leads to");
            }
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

/// The path below `root`, with `/` on every system.
pub(super) fn relative_id(root: &Path, path: &Path) -> String {
    let relative = path.strip_prefix(root).unwrap_or(path);
    relative.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}
