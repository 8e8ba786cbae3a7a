//! What a step holds in memory changes no training but by rounding: micro-batches, recomputation, narrower types; and who learns from it.

use std::sync::Arc;

use candle_core::{DType, Tensor, Var};
use rstest::rstest;
use tinyonn::checkpoint::{ModelFolder, ParamStore, Role, dense_params, variant_params};
use tinyonn::data::{NO_DOCUMENT, Sampler, TokenSet};
use tinyonn::decoder::{Ask, CausalLm, Experts, FeedForward, Learn, NeuronMask, Pass, Smk};
use tinyonn::metrics::MetricsLog;
use tinyonn::model::TinyOnnForCausalLm;
use tinyonn::ops::Grads;
use tinyonn::train::state::slots;
use tinyonn::train::{
    Memory, OptimizerConfig, Precision, Slot, SmkConfig, TextGradient, TrainState, UpdateRule, train_smk,
};

use crate::gradients::relative_difference;
use crate::models::{self, CPU, bits, message};
use crate::tiny;

const VOCAB: usize = 40;
const BATCH: usize = 4;

fn text() -> TokenSet {
    tiny::tokens(3, &[300, 300], VOCAB as u32)
}

fn sampler(set: &TokenSet) -> Sampler<'_> {
    Sampler::new(set, 16, BATCH, 0, &CPU).unwrap()
}

/// How a language model's text is read whose weights all learn.
fn whole<'a, F: FeedForward>(model: &'a CausalLm<F>, sampler: &'a Sampler<'a>, memory: Memory) -> TextGradient<'a, F> {
    let (pass, learn) = (Pass::all(), Learn::default());
    TextGradient { model, sampler, pass, learn, open: 0, memory, interrupt: None }
}

fn gradient(state: &TrainState, var: &Var) -> Tensor {
    state.grads.get(var).unwrap().copy().unwrap().to_dtype(DType::F32).unwrap()
}

/// Every gradient of a dense model's first step, and its loss.
fn of_dense(memory: Memory) -> (f32, Vec<Tensor>) {
    let cfg = tiny::config(VOCAB);
    let store = tiny::dense_store(&cfg, 2);
    let work = store.work_weights(memory.weights.dtype(), |_| Some(memory.weights.dtype())).unwrap();
    let model = CausalLm::dense(&cfg, work.builder()).unwrap();
    let mut state = TrainState::new(slots(&work, dense_params(&cfg)), &memory).unwrap();
    let set = text();
    let sampler = sampler(&set);
    let found = whole(&model, &sampler, memory).descend(&mut state).unwrap().unwrap();
    let gradients = state.slots().iter().map(|slot| gradient(&state, &slot.var)).collect();
    (found.loss.to_dtype(DType::F32).unwrap().to_scalar().unwrap(), gradients)
}

#[rstest]
// One sum in two to four parts: a rounding of 6e-8 a term of mixed sign, through two layers.
#[case::two_parts(Memory { micro_batches: 2, ..Memory::DEFAULT }, 5e-6)]
#[case::a_row_at_a_time(Memory { micro_batches: 4, ..Memory::DEFAULT }, 5e-6)]
#[case::recomputed(Memory { recompute: true, ..Memory::DEFAULT }, 0.0)]
// 2⁻⁹ an operation, some fifty in a row, of which signs cancel most.
#[case::in_bf16(Memory { weights: Precision::Bf16, ..Memory::DEFAULT }, 8e-2)]
#[case::gradients_in_bf16(Memory { weights: Precision::Bf16, gradients: Precision::Bf16, ..Memory::DEFAULT }, 8e-2)]
fn a_gradient_is_the_same_however_it_is_held(#[case] memory: Memory, #[case] tolerance: f64) {
    let (expected_loss, expected) = of_dense(Memory::DEFAULT);
    let (loss, found) = of_dense(memory);
    approx::assert_relative_eq!(loss, expected_loss, max_relative = (tolerance as f32).max(1e-7));
    for (found, expected) in found.iter().zip(&expected) {
        let apart = relative_difference(found, expected);
        assert!(apart <= tolerance, "{:?}: {apart}", expected.shape());
        assert!(tolerance > 0.0 || bits(found) == bits(expected));
    }
    // What is compared is no zero.
    assert!(
        expected.iter().all(|gradient| gradient.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() > 0.0)
    );
}

