//! Checkpoints: bytes survive the round trip, damage is named and never panics, and builders lend what they promise.

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
use tinyonn::qwen3::Qwen3Config;

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

fn tiny() -> Qwen3Config {
    let json = json!({
        "model_type": "qwen3", "vocab_size": 11, "hidden_size": 6, "intermediate_size": 5, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2, "tie_word_embeddings": true,
    });
    Qwen3Config::from_json(&json, "config.json").unwrap()
}

/// The tensors of a tiny dense model.
fn dense(config: &Qwen3Config, dtype: Dtype) -> Vec<Stored> {
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
        assert_eq!(copied.bytes(name).unwrap(), data, "{name}");
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
    let config = Qwen3Config { tie_word_embeddings: false, ..tiny() };
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

// ---- damage ----

fn two_shards() -> (TempDir, [String; 2]) {
    let tensors = ["a", "b"].map(|name| (name.to_owned(), Dtype::F32, vec![1], bytes(4, 3)));
    let dir = folder(&json!({}), &tensors, 2);
    (dir, [1, 2].map(|i| format!("model-0000{i}-of-00002.safetensors")))
}

#[rstest]
#[case::wrong_place(json!({ "a": 1, "b": 0 }), "`a`")]
#[case::in_no_shard(json!({ "a": 0, "b": 1, "c": 1 }), "`c`")]
#[case::unlisted(json!({ "a": 0, "x": 1 }), "`x`")]
fn an_index_that_disagrees_with_its_shards_is_refused(#[case] map: Value, #[case] named: &str) {
    let (dir, shards) = two_shards();
    let map: serde_json::Map<_, _> = map
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, shard)| (name.clone(), json!(shards[shard.as_u64().unwrap() as usize])))
        .collect();
    write_index(dir.path(), &Value::Object(map));
    let error = message(ModelFolder::open(dir.path()));
    assert!(error.contains("index.json") && error.contains(named), "{error}");
}

#[test]
fn a_tensor_in_two_shards_or_beside_the_index_is_refused() {
    let (dir, shards) = two_shards();
    let both = ["a", "b"].map(|name| (name.to_owned(), Dtype::F32, vec![1], bytes(4, 3)));
    write(&dir.path().join(&shards[1]), &both);
    let error = message(ModelFolder::open(dir.path()));
    assert!(error.contains("`a`") && error.contains(&shards[0]) && error.contains(&shards[1]), "{error}");

    let extra = ["b", "c"].map(|name| (name.to_owned(), Dtype::F32, vec![1], bytes(4, 3)));
    write(&dir.path().join(&shards[1]), &extra);
    let error = message(ModelFolder::open(dir.path()));
    assert!(error.contains("does not list") && error.contains("`c`"), "{error}");
}

#[test]
fn a_missing_shard_is_named() {
    let (dir, shards) = two_shards();
    fs::remove_file(dir.path().join(&shards[1])).unwrap();
    let error = message(ModelFolder::open(dir.path()));
    assert!(error.contains(&shards[1]), "{error}");
}

#[rstest]
#[case(json!("../model.safetensors"))]
#[case(json!("/etc/passwd"))]
#[case(json!("sub/model.safetensors"))]
#[case(json!(""))]
#[case(json!(3))]
fn an_index_does_not_lead_out_of_its_folder(#[case] file: Value) {
    let (dir, _) = two_shards();
    write_index(dir.path(), &json!({ "a": file }));
    assert!(message(ModelFolder::open(dir.path())).contains("not a file of the folder"));
}

#[rstest]
#[case::not_json("config.json", "{")]
#[case::no_config("config.json", "")]
#[case::bad_index("model.safetensors.index.json", "[]")]
fn damaged_json_names_its_file(#[case] file: &str, #[case] text: &str) {
    let (dir, _) = two_shards();
    fs::write(dir.path().join(file), text).unwrap();
    assert!(message(ModelFolder::open(dir.path())).contains(file));
}

#[test]
fn folders_that_are_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(message(ModelFolder::open(dir.path().join("no"))).contains("is not a folder"));
    assert!(message(ModelFolder::open(dir.path())).contains("config.json"));
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert!(message(ModelFolder::open(dir.path())).contains("neither model.safetensors"));
    fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    assert!(message(ModelFolder::open(dir.path())).contains("model.safetensors"));
}

