//! Checkpoints as Qwen3MoE and Mixtral of transformers, and what these cannot hold.

use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use tempfile::tempdir;
use tinyonn::checkpoint::export::ExportFormat::{self, Mixtral, Qwen3Moe, TinyOnn};
use tinyonn::checkpoint::export::measure;
use tinyonn::checkpoint::{ModelFolder, TinyOnnFolder};
use tinyonn::decoder::{Arch, AttentionBias, Family};
use tinyonn::model::ActiveMode::{self, All, Routed};

use super::cases::Case;
use crate::models::{CPU, config, ids, message};

/// What the format holds is the checkpoint to roundings.
#[rstest]
#[case::all_active("ExportLevels", All, None, false, None)]
#[case::all_active_with_always("ExportNamed", All, None, false, None)]
#[case::all_active_of_neurons("OwnGate", All, Some(true), false, None)]
#[case::a_flat_linear_gate("ExportFlat", Routed, None, true, Some(1.0))]
#[case::a_fixed_set("Pruned", Routed, Some(false), false, None)]
fn what_it_holds_is_exact(
    #[case] variant: &'static str,
    #[case] active: ActiveMode,
    #[case] repaired: Option<bool>,
    #[case] without_constants: bool,
    #[case] agreement: Option<f64>,
    #[values((Qwen3Moe, Family::Qwen3), (Mixtral, Family::Llama))] (format, family): (ExportFormat, Family),
) {
    let mut case = Case { active: Some(active), repaired, without_constants, ..Case::of("moe", variant, format) };
    case.cfg.family = family;
    let root = tempdir().unwrap();
    let (from, to, exported) = case.write(root.path());
    let loss = measure(&TinyOnnFolder::open(from).unwrap(), &exported, &to, &ids((2, 9)), &CPU).unwrap();
    // Sums of the same numbers in another order, and W_d times K and by K.
    assert!(loss.max_abs_difference < 2e-5 && loss.kl_divergence < 1e-9, "{loss:?}");
    assert_eq!((loss.top1_agreement, loss.routing_agreement), (1.0, agreement));
    let folder = ModelFolder::open(&to).unwrap();
    let key = if format == Mixtral { "intermediate_size" } else { "moe_intermediate_size" };
    assert!(folder.config()[key].as_u64().unwrap().is_multiple_of(8));
    assert_eq!(folder.config()["num_local_experts"], tinyonn::moe::variant(variant).unwrap().spec.experts());
    assert!(folder.tensors().all(|(name, _)| !name.contains("_router") && !name.contains("neuron")));
}

/// Constants, levels and weights of one: what they cost is measured, and not nothing.
#[rstest]
#[case::constants("ExportFlat", &["constants"])]
#[case::levels("ExportLevels", &["the levels: one gate chooses 2 of 6", "`gate = unit`"])]
#[case::unit_weights("ExportGaussian", &["`gate = unit`"])]
fn what_it_loses_is_said_and_measured(#[case] variant: &'static str, #[case] words: &[&str]) {
    let (root, case) = (tempdir().unwrap(), Case::of("moe", variant, Qwen3Moe));
    let (from, to, exported) = case.write(root.path());
    let loss = measure(&TinyOnnFolder::open(from).unwrap(), &exported, &to, &ids((2, 9)), &CPU).unwrap();
    let agreement = loss.routing_agreement.unwrap();
    assert!(loss.kl_divergence > 1e-5 && agreement > 0.0 && agreement <= 1.0, "{loss:?}");
    let said = exported.left_out.join("\n");
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
}

/// Gaussians of one variance order choices as a linear gate does, but for their constants: without priors, and about one origin, exactly.
#[rstest]
fn gaussians_of_one_variance_and_norm_are_a_linear_gate(
    #[values("ExportGaussian", "ExportFullFlat")] variant: &'static str,
) {
    let (root, case) = (tempdir().unwrap(), Case::of("moe", variant, Qwen3Moe));
    let store = case.store();
    for layer in 0..2 {
        let name = |part: &str| format!("model.layers.{layer}.mlp.expert_router.{part}");
        let even = store.get(&name("log_prior")).unwrap().zeros_like().unwrap();
        store.set(&name("log_prior"), &even).unwrap();
        // Σ μ²/σ² the same for every choice, of (I + D) μ where there is one full Σ.
        let mean = store.get(&name("mean")).unwrap().as_detached_tensor();
        let apart = store.get(&name("decorrelation")).map_or_else(
            || mean.clone(),
            |decorrelation| {
                let one = Tensor::eye(4, DType::F32, &CPU).unwrap();
                let below = (Tensor::tril2(4, DType::F32, &CPU).unwrap() - one).unwrap();
                let below = decorrelation.broadcast_mul(&below).unwrap().transpose(1, 2).unwrap();
                (&mean + mean.matmul(&below).unwrap()).unwrap()
            },
        );
        let precision = store.get(&name("log_variance")).unwrap().neg().unwrap().exp().unwrap();
        let norm = (apart.sqr().unwrap().broadcast_mul(&precision)).unwrap().sum_keepdim(2).unwrap().sqrt().unwrap();
        store.set(&name("mean"), &mean.broadcast_div(&norm).unwrap()).unwrap();
    }
    let [from, to] = ["from", "to"].map(|name| root.path().join(name));
    case.save(&from, &store);
    let exported = case.export(&from, &to).unwrap();
    let loss = measure(&TinyOnnFolder::open(from).unwrap(), &exported, &to, &ids((2, 9)), &CPU).unwrap();
    // The first layer chooses alike; the second sees other inputs, since chosen experts are weighted there.
    assert!(loss.routing_agreement.unwrap() > 0.8, "{loss:?}");
}

