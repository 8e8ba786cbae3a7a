//! The decoder against transformers' logits, an f64 model's gradients and surprise, and against itself: cached, shortened, frozen.

use std::path::PathBuf;

use candle_core::{DType, IndexOp, Tensor};
use rstest::rstest;
use tinyonn::checkpoint::{
    LoadedModel, MappedSafetensors, ModelFolder, ParamStore, compare_with_reference, load_model, tokens, upcycle,
};
use tinyonn::decoder::{
    Arch, CausalLm, FeedForward, Generation, InTraining, Keep, KvCache, Learn, Pass, Prompt, Sampling,
};
use tinyonn::imaging::{Partition, PartitionSources, dump, partition};
use tinyonn::model::TinyOnnForCausalLm;

use crate::generation;
use crate::models::{CPU, Learnt, apart, bits, config, dense, ids, learnt, partition, sparse, variant, weights};

const FOLDERS: [&str; 5] = ["tied_f32", "untied_bf16_sharded", "mqa_f16", "untied_f32_v4", "tied_stored_head_bf16"];

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/qwen3").join(name)
}

fn fixture_parameters(name: &str) -> (Arch, ParamStore) {
    let folder = ModelFolder::open(fixture(name)).unwrap();
    (folder.arch().unwrap(), folder.load(&CPU, Some(DType::F32)).unwrap())
}

fn fixture_ids(name: &str) -> Tensor {
    tokens::read(fixture(name).join("reference.safetensors"), &CPU).unwrap()
}

/// The next tokens; the last position has none.
fn next(ids: &Tensor) -> Tensor {
    let (b, t) = ids.dims2().unwrap();
    let none = Tensor::full(u32::MAX, (b, 1), &CPU).unwrap();
    Tensor::cat(&[&ids.narrow(1, 1, t - 1).unwrap(), &none], 1).unwrap()
}

/// The largest difference over the largest value.
fn relative(a: &Tensor, b: &Tensor) -> f32 {
    let largest = b.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    apart(a, b) / largest
}

#[test]
fn logits_are_those_of_transformers() {
    for name in FOLDERS {
        let model = load_model(fixture(name), &CPU, Some(DType::F32)).unwrap();
        let reference = fixture(name).join("reference.safetensors");
        let comparison = compare_with_reference(&model, reference, &CPU, None, 2).unwrap();
        println!("{name}: max |Δlogit| {:.2e}", comparison.max_abs_difference);
        // Logits are of order 1 to 8: the last bits of f32 products summed in another order.
        assert!(comparison.max_abs_difference <= 1e-5, "{name}: {comparison:?}");
        assert_eq!((comparison.tokens, comparison.top1_agreement), (38, 1.0), "{name}");
    }
}

#[test]
fn gradients_are_those_of_the_model_in_f64() {
    let (cfg, store) = fixture_parameters("tied_f32");
    let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| true)).unwrap();
    let ids = fixture_ids("tied_f32");
    let Learnt { losses, grads, .. } =
        learnt(&model, (&store, &everything), (&ids, &next(&ids)), &Pass::all(), &Learn::default());
    let loss = losses.sum_all().unwrap();
    let reference = MappedSafetensors::open(fixture("tied_f32").join("gradients.safetensors")).unwrap();
    let expected = reference.load("loss_sum", &CPU).unwrap().i(0).unwrap().to_scalar::<f32>().unwrap();
    approx::assert_relative_eq!(loss.to_scalar::<f32>().unwrap(), expected, max_relative = 1e-6);
    assert_eq!(reference.names().count(), store.len() + 1);
    for (name, var) in store.iter() {
        let expected = reference.load(name, &CPU).unwrap();
        let expected = if name.contains("down_proj") { expected.t().unwrap().contiguous().unwrap() } else { expected };
        let apart = relative(grads.get(var).unwrap(), &expected);
        println!("{name}: {apart:.1e}");
        // f32 against f64: rounding of 6e-8 a step through two layers of products and their derivatives; a wrong term is 1e-2.
        assert!(apart <= 1e-4, "{name}: {apart:.1e}");
    }
}

