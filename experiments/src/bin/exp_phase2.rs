//! The whole of Tiny-ONN on one dense model.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use experiments::settings::layered;
use experiments::{DeviceName, RunFolder, main_with, run_folder};
use serde::Serialize;
use tinyonn::Result;
use tinyonn::phases::{Phase2Config, Summary, phase2};

/// Decompose a dense Qwen3 into experts without loss, image it, train its routers from the image, let its experts differentiate.
///
/// Without --model a small Qwen3 is pretrained on the text first (about three minutes on two cores, then cached in runs/cache).
/// Without --data the text is this workspace's own sources and prose, and generated tasks. The run's folder gets report.html,
/// the page to open; summary.json, the figures; metrics.jsonl, the losses; config.json, all that is needed to repeat the run;
/// and tiny-onn/, the trained checkpoint.
#[derive(Parser)]
#[command(
    version,
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
    /// A TOML file of settings; flags override it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
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
    /// Decides everything random [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Where it computes: cpu, cuda, or cuda:N [default: cpu]
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceName>,
    /// The run's folder; it must be new or empty [default: the first free of runs/phase2, runs/phase2-2, …]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    main_with(|| run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let base = if cli.quick { Phase2Config::quick() } else { Phase2Config::default() };
    let mut config = layered(&base, cli.config.as_deref(), &cli.flags)?;
    if cli.flags.out.is_none() && config.out == base.out {
        config.out = run_folder::first_free(&base.out)?;
    }
    let folder = RunFolder::create(&config.out, &config, config.seed, config.device)?;
    let summary = phase2(&config).inspect_err(|_| folder.remove_if_bare())?;
    print(&summary);
    println!("open      {}", folder.path("report.html").display());
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
