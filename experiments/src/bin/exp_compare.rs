//! Does ∫SPS route better than anything else? A grid of experts and routers over dense models of several seeds and texts.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use experiments::compare::{self, CompareConfig, Outcome, Trial, verdict};
use experiments::results_file::check_results_file;
use experiments::settings::layered;
use experiments::{arguments, children, git_commit, interrupt, main_with, say};
use serde::Serialize;
use tinyonn::imaging::Shard;
use tinyonn::train::{Checkpoints, Precision};
use tinyonn::{Error, Result};

/// Compare sources of labels, partitions, routers and shares over dense models of several seeds and texts; write RESULTS.md.
///
/// For each text and seed a small Qwen3 is pretrained (cached in runs/cache) and scanned once; then each cell of the grid makes experts
/// and routers of it, and its held-out loss is kept. Subjects (text × seed) run side by side, each in a process of its own. What is
/// there is not run again: a comparison that was stopped, however it was, goes on where it was. With --shard machines share the grid. At the end RESULTS.md, and report.html
/// with its figures in the comparison's folder, are written from the records.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    after_help = "Examples:
  exp_compare                                               the whole of it (under 30 minutes on two cores, and six pretrainings)
  exp_compare --quick                                       a first look, some minutes
  exp_compare --large --device cuda --dtype bf16            of 114 million parameters, some minutes of one GPU
  exp_compare --config mine.toml --out runs/mine            results in runs/mine/RESULTS.md
  exp_compare --out shared/runs --shard 0/8                 one of eight machines, into a folder that all see; then
  exp_compare --out shared/runs                             without it: what a shard has left, and the results