/// A file with this header and so many bytes after it.
fn forged(header: &str, follow: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + follow, 0);
    file
}

fn open_bytes(content: &[u8]) -> (TempDir, PathBuf, Result<MappedSafetensors>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    fs::write(&path, content).unwrap();
    let opened = MappedSafetensors::open(&path);
    (dir, path, opened)
}

#[rstest]
#[case::empty(vec![])]
#[case::short(vec![1, 2, 3])]
#[case::length_only(8u64.to_le_bytes().to_vec())]
#[case::huge_length(u64::MAX.to_le_bytes().to_vec())]
#[case::no_json(forged("nonsense", 0))]
#[case::surplus(forged("{}", 1))]
#[case::short_data(forged(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 7))]
#[case::shape_and_bytes(forged(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8))]
#[case::gap(forged(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8))]
#[case::reversed(forged(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}"#, 8))]
#[case::overflow(forged(
    r#"{"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}}"#,
    0
))]
#[case::unknown_type(forged(r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#, 4))]
fn files_that_are_no_safetensors_are_named(#[case] content: Vec<u8>) {
    let (_dir, path, opened) = open_bytes(&content);
    let error = message(opened);
    assert!(error.contains(path.to_str().unwrap()) && error.contains("copy or download"), "{error}");
}

#[test]
fn offsets_near_the_end_of_the_integers_are_refused() {
    // Every size is legal alone; the end of the data plus the header's length is beyond 2^64.
    let part = (1u64 << 61) - 1;
    let entry = |i: u64, begin: u64, end: u64| {
        format!(r#""t{i}":{{"dtype":"U8","shape":[{}],"data_offsets":[{begin},{end}]}}"#, end - begin)
    };
    let mut entries: Vec<_> = (0..8).map(|i| entry(i, i * part, (i + 1) * part)).collect();
    entries.push(entry(8, 8 * part, u64::MAX));
    let (_dir, _path, opened) = open_bytes(&forged(&format!("{{{}}}", entries.join(",")), 0));
    assert!(message(opened).contains(&format!("describes {} bytes", u64::MAX)));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn a_truncated_file_is_always_refused(cut in 0usize..10_000) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        write(&path, &dense(&tiny(), Dtype::F32));
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..cut % whole.len()]).unwrap();
        let error = message(MappedSafetensors::open(&path));
        prop_assert!(error.contains("model.safetensors"));
    }

    #[test]
    fn flipped_header_bytes_never_panic(flips in prop::collection::vec((0usize..10_000, any::<u8>()), 1..5)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let tensors = [("a.weight".into(), Dtype::F32, vec![2, 3], bytes(24, 0)), ("b".into(), Dtype::BF16, vec![4], bytes(8, 1))];
        write(&path, &tensors);
        let mut content = fs::read(&path).unwrap();
        let header = content.len() - 32;
        for (at, byte) in flips {
            content[at % header] ^= byte;
        }
        fs::write(&path, &content).unwrap();
        if let Ok(file) = MappedSafetensors::open(&path) {
            for name in file.names() {
                let size = file.bytes(name).unwrap().len();
                if let Ok(tensor) = file.load(name, &CPU) {
                    prop_assert_eq!(tensor.elem_count() * tensor.dtype().size_in_bytes(), size);
                }
            }
        }
    }
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
    for name in ["tokenizer.json", "merges.txt", "chat_template.jinja", "README.md", "model.safetensors"] {
        fs::write(source.path().join(name), name).unwrap();
    }
    let dir = parent.path().join("m");
    ModelFolder::save(&dir, &json!({}), &small_store(), Some(source.path())).unwrap();
    for name in ["tokenizer.json", "merges.txt", "chat_template.jinja"] {
        assert_eq!(fs::read_to_string(dir.join(name)).unwrap(), name);
    }
    assert!(!dir.join("README.md").exists());
    ModelFolder::open(&dir).unwrap();
    let nowhere = source.path().join("nowhere");
    let error = message(ModelFolder::save(parent.path().join("n"), &json!({}), &small_store(), Some(&nowhere)));
    assert!(error.contains("nowhere"), "{error}");
}

// ---- the store ----

