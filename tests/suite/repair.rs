//! Repair in closed form: the least squares of a layer whose neurons are chosen, and what a model makes of it.

use candle_core::{DType, Device, Tensor};
use nalgebra::DMatrix;
use proptest::prelude::*;
use rstest::rstest;
use tinyonn::checkpoint::{ParamStore, TinyOnnConfig, TinyOnnFolder, load_model};
use tinyonn::decoder::{Learn, Pass};
use tinyonn::gallery::OwnGate;
use tinyonn::imaging::{Choose, Cut, calibrate_gate, calibrate_pruned};
use tinyonn::moe::{MoeLayer, REPAIR_BIAS, REPAIR_DOWN};
use tinyonn::ops::Grads;
use tinyonn::train::RepairSums;

use crate::gradients::{inputs, relative_difference};
use crate::models::{bits, ids, message};
use crate::tiny;

/// h of which some neurons act seldom, the second never; and e.
fn rows(seed: u64, (t, i, d): (usize, usize, usize)) -> [Tensor; 2] {
    let drawn = inputs(seed, &[&[t, i], &[t, d], &[t, i]]);
    let acts = (drawn[2].gt(0.3).unwrap()).to_dtype(DType::F64).unwrap();
    let alive =
        Tensor::from_vec((0..i).map(|at| f64::from(u8::from(at != 1))).collect(), (1, i), &Device::Cpu).unwrap();
    let h = (&drawn[0] * acts).unwrap().broadcast_mul(&alive).unwrap();
    [h, (&drawn[1] + 3.0).unwrap()].map(|x| x.to_dtype(DType::F32).unwrap())
}

fn matrix(x: &Tensor) -> DMatrix<f64> {
    let (rows, columns) = x.dims2().unwrap();
    let values = x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    DMatrix::from_row_slice(rows, columns, &values)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    /// As all rows at once, bordered by ones for the bias, give it by an LU of the normal equations in f64.
    #[test]
    fn it_is_the_least_squares_of_all_rows(seed in 0u64..1000, t in 12usize..80, i in 2usize..9, d in 1usize..5, at in 0usize..3, bias: bool) {
        let ([h, e], ridge) = (rows(seed, (t, i, d)), [1e-3, 1e-2, 0.1][at]);
        let mut sums = RepairSums::new(i);
        // In pieces of uneven length.
        for from in (0..t).step_by(7) {
            let piece = |x: &Tensor| x.narrow(0, from, 7.min(t - from)).unwrap();
            sums.push(&piece(&h), &piece(&e)).unwrap();
        }
        let found = sums.solve(ridge, bias, &Device::Cpu).unwrap();
        let (h, e) = (matrix(&h), matrix(&e));
        // Without a bias its column says nothing.
        let bordered = h.clone().insert_column(i, f64::from(u8::from(bias)));
        let mut normal = bordered.transpose() * &bordered;
        let scale = (0..i).map(|at| normal[(at, at)]).sum::<f64>() / i as f64;
        (0..i).for_each(|at| normal[(at, at)] += ridge * scale);
        if !bias {
            normal[(i, i)] = 1.0;
        }
        let expected = normal.lu().solve(&(bordered.transpose() * e)).unwrap();
        let down = matrix(&found.down_id);
        let bias = matrix(&found.bias_d.unsqueeze(0).unwrap());
        // Sums are f32 within a block: 1e-7 of values up to 20, times the condition of the matrix, 1/ridge at most.
        let allowed = 2e-5 / ridge.min(0.1);
        prop_assert!((down - expected.rows(0, i)).abs().max() < allowed);
        prop_assert!((bias - expected.rows(i, 1)).abs().max() < allowed);
        prop_assert_eq!(found.ridge, ridge);
    }
}

