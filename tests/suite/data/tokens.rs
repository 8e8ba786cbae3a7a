//! The tokenizer: exact round trips, equal bytes from equal text, and end-of-text tokens that are never made by text.

use proptest::prelude::*;
use rand::Rng as _;
use rstest::rstest;
use tinyonn::data::{Corpus, END_OF_TEXT, TextTokenizer, TokenSet, arithmetic, records, sorting};

use super::corpus;

fn trained(vocab_size: usize) -> TextTokenizer {
    TextTokenizer::train(
        &Corpus { tasks: vec![arithmetic(0, 30_000), sorting(0, 30_000), records(0, 30_000)] },
        vocab_size,
    )
    .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn any_text_comes_back_exactly(text in "(\\PC|[ \t\r\n]|\u{301}|e|<\\|endoftext\\|>){0,80}") {
        thread_local!(static TOKENIZER: TextTokenizer = trained(400));
        TOKENIZER.with(|tokenizer| {
            let tokens = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
            prop_assert!(!tokens.contains(&tokenizer.eos()));
            prop_assert!(tokens.iter().all(|token| (*token as usize) < tokenizer.vocab_size()));
            Ok(())
        })?;
    }
}

#[rstest]
fn the_vocabulary_has_the_size_asked_for(#[values(257, 300, 700)] vocab_size: usize) {
    let tokenizer = trained(vocab_size);
    assert_eq!(tokenizer.vocab_size(), vocab_size);
    assert_eq!(tokenizer.decode(&[tokenizer.eos()]).unwrap(), END_OF_TEXT);
}

#[test]
fn training_again_writes_the_same_file_and_loading_it_encodes_alike() {
    let root = tempfile::tempdir().unwrap();
    let paths = [root.path().join("a.json"), root.path().join("b.json")];
    // Every training draws new hash seeds, so an order that leaked from a map would differ.
    for path in &paths {
        trained(700).save(path).unwrap();
    }
    let first = std::fs::read(&paths[0]).unwrap();
    for _ in 0..4 {
        trained(700).save(&paths[1]).unwrap();
        assert!(first == std::fs::read(&paths[1]).unwrap());
    }
    let (made, loaded) = (trained(700), TextTokenizer::load(&paths[0], None).unwrap());
    let text = "sort 5 3 9 -> 3 5 9\n{\"id\":4} <|endoftext|> naïve";
    assert_eq!(made.encode(text).unwrap(), loaded.encode(text).unwrap());
    assert_eq!((made.eos(), made.vocab_size()), (loaded.eos(), loaded.vocab_size()));
    loaded.save(&paths[1]).unwrap();
    assert!(first == std::fs::read(&paths[1]).unwrap());
}

#[test]
fn every_digit_is_a_token() {
    let tokenizer = trained(1000);
    assert_eq!(tokenizer.encode("90417").unwrap().len(), 5);
}

#[test]
fn the_vocabulary_ends_where_no_pair_is_left() {
    let tokenizer = TextTokenizer::train(&corpus("t", &[("a", "ab"), ("b", "abc")]), 1000).unwrap();
    assert_eq!(tokenizer.vocab_size(), 256 + 1 + 2);
    assert_eq!(tokenizer.encode("abc").unwrap().len(), 1);
}

/// One and a half megabytes of many different words, the size of the default corpus.
#[test]
fn a_vocabulary_of_two_thousand_is_trained_on_more_than_a_megabyte() {
    let mut rng = tinyonn::random::stream(0, "words");
    let mut word = || (0..rng.random_range(2..9)).map(|_| rng.random_range('a'..='z')).collect::<String>();
    let words: Vec<String> = (0..40_000).map(|_| word()).collect();
    let text: Vec<&str> = words.iter().cycle().take(240_000).map(String::as_str).collect();
    let text = text.join(" ");
    assert!(text.len() > 1_400_000, "{}", text.len());
    assert_eq!(TextTokenizer::train(&corpus("t", &[("a", &text)]), 2048).unwrap().vocab_size(), 2048);
}

