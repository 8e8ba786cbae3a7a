//! The tokenizer of a GGUF file, and the files of a Hugging Face folder that it fills.

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::fault::{Fault, damaged};
use super::file::GgufFile;
use super::metadata::Metadata;
use super::tokenizer_json::{Marks, text};
use super::vocabulary::{OTHER_TOKENIZER, Vocabulary};
use super::{byte_level, sentence_piece};
use crate::Result;

const MODEL: &str = "tokenizer.ggml.model";
const TEMPLATE: &str = "tokenizer.chat_template";

/// The tokenizer's files: a name each, and its text.
pub type TokenizerFiles = Vec<(&'static str, String)>;

impl GgufFile {
    /// Whether the file holds a tokenizer at all.
    #[must_use]
    pub fn has_tokenizer(&self) -> bool {
        let (metadata, _) = self.metadata();
        metadata.get(MODEL).is_some_and(|model| !model.is_text("none") && !model.is_text("no_vocab"))
    }

    /// The tokenizer that the metadata describe: byte-level BPE or SentencePiece's.
    ///
    /// # Errors
    /// Names a tokenizer or a pre-tokenizer that is not read, or what is wrong with the lists.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let (json, _) = self.described().map_err(|fault| fault.of(self.path()))?;
        self.built(&json)
    }

    fn built(&self, json: &str) -> Result<Tokenizer> {
        let built = Tokenizer::from_bytes(json.as_bytes());
        built.map_err(|error| damaged(format!("its tokenizer cannot be built: {error}")).of(self.path()))
    }

    /// The text of its `tokenizer.json`.
    ///
    /// # Errors
    /// As of [`GgufFile::tokenizer`].
    pub fn tokenizer_json(&self) -> Result<String> {
        self.described().map(|(json, _)| json).map_err(|fault| fault.of(self.path()))
    }

    /// What a Hugging Face folder has beside the weights: `tokenizer.json`, `tokenizer_config.json` with the chat template,
    /// `special_tokens_map.json` and `generation_config.json` with all that ends an answer. Nothing, where the file has no tokenizer.
    ///
    /// ```
    /// use tinyonn::checkpoint::gguf::{GgufFile, TokenizerFiles};
    ///
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/gguf/llama_blocks.gguf");
    /// let file = GgufFile::open(path)?;
    /// assert!(file.has_tokenizer());
    /// let files: TokenizerFiles = file.tokenizer_files()?;
    /// let text = files.iter().find(|(name, _)| *name == "tokenizer.json").map(|(_, text)| text);
    /// assert_eq!(text, Some(&file.tokenizer_json()?));
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// As of [`GgufFile::tokenizer`].
    pub fn tokenizer_files(&self) -> Result<TokenizerFiles> {
        if !self.has_tokenizer() {
            return Ok(Vec::new());
        }
        let (json, described) = self.described().map_err(|fault| fault.of(self.path()))?;
        // No folder gets a file that cannot be read back.
        self.built(&json)?;
        let written = |value: Value| format!("{value:#}\n");
        Ok(vec![
            ("tokenizer.json", json),
            ("tokenizer_config.json", written(described.tokenizer_config)),
            ("special_tokens_map.json", written(described.special_tokens)),
            ("generation_config.json", written(described.generation_config)),
        ])
    }

    fn described(&self) -> Result<(String, Described), Fault> {
        let (metadata, bytes) = self.metadata();
        let Some(model) = metadata.text(MODEL)? else {
            return Err(Fault::new(format!("has no key `{MODEL}`"), OTHER_TOKENIZER));
        };
        let mut vocabulary = Vocabulary::read(metadata, bytes)?;
        let parts = match model {
            "gpt2" => byte_level::parts(metadata, bytes, &vocabulary)?,
            "llama" => {
                sentence_piece::complete(&mut vocabulary);
                sentence_piece::parts(metadata, bytes, &vocabulary)?
            }
            other => {
                return Err(Fault::new(format!("has the tokenizer {other:?}, which is not read"), OTHER_TOKENIZER));
            }
        };
        let begin = metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(parts.begins);
        let end = metadata.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        let marks = Marks { begin, end };
        let json = text(&vocabulary, &parts, marks).map_err(|error| damaged(format!("its tokens: {error}")))?;
        let context = self.config().get("max_position_embeddings");
        Ok((json, Described::new(metadata, bytes, &vocabulary, marks, context)?))
    }
}

/// What stands beside `tokenizer.json`.
struct Described {
    tokenizer_config: Value,
    special_tokens: Value,
    generation_config: Value,
}

impl Described {
    fn new(
        metadata: &Metadata,
        bytes: &[u8],
        vocabulary: &Vocabulary<'_>,
        marks: Marks,
        context: Option<&Value>,
    ) -> Result<Self, Fault> {
        let tasks = &vocabulary.tasks;
        let named = [
            ("bos_token", tasks.begin),
            ("eos_token", tasks.end),
            ("unk_token", tasks.unknown),
            ("pad_token", tasks.padding),
        ];
        let mut special = Map::new();
        for (task, id) in named {
            if let Some(token) = id.and_then(|id| vocabulary.text(id)) {
                special.insert(task.to_owned(), json!(token));
            }
        }
        let mut config = Map::new();
        // The class that takes tokenizer.json as it stands.
        config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
        config.extend(special.clone());
        config.insert("add_bos_token".to_owned(), json!(marks.begin));
        config.insert("add_eos_token".to_owned(), json!(marks.end));
        config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
        config.insert("model_max_length".to_owned(), context.cloned().unwrap_or_default());
        if let Some(template) = chat_template(metadata, bytes)? {
            config.insert("chat_template".to_owned(), template);
        }
        let mut ends: Vec<u32> = tasks.end.into_iter().chain(tasks.other_ends.iter().copied()).collect();
        let mut seen = Vec::new();
        ends.retain(|id| {
            !seen.contains(id) && {
                seen.push(*id);
                true
            }
        });
        let mut generation = Map::new();
        let ids = [
            ("bos_token_id", json!(tasks.begin)),
            ("eos_token_id", json!(ends)),
            ("pad_token_id", json!(tasks.padding)),
        ];
        let stated = |(_, id): &(&str, Value)| !id.is_null() && *id != json!([]);
        generation.extend(ids.into_iter().filter(stated).map(|(key, id)| (key.to_owned(), id)));
        Ok(Self {
            tokenizer_config: Value::Object(config),
            special_tokens: Value::Object(special),
            generation_config: Value::Object(generation),
        })
    }
}

/// The template of a conversation; where a file has several, a list of names and templates, as transformers keeps them.
fn chat_template(metadata: &Metadata, bytes: &[u8]) -> Result<Option<Value>, Fault> {
    const NAMES: &str = "tokenizer.chat_templates";
    let default = metadata.text(TEMPLATE)?;
    let names = metadata.list(NAMES)?.map(|list| list.texts(bytes, NAMES)).transpose()?.unwrap_or_default();
    let mut templates: Vec<Value> = default.iter().map(|text| json!({ "name": "default", "template": text })).collect();
    for name in names {
        if let Some(text) = metadata.text(&format!("{TEMPLATE}.{name}"))? {
            templates.push(json!({ "name": name, "template": text }));
        }
    }
    Ok(match (default, templates.len()) {
        (_, 0) => None,
        (Some(only), 1) => Some(json!(only)),
        _ => Some(Value::Array(templates)),
    })
}