#[test]
fn activation_and_surprise_are_those_of_brute_force() {
    let (cfg, store) = fixture_parameters("tied_f32");
    let model = dense(&cfg, &store, DType::F32);
    let experts =
        partition::assign(Partition::Contiguous, &variant("Ten").spec, (2, 57), PartitionSources::default(), 0)
            .unwrap();
    let image = dump(&model, &fixture_ids("tied_f32"), &experts, 10).unwrap();
    let reference = MappedSafetensors::open(fixture("tied_f32").join("surprise.safetensors")).unwrap();
    for layer in 0..2 {
        for (measure, values) in [("activation", &image.activation), ("surprise", &image.surprise)] {
            let expected = reference.load(&format!("layers.{layer}.{measure}"), &CPU).unwrap();
            let apart = relative(&values[layer], &expected);
            println!("layer {layer} {measure}: {apart:.1e}");
            assert!(apart <= 1e-4, "layer {layer} {measure}: {apart:.1e}");
        }
    }
}

mod ten {
    use tinyonn::moe::moe;

    /// The partition of the fixture.
    #[moe(groups = 1, experts = 10)]
    pub(crate) struct Ten;
}

/// Some of the parameters, by name.
type Pick = fn(&str) -> bool;

/// Exactly the picked parameters have a gradient, each finite, somewhere not zero, and that which it has where all learn: what is frozen is
/// only left out.
fn assert_learns<F: FeedForward>(
    model: &CausalLm<F>,
    (store, ids): (&ParamStore, &Tensor),
    pass: &Pass,
    (all, picked): (Pick, Pick),
) {
    let of =
        |picked: fn(&str) -> bool| learnt(model, (store, &picked), (ids, &next(ids)), pass, &Learn::default()).grads;
    let (grads, whole) = (of(picked), of(all));
    assert!(store.names().any(picked));
    for (name, var) in store.iter() {
        let Some(grad) = grads.get(var) else {
            assert!(!picked(name), "{name} is trainable and has no gradient");
            continue;
        };
        assert!(picked(name), "{name} is frozen and has a gradient");
        assert_eq!(grad.dims(), var.dims(), "{name}");
        let values = grad.flatten_all().unwrap().copy().unwrap().to_vec1::<f32>().unwrap();
        assert!(values.iter().all(|x| x.is_finite()) && values.iter().any(|x| x.abs() > 0.0), "{name}");
        assert_eq!(bits(&grad.copy().unwrap()), bits(&whole.get(var).unwrap().copy().unwrap()), "{name}");
    }
}

fn everything(_: &str) -> bool {
    true
}

fn mlps(name: &str) -> bool {
    name.contains("mlp") && name.contains("_proj")
}

/// Nothing that layer 0's feed-forward depends on: its input is no function of a trainable parameter.
fn from_layer_0s_mlp(name: &str) -> bool {
    let before =
        ["embed_tokens", "layers.0.input_layernorm", "layers.0.self_attn", "layers.0.post_attention_layernorm"];
    !before.iter().any(|part| name.contains(part))
}

#[rstest]
fn what_is_trainable_learns_and_nothing_else(
    #[values("tied_f32", "untied_bf16_sharded")] name: &str,
    #[values(everything, mlps, from_layer_0s_mlp)] picked: fn(&str) -> bool,
) {
    let (cfg, store) = fixture_parameters(name);
    let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| true)).unwrap();
    assert_learns(&model, (&store, &fixture_ids(name)), &Pass::all(), (everything, picked));
}

#[rstest]
fn experts_learn_all_active_and_routed_and_nothing_else(#[values(false, true)] routed: bool) {
    let cfg = config(40, true);
    let (store, variant) = upcycled(&cfg, "Moe7x3");
    let ctx = if routed { Pass::routed() } else { Pass::all() };
    let vb = store.builder(DType::F32, |name| name.ends_with("weight"));
    let model = TinyOnnForCausalLm::new(&cfg, variant, &vb).unwrap();
    let weights: fn(&str) -> bool = |name| name.ends_with("weight");
    assert_learns(model.lm(), (&store, &ids((2, 9))), &ctx, (weights, mlps));
}

fn upcycled(cfg: &Arch, name: &str) -> (ParamStore, &'static tinyonn::moe::Variant) {
    let variant = variant(name);
    let experts = partition(Partition::Random, &variant.spec, cfg).unwrap();
    (upcycle(weights(cfg, DType::F32), cfg, variant, &experts, 4).unwrap(), variant)
}

fn upcycled_model(name: &str) -> TinyOnnForCausalLm {
    let cfg = config(123, true);
    let (store, variant) = upcycled(&cfg, name);
    sparse(&cfg, variant, &store, DType::F32)
}

