//! Damaged folders and files are refused by name, and never with a panic.

use super::*;
use tinyonn::checkpoint::load_model;

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
    assert!(message(ModelFolder::open(dir.path().join("no"))).contains("is not there"));
    fs::write(dir.path().join("notes.md"), "# Notes").unwrap();
    assert!(message(ModelFolder::open(dir.path().join("notes.md"))).contains("is not a folder"));
    assert!(message(ModelFolder::open(dir.path())).contains("config.json"));
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert!(message(ModelFolder::open(dir.path())).contains("neither model.safetensors"));
    fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    assert!(message(ModelFolder::open(dir.path())).contains("model.safetensors"));
}

/// Names are made for every layer, so that few bytes of configuration could fill the memory.
#[test]
fn more_layers_than_tensors_are_refused() {
    let config = Arch { num_hidden_layers: 4000, ..tiny() };
    let dir = folder(&config.to_json(), &dense(&tiny(), Dtype::F32), 1);
    let error = message(load_model(dir.path(), &CPU, None).map(drop));
    assert!(error.contains("config.json: `num_hidden_layers` is 4000") && error.len() < 400, "{error}");
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
