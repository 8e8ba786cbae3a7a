//! Who learns: by the formula over every token and neuron, by ties, over micro-batches, and by the norms of whole gradients.

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use proptest::prelude::*;
use rstest::rstest;
use tinyonn::checkpoint::{ParamStore, grow_deltas, is_delta};
use tinyonn::decoder::smk_rule::Surprise;
use tinyonn::decoder::{Answers, Ask, CausalLm, Experts, FeedForward, Learn, Pass, Smk, SmkRule, Trace};
use tinyonn::moe::MoeLayer;
use tinyonn::ops::min_k::{self, surprise_squares};
use tinyonn::ops::{Grads, MinK, MlpBackward};

use super::{VOCAB, is_expert, rows, upcycled};
use crate::gradients::inputs;
use crate::models::{self, learnt};
use crate::routing::gates_of;
use crate::tiny;

const CPU: Device = Device::Cpu;

/// Those with a 1.
pub(super) fn marked(marks: &Tensor) -> Vec<usize> {
    let marks = marks.to_vec1::<u8>().unwrap();
    (0..marks.len()).filter(|at| marks[*at] == 1).collect()
}

/// Input and output gradient of every layer's last backward pass.
pub(super) type Told = Arc<Mutex<Vec<Option<[Tensor; 2]>>>>;

/// A layer that tells them.
pub(super) struct Telling(pub(super) MoeLayer, pub(super) Told);

impl FeedForward for Telling {
    type Saved = (Tensor, <MoeLayer as FeedForward>::Saved);

    fn forward(&self, x: &Tensor, pass: &Pass) -> tinyonn::Result<(Tensor, Trace, Option<Self::Saved>)> {
        let (y, trace, saved) = self.0.forward(x, pass)?;
        Ok((y, trace, saved.map(|saved| (x.clone(), saved))))
    }

    fn backward(
        &self,
        (x, saved): Self::Saved,
        dy: &Tensor,
        learn: &Learn,
        input: bool,
        grads: &mut Grads,
    ) -> tinyonn::Result<(Option<Tensor>, Answers)> {
        self.1.lock().unwrap()[self.0.layer()] = Some([x, dy.clone()]);
        self.0.backward(saved, dy, learn, input, grads)
    }

    fn keep_winners(&self, smk: &Smk, tokens_n: Option<&Tensor>, grads: &mut Grads) -> tinyonn::Result<Option<MinK>> {
        self.0.keep_winners(smk, tokens_n, grads)
    }

    fn learns(&self, learn: &Learn, grads: &Grads) -> bool {
        self.0.learns(learn, grads)
    }
}

/// S of every expert that was given a token, by loops over the definition in f64: x and δ_y `[t][d]`, the gates `[t][n]`, which tokens a
/// decision is for.
pub(super) fn surprises(
    store: &ParamStore,
    (layer, units): (usize, &[u32]),
    [x, dy]: [&Tensor; 2],
    gates: &[Vec<f32>],
    decided: impl Fn(usize) -> bool,
) -> Vec<Option<f64>> {
    let weight = |matrix: &str| {
        let name = format!("model.layers.{layer}.mlp.{matrix}_proj.weight");
        store.get(&name).unwrap().as_detached_tensor().to_dtype(DType::F64).unwrap()
    };
    let flat = |x: &Tensor| x.flatten_to(1).unwrap().to_dtype(DType::F64).unwrap();
    let (x, dy) = (flat(x), flat(dy));
    let product = |a: &Tensor, b: &Tensor| rows(&a.matmul(b).unwrap());
    let [g, u] = ["gate", "up"].map(|matrix| product(&x, &weight(matrix).t().unwrap()));
    let (dh, x, dy) = (product(&dy, &weight("down").t().unwrap()), rows(&x), rows(&dy));
    let squared = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>();
    let of_token = |t: usize, i: usize| {
        let (c, s) = (f64::from(gates[t][units[i] as usize]), 1.0 / (1.0 + (-g[t][i]).exp()));
        let h = g[t][i] * s * u[t][i];
        let dg = c * dh[t][i] * u[t][i] * s * (1.0 + g[t][i] * (1.0 - s));
        let du = c * dh[t][i] * g[t][i] * s;
        squared(&dy[t]) * (c * h).powi(2) + (dg * dg + du * du) * squared(&x[t])
    };
    let of_expert = |expert: usize| {
        let own: Vec<usize> = (0..units.len()).filter(|i| units[*i] as usize == expert).collect();
        let given: Vec<usize> = (0..x.len()).filter(|t| decided(*t) && gates[*t][expert] != 0.0).collect();
        let sum: f64 = given.iter().flat_map(|t| own.iter().map(move |i| of_token(*t, *i))).sum();
        (!given.is_empty()).then(|| (sum / (given.len() * own.len()) as f64).sqrt())
    };
    (0..gates[0].len()).map(of_expert).collect()
}

