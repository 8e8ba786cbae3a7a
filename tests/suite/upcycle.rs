//! Upcycling and the Tiny-ONN folder: what is added, what is kept, and what is refused, by name.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use candle_core::{DType, Tensor};
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;
use tinyonn::checkpoint::{
    ModelFolder, ParamStore, TinyOnnConfig, TinyOnnFolder, expected_tensors, expected_variant_tensors, export_dense,
    load_model, refuse_not_finite, upcycle, upcycle_folder,
};
use tinyonn::decoder::Arch;
use tinyonn::files::StagedFolder;
use tinyonn::imaging::partition::{self, stored_gate_rows};
use tinyonn::imaging::{Partition, PartitionSources};
use tinyonn::model::ActiveMode;

use crate::models::{self, CPU, bits, config, ids, message, variant, weights};

fn small(name: &str, dtype: DType) -> (Arch, ParamStore) {
    let cfg = config(40, true);
    let (dense, variant) = (weights(&cfg, dtype), variant(name));
    let experts = models::partition(Partition::Random, &variant.spec, &cfg).unwrap();
    let sparse = upcycle(dense.deep_copy().unwrap(), &cfg, variant, &experts, 4).unwrap();
    (cfg, sparse)
}

/// A Tiny-ONN folder of `Moe7x3`.
fn folder(dtype: DType) -> (TempDir, PathBuf) {
    let (cfg, store) = small("Moe7x3", dtype);
    save(&cfg.to_json(), &TinyOnnConfig::new(variant("Moe7x3"), "random", 3), &store)
}

fn save(config: &Value, tinyonn: &TinyOnnConfig, store: &ParamStore) -> (TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("tiny");
    TinyOnnFolder::save(&dir, config, tinyonn, store, None).unwrap();
    (parent, dir)
}

fn is_router(name: &str) -> bool {
    name.contains("_router.")
}

// ---- what is added and what is kept ----

#[rstest]
fn dense_tensors_stay_as_they_are_and_routers_are_f32(#[values(DType::F32, DType::BF16, DType::F16)] dtype: DType) {
    let (cfg, sparse) = small("Moe7x3", dtype);
    let dense = weights(&cfg, dtype);
    let expected = expected_variant_tensors(&cfg, variant("Moe7x3")).unwrap();
    assert!(sparse.names().eq(expected.keys().map(String::as_str)));
    for (name, var) in sparse.iter() {
        // In memory W_d has a row a neuron, in files a column.
        let turned = name.ends_with("down_proj.weight");
        let stored: Vec<usize> = if turned { var.dims().iter().rev().copied().collect() } else { var.dims().to_vec() };
        assert_eq!(stored, expected[name], "{name}");
        let kind = match dense.get(name) {
            Some(before) => {
                assert_eq!(bits(before), bits(var), "{name}");
                dtype
            }
            None if name.ends_with(".mlp.neuron_expert") => DType::U32,
            None => {
                assert!(is_router(name), "{name}");
                DType::F32
            }
        };
        assert_eq!(var.dtype(), kind, "{name}");
    }
    // Two layers of: a partition, and two levels of five parameters.
    assert_eq!(sparse.len() - dense.len(), 2 * (1 + 2 * 5));
    assert_eq!(expected.len() - expected_tensors(&cfg).len(), 22);
    assert_eq!(expected["model.layers.1.mlp.expert_router.mean"], [7, 3, 5]);
}

#[test]
fn the_upcycled_store_shares_nothing_with_the_dense_one() {
    let cfg = config(40, true);
    let dense = weights(&cfg, DType::F32);
    let experts = models::partition(Partition::Contiguous, &variant("Moe2x4").spec, &cfg).unwrap();
    let sparse = upcycle(dense.deep_copy().unwrap(), &cfg, variant("Moe2x4"), &experts, 4).unwrap();
    let name = "model.norm.weight";
    sparse.set(name, &Tensor::zeros(16, DType::F32, &CPU).unwrap()).unwrap();
    assert_ne!(bits(dense.get(name).unwrap()), bits(sparse.get(name).unwrap()));
}

