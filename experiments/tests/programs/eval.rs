//! What text costs models: the figures, how they hang together, and what cannot be measured.

use std::fs;

use rstest::rstest;
use serde_json::Value;
use tinyonn::data::{Corpus, TextTokenizer, sorting};

use super::{Place, UPCYCLE, assert_done, assert_refused};

const EVAL: &str = env!("CARGO_BIN_EXE_exp_eval");

fn summary(place: &Place, arguments: &str) -> Value {
    let output = place.run(EVAL, &format!("{arguments} --out out --overwrite"));
    assert_done(&output);
    // It takes long on text of any size, and says how far it is.
    assert!(String::from_utf8_lossy(&output.stderr).contains("windows of text: done, "));
    serde_json::from_slice(&fs::read(place.path("out/summary.json")).unwrap()).unwrap()
}

/// Documents of one line each, in JSON lines, one of them twice.
fn with_lines(place: &Place) {
    let text = fs::read_to_string(place.path("a.txt")).unwrap();
    let mut lines: Vec<String> =
        text.lines().take(30).map(|line| serde_json::json!({ "text": line }).to_string()).collect();
    lines.push(lines[0].clone());
    fs::write(place.path("lines.jsonl"), lines.join("\n")).unwrap();
}

#[test]
fn models_stand_side_by_side() {
    let place = Place::new();
    with_lines(&place);
    assert_done(&place.run(UPCYCLE, "--model dense --variant TinyOnn --out sparse"));
    let found =
        summary(&place, "dense sparse --data a=lines.jsonl --data b=b.txt --document-bytes 300 --length 32 --stride 8");
    let [dense, sparse] = [0, 1].map(|at| &found["models"][at]);
    assert_eq!((dense["variant"].as_str(), sparse["variant"].as_str()), (None, Some("TinyOnn")));
    let tasks = |model: &Value| model["tasks"].as_array().unwrap().clone();
    assert_eq!(tasks(dense).len(), 2);
    for (a, b) in tasks(dense).iter().zip(tasks(sparse)) {
        // All active, the same bits.
        for key in ["nats_per_token", "perplexity", "bits_per_byte", "tokens"] {
            assert_eq!(a[key], b[key]);
        }
        assert_eq!(b["more_bits"]["mean"], 0.0);
        let nats = &a["nats_per_token"];
        assert!(nats["low"].as_f64() <= nats["mean"].as_f64() && nats["mean"].as_f64() <= nats["high"].as_f64());
        assert_eq!(a["perplexity"]["mean"].as_f64().unwrap(), nats["mean"].as_f64().unwrap().exp());
    }
    // Copies are one document of the bootstrap, and each of their tokens counts.
    assert!(tasks(dense)[0]["documents"].as_u64().unwrap() <= 30);
    let routed = summary(&place, "dense sparse --active routed --data a=lines.jsonl --length 32");
    let more = &routed["models"][1]["tasks"][0]["more_bits"];
    assert!(more["mean"].as_f64().unwrap() != 0.0 && more["low"].as_f64() < more["high"].as_f64());
    // 64 of 100 experts; those of 120 neurons have one or two.
    let share = routed["models"][1]["active_share"].as_f64().unwrap();
    assert!((share - 0.64).abs() < 0.05, "{share}");
    assert_eq!(found["corpus_sha256"].as_str().unwrap().len(), 64);
}

/// A row each, beside what cannot take another share.
#[test]
fn variants_stand_at_every_share_asked_for() {
    let place = Place::new();
    with_lines(&place);
    assert_done(&place.run(UPCYCLE, "--model dense --variant TinyOnn --out sparse"));
    let found = summary(&place, "dense sparse --active-share 0.25,0.64,1 --data a=lines.jsonl --length 32");
    let models = found["models"].as_array().unwrap();
    assert_eq!(models.len(), 4);
    assert!(models[0].get("asked_share").is_none() && models[0]["active_share"] == 1.0);
    for (model, asked) in models[1..].iter().zip([0.25, 0.64, 1.0]) {
        assert_eq!(model["asked_share"], asked);
        // Of 120 neurons experts have one or two.
        assert!((model["active_share"].as_f64().unwrap() - asked).abs() < 0.05, "{model}");
    }
    let cost = |at: usize| models[at]["tasks"][0]["nats_per_token"]["mean"].clone();
    assert_eq!(cost(3), cost(0));
    // 64 % is what it declares.
    let declared = summary(&place, "sparse --active routed --data a=lines.jsonl --length 32");
    assert_eq!(declared["models"][0]["tasks"][0]["nats_per_token"]["mean"], cost(2));
    assert_ne!(cost(1), cost(2));
    for (arguments, words) in [
        ("dense --active-share 0.5", &["`--active-share`", "no checkpoint"][..]),
        ("sparse --active-share 0", &["`--active-share`", "0 is not one"]),
        ("sparse --active-share -0.5", &["`--active-share`", "-0.5 is not one"]),
        ("sparse --active-share 0.125", &["`--active-share`", "whole percents"]),
        ("sparse --active-share 0.5 --active all", &["--active"]),
    ] {
        assert_refused(&place.run(EVAL, &format!("{arguments} --data a=lines.jsonl --out no")), words);
    }
}

