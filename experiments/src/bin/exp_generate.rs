//! A model's own words, behind a prompt or in a conversation.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use candle_core::DType;
use clap::Parser;
use experiments::listener::{Answer, Listener, Shown};
use experiments::model_flags::{Active, Dtype, check_mode, found, in_words};
use experiments::settings::over_file;
use experiments::token_paths::TokenPaths;
use experiments::{RunFlags, arguments, main_with, overwrite, say};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tinyonn::checkpoint::{LoadedModel, ModelFolder, load_model};
use tinyonn::data::TextTokenizer;
use tinyonn::decoder::{Generation, Pass, Prompt, Sampling};
use tinyonn::generation::{ChatTemplate, end_ids};
use tinyonn::model::ActiveMode;
use tinyonn::moe::AttentionSpec;
use tinyonn::phases::text;
use tinyonn::{Error, Result, files};

/// Continue a text, or answer in a conversation, with a checkpoint (dense or Tiny-ONN).
///
/// The text appears as it is written. With several prompts each is continued as it would be alone, and printed when all are done. Without a temperature the most
/// probable token is taken; an answer ends with the model's own end of text, with --stop or --stop-id, or after --max-tokens.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    after_help = "Examples:
  exp_generate SmolLM2.gguf --chat                          talk, a line at a time
  exp_generate SmolLM2.gguf --chat --prompt 'Why is the sky blue?'
  exp_generate SmolLM2-TinyOnn --active routed --prompt 'The history of Bremen' --temperature 0.8 --top-p 0.95 --seed 3 --stats
  exp_generate SmolLM2-TinyOnn --active routed --prompt 'Three apples' --show-routing paths.html
  exp_generate SmolLM2.gguf --attention 'pairs(keep = 0.125, index = components(8))' --chat"
)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Args, Clone, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
// Each is a flag of its own.
#[allow(clippy::struct_excessive_bools)]
struct Settings {
    /// The checkpoint: a folder with config.json, safetensors and tokenizer.json, a GGUF file, or a name on the hub (OWNER/NAME)
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
    /// A text to go on with (repeatable)
    #[arg(long, value_name = "TEXT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    prompt: Vec<String>,
    /// Each prompt is what a user says to the model, by its chat template; without a prompt each line of standard input is, in one conversation
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    chat: bool,
    /// What the model is told before a conversation (with --chat)
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// A whole conversation to answer, in place of prompts: a JSON list of {"role", "content"}
    #[arg(long, value_name = "FILE")]
    messages: Option<PathBuf>,
    /// Tokens to write behind each prompt, at most [default: 256, or what the model has positions for]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Draw tokens from softmax(logits / T) [default: 0, the most probable token]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Draw from the K most probable tokens
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw from the fewest most probable tokens whose probabilities sum to P
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Draw from tokens with at least P of the highest probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f64>,
    /// Hold back tokens that the text has already; 1 is not at all [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    repetition_penalty: Option<f64>,
    /// End an answer before this text (repeatable)
    #[arg(long, value_name = "TEXT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stop: Vec<String>,
    /// End an answer with this token, beside the model's own ends (repeatable)
    #[arg(long, value_name = "ID")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stop_id: Vec<u32>,
    /// The experts that run [default: as the checkpoint says]
    #[arg(long, value_enum)]
    active: Option<Active>,
    /// What attention computes where routed, as declarations say it, such as 'pairs(keep = 0.125, index = components(8))' or dense; in a file the same, or a
    /// table like `attention.pairs = { keep = 0.125, index = { components = 8 } }` [default: as the checkpoint says]
    #[arg(long, value_name = "PAIRS")]
    #[serde(serialize_with = "in_words")]
    attention: Option<AttentionSpec>,
    /// What it computes in [default: as it is stored]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Print a line of JSON for each prompt: its text, what was written, its tokens, what ended it
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    json: bool,
    /// Say on standard error how fast it was, and which share of the neurons was active
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stats: bool,
    /// Colour tokens by their group in the terminal, and write every token's path to this page (one prompt)
    #[arg(long, value_name = "FILE.html")]
    show_routing: Option<PathBuf>,
    /// The layer whose groups colour the text [default: the middle one]
    #[arg(long, value_name = "N")]
    routing_layer: Option<usize>,
    /// Replace the page that is there
    #[arg(long)]
    #[serde(skip)]
    overwrite: bool,
    #[command(flatten)]
    #[serde(flatten)]
    run: RunFlags,
}

