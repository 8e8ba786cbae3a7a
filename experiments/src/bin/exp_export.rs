//! A Tiny-ONN checkpoint for other programs, and what is lost on the way, in figures.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use candle_core::{Device, Tensor};
use clap::{Parser, ValueEnum};
use experiments::model_flags::{Active, found};
use experiments::settings::{over_file, required};
use experiments::{OutFlags, RunFlags, arguments, main_with, overwrite, say};
use serde::{Deserialize, Serialize};
use tinyonn::checkpoint::export::{ExportFormat, ExportLoss, Exported, export_into, measure, model_card};
use tinyonn::checkpoint::{TinyOnnFolder, refuse_not_finite, tokens};
use tinyonn::files::{self, StagedFolder};
use tinyonn::model::ActiveMode;
use tinyonn::phases::text;
use tinyonn::{Error, Result};

/// Write a Tiny-ONN checkpoint as a dense model, as a Qwen3MoE or Mixtral of transformers, or as a folder that transformers loads.
///
/// `dense`: the weights byte for byte, all experts active. `qwen3-moe` (models of Qwen3), `mixtral` (of Llama and Mistral): the experts apart, behind a linear gate. `tinyonn`: the checkpoint as it is, with the
/// Python code that computes it (`trust_remote_code=True`); no program here runs that. What was written is read back and held against the checkpoint, in f32, on some text:
/// what loses more than --max-loss nats a token is refused unless --force is given. README.md, a model card, holds these figures.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    after_help = "Examples:
  exp_export --model runs/phase2/tiny-onn --format tinyonn --out for-transformers
  exp_export --model Qwen3-1.7B-TinyOnn --format dense --active all --out Qwen3-1.7B-again
  exp_export --model Qwen3-1.7B-Mixtral --format qwen3-moe --active routed --text notes.md --out moe"
)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Args, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// The Tiny-ONN checkpoint: a folder, or a name on the hub (OWNER/NAME)
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// What is written
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// The mode that it stands for [default: the checkpoint's own]
    #[arg(long, value_enum)]
    active: Option<Active>,
    /// KL from the checkpoint, in nats a token, up to which an export is kept [default: 0.01]
    #[arg(long, value_name = "NATS", allow_negative_numbers = true)]
    max_loss: Option<f64>,
    /// Keep it whatever it loses
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    force: Option<bool>,
    /// A file of text to measure on [default: the README of this project; random tokens, where there is no tokenizer]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens of it, at most [default: 512]
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// Take weights that are NaN or infinite as they are; without it they are refused by name
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    allow_not_finite: Option<bool>,
    /// Do not read back what was written: its loss is said to be not measured, and is not bounded
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    no_verify: Option<bool>,
    #[command(flatten)]
    #[serde(flatten)]
    run: RunFlags,
    #[command(flatten)]
    #[serde(flatten)]
    output: OutFlags,
}

/// What is written.
#[derive(Clone, Copy, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Format {
    /// The dense model: all experts active
    Dense,
    /// Qwen3MoE of transformers (models of Qwen3)
    #[value(name = "qwen3-moe")]
    #[serde(rename = "qwen3-moe")]
    Qwen3Moe,
    /// Mixtral of transformers (models of Llama and Mistral)
    Mixtral,
    /// A Tiny-ONN folder that transformers loads
    #[value(name = "tinyonn")]
    #[serde(rename = "tinyonn")]
    TinyOnn,
}

impl From<Format> for ExportFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Dense => Self::Dense,
            Format::Qwen3Moe => Self::Qwen3Moe,
            Format::Mixtral => Self::Mixtral,
            Format::TinyOnn => Self::TinyOnn,
        }
    }
}

/// What is measured on where nothing is named.
const OWN_TEXT: &str = include_str!("../../../README.md");
/// KL up to which an export is kept, unless it is said.
const MAX_LOSS: f64 = 0.01;
/// Tokens that are measured on, at most, unless it is said.
const TOKENS: usize = 512;
/// Tokens of a sequence, at most.
const LENGTH: usize = 256;

fn main() -> ExitCode {
    main_with(|| {
        let cli: Cli = arguments::parse()?;
        let Settings { run: RunFlags { config, .. }, output: OutFlags { overwrite, .. }, .. } = &cli.settings;
        run(over_file(&cli.settings, config.as_deref())?, config.as_deref(), *overwrite)
    })
}

