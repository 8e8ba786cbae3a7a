//! The two forms of surprise, over a step and its parts; and `select = all`, which is fine-tuning as usual.

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::checkpoint::{Role, variant_params};
use tinyonn::data::Sampler;
use tinyonn::decoder::smk_rule::{Losers, Over, Select, Surprise};
use tinyonn::decoder::{Ask, CausalLm, Experts, Learn, Pass, Smk, SmkRule};
use tinyonn::metrics::MetricsLog;
use tinyonn::model::TinyOnnForCausalLm;
use tinyonn::ops::Grads;
use tinyonn::train::state::slots;
use tinyonn::train::surprise_forms::spearman;
use tinyonn::train::{
    Memory, OptimizerConfig, Slot, SmkConfig, TextGradient, TrainState, rank_correlations, train_smk,
};

use super::choice::{Telling, Told, by_neuron, marked, matrices, surprises};
use super::rule::norms;
use super::{ADAMW, is_expert, text, upcycled};
use crate::gradients::relative_difference;
use crate::models::{self, learnt, message};
use crate::routing::gates_of;
use crate::tiny;

const CPU: Device = Device::Cpu;
const BATCH: usize = 4;
const LENGTH: usize = 8;

/// Each micro-batch chooses by its own gradients, and the step is the sum of what won in each; or the step chooses by the sum of all.
#[rstest]
fn exact_decides_over_parts_or_over_the_step(#[values(Over::MicroBatch, Over::Step)] over: Over) {
    let (cfg, variant, store) = upcycled("Moe7x3");
    let (set, parts) = (text(), 2);
    let sampler = Sampler::new(&set, LENGTH, BATCH, 0, &CPU).unwrap();
    let rule = SmkRule { surprise: Surprise::Exact, over: Some(over), ..SmkRule::DEFAULT };
    let smk = Smk { min_k: 2, rule, seed: 0 };
    let memory = Memory { micro_batches: parts, ..Memory::DEFAULT };

    let mut params = variant_params(&cfg, variant).unwrap();
    params.retain(|param| param.role == Role::Expert);
    let names: Vec<String> = params.iter().map(|param| param.name.clone()).collect();
    let work =
        store.work_weights(DType::F32, |name| names.iter().any(|own| own == name).then_some(DType::F32)).unwrap();
    let model = TinyOnnForCausalLm::new(&cfg, variant, work.builder()).unwrap();
    let mut state = TrainState::new(slots(&work, params), &memory).unwrap();
    let learn = Learn { experts: Experts::Smk(smk), ..Learn::default() };
    let pass = Pass::routed();
    let text = TextGradient { model: model.lm(), sampler: &sampler, pass, learn, open: 0, memory, interrupt: None };
    let found = text.descend(&mut state).unwrap().unwrap();

    // The same, part by part.
    let batch = sampler.batch_at(0).unwrap();
    let slots = || state.slots().iter().map(|slot| (slot.var.as_tensor(), 0));
    let (mut sum, mut won) = (Grads::new(slots()).unwrap(), vec![vec![0u8; 21]; 2]);
    let mut load = Vec::new();
    for part in 0..parts {
        let rows = |tensor: &candle_core::Tensor| tensor.narrow(0, 2 * part, 2).unwrap().contiguous().unwrap();
        let pass = Pass { ask: Ask { load: true, ..Ask::default() }, ..Pass::routed().kept() };
        let forward = model.lm().forward(&rows(&batch.inputs), &rows(&batch.targets), &pass).unwrap();
        let share = (forward.losses.ones_like().unwrap() / (BATCH * LENGTH) as f64).unwrap();
        let mut own = Grads::new(slots()).unwrap();
        model.lm().backward(forward.saved, &share, &Learn::default(), &mut own).unwrap();
        let given: Vec<_> = forward.traces.iter().map(|trace| trace.load.as_ref().unwrap().tokens_n.clone()).collect();
        if over == Over::MicroBatch {
            for layer in 0..2 {
                let choice = model.moe(layer).experts().keep_winners(&smk, Some(&given[layer]), &mut own).unwrap();
                marked(&choice.learn_n).into_iter().for_each(|n| won[layer][n] = 1);
            }
        }
        sum.add(&own).unwrap();
        load = if part == 0 { given } else { load.iter().zip(&given).map(|(a, b)| (a + b).unwrap()).collect() };
    }
    if over == Over::Step {
        for layer in 0..2 {
            let choice = model.moe(layer).experts().keep_winners(&smk, Some(&load[layer]), &mut sum).unwrap();
            marked(&choice.learn_n).into_iter().for_each(|n| won[layer][n] = 1);
        }
    }
    for layer in 0..2 {
        assert_eq!(found.learners[layer][0].to_vec1::<u8>().unwrap(), won[layer]);
    }
    let winners = won[0].iter().chain(&won[1]).filter(|won| **won == 1).count();
    assert!(if over == Over::Step { winners == 4 } else { (5..=8).contains(&winners) }, "{winners}");
    for slot in state.slots() {
        let [found, expected] = [&state.grads, &sum].map(|grads| grads.get(&slot.var).unwrap());
        // The same sums; in one product, or in two that are added.
        let apart = relative_difference(found, expected);
        assert!(apart < 1e-6, "{}: {apart}", slot.name);
        let [found, expected] =
            [&state.grads, &sum].map(|grads| grads.learning_rows(&slot.var).unwrap().to_vec1::<u8>().unwrap());
        assert_eq!(found, expected);
    }
}