/// A sparse model whose experts learn by Min-K, one expert a layer and part.
struct Sparse {
    store: ParamStore,
    model: TinyOnnForCausalLm,
    state: TrainState,
}

impl Sparse {
    fn new() -> Self {
        let cfg = tiny::config(VOCAB);
        let (variant, store) = tiny::upcycled(&cfg, "Moe7x3", &tiny::dense_store(&cfg, 2));
        let params = variant_params(&cfg, variant).unwrap();
        let experts: Vec<_> = params.into_iter().filter(|param| param.role == Role::Expert).collect();
        let names: Vec<String> = experts.iter().map(|param| param.name.clone()).collect();
        let work =
            store.work_weights(DType::F32, |name| names.iter().any(|own| own == name).then_some(DType::F32)).unwrap();
        let model = TinyOnnForCausalLm::new(&cfg, variant, work.builder()).unwrap();
        let state = TrainState::new(slots(&work, experts), &Memory::DEFAULT).unwrap();
        Self { store, model, state }
    }
}

/// An expert that wins in the second part of a step alone learns from that part alone: nothing of an earlier step is left in its rows, and
/// nothing of the first part, in which it lost.
#[test]
fn an_expert_may_win_in_the_second_part_alone() {
    let Sparse { store, model, mut state } = Sparse::new();
    let (set, learn) = (text(), Learn { experts: Experts::Smk(Smk::DEFAULT), ..Learn::default() });
    let sampler = sampler(&set);
    let memory = Memory { micro_batches: 2, ..Memory::DEFAULT };
    let part = TextGradient { pass: Pass::routed(), learn: learn.clone(), ..whole(model.lm(), &sampler, memory) };
    // Before it a step in which other rows were written.
    part.descend(&mut state).unwrap();
    state.update(&OptimizerConfig::DEFAULT, 1e-3).unwrap();
    let batch = sampler.batch_at(1).unwrap();
    let of_part = |part: usize| {
        let rows = |tensor: &Tensor| tensor.narrow(0, part * 2, 2).unwrap().contiguous().unwrap();
        let pass = Pass { ask: Ask { load: true, ..Ask::default() }, ..Pass::routed().kept() };
        let forward = model.lm().forward(&rows(&batch.inputs), &rows(&batch.targets), &pass).unwrap();
        let mut grads = Grads::new(state.slots().iter().map(|slot| (slot.var.as_tensor(), 0))).unwrap();
        let share = (forward.losses.ones_like().unwrap() / (BATCH * 16) as f64).unwrap();
        let answers = model.lm().backward(forward.saved, &share, &learn, &mut grads).unwrap();
        let learners = answers.into_iter().map(|answers| answers.min_k.unwrap().learn_n.to_vec1::<u8>().unwrap());
        (grads, learners.collect::<Vec<_>>())
    };
    let ((first, first_learn), (second, second_learn)) = (of_part(0), of_part(1));
    assert!(first_learn != second_learn, "the same experts win: take another text");
    let found = part.descend(&mut state).unwrap().unwrap();
    for (layer, [learn_n, _]) in found.learners.iter().enumerate() {
        let either: Vec<u8> =
            first_learn[layer].iter().zip(&second_learn[layer]).map(|(first, second)| *first.max(second)).collect();
        assert_eq!(learn_n.to_vec1::<u8>().unwrap(), either);
    }
    for slot in state.slots() {
        let expected = (first.get(&slot.var).unwrap() + second.get(&slot.var).unwrap()).unwrap();
        let apart = relative_difference(state.grads.get(&slot.var).unwrap(), &expected);
        // The same products, added once.
        assert!(apart < 1e-6, "{}: {apart}", slot.name);
        let learn = state.grads.learning_rows(&slot.var).unwrap().to_vec1::<u8>().unwrap();
        let moved = state.grads.get(&slot.var).unwrap().abs().unwrap().sum(1).unwrap();
        for (line, learns) in moved.to_vec1::<f32>().unwrap().iter().zip(learn) {
            assert!(learns == 1 || *line == 0.0, "{}", slot.name);
        }
    }
    assert!(store.len() > state.slots().len());
}