/// The `k` of least key, the lower index first among equals.
pub(super) fn least(keys: &[Option<f64>], k: usize) -> Vec<usize> {
    let mut order: Vec<(f64, usize)> = keys.iter().zip(0..).filter_map(|(key, at)| Some(((*key)?, at))).collect();
    order.sort_by(|a, b| a.partial_cmp(b).unwrap());
    let mut least: Vec<usize> = order.into_iter().take(k).map(|(_, at)| at).collect();
    least.sort_unstable();
    least
}

/// The gradient of a matrix of a layer, a row a neuron.
pub(super) fn by_neuron(grads: &Grads, store: &ParamStore, name: &str) -> Vec<Vec<f64>> {
    let grad = grads.get(store.get(name).unwrap()).unwrap().copy().unwrap();
    rows(&grad)
}

pub(super) fn matrices(layer: usize) -> [String; 3] {
    ["gate", "up", "down"].map(|matrix| format!("model.layers.{layer}.mlp.{matrix}_proj.weight"))
}

/// One row of tokens routes to few of many experts.
#[rstest]
#[case("Moe7x3", 1, 8)]
#[case("Moe7x3", 4, 8)]
#[case("Moe7x3", 100, 8)]
#[case("Moe2x4", 2, 8)]
#[case("Moe2x4", 8, 8)]
#[case::too_short_for_a_decision("MoeSequence", 5, 8)]
#[case::open_positions("MoeSequence", 2, 12)]
#[case::open_positions("SequenceOf2", 1, 8)]
#[case::open_positions("SegmentOf3", 3, 8)]
#[case::all_may_but_those_without_a_decision("SequenceOf2", 99, 8)]
#[case::gates_that_weigh("Flat5", 1, 8)]
#[case::dispatched("Dispatch3x4", 2, 8)]
fn the_least_surprised_of_the_active_learn(#[case] name: &str, #[case] min_k: usize, #[case] length: usize) {
    let (cfg, variant, store) = upcycled(name);
    let (experts, open) = (variant.spec.experts(), variant.spec.open_positions());
    let told: Told = Arc::new(Mutex::new(vec![None; 2]));
    let build = |layer, vb: VarBuilder<'_>| Ok(Telling((variant.build)(&cfg, layer, vb)?, told.clone()));
    let model = CausalLm::new(&cfg, &store.builder(DType::F32, is_expert), build).unwrap();
    let units = tiny::sparse(&cfg, variant, &store).neuron_experts().unwrap().unwrap();
    let mut idle = false;
    for seed in 0..4 {
        let set = tiny::tokens(seed, &[length + 1], VOCAB as u32);
        let batch = set.batches_of_task(0, length, 1, &CPU).unwrap().next().unwrap().unwrap();
        let pass = Pass { ask: Ask { gates: true, load: true, ..Ask::default() }, ..Pass::routed() };
        let learn = Learn { experts: Experts::Smk(Smk { min_k, ..Smk::DEFAULT }), ..Learn::default() };
        let found = learnt(&model, (&store, &is_expert), (&batch.inputs, &batch.targets), &pass, &learn);
        for layer in 0..2 {
            let [x, dy] = told.lock().unwrap()[layer].take().unwrap();
            // Of a sequence that is too short for a decision all tokens count.
            let decided = |t: usize| t >= open || length <= open;
            let (trace, choice) = (&found.traces[layer], found.answers[layer].min_k.as_ref().unwrap());
            let keys = surprises(&store, (layer, &units[layer]), [&x, &dy], &gates_of(trace), decided);
            let active: Vec<usize> = (0..experts).filter(|expert| keys[*expert].is_some()).collect();
            let expected = least(&keys, min_k);
            assert_eq!((marked(&choice.active_n), marked(&choice.learn_n)), (active.clone(), expected.clone()));
            assert_eq!(expected.len(), min_k.min(active.len()));
            idle |= active.len() < experts;
            for name in matrices(layer) {
                let learn = found.grads.learning_rows(store.get(&name).unwrap()).unwrap();
                let learning = learn.to_vec1::<u8>().unwrap();
                for (i, gradient) in by_neuron(&found.grads, &store, &name).iter().enumerate() {
                    let learns = expected.contains(&(units[layer][i] as usize));
                    let moves = gradient.iter().any(|x| *x != 0.0);
                    assert_eq!((learning[i] == 1, moves), (learns, learns), "{name}, neuron {i}");
                }
            }
        }
        for other in ["model.norm.weight", "model.layers.0.mlp.neuron_expert"] {
            assert!(found.grads.learning_rows(store.get(other).unwrap()).is_none(), "{other}");
        }
    }
    assert!(idle || !["Moe7x3", "SequenceOf2"].contains(&name), "no expert idles: the test is blind");
}

