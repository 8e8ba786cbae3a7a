//! Which neurons tokens take in an export, for a script that holds them against transformers (`tests/transformers/check_choices.py`): a neuron whose score lies on the border
//! falls in on one side of it here and on the other there, and then logits differ by what it adds.

use std::collections::HashMap;
use std::env;
use std::path::PathBuf;

use candle_core::{DType, Tensor};
use tinyonn::checkpoint::{LoadedModel, load_model};
use tinyonn::data::TextTokenizer;
use tinyonn::decoder::Pass;

use crate::models::CPU;

/// What is read: English as people write it.
const TEXT: &str = include_str!("../../../README.md");
const TOKENS: usize = 256;

/// Writes tokens, the logits of a routed pass, and for each layer the neurons that each token takes (`taken.LAYER`, `[T, I]` of ones and zeros) of the export
/// `TINYONN_EXPORT` to the file `TINYONN_CHOICES`.
#[test]
fn choices_for_the_script() {
    let [Some(dir), Some(out)] = ["TINYONN_EXPORT", "TINYONN_CHOICES"].map(|name| env::var_os(name).map(PathBuf::from))
    else {
        println!("skipped: TINYONN_EXPORT and TINYONN_CHOICES name no export and no file");
        return;
    };
    let mut ids = TextTokenizer::load(dir.join("tokenizer.json"), None).unwrap().encode(TEXT).unwrap();
    ids.truncate(TOKENS);
    let ids = Tensor::new(ids, &CPU).unwrap().unsqueeze(0).unwrap();
    let LoadedModel::TinyOnn(model, _) = load_model(&dir, &CPU, Some(DType::F32)).unwrap() else {
        panic!("{} is no checkpoint of a variant", dir.display());
    };
    let logits = model.logits(&ids, &Pass::routed(), None).unwrap();
    let mut written =
        HashMap::from([("input_ids".to_owned(), ids.to_dtype(DType::I64).unwrap()), ("logits".to_owned(), logits)]);
    let decoder = model.lm().model();
    let mut x = decoder.embed(&ids).unwrap();
    for layer in 0..decoder.config().num_hidden_layers {
        let [stream, seen] = decoder.attend(layer, &x).unwrap();
        let [y, h] = model.moe(layer).chosen(&seen).unwrap();
        written.insert(format!("taken.{layer}"), h.ne(0f64).unwrap());
        x = (stream + y).unwrap();
    }
    candle_core::safetensors::save(&written, out).unwrap();
}