fn main() -> ExitCode {
    main_with(|| {
        let cli: Cli = arguments::parse()?;
        let settings = over_file(&cli.settings, cli.settings.run.config.as_deref())?;
        run(&Settings { overwrite: cli.settings.overwrite, ..settings }).map_err(by_flag)?;
        Ok(ExitCode::SUCCESS)
    })
}

/// The library's names of what the flags say.
fn by_flag(error: Error) -> Error {
    match error {
        Error::Setting { name, problem, remedy } => {
            let name = match name.as_str() {
                "tokens" => "--max-tokens".to_owned(),
                "prompt" | "attention" | "temperature" | "top_k" | "top_p" | "min_p" | "repetition_penalty"
                | "stop" => {
                    format!("--{}", name.replace('_', "-"))
                }
                _ => name,
            };
            Error::Setting { name, problem, remedy }
        }
        other => other,
    }
}

fn run(settings: &Settings) -> Result<()> {
    let path = found(settings.model.as_deref())?.ok_or_else(|| {
        Error::setting("MODEL", "no checkpoint was named", "name a folder, a GGUF file or OWNER/NAME; see --help")
    })?;
    let sampling = sampling(settings);
    sampling.validate()?;
    check_flags(settings)?;
    let folder = ModelFolder::open(&path)?;
    folder.refuse_not_finite("train or download it again: such weights write nothing")?;
    let tokenizer = text::tokenizer(&folder)?.for_prompts();
    let by_template = settings.chat || settings.messages.is_some();
    let template = by_template.then(|| template(&folder)).transpose()?;
    let texts = texts(settings, template.as_ref())?;
    let encode = |text: &String| if by_template { tokenizer.encode(text) } else { tokenizer.encode_with_ends(text) };
    let tokens = texts.iter().map(encode).collect::<Result<Vec<_>>>()?;
    let mut stop_ids = end_ids(&folder, &tokenizer)?;
    stop_ids.extend(&settings.stop_id);

    let device = settings.run.device.unwrap_or_default().open()?;
    let model = attending(load_model(&path, &device, settings.dtype.map(DType::from))?, settings, &folder)?;
    let vocabulary = model.config().vocab_size;
    if let Some(id) = settings.stop_id.iter().find(|id| **id as usize >= vocabulary) {
        let problem = format!("the model has no token {id}, which would end no answer");
        return Err(Error::setting("--stop-id", problem, format!("give ids below {vocabulary}")));
    }
    let active = settings.active.map_or(model.active(), ActiveMode::from);
    if model.needs_tasks(active) {
        let problem = format!("{} is routed by the task of each sequence, which no prompt names", path.display());
        return Err(Error::setting("--active", problem, "generate with --active all"));
    }
    let speaker = Speaker { settings, model, active, tokenizer, stop_ids, sampling };
    match template.filter(|_| settings.talks()) {
        Some(template) => speaker.talk(&template),
        None => speaker.answer(&texts, &tokens).map(drop),
    }
}

/// The model with the attention that was asked for, which acts where it is routed.
fn attending(model: LoadedModel, settings: &Settings, folder: &ModelFolder) -> Result<LoadedModel> {
    let Some(attention) = &settings.attention else { return Ok(model) };
    let model = model.with_attention(attention, folder)?;
    check_mode(attention, settings.active.map_or(model.active(), ActiveMode::from))?;
    Ok(model)
}

impl Settings {
    /// Whether what the user says is read line by line.
    fn talks(&self) -> bool {
        self.chat && self.prompt.is_empty() && self.messages.is_none()
    }
}

