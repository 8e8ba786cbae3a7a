//! Checkpoints: bytes survive the round trip, damage is named and never panics, and builders lend what they promise.

mod damage;
mod given;
mod parameters;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::Init;
use proptest::prelude::*;
use rstest::rstest;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;
use tinyonn::Result;
use tinyonn::checkpoint::{MappedSafetensors, ModelFolder, ParamStore, expected_tensors};
use tinyonn::decoder::Arch;

const CPU: Device = Device::Cpu;

type Stored = (String, Dtype, Vec<usize>, Vec<u8>);

/// A safetensors file made by the format's own crate, not by the code under test.
fn write(path: &Path, tensors: &[Stored]) {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Bytes of every value: infinities and NaNs with payloads among them.
fn bytes(count: usize, salt: u8) -> Vec<u8> {
    (0..count).map(|i| (i as u8).wrapping_mul(151).wrapping_add(salt)).collect()
}

fn tiny() -> Arch {
    let json = json!({
        "model_type": "qwen3", "vocab_size": 11, "hidden_size": 6, "intermediate_size": 5, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2, "tie_word_embeddings": true,
    });
    Arch::from_json(&json, "config.json").unwrap()
}

/// The tensors of a tiny dense model.
fn dense(config: &Arch, dtype: Dtype) -> Vec<Stored> {
    let tensors = expected_tensors(config).into_iter().enumerate();
    let stored = |(i, (name, shape)): (usize, (String, Vec<usize>))| {
        let data = bytes(shape.iter().product::<usize>() * dtype.bitsize() / 8, i as u8);
        (name, dtype, shape, data)
    };
    tensors.map(stored).collect()
}

/// A model folder of these tensors, in one file or dealt to shards.
fn folder(config: &Value, tensors: &[Stored], shards: usize) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    if shards == 1 {
        write(&dir.path().join("model.safetensors"), tensors);
        return dir;
    }
    let mut map = serde_json::Map::new();
    for shard in 0..shards {
        let file = format!("model-{:05}-of-{shards:05}.safetensors", shard + 1);
        let part: Vec<_> = tensors.iter().skip(shard).step_by(shards).cloned().collect();
        map.extend(part.iter().map(|(name, ..)| (name.clone(), json!(file))));
        write(&dir.path().join(file), &part);
    }
    write_index(dir.path(), &Value::Object(map));
    dir
}