/// The row of a token that a step does not read has no gradient of the step before.
#[test]
fn an_embedding_row_that_no_token_used_has_none() {
    let cfg = tiny::config(VOCAB);
    let store = tiny::dense_store(&cfg, 2);
    let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| true)).unwrap();
    let table = store.get("model.embed_tokens.weight").unwrap();
    let mut state =
        TrainState::new(vec![Slot::new("table", Role::Embedding, 0, table.clone())], &Memory::DEFAULT).unwrap();
    let config = OptimizerConfig { rule: UpdateRule::Sgd, beta1: 0.0, decay: 0.0, ..OptimizerConfig::DEFAULT };
    for used in [[1u32, 2, 3], [4, 2, 5]] {
        let ids = Tensor::new(&used, &CPU).unwrap().unsqueeze(0).unwrap();
        let before = table.to_vec2::<f32>().unwrap();
        let forward = model.forward(&ids, &ids, &Pass::all().kept()).unwrap();
        let ones = forward.losses.ones_like().unwrap();
        model.backward(forward.saved, &ones, &Learn::default(), &mut state.grads).unwrap();
        state.update(&config, 1e-2).unwrap();
        for (row, (before, after)) in before.iter().zip(table.to_vec2::<f32>().unwrap()).enumerate() {
            assert_eq!(*before != after, used.contains(&(row as u32)), "row {row}");
        }
    }
}

/// Neurons that a mask leaves out have rows of zeros and are skipped; the others' gradients are those of a step without it.
#[rstest]
fn a_mask_says_which_neurons_learn(#[values(false, true)] sparse: bool) {
    let cfg = tiny::config(VOCAB);
    let dense = tiny::dense_store(&cfg, 2);
    let width = cfg.intermediate_size;
    let marks: Vec<Vec<bool>> = (0..2).map(|layer| (0..width).map(|i| (i + layer) % 3 == 0).collect()).collect();
    let masks: Arc<[NeuronMask]> = marks.iter().map(|marks| NeuronMask::new(marks, &CPU).unwrap()).collect();
    let ids = models::ids((2, 12));
    let of = |experts: Experts| {
        let learn = Learn { experts, ..Learn::default() };
        if sparse {
            let (variant, store) = tiny::upcycled(&cfg, "Moe7x3", &dense);
            let model = TinyOnnForCausalLm::new(&cfg, variant, &store.builder(DType::F32, |_| true)).unwrap();
            let experts = |name: &str| name.contains("_proj.weight") && name.contains(".mlp.");
            (models::learnt(model.lm(), (&store, &experts), (&ids, &ids), &Pass::routed(), &learn).grads, store)
        } else {
            let store = dense.deep_copy().unwrap();
            let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| true)).unwrap();
            (models::learnt(&model, (&store, &|_| true), (&ids, &ids), &Pass::all(), &learn).grads, store)
        }
    };
    let ((all, all_store), (masked, store)) = (of(Experts::All), of(Experts::Mask(masks)));
    for (name, var) in store.iter() {
        let Some(found) = masked.get(var) else { continue };
        let expected = all.get(all_store.get(name).unwrap()).unwrap();
        if !name.contains(".mlp.") {
            assert_eq!(bits(&found.copy().unwrap()), bits(&expected.copy().unwrap()), "{name}");
            continue;
        }
        let layer = usize::from(name.contains("layers.1."));
        let by_neuron = |gradient: &Tensor| gradient.copy().unwrap().to_vec2::<f32>().unwrap();
        for (i, (found, expected)) in by_neuron(found).iter().zip(by_neuron(expected)).enumerate() {
            for (found, expected) in found.iter().zip(expected) {
                let expected = if marks[layer][i] { expected } else { 0.0 };
                // A product over fewer columns, in another order.
                approx::assert_relative_eq!(*found, expected, epsilon = 1e-6, max_relative = 1e-4);
            }
        }
        let learn = masked.learning_rows(var).unwrap().to_vec1::<u8>().unwrap();
        assert!(learn.iter().map(|mark| *mark == 1).eq(marks[layer].iter().copied()));
    }
}