fn run(settings: Settings, file: Option<&Path>, overwrite: bool) -> Result<ExitCode> {
    let from = required(found(settings.model.as_deref())?, "model")?;
    let out = required(settings.output.out, "out")?;
    let format = ExportFormat::from(required(settings.format, "format")?);
    let max_loss = settings.max_loss.unwrap_or(MAX_LOSS);
    if max_loss.is_nan() || max_loss < 0.0 {
        return Err(Error::setting("--max-loss", format!("{max_loss} is no divergence"), "give 0 or more"));
    }
    let device = settings.run.device.unwrap_or_default().open()?;
    let source = TinyOnnFolder::open(&from)?;
    let verify = !settings.no_verify.unwrap_or(false);
    let measured_on = if verify {
        let most = settings.tokens.unwrap_or(TOKENS);
        Some(read_tokens(&source, settings.text.as_deref(), most, settings.run.seed.unwrap_or(0), &device)?)
    } else {
        None
    };
    let read: Vec<&Path> = [from.as_path()].into_iter().chain(settings.text.as_deref()).chain(file).collect();
    let replace = overwrite::replaces(&out, overwrite, &read)?;
    let staged = if replace { StagedFolder::replacing(&out)? } else { StagedFolder::new(&out)? };
    let exported = export_into(&source, &staged, format, settings.active.map(ActiveMode::from))?;
    if !settings.allow_not_finite.unwrap_or(false) {
        let remedy = "train or download it again, or take it as it is with --allow-not-finite";
        refuse_not_finite(&from, &exported.not_finite, remedy)?;
    }
    let loss = match &measured_on {
        Some((ids, _)) => Some(measure(&source, &exported, staged.path(), ids, &device)?),
        None => None,
    };
    if let Some(loss) = loss.as_ref().filter(|_| !settings.force.unwrap_or(false)) {
        refuse_loss(loss, &exported, max_loss, settings.allow_not_finite.unwrap_or(false))?;
    }
    let told = loss.as_ref().zip(measured_on.as_ref().map(|(_, text)| text.as_str()));
    files::write(staged.path().join("README.md"), model_card(&source, &exported, told))?;
    staged.publish()?;
    say!("{}", lines((&from, &out), &source, &exported, told).join("\n"));
    Ok(ExitCode::SUCCESS)
}

/// Token ids `[B, T]` to measure on, and what they are of, in words.
fn read_tokens(
    source: &TinyOnnFolder,
    named: Option<&Path>,
    most: usize,
    seed: u64,
    device: &Device,
) -> Result<(Tensor, String)> {
    let arch = source.arch();
    let length = LENGTH.min(arch.max_position_embeddings).min(most);
    if length == 0 {
        return Err(Error::setting("--tokens", "there is nothing to measure on", "give 1 or more"));
    }
    let has_tokenizer = source.folder().dir().join("tokenizer.json").exists();
    if named.is_none() && !has_tokenizer {
        let ids = tokens::random_tokens(arch.vocab_size, (most / length, length), seed, device)?;
        return Ok((ids, "no text (random tokens: there is no tokenizer.json)".to_owned()));
    }
    let given = match named {
        Some(path) => Some(std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?),
        None => None,
    };
    // Bytes are the most that tokens can be of.
    let text = given.as_deref().unwrap_or(OWN_TEXT);
    let end = (0..=text.len().min(most.saturating_mul(64))).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let mut ids = text::tokenizer(source.folder())?.encode(&text[..end])?;
    ids.truncate(most);
    let length = length.min(ids.len());
    if length == 0 {
        return Err(Error::setting("--text", "holds no token", "give a file of text"));
    }
    let rows = ids.len() / length;
    ids.truncate(rows * length);
    let words = named.map_or_else(|| "this project's README".to_owned(), |path| path.display().to_string());
    Ok((Tensor::from_vec(ids, (rows, length), device)?, words))
}

fn refuse_loss(loss: &ExportLoss, exported: &Exported, max_loss: f64, any: bool) -> Result<()> {
    let lost = loss.kl_divergence;
    if lost <= max_loss || (any && lost.is_nan()) {
        return Ok(());
    }
    let left_out = if exported.left_out.is_empty() {
        String::new()
    } else {
        format!(" without {},", exported.left_out.join("; "))
    };
    let agreement = 100.0 * loss.top1_agreement;
    let routing =
        loss.routing_agreement.map_or(String::new(), |same| format!(", {:.1} % of experts the same", 100.0 * same));
    let problem = format!(
        "as {}{left_out} it is {lost:.3e} nats a token from the checkpoint ({agreement:.1} % of tokens the same{routing}), above {max_loss}",
        exported.format.word()
    );
    let remedy = match exported.active {
        ActiveMode::Routed => "raise it, give --force, or export the model of all experts (--active all)",
        ActiveMode::All => "raise it, or give --force",
    };
    Err(Error::setting("--max-loss", problem, remedy))
}

fn lines(
    (from, out): (&Path, &Path),
    source: &TinyOnnFolder,
    exported: &Exported,
    loss: Option<(&ExportLoss, &str)>,
) -> Vec<String> {
    let mode = match exported.active {
        ActiveMode::All => "all experts active",
        ActiveMode::Routed => "routed",
    };
    let name = &source.variant().spec.name;
    let mut lines =
        vec![format!("{} ({name}, {mode}) → {} ({})", from.display(), out.display(), exported.format.word())];
    lines.extend(exported.left_out.iter().map(|part| format!("left out    {part}")));
    match loss {
        None => lines.push("not measured: --no-verify was given".to_owned()),
        Some((loss, text)) => {
            let equal = if loss.bit_equal { "; bit-equal" } else { "" };
            let ExportLoss { tokens, kl_divergence, top1_agreement, max_abs_difference, .. } = loss;
            lines.push(format!(
                "loss        {kl_divergence:.3e} nats a token, {:.2} % of tokens the same, max |Δlogit| {max_abs_difference:.3e}{equal} ({tokens} tokens of {text}, f32)",
                100.0 * top1_agreement
            ));
            lines.extend(loss.routing_agreement.map(|same| format!("experts     {:.2} % the same", 100.0 * same)));
        }
    }
    if exported.format == ExportFormat::TinyOnn {
        lines.push("load        AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)".to_owned());
    }
    lines
}