A TOML file for --config has the keys that OUT/compare.json shows, for example:
  seeds = [0, 1, 2, 3, 4]
  corpora = [{ name = \"mine\", data = [\"law=corpora/law\", \"code=src\"] }]
  [best]
  top_k = [5, 5]
  [[products]]                                              # every combination; the rest as in [best]
  labels = [\"sps\", \"sps_permuted\", \"activation\", \"taylor\", \"taylor_magnitude\"]
  partition = [\"contiguous\", \"sps\"]
  routed = [false]"
)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    grid: Grid,
    /// A TOML file of settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Run shard I of N of the grid, I from 0, and write no results: one command a machine, all with one --out; then the command without it
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Subjects that run side by side [default: as many as there are cores, at most one a subject]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    jobs: Option<usize>,
    /// Replace a file of results that no comparison wrote
    #[arg(long)]
    overwrite: bool,
    /// Runs nothing: writes the results and the page anew from the records of --out, whatever sources computed them
    #[arg(long, conflicts_with_all = ["quick", "large", "config", "jobs", "seeds", "device", "dtype", "shard"])]
    report: bool,
    /// Runs one subject: what the program starts itself with
    #[arg(long, value_names = ["TEXT", "SEED"], num_args = 2, hide = true)]
    subject: Option<Vec<String>>,
}

/// Which grid it begins with, in place of the default one.
#[derive(clap::Args)]
struct Grid {
    /// A first look: two seeds, one text, few cells
    #[arg(long)]
    quick: bool,
    /// Of a Qwen3 of 114 million parameters on the seven kinds of text of scripts/fetch_material.sh, in ./material: one seed, every source of labels at a
    /// quarter and at half of the experts; for a GPU
    #[arg(long, conflicts_with = "quick")]
    large: bool,
}

#[derive(clap::Args, Serialize)]
struct Flags {
    /// The comparison's folder; one that was begun with the same settings is gone on with [default: runs/compare]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Where the results are written [default: RESULTS.md in the comparison's folder]
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// Each a dense model of its own, by comma [default: 0,1,2]
    #[arg(long, value_name = "N,N,..", value_delimiter = ',')]
    seeds: Option<Vec<u64>>,
    /// Where it computes: cpu, cuda, or cuda:N [default: cpu]
    #[arg(long, value_name = "DEVICE")]
    device: Option<experiments::DeviceName>,
    /// What passes compute in: f32 or bf16; what learns, routers and sums stay f32 or more [default: f32]
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<Precision>,
}

/// Steps of a pretraining between two states.
const SAVE_EVERY: u64 = 100;

fn main() -> ExitCode {
    main_with(|| {
        let cli: Cli = arguments::parse()?;
        match &cli.subject {
            Some(subject) => run_subject(&cli, subject),
            None => run(&cli),
        }
    })
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let base = match (cli.grid.quick, cli.grid.large) {
        (true, _) => CompareConfig::quick(),
        (_, true) => CompareConfig::large(),
        _ => CompareConfig::default(),
    };
    let config: CompareConfig = layered(&base, cli.config.as_deref(), &cli.flags)?;
    let started = Instant::now();
    let (config, ran) = if cli.report {
        let begun = CompareConfig::begun(&config.out)?;
        let results = config.results.or_else(|| begun.results.clone());
        let config = CompareConfig { results, out: config.out, ..begun };
        check_results_file(&config.results_file(), cli.overwrite)?;
        (config, 0)
    } else {
        let config = config.with_absolute_paths();
        config.validate()?;
        // The comparison's own folder may be yet to be made.
        let out = std::path::absolute(&config.out).unwrap_or_else(|_| config.out.clone());
        let elsewhere = config.results.iter().filter(|path| !path.starts_with(&out));
        elsewhere.into_iter().try_for_each(|path| check_results_file(path, cli.overwrite))?;
        config.check_texts()?;
        config.begin(&git_commit())?;
        check_results_file(&config.results_file(), cli.overwrite)?;
        if let Some(shard) = cli.shard {
            let _place = config.begin_shard(shard)?;
            let ran = children::run_subjects(&config, shard, cli.jobs)?;
            say!("shard {shard}: {ran} cells in {:.0} s; the others were there", started.elapsed().as_secs_f64());
            tell_missing(&config)?;
            return Ok(ExitCode::SUCCESS);
        }
        tell_missing(&config)?;
        let ran = children::run_subjects(&config, Shard::WHOLE, cli.jobs)?;
        (config, ran)
    };
    if cli.report {
        tell_missing(&config)?;
    }
    let outcome = Outcome::read(&config)?;
    let provenance = vec![
        ("computed by".to_owned(), CompareConfig::computed_by(&config.out)?),
        ("written at commit".into(), git_commit()),
        (
            "cells".into(),
            format!(
                "{} for each of {} texts × {} seeds",
                config.cells().len(),
                config.corpora.len(),
                config.seeds.len()
            ),
        ),
        ("computed on".into(), format!("{}, {}", config.device, config.dtype)),
        ("run again with".into(), again(&config)),
    ];
    let trials = outcome.trials(&config);
    verdict(&trials).iter().for_each(|line| say!("{line}"));
    say!("{ran} cells in {:.0} s; the others were there", started.elapsed().as_secs_f64());
    write(&outcome, &trials, &config, &provenance)?;
    Ok(ExitCode::SUCCESS)
}

/// Names the shards, of a comparison that was dealt to several machines, that have not done all of theirs.
fn tell_missing(config: &CompareConfig) -> Result<()> {
    for (shard, left) in config.missing_shards()? {
        say!("missing   shard {shard}: {left} records are not there");
    }
    Ok(())
}

/// The results and the page.
#[cfg(feature = "pictures")]
fn write(outcome: &Outcome, trials: &[Trial], config: &CompareConfig, provenance: &[(String, String)]) -> Result<()> {
    compare::write_results(outcome, trials, config, provenance)?;
    compare::write_report(outcome, trials, config)?;
    say!("results   {}", config.results_file().display());
    say!("open      {}", config.out.join("report.html").display());
    Ok(())
}

/// A build without pictures leaves both to one with them.
#[cfg(not(feature = "pictures"))]
#[expect(clippy::unnecessary_wraps, reason = "its twin writes")]
fn write(_: &Outcome, _: &[Trial], config: &CompareConfig, _: &[(String, String)]) -> Result<()> {
    let out = config.out.display();
    say!("results   none: this build writes no pages; `exp_compare --report --out {out}` of one that does writes them");
    Ok(())
}

/// What makes the same comparison: the command, where it is the default one of other seeds.
fn again(config: &CompareConfig) -> String {
    let CompareConfig { out, results, cache, seeds, device, dtype, .. } = config.clone();
    let listed = seeds.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let as_here = |other: CompareConfig| {
        let (out, results, cache, seeds) = (out.clone(), results.clone(), cache.clone(), seeds.clone());
        let corpora = if other.corpora.len() == 1 { config.corpora.clone() } else { other.corpora.clone() };
        *config == (CompareConfig { out, results, cache, seeds, device, dtype, corpora, ..other })
    };
    if as_here(CompareConfig::default()) {
        return format!("`cargo run --release --bin exp_compare -- --seeds {listed}`");
    }
    if as_here(CompareConfig::large()) {
        return format!("`cargo run --release --bin exp_compare -- --large --device {device} --dtype {dtype}`");
    }
    format!("`exp_compare --config FILE`, FILE with the settings of {}/compare.json", config.out.display())
}

/// In a process of its own.
fn run_subject(cli: &Cli, subject: &[String]) -> Result<ExitCode> {
    children::end_with_parent();
    let out = cli.flags.out.clone().unwrap_or_default();
    let config = CompareConfig::begun(&out)?;
    let unknown = || Error::setting("--subject", format!("{subject:?} is not of this comparison"), "leave it out");
    let corpus = config.corpora.iter().find(|corpus| corpus.name == subject[0]).ok_or_else(unknown)?;
    let seed = subject[1].parse().map_err(|_| unknown())?;
    let checkpoints = Checkpoints { dir: out, every: SAVE_EVERY, keep: 2, interrupt: interrupt() };
    compare::run_subject(&config, (corpus, seed), cli.shard.unwrap_or(Shard::WHOLE), Some(&checkpoints), |_| {})?;
    Ok(ExitCode::SUCCESS)
}
