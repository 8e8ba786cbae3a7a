//! SentencePiece's BPE, `llama` in GGUF, as Llama 2 and Mistral have it. The file lists pieces and scores and no merges: those that
//! the pieces imply are found, best score first, as transformers does when it converts such a tokenizer.
//!
//! Blanks become `▁`, one more is put before the text, and characters of no piece fall back to bytes. As in the tokenizer.json of Llama 2
//! and in llama.cpp, a `▁` is also put after a special token; SentencePiece itself puts none there.

use serde_json::{Value, json};

use super::fault::{Fault, damaged};
use super::metadata::Metadata;
use super::tokenizer_json::{Bpe, Parts};
use super::vocabulary::{OTHER_TOKENIZER, TokenType, Vocabulary};

/// Where a file does not say: as in Llama 2.
const UNKNOWN: u32 = 0;
const BEGIN: u32 = 1;
const END: u32 = 2;

/// Merges may take so many times the memory of the pieces. Those of Llama 2 take six; a forged list of `a`, `aa`, `aaa`, .. would
/// imply merges without end.
const MOST_MERGES: usize = 10;
/// What a merge costs beside its letters, and a piece.
const MERGE_BYTES: usize = 64;
const PIECE_BYTES: usize = 16;

/// Fills in the tasks that a file leaves out.
pub(super) fn complete(vocabulary: &mut Vocabulary<'_>) {
    let has = |id: u32, kind| vocabulary.kind(id) == Some(kind);
    let (unknown, begin, end) =
        (has(UNKNOWN, TokenType::Unknown), has(BEGIN, TokenType::Control), has(END, TokenType::Control));
    let tasks = &mut vocabulary.tasks;
    tasks.unknown = tasks.unknown.or(unknown.then_some(UNKNOWN));
    tasks.begin = tasks.begin.or(begin.then_some(BEGIN));
    tasks.end = tasks.end.or(end.then_some(END));
}

/// The tokenizer's parts.
pub(super) fn parts<'a>(metadata: &Metadata, bytes: &'a [u8], vocabulary: &Vocabulary<'a>) -> Result<Parts<'a>, Fault> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let list = metadata.list(SCORES)?.ok_or_else(|| damaged(format!("has no key `{SCORES}`")))?;
    if list.len() != vocabulary.len() {
        return Err(damaged(format!("`{SCORES}` has {} entries for {} tokens", list.len(), vocabulary.len())));
    }
    let merges = implied_merges(vocabulary, &list.numbers(bytes, SCORES)?)?;
    let leading_blank = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let blanks = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    let normalizers = if leading_blank {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        vec![json!({ "type": "Prepend", "prepend": "▁" }), blanks]
    } else {
        vec![blanks]
    };
    let unknown = vocabulary.tasks.unknown.and_then(|id| vocabulary.text(id));
    Ok(Parts {
        normalizer: json!({ "type": "Sequence", "normalizers": normalizers }),
        pre_tokenizer: Value::Null,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        bpe: Bpe { unknown, byte_fallback: true, fuse_unknown: true, whole_words: false, merges },
        begins: true,
    })
}

/// A merge, and what decides its place.
struct Merge<'a> {
    pair: [&'a str; 2],
    score: f64,
    letters: [usize; 2],
}

/// Every pair of pieces that make a piece: best score first, longer parts first among equals.
fn implied_merges<'a>(vocabulary: &Vocabulary<'a>, scores: &[f64]) -> Result<Vec<[&'a str; 2]>, Fault> {
    let is_text = |id: u32| matches!(vocabulary.kind(id), Some(TokenType::Normal | TokenType::UserDefined));
    let piece = |text: &str| vocabulary.id(text).filter(|id| is_text(*id));
    let pieces: usize = vocabulary.used().map(|(_, token, _)| token.len() + PIECE_BYTES).sum();
    let mut room = pieces * MOST_MERGES;
    let mut merges: Vec<Merge<'a>> = Vec::new();
    for (id, token, _) in vocabulary.used().filter(|(id, _, _)| is_text(*id)) {
        let score = scores.get(id as usize).copied().unwrap_or_default();
        let mut ways: Vec<([u32; 2], Merge<'a>)> = Vec::new();
        for (letters, (cut, _)) in token.char_indices().enumerate().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(a), Some(b)) = (piece(left), piece(right)) {
                room = room.checked_sub(token.len() + MERGE_BYTES).ok_or_else(|| {
                    Fault::new("its vocabulary implies more merges than a model's does", OTHER_TOKENIZER)
                })?;
                let letters = [letters, right.chars().count()];
                ways.push(([a, b], Merge { pair: [left, right], score, letters }));
            }
        }
        ways.sort_by_key(|(ids, _)| *ids);
        merges.extend(ways.into_iter().map(|(_, merge)| merge));
    }
    // Stable, as the order of ids decides among equals.
    merges.sort_by(|a, b| b.score.total_cmp(&a.score).then(b.letters.cmp(&a.letters)));
    Ok(merges.into_iter().map(|merge| merge.pair).collect())
}
