//! The page of a run, drawn again; and RESULTS.md, made of what studies found.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use experiments::{arguments, main_with, pages, printed, results, say};
use tinyonn::files::{self, StagedFolder};
use tinyonn::{Error, Result};

/// Draw the page of a run again, from what lies in its folder: no model, no text, nothing is computed.
///
/// report.html and figures/ are replaced; the rest of the folder stays as it is. A run of exp_phase1, exp_phase2 or exp_scan holds the numbers
/// of its page in summary.json and figures.json, a comparison in its records.
///
/// With --results, RESULTS.md is written instead, beside the folder of fragments: what each study found, in a fixed order, behind what people say of
/// it (STUDY.account.md), if they do. A study that was not run
/// has no part of it; if one is not whole (it lacks a row or a cell, was changed, or is smaller than the study's own), nothing is written.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    after_help = "Examples:
  exp_report runs/phase2                                    after the drawing code has changed
  exp_compare --results results/compare.md                  a study leaves its fragment, and exp_report --results puts it in"
)]
struct Cli {
    /// The folder of a run of exp_phase1, exp_phase2, exp_scan or exp_compare
    #[arg(value_name = "RUN", required_unless_present = "results", conflicts_with = "results")]
    run: Option<PathBuf>,
    /// Write RESULTS.md from the fragments in this folder, beside it [default: results]
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = "results")]
    results: Option<PathBuf>,
    /// Replace a RESULTS.md that no program wrote
    #[arg(long, requires = "results")]
    overwrite: bool,
}

fn main() -> ExitCode {
    main_with(|| run(&arguments::parse()?))
}

fn run(cli: &Cli) -> Result<ExitCode> {
    if let Some(dir) = &cli.results {
        return assemble(dir, cli.overwrite);
    }
    let unknown = || Error::setting("RUN", "it is needed and was not given", "name the folder of a run");
    let run = cli.run.as_ref().ok_or_else(unknown)?;
    // A run that was killed while it replaced that folder had put it aside.
    StagedFolder::restore(run)?;
    pages::draw(run)?;
    printed::page(run);
    Ok(ExitCode::SUCCESS)
}

/// All parts are read and found whole before anything is written.
fn assemble(dir: &Path, overwrite: bool) -> Result<ExitCode> {
    let page = results::assemble(dir)?;
    // `..` has no name, and lies beside nothing until it is known what it stands for; a link lies where it lies.
    let named = if dir.file_name().is_some() { std::path::absolute(dir) } else { dir.canonicalize() };
    let dir = named.map_err(|e| Error::io(dir, e))?;
    let path = dir.parent().unwrap_or(&dir).join("RESULTS.md");
    results::check_place(&path, overwrite)?;
    files::write(&path, page)?;
    say!("results   {}", path.display());
    Ok(ExitCode::SUCCESS)
}
