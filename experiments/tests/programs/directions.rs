//! The main directions of keys, fitted beside a checkpoint, and attention to some pairs in the programs that read it.

use std::fs;

use rstest::rstest;
use serde_json::{Value, json};

use super::{EXPORT, Place, UPCYCLE, assert_done, assert_refused};

const DIRECTIONS: &str = env!("CARGO_BIN_EXE_exp_directions");
const GENERATE: &str = env!("CARGO_BIN_EXE_exp_generate");
const EVAL: &str = env!("CARGO_BIN_EXE_exp_eval");
const SPARSIFY: &str = env!("CARGO_BIN_EXE_exp_sparsify");

/// A quarter of the pairs, by the directions of keys; of components.
const BY_DIRECTIONS: &str = "--attention pairs(keep=0.25,index=directions(4),near=2,first=1)";
const BY_COMPONENTS: &str = "--attention pairs(keep=0.25,index=components(4),near=2,first=1)";
const TEXT: &str = "--data a=a.txt --data b=b.txt";

fn written(place: &Place, arguments: &str) -> Value {
    let output = place.run(GENERATE, &format!("{arguments} --prompt sort --max-tokens 20 --json"));
    assert_done(&output);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn directions_are_fitted_beside_a_checkpoint_and_read_from_there() {
    let place = Place::new();
    let asked = format!("dense --prompt sort {BY_DIRECTIONS}");
    assert_refused(&place.run(GENERATE, &asked), &["key_directions.safetensors", "is missing", "exp_directions"]);
    let fit = format!("dense {TEXT} --tokens 400 --length 32");
    assert_done(&place.run(DIRECTIONS, &fit));
    assert!(place.path("dense/key_directions.safetensors").is_file());
    assert_refused(&place.run(DIRECTIONS, &fit), &["key_directions.safetensors", "--overwrite"]);
    assert_done(&place.run(DIRECTIONS, &format!("{fit} --overwrite")));
    let sparse = written(&place, &format!("dense {BY_DIRECTIONS}"));
    assert_eq!(sparse["tokens"].as_array().unwrap().len(), 20);

    // Keys that are twice as long are another model's.
    place.change("model.layers.1.self_attn.k_proj.weight", |weight| Some((weight * 2.0).unwrap()));
    assert_done(&place.run(DIRECTIONS, &fit));
    fs::create_dir(place.path("other")).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json", "key_directions.safetensors"] {
        fs::copy(place.path("dense").join(file), place.path("other").join(file)).unwrap();
    }
    place.change("model.layers.1.self_attn.k_proj.weight", |weight| Some((weight * 2.0).unwrap()));
    fs::copy(place.path("dense/model.safetensors"), place.path("other/model.safetensors")).unwrap();
    let refused = place.run(GENERATE, &format!("other --prompt sort {BY_DIRECTIONS}"));
    assert_refused(&refused, &["key_directions.safetensors", "of another model", "exp_directions"]);
}

/// All pairs are what the model says without a word of attention; some are not.
#[test]
fn attention_is_asked_for_by_a_flag_or_a_file() {
    let place = Place::new();
    assert_done(&place.run(UPCYCLE, "--model dense --variant TinyOnn --out sparse"));
    let all = written(&place, "dense");
    assert_eq!(written(&place, "dense --attention dense"), all);
    assert_eq!(written(&place, "dense --attention pairs(keep=1.0,index=window)"), all);
    fs::write(
        place.path("few.toml"),
        "attention.pairs = { keep = { keys = 3 }, index = \"window\", near = 2, first = 1 }",
    )
    .unwrap();
    let flag = written(&place, "dense --attention pairs(keep=keys(3),index=window,near=2,first=1)");
    assert_eq!(written(&place, "dense --config few.toml"), flag);
    // The flag wins, as a whole.
    let by_components = written(&place, &format!("dense {BY_COMPONENTS}"));
    assert_eq!(written(&place, &format!("dense --config few.toml {BY_COMPONENTS}")), by_components);
    fs::write(
        place.path("words.toml"),
        "attention = \"pairs(keep = 0.25, index = components(4), near = 2, first = 1)\"",
    )
    .unwrap();
    assert_eq!(written(&place, "dense --config words.toml"), by_components);

    let text = format!("{TEXT} --length 32 --out out");
    let attentions = format!("--attention dense {BY_COMPONENTS}");
    assert_done(&place.run(EVAL, &format!("dense {attentions} {text}")));
    let found: Value = serde_json::from_slice(&fs::read(place.path("out/summary.json")).unwrap()).unwrap();
    let more = |at: usize| found["models"][at]["tasks"][0]["more_bits"]["mean"].as_f64();
    assert_eq!((more(0), found["models"][1]["attention"]["pairs"]["keep"].as_f64()), (None, Some(0.25)));
    assert!(more(1).unwrap().abs() > 1e-6);
}

