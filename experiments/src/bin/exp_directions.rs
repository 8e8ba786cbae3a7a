//! The main directions of a checkpoint's keys, fitted on text.

use std::path::PathBuf;
use std::process::ExitCode;

use candle_core::DType;
use clap::Parser;
use experiments::model_flags::{Dtype, found};
use experiments::settings::{over_file, required};
use experiments::{RunFlags, arguments, main_with, overwrite, say};
use serde::{Deserialize, Serialize};
use tinyonn::checkpoint::{KeyDirections, LoadedModel, ModelFolder, load_model};
use tinyonn::data::TokenSet;
use tinyonn::phases::text;
use tinyonn::{Error, Result};

/// Fit the main directions of the keys of a checkpoint (dense or Tiny-ONN) on text, which attention by `index = directions(r)` reads, and write them beside it.
///
/// By layer and key head they are the eigenvectors of the sum of k kᵀ over the keys of the text, behind their rotation, by an all-active pass. They lie in the
/// checkpoint's folder in key_directions.safetensors, beside a GGUF file under its own name, with the SHA-256 of the weights that make keys: another model's are refused.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    after_help = "Examples:
  exp_directions SmolLM2.gguf --data code=src --data prose=docs
  exp_generate SmolLM2.gguf --attention 'pairs(keep = 0.125, index = directions(16))' --prompt 'Once upon a time'"
)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Args, Clone, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// The checkpoint: a folder with config.json, safetensors and tokenizer.json, a GGUF file, or a name on the hub (OWNER/NAME)
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
    /// A kind of text: any folder or file of text, or JSONL with a `text` or `messages` field (repeatable); `toolchain` alone: text that comes with Rust
    #[arg(long, value_name = "NAME=PATH")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    data: Vec<String>,
    /// Tokens of each kind, at most [default: 16384]
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// Tokens of a row: as long as the texts that are to be read [default: 4096, or what the model has positions for]
    #[arg(long, value_name = "N")]
    length: Option<usize>,
    /// What it computes in [default: as it is stored]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Replace directions that are there
    #[arg(long)]
    #[serde(skip)]
    overwrite: bool,
    #[command(flatten)]
    #[serde(flatten)]
    run: RunFlags,
}

/// Tokens of each kind, where nobody says how many.
const TOKENS: usize = 16_384;
/// Tokens of a row, where nobody says how many.
const LENGTH: usize = 4096;

fn main() -> ExitCode {
    main_with(|| {
        let cli: Cli = arguments::parse()?;
        let settings = over_file(&cli.settings, cli.settings.run.config.as_deref())?;
        run(&Settings { overwrite: cli.settings.overwrite, ..settings })?;
        Ok(ExitCode::SUCCESS)
    })
}

fn run(settings: &Settings) -> Result<()> {
    let path = required(found(settings.model.as_deref())?, "model")?;
    if settings.data.is_empty() {
        return Err(Error::setting("--data", "no text was given", "give --data NAME=PATH, once a kind of text"));
    }
    let folder = ModelFolder::open(&path)?;
    let place = KeyDirections::place(folder.dir());
    overwrite::refuse_file(&place, settings.overwrite)?;
    folder.refuse_not_finite("train or download it again: keys of such weights have no directions")?;
    let most = folder.arch()?.max_position_embeddings;
    let length = settings.length.unwrap_or(LENGTH.min(most));
    if length == 0 || length > most {
        let problem = format!("is {length}, and the model has {most} positions");
        return Err(Error::setting("--length", problem, format!("give 1 to {most}")));
    }
    let tokens = settings.tokens.unwrap_or(TOKENS);
    let corpus = text::corpus(&settings.data, settings.run.seed.unwrap_or(0))?;
    let set = TokenSet::encode(&corpus, &text::tokenizer(&folder)?)?;
    let device = settings.run.device.unwrap_or_default().open()?;
    let model = load_model(&path, &device, settings.dtype.map(DType::from))?;
    let directions = match &model {
        LoadedModel::Dense(lm) => KeyDirections::fit_on(&folder, lm, &set, length, tokens)?,
        LoadedModel::TinyOnn(model, _) => KeyDirections::fit_on(&folder, model.lm(), &set, length, tokens)?,
        _ => return Err(Error::setting("model", "is of a kind that has no keys", "give a decoder")),
    };
    directions.save(folder.dir())?;
    let cfg = model.config();
    say!(
        "fitted    {} directions of each of {} key heads in {} layers, on {} kinds of text, at most {tokens} tokens of each",
        cfg.head_dim,
        cfg.num_key_value_heads,
        cfg.num_hidden_layers,
        set.tasks.len()
    );
    say!("written   {}", place.display());
    Ok(())
}
