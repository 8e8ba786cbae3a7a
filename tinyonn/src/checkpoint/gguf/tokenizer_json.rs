//! The text of a `tokenizer.json`, written straight from the mapped file: a vocabulary is copied once.

use serde::Serialize;
use serde::ser::Serializer;
use serde_json::{Map, Value, json};

use super::vocabulary::{TokenType, Vocabulary};

/// What the kinds of tokenizers differ in.
pub(super) struct Parts<'a> {
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) decoder: Value,
    pub(super) bpe: Bpe<'a>,
    /// Whether the beginning is marked where the file does not say.
    pub(super) begins: bool,
}

/// The pairs that are merged, and what happens to text that no token writes.
pub(super) struct Bpe<'a> {
    pub(super) unknown: Option<&'a str>,
    pub(super) byte_fallback: bool,
    pub(super) fuse_unknown: bool,
    /// Whether a word that is a token needs no merges to become it.
    pub(super) whole_words: bool,
    pub(super) merges: Vec<[&'a str; 2]>,
}

/// Which marks are put around a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    pub(super) begin: bool,
    pub(super) end: bool,
}

#[derive(Serialize)]
struct TokenizerJson<'a> {
    version: &'static str,
    truncation: (),
    padding: (),
    added_tokens: Vec<AddedToken<'a>>,
    normalizer: &'a Value,
    pre_tokenizer: &'a Value,
    post_processor: Value,
    decoder: &'a Value,
    model: Model<'a>,
}

/// The file's own keys.
#[allow(clippy::struct_excessive_bools)]
#[derive(Serialize)]
struct AddedToken<'a> {
    id: u32,
    content: &'a str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

#[derive(Serialize)]
struct Model<'a> {
    r#type: &'static str,
    dropout: (),
    unk_token: Option<&'a str>,
    continuing_subword_prefix: (),
    end_of_word_suffix: (),
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    #[serde(serialize_with = "by_token")]
    vocab: &'a Vocabulary<'a>,
    merges: &'a [[&'a str; 2]],
}

fn by_token<S: Serializer>(vocabulary: &Vocabulary<'_>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(vocabulary.used().map(|(id, token, _)| (token, id)))
}

/// The text of the file.
pub(super) fn text(vocabulary: &Vocabulary<'_>, parts: &Parts<'_>, marks: Marks) -> serde_json::Result<String> {
    let added = |(id, content, kind)| {
        let special = match kind {
            TokenType::Control | TokenType::Unknown => true,
            TokenType::UserDefined => false,
            TokenType::Normal | TokenType::Unused | TokenType::Byte => return None,
        };
        Some(AddedToken { id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special })
    };
    let bpe = &parts.bpe;
    serde_json::to_string(&TokenizerJson {
        version: "1.0",
        truncation: (),
        padding: (),
        added_tokens: vocabulary.used().filter_map(added).collect(),
        normalizer: &parts.normalizer,
        pre_tokenizer: &parts.pre_tokenizer,
        post_processor: template(vocabulary, marks),
        decoder: &parts.decoder,
        model: Model {
            r#type: "BPE",
            dropout: (),
            unk_token: bpe.unknown,
            continuing_subword_prefix: (),
            end_of_word_suffix: (),
            fuse_unk: bpe.fuse_unknown,
            byte_fallback: bpe.byte_fallback,
            ignore_merges: bpe.whole_words,
            vocab: vocabulary,
            merges: &bpe.merges,
        },
    })
}

/// The marks around one text, and around each of two.
fn template(vocabulary: &Vocabulary<'_>, marks: Marks) -> Value {
    let mark = |wanted: bool, id: Option<u32>| {
        let id = id.filter(|_| wanted)?;
        Some((id, vocabulary.text(id)?))
    };
    let begin = mark(marks.begin, vocabulary.tasks.begin);
    let end = mark(marks.end, vocabulary.tasks.end);
    if begin.is_none() && end.is_none() {
        return Value::Null;
    }
    let around = |text: &str, number: usize| {
        let special = |mark: Option<(u32, &str)>| {
            mark.map(|(_, token)| json!({ "SpecialToken": { "id": token, "type_id": number } }))
        };
        let text = json!({ "Sequence": { "id": text, "type_id": number } });
        special(begin).into_iter().chain([text]).chain(special(end)).collect::<Vec<Value>>()
    };
    let entry = |(id, token): (u32, &str)| (token.to_owned(), json!({ "id": token, "ids": [id], "tokens": [token] }));
    let special: Map<String, Value> = [begin, end].into_iter().flatten().map(entry).collect();
    let pair: Vec<Value> = around("A", 0).into_iter().chain(around("B", 1)).collect();
    json!({ "type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": special })
}
