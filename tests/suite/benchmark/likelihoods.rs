//! Likelihoods against the naive loop: each text alone, no cache, the whole softmax in f64.

use std::sync::atomic::Ordering;

use candle_core::{DType, Tensor};
use rstest::rstest;
use tinyonn::benchmark::{Choice, Item, Metric, answers};
use tinyonn::decoder::{Arch, Continuation, Likelihood, Pass};
use tinyonn::random;

use rand::Rng as _;

use super::{task, tokenizer};
use crate::generation;
use crate::models::{CPU, config, counting, dense, message, weights};
use crate::routing::upcycled;
use crate::tiny;

/// Sums of a few f32 losses whose logits, of order ten, come out of products of other shapes.
const TOLERANCE: f64 = 1e-4;

fn naive(logits: impl Fn(&Tensor) -> Tensor, asked: &[Continuation]) -> Vec<Likelihood> {
    let of_one = |Continuation { tokens, from }: &Continuation| {
        let ids = Tensor::new(&tokens[..tokens.len() - 1], &CPU).unwrap().unsqueeze(0).unwrap();
        let rows = logits(&ids).squeeze(0).unwrap().to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
        let (mut log_likelihood, mut greedy) = (0.0, true);
        for at in *from..tokens.len() {
            let (row, target) = (&rows[at - 1], tokens[at] as usize);
            log_likelihood += row[target] - row.iter().map(|x| x.exp()).sum::<f64>().ln();
            greedy &= row.iter().enumerate().all(|(other, x)| other == target || *x < row[target]);
        }
        Likelihood { log_likelihood, greedy: Some(greedy) }
    };
    asked.iter().map(of_one).collect()
}

/// Texts over `vocabulary`: they begin with `shared` equal tokens, go on for 1 to 6, and are scored from somewhere.
fn texts(vocabulary: u32, count: usize, shared: usize, seed: u64) -> Vec<Continuation> {
    let mut rng = random::stream(seed, "tests/continuations");
    let beginning: Vec<u32> = (0..shared).map(|_| rng.random_range(0..vocabulary)).collect();
    let one = |_| {
        let own = rng.random_range(usize::from(shared == 0) + 1..7);
        let mut tokens = beginning.clone();
        tokens.extend((0..own).map(|_| rng.random_range(0..vocabulary)));
        let from = rng.random_range(1..tokens.len());
        Continuation { tokens, from }
    };
    (0..count).map(one).collect()
}

fn assert_close(found: &[Likelihood], expected: &[Likelihood]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        approx::assert_abs_diff_eq!(
            found.log_likelihood,
            expected.log_likelihood,
            epsilon = TOLERANCE * expected.log_likelihood.abs().max(1.0)
        );
        assert_eq!(found.greedy, expected.greedy);
    }
}

#[rstest]
fn the_dense_model_agrees_with_the_naive_loop(
    #[values(0, 1, 9)] shared: usize,
    #[values(1, 2, 5)] count: usize,
    #[values(false, true)] cached: bool,
    #[values(false, true)] tied: bool,
) {
    let cfg = config(20, tied);
    let model = dense(&cfg, &weights(&cfg, DType::F32), DType::F32);
    for seed in 0..6 {
        let asked = texts(37, count, shared, seed);
        let expected = naive(|ids| model.logits(ids, &Pass::all(), None).unwrap(), &asked);
        assert_close(&model.likelihoods(&asked, &Pass::all(), true, cached).unwrap(), &expected);
        let without = model.likelihoods(&asked, &Pass::all(), false, cached).unwrap();
        assert!(without.iter().all(|one| one.greedy.is_none()));
    }
}

