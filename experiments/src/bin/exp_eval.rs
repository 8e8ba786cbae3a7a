//! What text costs a model: nats a token, perplexity, bits a byte, of one checkpoint or of several side by side.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use candle_core::DType;
use clap::Parser;
use experiments::model_flags::{Active, Dtype, check_mode, found};
use experiments::scored_text::scored_from;
use experiments::settings::over_file;
use experiments::text_cost::{Reading, TextCost, costs};
use experiments::{OutFlags, RunFlags, RunFolder, arguments, main_with, overwrite, run_folder, say};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tinyonn::checkpoint::{ModelFolder, TinyOnnFolder, is_tinyonn, load_model, load_model_at_share, takes_shares};
use tinyonn::data::{Corpus, TextTokenizer};
use tinyonn::decoder::{Ask, Continuation, Pass};
use tinyonn::model::ActiveMode;
use tinyonn::moe::{AttentionSpec, MoeSpec, RoutePer};
use tinyonn::phases::text;
use tinyonn::train::{Windows, document_losses};
use tinyonn::{Error, Result, files};

/// Measure checkpoints (dense or Tiny-ONN) on text: for each kind of it the loss in nats a token, the perplexity, and bits a byte, which models of other tokenizers
/// share.
///
/// Every document is read whole, behind an end of text, in windows of --length tokens that begin --stride tokens apart; each token is scored once, given length −
/// stride tokens or more before it. Intervals are 95 % percentile bootstraps over documents, copies together. With several checkpoints each is held against the
/// first, in pairs of documents. Nothing is split off: give text that no checkpoint has seen. Writes summary.json.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    mut_arg("out", |out| out.help("The folder to write; one that exists and is not empty is refused without --overwrite [default: the first free of runs/eval, runs/eval-2, …]")),
    after_help = "Examples:
  exp_eval SmolLM2.gguf --data french=material/held_out_text/french
  exp_eval SmolLM2.gguf SmolLM2-TinyOnn SmolLM2-OwnGate --data code=src --data prose=docs --length 512 --stride 256
  exp_eval SmolLM2.gguf --data code=src --length 4096 --batch 1 --attention dense --attention 'pairs(keep = 0.125, index = components(8))'"
)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Args, Clone, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Checkpoints: folders with config.json, safetensors and tokenizer.json, or GGUF files; the first is what others are held against
    #[arg(value_name = "MODEL")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    models: Vec<PathBuf>,
    /// A kind of text: any folder or file of text, or JSONL with a `text` field (repeatable); `toolchain` alone: text that comes with Rust
    #[arg(long, value_name = "NAME=PATH")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    data: Vec<String>,
    /// Tokens of a window [default: 512, or what a model has positions for]
    #[arg(long, value_name = "N")]
    length: Option<usize>,
    /// Tokens from one window to the next [default: half of --length]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Windows that are read together [default: 8]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Of each document only this many bytes from its beginning (a character is not cut)
    #[arg(long, value_name = "N")]
    document_bytes: Option<usize>,
    /// The experts that run [default: as each checkpoint says]
    #[arg(long, value_enum)]
    active: Option<Active>,
    /// Variants of routed experts at these shares of them, a row each, as nearly as layers can: 0.25,0.5 [default: as each declares]
    #[arg(long, value_name = "SHARES", value_delimiter = ',', allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    active_share: Vec<f64>,
    /// What attention computes where routed, a row each (repeatable), as declarations say it: 'pairs(keep = 0.125, index = components(8))' or dense; in a file
    /// a list of these, or of tables like `{ pairs = { keep = 0.125, index = { components = 8 } } }`. Each position chooses [default: as each checkpoint says]
    #[arg(long, value_name = "PAIRS")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attention: Vec<AttentionSpec>,
    /// What they compute in [default: as each is stored]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    #[command(flatten)]
    #[serde(flatten)]
    run: RunFlags,
    #[command(flatten)]
    #[serde(flatten)]
    output: OutFlags,
}