#[test]
fn routers_depend_on_the_seed_and_their_name_alone() {
    let cfg = config(40, true);
    let dense = weights(&cfg, DType::F32);
    let routers = |seed, strategy| {
        let variant = variant("Moe7x3");
        let sparse = upcycle(
            dense.deep_copy().unwrap(),
            &cfg,
            variant,
            &models::partition(strategy, &variant.spec, &cfg).unwrap(),
            seed,
        )
        .unwrap();
        let random = |name: &&str| name.ends_with("mean") || name.ends_with("projection");
        sparse.names().filter(random).map(|name| bits(sparse.get(name).unwrap())).collect::<Vec<_>>()
    };
    let first = routers(1, Partition::Contiguous);
    assert_eq!(first, routers(1, Partition::Random));
    let second = routers(2, Partition::Contiguous);
    assert_eq!(first.len(), 8);
    for (i, values) in first.iter().enumerate() {
        assert!(!second.contains(values) && !first[..i].contains(values), "router parameter {i} is drawn twice");
    }
}

#[rstest]
fn a_folder_loads_as_it_was_saved_and_routers_stay_f32_in_any_type(
    #[values(None, Some(DType::F32), Some(DType::BF16), Some(DType::F16))] dtype: Option<DType>,
) {
    let (_parent, dir) = folder(DType::BF16);
    let (_, saved) = small("Moe7x3", DType::BF16);
    let opened = TinyOnnFolder::open(&dir).unwrap();
    assert_eq!(opened.router_names().collect::<Vec<_>>(), saved.names().filter(|n| is_router(n)).collect::<Vec<_>>());
    assert_eq!(opened.config(), &TinyOnnConfig::new(variant("Moe7x3"), "random", 3));
    let store = opened.load(&CPU, dtype).unwrap();
    assert!(store.names().eq(saved.names()));
    for (name, var) in saved.iter() {
        let loaded = store.get(name).unwrap();
        let kind =
            if is_router(name) || var.dtype() == DType::U32 { var.dtype() } else { dtype.unwrap_or(DType::BF16) };
        assert_eq!(loaded.dtype(), kind, "{name}");
        // The dense values came from bf16: f32 holds them, and so does f16 but for the smallest.
        assert!(dtype == Some(DType::F16) && !is_router(name) || bits(loaded) == bits(var), "{name}");
    }
}

#[rstest]
fn the_way_back_restores_folder_and_configuration(
    #[values("tied_f32", "untied_bf16_sharded", "mqa_f16", "untied_f32_v4", "tied_stored_head_bf16")] name: &str,
) {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/qwen3").join(name);
    let parent = tempfile::tempdir().unwrap();
    let [plain, tiny, back] = ["plain", "tiny", "back"].map(|name| parent.path().join(name));
    fs::create_dir(&plain).unwrap();
    for entry in fs::read_dir(&source).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), plain.join(entry.file_name())).unwrap();
    }
    fs::write(plain.join("tokenizer.json"), "{\"any\": \"bytes\"}").unwrap();

    let folder = ModelFolder::open(&plain).unwrap();
    let (cfg, variant) = (folder.arch().unwrap(), variant("Moe7x3"));
    let experts = models::partition(Partition::Random, &variant.spec, &cfg).unwrap();
    let sparse = upcycle(folder.load(&CPU, None).unwrap(), &cfg, variant, &experts, 0).unwrap();
    let described = TinyOnnConfig::new(variant, Partition::Random, 3);
    TinyOnnFolder::save(&tiny, folder.config(), &described, &sparse, Some(&plain)).unwrap();
    export_dense(&tiny, &back).unwrap();

    let (opened, restored) = (TinyOnnFolder::open(&tiny).unwrap(), ModelFolder::open(&back).unwrap());
    assert_eq!(restored.config().to_string(), folder.config().to_string(), "keys, values and their order");
    for (key, value) in folder.config().as_object().unwrap() {
        let kept = key == "model_type" || key == "architectures" || opened.folder().config()[key] == *value;
        assert!(kept, "{key}");
    }
    for name in expected_tensors(&cfg).keys() {
        assert_eq!(folder.bytes(name).unwrap(), restored.bytes(name).unwrap(), "{name}");
    }
    for dir in [&tiny, &back] {
        assert_eq!(fs::read(dir.join("tokenizer.json")).unwrap(), fs::read(plain.join("tokenizer.json")).unwrap());
    }
}

