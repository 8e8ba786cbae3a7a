//! Models as users give them.

use std::fs;

use candle_core::Device;
use serde_json::json;
use tinyonn::checkpoint::ModelFolder;

use super::{EXPORT, PHASE2, Place, SCAN, UPCYCLE, VERIFY, assert_done, assert_refused, config};

/// What is wrong with a model is said before all text is read.
#[test]
fn a_model_that_is_not_there_is_refused_before_the_text_is_read() {
    let place = Place::new();
    for arguments in ["--out out", "--dry-run"] {
        let run = format!("--model nowhere --data a=gone.txt --data b=b.txt {arguments}");
        assert_refused(&place.run(PHASE2, &run), &["nowhere", "is not there"]);
    }
    assert_refused(&place.run(SCAN, "--model nowhere --data a=gone.txt --out out"), &["nowhere", "is not there"]);
}

/// Its head is stored though it is tied: there and back every file is what it was.
#[test]
fn a_stored_tied_head_comes_back() {
    let place = Place::new();
    let mut store = ModelFolder::open(place.path("dense")).unwrap().load(&Device::Cpu, None).unwrap();
    if store.get("lm_head.weight").is_some() {
        store.remove("lm_head.weight");
    }
    let embedding = store.get("model.embed_tokens.weight").unwrap().as_detached_tensor();
    store.insert("lm_head.weight", embedding).unwrap();
    let mut json = config().to_json();
    json["tie_word_embeddings"] = json!(true);
    fs::remove_dir_all(place.path("dense")).unwrap();
    ModelFolder::save(place.path("dense"), &json, &store, None).unwrap();
    assert_done(&place.run(UPCYCLE, "--model dense --variant TinyOnn --out sparse"));
    assert_done(&place.run(VERIFY, "dense sparse --tolerance 0"));
    assert_done(&place.run(EXPORT, "--model sparse --format dense --out back"));
    let weights = |name: &str| fs::read(place.path(name).join("model.safetensors")).unwrap();
    assert_eq!(weights("back"), weights("dense"));
}

#[test]
fn shards_beside_a_single_file_are_spoken_of() {
    let place = Place::new();
    fs::write(place.path("dense/model.safetensors.index.json"), "{}").unwrap();
    let output = place.run(UPCYCLE, "--model dense --variant TinyOnn --out out");
    assert_done(&output);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("model.safetensors and model.safetensors.index.json; the first is read"), "{said}");
}
