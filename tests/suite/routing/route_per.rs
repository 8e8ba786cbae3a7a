//! What shares a decision: by loops over the definition; causal; the same whether a text is read at once or token by token.

use std::sync::Arc;

use candle_core::{DType, Device, IndexOp, Tensor};
use rstest::rstest;
use tinyonn::decoder::{Active, FeedForward, Pass};
use tinyonn::imaging::inputs::{Thinning, Window};
use tinyonn::imaging::{Labels, RouterInputs, ScanOptions};
use tinyonn::model::TinyOnnForCausalLm;
use tinyonn::moe::{MoeLayer, RoutePer, Scores, Selection, select};
use tinyonn::train::{RouterFitConfig, RouterFitter};

use super::{BY_TOKEN, layer_gates, upcycled};
use crate::generation;
use crate::gradients::inputs;
use crate::models::{bits, message};
use crate::tiny;

/// Routed, three sequences of three tasks at most, each task with a path of its own.
fn ctx(variant: &tinyonn::moe::Variant, sequences: usize) -> Pass {
    let paths = Arc::new(Labels::random(3, 2, &variant.spec, 8).paths);
    let tasks = Arc::from((0..sequences as u32).map(|row| (row + 1) % 3).collect::<Vec<_>>());
    Pass { paths: Some(paths), tasks: Some(tasks), ..Pass::routed() }
}

/// The gates (all `unit`) of a decision by input `x`.
fn decision(module: &MoeLayer, x: &[f32]) -> Vec<f32> {
    let x = Tensor::new(x, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let scores = Scores::new(module, &x).unwrap();
    select(module.spec(), &scores.log_probs().unwrap(), Selection::default()).unwrap().to_vec2().unwrap().remove(0)
}

#[rstest]
fn gates_are_those_of_the_tokens_that_decide(
    #[values("Linear3x4", "Cortex", "SegmentOf3", "SequenceOf2", "ByTask")] name: &str,
    #[values(1, 2, 3, 4, 6, 7, 11)] length: usize,
) {
    let (cfg, variant, store) = upcycled(name);
    let layer = (variant.build)(&cfg, 0, store.builder(DType::F32, |_| false).pp("model.layers.0.mlp")).unwrap();
    let sequences = 3;
    let x = inputs(7, &[&[sequences, length, cfg.hidden_size]]).remove(0).to_dtype(DType::F32).unwrap();
    let ctx = ctx(variant, sequences);
    let found = layer_gates(&layer, &x, &ctx);
    assert_eq!(found.len(), sequences * length);
    let rows = x.to_vec3::<f32>().unwrap();
    let all = vec![1.0; variant.spec.experts()];
    let mean = |rows: &[Vec<f32>]| -> Vec<f32> {
        let of = |j: usize| rows.iter().map(|row| f64::from(row[j])).sum::<f64>() / rows.len() as f64;
        (0..cfg.hidden_size).map(|j| of(j) as f32).collect()
    };
    for sequence in 0..sequences {
        for t in 0..length {
            let rows = &rows[sequence];
            let expected = match variant.spec.route_per {
                RoutePer::Token => decision(&layer, &rows[t]),
                RoutePer::Segment { tokens } if t < tokens => all.clone(),
                RoutePer::Segment { tokens } => {
                    let start = t / tokens * tokens;
                    decision(&layer, &mean(&rows[start - tokens..start]))
                }
                RoutePer::Sequence { first } if t < first => all.clone(),
                RoutePer::Sequence { first } => decision(&layer, &mean(&rows[..first])),
                RoutePer::Task => {
                    let path = &ctx.paths.as_ref().unwrap().experts[(sequence + 1) % 3][0];
                    (0..12).map(|n| f32::from(path.contains(&n))).collect()
                }
            };
            let found = &found[sequence * length + t];
            // A gate that holds p is positive where it is taken.
            let found: Vec<f32> = found.iter().map(|gate| f32::from(*gate > 0.0)).collect();
            assert_eq!(found, expected, "sequence {sequence}, token {t}");
        }
    }
}

/// No decision reads what comes after the tokens it is for: not a bit of an earlier logit moves with a later token.
#[rstest]
fn a_later_token_changes_no_earlier_logit(
    #[values(
        "Linear3x4",
        "Cortex",
        "Deep3",
        "Deep4",
        "SegmentOf3",
        "SegmentOf1",
        "SequenceOf2",
        "ByTask",
        "ByEntropy",
        "ByNucleus",
        "BySurprisal",
        "SegmentBySurprisal"
    )]
    name: &str,
) {
    let (cfg, variant, store) = upcycled(name);
    causal(&tiny::sparse(&cfg, variant, &store), &ctx(variant, 2));
}