/// A checkpoint's part of the summary.
#[derive(Serialize)]
struct Measured {
    model: PathBuf,
    variant: Option<String>,
    active: ActiveMode,
    /// The share of its experts that was asked for, in place of what it declares.
    #[serde(skip_serializing_if = "Option::is_none")]
    asked_share: Option<f64>,
    /// What attention was asked to compute, in place of what it declares.
    #[serde(skip_serializing_if = "Option::is_none")]
    attention: Option<AttentionSpec>,
    /// The share of the model that was active, mean over kinds of text.
    active_share: f64,
    seconds: f64,
    tasks: Vec<TextCost>,
}

fn main() -> ExitCode {
    main_with(|| {
        let cli: Cli = arguments::parse()?;
        let Settings { run: RunFlags { config, .. }, output: OutFlags { overwrite, .. }, .. } = &cli.settings;
        run(&over_file(&cli.settings, config.as_deref())?, config.as_deref(), *overwrite).map_err(by_flag)
    })
}

/// The library's names of what the flags say.
fn by_flag(error: Error) -> Error {
    match error {
        Error::Setting { name, problem, remedy }
            if ["length", "stride", "batch", "data", "attention"].contains(&name.as_str()) =>
        {
            Error::setting(format!("--{name}"), problem, remedy)
        }
        other => other,
    }
}

fn run(settings: &Settings, file: Option<&Path>, overwrite: bool) -> Result<ExitCode> {
    if settings.models.is_empty() {
        let remedy = "name folders or GGUF files; see --help";
        return Err(Error::setting("MODEL", "no checkpoint was named", remedy));
    }
    if settings.data.is_empty() {
        let problem = "no text was given, and a model must not be measured on what it may have seen";
        return Err(Error::setting("--data", problem, "give --data NAME=PATH, once a kind of text"));
    }
    if settings.document_bytes == Some(0) {
        return Err(Error::setting("--document-bytes", "0 leaves nothing to read", "give 1 or more"));
    }
    let (seed, name) = (settings.run.seed.unwrap_or(0), settings.run.device.unwrap_or_default());
    let out = settings.output.out.clone().map_or_else(|| run_folder::first_free("runs/eval".as_ref()), Ok)?;
    let data = settings.data.iter().filter_map(|source| source.split_once('=')).map(|(_, path)| Path::new(path));
    let read: Vec<&Path> = settings.models.iter().map(PathBuf::as_path).chain(data).chain(file).collect();
    let replace = overwrite::replaces(&out, overwrite, &read)?;
    let places = settings.models.iter().map(|name| found(Some(name.as_path()))).collect::<Result<Vec<_>>>()?;
    let shares = shares(settings)?;
    let opened = places.iter().flatten().map(|path| Opened::new(path, settings)).collect::<Result<Vec<_>>>()?;
    let opened = attending(at_shares(opened, &shares)?, settings)?;
    let windows = windows(settings, &opened)?;
    let corpus = corpus(settings)?;
    let tokenizers: Vec<&TextTokenizer> = opened.iter().map(|one| &one.tokenizer).collect();
    let scored = corpus.tasks.iter().map(|task| scored_from(&tokenizers, task, windows.skip));
    let scored = scored.collect::<Result<Vec<_>>>()?;
    let folder = RunFolder::create(&out, settings, seed, name, replace)?;

    let (device, mut measured, mut base): (_, Vec<Measured>, Option<Vec<Vec<Reading>>>) = (name.open()?, vec![], None);
    for (at, opened) in opened.iter().enumerate() {
        let (started, dtype) = (Instant::now(), settings.dtype.map(DType::from));
        let model = match opened.percent {
            Some(percent) => load_model_at_share(&opened.path, &device, dtype, percent)?,
            None => load_model(&opened.path, &device, dtype)?,
        };
        let model = match &opened.attention {
            Some(attention) => model.with_attention(attention, &ModelFolder::open(&opened.path)?)?,
            None => model,
        };
        let active = opened.active;
        let pass = Pass { ask: Ask { load: active == ActiveMode::Routed, ..Ask::default() }, ..active.pass() };
        let (mut readings, mut tasks, mut share) = (Vec::new(), Vec::new(), 0.0);
        for (number, task) in corpus.tasks.iter().enumerate() {
            let encoded = opened.tokenizer.encode_documents(&task.name, &task.documents)?;
            let begins = encoded.into_iter().zip(&scored[number]);
            let documents: Vec<Continuation> = begins
                .map(|(document, from)| Continuation { tokens: document.tokens, from: from.tokens[at] })
                .collect();
            let end = opened.tokenizer.eos();
            let (losses, load) = document_losses(&model, &documents, end, windows, &pass, &device)?;
            share += if active == ActiveMode::Routed { model.active_share(&load)? } else { 1.0 };
            let skipped: Vec<usize> = scored[number].iter().map(|from| from.bytes).collect();
            let reading = Reading::of_documents(task, &losses, &skipped);
            let against = base.as_ref().and_then(|base| base.get(number)).map(Vec::as_slice);
            tasks.push(costs(&task.name, &reading, against, seed)?);
            readings.push(reading);
        }
        base.get_or_insert(readings);
        let (seconds, active_share) = (started.elapsed().as_secs_f64(), share / corpus.tasks.len().max(1) as f64);
        let variant = model.variant().map(str::to_owned);
        let (model, asked_share) = (opened.path.clone(), opened.percent.map(|percent| percent as f64 / 100.0));
        let attention = opened.attention;
        let found = Measured { model, variant, active, asked_share, attention, active_share, seconds, tasks };
        print(&found);
        measured.push(found);
    }
    let said = json!({ "length": windows.length, "stride": windows.stride, "skip": windows.skip });
    let summary = json!({ "corpus_sha256": corpus.sha256(), "windows": said, "models": measured });
    files::write(folder.dir().join("summary.json"), format!("{summary:#}\n"))?;
    say!("written   {}", folder.finish()?.display());
    Ok(ExitCode::SUCCESS)
}