#[test]
fn the_store_lists_in_order_and_counts_weights_only() {
    let mut store = small_store();
    assert_eq!(store.names().collect::<Vec<_>>(), ["a", "b", "b.expert"]);
    assert_eq!((store.len(), store.parameters()), (3, 4));
    let all: Vec<_> = store.trainable(|_| true).into_iter().map(|(name, _)| name).collect();
    assert_eq!(all, ["a", "b"], "integers never train");
    assert!(message(store.insert("a", Tensor::zeros(1, DType::F32, &CPU).unwrap())).contains("`a`"));
    assert!(store.remove("a").is_some());
    assert!(store.get("a").is_none());
}

#[test]
fn set_reaches_the_models_and_refuses_what_does_not_fit() {
    let store = small_store();
    let lent = store.builder(DType::F32, |_| false).get(2, "a").unwrap();
    store.set("a", &Tensor::new(&[7f32, 8.0], &CPU).unwrap()).unwrap();
    assert_eq!(values(&lent), [7.0, 8.0]);
    let wrong = [
        ("a", Tensor::zeros(3, DType::F32, &CPU)),
        ("a", Tensor::zeros(2, DType::BF16, &CPU)),
        ("c", Tensor::zeros(2, DType::F32, &CPU)),
        ("a", Ok(lent.clone())),
    ];
    for (name, value) in wrong {
        let error = message(store.set(name, &value.unwrap()));
        assert!(error.contains(&format!("`{name}`")), "{error}");
    }
    assert_eq!(values(&lent), [7.0, 8.0]);
}

#[test]
fn a_store_shares_nothing_with_what_it_was_made_from_nor_with_its_copy() {
    let outside = Var::new(&[1f32], &CPU).unwrap();
    let mut store = ParamStore::new(&CPU);
    store.insert("w", outside.as_tensor().clone()).unwrap();
    let copy = store.deep_copy().unwrap();
    store.set("w", &Tensor::new(&[2f32], &CPU).unwrap()).unwrap();
    let seen = [outside.as_tensor(), store.get("w").unwrap(), copy.get("w").unwrap()].map(|t| values(t)[0]);
    assert_eq!(seen.map(f32::to_bits), [1f32, 2.0, 1.0].map(f32::to_bits));
}

// ---- builders ----

#[rstest]
fn gradients_reach_trainable_vars_and_no_frozen_one(#[values(DType::F32, DType::BF16)] compute: DType) {
    let store = small_store();
    let vb = store.builder(compute, |name| name == "b" || name == "b.expert");
    let (a, b) = (vb.get(2, "a").unwrap(), vb.get((2, 1), "b").unwrap());
    let expert = vb.get_with_hints_dtype(2, "b.expert", Init::default(), DType::U32).unwrap();
    assert_eq!(expert.to_vec1::<u32>().unwrap(), [0, 1]);
    assert_eq!((a.dtype(), b.dtype()), (compute, compute));
    let loss = a.unsqueeze(0).unwrap().matmul(&b.index_select(&expert, 0).unwrap()).unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    let gradient = gradients.get(store.get("b").unwrap()).expect("a trainable parameter has a gradient");
    assert_eq!((gradient.dtype(), values(gradient)), (DType::F32, vec![1.0, 2.0]));
    for frozen in ["a", "b.expert"] {
        assert!(gradients.get(store.get(frozen).unwrap()).is_none(), "{frozen}");
    }
    assert!(!a.track_op(), "a frozen value starts no tape");
}

#[test]
fn builders_name_what_is_missing_or_misshapen() {
    let store = small_store();
    let vb = store.builder(DType::F32, |_| true).pp("b");
    assert!(vb.contains_tensor("expert") && !vb.contains_tensor("bias"));
    let missing = vb.get(2, "bias").unwrap_err().to_string();
    assert!(missing.contains("`b.bias`") && missing.contains("not in the store"), "{missing}");
    let shape = store.builder(DType::F32, |_| true).get((1, 2), "b").unwrap_err().to_string();
    assert!(shape.contains("`b`") && shape.contains("[2, 1]") && shape.contains("[1, 2]"), "{shape}");
}

// ---- fresh parameters ----

fn initialised(seed: u64, names: &[&str]) -> ParamStore {
    ParamStore::initialise(&CPU, seed, |vb| {
        for name in names {
            vb.get_with_hints((50, 40), name, Init::Randn { mean: 1.0, stdev: 0.5 })?;
        }
        Ok(())
    })
    .unwrap()
}