/// Nor does it with routers that know their tasks, where a decision is worth something.
#[rstest]
fn a_later_token_changes_no_earlier_logit_of_fitted_routers(
    #[values(
        "Linear3x4",
        "Cortex",
        "Deep4",
        "SegmentOf3",
        "SegmentOf1",
        "SequenceOf2",
        "ByTask",
        "ByEntropy",
        "BySurprisal"
    )]
    name: &str,
) {
    let (cfg, variant, store) = upcycled(name);
    let before = tiny::bits(&store);
    let model = tiny::sparse(&cfg, variant, &store);
    // Routers are fitted at the unit that they decide for.
    let (window, by_sequence) = match variant.spec.route_per {
        RoutePer::Token | RoutePer::Task => (Window::First(1), false),
        RoutePer::Segment { tokens } => (Window::Every(tokens), true),
        RoutePer::Sequence { first } => (Window::First(first), true),
    };
    let mut inputs = RouterInputs::new(2, Thinning::one_in(1, window));
    let options = ScanOptions { length: 10, batch: 4, tokens_per_task: usize::MAX };
    let set = tiny::tokens(1, &[200, 200, 200], 40);
    inputs.collect(model.lm(), &set, options, &Pass::all(), &Device::Cpu).unwrap();
    let [tokens, sequences] = inputs.into_samples();
    let samples = if by_sequence { sequences } else { tokens };
    let labels = Labels::random(3, 2, &variant.spec, 8);
    let config = RouterFitConfig { steps: 20, batch: 32, ..RouterFitConfig::default() };
    let mut fitter = RouterFitter::new(&samples, &samples, 3, 64).unwrap();
    fitter.fit((&store, &cfg, variant), &labels, &config, 0).unwrap();
    assert!(tiny::bits(&store) != before);
    causal(&tiny::sparse(&cfg, variant, &store), &ctx(variant, 2));
}

/// Changes one token of the first of two sequences after another and compares the logits.
fn causal(model: &TinyOnnForCausalLm, ctx: &Pass) {
    let (sequences, length) = (2, 10);
    let ids = tinyonn::checkpoint::tokens::random_tokens(40, (sequences, length), 5, &Device::Cpu).unwrap();
    let before = model.logits(&ids, ctx, None).unwrap();
    let rows = ids.to_vec2::<u32>().unwrap();
    for changed in 1..length {
        let mut rows = rows.clone();
        // Of the first sequence alone: none of the second may move at all.
        rows[0][changed] = (rows[0][changed] + 1 + changed as u32) % 40;
        let after = model.logits(&Tensor::new(rows, &Device::Cpu).unwrap(), ctx, None).unwrap();
        let earlier = |logits: &Tensor| bits(&logits.i((0, ..changed)).unwrap());
        assert!(earlier(&after) == earlier(&before), "token {changed}");
        assert!(bits(&after.i(1).unwrap()) == bits(&before.i(1).unwrap()), "token {changed}");
        assert!(bits(&after.i((0, changed)).unwrap()) != bits(&before.i((0, changed)).unwrap()));
    }
}

/// Routing must show, or what is causal about it is not tested.
#[rstest]
fn routed_is_not_all_active(
    #[values(
        "Flat5",
        "Deep3",
        "Deep4",
        "Cortex",
        "SegmentOf3",
        "SegmentOf1",
        "SequenceOf2",
        "ByTask",
        "ByEntropy",
        "ByNucleus",
        "BySurprisal",
        "SegmentBySurprisal"
    )]
    name: &str,
) {
    let (cfg, variant, store) = upcycled(name);
    let model = tiny::sparse(&cfg, variant, &store);
    let ids = tinyonn::checkpoint::tokens::random_tokens(40, (2, 10), 5, &Device::Cpu).unwrap();
    let routed = model.logits(&ids, &ctx(variant, 2), None).unwrap();
    assert!(bits(&routed) != bits(&model.logits(&ids, &Pass::all(), None).unwrap()));
}

