//! Text to tokens and back: a byte-level BPE of our own, or any Hugging Face `tokenizer.json`.
//!
//! Training is deterministic although the trainer counts in hash maps: its counts are sums, its alphabet is sorted,
//! and its queue of pairs is ordered by count and then by the pair itself, so no result follows the maps' order.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, OffsetReferential, OffsetType, PostProcessorWrapper, PreTokenizedString, PreTokenizer as _,
    SplitDelimiterBehavior, Tokenizer,
};

use super::{Conversation, Conversations, Corpus, Document, tokenizer_json};
use crate::{Error, Result, files};

/// The token after every document.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Names under which tokenizers keep their end-of-text token, in the order they are tried.
const END_NAMES: [&str; 2] = [END_OF_TEXT, "<|im_end|>"];

/// All bytes and the end of text.
const SMALLEST_VOCABULARY: usize = 257;

/// Words as Qwen cuts them; each digit stands alone, so that numbers of any length share ten tokens.
const WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Blanks in a row of which no tokenizer was seen to stumble. The engine that finds words gives up on many more, and then takes the rest of the text
/// for one word, without a sign.
const BLANKS: usize = 100_000;

/// A tokenizer and the token that ends a document.
///
/// ```
/// use serde_json::json;
/// use tinyonn::data::{Conversation, Conversations, Corpus, END_OF_TEXT, EncodedDocument, TextTokenizer, Document, sorting};
///
/// let tokenizer = TextTokenizer::train(&Corpus { tasks: vec![sorting(0, 20_000)] }, 300)?;
/// assert_eq!((tokenizer.special_id(END_OF_TEXT), tokenizer.eos()), (Some(0), 0));
/// // In a text the name of a special token is text; in a prompt it is the token.
/// assert!(tokenizer.encode(END_OF_TEXT)?.len() > 1);
/// assert_eq!(tokenizer.for_prompts().encode(END_OF_TEXT)?, [0]);
/// assert_eq!(tokenizer.encode_with_ends("sort 2 1")?, tokenizer.encode("sort 2 1")?); // it puts none at the ends
/// assert_eq!(tokenizer.encode_all(&["sort", "down"])?.len(), 2);
/// assert_eq!(tokenizer.decode_plain(&tokenizer.encode("sort")?)?, "sort");
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("tokenizer.json");
/// tokenizer.save(&path)?;
/// let read = TextTokenizer::load(&path, None)?;
/// assert_eq!(read.encode("sort 2 1")?, tokenizer.encode("sort 2 1")?);
/// assert_eq!(TextTokenizer::from_json(&std::fs::read(&path)?, &path, Some(7))?.eos(), 7);
///
/// let conversations = Conversations::new(|_| Ok(Conversation { text: "ask: 4".into(), answers: vec![5..6] }));
/// let chats = read.with_conversations(conversations);
/// let messages = json!([{ "role": "user", "content": "ask" }]);
/// let encoded: EncodedDocument = chats.encode_conversation(&messages)?;
/// assert_eq!(encoded.answers.and_then(|says| says.last().copied()), Some(true)); // what the assistant says
/// assert_eq!(chats.encode_documents("t", &[Document::new("a", "sort")])?.len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    /// The same that takes names of special tokens for these tokens, once it was needed.
    with_names: Arc<OnceLock<Tokenizer>>,
    eos: u32,
    conversations: Option<Conversations>,
}

/// The tokens of a document, without the end of text behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodedDocument {
    /// In their order.
    pub tokens: Vec<u32>,
    /// Of a conversation, for each token whether the assistant says it.
    pub answers: Option<Vec<bool>>,
}