#[test]
fn masks_that_do_not_fit_are_refused() {
    let cfg = tiny::config(VOCAB);
    let ids = models::ids((1, 5));
    let refused = |store: &ParamStore, name: &str, masks: Vec<NeuronMask>| {
        let vb = store.builder(DType::F32, |_| true);
        let learn = Learn { experts: Experts::Mask(masks.into()), ..Learn::default() };
        let mut grads = Grads::new(store.iter().map(|(_, var)| (var.as_tensor(), 0))).unwrap();
        let pass = Pass::routed().kept();
        if name.is_empty() {
            let model = CausalLm::dense(&cfg, &vb).unwrap();
            let forward = model.forward(&ids, &ids, &pass).unwrap();
            return message(model.backward(forward.saved, &forward.losses, &learn, &mut grads));
        }
        let model = TinyOnnForCausalLm::new(&cfg, models::variant(name), &vb).unwrap();
        let forward = model.lm().forward(&ids, &ids, &pass).unwrap();
        message(model.lm().backward(forward.saved, &forward.losses, &learn, &mut grads))
    };
    let dense = tiny::dense_store(&cfg, 2);
    let mask = |width: usize| NeuronMask::new(&vec![true; width], &CPU).unwrap();
    assert!(refused(&dense, "", vec![]).contains("none for layer 1"));
    assert!(refused(&dense, "", vec![mask(26), mask(25)]).contains("marks [25] of 26 neurons"));
    let (_, replicas) = tiny::upcycled(&cfg, "MergedBySequence", &dense);
    assert!(refused(&replicas, "MergedBySequence", vec![mask(26), mask(26)]).contains("mask the neurons of slices"));
}

#[test]
fn weight_decay_passes_by_vectors_and_excluded_roles() {
    let roles: tinyonn::checkpoint::Roles = vec![Role::Embedding, Role::Router].into();
    let config = OptimizerConfig { decay: 0.1, no_decay: roles, ..OptimizerConfig::DEFAULT };
    let decay = [(Role::Expert, 2), (Role::Attention, 1), (Role::Embedding, 2), (Role::Router, 3), (Role::Head, 2)]
        .map(|(role, rank)| config.decay_of(role, rank));
    assert_eq!(decay, [0.1, 0.0, 0.0, 0.0, 0.1]);
    // The update asks it: an embedding keeps its values where a head of the same values shrinks.
    let slots = [Role::Embedding, Role::Head]
        .map(|role| Slot::new(format!("{role:?}"), role, 0, Var::ones((2, 2), DType::F32, &CPU).unwrap()));
    let vars = slots.each_ref().map(|slot| slot.var.clone());
    let mut state = TrainState::new(slots.into(), &Memory::DEFAULT).unwrap();
    vars.iter().for_each(|var| state.grads.add_with(var, || var.zeros_like()).unwrap());
    state.update(&config, 0.5).unwrap();
    let first = |var: &Var| var.to_vec2::<f32>().unwrap()[0][0];
    assert_eq!((first(&vars[0]), first(&vars[1])), (1.0, 0.95));
}

/// Work weights follow their masters, which alone remember what is too small for them.
#[rstest]
fn masters_remember_what_work_weights_cannot_hold(
    #[values(UpdateRule::Adamw, UpdateRule::Sgd, UpdateRule::Lion)] rule: UpdateRule,
    #[values(Precision::F32, Precision::Bf16)] moments: Precision,
) {
    let mut store = ParamStore::new(&CPU);
    store.insert("w", Tensor::ones((3, 2), DType::F32, &CPU).unwrap()).unwrap();
    let memory = Memory { weights: Precision::Bf16, moments, ..Memory::DEFAULT };
    let work = store.work_weights(DType::BF16, |_| Some(DType::BF16)).unwrap();
    let (var, master) = work.get("w").unwrap();
    let mut slot = Slot::new("w", Role::Expert, 0, var.clone());
    slot.master = master.cloned();
    let mut state = TrainState::new(vec![slot], &memory).unwrap();
    let config = OptimizerConfig { rule, decay: 0.0, ..OptimizerConfig::DEFAULT };
    let values = |var: &Var| var.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap()[0][0];
    // bf16 goes from 1 down in steps of 2⁻⁸ = 0.0039.
    for _ in 0..3 {
        state.grads.add_with(var, || Tensor::ones((3, 2), DType::F32, &CPU)).unwrap();
        state.update(&config, 1e-3).unwrap();
    }
    let held = values(store.get("w").unwrap());
    assert!((0.994..0.9995).contains(&held), "{held}");
    let rounded = store.get("w").unwrap().to_dtype(DType::BF16).unwrap();
    assert_eq!(bits(var), bits(&rounded));
    assert_eq!(var.dtype(), DType::BF16);
}