/// Percents of the experts, of what `--active-share` says.
fn shares(settings: &Settings) -> Result<Vec<usize>> {
    if settings.active.is_some() && !settings.active_share.is_empty() {
        let problem = "says how much is routed, and --active which experts run";
        return Err(Error::setting("--active-share", problem, "give one of the two"));
    }
    let percent = |share: &f64| {
        let percent = (100.0 * share).round();
        if (1.0..=100.0).contains(&percent) && (100.0 * share - percent).abs() < 1e-6 {
            return Ok(percent as usize);
        }
        let remedy = "give shares like 0.25, in whole percents, of more than 0 and at most 1";
        Err(Error::setting("--active-share", format!("{share} is not one"), remedy))
    };
    settings.active_share.iter().map(percent).collect()
}

/// Each checkpoint that can take shares once for each; the others as they are.
fn at_shares(opened: Vec<Opened>, percents: &[usize]) -> Result<Vec<Opened>> {
    if percents.is_empty() {
        return Ok(opened);
    }
    if !opened.iter().any(|one| one.takes_shares) {
        let problem = "no checkpoint has routers that could take another share";
        return Err(Error::setting("--active-share", problem, "name a variant of routed experts, or leave it out"));
    }
    let of = |one: Opened| {
        if one.takes_shares { percents.iter().map(|percent| one.at(*percent)).collect() } else { vec![one] }
    };
    Ok(opened.into_iter().flat_map(of).collect())
}

/// Each checkpoint once for each attention, or as it is.
fn attending(opened: Vec<Opened>, settings: &Settings) -> Result<Vec<Opened>> {
    if settings.attention.is_empty() {
        return Ok(opened);
    }
    let of = |(one, attention): (&Opened, &AttentionSpec)| {
        // A dense model is routed by what its attention leaves out.
        let active = if one.is_dense && !attention.is_dense() { ActiveMode::Routed } else { one.active };
        check_mode(attention, active)?;
        Ok(Opened { active, attention: Some(*attention), ..one.clone() })
    };
    opened.iter().flat_map(|one| settings.attention.iter().map(move |attention| (one, attention))).map(of).collect()
}

/// A checkpoint before its weights are read.
#[derive(Clone)]
struct Opened {
    path: PathBuf,
    tokenizer: TextTokenizer,
    active: ActiveMode,
    positions: usize,
    /// Tokens of a document that a shared decision reads.
    open: usize,
    /// Whether it has routers that can take another share of the experts, and which they take: what it declares, unless given.
    takes_shares: bool,
    percent: Option<usize>,
    /// Whether it is no Tiny-ONN.
    is_dense: bool,
    /// What its attention computes where routed: what it declares, unless given.
    attention: Option<AttentionSpec>,
}