/// No more than k learn whatever their keys; one that is no finite number is among them, so that the step is seen to be none.
#[rstest]
#[case([1.0, 2.0, f64::NAN, 3.0], 2, &[0, 2])]
#[case([f64::NAN, f64::INFINITY, f64::NAN, f64::NAN], 2, &[0, 1])]
#[case([1.0, 2.0, f64::INFINITY, 3.0], 1, &[2])]
#[case([f64::NAN; 4], 9, &[0, 1, 2, 3])]
fn keys_that_are_no_numbers_go_first(#[case] keys: [f64; 4], #[case] k: usize, #[case] learn: &[usize]) {
    let choice =
        MinK::by(&Tensor::new(&keys, &CPU).unwrap(), Tensor::ones(4, DType::U8, &CPU).unwrap(), k, None).unwrap();
    assert_eq!(marked(&choice.learn_n), learn);
    // Of those that do not compete none learns, nor takes a place.
    let idle = Tensor::new(&[0u8, 1, 0, 1], &CPU).unwrap();
    let choice = MinK::by(&Tensor::new(&keys, &CPU).unwrap(), idle, k, None).unwrap();
    assert!(marked(&choice.learn_n).iter().all(|n| n % 2 == 1));
    assert_eq!(marked(&choice.learn_n).len(), k.min(2));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// Σ S² that tie often, some experts without a token.
    #[test]
    fn a_choice_is_that_of_a_loop(
        experts in prop::collection::vec((0u8..4, 0u8..3, 1u8..3), 1..30),
        k in 0usize..40,
    ) {
        let list = |of: fn(&(u8, u8, u8)) -> u8| {
            let values: Vec<f64> = experts.iter().map(|expert| f64::from(of(expert))).collect();
            Tensor::new(values, &CPU).unwrap()
        };
        let tokens = list(|e| e.1);
        let surprise = min_k::surprise(&list(|e| e.0), &tokens, &list(|e| e.2)).unwrap();
        let choice = MinK::by(&surprise, tokens.gt(0f64).unwrap(), k, None).unwrap();
        let key = |(square, tokens, width): &(u8, u8, u8)| {
            (*tokens > 0).then(|| (f64::from(*square) / (f64::from(*tokens) * f64::from(*width))).sqrt())
        };
        let keys: Vec<Option<f64>> = experts.iter().map(key).collect();
        let active: Vec<usize> = (0..keys.len()).filter(|at| keys[*at].is_some()).collect();
        prop_assert_eq!(marked(&choice.active_n), active);
        prop_assert_eq!(marked(&choice.learn_n), least(&keys, k));
    }

    /// Fused and plain sums, of all tokens and of some.
    #[test]
    fn sums_of_squares_are_those_of_the_formula(t in 1usize..600, seed in 0u64..1000, some in any::<bool>(), gated in any::<bool>()) {
        let xs = inputs(seed, &[&[t, 3], &[t, 5], &[t, 3], &[t, 5], &[t, 5], &[t, 5]]);
        let counted: Vec<u8> = (0..t).map(|t| u8::from(!some || t % 3 != 1)).collect();
        let sums = |dtype: DType| {
            let xs: Vec<Tensor> = xs.iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
            let pass = MlpBackward {
                x_td: &xs[0],
                h_ti: &xs[1],
                gate_ti: gated.then_some(&xs[5]),
                delta_y_td: &xs[2],
                delta_h_ti: &xs[1],
                delta_g_ti: &xs[3],
                delta_u_ti: &xs[4],
                input_matrices: None,
            reads_a_part: false,
            };
            let counted_t = Tensor::new(counted.as_slice(), &CPU).unwrap();
            surprise_squares(&pass, some.then_some(&counted_t)).unwrap().to_vec1::<f64>().unwrap()
        };
        let lists: Vec<Vec<Vec<f64>>> = xs.iter().map(rows).collect();
        let squared = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>();
        for i in 0..5 {
            let of_token = |t: usize| {
                let c = if gated { lists[5][t][i] } else { 1.0 };
                let inner = lists[3][t][i].powi(2) + lists[4][t][i].powi(2);
                squared(&lists[2][t]) * (c * lists[1][t][i]).powi(2) + inner * squared(&lists[0][t])
            };
            let expected: f64 = (0..t).filter(|t| counted[*t] == 1).map(of_token).sum();
            let (wide, fused) = (sums(DType::F64)[i], sums(DType::F32)[i]);
            prop_assert!((wide - expected).abs() <= 1e-12 * expected, "{wide} {expected}");
            // The tokens' terms are f32; only their sums are f64.
            prop_assert!((fused - expected).abs() <= 2e-6 * expected, "{fused} {expected}");
        }
    }
}

