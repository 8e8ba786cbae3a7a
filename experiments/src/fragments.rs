//! What a study leaves in `results/`: `STUDY.md`, what it found, `STUDY.json`, which says what that page must hold, and `STUDY.figures`, its drawings, if it
//! draws any.
//!
//! The tables and rows that the grid asks for are known before anything is computed; the cells that were not run, and the SHA-256 of the page,
//! when it is written.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
#[cfg(feature = "pictures")]
use tinyonn::files::StagedFolder;
use tinyonn::{Error, Result, files};

#[cfg(feature = "pictures")]
use crate::report::Figure;

/// A study that may have a part of `RESULTS.md`.
#[derive(Clone, Copy, Debug)]
pub struct Study {
    /// The stem of its files.
    pub name: &'static str,
    /// The program that runs it.
    pub program: &'static str,
    /// The title of its part.
    pub title: &'static str,
}

/// The comparison of sources of labels.
pub const COMPARE: Study =
    Study { name: "compare", program: "exp_compare", title: "Does ∫SPS route better than anything else?" };

/// The same of a model of a hundred million parameters.
pub const COMPARE_LARGE: Study =
    Study { name: "compare_large", program: "exp_compare", title: "Does it at a hundred million parameters?" };

/// The study of forgetting.
pub const FORGETTING: Study =
    Study { name: "forgetting", program: "exp_forgetting", title: "Does Surprise Min-K forget less?" };

/// The study of forgetting of a pretrained model.
pub const FORGETTING_PRETRAINED: Study =
    Study { name: "forgetting_pretrained", program: "exp_forgetting", title: "What does a pretrained model forget?" };

/// The study of what each way to take part of a pretrained model's MLPs keeps.
pub const EVIDENCE: Study = Study {
    name: "evidence",
    program: "exp_evidence",
    title: "How much of a pretrained model is kept, at which share?",
};

/// The study of what attention to some keys keeps.
pub const ATTENTION: Study =
    Study { name: "attention", program: "exp_attention", title: "Which keys does a query need?" };

/// The study of growth.
pub const GROWTH: Study = Study { name: "growth", program: "exp_growth", title: "What does growth buy?" };

/// All of them, in the order in which they are told.
pub const STUDIES: [Study; 7] =
    [EVIDENCE, ATTENTION, COMPARE, COMPARE_LARGE, FORGETTING, FORGETTING_PRETRAINED, GROWTH];

/// What tells a page that the study wrote from any other.
pub(crate) fn mark(study: &Study) -> String {
    format!("Written by `{}` from its records; not edited by hand.", study.program)
}

/// What a page must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declared {
    /// The study.
    pub study: String,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// All else that decides what a table says: texts, models, how much is read.
    pub settings: Value,
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

/// `STUDY.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// SHA-256 of the page beside it.
    pub page_sha256: String,
    /// The cells of the grid that have no record: a table that has them as a column says `–` there, as where a score has no value.
    pub not_run: Vec<String>,
    /// What the grid asks for.
    pub declared: Declared,
}

/// The file beside the page `path` that says what it must hold.
#[must_use]
pub fn declared_beside(path: &Path) -> PathBuf {
    path.with_extension("json")
}

/// Writes `page`, and beside it what the grid asks for and which of its cells were not run. Whoever is interrupted in between leaves two files
/// that do not belong together, which [`Written::read`] says.
///
/// # Errors
/// What the system reports.
pub fn write(path: &Path, page: &str, declared: Declared, not_run: Vec<String>) -> Result<()> {
    let beside = declared_beside(path);
    let written = Written { page_sha256: sha256(page.as_bytes()), not_run, declared };
    let json = serde_json::to_string_pretty(&written);
    let json = json.map_err(|e| Error::file(&beside, e.to_string(), "report this as a defect"))?;
    files::write(path, page)?;
    files::write(beside, json + "\n")
}

