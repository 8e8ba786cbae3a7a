//! Layers behind routers made sparse at a share: what is taken meets it, routers counted in, and all active is the dense model.

use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::checkpoint::{TinyOnnFolder, load_model};
use tinyonn::decoder::Pass;
use tinyonn::imaging::choice_calibration::{choice_parameters, routed_cut};
use tinyonn::imaging::{Choose, calibrate_choices};
use tinyonn::moe::{MoeSpec, Scores, moe};
use tinyonn::ops::glu_mlp;
use tinyonn::phases::{Shares, SparsifyConfig, SparsifySummary, Worth, sparsify, sparsify_from};
use tinyonn::train::RouterTarget;

use crate::gradients::{inputs, relative_difference};
use crate::models::{bits, ids, message};
use crate::phase2::setting;
use crate::tiny;

/// Six groups, and the token's own gate within them.
#[moe(levels = [6], top_k = 6, router = linear(dim = 2), neurons = gate, partition = coactivation)]
pub(crate) struct GatedSix;

/// Six groups, whole.
#[moe(levels = [6], top_k = 6, router = linear(dim = 2), partition = kmeans)]
pub(crate) struct WholeSix;

/// Two levels that read one projection, beside a group that always takes part.
#[moe(groups = 3, experts = 3, always = 1, top_k = [3, 3], router = linear(dim = 1), neurons = gate)]
pub(crate) struct GatedThrees;

/// All logits at once are dear beside 26 neurons.
#[moe(levels = [6], top_k = 6, router = linear, neurons = gate)]
pub(crate) struct DearSix;

/// It reduces nothing of 16 channels.
#[moe(levels = [6], top_k = 6, router = linear(dim = 16), neurons = gate)]
pub(crate) struct WideSix;

/// Whose labels a scan would have to make.
#[moe(levels = [6], top_k = 6, router = linear(dim = 2), partition = sps)]
pub(crate) struct ScannedSix;

pub(crate) fn config(dir: &TempDir, variant: &str) -> SparsifyConfig {
    let run = setting(dir.path(), DType::F32);
    SparsifyConfig {
        model: run.model,
        variant: variant.into(),
        data: run.data,
        out: dir.path().join("sparse"),
        length: 16,
        batch: 4,
        calibration_tokens: 800,
        validation_tokens: 200,
        test_tokens: 400,
        ..SparsifyConfig::default()
    }
}

/// All active it is the dense model, bit for bit, behind routers, repair and all; held-out text takes about what was asked for, routers counted in; what was
/// written is what was measured.
#[rstest]
#[case::gate_within_groups("GatedSix", Choose::Threshold, 0)]
#[case::gate_within_as_many_groups("GatedSix", Choose::TopK, 0)]
#[case::distilled("GatedSix", Choose::Threshold, 3)]
#[case::whole_groups("WholeSix", Choose::Threshold, 0)]
#[case::as_many_whole_groups("WholeSix", Choose::TopK, 0)]
#[case::whole_groups_distilled("WholeSix", Choose::Threshold, 3)]
#[case::two_levels("GatedThrees", Choose::Threshold, 0)]
fn groups_meet_the_share(#[case] variant: &str, #[case] choose: Choose, #[case] steps: u64) {
    let dir = TempDir::new().unwrap();
    let mut config = SparsifyConfig { choose: Some(choose), ..config(&dir, variant) };
    (config.distil.steps, config.distil.batch) = (steps, 4);
    let SparsifySummary { lossless, operations, routers, router_kept, asked, loss, repaired_on, .. } =
        sparsify(&config, None).unwrap();
    assert!(lossless.bit_equal && repaired_on > 0);
    let spec = &tinyonn::moe::variant(variant).unwrap().spec;
    assert_eq!(routers, spec.router_operations(16).unwrap() as f64 / f64::from(3 * 26 * 16));
    // A third of a group, or what text differs by from text.
    assert!((operations - 0.5).abs() < 0.1, "{operations}");
    let cost = asked.iter().map(|cut| cut.operations()).sum::<f64>() / 2.0 + routers;
    assert!((cost - 0.5).abs() < 1e-9, "{cost}");
    // No less than chance, at most the best.
    assert!(router_kept.len() == 2 && router_kept.iter().all(|kept| (0.0..=1.0).contains(kept)), "{router_kept:?}");
    assert!(loss.sparse.is_finite());

    let (out, ids) = (config.out.join("tiny-onn"), ids((1, 11)));
    let loaded = load_model(&out, &Device::Cpu, None).unwrap();
    let dense = load_model(dir.path().join("dense"), &Device::Cpu, None).unwrap();
    let [all, routed] = [Pass::all(), Pass::routed()].map(|pass| bits(&loaded.logits(&ids, &pass).unwrap()));
    assert!(all == bits(&dense.logits(&ids, &Pass::all()).unwrap()) && all != routed);
    if steps == 0 {
        let again = SparsifyConfig { out: dir.path().join("again"), ..config.clone() };
        let SparsifySummary { loss: of_again, operations: as_many, .. } =
            sparsify_from(&config.out, &again, None).unwrap();
        assert_eq!((of_again, as_many), (loss, operations));
    }
}

