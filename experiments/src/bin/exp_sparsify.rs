//! From a dense model to one whose tokens take single neurons, at a share of the MLPs' operations.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use experiments::model_flags::{found, in_words};
use experiments::settings::layered;
use experiments::{OutFlags, RunFlags, RunFolder, arguments, main_with, overwrite, run_folder, say};
use serde::Serialize;
use tinyonn::Result;
use tinyonn::files::StagedFolder;
use tinyonn::imaging::{Choose, Cut};
use tinyonn::moe::AttentionSpec;
use tinyonn::phases::{Shares, SparsifyConfig, SparsifySummary, Worth, sparsify, sparsify_from};
use tinyonn::train::{Precision, RouterTarget};

/// Find by text which neurons of each layer a token takes, so that the MLPs cost the share of operations that is asked for, and repair in closed form what
/// the others leave missing; with --distil, train what lies beside the weights to say what the dense model says.
///
/// With --variant OwnGate, the default, each token takes the neurons whose own gates promise most: of candidates c, whose gates read the share p
/// of the layer's input, the share s costs (p c + 2s)/3 of the MLP. With --variant Pruned every token takes the same neurons: what any choice must beat. A type of yours that is declared
/// `#[moe(neurons = gate)]` is named likewise. Layers take as much as their neurons are worth on held-out text. Held-out losses are printed beside the dense
/// model's; the folder gets summary.json, config.json and tiny-onn/, a checkpoint whose routed pass takes the share, and which all active is the dense model
/// bit for bit.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    mut_arg("out", |out| out.help("The run's folder; one that exists and is not empty is refused without --overwrite [default: the first free of runs/sparsify, runs/sparsify-2, …]")),
    after_help = "Examples:
  exp_sparsify --model SmolLM2-135M-Instruct.Q4_1.gguf --data prose=docs --data code=src --active-share 0.75
  exp_sparsify --model DIR --data prose=docs --active-share 0.5 --variant Pruned
  exp_sparsify --model DIR --data prose=docs --active-share 0.5 --attention 'pairs(keep = 0.125, index = directions(16))'
  exp_sparsify --from runs/sparsify --distil 250            goes on where that ended"
)]
struct Cli {
    /// The folder of a run of this program to go on from: its layers are taken as they are, and its settings hold, but for --distil and `distil` and
    /// `test_tokens` of --config; --data, if its text was moved
    #[arg(long, value_name = "RUN")]
    from: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Clone, Debug, clap::Args, Serialize)]
