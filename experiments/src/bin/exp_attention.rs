//! Which keys does a query need? A grid of ways to choose them over shares, on long documents and on facts asked again.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use experiments::attention::{AttentionConfig, AttentionRecord, AttentionStore, Cell, run_cells};
use experiments::settings::layered;
use experiments::study_flags::{CellFlags, StudyFlags};
use experiments::study_folder::named;
use experiments::{DeviceName, arguments, main_with, model_flags, say};
#[cfg(feature = "pictures")]
use experiments::{fragments::provenance, git_commit};
use tinyonn::Result;
use tinyonn::checkpoint::read_arch;

/// Let a dense decoder attend to a share of its keys, chosen in many ways, and measure what long documents and facts that are asked again cost it; write RESULTS.md.
///
/// A cell is a file in OUT/cells and is not made again: a study that was stopped, however it was, goes on where it was. Any number of processes may run the same
/// command with one --out: each makes the next cell that nobody makes. The text is what scripts/fetch_material.sh writes, or that of `data`. At the end RESULTS.md is written
/// from the cells.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    mut_arg("out", |out| out.help("The study's folder; one that was begun with the same settings is gone on with [default: runs/attention]")),
    after_help = "Examples:
  bash scripts/fetch_material.sh material
  exp_attention --model SmolLM2.gguf --material material --dry-run         the cells, their tokens, operations and hours
  exp_attention --model SmolLM2.gguf --material material --device cuda --minutes 9
  exp_attention --model SmolLM2.gguf --material material --cell dense-100-sparse-4096 --cell window-12.5-sparse-4096
  exp_attention --report                                                    the results of what was made

A TOML file for --config has the keys that OUT/attention.json shows, for example:
  shares = [0.125]
  texts = [{ length = 2048, documents = 2, facts = 60 }]"
)]
struct Cli {
    #[command(flatten)]
    flags: StudyFlags,
    #[command(flatten)]
    cells: CellFlags,
}

fn main() -> ExitCode {
    main_with(|| run(&arguments::parse()?))
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let mut config: AttentionConfig = layered(&AttentionConfig::default(), cli.cells.config.as_deref(), &cli.flags)?;
    if cli.cells.report {
        let begun = AttentionStore::new(&config.out).begun()?;
        let results = config.results.or_else(|| begun.results.clone());
        return report(&AttentionConfig { results, out: config.out, ..begun });
    }
    let until = cli.cells.minutes.map(|minutes| Instant::now() + minutes);
    config.check()?;
    config.model = model_flags::found(Some(&config.model))?.unwrap_or(config.model);
    let cells = named(config.cells(), &cli.cells.cell, Cell::id)?;
    if cli.cells.dry_run {
        return dry_run(&config, &cells);
    }
    AttentionStore::new(&config.out).begin(&config)?;
    let left = run_cells(&config, &cells, until, told)?;
    if left > 0 {
        say!("left      {left} cells; the same command goes on");
    }
    if left > 0 || cli.cells.no_report || !cli.cells.cell.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    report(&config)
}

fn told(record: &AttentionRecord) {
    let text = record.text.iter().map(experiments::evidence::KindLosses::mean).sum::<f64>() / record.text.len() as f64;
    let facts: Vec<_> = record.facts.iter().flatten().collect();
    let right = facts.iter().filter(|asked| asked.right).count();
    say!(
        "cell      {}: {:.1} % of the pairs, {:.1} % of the bytes, {text:.4} nats a token, {right} of {} facts in {:.0} s",
        record.cell.id(),
        100.0 * record.kept,
        100.0 * record.bytes,
        facts.len(),
        record.seconds
    );
}

fn dry_run(config: &AttentionConfig, cells: &[Cell]) -> Result<ExitCode> {
    let (mut seconds, mut tokens) = (0.0, 0.0);
    for planned in config.plan(cells, &read_arch(&config.model)?)? {
        let done = if planned.done { ", done" } else { "" };
        say!(
            "cell      {}: {:.1e} tokens, {:.1e} multiply-adds, {:.1} min{done}",
            planned.cell.id(),
            planned.tokens,
            planned.multiply_adds,
            planned.seconds / 60.0
        );
        if !planned.done {
            (seconds, tokens) = (seconds + planned.seconds, tokens + planned.tokens);
        }
    }
    let machine = if config.device == DeviceName::Cpu { "two cores" } else { "one H200" };
    say!(
        "all       {} cells; left: {tokens:.1e} tokens, some {:.2} hours of {machine}, at an assumed pace",
        cells.len(),
        seconds / 3600.0
    );
    say!("nothing was done (--dry-run)");
    Ok(ExitCode::SUCCESS)
}

/// The results.
#[cfg(feature = "pictures")]
fn report(config: &AttentionConfig) -> Result<ExitCode> {
    use experiments::attention::{AttentionOutcome, write_results};

    let outcome = AttentionOutcome::read(config)?;
    let left = outcome.left();
    if let Some(first) = left.first() {
        say!("missing   {} cells, `{first}` first", left.len());
    }
    let provenance = provenance(outcome.sources(), &format!("{}, {}", config.device, config.dtype), git_commit());
    let said = write_results(&outcome, config, &provenance)?;
    said.iter().for_each(|line| say!("{line}"));
    say!("results   {}", config.results_file().display());
    Ok(ExitCode::SUCCESS)
}

/// A build without pictures leaves them to one with them.
#[cfg(not(feature = "pictures"))]
fn report(config: &AttentionConfig) -> Result<ExitCode> {
    let out = config.out.display();
    say!(
        "results   none: this build writes no tables; `exp_attention --report --out {out}` of one that does writes them"
    );
    Ok(ExitCode::SUCCESS)
}
