//! What is taken of each layer's neurons at a share of all: damage, its distribution over layers, and what a checkpoint says of it.

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;
use rstest::rstest;
use tinyonn::checkpoint::{ParamStore, TinyOnnConfig, TinyOnnFolder, load_model};
use tinyonn::data::{NO_DOCUMENT, TaskTokens, TokenSet};
use tinyonn::decoder::{KvCache, Pass};
use tinyonn::imaging::neuron_damage::{cuts_of_a_fixed_set, cuts_of_a_gate};
use tinyonn::imaging::{
    Choose, Cut, DamageOptions, LayerDamage, calibrate_gate, calibrate_pruned, cuts_by_layer, least_hidden,
    least_input, neuron_damage,
};
use tinyonn::moe::{self, LEAST_HIDDEN, LEAST_INPUT};
use tinyonn::ops::{KeptSet, MlpWeights, Removal, Silu, SlicedMlp, glu_mlp, squared_removal, squared_sensitivity};

use crate::gradients::{inputs, relative_difference};
use crate::models::{bits, ids, message};
use crate::tiny;

const fn fixed(share: f64) -> Cut {
    Cut::of(share, share)
}

/// D = Σ_t (Σ (h − m h') δ_h)², by loops: m marks what is kept, h' is of what W_g reads.
#[rstest]
fn removal_is_the_square_of_a_sum(#[values(false, true)] gated: bool) {
    let (t, d, i) = (9, 5, 7);
    let drawn = inputs(3, &[&[t, d], &[i, d], &[i, d], &[i, d], &[t, d], &[i], &[t, i], &[d]]);
    let xs: Vec<Tensor> = drawn.iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    let weights = MlpWeights { gate: &xs[1], up: &xs[2], down: &xs[3], activation: &Silu };
    let each = Tensor::arange(0u32, i as u32, &Device::Cpu).unwrap();
    let gate = gated.then_some(tinyonn::ops::MlpGate { gate_tn: &xs[6], neuron_expert: &each });
    let (_, saved) = glu_mlp::forward(&xs[0], weights, gate).unwrap();
    let deltas = saved.deltas(&xs[4]).unwrap();
    let order = [4u32, 2, 6, 0, 1, 5, 3];
    let mean_up = xs[5].abs().unwrap();
    let norm = xs[3].sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
    let order_i = Tensor::new(&order, &Device::Cpu).unwrap();
    let column_norm_d = xs[7].abs().unwrap();
    let sets = [
        (7, [0.0, 0.0, 0.0]),
        (7, [0.0, 0.8, 0.0]),
        (4, [0.0, 0.0, 0.5]),
        (4, [0.0, 0.8, 1.0]),
        (7, [0.4, 0.0, 0.0]),
        (7, [0.4, 0.3, 0.8]),
        (1, [0.2, 0.3, 0.0]),
    ];
    let asked = Removal {
        mean_up_i: mean_up.index_select(&order_i, 0).unwrap(),
        worth_i: norm.index_select(&order_i, 0).unwrap(),
        order_i,
        column_norm_d: column_norm_d.clone(),
        activation: &Silu,
        sets: sets
            .iter()
            .map(|(candidates, [least_input, least_score, least_hidden])| KeptSet {
                least_input: *least_input,
                candidates: *candidates,
                least_score: *least_score,
                least_hidden: *least_hidden,
            })
            .collect(),
    };
    let counted: Vec<u8> = (0..t).map(|at| u8::from(at % 4 != 2)).collect();
    let counted_t = Tensor::new(counted.as_slice(), &Device::Cpu).unwrap();
    let found =
        saved.seen(&deltas, |seen| squared_removal(seen, &counted_t, &asked)).unwrap().to_vec1::<f64>().unwrap();
    let rows = |x: &Tensor| x.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
    let (x, gate_rows, size) = (rows(&xs[0]), rows(&xs[1]), column_norm_d.to_vec1::<f32>().unwrap());
    // g of the channels whose |x| n reaches τ_x.
    let g = |token: usize, at: usize, least: f32| {
        let read = |j: usize| (x[token][j].abs() * f64::from(size[j]) >= f64::from(least)).then_some(x[token][j]);
        (0..d).filter_map(|j| Some(read(j)? * gate_rows[at][j])).sum::<f64>()
    };
    let u = rows(&xs[0].matmul(&xs[2].t().unwrap()).unwrap());
    let delta = rows(&xs[4].matmul(&xs[3].t().unwrap()).unwrap());
    let (up, norm, c) = (mean_up.to_vec1::<f32>().unwrap(), norm.to_vec1::<f32>().unwrap(), rows(&xs[6]));
    let squares = saved.seen(&deltas, |seen| squared_sensitivity(seen, &counted_t)).unwrap().to_vec1::<f64>().unwrap();
    for (at, found) in squares.into_iter().enumerate() {
        let expected: f64 = (0..t).filter(|token| counted[*token] > 0).map(|token| delta[token][at].powi(2)).sum();
        approx::assert_relative_eq!(found, expected, max_relative = 1e-5);
    }
    for ((candidates, [least_input, least, least_hidden]), found) in sets.into_iter().zip(found) {
        let mut expected = 0.0;
        for token in (0..t).filter(|token| counted[*token] > 0) {
            let silu = |at: usize, least: f32| {
                let g = g(token, at, least);
                g / (1.0 + (-g).exp())
            };
            let kept = |at: usize| {
                let score = (silu(at, least_input) * f64::from(up[at])).abs() * f64::from(norm[at]);
                let size = (silu(at, least_input) * u[token][at]).abs() * f64::from(norm[at]);
                let reach = [(score, least), (size, least_hidden)];
                let reach = reach.iter().all(|(value, least)| *least == 0.0 || *value >= f64::from(*least));
                order[..candidates].contains(&(at as u32)) && reach
            };
            let change = |at: usize| u[token][at] * delta[token][at] * if gated { c[token][at] } else { 1.0 };
            let kept = |at: usize| if kept(at) { silu(at, least_input) } else { 0.0 };
            expected += (0..i).map(|at| (silu(at, 0.0) - kept(at)) * change(at)).sum::<f64>().powi(2);
        }
        // Sums of seven products in f32.
        approx::assert_relative_eq!(found, expected, max_relative = 1e-5, epsilon = 1e-9);
    }
}

