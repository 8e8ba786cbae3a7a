//! The whole of Tiny-ONN on one dense model.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use candle_core::Device;
use clap::Parser;
use experiments::model_flags::{found, found_on_paper};
use experiments::rank_flags::{given, told};
use experiments::runs::{Among, phase2, phase2_from};
use experiments::settings::layered;
use experiments::studies::RunSummary;
use experiments::{
    PhaseFlags, Rank, RankFlags, RunFolder, Started, arguments, interrupt, main_with, overwrite, printed, run_folder,
    say,
};
use serde_json::{Value, json};
use tinyonn::checkpoint::{ModelFolder, is_on_paper};
use tinyonn::files::{StagedFolder, states_of};
use tinyonn::phases::{DeviceName, RunConfig, Stages, Text, phase2_beside, plan};
use tinyonn::ranks::Collective;
use tinyonn::train::{Checkpoints, Together};
use tinyonn::{Error, Result};

/// Decompose a dense decoder into experts without loss, image it, train its routers from the image, let its experts differentiate.
///
/// Without --model a small Qwen3 is pretrained on the text first (some two minutes on two cores, then cached in runs/cache).
/// Without --data the text is this workspace's own sources and prose, and generated tasks. The run's folder gets report.html,
/// the page to open; summary.json, the figures; metrics.jsonl, the losses, and the same for TensorBoard; config.json, all that is needed to repeat the run;
/// and tiny-onn/, the trained checkpoint.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    mut_arg("out", |out| out.help("The run's folder; one that exists and is not empty is refused without --overwrite [default: the first free of runs/phase2, runs/phase2-2, …]")),
    after_help = "Examples:
  exp_phase2                                                everything, on the default text
  exp_phase2 --quick                                        the same in under a minute
  exp_phase2 --data code=src --data prose=docs              tasks of your own: folders, files, or JSONL with a `text` or `messages` field
  exp_phase2 --data toolchain                               real text: the sources, guides and manuals that come with Rust
  exp_phase2 --model Qwen3-0.6B --variant TinyOnn --device cuda
  exp_phase2 --from runs/phase1                             goes on where exp_phase1 ended: Surprise Min-K alone
  exp_phase2 --from runs/phase1 --out runs/two --device cuda --gpus 2    the same on two GPUs; or under torchrun, srun, mpirun

A TOML file for --config has the keys that a run's config.json shows under `settings`:
  partition = \"activation\"
  [smk]
  steps = 1000
  min_k = 10
  [smk.rule]
  select = \"random_k\""
)]
struct Cli {
    #[command(flatten)]
    flags: PhaseFlags,
    /// The same in under a minute: fewer steps, less text
    #[arg(long, conflicts_with = "from")]
    quick: bool,
    /// The folder of a run of exp_phase1 to go on from; its settings hold, but for `smk` of --config, and --data, if its text was moved
    #[arg(long, value_name = "DIR", conflicts_with_all = ["model", "variant", "seed"])]
    from: Option<PathBuf>,
    #[command(flatten)]
    ranks: RankFlags,
}

