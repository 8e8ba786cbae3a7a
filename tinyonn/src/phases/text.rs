//! A run's text: by task, split by document, tokenised.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::ModelFolder;
use crate::data::{
    self, Conversations, Corpus, DataSource, Documents, SplitShares, Splits, TOOLCHAIN, TextTokenizer, TokenSet,
};
use crate::generation::ChatTemplate;
use crate::{Error, Result};

/// Text and its splits.
///
/// ```
/// use tinyonn::data::{Corpus, Documents, TextTokenizer, arithmetic, sorting};
/// use tinyonn::phases::text::{Text, Tokens, corpus, documents};
///
/// let sorted = Corpus { tasks: vec![sorting(0, 20_000), arithmetic(0, 20_000)] };
/// let text = Text::split(&sorted, 0)?;
/// assert_eq!((text.tasks.as_slice(), text.sha256.clone()), (&["sorting".to_owned(), "arithmetic".to_owned()][..], sorted.sha256()));
/// let tokens: Tokens = text.encode(&TextTokenizer::train(&text.splits.train, 300)?)?;
/// assert!(tokens.train.tokens() > tokens.validation.tokens() && tokens.test.tokens() > 0);
///
/// # let dir = tempfile::tempdir().map_err(|e| tinyonn::Error::io("temporary folder", e))?;
/// # let path = dir.path().join("a.txt");
/// # tinyonn::files::write(&path, "To be, or not to be.")?;
/// let named = [format!("play={}", path.display())];
/// assert_eq!(corpus(&named, 0)?.task_names(), ["play"]);
/// let visited: Box<dyn Documents> = documents(&named, 0)?;
/// assert_eq!(visited.count(0)?, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Text {
    /// The SHA-256 of the corpus.
    pub sha256: String,
    /// The tasks' names.
    pub tasks: Vec<String>,
    /// The documents of each split.
    pub splits: Splits,
}

/// The tokens of each split.
pub struct Tokens {
    /// Scan, partition, labels, fit, SMK.
    pub train: TokenSet,
    /// Stopping, calibration.
    pub validation: TokenSet,
    /// Reported once.
    pub test: TokenSet,
}

impl Text {
    /// The tasks named by `sources`, or the default text: this workspace's own sources and prose, and generated tasks.
    ///
    /// # Errors
    /// Sources that cannot be read; tasks too small to split.
    pub fn new(sources: &[String], seed: u64) -> Result<Self> {
        Self::split(&corpus(sources, seed)?, seed)
    }

    /// Splits `corpus` by document.
    ///
    /// # Errors
    /// Tasks too small to split.
    pub fn split(corpus: &Corpus, seed: u64) -> Result<Self> {
        if corpus.tasks.len() < 2 {
            let problem = "routing needs tasks to tell apart, and there are fewer than two";
            return Err(Error::setting("data", problem, "give --data NAME=PATH twice or more"));
        }
        let splits = Splits::new(corpus, SplitShares::default(), seed)?;
        Ok(Self { sha256: corpus.sha256(), tasks: corpus.task_names(), splits })
    }

    /// Encodes every split.
    ///
    /// # Errors
    /// Whatever the tokenizer reports.
    pub fn encode(&self, tokenizer: &TextTokenizer) -> Result<Tokens> {
        let held_out = |corpus: &Corpus| {
            let mut set = TokenSet::encode(corpus, tokenizer)?;
            set.number_copies_alike(corpus);
            Ok::<_, Error>(set)
        };
        Ok(Tokens {
            train: TokenSet::encode(&self.splits.train, tokenizer)?,
            validation: held_out(&self.splits.validation)?,
            test: held_out(&self.splits.test)?,
        })
    }
}