/// File to file writes what loading, upcycling and saving do, byte for byte, and the way back what was there.
#[rstest]
#[case::tied("qwen3/tied_f32")]
#[case::sharded("qwen3/untied_bf16_sharded")]
#[case::half("qwen3/mqa_f16")]
#[case::stored_head("qwen3/tied_stored_head_bf16")]
#[case::blocks("gguf/qwen2_f16.gguf")]
fn file_to_file_is_what_memory_makes(
    #[case] name: &str,
    #[values("Moe7x3", "Moe2x4")] variant_name: &str,
    #[values(Partition::Random, Partition::Kmeans)] strategy: Partition,
) {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    let parent = tempfile::tempdir().unwrap();
    let [memory, file, back] = ["memory", "file", "back"].map(|name| parent.path().join(name));
    let folder = ModelFolder::open(&source).unwrap();
    let (cfg, variant) = (folder.arch().unwrap(), variant(variant_name));
    let rows = |layer| stored_gate_rows(&folder, layer);
    let sources = PartitionSources { gate_rows: Some(&rows), ..PartitionSources::default() };
    let shape = (cfg.num_hidden_layers, cfg.intermediate_size);
    let experts = partition::assign(strategy, &variant.spec, shape, sources, 3).unwrap();

    let dense = folder.load(&CPU, None).unwrap();
    let parameters = dense.parameters();
    let mut sparse = upcycle(dense, &cfg, variant, &experts, 3).unwrap();
    let added = sparse.parameters() - parameters;
    folder.restore_head(&mut sparse).unwrap();
    let described = TinyOnnConfig::new(variant, strategy, 3);
    TinyOnnFolder::save(&memory, folder.config(), &described, &sparse, Some(&source)).unwrap();
    let staged = StagedFolder::new(&file).unwrap();
    let written = upcycle_folder(&folder, &staged, variant, (strategy, &experts), 3).unwrap();
    staged.publish().unwrap();
    assert_eq!((written.dense, written.added), (parameters, added));
    assert!(written.not_finite.is_empty());
    let names = |dir: &PathBuf| -> BTreeSet<_> { fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect() };
    assert_eq!(names(&memory), names(&file));
    for name in names(&memory) {
        assert_eq!(fs::read(memory.join(&name)).unwrap(), fs::read(file.join(&name)).unwrap(), "{}", name.display());
    }
    export_dense(&file, &back).unwrap();
    let back = ModelFolder::open(&back).unwrap();
    for (name, _) in folder.tensors() {
        assert!(folder.same_bytes(name, (&back, name)).unwrap(), "{name}");
    }
    assert!(!folder.same_bytes("model.norm.weight", (&back, "model.layers.0.input_layernorm.weight")).unwrap());
}

#[test]
fn file_to_file_says_what_is_not_finite_and_refuses_experts() {
    let (cfg, parent) = (config(40, true), tempfile::tempdir().unwrap());
    let store = weights(&cfg, DType::BF16);
    let name = "model.layers.1.mlp.up_proj.weight";
    let spoilt = store.get(name).unwrap().affine(f64::INFINITY, 0.0).unwrap();
    store.set(name, &spoilt).unwrap();
    let [dense, tiny, twice] = ["dense", "tiny", "twice"].map(|name| parent.path().join(name));
    ModelFolder::save(&dense, &cfg.to_json(), &store, None).unwrap();
    let variant = variant("Moe7x3");
    let experts = models::partition(Partition::Random, &variant.spec, &cfg).unwrap();
    let upcycled = |from: &PathBuf, to: &PathBuf| {
        let staged = StagedFolder::new(to)?;
        let written = upcycle_folder(&ModelFolder::open(from)?, &staged, variant, (Partition::Random, &experts), 3)?;
        staged.publish()?;
        Ok(written)
    };
    let written: tinyonn::checkpoint::Upcycled = upcycled(&dense, &tiny).unwrap();
    let expected = vec![(name.to_owned(), spoilt.elem_count())];
    assert_eq!(written.not_finite, expected);
    assert_eq!(ModelFolder::open(&dense).unwrap().not_finite().unwrap(), expected);
    let refused = message(refuse_not_finite(&dense, &expected, "mend it"));
    assert!(refused.contains(name) && refused.contains("mend it"), "{refused}");
    let twice: tinyonn::Result<_> = upcycled(&tiny, &twice);
    assert!(message(twice).contains("is a Tiny-ONN checkpoint already"));
}