fn write_index(dir: &Path, weight_map: &Value) {
    let index = json!({ "metadata": { "total_size": 0 }, "weight_map": weight_map });
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

fn small_store() -> ParamStore {
    let mut store = ParamStore::new(&CPU);
    store.insert("a", Tensor::new(&[1f32, 2.0], &CPU).unwrap()).unwrap();
    store.insert("b", Tensor::new(&[[3f32], [4.0]], &CPU).unwrap()).unwrap();
    store.insert("b.expert", Tensor::new(&[0u32, 1], &CPU).unwrap()).unwrap();
    store
}

fn message<T>(result: Result<T>) -> String {
    result.err().expect("must be refused").to_string()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

// ---- round trips ----

#[rstest]
fn every_byte_survives_loading_and_saving(
    #[values(Dtype::F32, Dtype::BF16, Dtype::F16)] dtype: Dtype,
    #[values(1, 3)] shards: usize,
    #[values(u64::MAX, 200)] max_shard_bytes: u64,
) {
    let config = tiny();
    let mut tensors = dense(&config, dtype);
    tensors.push(("model.layers.0.mlp.neuron_expert".into(), Dtype::U32, vec![5], bytes(20, 9)));
    tensors.push(("scalar".into(), dtype, vec![], bytes(dtype.bitsize() / 8, 77)));
    tensors.push(("nothing".into(), dtype, vec![0, 4], vec![]));
    let source = folder(&config.to_json(), &tensors, shards);
    let opened = ModelFolder::open(source.path()).unwrap();
    let copy = source.path().join("deep/er/copy");
    let store = opened.load(&CPU, None).unwrap();
    ModelFolder::save_sharded(&copy, opened.config(), &store, None, max_shard_bytes).unwrap();

    let copied = ModelFolder::open(&copy).unwrap();
    assert_eq!(copied.config(), opened.config());
    assert_eq!(copied.tensors().count(), tensors.len());
    for (name, dtype, shape, data) in &tensors {
        let (_, info) = copied.tensors().find(|(other, _)| other == name).unwrap();
        assert_eq!((info.dtype, &info.shape), (*dtype, shape), "{name}");
        assert_eq!(*copied.bytes(name).unwrap(), **data, "{name}");
    }
    let files = fs::read_dir(&copy).unwrap().count();
    assert_eq!(files > 2, max_shard_bytes == 200, "config.json and one file, or shards and their index");
}

#[test]
fn saving_twice_gives_the_same_files_and_the_format_crate_reads_them() {
    let parent = tempfile::tempdir().unwrap();
    let dirs = ["x", "y"].map(|name| parent.path().join(name));
    for dir in &dirs {
        ModelFolder::save(dir, &json!({ "z": 1, "a": 2 }), &small_store(), None).unwrap();
    }
    for file in ["config.json", "model.safetensors"] {
        assert_eq!(fs::read(dirs[0].join(file)).unwrap(), fs::read(dirs[1].join(file)).unwrap(), "{file}");
    }
    let raw = fs::read(dirs[0].join("model.safetensors")).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&raw).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    assert_eq!(metadata.offset_keys(), ["a", "b", "b.expert"]);
    assert_eq!(header % 8, 0);
    let config = ModelFolder::open(&dirs[0]).unwrap().config().clone();
    assert_eq!(config.as_object().unwrap().keys().collect::<Vec<_>>(), ["z", "a"], "order of keys");
}

#[test]
fn shards_keep_to_the_limit_and_list_their_total() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("m");
    let mut store = ParamStore::new(&CPU);
    for i in 0..7 {
        store.insert(format!("t{i}"), Tensor::zeros(10, DType::F32, &CPU).unwrap()).unwrap();
    }
    store.insert("t3.large", Tensor::zeros(100, DType::F32, &CPU).unwrap()).unwrap();
    ModelFolder::save_sharded(&dir, &json!({}), &store, None, 80).unwrap();
    let index: Value = serde_json::from_slice(&fs::read(dir.join("model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 7 * 40 + 400);
    let mut sizes = BTreeMap::<&str, usize>::new();
    for (name, file) in index["weight_map"].as_object().unwrap() {
        *sizes.entry(file.as_str().unwrap()).or_default() += if name == "t3.large" { 400 } else { 40 };
    }
    assert_eq!(sizes.into_values().collect::<Vec<_>>(), [80, 80, 400, 80, 40]);
    assert_eq!(ModelFolder::open(&dir).unwrap().load(&CPU, None).unwrap().parameters(), 170);
}

#[test]
fn loading_converts_floats_and_leaves_integers() {
    let data: Vec<u8> = [1.0f32, 1.0 + 1.0 / 4096.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let tensors =
        [("w".into(), Dtype::F32, vec![2], data), ("n".into(), Dtype::U32, vec![1], 70_000u32.to_le_bytes().to_vec())];
    let dir = folder(&json!({}), &tensors, 1);
    let store = ModelFolder::open(dir.path()).unwrap().load(&CPU, Some(DType::BF16)).unwrap();
    assert_eq!(store.get("w").unwrap().dtype(), DType::BF16);
    assert_eq!(values(store.get("w").unwrap()), [1.0, 1.0]);
    assert_eq!(store.get("n").unwrap().to_vec1::<u32>().unwrap(), [70_000]);
    assert_eq!(store.parameters(), 2);
}

#[rstest]
#[case(Dtype::F64, 8)]
#[case(Dtype::I64, 8)]
#[case(Dtype::F8_E4M3, 1)]
fn other_types_are_listed_and_refused_by_name(#[case] dtype: Dtype, #[case] width: usize) {
    let dir = folder(&json!({}), &[("odd.one".into(), dtype, vec![2], bytes(2 * width, 0))], 1);
    let opened = ModelFolder::open(dir.path()).unwrap();
    assert_eq!(opened.tensors().next().unwrap().1.dtype, dtype);
    let error = message(opened.load(&CPU, None));
    assert!(error.contains("`odd.one`") && error.contains(&dtype.to_string()), "{error}");
}

// ---- names ----

#[test]
fn missing_unexpected_and_misshapen_come_in_one_error() {
    let config = tiny();
    let mut tensors = dense(&config, Dtype::F32);
    let whole = folder(&config.to_json(), &tensors, 2);
    ModelFolder::open(whole.path()).unwrap().check_names(&expected_tensors(&config)).unwrap();

    tensors.retain(|(name, ..)| name != "model.norm.weight" && name != "model.layers.1.mlp.up_proj.weight");
    tensors.push(("model.layers.2.mlp.up_proj.weight".into(), Dtype::F32, vec![1], bytes(4, 0)));
    let norm = tensors.iter_mut().find(|(name, ..)| name == "model.layers.0.self_attn.q_norm.weight").unwrap();
    (norm.2, norm.3) = (vec![3], bytes(12, 0));
    let broken = folder(&config.to_json(), &tensors, 1);
    let error = message(ModelFolder::open(broken.path()).unwrap().check_names(&expected_tensors(&config)));
    for part in [
        "missing (2): `model.layers.1.mlp.up_proj.weight`, `model.norm.weight`",
        "unexpected (1): `model.layers.2.mlp.up_proj.weight`",
        "of another shape (1): `model.layers.0.self_attn.q_norm.weight` [3], expected [2]",
    ] {
        assert!(error.contains(part), "{part}\nnot in\n{error}");
    }
}

#[test]
fn rotary_buffers_and_an_equal_tied_head_are_tolerated_and_left_out() {
    let config = tiny();
    let mut tensors = dense(&config, Dtype::BF16);
    let embedding = tensors.iter().find(|(name, ..)| name == "model.embed_tokens.weight").unwrap().clone();
    tensors.push(("lm_head.weight".into(), embedding.1, embedding.2, embedding.3));
    tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), Dtype::F32, vec![1], bytes(4, 0)));
    let dir = folder(&config.to_json(), &tensors, 2);
    let opened = ModelFolder::open(dir.path()).unwrap();
    opened.check_names(&expected_tensors(&config)).unwrap();
    let names: Vec<_> = expected_tensors(&config).into_keys().collect();
    assert_eq!(opened.load(&CPU, None).unwrap().names().collect::<Vec<_>>(), names);

    let head = tensors.iter_mut().find(|(name, ..)| name == "lm_head.weight").unwrap();
    head.3[5] ^= 1;
    let dir = folder(&config.to_json(), &tensors, 1);
    let error = message(ModelFolder::open(dir.path()).unwrap().check_names(&expected_tensors(&config)));
    assert!(error.contains("`lm_head.weight` (differs from the embedding"), "{error}");
}

#[test]
fn an_untied_head_is_loaded_even_where_it_equals_the_embedding() {
    let config = Arch { tie_word_embeddings: false, ..tiny() };
    let mut tensors = dense(&config, Dtype::F32);
    tensors
        .iter_mut()
        .filter(|(name, ..)| name.ends_with("embed_tokens.weight") || name.starts_with("lm_head"))
        .for_each(|tensor| tensor.3 = bytes(tensor.3.len(), 1));
    let dir = folder(&config.to_json(), &tensors, 1);
    let opened = ModelFolder::open(dir.path()).unwrap();
    opened.check_names(&expected_tensors(&config)).unwrap();
    assert!(opened.load(&CPU, None).unwrap().get("lm_head.weight").is_some());
}

// ---- saving, whole or not at all ----

#[test]
fn a_used_folder_is_never_written_to() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("m");
    fs::create_dir(&dir).unwrap();
    ModelFolder::save(&dir, &json!({ "first": true }), &small_store(), None).unwrap();
    let before = fs::read(dir.join("model.safetensors")).unwrap();
    let error = message(ModelFolder::save(&dir, &json!({}), &ParamStore::new(&CPU), None));
    assert!(error.contains("not empty") && error.contains("new folder"), "{error}");
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), before);
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1, "nothing is left beside it");
    assert!(ModelFolder::save(dir.join("config.json"), &json!({}), &small_store(), None).is_err());
    assert!(ModelFolder::save(Path::new("/"), &json!({}), &small_store(), None).is_err());
}