#[rstest]
#[case::neurons("OwnGate", Qwen3Moe, Routed, None, &["OwnGate", "qwen3-moe", "`neurons = gate`", "tinyonn"])]
#[case::bounded_choices("ExportWhole", Qwen3Moe, Routed, Some(true), &["exp_sparsify", "bounded"])]
#[case::levels_of_neurons("ExportNeurons", Qwen3Moe, Routed, None, &["`neurons = gate`"])]
#[case::a_bias("Pruned", Qwen3Moe, Routed, Some(true), &["neurons.repair.bias", "`bias = false`"])]
#[case::a_cosine("ExportDeep", Qwen3Moe, Routed, None, &["expert_router", "cosine"])]
#[case::always("ExportNamed", Qwen3Moe, Routed, None, &["`always`"])]
#[case::adaptive("ExportNucleus", Qwen3Moe, Routed, None, &["`pfag`"])]
#[case::segments("ExportSegment", Qwen3Moe, Routed, None, &["`route_per`", "--active all"])]
#[case::replicas("ExportDispatched", Qwen3Moe, All, None, &["replicas"])]
#[case::replicas_for_transformers("ExportMerged", TinyOnn, Routed, None, &["ExportMerged", "`experts_are = replicate`", "dense"])]
#[case::segments_for_transformers("ExportSegment", TinyOnn, Routed, None, &["`route_per = segment`"])]
#[case::tasks_for_transformers("ExportTask", TinyOnn, Routed, None, &["`route_per = task`"])]
#[case::surprisal_for_transformers("ExportSurprisal", TinyOnn, Routed, None, &["`pfag = surprisal`"])]
#[case::own_routers_for_transformers("Laplace", TinyOnn, Routed, None, &["routers of a type of yours", "LaplaceRouter"])]
fn what_a_format_has_no_place_for_is_refused_by_name(
    #[case] variant: &'static str,
    #[case] format: ExportFormat,
    #[case] active: ActiveMode,
    #[case] repaired: Option<bool>,
    #[case] words: &[&str],
) {
    let case = Case { active: Some(active), repaired, ..Case::of("out", variant, format) };
    let root = tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| root.path().join(name));
    case.save(&from, &case.store());
    let said = message(case.export(&from, &to));
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    assert!(!to.exists());
}

#[rstest]
#[case(Qwen3Moe, Family::Llama, AttentionBias::None, &["`qwen3-moe`", "of llama", "`mixtral`, or as `tinyonn`"])]
#[case(Mixtral, Family::Qwen3, AttentionBias::None, &["`mixtral`", "of qwen3", "`qwen3-moe`, or as `tinyonn`"])]
#[case(Mixtral, Family::Qwen2, AttentionBias::Qkv, &["`mixtral`", "of qwen2", "export it as `tinyonn`"])]
fn other_families_are_refused_by_name(
    #[case] format: ExportFormat,
    #[case] family: Family,
    #[case] attention_bias: AttentionBias,
    #[case] words: &[&str],
) {
    let mut case = Case { active: Some(All), ..Case::of("out", "ExportLevels", format) };
    case.cfg = Arch { family, attention_bias, ..config(26, false) };
    let root = tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| root.path().join(name));
    case.save(&from, &case.store());
    let said = message(case.export(&from, &to));
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
}

/// The head that is tied, the types of the weights: bf16 stays bf16, and the gate is f32.
#[test]
fn weights_keep_their_type() {
    let mut case = Case { active: Some(All), ..Case::of("out", "ExportLevels", Qwen3Moe) };
    case.cfg = Arch { tie_word_embeddings: true, ..case.cfg };
    let root = tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| root.path().join(name));
    let store = case.store();
    let mut narrow = tinyonn::checkpoint::ParamStore::new(&Device::Cpu);
    for (name, var) in store.iter() {
        let is_dense = var.dtype() == DType::F32 && !name.contains("_router");
        let value = var.as_detached_tensor();
        narrow.insert(name, if is_dense { value.to_dtype(DType::BF16).unwrap() } else { value }).unwrap();
    }
    case.save(&from, &narrow);
    case.export(&from, &to).unwrap();
    let folder = ModelFolder::open(&to).unwrap();
    for (name, info) in folder.tensors() {
        let expected = if name.ends_with(".gate.weight") { DType::F32 } else { DType::BF16 };
        assert_eq!(info.computed(), Some(expected), "{name}");
    }
    assert!(folder.tensors().all(|(name, _)| name != "lm_head.weight"));
}