/// The target and fixed candidates are settings like any other.
#[test]
fn settings_of_routers_are_heeded() {
    let dir = TempDir::new().unwrap();
    let base = SparsifyConfig { shares: Shares::Uniform, worth: Worth::Norm, ..config(&dir, "GatedSix") };
    let config = SparsifyConfig { router_target: RouterTarget::Log, candidates: Some(0.7), ..base.clone() };
    let found = sparsify(&config, None).unwrap();
    assert!(found.asked.iter().all(|cut| cut.candidates == 0.7), "{:?}", found.asked);
    let json = serde_json::to_string(&config).unwrap();
    assert!(json.contains("\"router_target\":\"log\""), "{json}");
    assert!(!serde_json::to_string(&base).unwrap().contains("router_target"));
}

#[rstest]
#[case("DearSix", &["its routers cost", "more than 5 %", "linear(dim = 2)"])]
#[case("WideSix", &["reduces nothing of the hidden size 16", "less than 16"])]
#[case("ScannedSix", &["`partition = sps`", "coactivation"])]
#[case("Moe2x4", &["group_router", "no linear router", "GroupedGate"])]
#[case("Mixtral", &["neither neurons nor slices of weight 1"])]
fn what_cannot_be_made_is_refused(#[case] variant: &str, #[case] words: &[&str]) {
    let dir = TempDir::new().unwrap();
    let refused = message(sparsify(&config(&dir, variant), None));
    assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
}

#[test]
fn candidates_are_no_word_for_whole_groups() {
    let dir = TempDir::new().unwrap();
    let refused = message(sparsify(&SparsifyConfig { candidates: Some(0.5), ..config(&dir, "WholeSix") }, None));
    assert!(refused.contains("candidates") && refused.contains("whole experts"), "{refused}");
}

/// Of three hundred rows the share of all pairs of row and group is met to the pair, and what a checkpoint holds of it chooses the same.
#[rstest]
fn thresholds_meet_their_share(#[values("WholeSix", "GatedThrees")] name: &str) {
    let cfg = tiny::config(40);
    let (variant, mut store) = tiny::upcycled(&cfg, name, &tiny::dense_store(&cfg, 1));
    let x = inputs(5, &[&[300, cfg.hidden_size]]).remove(0).to_dtype(DType::F32).unwrap();
    let model = tiny::sparse(&cfg, variant, &store);
    let found = calibrate_choices(model.moe(1), &x, 0.5, Choose::Threshold).unwrap();
    for (name, value) in choice_parameters(&found, &Device::Cpu).unwrap() {
        store.insert(format!("model.layers.1.mlp.{name}"), value).unwrap();
    }
    let model = tiny::sparse(&cfg, variant, &store);
    let layer = model.moe(1);
    let open = layer.candidates(&x).unwrap().unwrap();
    let owners = layer.experts().neuron_expert().unwrap().to_vec1::<u32>().unwrap();
    let scores = Scores::new(layer, &x).unwrap().by_level().unwrap();
    let scores: Vec<Vec<Vec<f32>>> = scores.iter().map(|scores| scores.to_vec2().unwrap()).collect();
    let spec: &MoeSpec = layer.spec();
    let (mut pairs, open) = (0, open.to_vec2::<f32>().unwrap());
    for (row, open) in open.iter().enumerate() {
        for expert in 0..spec.routed_experts() {
            let taken = (0..spec.levels.len())
                .all(|level| scores[level][row][spec.node_of_experts(level)[expert]] >= found.least_score[level]);
            pairs += usize::from(taken);
            for (neuron, _) in owners.iter().enumerate().filter(|(_, owner)| **owner as usize == expert) {
                assert_eq!(open[neuron], f32::from(u8::from(taken)), "{row} {expert}");
            }
        }
        let always = owners.iter().enumerate().filter(|(_, owner)| **owner as usize >= spec.routed_experts());
        assert!(always.into_iter().all(|(neuron, _)| open[neuron] == 1.0));
    }
    let always = spec.always_experts() as f64 / spec.experts() as f64;
    let expected = (0.5 - always) / (1.0 - always) * (300 * spec.routed_experts()) as f64;
    // To the pair, at each level: of two levels the upper one decides for three experts each.
    assert!((pairs as f64 - expected).abs() < if spec.levels.len() == 1 { 1.0 } else { 0.1 * expected }, "{pairs}");
    // Of whole groups y is the MLP of the neurons that were taken.
    if name == "WholeSix" {
        let [y, h] = layer.chosen(&x.unsqueeze(0).unwrap()).unwrap();
        let weights = layer.experts().weights();
        let [g, u] = [weights.gate, weights.up].map(|w| x.matmul(&w.t().unwrap()).unwrap());
        let mask = Tensor::new(open, &Device::Cpu).unwrap();
        let expected = (weights.activation.forward(&g, &u).unwrap() * mask).unwrap();
        assert!(relative_difference(&h, &expected.to_dtype(DType::F64).unwrap()) < 1e-6);
        let expected = expected.matmul(weights.down).unwrap();
        assert!(relative_difference(&y.squeeze(0).unwrap(), &expected.to_dtype(DType::F64).unwrap()) < 1e-5);
        let whole = glu_mlp::forward(&x, weights, None).unwrap().0;
        assert!(relative_difference(&y.squeeze(0).unwrap(), &whole.to_dtype(DType::F64).unwrap()) > 1e-3);
    }
}