#[rstest]
#[case::one("--attention pairs(keep=1,index=window)", &["--attention", "`keep = 1.0`", "`keep = keys(1)`"])]
#[case::no_index("--attention pairs(keep=0.5)", &["`index` of `pairs` is missing"])]
#[case::unknown("--attention pairs(keep=0.5,index=exakt)", &["index = exakt", "components(8)"])]
fn what_cannot_be_read_is_said_by_the_flag(#[case] attention: &str, #[case] says: &[&str]) {
    let output = Place::new().run(GENERATE, &format!("dense --prompt sort {attention}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(says.iter().all(|word| said.contains(word)), "{said}");
}

#[rstest]
#[case::too_much("dense --attention pairs(keep=1.5,index=window)", &["`--attention`", "1.5", "at most 1.0"])]
#[case::too_wide("dense --attention pairs(keep=0.5,index=components(9))", &["`--attention`", "heads that have 8"])]
#[case::all_active("sparse --attention pairs(keep=0.5,index=exact)", &["`--attention`", "--active routed"])]
#[case::dense_and_all("dense --active all --attention pairs(keep=0.5,index=exact)", &["`--attention`", "--active"])]
fn what_would_not_act_is_refused(#[case] asked: &str, #[case] says: &[&str]) {
    let place = Place::new();
    assert_done(&place.run(UPCYCLE, "--model dense --variant TinyOnn --out sparse"));
    assert_refused(&place.run(GENERATE, &format!("{asked} --prompt sort")), says);
}

/// A checkpoint keeps what attention it was asked for, with its directions; an export of all of it says what is left out.
#[test]
fn a_sparse_checkpoint_keeps_its_attention() {
    let place = Place::new();
    fs::write(place.path("run.toml"), include_str!("book/sparsify.toml")).unwrap();
    let run = format!("--model dense {TEXT} --active-share 0.5 --config run.toml --out run");
    assert_done(&place.run(SPARSIFY, &format!("{run} {BY_DIRECTIONS}")));
    let config: Value = serde_json::from_slice(&fs::read(place.path("run/tiny-onn/config.json")).unwrap()).unwrap();
    assert_eq!(config["tinyonn"]["attention"]["pairs"]["index"], json!({ "directions": 4 }));
    assert!(config["tinyonn"]["spec"].get("attention").is_none());
    assert!(place.path("run/tiny-onn/key_directions.safetensors").is_file());
    let sparse = written(&place, "run/tiny-onn");
    assert_eq!(written(&place, &format!("run/tiny-onn {BY_DIRECTIONS}")), sparse);
    assert_refused(
        &place.run(EXPORT, "--model run/tiny-onn --format tinyonn --out out"),
        &["pairs(..)", "--active all"],
    );
    assert_done(&place.run(EXPORT, "--model run/tiny-onn --format dense --active all --out out"));
    let card = fs::read_to_string(place.path("out/README.md")).unwrap();
    assert!(card.contains("index = directions(4)") && card.contains("attention computes all"), "{card}");
    assert_refused(
        &place.run(SPARSIFY, &format!("{run}-2 --attention pairs(keep=0.5,index=components(9))")),
        &["`attention`", "heads that have 8"],
    );
}
