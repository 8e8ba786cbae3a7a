//! The families of dense decoders: what they compute is differentiated, taken apart without a loss, and goes all the way.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use rstest::rstest;
use serde_json::Value;
use tempfile::TempDir;
use tinyonn::checkpoint::{
    ModelFolder, ParamStore, TinyOnnConfig, TinyOnnFolder, compare, compare_with_reference, dense_params, export_dense,
    load_model, tokens, upcycle,
};
use tinyonn::decoder::{Arch, AttentionBias, CausalLm, Family, Learn, Pass, RopeScaling};
use tinyonn::imaging::Partition;
use tinyonn::phases::{RunConfig, Stages, phase2, plan};

use crate::gradients::inputs;
use crate::lossless::assert_lossless_on;
use crate::models::{self, CPU, Learnt, apart, learnt, message, partition, variant, weights};
use crate::phase2::setting;
use crate::tiny;

/// A tiny member of each family, with what the family may have beside it: a scaling, biases, a layer without positions.
const MEMBERS: [&str; 8] = ["qwen3", "qwen2", "llama", "llama_linear", "llama3", "llama_biased", "mistral", "smollm3"];

fn member(name: &str) -> Arch {
    let plain = models::config(26, false);
    let of = |family| Arch { family, ..plain.clone() };
    match name {
        "qwen3" => plain,
        "qwen2" => Arch { attention_bias: AttentionBias::Qkv, tie_word_embeddings: true, ..of(Family::Qwen2) },
        "llama" => Arch { num_key_value_heads: 4, head_dim: 4, ..of(Family::Llama) },
        "llama_linear" => Arch { rope_scaling: RopeScaling::Linear { factor: 3.0 }, ..of(Family::Llama) },
        "llama3" => {
            // Waves of 6, 135 and 2916 positions: one of each kind.
            let (low_freq_factor, high_freq_factor) = (1.0, 32.0);
            let scaling = RopeScaling::Llama3 { factor: 8.0, low_freq_factor, high_freq_factor, original: 512 };
            Arch { rope_scaling: scaling, tie_word_embeddings: true, ..of(Family::Llama) }
        }
        "llama_biased" => Arch { attention_bias: AttentionBias::All, hidden_act: "gelu".into(), ..of(Family::Llama) },
        "mistral" => of(Family::Mistral),
        "smollm3" => Arch { nope_layers: vec![1], ..of(Family::SmolLm3) },
        other => unreachable!("{other}"),
    }
}

/// Every parameter on the list learns, and nothing else; the derivative along a random direction of all of them is Σ g·v. Central
/// differences are off by ε² = 1e-10 times the third derivative, which is some thousand times the first: 2e-7 of it was seen.
#[rstest]
fn gradients_are_those_of_differences(#[values(0, 1, 2, 3, 4, 5, 6, 7)] at: usize) {
    let cfg = member(MEMBERS[at]);
    let store = weights(&cfg, DType::F64);
    let (ids, targets) =
        (models::ids((2, 9)), tinyonn::checkpoint::tokens::random_tokens(37, (2, 9), 6, &CPU).unwrap());
    let model = CausalLm::dense(&cfg, &store.builder(DType::F64, |_| true)).unwrap();
    let Learnt { grads, .. } =
        learnt(&model, (&store, &|_: &str| true), (&ids, &targets), &Pass::all(), &Learn::default());
    let listed: Vec<String> = dense_params(&cfg).into_iter().map(|param| param.name).collect();
    assert_eq!(store.names().collect::<Vec<_>>(), listed);
    let direction = |name: &str, shape: &[usize]| inputs(name.len() as u64 + 7, &[shape]).remove(0);
    let mut expected = 0.0;
    for (name, var) in store.iter() {
        let g = grads.get(var).unwrap_or_else(|| panic!("{name} has no gradient")).copy().unwrap();
        let size = g.abs().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
        assert!(size > 0.0, "the gradient of {name} is zero");
        expected += (g * direction(name, var.dims())).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
    }
    let loss = |step: f64| {
        let mut moved = ParamStore::new(&CPU);
        for (name, var) in store.iter() {
            let by = (direction(name, var.dims()) * step).unwrap();
            moved.insert(name, (var.as_detached_tensor() + by).unwrap()).unwrap();
        }
        let model = CausalLm::dense(&cfg, &moved.builder(DType::F64, |_| false)).unwrap();
        let losses = model.token_losses(&ids, &targets, &Pass::all()).unwrap();
        losses.to_dtype(DType::F64).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
    };
    let found = (loss(1e-5) - loss(-1e-5)) / 2e-5;
    println!("{}: {found} {expected}", MEMBERS[at]);
    approx::assert_relative_eq!(found, expected, max_relative = 1e-6);
}