#[rstest]
#[case(ActiveMode::All, "all")]
#[case(ActiveMode::Routed, "routed")]
fn the_active_mode_is_the_folders(#[case] active: ActiveMode, #[case] word: &str) {
    let (cfg, store) = small("Moe2x4", DType::F32);
    let described = TinyOnnConfig { active, ..TinyOnnConfig::new(variant("Moe2x4"), Partition::Random, 3) };
    let (_parent, dir) = save(&cfg.to_json(), &described, &store);
    let config = ModelFolder::open(&dir).unwrap().config().clone();
    assert_eq!((&config["tinyonn"]["active"], &config["model_type"]), (&json!(word), &json!("tinyonn")));
    assert_eq!(config["architectures"], json!(["TinyOnnForCausalLM"]));
    assert_eq!(config["tinyonn"]["partition"], json!({ "strategy": "random", "seed": 3 }));
    let model = load_model(&dir, &CPU, None).unwrap();
    assert_eq!((model.active(), model.variant()), (active, Some("Moe2x4")));
    let [all, routed] =
        [ActiveMode::All, ActiveMode::Routed].map(|mode| model.logits(&ids((1, 9)), &mode.pass()).unwrap());
    assert_ne!(bits(&all), bits(&routed));
}

// ---- what is refused ----

#[rstest]
#[case::layers(vec![vec![0; 40]; 3], &["neuron_expert", "40, 40, 40", "2 layers of 40"])]
#[case::width(vec![vec![0; 40], vec![0; 41]], &["neuron_expert", "41"])]
#[case::empty_expert(vec![(0..40).map(|i| i % 7).collect(); 2], &["layers.0", "expert 7 without a neuron"])]
#[case::unknown_expert(vec![(0..40).map(|i| i % 9).collect(); 2], &["layers.0", "expert 8 of 8"])]
fn a_partition_that_cannot_work_is_refused(#[case] experts: Vec<Vec<u32>>, #[case] words: &[&str]) {
    let cfg = config(40, true);
    let refused = message(upcycle(weights(&cfg, DType::F32), &cfg, variant("Moe2x4"), &experts, 0));
    assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
}

#[test]
fn a_store_that_is_not_the_dense_models_is_refused() {
    let (cfg, sparse) = small("Moe2x4", DType::F32);
    let experts = models::partition(Partition::Random, &variant("Moe2x4").spec, &cfg).unwrap();
    let again = message(upcycle(sparse.deep_copy().unwrap(), &cfg, variant("Moe2x4"), &experts, 0));
    assert!(again.contains("model.layers.0.mlp.neuron_expert") && again.contains("already"), "{again}");

    let name = "model.layers.1.mlp.up_proj.weight";
    let mut dense = weights(&cfg, DType::F32);
    dense.remove(name).unwrap();
    let lacking = message(upcycle(dense.deep_copy().unwrap(), &cfg, variant("Moe2x4"), &experts, 0));
    assert!(lacking.contains(name), "{lacking}");
    dense.insert(name, Tensor::zeros((41, 16), DType::F32, &CPU).unwrap()).unwrap();
    let misshapen = message(upcycle(dense.deep_copy().unwrap(), &cfg, variant("Moe2x4"), &experts, 0));
    assert!(misshapen.contains(name) && misshapen.contains("[40, 16]"), "{misshapen}");
}

