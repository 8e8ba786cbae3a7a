//! Image a dense model, decompose it, fit routers to the image, and ask what the image knew.

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use experiments::model_flags::{found, found_on_paper};
use experiments::runs::phase1;
use experiments::settings::layered;
use experiments::studies::RunSummary;
use experiments::{PhaseFlags, RunFolder, arguments, main_with, overwrite, printed, run_folder, say};
use tinyonn::Result;
use tinyonn::phases::{RunConfig, Stages, plan};

/// Image a dense decoder, decompose it into experts without loss, label each task's path, fit routers, all else frozen.
///
/// Then measure: the loss along every source of labels; loss against active share for every fixed number of choices and the adaptive
/// forms; what ablating and amplifying the experts and neurons of a task does to it and to others. Without --model a small Qwen3 is
/// pretrained on the text first (some two minutes on two cores, then cached in runs/cache). The run's folder gets report.html, the
/// page to open, with figures/ as SVG, PNG and CSV; summary.json; config.json; and tiny-onn/, the routed checkpoint that exp_phase2
/// --from continues.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    mut_arg("out", |out| out.help("The run's folder; one that exists and is not empty is refused without --overwrite [default: the first free of runs/phase1, runs/phase1-2, …]")),
    after_help = "Examples:
  exp_phase1                                                on the default text
  exp_phase1 --quick                                        the same in a minute or two
  exp_phase1 --data toolchain                               real text: the sources, guides and manuals that come with Rust
  exp_phase1 --data code=src --data prose=docs              tasks of your own: folders, files, or JSONL with a `text` or `messages` field
  exp_phase2 --from runs/phase1                             what follows

A TOML file for --config has the keys that a run's config.json shows under `settings`; one file serves both phases:
  partition = \"activation\"
  labels = \"activation_plus_surprise\"
  [router]
  projection = \"pca\""
)]
struct Cli {
    #[command(flatten)]
    flags: PhaseFlags,
    /// The same in a minute or two: fewer steps, less text
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    main_with(|| run(&arguments::parse()?))
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let base = if cli.quick { RunConfig::quick() } else { RunConfig::default() };
    let base = RunConfig { out: if cli.quick { "runs/quick1" } else { "runs/phase1" }.into(), ..base };
    let file = cli.flags.run.config.as_deref();
    let mut config: RunConfig = layered(&base, file, &cli.flags)?;
    let find = if cli.flags.dry_run { found_on_paper } else { found };
    config.model = find(config.model.as_deref())?;
    if cli.flags.dry_run {
        printed::plan(&plan(&config, Stages::Phase1)?);
        return Ok(ExitCode::SUCCESS);
    }
    if cli.flags.output.out.is_none() && config.out == base.out {
        config.out = run_folder::first_free(&base.out)?;
    }
    let read: Vec<&Path> = config.reads().chain(file).collect();
    let replace = overwrite::replaces(&config.out, cli.flags.output.overwrite, &read)?;
    let folder = RunFolder::create(&config.out, &config, config.seed, config.device, replace)?;
    let checkpoints = folder.checkpoints(cli.flags.save_every)?;
    let summary = phase1(&RunConfig { out: folder.dir().to_path_buf(), ..config }, Some(&checkpoints))?;
    let out = folder.finish()?;
    print(&summary);
    printed::page(&out);
    Ok(if summary.phase1.lossless.bit_equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(summary: &RunSummary) {
    let RunSummary { phase1, studies, .. } = summary;
    printed::lossless_and_routers(phase1);
    let loss = &phase1.loss;
    say!(
        "loss      dense {:.3}, routed {:.3}, {:.0} % active, labels' own paths {:.3} (nats a token, test split)",
        loss.dense,
        loss.routed_before,
        100.0 * phase1.active_share,
        loss.label_paths
    );
    printed::controls(phase1);
    for found in studies.causal.iter().filter(|found| found.factor == 0.0 && found.source == "sps") {
        let at = &found.specificity;
        say!(
            "causal    without its {} highest {}s by ∫SPS a task loses {:+.3} nats more than others do [{:+.3}, {:+.3}]",
            found.count,
            found.unit,
            at.mean,
            at.low,
            at.high
        );
    }
}
