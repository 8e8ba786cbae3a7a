//! What transformers computes from an export: logits that it gave are kept beside the fixtures (`tests/transformers/check_exports.py --write`), made anew and
//! held against these by the same script wherever Python has torch and transformers.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use serde_json::{Value, json};
use tempfile::tempdir;
use tinyonn::checkpoint::export::ExportFormat::{Mixtral, Qwen3Moe, TinyOnn};
use tinyonn::checkpoint::export::load_mixture;
use tinyonn::checkpoint::load_model;
use tinyonn::model::ActiveMode::{All, Routed};

use super::cases::{Case, all};
use crate::models::{CPU, ids};

/// Exported logits are those of the library to roundings of products in another order, some 30 of numbers of order one.
const TOLERANCE: f32 = 1e-4;

/// The library's logits of an export, by the mode that they are of.
fn logits(case: &Case, dir: &Path) -> Vec<(&'static str, Tensor)> {
    let ids = ids((2, 9));
    match case.format {
        TinyOnn => {
            let model = load_model(dir, &CPU, None).unwrap();
            [("all", All), ("routed", Routed)]
                .map(|(name, mode)| (name, model.logits(&ids, &mode.pass()).unwrap()))
                .into()
        }
        Qwen3Moe | Mixtral => {
            let model = load_mixture(dir, &CPU).unwrap();
            vec![("own", model.logits(&ids, &model.active().pass()).unwrap())]
        }
        _ => vec![("own", load_model(dir, &CPU, None).unwrap().logits(&ids, &All.pass()).unwrap())],
    }
}

/// Of the last token of each sequence, which has read all others.
fn kept() -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/exports.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn its_logits_are_the_librarys() {
    let kept = kept();
    for case in all() {
        let root = tempdir().unwrap();
        let (_, dir, _) = case.write(root.path());
        for (mode, logits) in logits(&case, &dir) {
            let theirs: Vec<Vec<f32>> = serde_json::from_value(kept["logits"][case.name][mode].clone()).unwrap();
            let ours = logits.narrow(1, 8, 1).unwrap().squeeze(1).unwrap().to_vec2::<f32>().unwrap();
            let apart = ours.concat().iter().zip(theirs.concat()).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(
                apart <= TOLERANCE && ours.concat().len() == theirs.concat().len(),
                "{} {mode}: {apart}",
                case.name
            );
        }
        let modes: Vec<_> = logits(&case, &dir).into_iter().map(|(_, logits)| logits).collect();
        if let [all, routed] = modes.as_slice() {
            assert!(crate::models::apart(all, routed) > 1e-3, "{}: routing does not show", case.name);
        }
    }
}

/// Writes all exports, and what the library makes of them, into the folder `TINYONN_EXPORTS`, for the script.
#[test]
fn exports_for_the_script() {
    let Some(root) = env::var_os("TINYONN_EXPORTS").map(PathBuf::from) else {
        println!("skipped: TINYONN_EXPORTS names no folder to write exports into");
        return;
    };
    for case in all() {
        let scratch = tempdir().unwrap();
        let (_, dir, _) = case.write(scratch.path());
        let to = root.join(case.name);
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
        let mut tensors: HashMap<&str, Tensor> = logits(&case, &dir).into_iter().collect();
        tensors.insert("input_ids", ids((2, 9)).to_dtype(DType::I64).unwrap());
        candle_core::safetensors::save(&tensors, root.join(format!("{}.safetensors", case.name))).unwrap();
    }
    fs::write(root.join("cases.json"), json!(all().iter().map(|case| case.name).collect::<Vec<_>>()).to_string())
        .unwrap();
}
