//! Losslessness: whatever the hierarchy, the width, the partition, the activation, the type, tied or not, an upcycled model computes
//! what the dense one computes, bit for bit, before and after a round trip over the disk; and every weight comes back byte for byte.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::DType;
use rstest::rstest;
use tinyonn::checkpoint::{
    ModelFolder, TinyOnnConfig, TinyOnnFolder, compare, expected_tensors, export_dense, load_model, upcycle,
};
use tinyonn::decoder::{Arch, Pass};
use tinyonn::imaging::Partition::{self, Activation, Contiguous, Random, Sps};
use tinyonn::moe::Pfag;

use crate::models::{CPU, bits, config, dense, ids, message, partition, sparse, variant, weights};

/// Hierarchies that choose all they have: routed, their gates are ones, and are multiplied in.
mod everything {
    use tinyonn::moe::moe;

    /// Each token chooses all of 7 × 3.
    #[moe(groups = 7, experts = 3, top_k = [7, 3])]
    pub(crate) struct All7x3;

    /// Each sequence chooses all of 2 × 4.
    #[moe(groups = 2, experts = 4, top_k = [2, 4], route_per = sequence(2))]
    pub(crate) struct AllSequence;
}

/// Equal logits and weights all the way: in memory, from disk, and back to dense.
fn assert_lossless((name, width, strategy, tied, hidden_act, dtype, shape): Row) {
    let cfg = Arch { hidden_act: hidden_act.into(), ..config(width, tied) };
    assert_lossless_on(&cfg, name, strategy, dtype, shape);
}

/// The same of any dense shape.
pub(crate) fn assert_lossless_on(cfg: &Arch, name: &str, strategy: Partition, dtype: DType, shape: (usize, usize)) {
    let (variant, ids) = (variant(name), ids(shape));
    let store = weights(cfg, dtype);
    let experts = partition(strategy, &variant.spec, cfg).unwrap();
    let upcycled = upcycle(store.deep_copy().unwrap(), cfg, variant, &experts, 4).unwrap();

    let expected = bits(&dense(cfg, &store, dtype).logits(&ids, &Pass::all(), None).unwrap());
    let model = sparse(cfg, variant, &upcycled, dtype);
    assert_eq!(bits(&model.logits(&ids, &Pass::all(), None).unwrap()), expected);
    assert_eq!(model.neuron_experts().unwrap(), Some(experts));
    // Where routing chooses everything its gates are explicit ones; elsewhere it must show.
    let routed = bits(&model.logits(&ids, &Pass::routed(), None).unwrap());
    let all_pairs = variant.spec.attention.pairs().is_none_or(|pairs| pairs.keeps_all(shape.1, shape.1));
    let everything = variant.spec.active_experts() == variant.spec.experts() && all_pairs;
    // Adaptive routers may take everything, and need not.
    assert!(variant.spec.pfag != Pfag::Off || (routed == expected) == everything);

    let parent = tempfile::tempdir().unwrap();
    let [plain, tiny, back] = ["plain", "tiny", "back"].map(|name| parent.path().join(name));
    ModelFolder::save(&plain, &cfg.to_json(), &store, None).unwrap();
    TinyOnnFolder::save(&tiny, &cfg.to_json(), &TinyOnnConfig::new(variant, strategy, 3), &upcycled, None).unwrap();
    export_dense(&tiny, &back).unwrap();
    for folder in [&tiny, &back] {
        assert_same_weights(&plain, folder);
        let loaded = load_model(folder, &CPU, None).unwrap();
        assert_eq!(bits(&loaded.logits(&ids, &loaded.active().pass()).unwrap()), expected);
        let comparison = compare(&load_model(&plain, &CPU, None).unwrap(), &loaded, &ids, None, 1).unwrap();
        assert!(comparison.bit_equal && comparison.first_differing_layer.is_none(), "{comparison:?}");
    }
    assert_eq!(ModelFolder::open(&back).unwrap().config(), &cfg.to_json());
    assert_eq!(ModelFolder::open(&back).unwrap().tensors().count(), expected_tensors(cfg).len());
}

