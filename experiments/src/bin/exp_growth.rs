//! What does growth buy? Models that grow at half of a training, beside ones that do not and dense ones, over seeds.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
#[cfg(feature = "pictures")]
use experiments::git_commit;
use experiments::growth::{Arm, GrowthConfig, Record, records, run_subject};
use experiments::results_file::check_results_file;
use experiments::settings::layered;
use experiments::{arguments, main_with, say};
use serde::Serialize;
use serde_json::{Value, json};
use tinyonn::phases::RunConfig;
use tinyonn::train::Precision;
use tinyonn::train::checkpoints::differences;
use tinyonn::{Error, Result, SOURCES_SHA256, files};

/// Grow small models at half of a training and go on, beside models that do not grow and dense ones that do, on the same tokens; write the results.
///
/// For each seed a small Qwen3 is pretrained (cached in runs/cache), taken apart into the experts of one variant, and its routers are fitted. At half of the steps it goes on as
/// it is, or grown into a variant of more experts, whose children share neurons or bring new ones; dense models grow by new neurons too. Each way to go on leaves
/// a record; what is there is not run again, and a training that was stopped goes on where it was.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    after_help = "Examples:
  exp_growth --dry-run                          what would be trained
  exp_growth                                    three seeds, some minutes each on two cores, pretrained first
  exp_growth --results results/growth.md        the study's part of RESULTS.md

A TOML file for --config has the keys that OUT/growth.json shows under `settings`, for example:
  grown = \"TinyOnnDoubled\"
  new_neurons = 2
  [run.smk]
  steps = 400"
)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
    /// A TOML file of settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What passes compute in: f32 or bf16; what learns, routers and sums stay f32 or more [default: f32]
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<Precision>,
    /// Print what would be trained, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Replace a file of results that no study wrote
    #[arg(long)]
    overwrite: bool,
}

#[derive(clap::Args, Serialize)]
struct Flags {
    /// The study's folder; one that was begun with the same settings is gone on with [default: runs/growth]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Where the results are written [default: RESULTS.md in the study's folder]
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// Each a dense model of its own, by comma [default: 0,1,2]
    #[arg(long, value_name = "N,N,..", value_delimiter = ',')]
    seeds: Option<Vec<u64>>,
    /// Where it computes: cpu, cuda, or cuda:N [default: cpu]
    #[arg(long, value_name = "DEVICE")]
    device: Option<experiments::DeviceName>,
}

fn main() -> ExitCode {
    main_with(|| run(&arguments::parse()?))
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let mut config: GrowthConfig = layered(&GrowthConfig::default(), cli.config.as_deref(), &cli.flags)?;
    config.run.dtype = cli.dtype.unwrap_or(config.run.dtype);
    config.validate()?;
    if cli.dry_run {
        plan(&config)?;
        return Ok(ExitCode::SUCCESS);
    }
    begin(&config)?;
    check_results_file(&config.results_file(), cli.overwrite)?;
    let started = Instant::now();
    for seed in &config.seeds {
        run_subject(&config, *seed, |arm, record| said(arm, *seed, record))?;
    }
    say!("{:.0} s; what was there was not run again", started.elapsed().as_secs_f64());
    write(&config)?;
    Ok(ExitCode::SUCCESS)
}

fn said(arm: &Arm, seed: u64, record: &Record) {
    say!("seed {seed}  {:<36} {:.3} → {:.3} nats a token", arm.name, record.at_half, record.at_end);
}

/// What is trained, in numbers that can be checked.
fn plan(config: &GrowthConfig) -> Result<()> {
    let (steps, smk) = (config.run.smk.steps, &config.run.smk);
    let there = records(config)?;
    let missing: usize = there.iter().map(|(_, found)| found.iter().filter(|record| record.is_none()).count()).sum();
    say!("runs        {missing} of {} models × {} seeds are to be run", there.len(), config.seeds.len());
    say!(
        "steps       {steps} of {} tokens; growth at {}, routers at {}",
        smk.batch * config.run.length,
        steps / 2,
        3 * steps / 4
    );
    let [young, grown] = config.variants()?;
    let dense = config.run.dense.intermediate_size as f64;
    for (arm, _) in &there {
        let variant = if arm.new_neurons.is_some() { grown } else { young };
        let new = (variant.spec.experts() - young.spec.experts()) * arm.new_neurons.unwrap_or(0);
        let width = dense + new as f64;
        let (taken, routers) =
            if arm.routed { (variant.spec.active_share() * width, config.routers(variant)?) } else { (width, 0) };
        let operations = config.operations(taken, routers) / 1e6;
        say!(
            "model       {:<36} {width:.0} neurons a layer, {taken:.0} taken: {operations:.3} M multiply-adds a token",
            arm.name
        );
    }
    Ok(())
}

/// Records what the study is of, or finds that it is the same; the file lies in its folder.
fn begin(config: &GrowthConfig) -> Result<()> {
    let path = config.out.join("growth.json");
    let run = RunConfig { out: PathBuf::new(), cache: PathBuf::new(), ..config.run.clone() };
    let settings = GrowthConfig { out: PathBuf::new(), results: None, seeds: Vec::new(), run, ..config.clone() };
    let own = json!({ "program": env!("CARGO_BIN_NAME"), "sources": SOURCES_SHA256, "settings": settings });
    let remedy = "name another folder with --out, or remove this one";
    match std::fs::read(&path) {
        Ok(text) => {
            let was: Value = serde_json::from_slice(&text).map_err(|e| Error::file(&path, e.to_string(), remedy))?;
            match differences(&was, &own).first() {
                Some(first) => Err(Error::file(&path, format!("is of another study: {first}"), remedy)),
                None => Ok(()),
            }
        }
        Err(_) if files::is_used(&config.out)? => {
            Err(Error::file(&config.out, "exists, is not empty, and is no study of growth", remedy))
        }
        Err(_) => {
            std::fs::create_dir_all(&config.out).map_err(|e| Error::io(&config.out, e))?;
            files::write(&path, format!("{own:#}\n"))
        }
    }
}

/// The results.
#[cfg(feature = "pictures")]
fn write(config: &GrowthConfig) -> Result<()> {
    let seeds = config.seeds.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let same = *config
        == (GrowthConfig {
            out: config.out.clone(),
            results: config.results.clone(),
            seeds: config.seeds.clone(),
            ..GrowthConfig::default()
        });
    let again = if same { String::new() } else { " --config FILE".to_owned() };
    let provenance = [
        ("written at commit".to_owned(), git_commit()),
        ("computed on".into(), format!("{}, {}", config.device, config.run.dtype)),
        ("run again with".into(), format!("`cargo run --release --bin exp_growth -- --seeds {seeds}{again}`")),
    ];
    experiments::growth::write_results(config, &provenance)?;
    say!("results   {}", config.results_file().display());
    Ok(())
}

/// A build without pictures leaves it to one with them.
#[cfg(not(feature = "pictures"))]
#[expect(clippy::unnecessary_wraps, reason = "its twin writes")]
fn write(_: &GrowthConfig) -> Result<()> {
    say!("results   none: this build writes no pages; the same command of one that does writes them");
    Ok(())
}