/// More context never scores another token; whole documents in one window are the same whatever the stride.
#[test]
fn windows_score_every_token_once() {
    let place = Place::new();
    with_lines(&place);
    let task =
        |more: &str| summary(&place, &format!("dense --data a=lines.jsonl {more}"))["models"][0]["tasks"][0].clone();
    let whole = task("--length 64 --stride 64");
    assert_eq!(task("--length 64 --stride 1"), whole);
    let short = task("--length 4 --stride 2");
    assert_eq!(short["tokens"], whole["tokens"]);
    assert_ne!(short["nats_per_token"], whole["nats_per_token"]);
    // Random weights know nothing: about ln 280 nats a token.
    assert!((whole["nats_per_token"]["mean"].as_f64().unwrap() - 280f64.ln()).abs() < 0.5);
}

/// What a shared decision reads is scored of no model, and bits a byte are of the bytes that are scored: the same ones, whatever tokens they are.
#[test]
fn what_runs_all_active_anyway_is_left_out() {
    let place = Place::new();
    place.configure("max_position_embeddings", serde_json::json!(128));
    assert_done(&place.run(UPCYCLE, "--model dense --variant Smear --out smear"));
    fs::create_dir(place.path("bytes")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(place.path("dense").join(name), place.path("bytes").join(name)).unwrap();
    }
    let of_bytes = TextTokenizer::train(&Corpus { tasks: vec![sorting(0, 12_000)] }, 257).unwrap();
    of_bytes.save(place.path("bytes/tokenizer.json")).unwrap();
    // Two of three bytes of the first sign are a token's 64th and 65th.
    let text = format!("{}€{}", "x".repeat(62), "3 1 2 -> 1 2 3\n".repeat(40));
    fs::write(place.path("sign.txt"), &text).unwrap();

    let found = summary(&place, "smear bytes --active routed --data a=sign.txt --data b=b.txt --length 96 --stride 16");
    assert_eq!(found["windows"]["skip"], 64);
    let figure = |model: usize, task: usize, name: &str| found["models"][model]["tasks"][task][name].clone();
    for task in 0..2 {
        assert_eq!(figure(0, task, "bytes"), figure(1, task, "bytes"));
        assert_ne!(figure(0, task, "tokens"), figure(1, task, "tokens"));
        for model in 0..2 {
            let nats = figure(model, task, "nats_per_token")["mean"].as_f64().unwrap()
                * figure(model, task, "tokens").as_f64().unwrap();
            let bits = figure(model, task, "bits_per_byte")["mean"].as_f64().unwrap();
            let bytes = figure(model, task, "bytes").as_f64().unwrap();
            assert!((bits * bytes * std::f64::consts::LN_2 - nats).abs() < 1e-6 * nats);
        }
    }
    // One token a byte: those behind the sign.
    let alone = summary(&place, "smear --active routed --data a=sign.txt --length 96 --stride 16");
    let task = &alone["models"][0]["tasks"][0];
    assert!(
        task["bytes"].as_u64().unwrap() < text.len() as u64 - 64 && task["tokens"].as_u64() <= task["bytes"].as_u64()
    );
    let whole = summary(&place, "dense bytes --data a=sign.txt --length 96");
    for model in 0..2 {
        assert_eq!(whole["models"][model]["tasks"][0]["bytes"], text.len());
    }
    assert_eq!(whole["models"][1]["tasks"][0]["tokens"], text.len());
}

#[rstest]
#[case::no_model("--data a=a.txt", &["MODEL"])]
#[case::no_text("dense", &["`--data`", "NAME=PATH"])]
#[case::no_file("dense --data a=nowhere", &["nowhere"])]
#[case::too_long("dense --data a=a.txt --length 65", &["`--length`", "64"])]
#[case::gaps("dense --data a=a.txt --length 32 --stride 33", &["`--stride`", "32"])]
#[case::no_batch("dense --data a=a.txt --batch 0", &["`--batch`"])]
#[case::no_bytes("dense --data a=a.txt --document-bytes 0", &["`--document-bytes`"])]
#[case::no_such_model("dense elsewhere --data a=a.txt", &["elsewhere"])]
fn what_cannot_be_measured_is_refused(#[case] arguments: &str, #[case] words: &[&str]) {
    let place = Place::new();
    let before = place.files();
    assert_refused(&place.run(EVAL, &format!("{arguments} --out out")), words);
    assert_eq!(place.files(), before);
}