/// ρ is that of the two definitions: the root mean square over tokens and neurons, and the norm of the gradient that a step would take.
#[rstest]
#[case("Moe7x3")]
#[case::gates_that_weigh("Flat5")]
#[case::open_positions("SequenceOf2")]
fn the_rank_correlation_is_that_of_the_definitions(#[case] name: &str) {
    let (cfg, variant, store) = upcycled(name);
    let (experts, open) = (variant.spec.experts(), variant.spec.open_positions());
    let set = text();
    let sampler = Sampler::new(&set, LENGTH, BATCH, 0, &CPU).unwrap();
    let found = rank_correlations((&store, &cfg, variant), &Pass::routed(), (&sampler, 3)).unwrap();

    let told: Told = Arc::new(Mutex::new(vec![None; 2]));
    let build = |layer, vb: VarBuilder<'_>| Ok(Telling((variant.build)(&cfg, layer, vb)?, told.clone()));
    let model = CausalLm::new(&cfg, &store.builder(DType::F32, is_expert), build).unwrap();
    let units = tiny::sparse(&cfg, variant, &store).neuron_experts().unwrap().unwrap();
    let batch = sampler.batch_at(0).unwrap();
    let rows = |tensor: &candle_core::Tensor| tensor.narrow(0, 0, 3).unwrap().contiguous().unwrap();
    let pass = Pass { ask: Ask { gates: true, load: true, ..Ask::default() }, ..Pass::routed().kept() };
    let forward = model.forward(&rows(&batch.inputs), &rows(&batch.targets), &pass).unwrap();
    let scored = candle_core::Tensor::ones((3, LENGTH - open), DType::F32, &CPU).unwrap();
    let weights = store.iter().filter(|(name, _)| is_expert(name)).map(|(_, var)| (var.as_tensor(), 0));
    let mut grads = Grads::new(weights).unwrap();
    let dlosses = if open == 0 { scored } else { scored.pad_with_zeros(1, open, 0).unwrap() };
    model.backward(forward.saved, &dlosses, &Learn::default(), &mut grads).unwrap();
    for layer in 0..2 {
        let [x, dy] = told.lock().unwrap()[layer].take().unwrap();
        let gates = gates_of(&forward.traces[layer]);
        let decided = |t: usize| t % LENGTH >= open;
        let token = surprises(&store, (layer, &units[layer]), [&x, &dy], &gates, decided);
        let exact = norms(&grads, &store, (layer, &units[layer]), experts);
        let active = (0..experts).filter(|n| token[*n].is_some());
        let (token, exact): (Vec<f64>, Vec<f64>) = active.map(|n| (token[n].unwrap(), exact[n])).unzip();
        assert!(token.len() > 2);
        let rho = found[layer].unwrap();
        approx::assert_relative_eq!(rho, spearman(&token, &exact).unwrap(), max_relative = 1e-12);
        assert!(name != "Moe7x3" || rho < 1.0, "both forms are one: the test is blind");
    }
}

/// By the formula of ranks without ties, 1 − 6 Σ d² / (n (n² − 1)); with ties by hand.
#[test]
fn ranks_are_correlated_as_spearman_has_it() {
    let (a, b) = ([3.0, 1.0, 4.0, 1.5, 9.0], [2.0, 7.0, 1.0, 8.0, 2.5]);
    // Ranks 3 1 4 2 5 and 2 4 1 5 3: d = 1 −3 3 −3 2.
    approx::assert_relative_eq!(spearman(&a, &b).unwrap(), 1.0 - 6.0 * 32.0 / (5.0 * 24.0), max_relative = 1e-12);
    // Ranks 1.5 1.5 3 and 1 2 3: cov 1.5, deviations √1.5 and √2.
    approx::assert_relative_eq!(
        spearman(&[0.0, 0.0, 1.0], &[0.0, 1.0, 2.0]).unwrap(),
        1.5 / (1.5f64 * 2.0).sqrt(),
        max_relative = 1e-12
    );
    assert_eq!((spearman(&[], &[]), spearman(&[1.0], &[2.0])), (None, None));
}

