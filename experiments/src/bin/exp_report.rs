//! The page of a run, drawn again.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use experiments::{arguments, main_with, pages, printed};
use tinyonn::Result;
use tinyonn::files::StagedFolder;

/// Draw the page of a run again, from what lies in its folder: no model, no text, nothing is computed.
///
/// report.html and figures/ are replaced; the rest of the folder stays as it is. A run of exp_phase1, exp_phase2 or exp_scan holds the numbers
/// of its page in summary.json, metrics.jsonl and figures.json, a comparison in its records.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    after_help = "Examples:
  exp_report runs/phase2                                    after the drawing code has changed"
)]
struct Cli {
    /// The folder of a run of exp_phase1, exp_phase2, exp_scan or exp_compare
    #[arg(value_name = "RUN")]
    run: PathBuf,
}

fn main() -> ExitCode {
    main_with(|| run(&arguments::parse()?))
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let run = &cli.run;
    // A run that was killed while it replaced that folder had put it aside.
    StagedFolder::restore(run)?;
    pages::draw(run)?;
    printed::page(run);
    Ok(ExitCode::SUCCESS)
}