#[rstest]
#[case(Memory { micro_batches: 3, ..Memory::DEFAULT }, &["`smk.memory.micro_batches`", "8 rows", "3 equal parts"])]
#[case(Memory { micro_batches: 0, ..Memory::DEFAULT }, &["`smk.memory.micro_batches`", "a divisor of the batch"])]
#[case(Memory { gradients: Precision::Bf16, ..Memory::DEFAULT }, &["`smk.memory.gradients`", "smk.memory.weights"])]
fn memory_that_cannot_be_is_refused(#[case] memory: Memory, #[case] says: &[&str]) {
    let refused = message(memory.check("smk.memory", 8));
    assert!(says.iter().all(|word| refused.contains(word)), "{refused}");
}

/// A batch that is not made of equal parts is refused before anything is read, by a caller of the library too.
#[rstest]
fn parts_that_are_not_equal_are_refused(#[values(0, 3, 5)] micro_batches: usize) {
    let Sparse { model, mut state, .. } = Sparse::new();
    let set = text();
    let sampler = sampler(&set);
    let part = whole(model.lm(), &sampler, Memory { micro_batches, ..Memory::DEFAULT });
    assert!(message(part.descend(&mut state)).contains("`memory.micro_batches`"));
}

/// Positions without a target count neither in the sum nor in what it is divided by, whatever part they lie in.
#[rstest]
fn the_loss_is_the_mean_of_what_is_scored(#[values(1, 2, 4)] micro_batches: usize) {
    let mut set = text();
    for task in &mut set.tasks {
        (20..90).filter(|at| at % 3 == 0).for_each(|at| task.documents[at] = NO_DOCUMENT);
    }
    let sampler = sampler(&set);
    let cfg = tiny::config(VOCAB);
    let store = tiny::dense_store(&cfg, 2);
    let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| true)).unwrap();
    let work = store.work_weights(DType::F32, |_| Some(DType::F32)).unwrap();
    let memory = Memory { micro_batches, ..Memory::DEFAULT };
    let mut state = TrainState::new(slots(&work, dense_params(&cfg)), &memory).unwrap();
    let batches = (0..20).map(|step| sampler.batch_at(step).unwrap());
    let at = batches.map(|batch| batch.counted.iter().all(|counted| *counted)).position(|all| !all).unwrap();
    state.step = at as u64;
    let batch = sampler.batch_at(state.step).unwrap();
    let losses = model.forward(&batch.inputs, &batch.targets, &Pass::all()).unwrap().losses.flatten_all().unwrap();
    let losses = losses.to_vec1::<f32>().unwrap().into_iter().zip(&batch.counted).filter(|(_, counted)| **counted);
    let losses: Vec<f32> = losses.map(|(loss, _)| loss).collect();
    let found = whole(&model, &sampler, memory).descend(&mut state).unwrap().unwrap().loss;
    let mean = losses.iter().sum::<f32>() / losses.len() as f32;
    approx::assert_relative_eq!(found.to_scalar::<f32>().unwrap(), mean, max_relative = 1e-6);
}

/// Routers compute in f32 beside experts in bf16, and learn: their parameters are their own masters.
#[rstest]
fn routers_learn_in_f32_beside_narrow_experts(
    #[values("EvenByLoss", "Linear3x4", "Isotropic3x4", "Cosine3x4")] name: &str,
) {
    let cfg = tiny::config(VOCAB);
    let (variant, store) = tiny::upcycled(&cfg, name, &tiny::dense_store(&cfg, 2));
    let set = text();
    let memory = Memory { weights: Precision::Bf16, moments: Precision::Bf16, ..Memory::DEFAULT };
    let config = SmkConfig { steps: 3, batch: BATCH, min_k: 2, routers: true, memory, ..SmkConfig::DEFAULT };
    let dir = tempfile::tempdir().unwrap();
    let mut log = MetricsLog::create(dir.path().join("log.jsonl")).unwrap();
    let before = tiny::bits(&store);
    train_smk((&store, &cfg, variant), &Pass::routed(), (&sampler(&set), None), &config, &mut log, None).unwrap();
    let moved = tiny::bits(&store).into_iter().zip(before).filter(|(after, before)| after != before);
    let moved: Vec<String> = moved.map(|((name, _), _)| name).collect();
    assert!(moved.iter().any(|name| name.contains("_router.")), "{moved:?}");
    assert!(moved.iter().any(|name| name.ends_with("up_proj.weight")), "{moved:?}");
}