/// A row of eight tokens and what follows each.
fn text(seed: u64) -> (Tensor, Tensor) {
    let set = tiny::tokens(seed, &[9], VOCAB as u32);
    let batch = set.batches_of_task(0, 8, 1, &CPU).unwrap().next().unwrap().unwrap();
    (batch.inputs, batch.targets)
}

/// Over micro-batches the learners join: who lost first and wins now has exactly its gradient of now, who won in both the sum, and who lost in
/// both none.
#[test]
fn learners_join_over_micro_batches() {
    let (cfg, variant, store) = upcycled("Moe7x3");
    let model = models::sparse(&cfg, variant, &store, DType::F32);
    let units = model.neuron_experts().unwrap().unwrap();
    let model = tinyonn::model::TinyOnnForCausalLm::new(&cfg, variant, &store.builder(DType::F32, is_expert)).unwrap();
    let learn = Learn { experts: Experts::Smk(Smk { min_k: 4, ..Smk::DEFAULT }), ..Learn::default() };
    let mut grads =
        Grads::new(store.iter().filter(|(name, _)| is_expert(name)).map(|(_, var)| (var.as_tensor(), 0))).unwrap();
    let micro = |grads: &mut Grads, seed: u64| {
        let (ids, targets) = text(seed);
        let forward = model.lm().forward(&ids, &targets, &Pass::routed().kept()).unwrap();
        let ones = forward.losses.ones_like().unwrap();
        let answers = model.lm().backward(forward.saved, &ones, &learn, grads).unwrap();
        answers.into_iter().map(|answers| marked(&answers.min_k.unwrap().learn_n)).collect::<Vec<_>>()
    };
    let mut alone = |seed: u64| {
        grads.begin();
        let learners = micro(&mut grads, seed);
        let of = |layer: usize| matrices(layer).map(|name| by_neuron(&grads, &store, &name));
        (learners, [of(0), of(1)])
    };
    let (first, second) = (alone(1), alone(2));
    grads.begin();
    assert_eq!([micro(&mut grads, 1), micro(&mut grads, 2)], [first.0.clone(), second.0.clone()]);
    let mut kinds = [0; 4];
    for layer in 0..2 {
        for (which, name) in matrices(layer).iter().enumerate() {
            let rows = grads.learning_rows(store.get(name).unwrap()).unwrap().to_vec1::<u8>().unwrap();
            for (i, found) in by_neuron(&grads, &store, name).iter().enumerate() {
                let expert = units[layer][i] as usize;
                let won = [&first, &second].map(|pass| pass.0[layer].contains(&expert));
                let [a, b] = [&first, &second].map(|pass| &pass.1[layer][which][i]);
                assert_eq!(rows[i] == 1, won[0] || won[1]);
                match won {
                    [false, false] => assert!(found.iter().all(|x| *x == 0.0)),
                    [true, false] => assert_eq!(found, a),
                    [false, true] => assert_eq!(found, b),
                    // One rounding of a sum in f32.
                    [true, true] => found.iter().zip(a.iter().zip(b)).for_each(|(found, (a, b))| {
                        approx::assert_relative_eq!(*found, a + b, max_relative = 1e-6, epsilon = 1e-12);
                    }),
                }
                kinds[usize::from(won[0]) + 2 * usize::from(won[1])] += 1;
            }
        }
    }
    assert!(kinds.iter().all(|count| *count > 0), "not every kind is there: {kinds:?}");
}

