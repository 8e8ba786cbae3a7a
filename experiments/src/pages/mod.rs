//! The pages of runs, drawn from their folders alone (`summary.json` and `figures.json`); and the page of a text's paths.

pub(crate) mod causal;
mod frontier;
mod load;
mod pictures;
mod run;
mod scan;
mod specific_experts;
pub mod token_paths;

use std::path::Path;

use tinyonn::imaging::Labels;
use tinyonn::{Error, Result};

use self::run::Material;
use crate::compare::{self, CompareConfig, Outcome, write_report};
use crate::report::Page;
use crate::shown::Shown;
use crate::studies::{self, RunSummary, SUMMARY, summary_sha256};

/// Draws `report.html` and its figures into the folder `dir` of a run of phases, of a scan or of a comparison.
///
/// # Errors
/// A folder that is none of these, or one of a version that left too little in it.
pub fn draw(dir: &Path) -> Result<()> {
    if compare::is_begun(dir) {
        let config = CompareConfig { out: dir.to_path_buf(), ..CompareConfig::begun(dir)? };
        let outcome = Outcome::read(&config)?;
        return write_report(&outcome, &outcome.trials(&config), &config);
    }
    page(dir)?.write(dir)
}

/// The page of the run in the folder `dir`.
fn page(dir: &Path) -> Result<Page> {
    let shown = match Shown::read(dir)? {
        Shown::Scan(shown) => return scan::page(&shown),
        Shown::Phases(shown) => shown,
    };
    if shown.summary_sha256 != summary_sha256(dir)? {
        let problem = "is not the summary that figures.json beside it was written with";
        return Err(Error::file(
            dir.join(SUMMARY),
            problem,
            "give a folder whose files are of one run, as it left them",
        ));
    }
    let summary: RunSummary = studies::read(dir, "run it again")?;
    run::page(&Material {
        summary: &summary.phase1,
        studies: &summary.studies,
        smk: summary.smk.as_ref(),
        tasks: &shown.tasks,
        spec: &shown.spec,
        imaged: shown.imaged.as_ref(),
        labels: shown.imaged.as_ref().map(|imaged| Labels { paths: imaged.labels.clone() }).as_ref(),
        load_after: shown.load_after.as_deref(),
        pretrain: &shown.pretrain,
        smk_log: &shown.smk,
    })
}
