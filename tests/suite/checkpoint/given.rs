//! What users give in the place of a plain model folder: read where it is clear, or named with what to give instead.

use super::*;

/// The tiny model's tensors under other names.
fn renamed(rename: impl Fn(&str) -> String) -> TempDir {
    let tensors =
        dense(&tiny(), Dtype::F32).into_iter().map(|(name, dtype, shape, data)| (rename(&name), dtype, shape, data));
    folder(&tiny().to_json(), &tensors.collect::<Vec<_>>(), 1)
}

#[rstest]
#[case::the_body_alone(|name: &str| name.trim_start_matches("model.").to_owned())]
#[case::compiled(|name: &str| format!("_orig_mod.{name}"))]
#[case::compiled_by_layer(|name: &str| name.replace("layers.1.", "layers.1._orig_mod."))]
#[case::in_parallel(|name: &str| format!("module.{name}"))]
#[case::adapted(|name: &str| format!("base_model.model.{name}"))]
#[case::of_a_larger_model(|name: &str| format!("language_model.{name}"))]
#[case::of_a_newer_larger_model(|name: &str| name.replacen("model.", "model.language_model.", 1))]
fn a_prefix_too_many_or_too_few_is_read_through(#[case] rename: fn(&str) -> String) {
    let (plain, other) = (renamed(str::to_owned), renamed(rename));
    let read = |dir: &TempDir| {
        let folder = ModelFolder::open(dir.path()).unwrap();
        folder.check_names(&expected_tensors(&tiny())).unwrap();
        let store = folder.load(&CPU, None).unwrap();
        let bits = |(name, var): (&str, &Var)| {
            (name.to_owned(), values(var.as_tensor()).into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        (folder.sha256().unwrap(), store.iter().map(bits).collect::<Vec<_>>())
    };
    assert_eq!(read(&plain), read(&other));
}

#[rstest]
#[case::of_float_8("model.layers.0.mlp.up_proj.weight_scale_inv", Dtype::F32, "fp8 with scales")]
#[case::of_gptq_or_awq("model.layers.0.mlp.up_proj.qweight", Dtype::I32, "GPTQ or AWQ")]
#[case::of_4_bits("model.layers.0.mlp.up_proj.weight.absmax", Dtype::F32, "bitsandbytes, 4 bits")]
#[case::of_8_bits("model.layers.0.mlp.up_proj.SCB", Dtype::F32, "bitsandbytes, 8 bits")]
#[case::without_scales("model.layers.0.mlp.q.weight", Dtype::F8_E4M3, "fp8")]
fn quantised_weights_are_named_in_one_sentence(#[case] name: &str, #[case] dtype: Dtype, #[case] kind: &str) {
    let mut tensors = dense(&tiny(), Dtype::BF16);
    tensors.retain(|(name, ..)| !name.contains("up_proj"));
    tensors.push((name.into(), dtype, vec![1], bytes(dtype.bitsize() / 8, 3)));
    let dir = folder(&tiny().to_json(), &tensors, 1);
    let said = message(ModelFolder::open(dir.path()).unwrap().check_names(&expected_tensors(&tiny())));
    assert!(said.contains(&format!("is quantised ({kind}: it holds `{name}`)")) && said.contains("bf16"), "{said}");
    assert!(!said.contains("missing"), "{said}");
}

/// A configuration may list the head that it ties, and not store it.
#[test]
fn a_tied_head_that_an_index_lists_need_not_be_there() {
    let config = tiny();
    let dir = folder(&config.to_json(), &dense(&config, Dtype::F32), 2);
    let path = dir.path().join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    index["weight_map"]["lm_head.weight"] = json!("model-00001-of-00002.safetensors");
    fs::write(&path, index.to_string()).unwrap();
    ModelFolder::open(dir.path()).unwrap().check_names(&expected_tensors(&config)).unwrap();
    let untied = Arch { tie_word_embeddings: false, ..config };
    fs::write(dir.path().join("config.json"), untied.to_json().to_string()).unwrap();
    assert!(message(ModelFolder::open(dir.path())).contains("`lm_head.weight`"));
}

/// What came in goes out, where nothing was trained.
#[test]
fn a_head_that_repeats_the_embedding_is_put_back() {
    let config = tiny();
    let mut tensors = dense(&config, Dtype::F32);
    let (_, dtype, shape, data) =
        tensors.iter().find(|(name, ..)| name == "model.embed_tokens.weight").unwrap().clone();
    tensors.push(("lm_head.weight".into(), dtype, shape, data));
    let dir = folder(&config.to_json(), &tensors, 1);
    let source = ModelFolder::open(dir.path()).unwrap();
    let mut store = source.load(&CPU, None).unwrap();
    assert!(store.get("lm_head.weight").is_none());
    source.restore_head(&mut store).unwrap();
    let to = dir.path().join("again");
    ModelFolder::save(&to, &config.to_json(), &store, None).unwrap();
    let again = ModelFolder::open(&to).unwrap();
    assert_eq!(again.bytes("lm_head.weight").unwrap(), source.bytes("lm_head.weight").unwrap());
    // Where none was stored, none is made.
    let plain = renamed(str::to_owned);
    let mut store = ModelFolder::open(plain.path()).unwrap().load(&CPU, None).unwrap();
    ModelFolder::open(plain.path()).unwrap().restore_head(&mut store).unwrap();
    assert!(store.get("lm_head.weight").is_none());
}

#[rstest]
#[case("config.json")]
#[case("model.safetensors")]
fn a_git_lfs_pointer_is_called_one(#[case] file: &str) {
    let dir = renamed(str::to_owned);
    fs::write(dir.path().join(file), "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n").unwrap();
    let said = message(ModelFolder::open(dir.path()));
    assert!(said.contains(file) && said.contains("Git LFS pointer") && said.contains("git lfs pull"), "{said}");
}

#[test]
fn what_was_probably_meant_is_named() {
    let said = message(ModelFolder::open("Qwen/Qwen3-0.6B"));
    assert!(
        said.contains("is not there") && said.contains("`hf download Qwen/Qwen3-0.6B --local-dir FOLDER`"),
        "{said}"
    );
    assert!(!message(ModelFolder::open("/no/Qwen3-0.6B")).contains("hf download"));

    // A cache of the hub: its root, its folder of models, one model.
    let cache = TempDir::new().unwrap();
    let model = cache.path().join("hub/models--Qwen--Qwen3-0.6B");
    let snapshot = model.join("snapshots/0123abc");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(model.join("blobs")).unwrap();
    for given in [cache.path(), &cache.path().join("hub"), &model] {
        let said = message(ModelFolder::open(given));
        assert!(said.contains(&snapshot.display().to_string()), "{said}");
    }
    fs::create_dir(model.join("snapshots/4567def")).unwrap();
    assert!(message(ModelFolder::open(&model)).contains("snapshots/REVISION"));

    let run = TempDir::new().unwrap();
    fs::create_dir(run.path().join("tiny-onn")).unwrap();
    fs::write(run.path().join("tiny-onn/config.json"), "{}").unwrap();
    fs::write(run.path().join("config.json"), "{\"program\": \"exp_phase2\"}").unwrap();
    let said = message(ModelFolder::open(run.path()));
    assert!(said.contains("is the folder of a run") && said.ends_with("tiny-onn"), "{said}");
}

/// A byte order mark in front of a configuration is none of its JSON.
#[test]
fn a_configuration_may_begin_with_a_byte_order_mark() {
    let dir = renamed(str::to_owned);
    let path = dir.path().join("config.json");
    fs::write(&path, format!("\u{feff}{}", fs::read_to_string(&path).unwrap())).unwrap();
    assert_eq!(ModelFolder::open(dir.path()).unwrap().arch().unwrap(), tiny());
}