struct Settings {
    /// A dense decoder: a Hugging Face folder with its tokenizer.json, a GGUF file, or a name on the hub
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// A declared variant that chooses neurons, or groups of them behind linear routers, by the name of its type [default: OwnGate]
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// The share of the MLPs' operations that a token takes [default: 0.5]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    active_share: Option<f64>,
    /// How layers share it: by_layer (where it costs the loss least), uniform [default: by_layer]
    #[arg(long, value_name = "HOW", value_parser = shares)]
    shares: Option<Shares>,
    /// Of a gate, the share of a layer's neurons that tokens may take at all [default: by layer what costs least; uniform: 1]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    candidates: Option<f64>,
    /// Of a gate, the share of the channels of its input that W_g reads [default: by layer what costs least; uniform: (operations / candidates)^0.6]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    inputs: Option<f64>,
    /// What a unit of a neuron's h is worth: norm (of its row of W_d), sensitivity (of the loss to it) [default: sensitivity]
    #[arg(long, value_name = "HOW", value_parser = worth)]
    worth: Option<Worth>,
    /// How the choices of gates and routers are bounded: threshold (one a layer), top_k (as many for each token) [default: threshold]
    #[arg(long, value_name = "HOW", value_parser = choose)]
    choose: Option<Choose>,
    /// What routers are fitted to: sqrt (the root of what a group adds), log [default: sqrt]
    #[arg(long, value_name = "TARGET", value_parser = router_target)]
    router_target: Option<RouterTarget>,
    /// Repair W_d in closed form, held back by this much; 0: not at all [default: 0.01]
    #[arg(long, value_name = "RIDGE", allow_negative_numbers = true)]
    ridge: Option<f64>,
    /// Whether a repair has a bias, which not every format can hold [default: true]
    #[arg(long, value_name = "BOOL")]
    bias: Option<bool>,
    /// What attention computes in routed passes, in place of what the variant declares, such as 'pairs(keep = 0.125, index = components(8))'; in a file the same, or
    /// a table like `attention.pairs = { keep = 0.125, index = { components = 8 } }`. Directions of keys are fitted on the calibration text. Calibration and repair attend to all
    #[arg(long, value_name = "PAIRS")]
    #[serde(serialize_with = "in_words")]
    attention: Option<AttentionSpec>,
    /// What passes compute in: f32 or bf16; what learns, routers and sums stay f32 or more [default: f32]
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<Precision>,
    /// Steps of distillation from the dense model behind that, of what lies beside the weights [default: 0]
    #[arg(long, value_name = "STEPS")]
    #[serde(skip)]
    distil: Option<u64>,
    /// A kind of text: any folder or file of text, or JSONL with a `text` or `messages` field (repeatable); `toolchain` alone: text that comes with Rust
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

fn router_target(word: &str) -> std::result::Result<RouterTarget, String> {
    match word {
        "sqrt" => Ok(RouterTarget::Sqrt),
        "log" => Ok(RouterTarget::Log),
        _ => Err(format!("`{word}` is not one of sqrt, log")),
    }
}

fn worth(word: &str) -> std::result::Result<Worth, String> {
    match word {
        "norm" => Ok(Worth::Norm),
        "sensitivity" => Ok(Worth::Sensitivity),
        _ => Err(format!("`{word}` is not one of norm, sensitivity")),
    }
}

fn shares(word: &str) -> std::result::Result<Shares, String> {
    match word {
        "by_layer" => Ok(Shares::ByLayer),
        "uniform" => Ok(Shares::Uniform),
        _ => Err(format!("`{word}` is not one of by_layer, uniform")),
    }
}

/// Steps of a distillation between two states.
const SAVE_EVERY: u64 = 100;

fn main() -> ExitCode {
    main_with(|| run(&arguments::parse()?))
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let settings = &cli.settings;
    // A run that was killed while it replaced that folder had put it aside.
    cli.from.iter().try_for_each(StagedFolder::restore)?;
    let base = match &cli.from {
        Some(dir) => SparsifyConfig { out: SparsifyConfig::default().out, ..SparsifyConfig::of_run(dir)? },
        None => SparsifyConfig::default(),
    };
    let file = settings.run.config.as_deref();
    let mut config: SparsifyConfig = layered(&base, file, settings)?;
    if let Some(steps) = settings.distil {
        config.distil.steps = steps;
    }
    config.model = found(config.model.as_deref())?;
    if settings.output.out.is_none() && config.out == base.out {
        config.out = run_folder::first_free(&base.out)?;
    }
    let data = config.data.iter().filter_map(|source| source.split_once('=')).map(|(_, path)| Path::new(path));
    let read: Vec<&Path> = data.chain(config.model.as_deref()).chain(file).chain(cli.from.as_deref()).collect();
    let replace = overwrite::replaces(&config.out, settings.output.overwrite, &read)?;
    let folder = RunFolder::create(&config.out, &config, config.seed, config.device, replace)?;
    let checkpoints = folder.checkpoints(SAVE_EVERY)?;
    let config = SparsifyConfig { out: folder.dir().to_path_buf(), ..config };
    let summary = match &cli.from {
        Some(dir) => sparsify_from(dir, &config, Some(&checkpoints))?,
        None => sparsify(&config, Some(&checkpoints))?,
    };
    let out = folder.finish()?;
    print(&summary, &out);
    Ok(if summary.lossless.bit_equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(summary: &SparsifySummary, out: &Path) {
    let equal = if summary.lossless.bit_equal { "bit-equal" } else { "NOT equal" };
    say!("lossless  {equal}, all active (largest |Δ logit| {})", summary.lossless.max_abs_diff);
    say!(
        "takes     {:.1} % of the MLPs' operations on the test split (asked: {:.1}); by {} calibration tokens, {}",
        100.0 * summary.operations,
        100.0 * summary.settings.active_share,
        summary.calibrated_on,
        match summary.repaired_on {
            0 => "not repaired".into(),
            tokens => format!("repaired on {tokens}"),
        }
    );
    if let Some(divergence) = summary.distilled_to {
        let steps = summary.settings.distil.steps;
        say!("distilled {steps} steps, to a divergence of {divergence:.4} nats a token of training text");
    }
    say!("beside    {} numbers beside the {} of the dense model", summary.added, summary.parameters);
    if summary.routers > 0.0 {
        let kept = summary.router_kept.iter().sum::<f64>() / summary.router_kept.len().max(1) as f64;
        say!(
            "routers   {:.1} % of the operations, counted in; they keep {:.0} % of what the best groups add beyond chance",
            100.0 * summary.routers,
            100.0 * kept
        );
    }
    let of_layer = |cut: &Cut| {
        let [inputs, neurons, candidates] = [cut.inputs, cut.neurons, cut.candidates].map(|share| 100.0 * share);
        format!("{inputs:.0}/{neurons:.0}/{candidates:.0}")
    };
    say!(
        "layers    {} % of the input read by gates, of the neurons taken, of so many candidates",
        summary.taken.iter().map(of_layer).collect::<Vec<_>>().join(" ")
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
    say!(
        "perplexity {:.4} × the dense model's, mean over kinds ({} documents)",
        summary.perplexity_ratio,
        summary.documents
    );
    say!("wrote     {}", out.display());
}