/// All active, taken apart and put together again: bit-equal, in memory, on disk and back, whatever the family.
#[rstest]
fn taking_apart_loses_nothing(
    #[values("Moe7x3", "Moe2x4", "Flat5")] variant: &str,
    #[values((DType::F32, Partition::Random, (2, 7)), (DType::BF16, Partition::Activation, (1, 9)))] how: (
        DType,
        Partition,
        (usize, usize),
    ),
) {
    for name in MEMBERS {
        println!("{name}");
        assert_lossless_on(&member(name), variant, how.1, how.0, how.2);
    }
}

/// Scan, routers and Surprise Min-K run through, and the folder at the end knows its family.
#[rstest]
fn every_family_goes_all_the_way(#[values(1, 2, 4, 5, 6, 7)] at: usize) {
    let dir = TempDir::new().unwrap();
    let config = setting(dir.path(), DType::F32);
    let cfg = Arch { vocab_size: tiny::TEXT_VOCAB, hidden_act: "silu".into(), ..member(MEMBERS[at]) };
    let (model, tokenizer) = (dir.path().join("dense"), dir.path().join("tokenizer"));
    fs::create_dir(&tokenizer).unwrap();
    fs::rename(model.join("tokenizer.json"), tokenizer.join("tokenizer.json")).unwrap();
    fs::remove_dir_all(&model).unwrap();
    ModelFolder::save(&model, &cfg.to_json(), &weights(&cfg, DType::F32), Some(&tokenizer)).unwrap();
    let summary = phase2(&RunConfig { variant: "Moe2x4".into(), ..config.clone() }, None).unwrap();
    assert!(summary.phase1.lossless.bit_equal && summary.smk.routed.is_finite());
    let trained = config.out.join("tiny-onn");
    assert_eq!(TinyOnnFolder::open(&trained).unwrap().arch(), &cfg);
    // Back to a dense folder, whose configuration is the one that came in.
    let back = dir.path().join("back");
    export_dense(&trained, &back).unwrap();
    assert_eq!(ModelFolder::open(&back).unwrap().config(), ModelFolder::open(&model).unwrap().config());
    load_model(&back, &CPU, None).unwrap();
}

/// What a family says is in the logits: without it they are others.
#[rstest]
#[case("llama_linear", Arch { rope_scaling: RopeScaling::None, ..member("llama_linear") })]
#[case("llama3", Arch { rope_scaling: RopeScaling::None, ..member("llama3") })]
#[case("smollm3", Arch { nope_layers: vec![], ..member("smollm3") })]
#[case("smollm3", Arch { nope_layers: vec![0, 1], ..member("smollm3") })]
fn what_a_configuration_asks_for_shows(#[case] name: &str, #[case] other: Arch) {
    let cfg = member(name);
    let store = weights(&cfg, DType::F32);
    let logits =
        |cfg: &Arch| models::dense(cfg, &store, DType::F32).logits(&models::ids((1, 30)), &Pass::all(), None).unwrap();
    let (a, b): (Tensor, Tensor) = (logits(&cfg), logits(&other));
    assert!(apart(&a, &b) > 1e-3);
}