/// Writes `drawings` as SVG into the folder `STUDY.figures` beside the page `path`, which they replace; returns their names in it, from the page's folder on.
///
/// # Errors
/// What the system reports.
#[cfg(feature = "pictures")]
pub(crate) fn write_figures(path: &Path, drawings: &[Figure]) -> Result<Vec<String>> {
    let folder = path.with_extension("figures");
    let staged = StagedFolder::replacing(&folder)?;
    let names = drawings.iter().map(|drawing| drawing.write_svg(staged.path())).collect::<Result<Vec<_>>>()?;
    staged.publish()?;
    let folder = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(names.into_iter().flatten().map(|name| format!("{folder}/{name}")).collect())
}

/// How to come by the results of a study of cells: which sources made how many of them, at which commit the page is written, on what they were computed.
#[must_use]
pub fn provenance(
    sources: impl IntoIterator<Item = (String, usize)>,
    computed_on: &str,
    commit: String,
) -> [(String, String); 3] {
    let by = |(sources, cells): (String, usize)| format!("{sources} ({cells} cells)");
    let sources = sources.into_iter().map(by).collect::<Vec<_>>().join(", ");
    [
        ("computed by sources of the library with SHA-256".to_owned(), sources),
        ("written at commit".into(), commit),
        ("computed on".into(), computed_on.to_owned()),
    ]
}

/// In hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Written {
    /// Reads what lies beside the page `path` of `study`, and refuses a page that is not what it says.
    ///
    /// # Errors
    /// As above, with the row, cell or file.
    pub fn read(path: &Path, page: &str, study: &Study) -> Result<Self> {
        let (beside, remedy) = (declared_beside(path), format!("let {} write both", study.program));
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
        if read.declared.study != study.name {
            let problem = format!("is of `{}`, not of `{}`", read.declared.study, study.name);
            return Err(Error::file(&beside, problem, remedy));
        }
        let again = format!("run {} again: it goes on where it stopped, and writes them", study.program);
        if let Some(cell) = read.not_run.first() {
            let problem = format!("says that {} of its grid, `{cell}` first, were not run", read.not_run.len());
            return Err(Error::file(&beside, problem, again));
        }
        let missing = read.declared.missing_in(page);
        if let Some(first) = missing.first() {
            let more = if missing.len() > 1 { format!(", and {} more", missing.len() - 1) } else { String::new() };
            return Err(Error::file(path, format!("lacks the row {first}{more}"), again));
        }
        if read.page_sha256 != sha256(page.as_bytes()) {
            let problem = format!("is not the page that {} was written with", name_of(&beside));
            return Err(Error::file(path, problem, remedy));
        }
        Ok(read)
    }
}

impl Declared {
    /// The rows that `page` lacks, or has more than once, each with its heading.
    #[must_use]
    pub fn missing_in(&self, page: &str) -> Vec<String> {
        let of = |table: &DeclaredTable| {
            let lines: Vec<&str> = section(page, &table.heading).collect();
            let is_there = |row: &&Vec<String>| {
                let begins = row_begins(row);
                lines.iter().filter(|line| line.starts_with(&begins)).count() == 1
            };
            table.rows.iter().filter(|row| !is_there(row)).map(|row| table.told(row)).collect::<Vec<_>>()
        };
        self.tables.iter().flat_map(of).collect()
    }

    /// What this study asks less than `whole` does: a setting, a seed or a row, in words.
    #[must_use]
    pub fn lacks_of(&self, whole: &Self) -> Option<String> {
        if self.settings != whole.settings {
            let keys = whole.settings.as_object().into_iter().flat_map(|settings| settings.keys());
            let other = keys.filter(|key| self.settings.get(key) != whole.settings.get(key)).map(String::as_str);
            return Some(format!("has another `{}`", other.collect::<Vec<_>>().join("`, `")));
        }
        if let Some(seed) = whole.seeds.iter().find(|seed| !self.seeds.contains(seed)) {
            return Some(format!("has no seed {seed}"));
        }
        let of = |table: &DeclaredTable| {
            let own = self.tables.iter().find(|own| own.heading == table.heading);
            let row = table.rows.iter().find(|row| own.is_none_or(|own| !own.rows.contains(row)))?;
            Some(format!("does not ask for the row {}", table.told(row)))
        };
        whole.tables.iter().find_map(of)
    }
}

impl DeclaredTable {
    fn told(&self, row: &[String]) -> String {
        format!("`{}` of “{}”", row.join(", "), self.heading)
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