#[test]
fn what_a_killed_save_left_is_no_checkpoint_and_no_obstacle() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, left) = (parent.path().join("m"), parent.path().join(".m.saving"));
    fs::create_dir(&left).unwrap();
    fs::write(left.join("config.json"), "{}").unwrap();
    fs::write(left.join("model-00001-of-00009.safetensors"), [0; 100]).unwrap();
    assert!(!dir.exists(), "the old state: nothing");
    assert!(ModelFolder::open(&left).is_err());
    ModelFolder::save(&dir, &json!({}), &small_store(), None).unwrap();
    assert!(!left.exists());
    let mut files: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["config.json", "model.safetensors"]);
}

#[test]
fn a_save_under_way_elsewhere_is_not_disturbed() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, staging) = (parent.path().join("m"), parent.path().join(".m.saving"));
    fs::create_dir(&staging).unwrap();
    fs::write(staging.join("config.json"), "theirs").unwrap();
    let theirs = fs::File::open(&staging).unwrap();
    theirs.lock().unwrap();
    let error = message(ModelFolder::save(&dir, &json!({}), &small_store(), None));
    assert!(error.contains("another process"), "{error}");
    assert_eq!(fs::read(staging.join("config.json")).unwrap(), b"theirs");
    drop(theirs);
    ModelFolder::save(&dir, &json!({}), &small_store(), None).unwrap();
}

