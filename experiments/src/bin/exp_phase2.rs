//! The whole of Tiny-ONN on one dense model.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use experiments::settings::layered;
use experiments::{OutFlags, RunFlags, RunFolder, main_with, overwrite, run_folder};
use serde::Serialize;
use tinyonn::Result;
use tinyonn::phases::{RunConfig, Summary, phase2};

/// Decompose a dense Qwen3 into experts without loss, image it, train its routers from the image, let its experts differentiate.
///
/// Without --model a small Qwen3 is pretrained on the text first (about four minutes on two cores, then cached in runs/cache).
/// Without --data the text is this workspace's own sources and prose, and generated tasks. The run's folder gets report.html,
/// the page to open; summary.json, the figures; metrics.jsonl, the losses; config.json, all that is needed to repeat the run;
/// and tiny-onn/, the trained checkpoint.
#[derive(Parser)]
#[command(
    version,
    mut_arg("out", |out| out.help("The run's folder; one that exists and is not empty is refused without --overwrite [default: the first free of runs/phase2, runs/phase2-2, …]")),
    after_help = "Examples:
  exp_phase2                                                everything, on the default text
  exp_phase2 --quick                                        the same in under a minute
  exp_phase2 --data code=src --data prose=docs              tasks of your own: folders, files, or JSONL with a `text` field
  exp_phase2 --model Qwen3-0.6B --variant TinyOnn --device cuda

A TOML file for --config has the keys that a run's config.json shows under `settings`:
  partition = \"activation\"
  [smk]
  steps = 1000
  min_k = 10"
)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
    /// The same in under a minute: fewer steps, less text
    #[arg(long)]
    quick: bool,
}

#[derive(clap::Args, Serialize)]
struct Flags {
    /// A dense Qwen3 as a Hugging Face folder, with its tokenizer.json
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The declared variant, by the name of its type [default: TinyOnn]
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// A task: any folder or file of text, or JSONL with a `text` field (repeatable)
    #[arg(long, value_name = "NAME=PATH")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    data: Vec<String>,
    #[command(flatten)]
    #[serde(flatten)]
    run: RunFlags,
    #[command(flatten)]
    #[serde(flatten)]
    output: OutFlags,
}

fn main() -> ExitCode {
    main_with(|| run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let base = if cli.quick { RunConfig::quick() } else { RunConfig::default() };
    let file = cli.flags.run.config.as_deref();
    let mut config = layered(&base, file, &cli.flags)?;
    if cli.flags.output.out.is_none() && config.out == base.out {
        config.out = run_folder::first_free(&base.out)?;
    }
    let read: Vec<&Path> = config
        .data
        .iter()
        .filter_map(|source| source.split_once('='))
        .map(|(_, path)| Path::new(path))
        .chain(config.model.as_deref())
        .chain([config.cache.as_path()])
        .chain(file)
        .collect();
    let replace = overwrite::replaces(&config.out, cli.flags.output.overwrite, &read)?;
    let folder = RunFolder::create(&config.out, &config, config.seed, config.device, replace)?;
    let summary = phase2(&RunConfig { out: folder.dir().to_path_buf(), ..config })?;
    let out = folder.finish()?;
    print(&summary);
    println!("open      {}", out.join("report.html").display());
    Ok(if summary.lossless.bit_equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(summary: &Summary) {
    let (loss, router) = (&summary.loss, &summary.router);
    let equal = if summary.lossless.bit_equal { "bit-equal" } else { "NOT equal" };
    println!("lossless  {equal} (largest |Δ logit| {})", summary.lossless.max_abs_diff);
    println!(
        "routers   {:.1} % of groups (chance {:.1} %), {:.1} % of experts (chance {:.1} %) on held-out text",
        100.0 * router.group_accuracy,
        100.0 * router.chance,
        100.0 * router.expert_accuracy,
        100.0 * router.expert_chance
    );
    println!("          {:.1} % of groups when a sequence shares one decision", 100.0 * router.sequence.group_accuracy);
    println!(
        "loss      dense {:.3}, routed {:.3} before SMK and {:.3} after, {:.0} % active (nats a token, test split)",
        loss.dense,
        loss.routed_before,
        loss.routed_after,
        100.0 * summary.active_share
    );
    println!(
        "controls  random paths {:.3}, other tasks' paths {:.3}",
        loss.routed_random_labels, loss.routed_permuted_labels
    );
}
