//! Token ids equal to the tokenizer's that a model was trained with, and the files that are written beside the weights.

use rstest::rstest;
use serde_json::{Value, json};
use tinyonn::checkpoint::GgufFile;
use tinyonn::data::TextTokenizer;

use super::fixture;
use super::forge::{self, Forge, numbers, u32};
use crate::models::message;

/// The texts that a reference has, and the ids of each.
fn reference(name: &str) -> Vec<(String, Vec<u32>)> {
    let read = std::fs::read_to_string(fixture(&format!("{name}.json"))).unwrap();
    let read: Value = serde_json::from_str(&read).unwrap();
    let ids = |text: &Value| serde_json::from_str(text.as_str().unwrap()).unwrap();
    let [texts, encoded] = ["texts", "ids"].map(|key| read[key].as_array().unwrap());
    texts.iter().map(|text| text.as_str().unwrap().to_owned()).zip(encoded.iter().map(ids)).collect()
}

#[rstest]
#[case::smollm("llama_k.gguf", "llama_k")]
#[case::sentence_piece("llama_blocks.gguf", "llama_blocks")]
#[case::qwen2("qwen2_f16.gguf", "qwen2_f16")]
#[case::gpt2("qwen3_bf16.gguf", "qwen3_bf16")]
#[case::llama_bpe("llama3_split-00001-of-00003.gguf", "llama3_split")]
#[case::tekken("mistral_linear.gguf", "mistral_linear")]
fn ids_are_the_tokenizers_own(#[case] file: &str, #[case] name: &str) {
    let model = GgufFile::open(fixture(file)).unwrap();
    let mut tokenizer = model.tokenizer().unwrap();
    tokenizer.set_encode_special_tokens(true);
    for (text, expected) in reference(name) {
        let encoding = tokenizer.encode_fast(text.as_str(), false).unwrap();
        assert_eq!(encoding.get_ids(), expected, "{text:?}");
        // Composing accents is the one change that a tokenizer makes.
        if name != "qwen2_f16" {
            assert_eq!(tokenizer.decode(&expected, false).unwrap(), text);
        }
    }
}