/// A model, and how it answers.
struct Speaker<'a> {
    settings: &'a Settings,
    model: LoadedModel,
    active: ActiveMode,
    tokenizer: TextTokenizer,
    stop_ids: Vec<u32>,
    sampling: Sampling,
}

impl Speaker<'_> {
    /// A conversation: each line of standard input is what the user says, until it ends.
    fn talk(&self, template: &ChatTemplate) -> Result<()> {
        let told = self.settings.system.iter().map(|text| json!({ "role": "system", "content": text }));
        let mut messages: Vec<Value> = told.collect();
        let mut lines = std::io::stdin().lines();
        loop {
            if std::io::stdin().is_terminal() {
                eprint!("> ");
            }
            let Some(line) = lines.next() else {
                if std::io::stdin().is_terminal() {
                    eprintln!();
                }
                return Ok(());
            };
            let line = line.map_err(|e| Error::io("standard input", e))?;
            if line.trim().is_empty() {
                continue;
            }
            messages.push(json!({ "role": "user", "content": line }));
            let text = template.render(&Value::Array(messages.clone()), true)?;
            let tokens = self.tokenizer.encode(&text)?;
            let answers = self.answer(&[text], &[tokens])?;
            messages.extend(answers.into_iter().map(|answer| json!({ "role": "assistant", "content": answer.text })));
        }
    }

    /// Answers `texts`, and prints what it says.
    fn answer(&self, texts: &[String], tokens: &[Vec<u32>]) -> Result<Vec<Answer>> {
        let Self { settings, model, active, tokenizer, .. } = self;
        let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
        let most = (model.config().max_position_embeddings + 1).saturating_sub(longest).max(1);
        let (stop_ids, sampling) = (self.stop_ids.clone(), self.sampling);
        let how = Generation { tokens: settings.max_tokens.unwrap_or(DEFAULT_TOKENS.min(most)), stop_ids, sampling };
        let shown = Shown {
            streams: tokens.len() == 1 && !settings.json && settings.show_routing.is_none(),
            stats: settings.stats,
            paths: settings.show_routing.as_ref().map(|_| settings.routing_layer),
        };
        let ends = (how.stop_ids.as_slice(), settings.stop.as_slice());
        let mut listener = Listener::new((model, *active), tokenizer, tokens, ends, shown)?;
        let seed = settings.run.seed.unwrap_or(0);
        let prompts =
            tokens.iter().enumerate().map(|(number, tokens)| Prompt::new(tokens.clone(), seed, number)).collect();
        let pass = Pass { ask: listener.ask(), ..active.pass() };
        let written = model.generate(prompts, &how, &pass, &mut |step| listener.hear(step))?;
        let answers = listener.finish()?;
        if settings.json {
            for ((prompt, Answer { text, ended }), tokens) in texts.iter().zip(&answers).zip(&written) {
                say!("{}", json!({ "prompt": prompt, "text": text, "tokens": tokens, "ended": ended }));
            }
        } else if let Some(page) = &settings.show_routing {
            let [prompt, written] =
                [tokens, written.as_slice()].map(|texts| texts.first().map_or(&[][..], Vec::as_slice));
            if let Some((paths, layer)) = listener.paths(tokenizer, prompt, written)? {
                say!("{}", paths.in_terminal(layer, std::io::stdout().is_terminal()));
                write_page(page, &paths, layer)?;
                say!("written   {}", page.display());
            }
        } else if shown.streams {
            say!("");
        } else {
            for (number, (prompt, Answer { text, .. })) in texts.iter().zip(&answers).enumerate() {
                say!("[{}] {prompt}\n{text}\n", number + 1);
            }
        }
        if settings.stats {
            eprintln!("{}", listener.stats()?);
        }
        Ok(answers)
    }
}

/// Tokens behind each prompt, where nobody says how many.
const DEFAULT_TOKENS: usize = 256;

fn sampling(settings: &Settings) -> Sampling {
    let Settings { temperature, top_k, top_p, min_p, repetition_penalty, .. } = *settings;
    Sampling {
        temperature: temperature.unwrap_or(0.0),
        top_k,
        top_p,
        min_p,
        repetition_penalty: repetition_penalty.unwrap_or(1.0),
    }
}

