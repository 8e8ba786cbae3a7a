//! Scans whose digest is right and whose record is not: sizes in it are claims, of which no memory may be made.

use std::collections::BTreeMap;
use std::fs;

use rstest::rstest;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tinyonn::files::Digest;
use tinyonn::imaging::StoredScan;
use tinyonn::ops::NeuronSums;

use crate::models::message;

type Tensors = BTreeMap<String, (Dtype, Vec<usize>)>;

/// A scan of one task through one layer of two neurons.
fn record() -> Value {
    json!({
        "format": 1, "version": "0.1.0", "model": "m", "grad_site": "weight", "log1p": "off", "partition": null,
        "tasks": ["a"], "tokens": [3],
        "parts": [{
            "corpus": "c", "text": "t", "options": { "length": 8, "batch": 2, "tokens_per_task": 3 },
            "share": { "index": 0, "of": 1 }, "done": 1, "batches": 1,
        }],
    })
}

fn tensors(layers: usize, tasks: usize, width: usize) -> Tensors {
    let of_layer = |layer: usize| {
        NeuronSums::NAMES.map(|name| (format!("layers.{layer}.neurons.{name}"), (Dtype::F64, vec![tasks, width])))
    };
    let loss = ("loss".to_owned(), (Dtype::F64, vec![tasks]));
    (0..layers).flat_map(of_layer).chain([loss]).collect()
}

fn loaded(record: &Value, tensors: &Tensors) -> tinyonn::Result<StoredScan> {
    let size = |(dtype, shape): &(Dtype, Vec<usize>)| shape.iter().product::<usize>() * dtype.bitsize() / 8;
    let bytes: BTreeMap<&String, Vec<u8>> =
        tensors.iter().map(|(name, tensor)| (name, vec![0; size(tensor)])).collect();
    let mut digest = Digest::new();
    digest.text(&record.to_string());
    for (name, bytes) in &bytes {
        digest.text(name);
        digest.bytes(bytes);
    }
    let view = |(name, (dtype, shape)): (&String, &(Dtype, Vec<usize>))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), &bytes[name]).unwrap())
    };
    let metadata = json!({ "sha256": digest.hex(), "record": record }).to_string();
    let views: Vec<_> = tensors.iter().map(view).collect();
    let file = safetensors::serialize(views, Some([("tinyonn.scan".to_owned(), metadata)].into())).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scan.safetensors");
    fs::write(&path, file).unwrap();
    StoredScan::load(path)
}

#[test]
fn what_is_forged_below_is_sound_as_it_is() {
    let scan = loaded(&record(), &tensors(3, 1, 2)).unwrap();
    assert_eq!((scan.scan.sums.len(), scan.scan.width(), scan.missing()), (3, 2, vec![]));
}

#[rstest]
#[case::experts("partition", json!(["0", 1u64 << 60]))]
#[case::no_tasks("tasks", json!([]))]
#[case::too_many_tokens("tokens", json!([u64::MAX]))]
#[case::no_parts("parts", json!([]))]
fn a_forged_record_is_refused_before_memory_is_taken_for_it(#[case] key: &str, #[case] value: Value) {
    let (mut forged, mut sums) = (record(), tensors(3, 1, 2));
    forged[key] = value;
    sums.extend((0..3).map(|layer| (format!("layers.{layer}.neuron_expert"), (Dtype::U32, vec![2]))));
    assert!(message(loaded(&forged, &sums)).contains("damaged"));
}

#[rstest]
#[case::endless(json!({ "index": 0, "of": usize::MAX }))]
#[case::none(json!({ "index": 0, "of": 0 }))]
#[case::beyond(json!({ "index": 3, "of": 3 }))]
fn a_shard_that_cannot_be_is_refused(#[case] shard: Value) {
    let mut forged = record();
    forged["parts"][0]["share"] = shard;
    assert!(message(loaded(&forged, &tensors(3, 1, 2))).contains("contradicts itself"));
}

/// However wide it is, a tensor of no task has no bytes.
#[test]
fn no_sums_are_made_of_no_task() {
    let mut forged = record();
    (forged["tasks"], forged["tokens"]) = (json!([]), json!([]));
    assert!(message(loaded(&forged, &tensors(1, 0, 1 << 60))).contains("contradicts itself"));
}
