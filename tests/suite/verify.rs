//! Comparing models: the figures against their definitions, and inputs that cannot be compared.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use rstest::rstest;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;
use tinyonn::checkpoint::{Comparison, LoadedModel, ParamStore, compare, compare_with_reference, tokens};
use tinyonn::decoder::{Arch, Pass};
use tinyonn::model::ActiveMode;

use crate::models::{CPU, config, dense, ids, message, weights};

fn model(cfg: &Arch, store: &ParamStore, dtype: DType) -> LoadedModel {
    LoadedModel::Dense(dense(cfg, store, dtype))
}

/// Two models that differ in the named weight by a constant factor.
fn pair(name: &str, factor: f64) -> (LoadedModel, LoadedModel) {
    let cfg = config(20, false);
    let (a, b) = (weights(&cfg, DType::F32), weights(&cfg, DType::F32));
    b.set(name, &(b.get(name).unwrap().as_detached_tensor() * factor).unwrap()).unwrap();
    (model(&cfg, &a, DType::F32), model(&cfg, &b, DType::F32))
}

fn rows(model: &LoadedModel, ids: &Tensor) -> Vec<Vec<f64>> {
    let logits = model.logits(ids, &Pass::all()).unwrap();
    logits.flatten_to(1).unwrap().to_dtype(DType::F64).unwrap().to_vec2().unwrap()
}

fn log_softmax(row: &[f64]) -> Vec<f64> {
    let total = row.iter().map(|x| x.exp()).sum::<f64>().ln();
    row.iter().map(|x| x - total).collect()
}

fn argmax(row: &[f64]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

#[rstest]
fn the_figures_are_those_of_their_definitions(#[values(1, 2, 3, 100)] batch: usize) {
    let (a, b) = pair("model.layers.1.mlp.down_proj.weight", 1.3);
    let ids = ids((5, 7));
    let found = compare(&a, &b, &ids, None, batch).unwrap();
    let (a, b) = (rows(&a, &ids), rows(&b, &ids));
    let differences: Vec<f64> = a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).collect();
    let divergence = |(a, b): (&Vec<f64>, &Vec<f64>)| -> f64 {
        log_softmax(a).iter().zip(log_softmax(b)).map(|(p, q)| p.exp() * (p - q)).sum()
    };
    let agreeing = a.iter().zip(&b).filter(|(a, b)| argmax(a) == argmax(b)).count() as f64;
    let tolerance = 1e-5;
    approx::assert_relative_eq!(
        found.max_abs_difference,
        differences.iter().copied().fold(0.0, f64::max),
        max_relative = tolerance
    );
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    approx::assert_relative_eq!(found.mean_abs_difference, mean, max_relative = tolerance);
    let mean = a.iter().zip(&b).map(divergence).sum::<f64>() / 35.0;
    approx::assert_relative_eq!(found.kl_divergence, mean, max_relative = 1e-4);
    assert!(found.kl_divergence > 1e-3, "far enough apart to tell: {found:?}");
    approx::assert_relative_eq!(found.top1_agreement, agreeing / 35.0);
    assert!(found.top1_agreement > 0.0 && found.top1_agreement < 1.0, "some agree and some do not: {found:?}");
    assert_eq!((found.tokens, found.bit_equal, found.first_differing_layer), (35, false, Some(1)));
}

#[rstest]
#[case::first_layer("model.layers.0.self_attn.v_proj.weight", Some(0))]
#[case::second_layer("model.layers.1.input_layernorm.weight", Some(1))]
#[case::head("lm_head.weight", None)]
fn the_first_differing_layer_is_named(#[case] name: &str, #[case] layer: Option<usize>) {
    let (a, b) = pair(name, 1.0 + 1e-6);
    let found = compare(&a, &b, &ids((2, 5)), None, 1).unwrap();
    assert!(!found.bit_equal);
    assert_eq!(found.first_differing_layer, layer);
    let itself = compare(&a, &a, &ids((2, 5)), Some(ActiveMode::All), 1).unwrap();
    let equal = Comparison {
        tokens: 10,
        max_abs_difference: 0.0,
        mean_abs_difference: 0.0,
        kl_divergence: 0.0,
        top1_agreement: 1.0,
        bit_equal: true,
        first_differing_layer: None,
    };
    assert_eq!(itself, equal);
}

