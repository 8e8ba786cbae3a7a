//! What forgets least? A grid of ways to learn one new task after another, over seeds and orders.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use experiments::forgetting::{Outcome, RunKey, RunRecord, Stage, Store, StudyConfig, run_shard};
use experiments::settings::layered;
use experiments::{DeviceName, arguments, git_commit, interrupt, main_with, model_flags, say};
use serde::Serialize;
use tinyonn::imaging::Shard;
use tinyonn::train::{Checkpoints, Precision};
use tinyonn::{Error, Result};

/// Teach a model new tasks one after another, by Surprise Min-K, dense fine-tuning, LoRA and others, and measure what it forgets; write RESULTS.md.
///
/// First the screen: every method at several rates, on one seed and in one order. Then the finals: some methods, each at its best rate, on other seeds and in
/// all orders. A run is a file in OUT/runs and is not made again: a study that was stopped, however it was, goes on where it was. With --shard processes or
/// machines share a stage. At the end RESULTS.md, and report.html with its figures in the study's folder, are written from the runs.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    after_help = "Examples:
  exp_forgetting --dry-run                                  the runs, their multiply-adds and hours
  exp_forgetting                                            all of it, in one process
  exp_forgetting --stage screen --shard 0/8 --minutes 9     one of eight processes, all with one --out; then the same with
  exp_forgetting --stage finals --shard 0/8 --minutes 9     --stage finals; then
  exp_forgetting --report                                   the results of what was run
  exp_forgetting --quick --out runs/forgetting-quick        a first look, some minutes
  exp_forgetting --model SmolLM2.gguf --material material --device cuda     what a pretrained model forgets

A TOML file for --config has the keys that OUT/forgetting.json shows, for example:
  seeds = [1, 2, 3, 4]
  [run.smk]
  steps = 200
  [[trials]]
  method = { experts = { select = \"smk\", routed = false } }
  rates = [1e-3, 4e-3]"
)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
    /// A first look: small models, two tasks, few trials
    #[arg(long)]
    quick: bool,
    /// A TOML file of settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A pretrained decoder to teach, as other programs take it: nineteen runs, and what it knew is measured on text that it writes itself and by benchmarks [default: a
    /// small Qwen3, pretrained on the text, one a seed]
    #[arg(long, value_name = "DIR", conflicts_with = "quick")]
    model: Option<PathBuf>,
    /// With --model, what scripts/fetch_material.sh has written: the benchmarks [default: material]
    #[arg(long, value_name = "DIR", requires = "model")]
    material: Option<PathBuf>,
    /// A task of the text that a model is pretrained on, or of that which a given one goes on behind, as NAME=PATH; once for each [default: the default text]
    #[arg(long, value_name = "NAME=PATH")]
    data: Vec<String>,
    /// Where it computes: cpu, cuda, or cuda:N [default: cpu]
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceName>,
    /// What passes compute in: f32 or bf16; what learns, routers and sums stay f32 or more [default: f32]
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<Precision>,
    /// Where pretrained models are kept [default: runs/cache]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Run this stage alone, and write no results
    #[arg(long, value_name = "STAGE")]
    stage: Option<StageName>,
    /// Run shard I of N of the stage, I from 0: one command a process, all with one --out
    #[arg(long, value_name = "I/N", requires = "stage")]
    shard: Option<Shard>,
    /// Begin no run after so many minutes; the same command goes on from there
    #[arg(long, value_name = "N", value_parser = arguments::minutes)]
    minutes: Option<Duration>,
    /// Print the runs, their multiply-adds and hours, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Runs nothing: writes the results and the page anew from the runs in --out
    #[arg(long, conflicts_with_all = ["quick", "config", "stage", "dry_run", "minutes", "model"])]
    report: bool,
}

