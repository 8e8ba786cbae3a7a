//! What is wrong with a file, before it is known by which path it was opened.

use std::path::Path;

use crate::Error;

/// For a file whose header does not describe its bytes.
const DAMAGED: &str = "the file is truncated or damaged: copy or download it again";

/// A problem and its remedy.
#[derive(Debug)]
pub(super) struct Fault {
    problem: String,
    remedy: String,
}

impl Fault {
    pub(super) fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { problem: one_line(&problem.into()), remedy: remedy.into() }
    }

    /// The library's error, about `path`.
    pub(super) fn of(self, path: &Path) -> Error {
        Error::file(path, self.problem, self.remedy)
    }
}

/// A forged name may hold anything, and be as long as its file.
fn one_line(text: &str) -> String {
    const LONGEST: usize = 400;
    let plain = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let mut line: String = text.chars().take(LONGEST).map(plain).collect();
    if text.chars().nth(LONGEST).is_some() {
        line.push_str(" ..");
    }
    line
}

pub(super) fn damaged(problem: impl Into<String>) -> Fault {
    Fault::new(problem, DAMAGED)
}