/// Whatever a variant decides by, and all active.
#[rstest]
fn routed_models_agree_with_the_naive_loop(
    #[values(
        "Flat5",
        "Deep3",
        "Cortex",
        "Dispatch3x4",
        "ByNucleus",
        "SegmentOf3",
        "SequenceOf2",
        "BySurprisal",
        "SegmentBySurprisal"
    )]
    name: &str,
    #[values(false, true)] routed: bool,
) {
    let (cfg, variant, store) = upcycled(name);
    let model = tiny::sparse(&cfg, variant, &store);
    let pass = if routed { Pass::routed() } else { Pass::all() };
    for seed in 0..4 {
        let asked = texts(cfg.vocab_size as u32, 4, 7, seed);
        let expected = naive(|ids| model.logits(ids, &pass, None).unwrap(), &asked);
        assert_close(&model.likelihoods(&asked, &pass, true).unwrap(), &expected);
    }
}

/// A greedy text is one, and no other is.
#[test]
fn what_a_model_writes_is_a_greedy_match() {
    let cfg = config(20, false);
    let model = dense(&cfg, &weights(&cfg, DType::F32), DType::F32);
    for start in 0..10 {
        let written = generation::greedy(&model, &[start, 3], 4, true);
        let own = Continuation { tokens: [vec![start, 3], written].concat(), from: 2 };
        let mut other = own.clone();
        other.tokens[5] = (other.tokens[5] + 1) % 37;
        let found = model.likelihoods(&[own, other], &Pass::all(), true, true).unwrap();
        assert_eq!([found[0].greedy, found[1].greedy], [Some(true), Some(false)]);
    }
}

/// A model whose embeddings are all alike finds no token the only one of highest logit.
#[test]
fn equal_logits_are_no_greedy_match() {
    let cfg = config(20, true);
    let store = weights(&cfg, DType::F32);
    let embedding = store.get("model.embed_tokens.weight").unwrap();
    store.set("model.embed_tokens.weight", &embedding.as_detached_tensor().ones_like().unwrap()).unwrap();
    let model = dense(&cfg, &store, DType::F32);
    let asked = [Continuation { tokens: vec![1, 0, 2], from: 1 }];
    let found = model.likelihoods(&asked, &Pass::all(), true, true).unwrap();
    assert_eq!(found[0].greedy, Some(false));
    approx::assert_relative_eq!(found[0].log_likelihood, -2.0 * 37f64.ln(), max_relative = 1e-5);
}

#[test]
fn weights_that_are_no_numbers_answer_nothing() {
    let cfg = Arch { vocab_size: 280, ..config(20, false) };
    let store = weights(&cfg, DType::F32);
    let norm = store.get("model.norm.weight").unwrap().as_detached_tensor();
    store.set("model.norm.weight", &(norm * f64::NAN).unwrap()).unwrap();
    let model = dense(&cfg, &store, DType::F32);
    let choice = |continuation: &str| Choice { context: "sort 2 1 ->".into(), continuation: continuation.into() };
    for (metric, choices) in
        [(Metric::Sum, vec![choice(" 1 2"), choice(" 2 1")]), (Metric::GreedyMatch, vec![choice(" 1 2")])]
    {
        let task = task(metric, vec![Item { id: 0, choices, gold: 0 }]);
        let found =
            answers(&task, &tokenizer(), 64, 1, |asked, greedy| model.likelihoods(asked, &Pass::all(), greedy, true));
        let found = found.unwrap().remove(0);
        assert!(!found.right && found.answer.is_none() && found.log_likelihoods[0].is_nan(), "{found:?}");
    }
}