/// Token by token, cached or not, as the whole text in one pass.
#[rstest]
fn a_text_goes_on_as_whole_passes_say(
    #[values(
        "Linear3x4",
        "Cortex",
        "Deep4",
        "SegmentOf3",
        "SequenceOf2",
        "ByTask",
        "ByEntropy",
        "ByNucleus",
        "BySurprisal",
        "SegmentBySurprisal"
    )]
    name: &str,
    #[values(1, 3, 5)] prompt: usize,
) {
    let (cfg, variant, store) = upcycled(name);
    let model = tiny::sparse(&cfg, variant, &store);
    let ctx = ctx(variant, 1);
    let mut text: Vec<u32> = (0..prompt as u32).map(|at| 7 * at + 2).collect();
    let found = generation::continued(&model, &text, 9, &ctx);
    for (at, token) in found.iter().enumerate() {
        let ids = Tensor::new(text.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let last = model.logits(&ids, &ctx, None).unwrap().i((0, text.len() - 1)).unwrap().to_vec1::<f32>().unwrap();
        let best = last.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // One pass or many round differently: the token is a best one up to that.
        assert!(best - last[*token as usize] < 1e-3, "token {at}");
        text.push(*token);
    }
}

#[rstest]
#[case("SegmentOf3", true)]
#[case("SequenceOf2", true)]
#[case("BySurprisal", true)]
#[case("Linear3x4", false)]
#[case("ByTask", false)]
#[case("ByEntropy", false)]
fn a_cache_that_hides_what_a_decision_reads_is_refused(#[case] name: &str, #[case] refused: bool) {
    let (cfg, variant, store) = upcycled(name);
    let model = tiny::sparse(&cfg, variant, &store);
    let ids = Tensor::new(&[[1u32, 2, 3]], &Device::Cpu).unwrap();
    let with_cache = |ctx: &Pass| {
        model.logits(&ids, ctx, Some(&mut tinyonn::decoder::KvCache::new(cfg.num_hidden_layers))).map(drop)
    };
    with_cache(&Pass::all()).unwrap();
    let routed = with_cache(&ctx(variant, 1));
    assert_eq!(routed.is_err(), refused);
    if refused {
        let error = message(routed);
        assert!(error.contains("cache") && error.contains(name), "{error}");
    }
}

#[test]
fn a_sequence_without_its_task_or_path_is_refused() {
    let (cfg, variant, store) = upcycled("ByTask");
    let model = tiny::sparse(&cfg, variant, &store);
    let ids = Tensor::new(&[[1u32, 2], [3, 4]], &Device::Cpu).unwrap();
    let full = ctx(variant, 2);
    let error = |ctx: Pass| message(model.logits(&ids, &ctx, None));
    assert!(error(Pass { paths: None, ..full.clone() }).contains("Pass::paths"));
    assert!(error(Pass { tasks: None, ..full.clone() }).contains("each of 2 sequences"));
    assert!(error(Pass { tasks: Some(Arc::from([0u32])), ..full.clone() }).contains("each of 2 sequences"));
    assert!(error(Pass { tasks: Some(Arc::from([0u32, 3])), ..full.clone() }).contains("task 3"));
    // Given paths need no declaration: the same gates, the same bits.
    let given = Pass { active: Active::Paths(full.paths.clone().unwrap()), paths: None, ..full.clone() };
    let logits = |ctx: &Pass| bits(&model.logits(&ids, ctx, None).unwrap());
    assert_eq!(logits(&given), logits(&full));
}

/// A router of one's own that answers in another shape is named, and so is what it should have answered.
#[test]
fn every_kind_of_router_answers_in_the_shape_that_is_declared() {
    for name in BY_TOKEN {
        let (cfg, variant, store) = upcycled(name);
        let layer = (variant.build)(&cfg, 0, store.builder(DType::F32, |_| false).pp("model.layers.0.mlp")).unwrap();
        let x = inputs(9, &[&[6, cfg.hidden_size]]).remove(0).to_dtype(DType::F32).unwrap();
        let levels = Scores::new(&layer, &x).unwrap().by_level().unwrap();
        for (level, declared) in levels.iter().zip(variant.spec.levels.iter()) {
            assert_eq!(level.dims(), [6, declared.nodes()], "{name}");
        }
        assert_eq!(levels.len(), variant.spec.levels.len());
    }
    let (cfg, variant, store) = upcycled("Misshapen");
    let layer = (variant.build)(&cfg, 0, store.builder(DType::F32, |_| false).pp("model.layers.0.mlp")).unwrap();
    let x = Tensor::zeros((1, 2, cfg.hidden_size), DType::F32, &Device::Cpu).unwrap();
    let error = message(layer.forward(&x, &Pass::routed()));
    for word in ["Misshapen", "`group_router`", "[2, 3, 1]", "[2, 1, 3]"] {
        assert!(error.contains(word), "{error}");
    }
}

mod misshapen {
    use candle_core::Tensor;
    use candle_nn::VarBuilder;
    use tinyonn::moe::{Router, RouterShape, moe};

    #[moe(groups = 3, experts = 2, router = [Transposed, linear])]
    struct Misshapen;

    #[derive(Debug)]
    struct Transposed(RouterShape);

    impl Router for Transposed {
        fn new(shape: RouterShape, _: &VarBuilder<'_>) -> tinyonn::Result<Self> {
            Ok(Self(shape))
        }

        fn logits(&self, x_td: &Tensor) -> tinyonn::Result<Tensor> {
            Ok(x_td.narrow(1, 0, self.0.choices)?.unsqueeze(2)?)
        }
    }
}
