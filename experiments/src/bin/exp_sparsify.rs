//! From a dense model to one whose tokens take single neurons, at a share of the MLP's operations, without training.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use experiments::settings::layered;
use experiments::{OutFlags, RunFlags, RunFolder, arguments, main_with, overwrite, run_folder, say};
use serde::Serialize;
use tinyonn::Result;
use tinyonn::imaging::Choose;
use tinyonn::phases::{SparsifyConfig, SparsifySummary, sparsify};

/// Calibrate on text which neurons of each layer a token takes, so that the MLP costs the share of operations that is asked for; with --ridge, repair in closed
/// form what the others leave missing. Nothing is trained.
///
/// With --variant OwnGate, the default, all gate rows are computed, and each token takes the neurons whose own gates promise most: at the share s of the
/// neurons that costs (1 + 2s)/3 of the MLP. With --variant Pruned every token takes the same neurons, which costs s: what any choice must beat. A type of
/// yours that is declared `#[moe(neurons = gate)]` is named likewise. Held-out losses are printed beside the dense model's; the folder gets summary.json,
/// config.json and tiny-onn/, a checkpoint whose routed pass takes the share, and which all active is the dense model bit for bit.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    mut_arg("out", |out| out.help("The run's folder; one that exists and is not empty is refused without --overwrite [default: the first free of runs/sparsify, runs/sparsify-2, …]")),
    after_help = "Examples:
  exp_sparsify --model SmolLM2-135M-Instruct.Q4_1.gguf --data prose=docs --data code=src --active-share 0.75
  exp_sparsify --model DIR --data prose=docs --active-share 0.5 --variant Pruned"
)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

#[derive(Clone, Debug, clap::Args, Serialize)]
struct Settings {
    /// A dense decoder: a Hugging Face folder with its tokenizer.json, or a GGUF file
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// A declared variant that chooses neurons, by the name of its type [default: OwnGate]
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// The share of the MLP's operations that a token takes [default: 0.5]
    #[arg(long, value_name = "SHARE")]
    active_share: Option<f64>,
    /// How the gate's choice is bounded: threshold (one a layer), top_k (as many neurons for each token) [default: threshold]
    #[arg(long, value_name = "HOW", value_parser = choose)]
    choose: Option<Choose>,
    /// Repair W_d in closed form, held back by this much (0.01); it wants 100,000 calibration tokens or more [default: 0, no repair]
    #[arg(long, value_name = "RIDGE")]
    ridge: Option<f64>,
    /// A kind of text: any folder or file of text, or JSONL with a `text` field (repeatable); `toolchain` alone: text that comes with Rust
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

fn choose(word: &str) -> std::result::Result<Choose, String> {
    match word {
        "threshold" => Ok(Choose::Threshold),
        "top_k" => Ok(Choose::TopK),
        _ => Err(format!("`{word}` is not one of threshold, top_k")),
    }
}

fn main() -> ExitCode {
    main_with(|| run(&arguments::parse()?))
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let (base, settings) = (SparsifyConfig::default(), &cli.settings);
    let file = settings.run.config.as_deref();
    let mut config = layered(&base, file, settings)?;
    if settings.output.out.is_none() && config.out == base.out {
        config.out = run_folder::first_free(&base.out)?;
    }
    let data = config.data.iter().filter_map(|source| source.split_once('=')).map(|(_, path)| Path::new(path));
    let read: Vec<&Path> = data.chain(config.model.as_deref()).chain(file).collect();
    let replace = overwrite::replaces(&config.out, settings.output.overwrite, &read)?;
    let folder = RunFolder::create(&config.out, &config, config.seed, config.device, replace)?;
    let summary = sparsify(&SparsifyConfig { out: folder.dir().to_path_buf(), ..config })?;
    let out = folder.finish()?;
    print(&summary, &out);
    Ok(if summary.lossless.bit_equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(summary: &SparsifySummary, out: &Path) {
    let equal = if summary.lossless.bit_equal { "bit-equal" } else { "NOT equal" };
    say!("lossless  {equal}, all active (largest |Δ logit| {})", summary.lossless.max_abs_diff);
    say!(
        "takes     {:.1} % of the neurons, {:.1} % of the MLP's operations on the test split (asked: {:.1}, {:.1}); calibrated by {} tokens, repaired on {}",
        100.0 * summary.neurons,
        100.0 * summary.operations,
        100.0 * summary.neurons_asked,
        100.0 * summary.operations_asked,
        summary.calibrated_on,
        summary.repaired_on
    );
    for (task, loss) in &summary.loss_by_task {
        let rise = &summary.rise_by_task[task];
        say!(
            "loss      {task}: dense {:.3}, sparse {:.3} ({:+.3} [{:+.3}, {:+.3}] nats a token)",
            loss.dense,
            loss.sparse,
            rise.mean,
            rise.low,
            rise.high
        );
    }
    say!("perplexity {:.3} × the dense model's, mean over kinds", summary.perplexity_ratio);
    say!("wrote     {}", out.display());
}