/// A model's own tokenizer. Documents end with the end of text that it names, or else with `eos_token_id` of the model's config.json.
///
/// ```
/// use tinyonn::checkpoint::ModelFolder;
///
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/gguf/llama_k.gguf");
/// let tokenizer = tinyonn::phases::text::tokenizer(&ModelFolder::open(path)?)?;
/// assert!(!tokenizer.encode("the cat")?.is_empty());
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// No tokenizer.json, or none that can be used; one with tokens that the model has no embedding for.
pub fn tokenizer(folder: &ModelFolder) -> Result<TextTokenizer> {
    let tokenizer = end_of_its_own_or_the_models(folder)?.with_conversations(conversations(folder));
    let (entries, vocabulary) = (tokenizer.vocab_size(), folder.arch()?.vocab_size);
    if entries > vocabulary {
        let problem = format!("{entries} entries for a vocabulary of {vocabulary}");
        let path = if folder.dir().is_dir() { folder.dir().join(TOKENIZER) } else { folder.dir().to_path_buf() };
        return Err(Error::file(path, problem, "use the tokenizer the model was trained with"));
    }
    Ok(tokenizer)
}

/// How the model of a folder writes conversations. That it cannot is said when there is one to write: most text is none.
fn conversations(folder: &ModelFolder) -> Conversations {
    let refused = |problem: String| {
        let remedy = "give a chat model, or lines with a `text`";
        Conversations::new(move |_| Err(Error::setting("messages", problem.clone(), remedy)))
    };
    match ChatTemplate::read(folder) {
        Ok(Some(template)) => template.into_conversations(),
        Ok(None) => refused(format!("the model {} has no chat template", folder.dir().display())),
        Err(error) => refused(error.to_string()),
    }
}

/// The tokenizer in the folder.
const TOKENIZER: &str = "tokenizer.json";

fn end_of_its_own_or_the_models(folder: &ModelFolder) -> Result<TextTokenizer> {
    let inside = folder.source().tokenizer_json()?;
    let load = |end| match &inside {
        Some(json) => TextTokenizer::from_json(json.as_bytes(), folder.dir(), end),
        None => TextTokenizer::load(folder.dir().join(TOKENIZER), end),
    };
    let end = match folder.config().get("eos_token_id") {
        Some(Value::Array(ids)) => ids.first(),
        id => id,
    };
    let end = end.and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
    load(None).or_else(|error| end.map_or(Err(error), |end| load(Some(end))))
}

/// The tasks of `sources` (each `NAME=PATH`, or [`TOOLCHAIN`] alone for the text of the Rust toolchain and its crates); without any, the
/// default text.
///
/// # Errors
/// Sources that cannot be read.
pub fn corpus(sources: &[String], seed: u64) -> Result<Corpus> {
    if sources.is_empty() {
        return data::default_corpus(&data::workspace_root()?, seed);
    }
    if sources == [TOOLCHAIN] {
        return data::toolchain_corpus(&data::Toolchain::of_workspace(&data::workspace_root()?)?);
    }
    data::read_sources(&named(sources)?)
}

/// The same tasks for one who visits their documents: what users name themselves is not read yet, and never kept.
///
/// # Errors
/// As of [`corpus`], but for what visitors meet.
pub fn documents(sources: &[String], seed: u64) -> Result<Box<dyn Documents>> {
    if sources.is_empty() || sources == [TOOLCHAIN] {
        return Ok(Box::new(corpus(sources, seed)?));
    }
    let sources = named(sources)?;
    data::check_sources(&sources)?;
    // A pipe is read but once.
    if sources.iter().any(|DataSource { path, .. }| path.exists() && !path.is_dir() && !path.is_file()) {
        return Ok(Box::new(data::read_sources(&sources)?));
    }
    Ok(Box::new(sources))
}

fn named(sources: &[String]) -> Result<Vec<DataSource>> {
    sources.iter().map(|source| source.parse()).collect()
}

/// The text of a run.
///
/// ```
/// use tinyonn::phases::text::CorpusFigures;
/// let total = |figures: &CorpusFigures| figures.tokens.values().flatten().sum::<usize>();
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CorpusFigures {
    /// Identifies the text.
    pub sha256: String,
    /// By task: tokens of train, validation and test.
    pub tokens: BTreeMap<String, [usize; 3]>,
}
