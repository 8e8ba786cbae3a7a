//! Two checkpoints, or one and a reference: whether they compute the same.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use candle_core::DType;
use clap::Parser;
use experiments::model_flags::{Active, Dtype, found};
use experiments::settings::over_file;
use experiments::{RunFlags, arguments, main_with, say};
use serde::{Deserialize, Serialize};
use tinyonn::checkpoint::{Comparison, LoadedModel, ModelFolder, compare, compare_with_reference, load_model, tokens};
use tinyonn::model::ActiveMode;
use tinyonn::{Error, Result};

/// Compare the logits of two checkpoints (dense or Tiny-ONN), or of one and a reference file.
///
/// Without --tokens the tokens are drawn at random from the vocabulary; no tokenizer is needed. Logits are compared in f32,
/// whatever the checkpoints compute in. In a file for --config, `a` and `b` are the checkpoints.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    after_help = "Examples:
  exp_verify Qwen3-1.7B Qwen3-1.7B-TinyOnn                  all experts active, random tokens
  exp_verify Qwen3-1.7B trained --active routed --json      how far routing moves the logits
  exp_verify A B --tokens ids.json --tolerance 0            exit code 1 unless equal
  exp_verify A --reference reference.safetensors --dtype f32

Exit codes: 0 compared (and within --tolerance), 1 beyond --tolerance, or of weights that are NaN or infinite, 2 not compared."
)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Args, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// A checkpoint: a folder with config.json and safetensors, a GGUF file, or a name on the hub (OWNER/NAME)
    #[arg(value_name = "A")]
    a: Option<PathBuf>,
    /// Another, with the same vocabulary
    #[arg(value_name = "B", conflicts_with = "reference")]
    b: Option<PathBuf>,
    /// In place of B: a safetensors file of input_ids [B, T] (I64 or U32) and their logits [B, T, V] (F32)
    #[arg(long, value_name = "FILE", conflicts_with = "tokens")]
    reference: Option<PathBuf>,
    /// Token ids to compare on: a safetensors file with input_ids [B, T], or a .json file like [[1, 2], [3, 4]]
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Without --tokens: random sequences, their number [default: 2]
    #[arg(long, value_name = "N", conflicts_with_all = ["tokens", "reference"])]
    sequences: Option<usize>,
    /// Without --tokens: random sequences, tokens each [default: 64]
    #[arg(long, value_name = "N", conflicts_with_all = ["tokens", "reference"])]
    length: Option<usize>,
    /// The experts that run in both [default: all]
    #[arg(long, value_enum)]
    active: Option<Active>,
    /// What both compute in [default: each as it is stored]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Sequences computed at a time; fewer take less memory [default: 1]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Exit with code 1 if max |Δlogit| is above this, or is not a number
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    tolerance: Option<f64>,
    /// Compare weights that are NaN or infinite without failing for them
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    allow_not_finite: Option<bool>,
    /// Print one JSON object (null for what is not a number)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    json: Option<bool>,
    #[command(flatten)]
    #[serde(flatten)]
    run: RunFlags,
}

fn main() -> ExitCode {
    main_with(|| {
        let cli: Cli = arguments::parse()?;
        run(over_file(&cli.settings, cli.settings.run.config.as_deref())?)
    })
}