#[test]
fn a_save_that_fails_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let mut store = small_store();
    store.insert("z", Tensor::zeros(2, DType::F64, &CPU).unwrap()).unwrap();
    let error = message(ModelFolder::save(parent.path().join("m"), &json!({}), &store, None));
    assert!(error.contains("`z`") && error.contains("F64"), "{error}");
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
}

#[test]
fn tokenizer_files_travel_and_nothing_else_does() {
    let source = tempfile::tempdir().unwrap();
    let parent = tempfile::tempdir().unwrap();
    let travel = [
        "tokenizer.json",
        "tokenizer.model",
        "added_tokens.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
        "additional_chat_templates/tool_use.jinja",
    ];
    fs::create_dir(source.path().join("additional_chat_templates")).unwrap();
    for name in travel.iter().chain(&["README.md", "model.safetensors"]) {
        fs::write(source.path().join(name), name).unwrap();
    }
    let dir = parent.path().join("m");
    ModelFolder::save(&dir, &json!({}), &small_store(), Some(source.path())).unwrap();
    for name in travel {
        assert_eq!(fs::read_to_string(dir.join(name)).unwrap(), name);
    }
    assert!(!dir.join("README.md").exists());
    ModelFolder::open(&dir).unwrap();
    let nowhere = source.path().join("nowhere");
    let error = message(ModelFolder::save(parent.path().join("n"), &json!({}), &small_store(), Some(&nowhere)));
    assert!(error.contains("nowhere"), "{error}");
}

// ---- folders that transformers wrote ----

#[rstest]
#[case("tied_f32", 1e4)]
#[case("untied_bf16_sharded", 1e4)]
#[case("mqa_f16", 1e6)]
#[case("untied_f32_v4", 5e5)]
#[case("tied_stored_head_bf16", 1e6)]
fn folders_of_transformers_are_read_checked_and_written_back(#[case] name: &str, #[case] theta: f64) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/qwen3").join(name);
    let opened = ModelFolder::open(&source).unwrap();
    let config = opened.arch().unwrap();
    assert_eq!(config.rope_theta.to_bits(), theta.to_bits());
    opened.check_names(&expected_tensors(&config)).unwrap();
    let store = opened.load(&CPU, None).unwrap();
    assert_eq!(store.parameters(), config.parameters());

    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("copy");
    ModelFolder::save(&dir, opened.config(), &store, Some(&source)).unwrap();
    let copied = ModelFolder::open(&dir).unwrap();
    copied.check_names(&expected_tensors(&copied.arch().unwrap())).unwrap();
    for name in store.names() {
        assert_eq!(copied.bytes(name).unwrap(), opened.bytes(name).unwrap(), "{name}");
    }
}

/// Of a checkpoint's matrices W_d alone lies turned in memory, and what a replica adds to it; a router's parameter keeps its order, whatever
/// it is called.
#[rstest]
#[case("model.layers.0.mlp.down_proj.weight", true)]
#[case("model.layers.11.mlp.delta.3.down_proj.weight", true)]
#[case("model.layers.0.mlp.up_proj.weight", false)]
#[case("model.layers.0.mlp.group_router.down_proj.weight", false)]
#[case("model.layers.0.mlp.delta.down_proj.weight", false)]
#[case("model.layers.0.self_attn.down_proj.weight", false)]
#[case("down_proj.weight", false)]
fn what_lies_turned_in_memory(#[case] name: &str, #[case] turned: bool) {
    let value = Tensor::arange(0f32, 6.0, &Device::Cpu).unwrap().reshape((2, 3)).unwrap();
    let mut store = ParamStore::new(&Device::Cpu);
    store.insert_stored(name, value.clone()).unwrap();
    assert_eq!(store.get(name).unwrap().dims(), if turned { [3, 2] } else { [2, 3] });
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("model");
    ModelFolder::save(&dir, &json!({ "model_type": "qwen3" }), &store, None).unwrap();
    let file = MappedSafetensors::open(dir.join("model.safetensors")).unwrap();
    assert_eq!(file.load(name, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap(), value.to_vec2::<f32>().unwrap());
}