/// A step of 5e-4 is lost in a weight of 8 bits.
#[test]
fn masters_of_less_than_f32_are_refused() {
    let mut store = ParamStore::new(&CPU);
    store.insert("w", Tensor::ones(2, DType::BF16, &CPU).unwrap()).unwrap();
    let refused = message(store.work_weights(DType::BF16, |_| Some(DType::BF16)));
    assert!(
        refused.contains("`w`: is stored as BF16") && refused.contains("load what is to learn in f32"),
        "{refused}"
    );
    assert!(store.work_weights(DType::BF16, |_| None).is_ok());
}

#[test]
fn a_store_lends_no_weight_to_learn_in_another_type() {
    let cfg = tiny::config(VOCAB);
    let store = tiny::dense_store(&cfg, 2);
    let refused = message(CausalLm::dense(&cfg, &store.builder(DType::BF16, |_| true)));
    assert!(refused.contains("is stored as F32 and would learn as BF16"), "{refused}");
    assert!(refused.contains("work_weights"), "{refused}");
}

/// torch's three steps from its own bf16 gradients: masters to the rounding of f32 (of order 1, η = 3e-3 a step), work weights the masters
/// rounded, as torch has them.
#[test]
fn masters_follow_torchs_gradients() {
    let Mixed { store, steps, config } = Mixed::read();
    let memory = Memory { weights: Precision::Bf16, ..Memory::DEFAULT };
    let work = store.work_weights(DType::BF16, |_| Some(DType::BF16)).unwrap();
    let cfg = Mixed::folder().arch().unwrap();
    let mut state = TrainState::new(slots(&work, dense_params(&cfg)), &memory).unwrap();
    for step in 0..3 {
        let vars: Vec<(String, Var)> = state.slots().iter().map(|slot| (slot.name.clone(), slot.var.clone())).collect();
        for (name, var) in &vars {
            let gradient = Mixed::in_memory(name, &steps[&format!("{step}.gradient.{name}")]);
            state.grads.add_with(var, || Ok(gradient)).unwrap();
        }
        state.update(&config, config.rate).unwrap();
        for (name, _) in &vars {
            let expected = Mixed::in_memory(name, &steps[&format!("{step}.master.{name}")]);
            let apart = models::apart(store.get(name).unwrap(), &expected);
            assert!(apart < 1e-6, "{name} of step {step}: {apart:.1e}");
        }
    }
    // Where a master lies within 1e-6 of the middle between two of bf16, it may go either way: one in thousands.
    let differ = |slot: &Slot| {
        let expected = Mixed::in_memory(&slot.name, &steps[&format!("2.work.{}", slot.name)]);
        bits(&slot.var).iter().zip(bits(&expected)).filter(|(a, b)| *a != b).count()
    };
    let (all, differ): (usize, usize) =
        (state.slots().iter().map(|slot| slot.var.elem_count()).sum(), state.slots().iter().map(differ).sum());
    assert!(differ * 1000 < all, "{differ} of {all} work weights");
}

/// The fixture of mixed precision: the model before, torch's steps and its constants.
struct Mixed {
    store: ParamStore,
    steps: std::collections::HashMap<String, Tensor>,
    config: OptimizerConfig,
}

impl Mixed {
    fn path() -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/mixed_precision")
    }

    fn folder() -> ModelFolder {
        ModelFolder::open(Self::path()).unwrap()
    }

    fn read() -> Self {
        let store = Self::folder().load(&CPU, None).unwrap();
        let steps = candle_core::safetensors::load(Self::path().join("steps.safetensors"), &CPU).unwrap();
        let one = |name: &str| steps[name].to_vec1::<f64>().unwrap()[0];
        let [rate, beta1, beta2, eps, decay] = ["rate", "beta1", "beta2", "eps", "decay"].map(one);
        let config =
            OptimizerConfig { rate, beta1, beta2, eps, decay, clip: f64::INFINITY, ..OptimizerConfig::DEFAULT };
        Self { store, steps, config }
    }

    /// A tensor of a file as it lies in memory, f32: W_d turned.
    fn in_memory(name: &str, tensor: &Tensor) -> Tensor {
        let tensor = tensor.to_dtype(DType::F32).unwrap();
        if name.contains("down_proj") { tensor.t().unwrap().contiguous().unwrap() } else { tensor }
    }
}