#[test]
fn what_is_not_a_number_is_a_difference() {
    let (a, b) = pair("model.norm.weight", f64::NAN);
    for (a, b) in [(&a, &b), (&b, &a), (&b, &b)] {
        let found = compare(a, b, &ids((1, 3)), None, 1).unwrap();
        assert!(found.max_abs_difference.is_nan() && found.mean_abs_difference.is_nan(), "{found:?}");
    }
}

#[test]
fn types_may_differ() {
    let cfg = config(20, true);
    let store = weights(&cfg, DType::BF16);
    let [a, b] = [DType::F32, DType::BF16].map(|dtype| model(&cfg, &store, dtype));
    let found = compare(&a, &b, &ids((2, 9)), None, 2).unwrap();
    assert!(found.max_abs_difference > 1e-4 && found.max_abs_difference < 0.5, "{found:?}");
    assert!(!found.bit_equal && found.kl_divergence < 0.01, "{found:?}");
}

#[test]
fn sequences_longer_than_a_model_was_made_for_are_refused() {
    let (a, b) = pair("lm_head.weight", 2.0);
    assert_eq!(compare(&a, &b, &ids((1, 64)), None, 1).unwrap().tokens, 64);
    let refused = message(compare(&a, &b, &ids((1, 65)), None, 1));
    assert!(refused.contains("65") && refused.contains("--length 64") && !refused.contains('\n'), "{refused}");
}

#[test]
fn other_vocabularies_and_ids_beyond_them_are_refused() {
    let (a, _) = pair("lm_head.weight", 2.0);
    let cfg = Arch { vocab_size: 38, ..config(20, false) };
    let b = model(&cfg, &weights(&cfg, DType::F32), DType::F32);
    let refused = message(compare(&a, &b, &ids((1, 2)), None, 1));
    assert!(refused.contains("vocab_size") && refused.contains("37 and 38"), "{refused}");
    let beyond = Tensor::new(&[[3u32, 37]], &CPU).unwrap();
    let refused = message(compare(&a, &a, &beyond, None, 1));
    assert!(refused.contains("id 37") && refused.contains("vocabulary of 37"), "{refused}");
    for (b, t, batch) in [(0, 4, 1), (4, 0, 1), (1, 1, 0)] {
        let none = Tensor::zeros((b, t), DType::U32, &CPU).unwrap();
        assert!(message(compare(&a, &a, &none, None, batch)).contains("nothing to compare"));
    }
}

// ---- files of tokens and of logits ----

fn safetensors_file(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> (TempDir, PathBuf) {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.to_vec(), data).unwrap()));
    file("ids.safetensors", &safetensors::serialize(views, None).unwrap())
}

fn file(name: &str, content: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    (dir, path)
}