#[rstest]
#[case::byte_level("llama_k.gguf", json!([1]), json!({ "bos_token": "<|start|>", "eos_token": "<|end|>", "pad_token": "<|end|>" }), false)]
#[case::sentence_piece("llama_blocks.gguf", json!([2]), json!({ "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>" }), true)]
fn the_tokenizers_files_hold_marks_and_template(
    #[case] file: &str,
    #[case] ends: Value,
    #[case] marks: Value,
    #[case] begins: bool,
) {
    let model = GgufFile::open(fixture(file)).unwrap();
    let files = model.tokenizer_files().unwrap();
    let json = |name: &str| {
        let (_, text) = files.iter().find(|(own, _)| *own == name).unwrap();
        serde_json::from_str::<Value>(text).unwrap()
    };
    assert_eq!(json("generation_config.json")["eos_token_id"], ends);
    assert_eq!(json("special_tokens_map.json"), marks);
    let config = json("tokenizer_config.json");
    for (mark, token) in marks.as_object().unwrap() {
        assert_eq!(config[mark], *token);
    }
    assert_eq!(config["add_bos_token"], begins);
    assert!(config["chat_template"].as_str().unwrap().contains("<|end|>"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, &files[0].1).unwrap();
    let eos = ends[0].as_u64().unwrap() as u32;
    let read = TextTokenizer::load(&path, Some(eos)).unwrap();
    assert_eq!(read.eos(), eos);
    assert_eq!(read.decode(&read.encode("The cat's 12").unwrap()).unwrap(), "The cat's 12");
    // With marks, where a caller asks for them.
    let tokenizer = model.tokenizer().unwrap();
    let marked = tokenizer.encode_fast("cat", true).unwrap();
    let plain = tokenizer.encode_fast("cat", false).unwrap();
    assert_eq!(marked.get_ids().len() - plain.get_ids().len(), usize::from(begins));
}

#[test]
fn several_templates_are_kept_by_their_names() {
    let mut forge = Forge::with_tokens("gpt2", "gpt-2", &["a", "b"], &[]);
    forge.set("tokenizer.chat_template", forge::text("one"));
    forge.set("tokenizer.chat_templates", forge::texts(&["tools", "rag"]));
    forge.set("tokenizer.chat_template.tools", forge::text("two"));
    let files = forge.open().unwrap().tokenizer_files().unwrap();
    let config: Value = serde_json::from_str(&files[1].1).unwrap();
    let expected = json!([{ "name": "default", "template": "one" }, { "name": "tools", "template": "two" }]);
    assert_eq!(config["chat_template"], expected);
}

#[test]
fn every_end_of_an_answer_is_kept() {
    let mut forge = Forge::with_tokens("gpt2", "gpt-2", &["a", "<end>", "<turn>"], &[]);
    forge.set("tokenizer.ggml.eos_token_id", u32(1));
    forge.set("tokenizer.ggml.eot_token_id", u32(2));
    forge.set("tokenizer.ggml.eom_token_id", u32(1));
    let files = forge.open().unwrap().tokenizer_files().unwrap();
    let config: Value = serde_json::from_str(&files[3].1).unwrap();
    assert_eq!(config, json!({ "eos_token_id": [1, 2] }));
}

type Change = fn(&mut Forge);

#[rstest]
#[case::word_piece(|f: &mut Forge| f.set("tokenizer.ggml.model", forge::text("bert")), "has the tokenizer \"bert\", which is not read")]
#[case::unigram(|f: &mut Forge| f.set("tokenizer.ggml.model", forge::text("t5")), "has the tokenizer \"t5\"")]
#[case::other_words(|f: &mut Forge| f.set("tokenizer.ggml.pre", forge::text("falcon")), "has the pre-tokenizer \"falcon\", which is not read")]
#[case::words_not_said(|f: &mut Forge| f.remove("tokenizer.ggml.pre"), "has no key `tokenizer.ggml.pre`")]
#[case::no_tokens(|f: &mut Forge| f.remove("tokenizer.ggml.tokens"), "has no key `tokenizer.ggml.tokens`")]
#[case::no_merges(|f: &mut Forge| f.remove("tokenizer.ggml.merges"), "has no key `tokenizer.ggml.merges`")]
#[case::no_scores(|f: &mut Forge| f.set("tokenizer.ggml.model", forge::text("llama")), "has no key `tokenizer.ggml.scores`")]
#[case::a_token_twice(|f: &mut Forge| f.set("tokenizer.ggml.tokens", forge::texts(&["a", "a"])), "the tokens 0 and 1 are both \"a\"")]
#[case::an_empty_token(|f: &mut Forge| f.set("tokenizer.ggml.tokens", forge::texts(&["a", "b", "ab", ""])), "token 3 is empty")]
#[case::a_merge_of_others(|f: &mut Forge| f.set("tokenizer.ggml.merges", forge::texts(&["a x"])), "merge 0, \"a x\", is no pair of its tokens")]
#[case::a_merge_of_one(|f: &mut Forge| f.set("tokenizer.ggml.merges", forge::texts(&["ab"])), "merge 0, \"ab\", is no pair")]
#[case::a_merge_into_nothing(|f: &mut Forge| f.set("tokenizer.ggml.merges", forge::texts(&["b a"])), "its tokenizer cannot be built")]
#[case::tokens_are_numbers(|f: &mut Forge| f.set("tokenizer.ggml.tokens", numbers(4, &[[0; 4]])), "is no list of texts")]
#[case::an_unknown_type(|f: &mut Forge| f.set("tokenizer.ggml.token_type", numbers(5, &[[9, 0, 0, 0]; 3])), "says 9 of token 0")]
#[case::too_few_types(|f: &mut Forge| f.set("tokenizer.ggml.token_type", numbers(5, &[[1, 0, 0, 0]])), "has 1 entries for 3 tokens")]
#[case::an_end_beyond(|f: &mut Forge| f.set("tokenizer.ggml.eos_token_id", u32(3)), "`tokenizer.ggml.eos_token_id` is 3, it has 3 tokens")]
fn a_tokenizer_that_cannot_be_built_is_refused(#[case] change: Change, #[case] problem: &str) {
    let mut forge = Forge::with_tokens("gpt2", "qwen2", &["a", "b", "ab"], &["a b"]);
    change(&mut forge);
    // The weights are sound: the file opens.
    let model = forge.open().unwrap();
    let error = message(model.tokenizer_files());
    assert!(error.contains(problem) && error.contains("model.gguf: ") && !error.contains('\n'), "{error}");
}

#[test]
fn pieces_that_imply_merges_without_end_are_refused() {
    let tokens: Vec<String> = (1..400).map(|length| "a".repeat(length)).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let mut forge = Forge::with_tokens("llama", "default", &tokens, &[]);
    forge.set("tokenizer.ggml.scores", numbers(6, &vec![0f32.to_le_bytes(); tokens.len()]));
    let error = message(forge.open().unwrap().tokenizer());
    assert!(error.contains("implies more merges than a model's does"), "{error}");
}