impl Opened {
    fn new(path: &Path, settings: &Settings) -> Result<Self> {
        let folder = ModelFolder::open(path)?;
        folder.refuse_not_finite("train or download it again: losses of such weights say nothing")?;
        let (tokenizer, positions) = (text::tokenizer(&folder)?, folder.arch()?.max_position_embeddings);
        let variant = is_tinyonn(folder.config()).then(|| TinyOnnFolder::open(path)).transpose()?;
        let stated = variant.as_ref().map_or(ActiveMode::All, |variant| variant.config().active);
        let takes_shares = variant.as_ref().is_some_and(|variant| takes_shares(&variant.variant().spec));
        // A dense model has but one mode.
        let active = match settings.active.filter(|_| variant.is_some()) {
            Some(active) => active.into(),
            None if takes_shares && !settings.active_share.is_empty() => ActiveMode::Routed,
            None => stated,
        };
        let routed = variant.as_ref().filter(|_| active == ActiveMode::Routed).map(|variant| &variant.variant().spec);
        if routed.is_some_and(|spec| spec.route_per == RoutePer::Task) {
            let problem = format!("{} is routed by the task of each sequence, which no document names", path.display());
            return Err(Error::setting("--active", problem, "measure with --active all"));
        }
        let open = routed.map_or(0, MoeSpec::open_positions);
        let is_dense = variant.is_none();
        let path = path.to_path_buf();
        Ok(Self { path, tokenizer, active, positions, open, takes_shares, percent: None, is_dense, attention: None })
    }

    fn at(&self, percent: usize) -> Self {
        Self { percent: Some(percent), ..self.clone() }
    }
}

/// The same for all checkpoints.
fn windows(settings: &Settings, opened: &[Opened]) -> Result<Windows> {
    let most = opened.iter().map(|one| one.positions).min().unwrap_or(1);
    let skip = opened.iter().map(|one| one.open).max().unwrap_or(0);
    let length = settings.length.unwrap_or(512.min(most));
    let stride = settings.stride.unwrap_or((length / 2).min(length.saturating_sub(skip)).max(1));
    let windows = Windows { length, stride, batch: settings.batch.unwrap_or(8), skip };
    windows.validate(most)?;
    Ok(windows)
}

fn corpus(settings: &Settings) -> Result<Corpus> {
    let mut corpus = text::corpus(&settings.data, 0)?;
    if let Some(task) = corpus.tasks.iter().find(|task| task.documents.iter().any(|document| document.conversation)) {
        let problem = format!("`{}` has conversations, whose bytes are not those that a model reads", task.name);
        return Err(Error::setting("--data", problem, "give text: lines with a `text`"));
    }
    if let Some(most) = settings.document_bytes {
        for document in corpus.tasks.iter_mut().flat_map(|task| &mut task.documents) {
            document.text.truncate(document.text.floor_char_boundary(most));
        }
    }
    Ok(corpus)
}

fn print(Measured { model, variant, active, active_share, attention, tasks, .. }: &Measured) {
    let attention = attention.map_or_else(String::new, |attention| format!(", attention {attention}"));
    let mode = match (variant, active) {
        (None, _) => "dense".to_owned(),
        (Some(variant), ActiveMode::All) => format!("{variant}, all active"),
        (Some(variant), ActiveMode::Routed) => format!("{variant}, {:.1} % active", 100.0 * active_share),
    };
    say!("{} ({mode}{attention})", model.display());
    for TextCost {
        task, documents, tokens, nats_per_token: nats, perplexity, bits_per_byte: bits, more_bits, ..
    } in tasks
    {
        let more = more_bits.map_or_else(String::new, |more| {
            format!("  {:+.4} [{:+.4}, {:+.4}] bits a byte against the first", more.mean, more.low, more.high)
        });
        say!(
            "  {task:<14} {documents:>5} documents {tokens:>8} tokens  {:.4} [{:.4}, {:.4}] nats a token  perplexity {:.3} [{:.3}, {:.3}]  {:.4} [{:.4}, {:.4}] bits a byte{more}",
            nats.mean,
            nats.low,
            nats.high,
            perplexity.mean,
            perplexity.low,
            perplexity.high,
            bits.mean,
            bits.low,
            bits.high
        );
    }
}