/// A neuron that never acts keeps its row, and where nothing is missing nothing changes.
#[test]
fn what_says_nothing_is_not_changed() {
    let [h, e] = rows(4, (60, 5, 3));
    let solve = |h: &Tensor, e: &Tensor| {
        let mut sums = RepairSums::new(5);
        sums.push(h, e).unwrap();
        sums.solve(0.01, true, &Device::Cpu).unwrap()
    };
    let down = solve(&h, &e).down_id.to_vec2::<f32>().unwrap();
    assert_eq!(down[1], [0.0; 3]);
    assert!(down[0].iter().any(|x| x.abs() > 1e-3));
    let nothing = solve(&h, &e.zeros_like().unwrap());
    assert!(nothing.down_id.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() <= 1e-6);
    // No neuron acts: what is missing on average is the bias.
    let silent = solve(&h.zeros_like().unwrap(), &e);
    assert_eq!(silent.down_id.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
    assert!(relative_difference(&silent.bias_d, &e.mean(0).unwrap()) < 1e-6);
    assert!(message(RepairSums::new(5).solve(0.01, true, &Device::Cpu)).contains("no tokens were seen"));
    let bad = Tensor::full(f32::NAN, (60, 5), &Device::Cpu).unwrap();
    let mut sums = RepairSums::new(5);
    sums.push(&bad, &e).unwrap();
    assert!(message(sums.solve(0.01, true, &Device::Cpu)).contains("no positive definite matrix"));
}

/// A model of single neurons, at half of them, its layers repaired by what is drawn.
fn repaired() -> (tinyonn::decoder::Arch, ParamStore, ParamStore) {
    let cfg = tiny::config(40);
    let dense = tiny::dense_store(&cfg, 1);
    let (_, mut store) = tiny::upcycled(&cfg, "OwnGate", &dense);
    for layer in 0..cfg.num_hidden_layers {
        let prefix = format!("model.layers.{layer}.mlp");
        store.set(&format!("{prefix}.neurons.most"), &Tensor::new(&[13f32], &Device::Cpu).unwrap()).unwrap();
        let drawn = inputs(layer as u64, &[&[cfg.intermediate_size, cfg.hidden_size], &[cfg.hidden_size]]);
        for (name, value) in [REPAIR_DOWN, REPAIR_BIAS].into_iter().zip(drawn) {
            store.insert(format!("{prefix}.{name}"), value.to_dtype(DType::F32).unwrap()).unwrap();
        }
    }
    (cfg, dense, store)
}

/// Routed, y = h (W_d + ΔW) + b; all active, the dense model to the last bit; and both come back from disk.
#[test]
fn a_repair_is_beside_the_weights() {
    let (cfg, dense, store) = repaired();
    let variant = tinyonn::moe::variant("OwnGate").unwrap();
    let model = tiny::sparse(&cfg, variant, &store);
    let ids = ids((2, 9));
    let expected = tiny::dense(&cfg, &dense).logits(&ids, &Pass::all(), None).unwrap();
    assert_eq!(bits(&model.logits(&ids, &Pass::all(), None).unwrap()), bits(&expected));
    let x = inputs(5, &[&[2, 9, cfg.hidden_size]]).remove(0).to_dtype(DType::F32).unwrap();
    let [y, h] = model.moe(1).chosen(&x).unwrap();
    let of = |name: &str| store.get(&format!("model.layers.1.mlp.{name}")).unwrap().as_detached_tensor();
    let down = (of("down_proj.weight") + of(REPAIR_DOWN)).unwrap();
    let by_hand = h.matmul(&down).unwrap().broadcast_add(&of(REPAIR_BIAS)).unwrap();
    assert!(relative_difference(&y.flatten_to(1).unwrap(), &by_hand) < 1e-6);
    assert!(
        h.ne(0f64)
            .unwrap()
            .to_dtype(DType::F32)
            .unwrap()
            .sum(1)
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
            .iter()
            .all(|n| *n == 13.0)
    );
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("saved");
    let described = TinyOnnConfig::new(variant, "contiguous", 5);
    TinyOnnFolder::save(&dir, &cfg.to_json(), &described, &store, None).unwrap();
    let loaded = load_model(&dir, &Device::Cpu, None).unwrap();
    for pass in [Pass::all(), Pass::routed()] {
        let [saved, own] = [loaded.logits(&ids, &pass), model.logits(&ids, &pass, None)].map(|y| bits(&y.unwrap()));
        assert_eq!(saved, own);
    }
}

/// One token at a time, behind a cache, is the whole text, choice and repair included.
#[test]
fn decoding_takes_the_same_neurons() {
    let (cfg, _, store) = repaired();
    let model = tiny::sparse(&cfg, tinyonn::moe::variant("OwnGate").unwrap(), &store);
    let ids = ids((1, 11));
    let whole = model.logits(&ids, &Pass::routed(), None).unwrap();
    let mut cache = tinyonn::decoder::KvCache::new(cfg.num_hidden_layers);
    for at in 0..11 {
        let one = model.logits(&ids.narrow(1, at, 1).unwrap(), &Pass::routed(), Some(&mut cache)).unwrap();
        // Sums of 16 and 26 terms in another order.
        assert!(relative_difference(&one, &whole.narrow(1, at, 1).unwrap()) < 1e-5, "{at}");
    }
}

/// Weights that a layer was repaired for do not learn, in whatever pass; everything else may.
#[rstest]
fn repaired_experts_are_frozen(#[values(false, true)] all: bool) {
    let (cfg, _, store) = repaired();
    let variant = tinyonn::moe::variant("OwnGate").unwrap();
    let backward = |learns: fn(&str) -> bool| {
        let vb = store.builder(DType::F32, learns);
        let model = tinyonn::model::TinyOnnForCausalLm::new(&cfg, variant, &vb).unwrap();
        let layer: &MoeLayer = model.moe(0);
        let x = inputs(5, &[&[1, 6, cfg.hidden_size]]).remove(0).to_dtype(DType::F32).unwrap();
        let (y, _, saved) =
            tinyonn::decoder::FeedForward::forward(layer, &x, &if all { Pass::all() } else { Pass::routed() }.kept())
                .unwrap();
        let vars: Vec<_> = store.trainable(learns).into_iter().map(|(_, var)| var.as_tensor().clone()).collect();
        let mut grads = Grads::new(vars.iter().map(|var| (var, 0))).unwrap();
        tinyonn::decoder::FeedForward::backward(layer, saved.unwrap(), &y, &Learn::default(), true, &mut grads)
            .map(|(dx, _)| dx.is_some())
    };
    assert!(backward(|_| false).unwrap());
    let each: [fn(&str) -> bool; 3] = [
        |name| name.ends_with("mlp.gate_proj.weight"),
        |name| name.ends_with("mlp.up_proj.weight"),
        |name| name.ends_with("mlp.down_proj.weight"),
    ];
    for learns in each {
        let said = message(backward(learns));
        assert!(said.contains("were repaired for these very weights") && said.contains("frozen"), "{said}");
    }
}

/// Of all neurons a share.
fn whole(neurons: f64) -> Cut {
    Cut::of(1.0, neurons)
}

/// A threshold meets the share on the rows that it was calibrated by, a number on every row, and a fixed set is the strongest.
#[test]
fn calibration_meets_the_share() {
    let cfg = tiny::config(40);
    let (variant, store) = tiny::upcycled(&cfg, "OwnGate", &tiny::dense_store(&cfg, 1));
    let model = tiny::sparse(&cfg, variant, &store);
    let x = inputs(5, &[&[300, cfg.hidden_size]]).remove(0).to_dtype(DType::F32).unwrap();
    assert_eq!(OwnGate::SPEC, variant.spec);
    let by = calibrate_gate(model.moe(0), &x, whole(0.4), Choose::Threshold, None).unwrap();
    let each = calibrate_gate(model.moe(0), &x, whole(0.4), Choose::TopK, None).unwrap();
    // 0.4 of 26 neurons, rounded.
    assert_eq!((each.take.most, each.take.least_score), (10, 0.0));
    assert_eq!((by.take.most, &by.mean_up), (26, &each.mean_up));
    let set = |name: &str, value: f32| {
        store
            .set(&format!("model.layers.0.mlp.neurons.{name}"), &Tensor::new(&[value], &Device::Cpu).unwrap())
            .unwrap();
    };
    store
        .set("model.layers.0.mlp.neurons.mean_up", &Tensor::new(by.mean_up.as_slice(), &Device::Cpu).unwrap())
        .unwrap();
    set("least_score", by.take.least_score);
    let model = tiny::sparse(&cfg, variant, &store);
    let [_, h] = model.moe(0).chosen(&x.unsqueeze(0).unwrap()).unwrap();
    let taken = h.ne(0f64).unwrap().to_dtype(DType::F32).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    // 3120 of 7800 pairs: the threshold is one of their scores.
    assert_eq!(taken, 3120.0);
    let kept = calibrate_pruned(model.moe(0), &x, whole(0.4), None).unwrap();
    assert_eq!(kept.iter().filter(|kept| **kept).count(), 10);
    for share in [0.0, -1.0, 1.1, f64::NAN] {
        assert!(
            message(calibrate_gate(model.moe(0), &x, whole(share), Choose::TopK, None))
                .contains("none that can be taken")
        );
    }
}
