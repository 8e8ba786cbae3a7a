//! `results/`: what each study found, one Markdown file a study, and `RESULTS.md`, which is made of them.
//!
//! A study that has run leaves `STUDY.md` and beside it `STUDY.json`, the tables and rows that its grid asks for, known before anything is
//! computed. A study that was not run leaves neither, and has no part of the page; of one whose table lacks a row that was asked for, no page
//! is made at all.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tinyonn::{Error, Result, files};

/// A study that may have a part of `RESULTS.md`.
#[derive(Clone, Copy, Debug)]
pub struct Study {
    /// The stem of its files.
    pub name: &'static str,
    /// The program that runs it.
    pub program: &'static str,
    /// The title of its part.
    pub title: &'static str,
    /// How the headings of the tables begin that it must have.
    pub tables: &'static [&'static str],
}

/// The comparison of sources of labels.
pub const COMPARE: Study = Study {
    name: "compare",
    program: "exp_compare",
    title: "Does ∫SPS route better than anything else?",
    tables: &[
        "Every setting",
        "Whose image knows the path?",
        "On every partition",
        "At every share",
        "In every form of the image",
        "Through routers",
        "What each expert is given to do",
        "Does a task need what its image points at?",
    ],
};

/// All of them, in the order in which they are told.
pub const STUDIES: [Study; 1] = [COMPARE];

/// What the grid of a study asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declared {
    /// The study.
    pub study: String,
    /// Its tables.
    pub tables: Vec<DeclaredTable>,
}

/// What a table must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredTable {
    /// Its heading.
    pub heading: String,
    /// The leading cells of each row, by which it is known.
    pub rows: Vec<Vec<String>>,
}

/// The file beside the fragment `path` that says what it must hold.
#[must_use]
pub fn declared_beside(path: &Path) -> PathBuf {
    path.with_extension("json")
}

impl Declared {
    /// Writes it beside the fragment `path`.
    ///
    /// # Errors
    /// What the system reports.
    pub fn write_beside(&self, path: &Path) -> Result<()> {
        let path = declared_beside(path);
        let json = serde_json::to_string_pretty(self);
        let json = json.map_err(|e| Error::file(&path, e.to_string(), "report this as a defect"))?;
        files::write(path, json + "\n")
    }

    /// Reads what lies beside the fragment `path`.
    fn read_beside(path: &Path, study: &Study) -> Result<Self> {
        let beside = declared_beside(path);
        let remedy = format!("let {} write both", study.program);
        let text = match std::fs::read(&beside) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let problem = format!("has no {} that says which rows it must have", name_of(&beside));
                return Err(Error::file(path, problem, remedy));
            }
            Err(e) => return Err(Error::io(&beside, e)),
        };
        let read: Self =
            serde_json::from_slice(&text).map_err(|e| Error::file(&beside, e.to_string(), remedy.clone()))?;
        let has = |table: &&&str| read.tables.iter().any(|declared| declared.heading.starts_with(**table));
        let lacking = study.tables.iter().find(|table| !has(table));
        match lacking {
            _ if read.study != study.name => {
                Err(Error::file(&beside, format!("is of `{}`, not of `{}`", read.study, study.name), remedy))
            }
            Some(table) => {
                let problem = format!("asks for no table `{table}`: the grid is not that of the whole study");
                Err(Error::file(&beside, problem, format!("run {} with its default grid", study.program)))
            }
            None => match read.tables.iter().find(|table| table.rows.is_empty()) {
                Some(table) => {
                    let problem = format!("asks for no row of `{}`", table.heading);
                    Err(Error::file(&beside, problem, remedy))
                }
                None => Ok(read),
            },
        }
    }

    /// The rows that `page` lacks, or has more than once, each with its heading.
    #[must_use]
    pub fn missing_in(&self, page: &str) -> Vec<String> {
        let of = |table: &DeclaredTable| {
            let lines: Vec<&str> = section(page, &table.heading).collect();
            let is_there = |row: &&Vec<String>| {
                let begins = row_begins(row);
                lines.iter().filter(|line| line.starts_with(&begins)).count() == 1
            };
            let told = |row: &Vec<String>| format!("`{}` of “{}”", row.join(", "), table.heading);
            table.rows.iter().filter(|row| !is_there(row)).map(told).collect::<Vec<_>>()
        };
        self.tables.iter().flat_map(of).collect()
    }
}

/// The lines of `page` under a heading of the second level.
fn section<'a>(page: &'a str, heading: &str) -> impl Iterator<Item = &'a str> {
    let is_heading = move |line: &&str| line.strip_prefix("## ") == Some(heading);
    let mut lines = page.lines();
    let found = lines.by_ref().any(|line| is_heading(&line));
    lines.take_while(move |line| found && !line.starts_with("## "))
}

/// How a row of these leading cells begins in Markdown.
fn row_begins(cells: &[String]) -> String {
    let safe: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|").replace('\n', " ")).collect();
    format!("| {} |", safe.join(" | "))
}

fn name_of(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// The page made of the fragments in the folder `dir`: those of all studies that have one, in the order of [`STUDIES`].
///
/// # Errors
/// No fragment at all; a Markdown file of no study; a fragment of another title, or one that lacks a row.
pub fn assemble(dir: &Path) -> Result<String> {
    refuse_strangers(dir)?;
    let mut parts = Vec::new();
    for study in &STUDIES {
        let path = dir.join(format!("{}.md", study.name));
        let page = match std::fs::read_to_string(&path) {
            Ok(page) => page,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !declared_beside(&path).exists() => continue,
            Err(e) => return Err(Error::io(&path, e)),
        };
        let declared = Declared::read_beside(&path, study)?;
        if page.lines().next() != Some(&format!("# {}", study.title)) {
            let problem = format!("does not begin with its title, `# {}`", study.title);
            return Err(Error::file(&path, problem, format!("let {} write it", study.program)));
        }
        let missing = declared.missing_in(&page);
        if let Some(first) = missing.first() {
            let more = if missing.len() > 1 { format!(", and {} more", missing.len() - 1) } else { String::new() };
            let remedy = format!("run {} again: it goes on where it stopped, and writes them", study.program);
            return Err(Error::file(&path, format!("lacks the row {first}{more}"), remedy));
        }
        parts.push(page);
    }
    if parts.is_empty() {
        let names = STUDIES.map(|study| format!("{}.md", study.name)).join(", ");
        return Err(Error::file(dir, format!("holds none of {names}"), "run a study with --results"));
    }
    Ok(parts.join("\n"))
}

/// Refuses what looks like a fragment and would be left out.
fn refuse_strangers(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let known = STUDIES.iter().any(|study| path.file_stem().is_some_and(|stem| stem == study.name));
        if path.extension().is_some_and(|extension| extension == "md") && !known {
            let known = STUDIES.map(|study| study.name).join(", ");
            let problem = format!("is of no study; there are {known}");
            return Err(Error::file(path, problem, "move it elsewhere, or add the study to `fragments::STUDIES`"));
        }
    }
    Ok(())
}
