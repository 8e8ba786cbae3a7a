//! Byte-level BPE, `gpt2` in GGUF: the merges are listed, and how words are cut before is known by a name only.
//!
//! The regular expressions are those that the models' own tokenizer.json have. A name that is not listed here is refused: another
//! model's words would give tokens that the model was never trained on, and nothing would say so.

use serde_json::{Value, json};

use super::fault::{Fault, damaged};
use super::metadata::Metadata;
use super::tokenizer_json::{Bpe, Parts};
use super::vocabulary::{OTHER_TOKENIZER, Vocabulary};

/// How words are cut.
enum Words {
    /// As GPT-2 does.
    Gpt2,
    /// As GPT-2 does, every digit by itself.
    Gpt2AndDigits,
    /// By a regular expression.
    Regex(&'static str),
}

/// What a name of a pre-tokenizer stands for.
struct PreTokenizer {
    words: Words,
    /// Whether a word that is a token needs no merges to become it.
    whole_words: bool,
    /// Whether text is composed (NFC) first.
    composes: bool,
    /// Whether the beginning is marked where the file does not say.
    begins: bool,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

impl PreTokenizer {
    fn named(name: &str) -> Option<Self> {
        let plain = |words| Self { words, whole_words: false, composes: false, begins: false };
        Some(match name {
            "default" | "gpt-2" => plain(Words::Gpt2),
            "smollm" | "starcoder" => plain(Words::Gpt2AndDigits),
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "pixtral" => {
                Self { whole_words: true, begins: true, ..plain(Words::Regex(LLAMA3)) }
            }
            "smaug-bpe" => plain(Words::Regex(LLAMA3)),
            "tekken" => Self { whole_words: true, begins: true, ..plain(Words::Regex(TEKKEN)) },
            "qwen2" => Self { composes: true, ..plain(Words::Regex(QWEN2)) },
            "deepseek-r1-qwen" => Self { begins: true, ..plain(Words::Regex(QWEN2)) },
            _ => return None,
        })
    }

    fn json(&self) -> Value {
        let bytes = |gpt2: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": gpt2 });
        let first = match self.words {
            Words::Gpt2 => return bytes(true),
            Words::Gpt2AndDigits => json!({ "type": "Digits", "individual_digits": true }),
            Words::Regex(regex) => {
                json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false })
            }
        };
        let second = bytes(matches!(self.words, Words::Gpt2AndDigits));
        json!({ "type": "Sequence", "pretokenizers": [first, second] })
    }
}

/// The tokenizer's parts.
pub(super) fn parts<'a>(metadata: &Metadata, bytes: &'a [u8], vocabulary: &Vocabulary<'a>) -> Result<Parts<'a>, Fault> {
    const PRE: &str = "tokenizer.ggml.pre";
    const MERGES: &str = "tokenizer.ggml.merges";
    let Some(name) = metadata.text(PRE)? else {
        let remedy = "convert the model again with a current llama.cpp, which names its pre-tokenizer";
        return Err(Fault::new(format!("has no key `{PRE}`: how words are cut is not known"), remedy));
    };
    let pre = PreTokenizer::named(name)
        .ok_or_else(|| Fault::new(format!("has the pre-tokenizer {name:?}, which is not read"), OTHER_TOKENIZER))?;
    let list = metadata.list(MERGES)?.ok_or_else(|| damaged(format!("has no key `{MERGES}`")))?;
    let mut merges = Vec::with_capacity(list.len());
    for (i, merge) in list.texts(bytes, MERGES)?.into_iter().enumerate() {
        let pair =
            merge.split_once(' ').filter(|(left, right)| vocabulary.id(left).and(vocabulary.id(right)).is_some());
        let (left, right) = pair.ok_or_else(|| damaged(format!("merge {i}, {merge:?}, is no pair of its tokens")))?;
        merges.push([left, right]);
    }
    Ok(Parts {
        normalizer: if pre.composes { json!({ "type": "NFC" }) } else { Value::Null },
        pre_tokenizer: pre.json(),
        decoder: json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
        bpe: Bpe { unknown: None, byte_fallback: false, fuse_unknown: false, whole_words: pre.whole_words, merges },
        begins: pre.begins,
    })
}