fn le64(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn le32(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn ids_are_read_from_each_kind_of_file() {
    let expected = vec![vec![1u32, 2, 70_000], vec![4, 5, 6]];
    let long = safetensors_file(&[("input_ids", Dtype::I64, &[2, 3], le64(&[1, 2, 70_000, 4, 5, 6]))]);
    let short = safetensors_file(&[
        ("input_ids", Dtype::U32, &[2, 3], le32(&[1, 2, 70_000, 4, 5, 6])),
        ("attention_mask", Dtype::U32, &[1], le32(&[1])),
    ]);
    let json = file("ids.json", b" [[1, 2, 70000],\n[4, 5, 6]] ");
    for (_dir, path) in [long, short, json] {
        assert_eq!(tokens::read(&path, &CPU).unwrap().to_vec2::<u32>().unwrap(), expected);
    }
}

#[rstest]
#[case::ragged(file("a.json", b"[[1, 2], [3]]"), &["row 1 has 1 ids", "equally long"])]
#[case::negative(file("a.json", b"[[1, -2]]"), &["-2", "input_ids"])]
#[case::flat(file("a.json", b"[1, 2]"), &["no table of ids"])]
#[case::no_rows(file("a.json", b"[]"), &["no tokens"])]
#[case::empty_rows(file("a.json", b"[[], []]"), &["no tokens"])]
#[case::not_safetensors(file("a.txt", b"hello"), &["a.txt", "too few"])]
#[case::other_name(safetensors_file(&[("ids", Dtype::U32, &[1, 1], le32(&[1]))]), &["no tensor `input_ids`"])]
#[case::flat_tensor(safetensors_file(&[("input_ids", Dtype::U32, &[2], le32(&[1, 2]))]), &["shape [2]", "[B, T]"])]
#[case::float(safetensors_file(&[("input_ids", Dtype::F32, &[1, 1], floats(&[1.0]))]), &["F32", "I64 or U32"])]
#[case::negative_i64(safetensors_file(&[("input_ids", Dtype::I64, &[1, 2], le64(&[1, -100]))]), &["-100"])]
#[case::huge_i64(safetensors_file(&[("input_ids", Dtype::I64, &[1, 1], le64(&[1 << 32]))]), &["4294967296"])]
#[case::no_ids(safetensors_file(&[("input_ids", Dtype::I64, &[0, 3], vec![])]), &["no tokens"])]
fn files_without_ids_are_refused(#[case] (_dir, path): (TempDir, PathBuf), #[case] words: &[&str]) {
    let refused = message(tokens::read(&path, &CPU));
    assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
    assert!(refused.contains(&path.display().to_string()) && !refused.contains('\n'), "{refused}");
}

#[test]
fn random_tokens_follow_the_seed_and_stay_within_the_vocabulary() {
    let draw = |seed| tokens::random_tokens(5, (3, 40), seed, &CPU).unwrap().to_vec2::<u32>().unwrap();
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    let mut seen: Vec<u32> = draw(1).concat();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [0, 1, 2, 3, 4]);
}

fn reference(logits: &[f32], shape: &[usize]) -> (TempDir, PathBuf) {
    safetensors_file(&[
        ("input_ids", Dtype::I64, &[3, 2], le64(&[1, 2, 3, 4, 5, 6])),
        ("logits", Dtype::F32, shape, floats(logits)),
    ])
}

fn against(model: &LoadedModel, path: &Path, batch: usize) -> tinyonn::Result<Comparison> {
    compare_with_reference(model, path, &CPU, None, batch)
}

#[test]
fn a_reference_is_held_against_the_rows_of_its_own_sequences() {
    let (a, b) = pair("model.layers.0.mlp.up_proj.weight", 1.2);
    let ids = Tensor::new(&[[1u32, 2], [3, 4], [5, 6]], &CPU).unwrap();
    let logits = b.logits(&ids, &Pass::all()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (_dir, path) = reference(&logits, &[3, 2, 37]);
    let direct = compare(&a, &b, &ids, None, 3).unwrap();
    for batch in [1, 2, 3] {
        let found = against(&a, &path, batch).unwrap();
        approx::assert_relative_eq!(found.max_abs_difference, direct.max_abs_difference, max_relative = 1e-4);
        approx::assert_relative_eq!(found.kl_divergence, direct.kl_divergence, max_relative = 1e-3);
        assert_eq!((found.tokens, found.first_differing_layer), (6, None));
    }
    assert!(against(&b, &path, 3).unwrap().bit_equal);

    for (count, shape, words) in [
        (6 * 36, vec![3, 2, 36], ["vocab_size", "37 and 36"]),
        (6 * 37, vec![2, 3, 37], ["logits", "[B, T, V]"]),
        (6 * 37, vec![6, 37], ["logits", "[B, T, V]"]),
    ] {
        let (_dir, path) = reference(&vec![0.0; count], &shape);
        let refused = message(against(&a, &path, 1));
        assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
    }
    let (_dir, path) = safetensors_file(&[("input_ids", Dtype::U32, &[1, 1], le32(&[1]))]);
    assert!(message(against(&a, &path, 1)).contains("`logits`"));
}
