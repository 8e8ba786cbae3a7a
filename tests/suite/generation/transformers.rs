//! The tokens that transformers writes (`make_continuations.py`).

use std::path::{Path, PathBuf};

use candle_core::DType;
use serde_json::Value;
use tinyonn::checkpoint::{LoadedModel, ModelFolder, load_model};
use tinyonn::decoder::{Generation, Pass, Prompt, Sampling};
use tinyonn::generation::{ChatTemplate, end_ids};
use tinyonn::phases::text;

use super::fixture;
use crate::models::CPU;

/// Where the best two logits lie nearer to each other than this, roundings may choose the other, and all that follows is another text.
const TIE: f64 = 1e-4;

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn written(model: &LoadedModel, rows: &[Vec<u32>], tokens: usize, penalty: f64) -> Vec<Vec<u32>> {
    let sampling = Sampling { repetition_penalty: penalty, ..Sampling::GREEDY };
    let prompts = rows.iter().map(|row| Prompt::new(row.clone(), 0, 0)).collect();
    model.generate(prompts, &Generation { tokens, stop_ids: vec![], sampling }, &Pass::all(), &mut |_| Ok(())).unwrap()
}

/// Equal token for token, or up to one that is a tie. Says where that is.
fn assert_same(name: &str, found: &[u32], expected: &[u32], gaps: &Value) {
    assert_eq!(found.len(), expected.len(), "{name}");
    if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
        let gap = gaps[at].as_f64().unwrap();
        println!("{name}: from token {at} on another text; there the best two logits lie {gap:.1e} apart");
        assert!(gap < TIE, "{name}: token {at} is {}, not {}, and no tie ({gap})", found[at], expected[at]);
    }
}

#[test]
fn greedy_text_is_that_of_transformers() {
    let all = fixture("greedy.json");
    assert!(all.as_object().unwrap().len() >= 17);
    for (name, expected) in all.as_object().unwrap() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
        let model = load_model(folder, &CPU, Some(DType::F32)).unwrap();
        let rows: Vec<Vec<u32>> = expected["prompts"].as_array().unwrap().iter().map(ids).collect();
        for run in expected["runs"].as_array().unwrap() {
            let penalty = run["repetition_penalty"].as_f64().unwrap();
            let found = written(&model, &rows, 32, penalty);
            for (row, found) in found.iter().enumerate() {
                let what = format!("{name}, penalty {penalty}, row {row}");
                assert_same(&what, found, &ids(&run["tokens"][row]), &run["gaps"][row]);
            }
        }
    }
}

/// 200 tokens behind a sentence and behind a conversation by the model's own template, where `scripts/fetch_material.sh` was run.
#[test]
fn smollm2_writes_what_it_writes_in_transformers() {
    let Some(material) = std::env::var_os("TINYONN_MATERIAL") else {
        println!("skipped: TINYONN_MATERIAL names no folder of scripts/fetch_material.sh");
        return;
    };
    let path = Path::new(&material).join("model/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return;
    }
    let folder = ModelFolder::open(&path).unwrap();
    let tokenizer = text::tokenizer(&folder).unwrap().for_prompts();
    let model = load_model(&path, &CPU, Some(DType::F32)).unwrap();
    let fixture = fixture("smollm2.json");
    let template = ChatTemplate::read(&folder).unwrap().unwrap();
    let chat = template.render(&fixture["messages"], true).unwrap();
    assert_eq!(fixture["continuations"][1]["text"], chat);
    assert_eq!(end_ids(&folder, &tokenizer).unwrap(), [2]);
    for expected in fixture["continuations"].as_array().unwrap() {
        let prompt = tokenizer.encode_with_ends(expected["text"].as_str().unwrap()).unwrap();
        assert_eq!(prompt, ids(&expected["prompt"]));
        let found = written(&model, &[prompt], 200, 1.0).remove(0);
        assert_same("SmolLM2", &found, &ids(&expected["tokens"]), &expected["gaps"]);
    }
}