/// Every dense tensor of `a` is in `b`, in the same type, byte for byte.
fn assert_same_weights(a: &Path, b: &Path) {
    let (a, b) = (ModelFolder::open(a).unwrap(), ModelFolder::open(b).unwrap());
    for (name, info) in a.tensors() {
        let (_, other) = b.tensors().find(|(other, _)| *other == name).unwrap();
        assert_eq!(info, other, "{name}");
        assert_eq!(a.bytes(name).unwrap(), b.bytes(name).unwrap(), "{name}");
    }
}

/// Hierarchy, width, partition, tied, activation, type, (B, T).
type Row = (&'static str, usize, Partition, bool, &'static str, DType, (usize, usize));

/// Each value of each factor meets each value of every other one (a test below says so): a full product would only repeat them.
const MATRIX: [Row; 27] = [
    ("Moe1x1", 61, Random, true, "silu", DType::F32, (1, 9)),
    ("Moe1x1", 100, Activation, false, "silu", DType::BF16, (3, 1)),
    ("Moe1x1", 123, Sps, false, "silu", DType::F32, (1, 1)),
    ("Moe1x1", 200, Contiguous, true, "silu", DType::F32, (2, 7)),
    ("Moe1x1", 6144, Random, false, "gelu", DType::BF16, (2, 7)),
    ("Moe2x4", 61, Contiguous, true, "gelu", DType::BF16, (3, 1)),
    ("Moe2x4", 61, Sps, false, "gelu", DType::F32, (1, 1)),
    ("Moe2x4", 100, Random, true, "gelu", DType::F32, (2, 7)),
    ("Moe2x4", 123, Activation, true, "gelu", DType::F32, (1, 1)),
    ("Moe2x4", 200, Activation, false, "silu", DType::BF16, (1, 1)),
    ("Moe2x4", 6144, Activation, false, "gelu", DType::F32, (1, 9)),
    ("Moe10x10", 100, Activation, true, "silu", DType::F32, (3, 1)),
    ("Moe10x10", 123, Contiguous, true, "silu", DType::F32, (1, 9)),
    ("Moe10x10", 200, Sps, false, "gelu", DType::BF16, (2, 7)),
    ("Moe10x10", 6144, Random, true, "silu", DType::F32, (1, 1)),
    ("Moe7x3", 61, Activation, false, "gelu", DType::F32, (2, 7)),
    ("Moe7x3", 100, Sps, true, "gelu", DType::F32, (1, 9)),
    ("Moe7x3", 123, Random, false, "silu", DType::BF16, (3, 1)),
    ("Moe7x3", 200, Sps, true, "gelu", DType::F32, (3, 1)),
    ("Moe7x3", 6144, Contiguous, true, "gelu", DType::BF16, (1, 1)),
    ("Moe12x8", 100, Contiguous, false, "gelu", DType::BF16, (1, 1)),
    ("Moe12x8", 123, Activation, true, "gelu", DType::BF16, (2, 7)),
    ("Moe12x8", 200, Random, false, "gelu", DType::BF16, (1, 9)),
    ("Moe12x8", 6144, Sps, true, "silu", DType::F32, (3, 1)),
    ("All7x3", 61, Contiguous, true, "silu", DType::F32, (2, 7)),
    ("All7x3", 200, Sps, false, "gelu", DType::BF16, (1, 1)),
    ("AllSequence", 123, Random, false, "gelu", DType::F32, (3, 9)),
];

#[rstest]
fn the_dense_model_is_computed_bit_for_bit_and_every_weight_comes_back(
    #[values("Moe1x1", "Moe2x4", "Moe10x10", "Moe7x3", "Moe12x8", "All7x3", "AllSequence")] name: &str,
) {
    MATRIX.into_iter().filter(|row| row.0 == name).for_each(assert_lossless);
}

