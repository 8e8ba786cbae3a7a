//! The one error of the library. Every variant names what is wrong (a file, a tensor, a setting) and how to mend it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::signal::Signal;

/// What went wrong, where, and the remedy.
///
/// ```
/// use tinyonn::Error;
/// use tinyonn::interrupt::Signal;
///
/// let missing = std::fs::read("no/such/model").unwrap_err();
/// assert_eq!(Error::io("no/such/model", missing).to_string(), "no/such/model: No such file or directory (os error 2); check the path");
/// assert_eq!(Error::file("a.json", "is no JSON", "write it again").to_string(), "a.json: is no JSON; write it again");
/// assert_eq!(Error::tensor("norm.weight", "is [4]", "give [8]").to_string(), "tensor `norm.weight`: is [4]; give [8]");
/// assert_eq!(Error::setting("--steps", "is 0", "give at least 1").to_string(), "`--steps`: is 0; give at least 1");
/// assert_eq!(Error::variant("Few", "is not known", "declare it").to_string(), "variant `Few`: is not known; declare it");
/// let stopped = Error::interrupted(Signal::Terminate, "step 8 is saved", "the same command goes on");
/// assert_eq!(stopped.to_string(), "stopped by SIGTERM: step 8 is saved; the same command goes on");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file or folder.
    #[error("{path}: {source}; {remedy}", path = path.display(), remedy = remedy(source.kind()))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's own words.
        source: std::io::Error,
    },
    /// A file was read, but its content cannot be used.
    #[error("{path}: {problem}; {remedy}", path = path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// A tensor is missing, misshapen or of the wrong type.
    #[error("tensor `{name}`: {problem}; {remedy}")]
    Tensor {
        /// Its name in the checkpoint.
        name: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// A setting (a flag, a configuration key, an argument) has a value that cannot work.
    #[error("`{name}`: {problem}; {remedy}")]
    Setting {
        /// The flag, key or argument.
        name: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// A declared variant does not fit the model it is asked to decompose, or is not known.
    #[error("variant `{variant}`: {problem}; {remedy}")]
    Variant {
        /// The name it was declared under.
        variant: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// The run was asked to stop and did, where it can go on.
    #[error("stopped by {signal}: {saved}; {remedy}")]
    Interrupted {
        /// What asked.
        signal: Signal,
        /// What was saved.
        saved: String,
        /// How to go on.
        remedy: String,
    },
    /// One of several ranks is missing, lost, or was given something else than the others.
    #[error("rank {rank}: {problem}; {remedy}")]
    Rank {
        /// Which.
        rank: usize,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// A tensor operation failed: shapes, types or devices that do not go together.
    #[error("{}", without_backtrace(.0))]
    Candle(#[from] candle_core::Error),
}

/// The library's result.
///
/// ```
/// use tinyonn::{Error, Result};
///
/// fn tokens(text: &str) -> Result<u64> {
///     text.parse().map_err(|e| Error::setting("--tokens", format!("`{text}`: {e}"), "give a whole number"))
/// }
/// assert_eq!(tokens("1024")?, 1024);
/// assert!(tokens("many").unwrap_err().to_string().ends_with("; give a whole number"));
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The system refused `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// The content of `path` cannot be used.
    pub fn file(path: impl AsRef<Path>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), problem: problem.into(), remedy: remedy.into() }
    }

    /// The tensor `name` cannot be used.
    pub fn tensor(name: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Tensor { name: name.into(), problem: problem.into(), remedy: remedy.into() }
    }

    /// The setting `name` cannot work.
    pub fn setting(name: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Setting { name: name.into(), problem: problem.into(), remedy: remedy.into() }
    }

    /// The run was asked to stop, after `saved` was saved.
    pub fn interrupted(signal: Signal, saved: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Interrupted { signal, saved: saved.into(), remedy: remedy.into() }
    }

    /// The rank is missing, lost, or unlike the others.
    ///
    /// ```
    /// let lost = tinyonn::Error::rank(3, "is lost", "start the job again");
    /// assert!(lost.to_string().contains('3') && lost.to_string().ends_with("start the job again"));
    /// ```
    pub fn rank(rank: usize, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Rank { rank, problem: problem.into(), remedy: remedy.into() }
    }

    /// The variant does not fit, or is not known.
    pub fn variant(variant: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Variant { variant: variant.into(), problem: problem.into(), remedy: remedy.into() }
    }
}

/// The message alone: with `RUST_BACKTRACE` candle writes the calls that led to an error behind it.
fn without_backtrace(error: &candle_core::Error) -> String {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => without_backtrace(inner),
        candle_core::Error::Context { inner, context } => format!("{context}\n{}", without_backtrace(inner)),
        candle_core::Error::WithPath { inner, path } => format!("{}: {}", path.display(), without_backtrace(inner)),
        other => other.to_string(),
    }
}

/// What to do when the system refuses a file.
fn remedy(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "check the path",
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "check who may write there, or name another place"
        }
        _ if is_full(kind) => "free some space, or name another place",
        ErrorKind::NotADirectory | ErrorKind::IsADirectory => {
            "give a file where a file is asked for, a folder where a folder is"
        }
        _ => "check the file and the disk it is on",
    }
}

/// Whether room would help.
pub(crate) fn is_full(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}

impl From<Error> for candle_core::Error {
    /// For code that candle calls back: operations, `VarBuilder` backends.
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(inner) => inner,
            other => candle_core::Error::wrap(other),
        }
    }
}