/// Logits read in runs of these lengths, keys and values kept between them.
fn logits_in_runs<F: FeedForward>(model: &CausalLm<F>, ids: &Tensor, runs: &[usize], ctx: &Pass) -> Tensor {
    let mut cache = KvCache::new(model.config().num_hidden_layers);
    let mut parts = Vec::new();
    for run in runs {
        let fresh = ids.narrow(1, cache.positions(), *run).unwrap();
        parts.push(model.logits(&fresh, ctx, Some(&mut cache)).unwrap());
    }
    assert_eq!(cache.positions(), ids.dim(1).unwrap());
    Tensor::cat(&parts, 1).unwrap()
}

#[rstest]
fn a_cache_changes_no_logit(
    #[values("tied_f32", "untied_bf16_sharded", "mqa_f16", "untied_f32_v4")] name: &str,
    #[values(&[19], &[7, 12], &[1; 19], &[5, 1, 1, 9, 3])] runs: &[usize],
) {
    let (cfg, store) = fixture_parameters(name);
    let (model, ids) = (dense(&cfg, &store, DType::F32), fixture_ids(name));
    let full = model.logits(&ids, &Pass::all(), None).unwrap();
    let cached = logits_in_runs(&model, &ids, runs, &Pass::all());
    // Products of one row and of many sum in different orders.
    assert!(apart(&full, &cached) <= 1e-5, "{}", apart(&full, &cached));
}

#[rstest]
fn a_cache_changes_no_logit_where_each_token_decides(#[values("Moe2x4", "Moe10x10", "Moe12x8")] name: &str) {
    let (model, ids) = (upcycled_model(name), ids((2, 13)));
    let full = model.logits(&ids, &Pass::routed(), None).unwrap();
    let cached = logits_in_runs(model.lm(), &ids, &[4, 1, 8], &Pass::routed());
    assert!(apart(&full, &cached) <= 1e-5, "{}", apart(&full, &cached));
}

#[rstest]
fn generation_is_the_same_with_and_without_a_cache(#[values("tied_f32", "mqa_f16", "untied_f32_v4")] name: &str) {
    let (cfg, store) = fixture_parameters(name);
    let model = dense(&cfg, &store, DType::F32);
    let prompt = fixture_ids(name).i((0, ..5)).unwrap().to_vec1::<u32>().unwrap();
    let greedy = generation::greedy(&model, &prompt, 24, true);
    assert_eq!(greedy, generation::greedy(&model, &prompt, 24, false));
    assert_eq!(greedy.len(), 24);
    // The first token is the best of a plain pass, and the end of text ends the text.
    let logits = model.logits(&Tensor::new(vec![prompt.clone()], &CPU).unwrap(), &Pass::all(), None).unwrap();
    assert_eq!(greedy[0], logits.i((0, 4)).unwrap().argmax(0).unwrap().to_scalar::<u32>().unwrap());
    let end = greedy.iter().position(|token| *token == greedy[3]).unwrap();
    let written = |stop_ids: Vec<u32>, sampling, seed| {
        let how = Generation { tokens: 24, stop_ids, sampling };
        let prompts = vec![Prompt::new(prompt.clone(), seed, 0)];
        model.generate(prompts, &how, &Pass::all(), true, &mut |_| Ok(())).unwrap().remove(0)
    };
    assert_eq!(written(vec![greedy[3]], Sampling::GREEDY, 0), greedy[..=end]);
    let drawn = |seed| written(vec![], Sampling::at(1.0), seed);
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
}

#[rstest]
fn routed_generation_reads_what_a_whole_pass_reads(#[values("Moe2x4", "MoeSequence")] name: &str) {
    let model = upcycled_model(name);
    let prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3];
    let ctx = Pass::routed();
    let how = Generation { tokens: 12, stop_ids: vec![], sampling: Sampling::GREEDY };
    let prompts = vec![Prompt::new(prompt.to_vec(), 0, 0)];
    let uncached = model.lm().generate(prompts, &how, &ctx, false, &mut |_| Ok(())).unwrap().remove(0);
    assert_eq!(generation::continued(&model, &prompt, 12, &ctx), uncached);
}

/// How a model is asked: dense, or a variant in one of its modes.
fn logits(model: &LoadedModel, ids: &Tensor, routed: bool) -> Tensor {
    model.logits(ids, &if routed { Pass::routed() } else { Pass::all() }).unwrap()
}