/// The paths of a checkpoint that is routed by its task are of its layers and experts.
#[rstest]
#[case(json!([[0, 3], [1]]), None)]
#[case(json!([[0, 3]]), Some("has 1 layers of 2"))]
#[case(json!([[0, 3], []]), Some("in layer 1"))]
#[case(json!([[0, 3], [12]]), Some("12 experts"))]
#[case(json!([[3, 0], [1]]), Some("in layer 0"))]
fn stored_paths_are_checked(#[case] experts: Value, #[case] refusal: Option<&str>) {
    let (cfg, variant, store) = crate::routing::upcycled("ByTask");
    let mut config = TinyOnnConfig::new(variant, "random", 5).write_to(&cfg.to_json());
    config["tinyonn"]["paths"] = json!([{ "task": "prose", "experts": experts }]);
    let parent = TempDir::new().unwrap();
    ModelFolder::save(parent.path().join("saved"), &config, &store, None).unwrap();
    let opened = TinyOnnFolder::open(parent.path().join("saved"));
    match refusal {
        None => assert_eq!(opened.unwrap().config().path_table().unwrap().experts, [[vec![0, 3], vec![1]]]),
        Some(words) => {
            let refused = message(opened);
            assert!(refused.contains(words) && refused.contains("task `prose`"), "{refused}");
        }
    }
}

#[rstest]
#[case::dense("/model_type", Some(json!("qwen3")), &["model_type", "exp_upcycle"])]
#[case::nothing("/tinyonn", None, &["tinyonn", "exp_upcycle"])]
#[case::nameless("/tinyonn/variant", Some(json!(7)), &["tinyonn.variant"])]
#[case::unknown("/tinyonn/variant", Some(json!("Nobodys")), &["Nobodys", "Moe7x3", "use my_variants as _;"])]
#[case::other("/tinyonn/variant", Some(json!("Moe2x4")), &["`spec.levels[0].routers[0].choices` is 7 in the file, 2 as declared"])]
#[case::top_k("/tinyonn/spec/levels/1/routers/0/top_k", Some(json!(1)), &["`spec.levels[1].routers[0].top_k` is 1 in the file, 2 as declared"])]
#[case::route_per("/tinyonn/spec/route_per", Some(json!("task")), &["`spec.route_per` is \"task\" in the file, \"token\" as declared"])]
#[case::unreadable("/tinyonn/spec/levels/0/routers/0/kind", Some(json!("psychic")), &["`spec.levels[0].routers[0].kind`", "psychic"])]
#[case::added("/tinyonn/spec/colour", Some(json!("red")), &["`spec.colour` is \"red\" in the file, nothing as declared"])]
#[case::no_spec("/tinyonn/spec", None, &["`spec` is nothing in the file"])]
#[case::hierarchy("/tinyonn/spec", Some(json!(tinyonn::gallery::TinyOnn::SPEC)), &["the hierarchy is 10 × 10 in the file, 7 × 3 as declared", "`spec.name` is \"TinyOnn\"", "and 2 more"])]
#[case::kind("/tinyonn/spec/levels/0/routers/0/kind", Some(json!("linear")), &["`spec.levels[0].routers[0].kind` is \"linear\" in the file, {\"gaussian\":{\"dim\":5"])]
#[case::form("/tinyonn/spec/levels/0/routers/0/kind/gaussian/covariance", Some(json!("shared")), &["kind.gaussian.covariance` is \"shared\" in the file, \"diag\" as declared"])]
#[case::replicas("/tinyonn/spec/experts_are", Some(json!("replicate")), &["`spec.experts_are` is \"replicate\" in the file, \"slice\" as declared"])]
#[case::activation("/tinyonn/spec/activation", Some(json!("gelu")), &["`spec.activation` is \"gelu\" in the file, nothing as declared"])]
#[case::pfag("/tinyonn/spec/pfag", Some(json!({ "nucleus": { "mass": 0.9 } })), &["`spec.pfag` is {\"nucleus\":{\"mass\":0.9}} in the file, \"off\" as declared"])]
#[case::balance("/tinyonn/spec/balance", Some(json!({ "bias": { "rate": 0.001 } })), &["`spec.balance` is {\"bias\":{\"rate\":0.001}} in the file, \"none\""])]
#[case::always("/tinyonn/spec/always", Some(json!([{ "name": "shared", "experts": 2 }])), &["7 × 3, shared 2 always in the file, 7 × 3 as declared", "`spec.always[0]` is {"])]
#[case::one_level_more("/tinyonn/spec/levels/2", Some(json!({ "name": "third", "routers": [] })), &["`spec.levels[2]` is {", "in the file, nothing as declared"])]
#[case::older("/tinyonn/spec/jitter", None, &["`spec.jitter` is nothing in the file, 0.0 as declared"])]
#[case::mode("/tinyonn/active", Some(json!("some")), &["some", "all", "routed"])]
#[case::no_partition("/tinyonn/partition", None, &["`tinyonn.partition` is missing", "config.json"])]
#[case::paths("/tinyonn/paths", Some(json!([{ "task": "prose", "experts": [[0], [1]] }])), &["`tinyonn.paths`", "not routed by its task"])]
#[case::overflow("/tinyonn/spec/levels/0/routers/0/parents", Some(json!(1u64 << 63)), &["parents` is 9223372036854775808 in the file"])]
#[case::unknown_key("/tinyonn/colour", Some(json!("red")), &["colour"])]
fn a_configuration_that_does_not_fit_is_refused(
    #[case] key: &str,
    #[case] value: Option<Value>,
    #[case] words: &[&str],
) {
    let (_parent, dir) = folder(DType::F32);
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let (parent, key) = key.rsplit_once('/').unwrap();
    match (config.pointer_mut(parent).unwrap(), value) {
        (Value::Array(list), Some(value)) => list.push(value),
        (object, Some(value)) => object[key] = value,
        (object, None) => drop(object.as_object_mut().unwrap().remove(key)),
    }
    fs::write(path, config.to_string()).unwrap();
    let refused = message(TinyOnnFolder::open(&dir));
    assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
    assert!(!refused.contains("`spec.levels[0].name`"), "what agrees is not shown: {refused}");
}