/// Three steps in bf16 over f32 masters: losses, masters and work weights are those of PyTorch and transformers (`make_optimizers.py`).
///
/// The two round bf16 in other places: losses of order 4 to 2⁻⁹, gradients by some percent of their norm. A step of AdamW is η times the
/// sign of what is mostly signal, so moves differ where a gradient is all rounding, as much as those of two of PyTorch's own attentions do (a
/// tenth of their norm). An optimizer that is a little wrong would hide in that: the test below gives ours torch's gradients.
#[test]
fn three_steps_in_bf16_are_those_of_torch() {
    let cfg = Mixed::folder().arch().unwrap();
    let Mixed { store, steps, config } = Mixed::read();
    let stored = Mixed::in_memory;
    let memory = Memory { weights: Precision::Bf16, ..Memory::DEFAULT };
    let start = store.deep_copy().unwrap();
    let work = store.work_weights(DType::BF16, |_| Some(DType::BF16)).unwrap();
    let model = CausalLm::dense(&cfg, work.builder()).unwrap();
    let mut state = TrainState::new(slots(&work, dense_params(&cfg)), &memory).unwrap();
    let [ids, targets] = ["input_ids", "targets"].map(|name| steps[name].to_dtype(DType::U32).unwrap());
    let norm = |tensors: &[Tensor]| -> f64 {
        let square = |x: &Tensor| f64::from(x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        tensors.iter().map(square).sum::<f64>().sqrt()
    };
    for (step, expected) in steps["losses"].to_vec1::<f32>().unwrap().into_iter().enumerate() {
        let forward = model.forward(&ids, &targets, &Pass::all().kept()).unwrap();
        let loss = forward.losses.mean_all().unwrap().to_scalar::<f32>().unwrap();
        let share = (forward.losses.ones_like().unwrap() / forward.losses.elem_count() as f64).unwrap();
        model.backward(forward.saved, &share, &Learn::default(), &mut state.grads).unwrap();
        let gradients: Vec<(Tensor, Tensor)> = state
            .slots()
            .iter()
            .map(|slot| {
                (gradient(&state, &slot.var), stored(&slot.name, &steps[&format!("{step}.gradient.{}", slot.name)]))
            })
            .collect();
        let (found, wanted): (Vec<_>, Vec<_>) = gradients.into_iter().map(|(a, b)| ((a - &b).unwrap(), b)).unzip();
        let gradient_apart = norm(&found) / norm(&wanted);
        state.update(&config, config.rate).unwrap();
        let moves = state.slots().iter().map(|slot| {
            let own = store.get(&slot.name).unwrap().as_detached_tensor();
            let theirs = stored(&slot.name, &steps[&format!("{step}.master.{}", slot.name)]);
            let moved = (&theirs - start.get(&slot.name).unwrap().as_detached_tensor()).unwrap();
            ((own - theirs).unwrap(), moved)
        });
        let (apart, moved): (Vec<_>, Vec<_>) = moves.unzip();
        let move_apart = norm(&apart) / norm(&moved);
        println!("step {step}: loss {loss} for {expected}, gradients {gradient_apart:.1e}, moves {move_apart:.1e}");
        approx::assert_relative_eq!(loss, expected, max_relative = 5e-3);
        assert!(gradient_apart < 0.05 && move_apart < 0.2, "{gradient_apart:.1e}, {move_apart:.1e}");
    }
    for slot in state.slots() {
        let (master, found) = (store.get(&slot.name).unwrap(), &slot.var);
        assert_eq!((master.dtype(), found.dtype()), (DType::F32, DType::BF16));
        assert_eq!(bits(found), bits(&master.to_dtype(DType::BF16).unwrap()), "{}", slot.name);
    }
}
