//! The file of the results: whose it is.

use std::path::Path;

use serde_json::Value;
use tinyonn::{Error, Result, files};

use crate::fragments::{STUDIES, mark};

/// Refuses results that could not be written in the end: where a page lies that nobody wrote by a comparison, unless `replace`, or where no
/// file can be made.
///
/// # Errors
/// As above.
pub fn check_results_file(path: &Path, replace: bool) -> Result<()> {
    if !replace && is_foreign(path) {
        let remedy = "name another file with --results, or replace this one with --overwrite";
        return Err(Error::file(path, "was not written by a comparison", remedy));
    }
    let beside = path.with_extension("json");
    // Of any version: it names its study.
    let written = |text: &[u8]| {
        let read = serde_json::from_slice::<Value>(text).unwrap_or_default();
        [&read, &read["declared"]].into_iter().any(|declared| declared["study"].is_string())
    };
    // A comparison's own settings may lie beside it, and are never replaced.
    let is_settings = |text: &[u8]| serde_json::from_slice::<Value>(text).is_ok_and(|json| !json["settings"].is_null());
    if beside == path || std::fs::read(&beside).is_ok_and(|text| is_settings(&text)) {
        let problem = "is where what results must hold is written, and holds something else";
        return Err(Error::file(beside, problem, "name another file with --results, one that ends in .md"));
    }
    if !replace && std::fs::read(&beside).is_ok_and(|text| !written(&text)) {
        let problem = "was not written by a comparison, which writes there which rows its results must have";
        return Err(Error::file(
            beside,
            problem,
            "name another file with --results, or replace this one with --overwrite",
        ));
    }
    files::try_write(path)
}

/// Whether a page lies there that no study has a part in.
pub(crate) fn is_foreign(path: &Path) -> bool {
    let of_a_study = |page: &[u8]| {
        let page = String::from_utf8_lossy(page);
        STUDIES.iter().any(|study| page.contains(&mark(study)))
    };
    std::fs::read(path).is_ok_and(|page| !of_a_study(&page))
}