#[test]
fn fresh_values_depend_on_seed_and_name_alone() {
    let (one, two, other) = (initialised(3, &["a", "b"]), initialised(3, &["c", "b", "a"]), initialised(4, &["a"]));
    let bits = |store: &ParamStore, name: &str| -> Vec<u32> {
        values(store.get(name).unwrap()).into_iter().map(f32::to_bits).collect()
    };
    assert_eq!(bits(&one, "a"), bits(&two, "a"));
    assert_eq!(bits(&one, "b"), bits(&two, "b"));
    assert_ne!(bits(&one, "a"), bits(&one, "b"));
    assert_ne!(bits(&one, "a"), bits(&other, "a"));
}

#[rstest]
#[case(Init::Const(0.25), 0.25, 0.0)]
#[case(Init::Randn { mean: -2.0, stdev: 3.0 }, -2.0, 3.0)]
#[case(Init::Uniform { lo: -1.0, up: 5.0 }, 2.0, 6.0 / 12f64.sqrt())]
#[case(candle_nn::init::DEFAULT_KAIMING_UNIFORM, 0.0, (2.0f64 / 150.0).sqrt())]
#[case(candle_nn::init::DEFAULT_KAIMING_NORMAL, 0.0, (2.0f64 / 150.0).sqrt())]
fn fresh_values_have_the_moments_asked_for(#[case] init: Init, #[case] mean: f64, #[case] stdev: f64) {
    let store = ParamStore::initialise(&CPU, 0, |vb| {
        vb.get_with_hints((200, 150), "w", init)?;
        Ok(())
    })
    .unwrap();
    let values: Vec<f64> = values(store.get("w").unwrap()).into_iter().map(f64::from).collect();
    let n = values.len() as f64;
    let found = values.iter().sum::<f64>() / n;
    let spread = (values.iter().map(|x| (x - found).powi(2)).sum::<f64>() / n).sqrt();
    assert!((found - mean).abs() <= 0.03 * stdev, "mean {found}, expected {mean}");
    assert!((spread - stdev).abs() <= 0.02 * stdev, "deviation {spread}, expected {stdev}");
}

#[test]
fn a_fresh_store_feeds_its_own_constructor() {
    let construct = |vb: candle_nn::VarBuilder| candle_nn::linear(5, 3, vb.pp("head"));
    let mut made = None;
    let store = ParamStore::initialise(&CPU, 1, |vb| {
        made = Some(construct(vb)?);
        Ok(())
    })
    .unwrap();
    let again = construct(store.builder(DType::F32, |_| false)).unwrap();
    assert_eq!(values(made.unwrap().weight()), values(again.weight()));
}

#[test]
fn a_constructor_that_contradicts_itself_is_refused() {
    let twice = ParamStore::initialise(&CPU, 0, |vb| {
        vb.get((2, 3), "w")?;
        vb.get((3, 2), "w")?;
        Ok(())
    });
    assert!(message(twice).contains("`w`"));
    let unseen = ParamStore::initialise(&CPU, 0, |vb| {
        vb.get_unchecked("w")?;
        Ok(())
    });
    assert!(message(unseen).contains("`w`"));
    let random_integers = ParamStore::initialise(&CPU, 0, |vb| {
        vb.get_with_hints_dtype(2, "ids", Init::Uniform { lo: 0.0, up: 9.0 }, DType::U32)?;
        Ok(())
    });
    assert!(message(random_integers).contains("`ids`"));
    let counted = ParamStore::initialise(&CPU, 0, |vb| {
        vb.get_with_hints_dtype(2, "ids", Init::Const(4.0), DType::U32)?;
        Ok(())
    });
    assert_eq!(counted.unwrap().get("ids").unwrap().to_vec1::<u32>().unwrap(), [4, 4]);
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
    let config = opened.qwen3_config().unwrap();
    assert_eq!(config.rope_theta.to_bits(), theta.to_bits());
    opened.check_names(&expected_tensors(&config)).unwrap();
    let store = opened.load(&CPU, None).unwrap();
    assert_eq!(store.parameters(), config.parameters());

    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("copy");
    ModelFolder::save(&dir, opened.config(), &store, Some(&source)).unwrap();
    let copied = ModelFolder::open(&dir).unwrap();
    copied.check_names(&expected_tensors(&copied.qwen3_config().unwrap())).unwrap();
    for name in store.names() {
        assert_eq!(copied.bytes(name).unwrap(), opened.bytes(name).unwrap(), "{name}");
    }
}
