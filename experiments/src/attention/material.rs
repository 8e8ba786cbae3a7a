//! What is read: documents that share no text, facts, and other documents for what is fitted.

use rand::seq::SliceRandom as _;
use tinyonn::data::{Corpus, Document, Task, TextTokenizer};
use tinyonn::files::Digest;
use tinyonn::phases::text;
use tinyonn::{Error, Result, random};

use super::facts::{FactText, fact_text};
use super::shared_text::SharedText;
use super::{AttentionConfig, Texts};

/// Bytes of a document that is fitted on, at most.
const FITTED: usize = 1 << 16;

/// Texts of a length.
pub(super) struct Read {
    /// Tokens of each.
    pub(super) length: usize,
    /// By kind its documents, of that many tokens each.
    pub(super) kinds: Vec<(String, Vec<Vec<u32>>)>,
    /// Facts.
    pub(super) facts: Vec<FactText>,
}

/// All of it.
pub(super) struct Material {
    /// By length.
    pub(super) texts: Vec<Read>,
    /// Documents of no text that is measured.
    pub(super) fitted: Corpus,
}

impl Material {
    /// Of the kinds of `config`.
    ///
    /// # Errors
    /// Text that cannot be read, or is too little.
    pub(super) fn read(config: &AttentionConfig, tokenizer: &TextTokenizer) -> Result<Self> {
        let mut corpus = text::corpus(&config.kinds()?, config.seed)?;
        for task in &mut corpus.tasks {
            task.documents.shuffle(&mut random::stream(config.seed, &format!("documents of {}", task.name)));
        }
        let texts = config.texts.iter().map(|texts| read(*texts, &corpus, (tokenizer, config.seed)));
        let texts = texts.collect::<Result<Vec<_>>>()?;
        let mut measured = SharedText::default();
        for tokens in texts.iter().flat_map(|read| &read.kinds).flat_map(|(_, documents)| documents) {
            // In part the same at another length.
            measured.takes(tokens);
        }
        let fitted = corpus.tasks.iter().map(|task| fitted(task, (config.calibration_tokens, tokenizer), &measured));
        let fitted = Corpus { tasks: fitted.collect::<Result<Vec<_>>>()? };
        Ok(Self {
            texts,
            fitted: Corpus { tasks: fitted.tasks.into_iter().filter(|task| !task.documents.is_empty()).collect() },
        })
    }

    /// SHA-256 of what is measured at a length.
    pub(super) fn sha256(&self, length: usize) -> String {
        let mut digest = Digest::new();
        for read in self.texts.iter().filter(|read| read.length == length) {
            for (kind, documents) in &read.kinds {
                digest.text(kind);
                documents.iter().for_each(|tokens| digest.words(tokens));
            }
            read.facts.iter().for_each(|text| digest.words(&text.tokens));
        }
        digest.hex()
    }
}

fn read(texts: Texts, corpus: &Corpus, (tokenizer, seed): (&TextTokenizer, u64)) -> Result<Read> {
    let Texts { length, documents, facts } = texts;
    let (mut taken, mut kinds) = (SharedText::default(), Vec::new());
    for task in &corpus.tasks {
        let mut own = Vec::new();
        // No token is shorter than a byte.
        let mut long = task.documents.iter().filter(|document| document.text.len() >= length);
        while own.len() < documents
            && let Some(document) = long.next()
        {
            let mut tokens = encoded(document, tokenizer)?;
            if tokens.len() >= length {
                tokens.truncate(length);
                if taken.takes(&tokens) {
                    own.push(tokens);
                }
            }
        }
        if !own.is_empty() {
            kinds.push((task.name.clone(), own));
        }
    }
    if kinds.is_empty() && documents > 0 {
        let problem = format!("no kind of text has a document of {length} tokens");
        return Err(Error::setting("texts", problem, "name longer texts with `data`, or a shorter length"));
    }
    let (mut told, mut asked) = (Vec::new(), 0);
    while asked < facts {
        let text = fact_text(tokenizer, length, seed, told.len())?;
        asked += text.answers.len();
        told.push(text);
    }
    Ok(Read { length, kinds, facts: told })
}

/// Documents of a kind of about so many tokens together that share no text with what is measured.
fn fitted(task: &Task, (tokens, tokenizer): (usize, &TextTokenizer), measured: &SharedText) -> Result<Task> {
    let (mut documents, mut left) = (Vec::new(), tokens);
    for document in task.documents.iter().filter(|document| document.text.len() <= FITTED) {
        if left == 0 {
            break;
        }
        let encoded = encoded(document, tokenizer)?;
        if measured.would_take(&encoded) {
            left = left.saturating_sub(encoded.len());
            documents.push(document.clone());
        }
    }
    Ok(Task { name: task.name.clone(), documents })
}

fn encoded(document: &Document, tokenizer: &TextTokenizer) -> Result<Vec<u32>> {
    tokenizer.encode(&document.text)
}