#[test]
fn too_small_a_vocabulary_is_refused() {
    let message = TextTokenizer::train(&corpus("t", &[("a", "x")]), 256).unwrap_err().to_string();
    assert!(message.contains("`vocab_size`") && message.contains("use 257 or more"), "{message}");
}

#[rstest]
#[case::broken("{", None, "not a tokenizer")]
#[case::broken_behind(r#"{"model":{"type":"BPE","vocab":{"a":0},"merges":[]},"decoder":x}"#, None, "not a tokenizer")]
#[case::endless_number(r#"{"decoder":{"type":1e999},"model":{}}"#, None, "not a tokenizer")]
#[case::an_unknown_token(r#"{"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}}],"pair":[],"special_tokens":{}},"model":{}}"#, None, "\"<s>\"")]
#[case::a_second_text(r#"{"post_processor":{"type":"TemplateProcessing","single":[{"Sequence":{"id":"B","type_id":0}}],"pair":[],"special_tokens":{}},"model":{}}"#, None, "a second one")]
#[case::ends(
    r#"{"decoder":{"type":"Sequence","decoders":[{"type":"Strip","content":" ","start":0,"stop":1}]},"model":{}}"#,
    None,
    "`stop` = 1"
)]
#[case::of_suffixes(r#"{"decoder":{"type":"BPEDecoder","suffix":"</w>"},"model":{}}"#, None, "`BPEDecoder`")]
#[case::a_table(
    r#"{"normalizer":{"type":"Sequence","normalizers":[{"type":"Precompiled","precompiled_charsmap":"AAAA"}]}}"#,
    None,
    "`Precompiled`"
)]
#[case::no_end(r#"{"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#, None, "eos_token_id")]
#[case::no_such_id(r#"{"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#, Some(9), "no token 9")]
fn an_unusable_tokenizer_file_is_named(#[case] json: &str, #[case] eos: Option<u32>, #[case] problem: &str) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("tokenizer.json");
    let missing = TextTokenizer::load(&path, eos).unwrap_err().to_string();
    assert!(missing.starts_with(&path.display().to_string()), "{missing}");
    std::fs::write(&path, json).unwrap();
    let message = TextTokenizer::load(&path, eos).unwrap_err().to_string();
    assert!(message.starts_with(&path.display().to_string()) && message.contains(problem), "{message}");
}

/// A file as models ship it: other end names, padding and truncation switched on.
#[rstest]
#[case::given(Some(0), 0)]
#[case::chat_end(None, 1)]
fn any_tokenizer_file_loads(#[case] eos: Option<u32>, #[case] expected: u32) {
    let json = r#"{"truncation":{"direction":"Right","max_length":2,"strategy":"LongestFirst","stride":0},
        "added_tokens":[{"id":1,"content":"<|im_end|>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
        "model":{"type":"BPE","vocab":{"a":0,"<|im_end|>":1},"merges":[]}}"#;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("tokenizer.json");
    std::fs::write(&path, json).unwrap();
    let tokenizer = TextTokenizer::load(&path, eos).unwrap();
    assert_eq!(tokenizer.eos(), expected);
    assert_eq!(tokenizer.encode("aaaaa").unwrap(), [0; 5]);
}

#[test]
fn a_token_set_is_every_document_and_its_end() {
    let corpus = corpus("t", &[("a", "one two"), ("b", "<|endoftext|>"), ("c", "three")]);
    let tokenizer = TextTokenizer::train(&corpus, 260).unwrap();
    let set = TokenSet::encode(&corpus, &tokenizer).unwrap();
    assert_eq!(set.documents, ["t/a", "t/b", "t/c"]);
    assert_eq!(set.tokens(), set.tasks[0].tokens.len());
    for (index, document) in corpus.tasks[0].documents.iter().enumerate() {
        let owned = |position: &usize| set.tasks[0].documents[*position] == index as u32;
        let tokens: Vec<u32> = (0..set.tokens()).filter(owned).map(|position| set.tasks[0].tokens[position]).collect();
        let (last, text) = tokens.split_last().unwrap();
        assert_eq!(*last, tokenizer.eos());
        assert_eq!(tokenizer.decode(text).unwrap(), document.text);
    }
}