#[rstest]
#[case::missing("model.layers.1.mlp.expert_router.scale", None, &["missing", "expert_router.scale"])]
#[case::no_partition("model.layers.0.mlp.neuron_expert", None, &["missing", "neuron_expert"])]
#[case::no_weight("model.norm.weight", None, &["missing", "model.norm.weight"])]
#[case::shape("model.layers.0.mlp.group_router.mean", Some((vec![1, 6, 5], DType::F32)), &["another shape", "[1, 7, 5]"])]
#[case::unexpected("model.layers.0.mlp.third_router.mean", Some((vec![1], DType::F32)), &["unexpected", "third_router"])]
#[case::converted("model.layers.0.mlp.group_router.mean", Some((vec![1, 7, 5], DType::BF16)), &["group_router.mean", "BF16", "F32"])]
#[case::float_partition("model.layers.0.mlp.neuron_expert", Some((vec![40], DType::F32)), &["neuron_expert", "F32", "U32"])]
#[case::one_expert("model.layers.0.mlp.neuron_expert", Some((vec![40], DType::U32)), &["neuron_expert", "expert 1 without"])]
fn weights_that_do_not_fit_are_refused(
    #[case] name: &str,
    #[case] replacement: Option<(Vec<usize>, DType)>,
    #[case] words: &[&str],
) {
    let (cfg, mut store) = small("Moe7x3", DType::F32);
    store.remove(name);
    if let Some((shape, dtype)) = replacement {
        store.insert(name, Tensor::zeros(shape, dtype, &CPU).unwrap()).unwrap();
    }
    let (_parent, dir) = save(&cfg.to_json(), &TinyOnnConfig::new(variant("Moe7x3"), "random", 3), &store);
    let refused = message(load_model(&dir, &CPU, None));
    assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("out");
    // What only running shows does not keep the dense weights from coming back.
    assert_eq!(export_dense(&dir, &out).is_ok(), words.contains(&"expert 1 without"));
}

#[test]
fn a_folder_in_use_is_never_overwritten() {
    let (_parent, dir) = folder(DType::F32);
    let (_other, occupied) = folder(DType::F32);
    let before = fs::read(occupied.join("model.safetensors")).unwrap();
    let refused = message(export_dense(&dir, &occupied));
    assert!(refused.contains("not empty"), "{refused}");
    assert_eq!(fs::read(occupied.join("model.safetensors")).unwrap(), before);
}