/// What transformers made and computed (`make_decoders.py`).
const FOLDERS: [&str; 12] = [
    "qwen2_tied_f32",
    "qwen2_untied_bf16_sharded",
    "llama_untied_f32",
    "llama3_tied_bf16",
    "llama_linear_f32",
    "llama3_v5_f16",
    "smollm2_tied_f32",
    "mistral_untied_f32",
    "mistral_bf16_window",
    "smollm3_f32",
    "smollm3_nope_bf16",
    "llama_geglu_f32",
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/decoders")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Logits are of order 1 to 10: the last bits of f32 products summed in another order.
#[test]
fn logits_are_those_of_transformers() {
    for name in FOLDERS {
        let folder = fixtures().join(name);
        let model = load_model(&folder, &CPU, Some(DType::F32)).unwrap();
        let comparison = compare_with_reference(&model, folder.join("reference.safetensors"), &CPU, None, 2).unwrap();
        println!("{name}: max |Δlogit| {:.2e}", comparison.max_abs_difference);
        assert!(comparison.max_abs_difference <= 1e-5, "{name}: {comparison:?}");
        assert_eq!((comparison.tokens, comparison.top1_agreement), (38, 1.0), "{name}");
    }
}

/// Models of llama.cpp's form (`make_gguf.py`).
const FILES: [&str; 6] =
    ["llama_k", "llama_blocks", "qwen2_f16", "qwen3_bf16", "llama3_split-00002-of-00003", "mistral_linear"];

/// Folders and files, each with ids to read.
fn sources() -> impl Iterator<Item = (PathBuf, PathBuf)> {
    let files = fixtures().with_file_name("gguf");
    let folders = FOLDERS.map(|name| (fixtures().join(name), fixtures().join(name).join("reference.safetensors")));
    let files = FILES.map(|name| {
        let reference = name.split('-').next().unwrap();
        (files.join(format!("{name}.gguf")), files.join(format!("{reference}.safetensors")))
    });
    folders.into_iter().chain(files)
}

/// From a model of each kind to three declarations and back: the same bits of every logit, in the type it is stored in; the same bytes of
/// every weight; the configuration that came in, and what lay beside it.
#[rstest]
fn every_source_is_taken_apart_without_a_loss(#[values("Moe7x3", "Moe2x4", "Flat5")] name: &str) {
    for (source, reference) in sources() {
        let dense = ModelFolder::open(&source).unwrap();
        let (cfg, variant, parent) = (dense.arch().unwrap(), variant(name), TempDir::new().unwrap());
        let experts = partition(Partition::Random, &variant.spec, &cfg).unwrap();
        let upcycled = upcycle(dense.load(&CPU, None).unwrap(), &cfg, variant, &experts, 0).unwrap();
        let (tiny, back) = (parent.path().join("tiny"), parent.path().join("back"));
        let described = TinyOnnConfig::new(variant, Partition::Random, 3);
        TinyOnnFolder::save(&tiny, dense.config(), &described, &upcycled, Some(dense.dir())).unwrap();
        let [a, b] = [dense.dir(), &tiny].map(|dir| load_model(dir, &CPU, None).unwrap());
        let ids = tokens::read(reference, &CPU).unwrap();
        let comparison = compare(&a, &b, &ids, None, 2).unwrap();
        assert!(comparison.bit_equal, "{}: {comparison:?}", source.display());
        export_dense(&tiny, &back).unwrap();
        let back = ModelFolder::open(back).unwrap();
        assert_eq!(back.config().to_string(), dense.config().to_string(), "{}", source.display());
        for (name, _) in dense.tensors() {
            assert_eq!(back.bytes(name).unwrap(), dense.bytes(name).unwrap(), "{}, {name}", source.display());
        }
        let files = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"];
        let own = files.map(|file| source.is_file() || source.join(file).exists());
        assert_eq!(files.map(|file| tiny.join(file).exists() && back.dir().join(file).exists()), own);
    }
}

/// A head that is stored beside the embedding it repeats comes back, also where the family ties it and no key says so.
#[rstest]
fn a_stored_head_comes_back(#[values(true, false)] stated: bool) {
    let cfg = Arch { tie_word_embeddings: true, ..member("smollm3") };
    let mut json = cfg.to_json();
    if !stated {
        json.as_object_mut().unwrap().remove("tie_word_embeddings");
    }
    let mut store = weights(&cfg, DType::F32);
    let embedding = store.get("model.embed_tokens.weight").unwrap().as_detached_tensor();
    store.insert("lm_head.weight", embedding).unwrap();
    let parent = TempDir::new().unwrap();
    let [dense, tiny, back] = ["dense", "tiny", "back"].map(|name| parent.path().join(name));
    ModelFolder::save(&dense, &json, &store, None).unwrap();
    let folder = ModelFolder::open(&dense).unwrap();
    let variant = variant("Moe2x4");
    let experts = partition(Partition::Random, &variant.spec, &cfg).unwrap();
    let mut upcycled = upcycle(folder.load(&CPU, None).unwrap(), &cfg, variant, &experts, 0).unwrap();
    folder.restore_head(&mut upcycled).unwrap();
    TinyOnnFolder::save(&tiny, &json, &TinyOnnConfig::new(variant, Partition::Random, 3), &upcycled, None).unwrap();
    export_dense(&tiny, &back).unwrap();
    let names =
        |dir: &Path| ModelFolder::open(dir).unwrap().tensors().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
    assert!(names(&dense).contains(&"lm_head.weight".to_owned()));
    assert_eq!(names(&back), names(&dense));
}

/// What transformers computes and this library does not is refused by the key that asks for it.
#[test]
fn what_is_not_computed_is_refused_by_name() {
    let cases = json(&fixtures().join("refused.json"));
    for case in cases.as_array().unwrap() {
        let read = Arch::from_json(&case["config"], "config.json");
        match case["why_key"].as_str() {
            None => assert!(read.is_ok(), "{}: {}", case["what"], message(read)),
            Some(key) => {
                let refused = message(read);
                assert!(
                    refused.contains(&format!("`{key}` ")) && !refused.contains('\n'),
                    "{}: {refused}",
                    case["what"]
                );
            }
        }
    }
}

/// Every published size, from its configuration alone: the number of weights that transformers counts, and a plan of each stage.
#[test]
fn published_sizes_are_planned_on_paper() {
    let folder = fixtures().join("published");
    let listed = json(&folder.join("parameters.json"));
    assert!(listed.as_object().unwrap().len() >= 20);
    for (name, known) in listed.as_object().unwrap() {
        let path = folder.join(name).with_extension("json");
        let cfg = Arch::from_json(&json(&path), &path).unwrap();
        assert_eq!(Some(cfg.parameters() as u64), known["parameters"].as_u64(), "{name}");
        let config = RunConfig { model: Some(path), variant: "TinyOnn".into(), ..RunConfig::default() };
        let plan = plan(&config, Stages::Both).unwrap();
        let dense: usize =
            plan.by_role.iter().filter(|(role, _)| !role.words().contains("router")).map(|(_, n)| n).sum();
        assert_eq!((plan.parameters, dense), (cfg.parameters(), cfg.parameters()), "{name}");
        // f32 weights while scanning; masters, gradients and two moments of experts beside what is frozen while they learn.
        let [scan, smk] = [plan.stages[0].weights, plan.trainings[0].weights];
        assert_eq!(scan, 4 * cfg.parameters() as u64, "{name}");
        assert!(smk > 12 * plan.trainings[0].learning as u64 + scan, "{name}");
        assert!(plan.tasks.is_empty() && plan.shape.contains(cfg.family.model_type()), "{name}");
    }
}