#[test]
fn replicas_have_one_form() {
    let (cfg, variant, store) = upcycled("MergedByToken");
    let set = text();
    let sampler = Sampler::new(&set, LENGTH, BATCH, 0, &CPU).unwrap();
    let refused = message(rank_correlations((&store, &cfg, variant), &Pass::routed(), (&sampler, 3)));
    assert!(refused.contains("MergedByToken") && refused.contains("slices"), "{refused}");
}

/// All active, `select = all` is fine-tuning the MLPs of the dense model, bit for bit; whatever becomes of losers, whom there are none.
#[rstest]
#[case("Moe7x3")]
#[case("Dispatch3x4")]
#[case("SequenceOf2")]
fn all_of_all_is_dense_fine_tuning(
    #[case] name: &str,
    #[values(Surprise::Token, Surprise::Exact)] surprise: Surprise,
    #[values(Losers::Skip, Losers::ZeroGrad)] losers: Losers,
) {
    const STEPS: u64 = 4;
    let (cfg, variant, store) = upcycled(name);
    // Clipping adds up squares in the order of the weights, which differs.
    let (set, optimizer) = (text(), OptimizerConfig { decay: 0.1, clip: f64::INFINITY, ..ADAMW });
    let sampler = Sampler::new(&set, LENGTH, BATCH, 0, &CPU).unwrap();
    let dense = tiny::dense_store(&cfg, 2);
    let model = CausalLm::dense(&cfg, &dense.builder(DType::F32, is_expert)).unwrap();
    let own = dense.trainable(is_expert).into_iter().map(|(name, var)| Slot::new(name, Role::Expert, 0, var)).collect();
    let mut state = TrainState::new(own, &Memory::DEFAULT).unwrap();
    // What a shared decision would read is read and not scored, by either model.
    let open = variant.spec.open_positions();
    let (pass, learn, memory) = (Pass::all(), Learn::default(), Memory::DEFAULT);
    let by_hand = TextGradient { model: &model, sampler: &sampler, pass, learn, open, memory, interrupt: None };
    for _ in 0..STEPS {
        by_hand.descend(&mut state).unwrap().unwrap();
        state.update(&optimizer, optimizer.rate).unwrap();
    }
    let rule = SmkRule { select: Select::All, surprise, losers, ..SmkRule::DEFAULT };
    let config = SmkConfig { steps: STEPS, batch: BATCH, rule, optimizer, ..SmkConfig::DEFAULT };
    let dir = TempDir::new().unwrap();
    let mut log = MetricsLog::create(dir.path().join("log.jsonl")).unwrap();
    let outcome = train_smk((&store, &cfg, variant), &Pass::all(), (&sampler, None), &config, &mut log, None).unwrap();
    assert_eq!(outcome.updated_share.to_bits(), 1f64.to_bits());
    for name in [0, 1].into_iter().flat_map(matrices) {
        let [found, expected] = [&store, &dense].map(|store| models::bits(store.get(&name).unwrap()));
        assert!(found == expected, "{name}");
    }
    // What is compared has moved.
    let before = tiny::dense_store(&cfg, 2);
    assert!(models::bits(before.get(&matrices(1)[0]).unwrap()) != models::bits(store.get(&matrices(1)[0]).unwrap()));
}

/// The norm of a whole gradient is the same whether it is asked of a pass that keeps none or of the gradients themselves.
#[test]
fn squares_of_gradients_are_those_of_the_gradients() {
    let (cfg, variant, store) = upcycled("Moe7x3");
    let vb = store.builder(DType::F32, is_expert);
    let model = TinyOnnForCausalLm::new(&cfg, variant, &vb).unwrap();
    let units = model.neuron_experts().unwrap().unwrap();
    let ids = models::ids((2, 9));
    let image = Some(Arc::new(tinyonn::decoder::ImageAsk::Surprises));
    let learn = Learn { image, ..Learn::default() };
    let found = learnt(model.lm(), (&store, &is_expert), (&ids, &ids), &Pass::routed(), &learn);
    for layer in 0..2 {
        let asked = found.answers[layer].surprises.as_ref().unwrap().exact_n.to_vec1::<f64>().unwrap();
        let expected = norms(&found.grads, &store, (layer, &units[layer]), 21);
        for (asked, expected) in asked.iter().zip(&expected) {
            // Products in f32 over another order of columns.
            approx::assert_relative_eq!(asked, expected, max_relative = 1e-5, epsilon = 1e-9);
        }
        assert!(by_neuron(&found.grads, &store, &matrices(layer)[0]).iter().flatten().any(|x| *x != 0.0));
    }
}