/// All of a layer does no damage, less of it does.
#[test]
fn damage_of_a_model() {
    let cfg = tiny::config(40);
    let model = tiny::dense(&cfg, &tiny::dense_store(&cfg, 3));
    let set = tiny::tokens(5, &[65, 50], 40);
    let options = DamageOptions { length: 16, batch: 2, tokens: 40, choose: Choose::Threshold };
    for cuts in [cuts_of_a_fixed_set(), cuts_of_a_gate(None, None), cuts_of_a_gate(Some(0.7), Some(1.0))] {
        let found = neuron_damage(&model, &set, options, &cuts, None).unwrap();
        assert_eq!(found.len(), cfg.num_hidden_layers);
        for layer in found {
            assert!(layer.damage.iter().all(|damage| damage.is_finite() && *damage >= 0.0));
            let whole = layer.cuts.iter().zip(&layer.damage).find(|(cut, _)| **cut == Cut::WHOLE);
            // What is left when all is kept: roundings of sums in f32.
            assert!(whole.is_none_or(|(_, damage)| *damage < 1e-9), "{whole:?}");
            assert!(layer.damage[0] > 1e-6);
        }
    }
    let none = TokenSet { tasks: vec![], documents: vec![], eos: 0 };
    assert!(message(neuron_damage(&model, &none, options, &cuts_of_a_fixed_set(), None)).contains("no held-out token"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    /// The share is met exactly, and no exchange of cost between two layers on their curves does less damage than is found.
    #[test]
    fn shares_meet_the_total_and_are_the_least(
        damages in prop::collection::vec(prop::collection::vec(0.0f64..5.0, 6), 1..5), operations in 0.2f64..1.0,
    ) {
        let cuts: Vec<Cut> = (1..=6).map(|at| fixed(f64::from(at) / 6.0)).collect();
        let layers: Vec<LayerDamage> = damages
            .iter()
            .map(|damage| {
                let mut damage = damage.clone();
                damage.sort_by(|a, b| b.total_cmp(a));
                damage[5] = 0.0;
                LayerDamage { cuts: cuts.clone(), damage }
            })
            .collect();
        let found = cuts_by_layer(&layers, operations).unwrap();
        let cost = found.iter().map(|cut| cut.operations()).sum::<f64>() / found.len() as f64;
        // A layer whose damage is as small as it gets takes no more than that.
        let most = |layer: &LayerDamage| {
            let least = layer.damage.iter().copied().fold(f64::INFINITY, f64::min);
            let cheapest = layer.cuts.iter().zip(&layer.damage).find(|(_, damage)| **damage == least);
            cheapest.map_or(1.0, |(cut, _)| cut.operations())
        };
        let spendable = layers.iter().map(most).sum::<f64>() / layers.len() as f64;
        prop_assert!((cost - operations.min(spendable)).abs() < 1e-9, "{cost} {operations} {spendable}");
        // Interpolated on the lower hull of its points, as a mixture of two cuts would be.
        let hull = |layer: &LayerDamage, at: f64| {
            let points: Vec<(f64, f64)> = layer.cuts.iter().map(|cut| cut.operations()).zip(layer.damage.iter().map(|damage| damage * damage)).collect();
            let mut least = f64::INFINITY;
            for (a, x) in &points {
                for (b, y) in &points {
                    if *a <= at + 1e-12 && at <= *b + 1e-12 {
                        let part = if b > a { ((at - a) / (b - a)).clamp(0.0, 1.0) } else { 0.0 };
                        least = least.min(x + part * (y - x));
                    }
                }
            }
            least
        };
        let total = |shares: &[f64]| layers.iter().zip(shares).map(|(layer, at)| hull(layer, *at)).sum::<f64>();
        let shares: Vec<f64> = found.iter().map(|cut| cut.operations()).collect();
        let best = total(&shares);
        for from in 0..shares.len() {
            for to in 0..shares.len() {
                let mut moved = shares.clone();
                moved[from] -= 0.02;
                moved[to] += 0.02;
                if from != to && moved[from] >= 1.0 / 6.0 && moved[to] <= 1.0 {
                    prop_assert!(total(&moved) >= best - 1e-9);
                }
            }
        }
    }
}

#[test]
fn shares_that_cannot_be_met_are_refused() {
    let layer = LayerDamage { cuts: vec![fixed(0.5), fixed(1.0)], damage: vec![1.0, 0.0] };
    let refused = |layers: &[LayerDamage], share| message(cuts_by_layer(layers, share));
    assert!(refused(std::slice::from_ref(&layer), 0.4).contains("cut down to 0.500"));
    assert!(refused(std::slice::from_ref(&layer), 1.1).contains("at most 1"));
    let broken = LayerDamage { damage: vec![f64::NAN, 0.0], ..layer };
    assert!(refused(&[broken], 0.7).contains("not finite"));
}

/// A fixed set is that of the largest E|h|·‖w‖, counted by hand.
#[test]
fn the_strongest_are_kept() {
    let cfg = tiny::config(40);
    let (variant, store) = tiny::upcycled(&cfg, "Pruned", &tiny::dense_store(&cfg, 1));
    let model = tiny::sparse(&cfg, variant, &store);
    let x = inputs(5, &[&[50, cfg.hidden_size]]).remove(0).to_dtype(DType::F32).unwrap();
    let weights = model.moe(1).experts().weights();
    let h = (weights.activation)
        .forward(&x.matmul(&weights.gate.t().unwrap()).unwrap(), &x.matmul(&weights.up.t().unwrap()).unwrap())
        .unwrap();
    let mean = h.abs().unwrap().mean(0).unwrap().to_vec1::<f32>().unwrap();
    let norm = weights.down.sqr().unwrap().sum(1).unwrap().sqrt().unwrap().to_vec1::<f32>().unwrap();
    let mut order: Vec<usize> = (0..26).collect();
    order.sort_by(|a, b| (mean[*b] * norm[*b]).total_cmp(&(mean[*a] * norm[*a])));
    let kept = calibrate_pruned(model.moe(1), &x, fixed(0.5), None).unwrap();
    let mut found: Vec<usize> = (0..26).filter(|at| kept[*at]).collect();
    let mut expected = order[..13].to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected);
    // A gate's candidates are the same.
    let (_, store) = tiny::upcycled(&cfg, "OwnGate", &tiny::dense_store(&cfg, 1));
    let model = tiny::sparse(&cfg, moe::variant("OwnGate").unwrap(), &store);
    let gate = calibrate_gate(model.moe(1), &x, Cut::of(0.5, 0.2), Choose::Threshold, None).unwrap();
    let candidates = gate.candidates.unwrap();
    found = (0..26).filter(|at| candidates[*at]).collect();
    assert_eq!(found, expected);
}

/// A model of layers that choose among candidates: what each says is what it says behind a cache and from disk; all active it is dense.
#[test]
fn candidates_are_part_of_a_checkpoint() {
    let cfg = tiny::config(40);
    let dense = tiny::dense_store(&cfg, 1);
    let (variant, mut store) = tiny::upcycled(&cfg, "OwnGate", &dense);
    let x = inputs(5, &[&[300, cfg.hidden_size]]).remove(0).to_dtype(DType::F32).unwrap();
    let model = tiny::sparse(&cfg, variant, &store);
    for layer in 0..cfg.num_hidden_layers {
        let found = calibrate_gate(model.moe(layer), &x, Cut::of(0.7, 0.3), Choose::Threshold, None).unwrap();
        let mut put = |name: &str, value: &Tensor| {
            let name = format!("model.layers.{layer}.mlp.{name}");
            if store.get(&name).is_some() {
                store.set(&name, value).unwrap();
            } else {
                store.insert(name, value.clone()).unwrap();
            }
        };
        for (name, value) in tinyonn::imaging::neuron_calibration::gate_parameters(&found, &Device::Cpu).unwrap() {
            put(name, &value);
        }
        let least = least_input(model.moe(layer), &x, 0.6).unwrap();
        let name = format!("model.layers.{layer}.mlp.{LEAST_INPUT}");
        store.insert(name, Tensor::new(&[least], &Device::Cpu).unwrap()).unwrap();
        let taking = tiny::sparse(&cfg, variant, &store);
        let least = least_hidden(taking.moe(layer), &x, 0.2).unwrap();
        let name = format!("model.layers.{layer}.mlp.{LEAST_HIDDEN}");
        store.insert(name, Tensor::new(&[least], &Device::Cpu).unwrap()).unwrap();
    }
    let model = tiny::sparse(&cfg, variant, &store);
    let [_, h] = model.moe(0).chosen(&x.unsqueeze(0).unwrap()).unwrap();
    let acts = h.ne(0f64).unwrap().to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
    let by_neuron: Vec<f32> = (0..26).map(|at| acts.iter().map(|row| row[at]).sum()).collect();
    // Of 18 candidates, of 26; of 26 · 300 pairs a fifth go on.
    assert!(by_neuron.iter().filter(|count| **count > 0.0).count() <= 18);
    assert_eq!(by_neuron.iter().sum::<f32>(), 1560.0);
    let ids = ids((1, 11));
    let expected = tiny::dense(&cfg, &dense).logits(&ids, &Pass::all(), None).unwrap();
    assert_eq!(bits(&model.logits(&ids, &Pass::all(), None).unwrap()), bits(&expected));
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("saved");
    TinyOnnFolder::save(&dir, &cfg.to_json(), &TinyOnnConfig::new(variant, "contiguous", 5), &store, None).unwrap();
    let loaded = load_model(&dir, &Device::Cpu, None).unwrap();
    let whole = model.logits(&ids, &Pass::routed(), None).unwrap();
    assert_eq!(bits(&loaded.logits(&ids, &Pass::routed()).unwrap()), bits(&whole));
    let mut cache = KvCache::new(cfg.num_hidden_layers);
    for at in 0..11 {
        let one = model.logits(&ids.narrow(1, at, 1).unwrap(), &Pass::routed(), Some(&mut cache)).unwrap();
        // Sums of 16 and 26 terms in another order.
        assert!(relative_difference(&one, &whole.narrow(1, at, 1).unwrap()) < 1e-5, "{at}");
    }
}

/// What is no rule is refused by the name of its tensor.
#[rstest]
#[case::nan("least_score", Some(f32::NAN), "neurons.least_score")]
#[case::negative("least_score", Some(-1.0), "neurons.least_score")]
#[case::nan_input("least_input", Some(f32::NAN), "neurons.least_input")]
#[case::negative_input("least_input", Some(-1.0), "neurons.least_input")]
#[case::nan_hidden("least_hidden", Some(f32::NAN), "neurons.least_hidden")]
#[case::negative_hidden("least_hidden", Some(-1.0), "neurons.least_hidden")]
#[case::none("most", Some(0.0), "neurons.most")]
#[case::half("most", Some(2.5), "neurons.most")]
#[case::half_kept("kept", None, "neurons.kept")]
#[case::half_a_repair("repair.down", None, "neurons.repair.bias")]
fn broken_rules_are_refused(#[case] name: &str, #[case] value: Option<f32>, #[case] said: &str) {
    let cfg = tiny::config(40);
    let (variant, mut store) = tiny::upcycled(&cfg, "OwnGate", &tiny::dense_store(&cfg, 1));
    let full = format!("model.layers.1.mlp.neurons.{name}");
    if let Some(value) = value {
        let value = Tensor::new(&[value], &Device::Cpu).unwrap();
        if store.get(&full).is_some() {
            store.set(&full, &value).unwrap();
        } else {
            store.insert(full, value).unwrap();
        }
    } else {
        let shape =
            if name == "kept" { vec![cfg.intermediate_size] } else { vec![cfg.intermediate_size, cfg.hidden_size] };
        store.insert(full, Tensor::full(0.5f32, shape, &Device::Cpu).unwrap()).unwrap();
    }
    let built = tinyonn::model::TinyOnnForCausalLm::new(&cfg, variant, &store.builder(DType::F32, |_| false));
    let message = message(built);
    assert!(message.contains(&format!("model.layers.1.mlp.{said}")), "{message}");
}

/// Where half of all scores are zero, as many as that are not taken.
#[test]
fn a_score_of_zero_is_not_taken() {
    let cfg = tiny::config(40);
    let (variant, store): (_, ParamStore) = tiny::upcycled(&cfg, "OwnGate", &tiny::dense_store(&cfg, 1));
    let name = "model.layers.0.mlp.down_proj.weight";
    let silent: Vec<f32> = (0..26).map(|at| f32::from(u8::from(at % 2 == 0))).collect();
    let silent = Tensor::from_vec(silent, (26, 1), &Device::Cpu).unwrap();
    store.set(name, &store.get(name).unwrap().as_detached_tensor().broadcast_mul(&silent).unwrap()).unwrap();
    let model = tiny::sparse(&cfg, variant, &store);
    let x = inputs(5, &[&[40, cfg.hidden_size]]).remove(0).to_dtype(DType::F32).unwrap();
    let cut = Cut::of(1.0, 0.8);
    let found = calibrate_gate(model.moe(0), &x, cut, Choose::Threshold, None).unwrap();
    assert_eq!(found.take.least_score, f32::MIN_POSITIVE);
}

#[test]
fn documents_are_spread_over_a_task() {
    let task =
        TaskTokens { name: "t".into(), tokens: (0..12).collect(), documents: vec![0, 0, 1, 1, 1, 2, 3, 3, 4, 4, 5, 5] };
    let set = TokenSet { tasks: vec![task], documents: vec![], eos: 0 };
    let kept = |each, most| {
        let mut set = set.clone();
        set.spread_documents(each, most);
        set.tasks.remove(0)
    };
    // Documents of 2, 3, 1, 2, 2 and 2 tokens.
    assert_eq!(kept(9, 7).documents, [0, 0, 2, 4, 4]);
    assert_eq!(kept(9, 7).tokens, [0, 1, 5, 8, 9]);
    assert_eq!(kept(1, 5).documents, [0, 0, 1, 1, 1, 2, 3, 3, 4, 4]);
    assert_eq!(kept(9, 12), set.tasks[0]);
    // One at least, whole.
    assert_eq!(kept(9, 1).documents, [0, 0]);
    assert!(!set.tasks[0].documents.contains(&NO_DOCUMENT));
}