fn main() -> ExitCode {
    main_with(|| run(&arguments::parse()?))
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let rank = match cli.ranks.started()? {
        Started::Ended(code) => return Ok(code),
        Started::Alone => None,
        Started::Rank(rank) => Some(rank),
    };
    // A run that was killed while it replaced that folder had put it aside.
    cli.from.iter().try_for_each(StagedFolder::restore)?;
    let base = match (&cli.from, cli.quick) {
        (Some(dir), _) => RunConfig { out: RunConfig::default().out, ..RunConfig::of_phase1(dir)? },
        (None, true) => RunConfig::quick(),
        (None, false) => RunConfig::default(),
    };
    let file = cli.flags.run.config.as_deref();
    let mut config: RunConfig = layered(&base, file, &cli.flags)?;
    let find = if cli.flags.dry_run { found_on_paper } else { found };
    config.model = find(config.model.as_deref())?;
    if cli.flags.dry_run {
        let plan = plan(&config, cli.from.as_deref().map_or(Stages::Both, Stages::From))?;
        let met = rank.as_ref().map(|rank| cli.ranks.meet(rank, &all_given(cli, &config)?, Some(shared(&config.out))));
        if let (Some(rank), Some(met)) = (&rank, met.transpose()?) {
            met.leave();
            if !rank.is_first() {
                return Ok(ExitCode::SUCCESS);
            }
            printed::ranks(&rank.launched);
        }
        printed::plan(&plan);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(rank) = &rank {
        check_rank(cli, rank)?;
        config.device = rank.device(config.device)?;
    }
    let mut together: Option<Together> = None;
    let given = rank.as_ref().map(|_| all_given(cli, &config)).transpose()?;
    let out = config.out.clone();
    let mut among = |device: &Device| -> Result<Option<Arc<dyn Collective>>> {
        let (Some(rank), Some(given)) = (&rank, &given) else { return Ok(None) };
        let begun = cli.ranks.begin(rank, given, Some(shared(&out)), device)?;
        let ranks = begun.ranks.clone();
        together = Some(begun);
        Ok(Some(ranks))
    };
    let done = match &rank {
        Some(rank) if !rank.is_first() => beside(cli, (config, rank), &mut among).map(|()| ExitCode::SUCCESS),
        _ => whole(cli, (config, &base), file, &mut among),
    };
    told(together.as_ref(), done)
}

/// The run, of one process or of the first of several ranks.
fn whole(
    cli: &Cli,
    (mut config, base): (RunConfig, &RunConfig),
    file: Option<&Path>,
    among: &mut Among<'_>,
) -> Result<ExitCode> {
    if cli.flags.output.out.is_none() && config.out == base.out {
        config.out = run_folder::first_free(&base.out)?;
    }
    let read: Vec<&Path> = config.reads().chain(file).chain(cli.from.as_deref()).collect();
    let replace = overwrite::replaces(&config.out, cli.flags.output.overwrite, &read)?;
    let folder = RunFolder::create(&config.out, &config, config.seed, config.device, replace)?;
    let config = RunConfig { out: folder.dir().to_path_buf(), ..config };
    let checkpoints = Some(folder.checkpoints(cli.flags.save_every)?);
    let summary = match &cli.from {
        Some(dir) => phase2_from(dir, &config, checkpoints.as_ref(), among)?,
        None => phase2(&config, checkpoints.as_ref())?,
    };
    let out = folder.finish()?;
    print(&summary);
    printed::page(&out);
    Ok(if summary.phase1.lossless.bit_equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The part of a rank that is not the first: it trains with the others, and leaves nothing.
fn beside(cli: &Cli, (config, rank): (RunConfig, &Rank), among: &mut Among<'_>) -> Result<()> {
    let Some(from) = &cli.from else { return Ok(()) };
    let dir = states_of(&config.out)?;
    let checkpoints = Checkpoints { dir, every: cli.flags.save_every, keep: 1, interrupt: interrupt() };
    let own = rank.folder()?;
    let config = RunConfig { out: own.path().to_path_buf(), ..config };
    let missing = || Error::setting("ranks", "there are no others", "report this");
    phase2_beside(from, &config, Some(&checkpoints), &mut |device| among(device)?.ok_or_else(missing))
}

/// Refuses what several ranks do not do.
fn check_rank(cli: &Cli, rank: &Rank) -> Result<()> {
    let ranks = rank.launched.ranks;
    if cli.from.is_none() {
        let problem = format!("is not given, and {ranks} ranks share Surprise Min-K alone");
        return Err(Error::setting("--from", problem, "run exp_phase1 in one process, and give its folder"));
    }
    if cli.flags.output.out.is_none() {
        let problem = format!("is not given, and {ranks} ranks must agree on it");
        return Err(Error::setting("--out", problem, "name a folder on a file system that all hosts share"));
    }
    Ok(())
}

/// What all ranks must have been given: settings, text and model.
fn all_given(cli: &Cli, config: &RunConfig) -> Result<Value> {
    let model = match (&cli.from, &config.model) {
        (Some(dir), _) => Some(dir.join("tiny-onn")),
        (None, Some(model)) if !is_on_paper(model) => Some(model.clone()),
        (None, _) => None,
    };
    let model = model.map(|model| ModelFolder::open(&model)?.sha256()).transpose()?;
    let text = Text::new(&config.data, config.seed)?.sha256;
    // Which of its cards a rank takes is its own.
    let settings = RunConfig { device: DeviceName::Cpu, ..config.clone() };
    given(&settings, json!({ "text": text, "model": model }))
}

/// The folder that a run's own lies in.
fn shared(out: &Path) -> &Path {
    match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn print(summary: &RunSummary) {
    let phase1 = &summary.phase1;
    printed::lossless_and_routers(phase1);
    if let Some(smk) = &summary.smk {
        say!(
            "loss      dense {:.3}, routed {:.3} before SMK and {:.3} after, {:.0} % active (nats a token, test split)",
            phase1.loss.dense,
            phase1.loss.routed_before,
            smk.routed,
            100.0 * phase1.active_share
        );
    }
    printed::controls(phase1);
}