fn run(settings: Settings) -> Result<ExitCode> {
    let settings = &Settings { a: found(settings.a.as_deref())?, b: found(settings.b.as_deref())?, ..settings };
    if let Some(tolerance) = settings.tolerance
        && (tolerance.is_nan() || tolerance < 0.0)
    {
        return Err(Error::setting("--tolerance", format!("{tolerance} is no distance"), "give 0 or more"));
    }
    let device = settings.run.device.unwrap_or_default().open()?;
    let active = Some(settings.active.map_or(ActiveMode::All, ActiveMode::from));
    let batch = settings.batch.unwrap_or(1);
    let dtype = settings.dtype.map(DType::from);
    let path = settings.a.as_deref().ok_or_else(|| {
        Error::setting("A", "no checkpoint was named", "name two, or one and --reference FILE; see --help")
    })?;
    let a = load_model(path, &device, dtype)?;
    refuse_tasks(&a, path, active)?;
    let mut lines = vec![describe("A", path, &a, active)];
    let (comparison, layers) = match (&settings.reference, &settings.b) {
        (Some(_), Some(_)) => {
            return Err(Error::setting("--reference", "there is a second checkpoint as well", "give one of the two"));
        }
        (Some(reference), None) => {
            lines.push(format!("reference        {}", reference.display()));
            (compare_with_reference(&a, reference, &device, active, batch)?, false)
        }
        (None, b) => {
            let path = b.as_deref().ok_or_else(|| {
                let remedy = "name a second checkpoint, or a file with --reference; see --help";
                Error::setting("B", "there is nothing to compare A with", remedy)
            })?;
            let b = load_model(path, &device, dtype)?;
            refuse_tasks(&b, path, active)?;
            lines.push(describe("B", path, &b, active));
            let ids = if let Some(file) = &settings.tokens {
                tokens::read(file, &device)?
            } else {
                let shape = (settings.sequences.unwrap_or(2), settings.length.unwrap_or(64));
                let vocabulary = a.config().vocab_size.min(b.config().vocab_size);
                tokens::random_tokens(vocabulary, shape, settings.run.seed.unwrap_or(0), &device)?
            };
            (compare(&a, &b, &ids, active, batch)?, true)
        }
    };
    if settings.json.unwrap_or(false) {
        say!("{:#}", serde_json::json!(comparison));
    } else {
        lines.extend(table(&comparison, layers));
        say!("{}", lines.join("\n"));
    }
    let models = [Some(path), settings.b.as_deref()].into_iter().flatten();
    // Both are looked at, and said.
    let spoilt = models.filter(|model| !are_finite(model)).count();
    let finite = settings.allow_not_finite.unwrap_or(false) || spoilt == 0;
    Ok(if finite { verdict(&comparison, settings.tolerance) } else { ExitCode::from(1) })
}

/// Tokens alone do not say of which task they are.
fn refuse_tasks(model: &LoadedModel, path: &Path, active: Option<ActiveMode>) -> Result<()> {
    if active.is_some_and(|active| model.needs_tasks(active)) {
        let problem = format!("{} is routed by the task of each sequence, which nothing here names", path.display());
        return Err(Error::setting("--active", problem, "compare with --active all"));
    }
    Ok(())
}

fn describe(label: &str, path: &Path, model: &LoadedModel, active: Option<ActiveMode>) -> String {
    let kind = match model.variant() {
        None => "dense".to_owned(),
        Some(variant) => match active.unwrap_or(model.active()) {
            ActiveMode::All => format!("{variant}, all experts active"),
            ActiveMode::Routed => format!("{variant}, routed"),
        },
    };
    format!("{label:<17}{} ({kind})", path.display())
}

fn table(comparison: &Comparison, layers: bool) -> Vec<String> {
    let mut rows = vec![
        ("tokens", comparison.tokens.to_string()),
        ("bit-equal", if comparison.bit_equal { "yes" } else { "no" }.to_owned()),
        ("max |Δlogit|", figure(comparison.max_abs_difference)),
        ("mean |Δlogit|", figure(comparison.mean_abs_difference)),
        ("KL(A‖B)", format!("{} nats a token", figure(comparison.kl_divergence))),
        ("top-1 agreement", format!("{:.2} %", 100.0 * comparison.top1_agreement)),
    ];
    if layers {
        let first = comparison.first_differing_layer.map_or("none".to_owned(), |layer| format!("layer {layer}"));
        rows.push(("differing from", first));
    }
    rows.into_iter().map(|(name, value)| format!("{name:<17}{value}")).collect()
}

/// Three digits after the first; a plain 0 for what is exactly none.
fn figure(value: f64) -> String {
    if value.abs() > 0.0 || value.is_nan() { format!("{value:.3e}") } else { "0".to_owned() }
}

/// Whether all weights are finite numbers; says which are not.
fn are_finite(model: &Path) -> bool {
    let checked = ModelFolder::open(model)
        .and_then(|folder| folder.refuse_not_finite("figures say nothing of it; --allow-not-finite takes it as it is"));
    checked.inspect_err(|error| eprintln!("{error}")).is_ok()
}

fn verdict(comparison: &Comparison, tolerance: Option<f64>) -> ExitCode {
    match tolerance {
        // A difference that is not a number is beyond any tolerance.
        Some(tolerance) if comparison.max_abs_difference.is_nan() || comparison.max_abs_difference > tolerance => {
            eprintln!("max |Δlogit| {} is above the tolerance {tolerance:e}", figure(comparison.max_abs_difference));
            ExitCode::from(1)
        }
        _ => ExitCode::SUCCESS,
    }
}