#[rstest]
#[case::dense(None, false)]
#[case::all_active(Some("Moe7x3"), false)]
#[case::by_token(Some("Moe7x3"), true)]
#[case::by_sequence(Some("MoeSequence"), true)]
fn a_later_token_changes_no_earlier_logit(#[case] name: Option<&str>, #[case] routed: bool) {
    let cfg = config(123, true);
    let model = match name {
        None => LoadedModel::Dense(dense(&cfg, &weights(&cfg, DType::F32), DType::F32)),
        Some(name) => LoadedModel::TinyOnn(upcycled_model(name), tinyonn::model::ActiveMode::All),
    };
    let length = 14;
    let text = ids((2, length)).to_vec2::<u32>().unwrap();
    let before = logits(&model, &Tensor::new(text.clone(), &CPU).unwrap(), routed);
    for position in 1..length {
        let mut changed = text.clone();
        for row in &mut changed {
            row[position] = (row[position] + 1) % 37;
        }
        let after = logits(&model, &Tensor::new(changed, &CPU).unwrap(), routed);
        let part = |x: &Tensor, from, count| bits(&x.narrow(1, from, count).unwrap());
        assert_eq!(part(&before, 0, position), part(&after, 0, position), "token {position}");
        assert_ne!(part(&before, position, 1), part(&after, position, 1), "token {position}");
    }
}

#[rstest]
fn a_shorter_text_has_the_logits_of_the_longer_ones_beginning(#[values("Moe7x3", "MoeSequence")] name: &str) {
    let (model, ids) = (upcycled_model(name), ids((2, 14)));
    let whole = model.logits(&ids, &Pass::routed(), None).unwrap();
    for length in 1..14 {
        let short = model.logits(&ids.narrow(1, 0, length).unwrap(), &Pass::routed(), None).unwrap();
        assert!(apart(&short, &whole.narrow(1, 0, length).unwrap()) <= 1e-5, "{length} tokens");
    }
}

/// Room for keys and values is made for some positions, then for twice as many: what stands in the old room moves.
#[rstest]
fn a_cache_grows_beyond_its_first_room(
    #[values(&[300], &[1; 300], &[127, 1, 1, 171], &[128, 172], &[200, 100])] runs: &[usize],
) {
    let cfg = Arch { max_position_embeddings: 300, ..config(40, true) };
    let (model, ids) = (dense(&cfg, &weights(&cfg, DType::F32), DType::F32), ids((2, 300)));
    let full = model.logits(&ids, &Pass::all(), None).unwrap();
    let cached = logits_in_runs(&model, &ids, runs, &Pass::all());
    // Logits of order ten; products of one row and of many sum in different orders.
    assert!(apart(&full, &cached) <= 1e-4, "{}", apart(&full, &cached));
}

/// What a pass keeps is its own choice: computed once more, values are the same bits, and so are gradients.
#[rstest]
fn recomputing_changes_no_gradient(
    #[values(
        "",
        "Moe7x3",
        "MoeSequence",
        "Deep3",
        "Cortex",
        "SegmentOf1",
        "ByNucleus",
        "BySurprisal",
        "Dispatch3x4",
        "Custom3x4"
    )]
    name: &str,
) {
    let (cfg, ids) = (config(123, true), ids((2, 12)));
    let gradients = |keep: Keep| {
        let learn = Learn { routers: true, ..Learn::default() };
        let pass = Pass {
            keep,
            training: Some(InTraining::whole(3)),
            ..if name.is_empty() { Pass::all() } else { Pass::routed() }
        };
        let (found, store) = if name.is_empty() {
            let store = weights(&cfg, DType::F32);
            let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| true)).unwrap();
            (learnt(&model, (&store, &everything), (&ids, &next(&ids)), &pass, &learn), store)
        } else {
            let (store, variant) = upcycled(&cfg, name);
            let model = TinyOnnForCausalLm::new(&cfg, variant, &store.builder(DType::F32, |_| true)).unwrap();
            (learnt(model.lm(), (&store, &everything), (&ids, &next(&ids)), &pass, &learn), store)
        };
        let of = |(name, var): (&str, &candle_core::Var)| {
            Some((name.to_owned(), bits(&found.grads.get(var)?.copy().unwrap())))
        };
        (bits(&found.losses), store.iter().filter_map(of).collect::<Vec<_>>())
    };
    let (kept, again) = (gradients(Keep::All), gradients(Keep::Inputs));
    assert!(kept.1.len() > 20);
    assert!(kept == again);
}