/// A cut costs what it may, has no more neurons than candidates, and takes all where all may be taken.
#[rstest]
fn cuts_cost_what_they_may(#[values(0.2, 0.33, 0.5, 0.9, 1.0)] operations: f64) {
    let cfg = tiny::config(40);
    let (variant, store) = tiny::upcycled(&cfg, "GatedSix", &tiny::dense_store(&cfg, 1));
    let model = tiny::sparse(&cfg, variant, &store);
    let x = inputs(5, &[&[100, cfg.hidden_size]]).remove(0).to_dtype(DType::F32).unwrap();
    let cut = routed_cut(model.moe(0), &x, operations, None).unwrap();
    assert!((cut.operations() - operations).abs() < 1e-9 && cut.neurons > 0.0 && cut.neurons <= cut.candidates + 1e-9);
    assert!(cut.candidates <= 1.0);
}

/// What is no rule is refused by the name of its tensor.
#[rstest]
#[case::nan("least_score", f32::NAN, "choices.least_score")]
#[case::none("most", 0.0, "choices.most")]
#[case::half("most", 2.5, "choices.most")]
#[case::alone("alone", 2.0, "choices.least_score")]
fn broken_rules_are_refused(#[case] name: &str, #[case] value: f32, #[case] said: &str) {
    let cfg = tiny::config(40);
    let (variant, mut store) = tiny::upcycled(&cfg, "WholeSix", &tiny::dense_store(&cfg, 1));
    let mut values = vec![("most", 2.0), ("least_score", 0.0)];
    match values.iter_mut().find(|(own, _)| *own == name) {
        Some(own) => own.1 = value,
        None => values.truncate(1),
    }
    for (name, value) in values {
        let value = Tensor::new(&[value], &Device::Cpu).unwrap();
        store.insert(format!("model.layers.1.mlp.choices.{name}"), value).unwrap();
    }
    let built = tinyonn::model::TinyOnnForCausalLm::new(&cfg, variant, &store.builder(DType::F32, |_| false));
    let message = message(built);
    assert!(message.contains(&format!("model.layers.1.mlp.{said}")), "{message}");
}

/// A folder that holds bounds of choices is a checkpoint of its variant.
#[test]
fn bounds_are_part_of_a_checkpoint() {
    let dir = TempDir::new().unwrap();
    let config = config(&dir, "WholeSix");
    sparsify(&config, None).unwrap();
    let folder = TinyOnnFolder::open(config.out.join("tiny-onn")).unwrap();
    let names: Vec<&str> = folder.folder().tensors().map(|(name, _)| name).collect();
    for part in ["choices.most", "choices.least_score", "neurons.repair.down", "expert_router.projection"] {
        assert!(names.contains(&format!("model.layers.0.mlp.{part}").as_str()), "{part}");
    }
}
