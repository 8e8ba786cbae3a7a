//! The dense model of a checkpoint.

use candle_core::{DType, Tensor};
use rstest::rstest;
use tempfile::tempdir;
use tinyonn::checkpoint::export::ExportFormat::{Dense, TinyOnn};
use tinyonn::checkpoint::export::{Exported, measure, model_card};
use tinyonn::checkpoint::{ModelFolder, ParamStore, TinyOnnFolder, grow_deltas, is_tinyonn, load_model};
use tinyonn::model::ActiveMode::{All, Routed};

use super::cases::Case;
use crate::gradients::inputs;
use crate::models::{CPU, apart, bits, ids, message, weights};

/// All active nothing is lost, whatever the checkpoint chooses; what it leaves behind is said.
#[rstest]
#[case::levels("ExportLevels", None, &["the routers (gaussian(5))"])]
#[case::single_neurons("OwnGate", Some(true), &["`neurons = gate`", "the repair beside the weights"])]
#[case::both("ExportNeurons", None, &["the routers (linear)", "`neurons = gate`"])]
#[case::a_fixed_set("Pruned", Some(true), &["`neurons = pruned`", "the repair beside the weights"])]
fn it_is_the_dense_weights_byte_for_byte_and_says_what_it_leaves(
    #[case] variant: &'static str,
    #[case] repaired: Option<bool>,
    #[case] words: &[&str],
) {
    let (root, case) = (tempdir().unwrap(), Case { active: Some(All), repaired, ..Case::of("dense", variant, Dense) });
    let (from, to, exported) = case.write(root.path());
    let plain = root.path().join("plain");
    ModelFolder::save(&plain, &case.cfg.to_json(), &weights(&case.cfg, DType::F32), None).unwrap();
    for file in ["config.json", "model.safetensors"] {
        assert_eq!(std::fs::read(plain.join(file)).unwrap(), std::fs::read(to.join(file)).unwrap(), "{file}");
    }
    let said = exported.left_out.join("\n");
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    let loss = measure(&TinyOnnFolder::open(from).unwrap(), &exported, &to, &ids((2, 9)), &CPU).unwrap();
    assert!(loss.bit_equal && loss.kl_divergence == 0.0 && loss.top1_agreement == 1.0, "{loss:?}");
}

/// Held against the mode that a checkpoint is in, a dense model loses what routing does.
#[test]
fn what_routing_does_is_lost_and_measured() {
    let (root, case) = (tempdir().unwrap(), Case::of("dense", "ExportLevels", Dense));
    let (from, to, exported) = case.write(root.path());
    assert_eq!(exported.active, Routed);
    let source = TinyOnnFolder::open(from).unwrap();
    let loss = measure(&source, &exported, &to, &ids((2, 9)), &CPU).unwrap();
    assert!(loss.kl_divergence > 1e-3 && !loss.bit_equal && loss.routing_agreement.is_none(), "{loss:?}");
    let card = model_card(&source, &exported, Some((&loss, "a text")));
    assert!(card.starts_with("---\nlibrary_name: transformers\n") && card.contains("18 tokens of a text"), "{card}");
    assert!(card.contains(&format!("{:.3e} nats", loss.kl_divergence)), "{card}");
}

/// A fixed set that was repaired is either the weights or the repair: which, has to be said.
#[test]
fn a_repaired_set_is_refused_unless_one_says_which() {
    let (root, case) = (tempdir().unwrap(), Case { repaired: Some(false), ..Case::of("dense", "Pruned", Dense) });
    let (from, to) = (root.path().join("from"), root.path().join("to"));
    case.save(&from, &case.store());
    let said = message(case.export(&from, &to));
    assert!(["Pruned", "--active all", "--active routed"].iter().all(|word| said.contains(word)), "{said}");
    assert!(!to.exists());

    // The routed pass is a dense MLP of which some rows of W_d are zeros.
    let exported = Case { active: Some(Routed), ..case.clone() }.export(&from, &to).unwrap();
    let loss = measure(&TinyOnnFolder::open(&from).unwrap(), &exported, &to, &ids((2, 9)), &CPU).unwrap();
    // Sums of the same numbers in another order.
    assert!(loss.max_abs_difference < 1e-5 && exported.left_out.is_empty(), "{loss:?}");

    let biased = Case { repaired: Some(true), active: Some(Routed), ..case };
    let [from, to] = ["biased", "biased-dense"].map(|name| root.path().join(name));
    biased.save(&from, &biased.store());
    let said = message(biased.export(&from, &to));
    assert!(["neurons.repair.bias", "`bias = false`", "--active all"].iter().all(|word| said.contains(word)), "{said}");
}