/// Items that are asked about at once are answered as each alone, but for roundings.
#[rstest]
fn items_asked_at_once_are_answered_alike(#[values(2, 3, 9)] together: usize) {
    let cfg = Arch { vocab_size: 280, ..config(20, false) };
    let model = dense(&cfg, &weights(&cfg, DType::F32), DType::F32);
    let choice =
        |id: u64, continuation: &str| Choice { context: format!("sort {id} 1 ->"), continuation: continuation.into() };
    let items = (0..5).map(|id| Item {
        id,
        choices: vec![choice(id, " 1 2"), choice(id, " 2 1 3"), choice(id, " 9")],
        gold: 0,
    });
    let task = task(Metric::Sum, items.collect());
    let ask = |together| {
        let likelihoods = |asked: &[Continuation], greedy| model.likelihoods(asked, &Pass::all(), greedy, true);
        answers(&task, &tokenizer(), 64, together, likelihoods).unwrap()
    };
    for (own, alone) in ask(together).iter().zip(ask(1)) {
        assert_eq!((own.item, own.answer, &own.tokens), (alone.item, alone.answer, &alone.tokens));
        for (own, alone) in own.log_likelihoods.iter().zip(&alone.log_likelihoods) {
            assert!((own - alone).abs() < 1e-4, "{own} {alone}");
        }
    }
}

/// Two choices of one text are a tie, wherever the right one stands.
#[rstest]
fn the_same_choice_twice_is_no_answer(#[values(0, 1)] gold: usize, #[values(false, true)] cached: bool) {
    let cfg = Arch { vocab_size: 280, ..config(20, false) };
    let model = dense(&cfg, &weights(&cfg, DType::F32), DType::F32);
    let choice = Choice { context: "sort 2 1 ->".into(), continuation: " 1 2".into() };
    let task = task(Metric::Sum, vec![Item { id: 0, choices: vec![choice.clone(), choice], gold }]);
    let likelihoods = |asked: &[Continuation], greedy| model.likelihoods(asked, &Pass::all(), greedy, cached);
    let found = answers(&task, &tokenizer(), 64, 1, likelihoods).unwrap();
    assert_eq!((found[0].answer, found[0].right), (None, false));
}

#[rstest]
#[case(vec![1, 2, 3], 0)]
#[case(vec![1, 2, 3], 3)]
#[case(vec![], 0)]
#[case(vec![1], 1)]
fn a_text_needs_something_given_and_something_scored(#[case] tokens: Vec<u32>, #[case] from: usize) {
    let cfg = config(20, false);
    let model = dense(&cfg, &weights(&cfg, DType::F32), DType::F32);
    let asked = [Continuation { tokens: vec![1, 2], from: 1 }, Continuation { tokens, from }];
    assert!(message(model.likelihoods(&asked, &Pass::all(), false, true)).contains("`from`"));
    assert!(model.likelihoods(&[], &Pass::all(), true, true).unwrap().is_empty());
}

#[test]
fn what_choices_begin_with_is_read_once() {
    let cfg = config(20, false);
    let store = weights(&cfg, DType::F32);
    let (model, read) = counting(&cfg, &store.builder(DType::F32, |_| false));
    let positions = |asked: &[Continuation], cached: bool| {
        read.store(0, Ordering::Relaxed);
        model.likelihoods(asked, &Pass::all(), false, cached).unwrap();
        read.load(Ordering::Relaxed) / cfg.num_hidden_layers
    };
    let with = |rest: &[u32], from| Continuation { tokens: [&(0..30).collect::<Vec<u32>>(), rest].concat(), from };
    // A shared context of 30 tokens; the last token of each is not read.
    let shared = [with(&[31, 32], 30), with(&[33, 34, 35], 30), with(&[36], 30)];
    assert_eq!((positions(&shared, true), positions(&shared, false)), (30 + 3 * 2, 31 + 32 + 30));
    // Of one token each, nothing of them is read; and what is scored itself is not shared.
    let short = [with(&[31], 30), with(&[32], 30)];
    assert_eq!(positions(&short, true), 30);
    let same = [with(&[31, 32], 30), with(&[31, 33], 30)];
    assert_eq!(positions(&same, true), 30 + 2);
    // Contexts that differ share their beginnings.
    let apart = [with(&[31, 1, 2], 32), with(&[32, 1, 2], 32)];
    assert_eq!(positions(&apart, true), 30 + 2 * 2);
}
