//! Tokenizers and ids that do not go with the model.

use std::fs;

use rstest::rstest;
use serde_json::{Value, json};

use super::{PHASE2, Place, SCAN, UPCYCLE, VERIFY, assert_done, assert_refused};

/// Wherever a tokenizer or ids meet a model: whether the text at hand holds those tokens or not.
#[rstest]
#[case::of_a_scan(SCAN, "--model dense --data a=a.txt --data b=b.txt --out out", &["dense/tokenizer.json", "281 entries for a vocabulary of 280"])]
#[case::of_a_scan_of_experts(SCAN, "--model sparse --data a=a.txt --data b=b.txt --out out", &["sparse/tokenizer.json", "281 entries for a vocabulary of 280"])]
#[case::of_a_run(PHASE2, "--model dense --data a=a.txt --data b=b.txt --out out", &["dense/tokenizer.json", "281 entries for a vocabulary of 280"])]
#[case::of_a_plan(PHASE2, "--model dense --data a=a.txt --data b=b.txt --out out --dry-run", &["dense/tokenizer.json", "281 entries"])]
#[case::of_a_dump(SCAN, "--model dense --tokens ids.json --dump image", &["id 280 is beyond the vocabulary of 280"])]
#[case::of_a_dump_of_long_rows(SCAN, "--model dense --tokens long.json --dump image", &["65 tokens are longer than the 64"])]
#[case::of_a_comparison(VERIFY, "dense dense --tokens ids.json", &["id 280 is beyond the vocabulary of 280"])]
fn tokens_that_the_model_does_not_know(#[case] program: &str, #[case] arguments: &str, #[case] words: &[&str]) {
    let place = Place::new();
    assert_done(&place.run(UPCYCLE, "--model dense --variant TinyOnn --out sparse"));
    for model in ["dense", "sparse"] {
        let path = place.path(model).join("tokenizer.json");
        let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let mut added = tokenizer["added_tokens"][0].clone();
        (added["id"], added["content"]) = (json!(280), json!("<|nowhere|>"));
        tokenizer["added_tokens"].as_array_mut().unwrap().push(added);
        fs::write(path, tokenizer.to_string()).unwrap();
    }
    fs::write(place.path("ids.json"), "[[1, 280, 3]]").unwrap();
    fs::write(place.path("long.json"), json!([vec![1; 65]]).to_string()).unwrap();
    let before = place.files();
    assert_refused(&place.run(program, arguments), words);
    assert_eq!(place.files(), before);
}