fn learnt(case: &Case) -> ParamStore {
    let mut store = case.store();
    grow_deltas(&mut store, &case.cfg, &tinyonn::moe::variant(case.variant).unwrap().spec).unwrap();
    for (at, (_, var)) in store.iter().filter(|(name, _)| name.contains(".delta.")).enumerate() {
        let drawn = (inputs(at as u64, &[var.dims()]).remove(0) * 0.05).unwrap();
        var.set(&drawn.to_dtype(DType::F32).unwrap()).unwrap();
    }
    store
}

/// Replicas that have learnt and are merged are, all active, one dense MLP; dispatched they are not.
#[test]
fn replicas_that_have_learnt_become_their_mean_where_that_is_what_they_compute() {
    let root = tempdir().unwrap();
    let case = Case { active: Some(All), ..Case::of("dense", "ExportMerged", Dense) };
    let [from, to] = ["from", "to"].map(|name| root.path().join(name));
    case.save(&from, &learnt(&case));
    let exported: Exported = case.export(&from, &to).unwrap();
    let loss = measure(&TinyOnnFolder::open(&from).unwrap(), &exported, &to, &ids((2, 9)), &CPU).unwrap();
    // Sums of weights rounded in another order.
    assert!(loss.max_abs_difference < 1e-5, "{loss:?}");
    let dense = load_model(&to, &CPU, None).unwrap().logits(&ids((2, 9)), &All.pass()).unwrap();
    let untrained = case.cfg.clone();
    let before = crate::models::dense(&untrained, &weights(&untrained, DType::F32), DType::F32);
    let before: Tensor = before.logits(&ids((2, 9)), &All.pass(), None).unwrap();
    assert!(apart(&dense, &before) > 1e-3);

    let case = Case { active: Some(All), ..Case::of("dense", "ExportDispatched", Dense) };
    let [from, to] = ["dispatched", "dispatched-dense"].map(|name| root.path().join(name));
    case.save(&from, &learnt(&case));
    let said = message(case.export(&from, &to));
    assert!(["mlp.delta.0", "dispatched"].iter().all(|word| said.contains(word)), "{said}");
}

/// What was exported for transformers is a checkpoint of ours still, and nothing of its code goes further.
#[test]
fn an_export_is_a_checkpoint_from_which_others_are_made() {
    let (root, case) = (tempdir().unwrap(), Case { repaired: Some(true), ..Case::of("one", "ExportNeurons", TinyOnn) });
    let (from, to, exported) = case.write(root.path());
    let loss = measure(&TinyOnnFolder::open(&from).unwrap(), &exported, &to, &ids((2, 9)), &CPU).unwrap();
    assert!(loss.bit_equal && exported.left_out.is_empty(), "{loss:?}");
    let logits =
        |dir: &std::path::Path| load_model(dir, &CPU, None).unwrap().logits(&ids((2, 9)), &Routed.pass()).unwrap();
    assert_eq!(bits(&logits(&from)), bits(&logits(&to)));
    let config = ModelFolder::open(&to).unwrap().config().clone();
    assert!(
        is_tinyonn(&config)
            && config["auto_map"].is_object()
            && config["tinyonn_beside"]["1"] == serde_json::json!(["repair.down", "repair.bias"])
    );

    let dense = Case { active: Some(All), ..Case::of("again", "ExportNeurons", Dense) };
    dense.export(&to, &root.path().join("again")).unwrap();
    assert_eq!(ModelFolder::open(root.path().join("again")).unwrap().config(), &case.cfg.to_json());
}
