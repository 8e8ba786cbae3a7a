//! The whole of Tiny-ONN on one dense model.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use experiments::model_flags::{found, found_on_paper};
use experiments::runs::{phase2, phase2_from};
use experiments::settings::layered;
use experiments::studies::RunSummary;
use experiments::{PhaseFlags, RunFolder, arguments, main_with, overwrite, printed, run_folder, say};
use tinyonn::Result;
use tinyonn::files::StagedFolder;
use tinyonn::phases::{RunConfig, Stages, plan};

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
}

fn main() -> ExitCode {
    main_with(|| run(&arguments::parse()?))
}

fn run(cli: &Cli) -> Result<ExitCode> {
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
        printed::plan(&plan(&config, cli.from.as_deref().map_or(Stages::Both, Stages::From))?);
        return Ok(ExitCode::SUCCESS);
    }
    if cli.flags.output.out.is_none() && config.out == base.out {
        config.out = run_folder::first_free(&base.out)?;
    }
    let read: Vec<&Path> = config.reads().chain(file).chain(cli.from.as_deref()).collect();
    let replace = overwrite::replaces(&config.out, cli.flags.output.overwrite, &read)?;
    let folder = RunFolder::create(&config.out, &config, config.seed, config.device, replace)?;
    let config = RunConfig { out: folder.dir().to_path_buf(), ..config };
    let checkpoints = Some(folder.checkpoints(cli.flags.save_every)?);
    let summary = match &cli.from {
        Some(dir) => phase2_from(dir, &config, checkpoints.as_ref())?,
        None => phase2(&config, checkpoints.as_ref())?,
    };
    let out = folder.finish()?;
    print(&summary);
    printed::page(&out);
    Ok(if summary.phase1.lossless.bit_equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