#[derive(clap::Args, Serialize)]
struct Flags {
    /// The study's folder; one that was begun with the same settings is gone on with [default: runs/forgetting]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Where the results are written [default: RESULTS.md in the study's folder]
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum StageName {
    Screen,
    Finals,
}

/// Steps of a pretraining between two states.
const SAVE_EVERY: u64 = 100;

fn main() -> ExitCode {
    main_with(|| run(&arguments::parse()?))
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let base = match (cli.quick, &cli.model) {
        (true, _) => StudyConfig::quick(),
        (false, Some(_)) => StudyConfig::pretrained(),
        (false, None) => StudyConfig::default(),
    };
    let mut config: StudyConfig = layered(&base, cli.config.as_deref(), &cli.flags)?;
    if cli.report {
        let begun = Store::new(&config.out).begun()?;
        let results = config.results.or_else(|| begun.results.clone());
        return report(&StudyConfig { results, out: config.out, ..begun });
    }
    if let Some(model) = &cli.model {
        config.run.model = model_flags::found(Some(model))?;
    }
    if let (Some(knowledge), Some(material)) = (&mut config.knowledge, &cli.material) {
        knowledge.material.clone_from(material);
    }
    if !cli.data.is_empty() {
        config.run.data.clone_from(&cli.data);
    }
    config.run.device = cli.device.unwrap_or(config.run.device);
    config.run.dtype = cli.dtype.unwrap_or(config.run.dtype);
    config.run.cache = cli.cache.clone().unwrap_or(config.run.cache);
    config.validate()?;
    if cli.dry_run {
        return dry_run(&config);
    }
    let stages = match cli.stage {
        Some(StageName::Screen) => vec![Stage::Screen],
        Some(StageName::Finals) => vec![Stage::Finals],
        None => vec![Stage::Screen, Stage::Finals],
    };
    if stages == [Stage::Finals] {
        // Refused before a folder is begun for them.
        keys_of(&config, Stage::Finals)?;
    }
    // A model or material that is not there is refused before a folder is begun.
    config.plan(&[])?;
    Store::new(&config.out).begin(&config, &git_commit())?;
    let until = cli.minutes.map(|minutes| Instant::now() + minutes);
    let shard = cli.shard.unwrap_or(Shard::WHOLE);
    for stage in stages {
        let keys = keys_of(&config, stage)?;
        let checkpoints = Checkpoints { dir: config.out.clone(), every: SAVE_EVERY, keep: 2, interrupt: interrupt() };
        let left = run_shard(&config, (&keys, shard), until, &checkpoints, told)?;
        if left > 0 {
            say!("left      {left} runs of this shard; the same command goes on");
            return Ok(ExitCode::SUCCESS);
        }
    }
    if cli.stage.is_some() {
        say!("done      shard {shard}; `exp_forgetting --report --out {}` writes the results", config.out.display());
        return Ok(ExitCode::SUCCESS);
    }
    report(&config)
}

/// The runs of a stage.
fn keys_of(config: &StudyConfig, stage: Stage) -> Result<Vec<RunKey>> {
    if stage == Stage::Screen {
        return Ok(config.screen());
    }
    let outcome = Outcome::read(config)?;
    if let Some(first) = outcome.screen_left.first() {
        let problem = format!("{} runs of the screen are not there, `{}` first", outcome.screen_left.len(), first.id());
        return Err(Error::setting(
            "--stage",
            problem,
            "run --stage screen to its end: it decides who is in the finals",
        ));
    }
    Ok(config.finals(&outcome.finalists(config)))
}

fn told(run: &RunRecord) {
    let record = &run.record;
    let old = record.old_forgetting().map_or("–".into(), |forgetting| format!("{forgetting:+.3}"));
    let diverged = if record.diverged.is_some() { ", which diverged" } else { "" };
    say!("run       {}{diverged}: old text {old} nats in {:.0} s", run.key.id(), record.seconds);
}

fn dry_run(config: &StudyConfig) -> Result<ExitCode> {
    let outcome = Outcome::read(config)?;
    let finalists = outcome.finalists(config);
    let finals = config.finals(&finalists);
    let mut seconds = 0.0;
    for run in config.plan(&[config.screen(), finals].concat())? {
        let done = if run.done { ", done" } else { "" };
        say!(
            "run       {}: {:.2e} multiply-adds, {:.1} min{done}",
            run.key.id(),
            run.multiply_adds,
            run.seconds / 60.0
        );
        seconds += if run.done { 0.0 } else { run.seconds };
    }
    if finalists.is_empty() {
        let runs = config.most_runs() - config.screen().len();
        say!(
            "finals    {runs} runs at most, of the methods that the screen will choose, each as long as its run there"
        );
        let mean = seconds / config.screen().len().max(1) as f64;
        seconds += mean * runs as f64;
    }
    let hours = seconds / 3600.0;
    let place = if config.run.device == DeviceName::Cpu { "two cores" } else { "a GPU" };
    say!(
        "all       {} runs at most, {hours:.2} hours left of one process on {place}, pretraining not counted",
        config.most_runs()
    );
    say!("nothing was done (--dry-run)");
    Ok(ExitCode::SUCCESS)
}

/// The results and the page.
#[cfg(feature = "pictures")]
fn report(config: &StudyConfig) -> Result<ExitCode> {
    let outcome = Outcome::read(config)?;
    let left = outcome.left();
    if let Some(first) = left.first() {
        say!("missing   {} runs, `{first}` first", left.len());
    }
    let provenance = [
        ("computed by".to_owned(), Store::new(&config.out).computed_by()?),
        ("written at commit".into(), git_commit()),
        ("computed on".into(), format!("{}, {}", config.run.device, config.run.dtype)),
    ];
    let said = experiments::forgetting::write_results(&outcome, config, &provenance)?;
    said.iter().for_each(|line| say!("{line}"));
    say!("results   {}", config.results_file().display());
    say!("open      {}", config.out.join("report.html").display());
    Ok(ExitCode::SUCCESS)
}

/// A build without pictures leaves both to one with them.
#[cfg(not(feature = "pictures"))]
fn report(config: &StudyConfig) -> Result<ExitCode> {
    let left = Outcome::read(config)?.left().len();
    let out = config.out.display();
    say!(
        "results   none: this build writes no pages; `exp_forgetting --report --out {out}` of one that does writes them ({left} runs are missing)"
    );
    Ok(ExitCode::SUCCESS)
}