/// `surprise = exact`: once all gradients are formed, the experts of least norm over their three matrices keep theirs, untouched.
#[rstest]
#[case("Moe7x3", 3)]
#[case("Moe2x4", 2)]
#[case("MergedByToken", 2)]
#[case("DispatchedByToken", 2)]
#[case("MergedBySegment", 1)]
#[case("MergedBySegment", 9)]
fn the_exact_form_keeps_the_least_norms(#[case] name: &str, #[case] k: usize) {
    let (cfg, variant, mut store) = upcycled(name);
    let slices = variant.spec.experts_are == tinyonn::moe::ExpertsAre::Slice;
    grow_deltas(&mut store, &cfg, &variant.spec).unwrap();
    for (seed, (_, var)) in store.iter().filter(|(name, _)| is_delta(name)).enumerate() {
        let delta = (inputs(seed as u64, &[var.dims()]).remove(0) * 0.1).unwrap();
        var.set(&delta.to_dtype(DType::F32).unwrap()).unwrap();
    }
    let picked = move |name: &str| if slices { is_expert(name) } else { is_delta(name) };
    let vb = store.builder(DType::F32, |_| true);
    let model = tinyonn::model::TinyOnnForCausalLm::new(&cfg, variant, &vb).unwrap();
    let (ids, targets) = text(5);
    let pass = Pass { ask: Ask { load: true, ..Ask::default() }, ..Pass::routed() };
    let mut found = learnt(model.lm(), (&store, &picked), (&ids, &targets), &pass, &Learn::default());
    for layer in 0..2 {
        // By expert, its gradients before and where they stand: (tensor, line), `None` being the whole.
        let units = model.neuron_experts().unwrap();
        let gradients = |grads: &Grads, expert: usize| -> Vec<Vec<Vec<f64>>> {
            match &units {
                Some(units) => {
                    let own = |name: &String| {
                        let all = by_neuron(grads, &store, name).into_iter().zip(&units[layer]);
                        all.filter(|(_, unit)| **unit as usize == expert).map(|(row, _)| row).collect()
                    };
                    matrices(layer).iter().map(own).collect()
                }
                None => ["gate", "up", "down"]
                    .iter()
                    .filter_map(|matrix| {
                        let name = format!("model.layers.{layer}.mlp.delta.{expert}.{matrix}_proj.weight");
                        Some(rows(&grads.get(store.get(&name).unwrap())?.copy().unwrap()))
                    })
                    .collect(),
            }
        };
        let experts = variant.spec.experts();
        let before: Vec<_> = (0..experts).map(|expert| gradients(&found.grads, expert)).collect();
        let tokens_n = &found.traces[layer].load.as_ref().unwrap().tokens_n;
        let tokens = tokens_n.to_vec1::<f32>().unwrap();
        let norm = |expert: usize| {
            let sum: f64 = before[expert].iter().flatten().flatten().map(|x| x * x).sum();
            (tokens[expert] > 0.0 && sum > 0.0).then(|| sum.sqrt())
        };
        let norms: Vec<Option<f64>> = (0..experts).map(norm).collect();
        let rule = SmkRule { surprise: Surprise::Exact, ..SmkRule::DEFAULT };
        let smk = Smk { min_k: k, rule, seed: 0 };
        let choice = model.moe(layer).keep_winners(&smk, Some(tokens_n), &mut found.grads).unwrap().unwrap();
        let expected = least(&norms, k);
        assert_eq!(marked(&choice.learn_n), expected);
        assert_eq!(marked(&choice.active_n), (0..experts).filter(|n| norms[*n].is_some()).collect::<Vec<_>>());
        for (expert, before) in before.iter().enumerate() {
            let after = gradients(&found.grads, expert);
            if expected.contains(&expert) {
                assert_eq!(&after, before);
            } else {
                assert!(after.iter().flatten().flatten().all(|x| *x == 0.0));
            }
        }
        for (name, var) in store.iter().filter(|(name, _)| picked(name) && name.contains(&format!("layers.{layer}."))) {
            let Some(learn) = found.grads.learning_rows(var) else { continue };
            let lines = learn.to_vec1::<u8>().unwrap();
            match (&units, name.split_once("delta.")) {
                (Some(units), _) => (0..lines.len())
                    .for_each(|i| assert_eq!(lines[i] == 1, expected.contains(&(units[layer][i] as usize)))),
                (None, Some((_, rest))) => {
                    let expert: usize = rest.split_once('.').unwrap().0.parse().unwrap();
                    assert_eq!((lines.len(), lines[0] == 1), (1, expected.contains(&expert)), "{name}");
                }
                (None, None) => unreachable!("{name} is no delta"),
            }
        }
    }
    // What is left is the norm that clipping sees.
    let norm =
        found.grads.norm(store.iter().map(|(_, var)| var.as_tensor()), &CPU).unwrap().to_vec1::<f64>().unwrap()[0];
    let found = |var: &candle_core::Var| Some(found.grads.get(var)?.flatten_all().unwrap().copy().unwrap());
    let left = store.iter().filter_map(|(_, var)| found(var)).flat_map(|gradient| gradient.to_vec1::<f32>().unwrap());
    let left: f64 = left.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    approx::assert_relative_eq!(norm, left, max_relative = 1e-6);
}