/// What can be refused before the model is read.
fn check_flags(settings: &Settings) -> Result<()> {
    let refuse = |name: &str, problem: &str, remedy: &str| Err(Error::setting(name, problem, remedy));
    if settings.prompt.is_empty() && settings.messages.is_none() && !settings.chat {
        let remedy = "give --prompt TEXT, or --messages FILE, or --chat to talk";
        return refuse("--prompt", "it is needed and was not given", remedy);
    }
    if settings.prompt.iter().any(String::is_empty) {
        return refuse("--prompt", "it is empty", "give some text to go on with");
    }
    if settings.messages.is_some() && !(settings.prompt.is_empty() && settings.system.is_none()) {
        return refuse("--messages", "is a whole conversation", "leave --prompt and --system out");
    }
    if settings.system.is_some() && !settings.chat {
        return refuse("--system", "is for a conversation", "add --chat");
    }
    if settings.stop.iter().any(String::is_empty) {
        return refuse("--stop", "an empty text stands everywhere", "give one character or more");
    }
    if settings.max_tokens == Some(0) {
        return refuse("--max-tokens", "0 writes nothing", "give 1 or more");
    }
    let Some(page) = &settings.show_routing else {
        return match settings.routing_layer {
            Some(_) => refuse("--routing-layer", "colours nothing by itself", "add --show-routing FILE.html"),
            None => Ok(()),
        };
    };
    if settings.prompt.len() > 1 || settings.json || settings.talks() {
        return refuse("--show-routing", "shows one text in colours", "give one prompt, and no --json");
    }
    if !cfg!(feature = "pictures") {
        return refuse("--show-routing", "this build draws no pages", "build with the feature `pictures`");
    }
    overwrite::refuse_file(page, settings.overwrite)?;
    match page.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
        Some(parent) => Err(Error::file(parent, "is not a folder", "make it first, or name another place")),
        None => Ok(()),
    }
}

fn template(folder: &ModelFolder) -> Result<ChatTemplate> {
    ChatTemplate::read(folder)?.ok_or_else(|| {
        let remedy = "give a prompt without --chat, or put the model's chat_template.jinja beside its weights";
        Error::file(folder.dir(), "has no chat template", remedy)
    })
}

/// What is gone on with: prompts, or conversations as the model's template has them.
fn texts(settings: &Settings, template: Option<&ChatTemplate>) -> Result<Vec<String>> {
    let Some(template) = template else { return Ok(settings.prompt.clone()) };
    if let Some(path) = &settings.messages {
        return Ok(vec![template.render(&messages(path)?, true)?]);
    }
    let conversation = |prompt: &String| {
        let system = settings.system.iter().map(|text| json!({ "role": "system", "content": text }));
        let messages: Vec<Value> = system.chain([json!({ "role": "user", "content": prompt })]).collect();
        template.render(&Value::Array(messages), true)
    };
    settings.prompt.iter().map(conversation).collect()
}

fn messages(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let remedy = "give a list like [{\"role\": \"user\", \"content\": \"Hello\"}]";
    let read = serde_json::from_slice::<Value>(files::without_mark(&text));
    let value = read.map_err(|e| Error::file(path, format!("is not JSON: {e}"), remedy))?;
    let sound = |message: &Value| message["role"].is_string() && message.get("content").is_some();
    match value.as_array().filter(|messages| !messages.is_empty() && messages.iter().all(sound)) {
        Some(_) => Ok(value),
        None => Err(Error::file(path, "is no list of messages with `role` and `content`", remedy)),
    }
}

#[cfg(feature = "pictures")]
fn write_page(path: &Path, paths: &TokenPaths, layer: usize) -> Result<()> {
    files::write(path, experiments::pages::token_paths::page(paths, layer))
}

/// Refused before anything was done.
#[cfg(not(feature = "pictures"))]
fn write_page(_: &Path, _: &TokenPaths, _: usize) -> Result<()> {
    Ok(())
}