impl TextTokenizer {
    /// Trains a byte-level BPE of at most `vocab_size` tokens on all texts of `corpus` (give it the *train* split).
    /// Id 0 is [`END_OF_TEXT`]; the vocabulary stays smaller only when the texts hold no further pair to merge.
    ///
    /// ```
    /// use tinyonn::data::{Corpus, TextTokenizer, sorting};
    /// let tokenizer = TextTokenizer::train(&Corpus { tasks: vec![sorting(0, 20_000)] }, 300)?;
    /// assert_eq!(tokenizer.vocab_size(), 300);
    /// let tokens = tokenizer.encode("sort 3 1 2 -> 1 2 3 🦀")?;
    /// assert_eq!(tokenizer.decode(&tokens)?, "sort 3 1 2 -> 1 2 3 🦀");
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// A vocabulary too small for the 256 bytes and the end of text; a document that cannot be cut into words, as of [`encode`](Self::encode).
    pub fn train(corpus: &Corpus, vocab_size: usize) -> Result<Self> {
        if vocab_size < SMALLEST_VOCABULARY {
            let problem = format!("{vocab_size} tokens do not hold the 256 bytes and the end of text");
            return Err(Error::setting("vocab_size", problem, format!("use {SMALLEST_VOCABULARY} or more")));
        }
        let failed = |error: tokenizers::Error| {
            Error::setting("vocab_size", format!("training the tokenizer failed: {error}"), "give another corpus")
        };
        let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Isolated, false);
        let bytes = ByteLevel::new(false, false, false);
        let mut tokenizer = Tokenizer::new(BPE::default());
        tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![words.map_err(failed)?.into(), bytes.into()])));
        tokenizer.with_decoder(Some(bytes));
        for task in &corpus.tasks {
            for document in &task.documents {
                if document.conversation {
                    let remedy = "give --model a folder or file that has one, or lines with a `text`";
                    let error = Error::setting("messages", "a new model has no chat template", remedy);
                    return Err(of_document(error, &task.name, document));
                }
                check_words(&tokenizer, &document.text).map_err(|e| of_document(e, &task.name, document))?;
            }
        }
        let mut trainer: TrainerWrapper = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(vocab_size)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
            .build()
            .into();
        let texts = corpus.tasks.iter().flat_map(|task| &task.documents).map(|document| document.text.as_str());
        tokenizer.train(&mut trainer, texts).map_err(failed)?;
        Self::with_end(tokenizer, None).ok_or_else(|| failed(format!("no {END_OF_TEXT}").into()))
    }

    /// Reads a Hugging Face `tokenizer.json`. Its end of text is `eos` where given (a model's `eos_token_id`), else
    /// `<|endoftext|>`, else `<|im_end|>`.
    ///
    /// # Errors
    /// A file that cannot be read or is no tokenizer; no end of text.
    pub fn load(path: impl AsRef<Path>, eos: Option<u32>) -> Result<Self> {
        let path = path.as_ref();
        if !path.exists() {
            return Err(Error::file(path, "is not there", "put the model's tokenizer.json beside its weights"));
        }
        Self::from_json(&std::fs::read(path).map_err(|source| Error::io(path, source))?, path, eos)
    }

    /// As [`TextTokenizer::load`], from the bytes of a `tokenizer.json`; `path` only names them in errors.
    ///
    /// # Errors
    /// No tokenizer; no end of text.
    pub fn from_json(json: &[u8], path: impl AsRef<Path>, eos: Option<u32>) -> Result<Self> {
        let path = path.as_ref();
        let json = files::without_mark(json);
        let unfit = |problem: String| {
            Error::file(path, format!("not a tokenizer: {problem}"), "give a Hugging Face tokenizer.json")
        };
        tokenizer_json::check(json).map_err(unfit)?;
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(|error| unfit(error.to_string()))?;
        // A file may ask for fixed lengths; rows are cut and padded by `pack`.
        tokenizer.with_padding(None);
        if tokenizer.with_truncation(None).is_err() {
            return Err(Error::file(path, "its truncation cannot be lifted", "remove `truncation` from the file"));
        }
        Self::with_end(tokenizer, eos).ok_or_else(|| {
            let problem = match eos {
                Some(id) => format!("it has no token {id} to end a document with"),
                None => format!("it has neither {} nor {}", END_NAMES[0], END_NAMES[1]),
            };
            Error::file(
                path,
                problem,
                "name the id of its end-of-text token (`eos_token_id` in the model's config.json)",
            )
        })
    }

    fn with_end(mut tokenizer: Tokenizer, eos: Option<u32>) -> Option<Self> {
        let eos = match eos {
            Some(id) => tokenizer.id_to_token(id).map(|_| id),
            None => END_NAMES.iter().find_map(|name| tokenizer.token_to_id(name)),
        }?;
        // A document that merely mentions a special token must not end there.
        tokenizer.set_encode_special_tokens(true);
        Some(Self { tokenizer, with_names: Arc::default(), eos, conversations: None })
    }

    /// The same tokenizer, of a model that writes conversations.
    #[must_use]
    pub fn with_conversations(self, conversations: Conversations) -> Self {
        Self { conversations: Some(conversations), ..self }
    }

    /// Writes the `tokenizer.json`, merges and vocabulary in the order of their ids.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let json = self.to_json().map_err(|error| {
            Error::file(
                path,
                format!("the tokenizer cannot be written: {error}"),
                "load it from another tokenizer.json",
            )
        })?;
        files::write(path, json)
    }

    fn to_json(&self) -> tokenizers::Result<String> {
        self.tokenizer.to_string(true)
    }

    /// The tokens of `text`, without any added at its ends; names of special tokens in it are ordinary text.
    ///
    /// # Errors
    /// Some hundred thousand blanks in a row, behind which the tokenizer no longer finds words.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_text(text, false)
    }

    fn encode_text(&self, text: &str, ends: bool) -> Result<Vec<u32>> {
        check_words(&self.tokenizer, text)?;
        let encoding = self.tokenizer.encode_fast(text, ends).map_err(unencoded)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The same tokenizer for prompts: names of special tokens in a text are these tokens.
    #[must_use]
    pub fn for_prompts(&self) -> Self {
        let mut own = self.clone();
        own.tokenizer.set_encode_special_tokens(false);
        own
    }

    /// The tokens of a conversation as transformers has them: those of the text that the model's template makes of it, names of special tokens being
    /// these tokens, nothing put at its ends. The assistant says a token iff any of its characters lies in what the template marks as such.
    ///
    /// # Errors
    /// A model without a template, or whose template refuses `messages`, or by which the assistant says nothing; as of [`encode`](Self::encode).
    pub fn encode_conversation(&self, messages: &serde_json::Value) -> Result<EncodedDocument> {
        let conversations = self.conversations.as_ref().ok_or_else(|| {
            let remedy = "give a model that has a chat template, or lines with a `text`";
            Error::setting("messages", "there is no chat template to make text of a conversation", remedy)
        })?;
        let Conversation { text, answers } = conversations.write(messages)?;
        check_words(&self.tokenizer, &text)?;
        let tokenizer = self.with_names.get_or_init(|| self.for_prompts().tokenizer);
        let encoding = tokenizer.encode_char_offsets(text, false).map_err(unencoded)?;
        let overlaps =
            |(from, to): (usize, usize)| answers.iter().any(|Range { start, end }| from < *end && to > *start);
        let answers: Vec<bool> = encoding.get_offsets().iter().copied().map(overlaps).collect();
        if !answers.contains(&true) {
            let remedy = "leave the conversation out, or give a template that marks what the assistant says";
            return Err(Error::setting("messages", "the assistant says nothing in this conversation", remedy));
        }
        Ok(EncodedDocument { tokens: encoding.get_ids().to_vec(), answers: Some(answers) })
    }

    /// The tokens of `text` with what the tokenizer puts at its ends, a token that begins it, say: how transformers reads a prompt.
    ///
    /// # Errors
    /// As of [`encode`](Self::encode).
    pub fn encode_with_ends(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_text(text, true)
    }

    /// The tokens of several texts, in their order, on all cores.
    pub fn encode_all(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(text)).collect()
    }

    /// For each of `texts` and each token that [`encode`](Self::encode) makes of it, the byte at which the token begins; none of one that begins within a
    /// character, part of which belongs to a token before it. On all cores.
    ///
    /// ```
    /// use tinyonn::data::{Corpus, TextTokenizer, sorting};
    /// let tokenizer = TextTokenizer::train(&Corpus { tasks: vec![sorting(0, 20_000)] }, 257)?;
    /// // Of bytes alone: the crab takes four tokens.
    /// let starts = tokenizer.token_starts(&["a🦀b"])?;
    /// assert_eq!(starts, [[Some(0), Some(1), None, None, None, Some(5)]]);
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// As of [`encode`](Self::encode).
    pub fn token_starts(&self, texts: &[&str]) -> Result<Vec<Vec<Option<usize>>>> {
        let mut tokenizer = self.tokenizer.clone();
        // It may take blanks from the places of tokens.
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        let starts = |text: &&str| {
            check_words(&tokenizer, text)?;
            let encoding = tokenizer.encode(*text, false).map_err(unencoded)?;
            let mut known = 0;
            let start = |(start, end): &(usize, usize)| {
                let begins = *start >= known && text.is_char_boundary(*start);
                known = known.max(*end);
                begins.then_some(*start)
            };
            Ok(encoding.get_offsets().iter().map(start).collect())
        };
        texts.par_iter().map(starts).collect()
    }

    /// The tokens of each of a task's documents, on all cores.
    ///
    /// # Errors
    /// As of [`encode`](Self::encode) and [`encode_conversation`](Self::encode_conversation); the error names the document.
    pub fn encode_documents(&self, task: &str, documents: &[Document]) -> Result<Vec<EncodedDocument>> {
        let encode = |document: &Document| {
            if !document.conversation {
                return Ok(EncodedDocument { tokens: self.encode(&document.text)?, answers: None });
            }
            let unread = |e: serde_json::Error| Error::setting("messages", e.to_string(), "give a list of messages");
            self.encode_conversation(&serde_json::from_str(&document.text).map_err(unread)?)
        };
        let encode = |document: &Document| encode(document).map_err(|error| of_document(error, task, document));
        documents.par_iter().map(encode).collect()
    }

    /// The text of `tokens`. Of tokens that [`TextTokenizer::encode`] made, exactly the text it was given, unless a
    /// loaded tokenizer normalises its input (Qwen's composes Unicode, NFC). Ids that only pad a model's embedding have
    /// no text.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.decode_tokens(tokens, false)
    }

    /// The text of `tokens`, special tokens left out.
    ///
    /// # Errors
    /// Tokens of another tokenizer.
    pub fn decode_plain(&self, tokens: &[u32]) -> Result<String> {
        self.decode_tokens(tokens, true)
    }

    fn decode_tokens(&self, tokens: &[u32], plain: bool) -> Result<String> {
        self.tokenizer.decode(tokens, plain).map_err(|error| {
            Error::setting(
                "tokenizer",
                format!("tokens cannot be decoded: {error}"),
                "use the tokenizer that made them",
            )
        })
    }

    /// The special token of this name.
    pub fn special_id(&self, name: &str) -> Option<u32> {
        let added = self.tokenizer.get_added_tokens_decoder();
        added.into_iter().find_map(|(id, token)| (token.special && token.content == name).then_some(id))
    }

    /// One more than the highest id: the rows that an embedding needs at least.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// The id of the token that ends a document.
    pub fn eos(&self) -> u32 {
        self.eos
    }
}