/// Every kind of level, router, decision and gate that the grammar has, in both types.
#[rstest]
fn so_it_is_whatever_the_variant_declares(
    #[values(
        "Flat5",
        "Deep3",
        "Deep4",
        "Cortex",
        "Linear3x4",
        "Cosine3x4",
        "Random3x4",
        "Custom3x4",
        "Isotropic3x4",
        "Identity3x4",
        "Drawn3x4",
        "SegmentOf3",
        "SegmentOf1",
        "SequenceOf2",
        "Dispatch3x4",
        "ByEntropy",
        "ByNucleus",
        "BySurprisal",
        "SegmentBySurprisal",
        "ByComponents",
        "AllPairs",
        "ExpertsAndPairs"
    )]
    name: &'static str,
) {
    assert_lossless((name, 61, Random, true, "silu", DType::F32, (2, 7)));
    assert_lossless((name, 100, Sps, false, "gelu", DType::BF16, (1, 9)));
}

/// Named groups of uneven width with one that always takes part, and a hierarchy that divides no width.
#[rstest]
fn so_it_is_under_every_partition(
    #[values("Cortex", "Moe7x3")] name: &'static str,
    #[values(61, 123)] width: usize,
    #[values(0, 1, 2, 3, 4, 5, 6, 7, 8)] strategy: usize,
) {
    assert_lossless((name, width, Partition::ALL[strategy], true, "silu", DType::F32, (2, 7)));
}

#[test]
fn every_pair_of_settings_that_can_meet_does() {
    let factors = |row: &Row| {
        let (name, width, strategy, tied, hidden_act, dtype, shape) = row;
        [
            name.to_string(),
            width.to_string(),
            strategy.to_string(),
            tied.to_string(),
            hidden_act.to_string(),
            format!("{dtype:?}"),
            format!("{shape:?}"),
        ]
    };
    let rows: Vec<[String; 7]> = MATRIX.iter().filter(|row| !row.0.starts_with("All")).map(factors).collect();
    let mut pairs = BTreeSet::new();
    for row in &rows {
        for i in 0..row.len() {
            pairs.extend((0..i).map(|j| (i, &row[i], j, &row[j])));
        }
    }
    let values = |i: usize| rows.iter().map(|row| &row[i]).collect::<BTreeSet<_>>();
    assert_eq!((0..7).map(|i| values(i).len()).collect::<Vec<_>>(), [5, 5, 4, 2, 2, 2, 4]);
    for i in 0..7 {
        for j in 0..i {
            for (a, b) in values(i).into_iter().flat_map(|a| values(j).into_iter().map(move |b| (a, b))) {
                // 61 neurons are too few for 96 experts and for 100.
                let impossible = (i, j) == (1, 0) && a == "61" && (b == "Moe12x8" || b == "Moe10x10");
                assert!(impossible || pairs.contains(&(i, a, j, b)), "{a} and {b} never meet");
            }
        }
    }
}

#[rstest]
fn a_width_below_the_number_of_experts_is_refused_by_name(
    #[values(("Moe2x4", 7), ("Moe7x3", 20), ("Moe10x10", 99), ("Moe12x8", 95))] (name, width): (&str, usize),
    #[values(0, 1, 2, 3, 4, 5, 6, 7, 8)] strategy: usize,
) {
    let (cfg, variant) = (config(width, true), variant(name));
    let refused = message(partition(Partition::ALL[strategy], &variant.spec, &cfg));
    for word in [name, &format!("{width} neurons"), &format!("{} experts", width + 1)] {
        assert!(refused.contains(word), "{refused}");
    }
    let by_hand = vec![vec![0; width]; 2];
    assert_eq!(message(upcycle(weights(&cfg, DType::F32), &cfg, variant, &by_hand, 0)), refused);
}
