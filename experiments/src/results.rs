//! `RESULTS.md`: the parts that studies left in `results/` ([`fragments`](crate::fragments)), in a stated order.
//!
//! What people wrote about a study, `STUDY.account.md`, stands before its part. A study that was not run has no part of it. Of one whose part is not whole no page is made at all: one that lacks a row or a cell, one of a
//! smaller grid than the study's own, one that was changed since it was written.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use tinyonn::{Error, Result, files};

use crate::attention::AttentionConfig;
use crate::compare::CompareConfig;
use crate::evidence::EvidenceConfig;
use crate::forgetting::StudyConfig;
use crate::fragments::{Declared, STUDIES, Study, Written, declared_beside};
use crate::growth::GrowthConfig;
use crate::results_file::is_foreign;

/// What the part of each of [`STUDIES`] must ask for, in their order.
fn whole_parts() -> [Declared; STUDIES.len()] {
    [
        EvidenceConfig::default().declared(),
        AttentionConfig::default().declared(),
        CompareConfig::default().declared(),
        CompareConfig::large().declared(),
        StudyConfig::default().declared(),
        StudyConfig::pretrained().declared(),
        GrowthConfig::default().declared(),
    ]
}

/// The page made of the fragments in the folder `dir`: those of all studies that have one.
///
/// # Errors
/// No fragment at all; a Markdown file of no study; an account without its fragment; a fragment of another title, or one that is not whole.
pub fn assemble(dir: &Path) -> Result<String> {
    refuse_strangers(dir)?;
    let mut parts = Vec::new();
    for (study, whole) in STUDIES.iter().zip(whole_parts()) {
        let path = dir.join(format!("{}.md", study.name));
        let account = account_of(study, dir);
        let page = match std::fs::read_to_string(&path) {
            Ok(page) => page,
            Err(e) if e.kind() == ErrorKind::NotFound && !declared_beside(&path).exists() && !account.exists() => {
                continue;
            }
            Err(e) => return Err(Error::io(&path, e)),
        };
        if page.lines().next() != Some(&format!("# {}", study.title)) {
            let problem = format!("does not begin with its title, `# {}`", study.title);
            return Err(Error::file(&path, problem, format!("let {} write it", study.program)));
        }
        let written = Written::read(&path, &page, study)?;
        if let Some(less) = written.declared.lacks_of(&whole) {
            let problem = format!("{less}: it is not the whole study");
            let remedy = format!("run {} with its default settings", study.program);
            return Err(Error::file(declared_beside(&path), problem, remedy));
        }
        match std::fs::read_to_string(&account) {
            Ok(text) => parts.push(text),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(&account, e)),
        }
        parts.push(with_folder(&page, study, dir));
    }
    if parts.is_empty() {
        let names = STUDIES.map(|study| format!("{}.md", study.name)).join(", ");
        return Err(Error::file(dir, format!("holds none of {names}"), "let a study write one with --results"));
    }
    Ok(parts.join("\n"))
}

/// The page with its drawings named as they are seen from beside `dir`.
fn with_folder(page: &str, study: &Study, dir: &Path) -> String {
    let figures = format!("`{}.figures/", study.name);
    let folder = dir.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    page.replace(&figures, &format!("`{folder}/{}", figures.trim_start_matches('`')))
}

/// Where the account of `study` lies that is written by hand.
fn account_of(study: &Study, dir: &Path) -> PathBuf {
    dir.join(format!("{}.account.md", study.name))
}

/// Refuses a place for the page that cannot be written, or where one lies that no study has a part in, unless `replace`.
///
/// # Errors
/// As above.
pub fn check_place(path: &Path, replace: bool) -> Result<()> {
    if !replace && is_foreign(path) {
        let remedy = "move it away, or replace it with --overwrite";
        return Err(Error::file(path, "was written by no study and not made of fragments", remedy));
    }
    files::try_write(path)
}

/// Refuses what looks like a fragment and would be left out.
fn refuse_strangers(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let known = STUDIES
            .iter()
            .any(|study| path.file_stem().is_some_and(|stem| stem == study.name) || path == account_of(study, dir));
        if path.extension().is_some_and(|extension| extension == "md") && !known {
            let known = STUDIES.map(|study| study.name).join(", ");
            let problem = format!("is of no study; there are {known}");
            return Err(Error::file(path, problem, "move it elsewhere, or add the study to `fragments::STUDIES`"));
        }
    }
    Ok(())
}