// By value, as a result gives it.
#[allow(clippy::needless_pass_by_value)]
fn unencoded(error: tokenizers::Error) -> Error {
    Error::setting("tokenizer", format!("a text cannot be encoded: {error}"), "use a byte-level tokenizer")
}

/// Refuses a text that `tokenizer` cannot cut into words to its end.
fn check_words(tokenizer: &Tokenizer, text: &str) -> Result<()> {
    let (Some(words), Some((at, blanks))) = (tokenizer.get_pre_tokenizer(), longest_blank(text)) else {
        return Ok(());
    };
    let mut cut = PreTokenizedString::from(text);
    let failed = |e: tokenizers::Error| Error::setting("tokenizer", e.to_string(), "use another tokenizer");
    words.pre_tokenize(&mut cut).map_err(failed)?;
    let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
    let last = splits.last().and_then(|(_, (start, end), _)| text.get(*start..*end)).unwrap_or_default();
    // What is left when it has given up: the blanks, and all that follows them.
    if longest_blank(last).is_none() {
        return Ok(());
    }
    let problem = format!("behind {blanks} blanks in a row at byte {at} a text can no longer be cut into words");
    Err(Error::setting("tokenizer", problem, format!("shorten them to {BLANKS} or fewer, or leave the text out")))
}

/// Where the longest row of more than [`BLANKS`] blanks with something behind it begins, and how many they are.
fn longest_blank(text: &str) -> Option<(usize, usize)> {
    if text.len() <= BLANKS {
        return None;
    }
    let rows = text.trim_end().split(|c: char| !c.is_whitespace()).filter(|row| row.len() > BLANKS);
    let longest = rows.max_by_key(|row| row.len())?;
    Some((longest.as_ptr().addr() - text.as_ptr().addr(), longest.chars().count()))
}

/// What is wrong with a text, said of the document that it is.
fn of_document(error: Error, task: &str, document: &Document) -> Error {
    match error {
        Error::Setting { name, problem, remedy } => {
            Error::Setting { name, problem: format!("document `{task}/{}`: {problem}", document.id), remedy }
        }
        Error::File { path, problem, remedy } => {
            Error::File { path, problem: format!("document `{task}/{}`: {problem}", document.id), remedy }
        }
        other => other,
    }
}
