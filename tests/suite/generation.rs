//! Texts that are continued: the tokens of transformers, batches, caches, what may be drawn, text as it comes, conversations.

mod chat;
mod sampling;
mod text;
mod transformers;

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use candle_core::{DType, Tensor};
use rand::Rng as _;
use rstest::rstest;
use serde_json::Value;
use tinyonn::decoder::{Arch, Ask, CausalLm, FeedForward, Generation, KvCache, Pass, Prompt, Sampling, Step, Trace};
use tinyonn::model::TinyOnnForCausalLm;
use tinyonn::random;

use crate::models::{CPU, config, counting, dense, message, weights};
use crate::routing::upcycled;
use crate::tiny;

/// So many tokens, greedily, whatever they are.
fn greedily(tokens: usize) -> Generation {
    Generation { tokens, stop_ids: Vec::new(), sampling: Sampling::GREEDY }
}

fn prompts(texts: &[Vec<u32>]) -> Vec<Prompt> {
    texts.iter().enumerate().map(|(number, tokens)| Prompt::new(tokens.clone(), 7, number)).collect()
}

/// What a dense model writes greedily behind a prompt.
pub(crate) fn greedy<F: FeedForward>(model: &CausalLm<F>, prompt: &[u32], tokens: usize, cached: bool) -> Vec<u32> {
    let prompts = vec![Prompt::new(prompt.to_vec(), 0, 0)];
    model.generate(prompts, &greedily(tokens), &Pass::all(), cached, &mut |_| Ok(())).unwrap().remove(0)
}

/// What a variant writes greedily behind a prompt.
pub(crate) fn continued(model: &TinyOnnForCausalLm, prompt: &[u32], tokens: usize, pass: &Pass) -> Vec<u32> {
    let prompts = vec![Prompt::new(prompt.to_vec(), 0, 0)];
    model.generate(prompts, &greedily(tokens), pass, &mut |_| Ok(())).unwrap().remove(0)
}

/// A file of `make_continuations.py`.
fn fixture(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/continuations").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Prompts of several lengths, two of each of the first.
fn texts(vocabulary: u32, seed: u64) -> Vec<Vec<u32>> {
    let mut rng = random::stream(seed, "tests/prompts");
    let text = |length| (0..length).map(|_| rng.random_range(0..vocabulary)).collect();
    [4, 1, 7, 4, 1, 3].map(text).to_vec()
}

/// Rounding decides nothing here: the best two logits of random models lie apart.
#[rstest]
#[case::greedily(Sampling::GREEDY)]
#[case::at_random(Sampling { top_k: Some(9), repetition_penalty: 1.2, ..Sampling::at(1.1) })]
fn a_prompt_gets_in_a_batch_what_it_gets_alone(#[case] sampling: Sampling, #[values(false, true)] cached: bool) {
    let cfg = config(20, false);
    let model = dense(&cfg, &weights(&cfg, DType::F32), DType::F32);
    for seed in 0..4 {
        let texts = texts(37, seed);
        // Rows end at different times.
        let how = Generation { tokens: 12, stop_ids: vec![1, 5, 8, 13, 30], sampling };
        let written =
            |prompts: Vec<Prompt>| model.generate(prompts, &how, &Pass::all(), cached, &mut |_| Ok(())).unwrap();
        let together = written(prompts(&texts));
        let alone: Vec<Vec<u32>> = prompts(&texts).into_iter().map(|prompt| written(vec![prompt]).remove(0)).collect();
        assert_eq!(together, alone);
        for text in &together {
            let end = text.iter().position(|token| how.stop_ids.contains(token));
            assert_eq!(text.len(), end.map_or(12, |at| at + 1));
        }
    }
}

/// Whatever a variant decides by, and whichever tasks the prompts are of.
#[rstest]
fn variants_continue_batches_as_they_do_single_prompts(
    #[values("Flat5", "Deep3", "Cortex", "ByNucleus", "SegmentOf3", "SequenceOf2", "BySurprisal")] name: &str,
    #[values(false, true)] routed: bool,
) {
    let (cfg, variant, store) = upcycled(name);
    let model = tiny::sparse(&cfg, variant, &store);
    let pass = if routed { Pass::routed() } else { Pass::all() };
    let texts = texts(cfg.vocab_size as u32, 3);
    let together = model.generate(prompts(&texts), &greedily(7), &pass, &mut |_| Ok(())).unwrap();
    let alone: Vec<Vec<u32>> = texts.iter().map(|text| continued(&model, text, 7, &pass)).collect();
    assert_eq!(together, alone);
    // And as the whole text, read at once, has it.
    for (text, written) in texts.iter().zip(&together) {
        assert_eq!(
            model
                .lm()
                .generate(prompts(std::slice::from_ref(text)), &greedily(7), &pass, false, &mut |_| Ok(()))
                .unwrap()[0],
            *written
        );
    }
}

/// A token more costs one position in every layer, and no room for keys and values is made anew.
#[test]
fn a_token_is_read_once() {
    let cfg = config(20, false);
    let store = weights(&cfg, DType::F32);
    let (model, read) = counting(&cfg, &store.builder(DType::F32, |_| false));
    let positions = |cached| {
        read.store(0, Ordering::Relaxed);
        greedy(&model, &[1, 2, 3, 4, 5], 20, cached);
        read.load(Ordering::Relaxed) / cfg.num_hidden_layers
    };
    assert_eq!(positions(true), 5 + 19);
    assert_eq!(positions(false), (5..25).sum::<usize>());

    let mut cache = KvCache::with_room(cfg.num_hidden_layers, 24);
    for length in [5].into_iter().chain([1; 19]) {
        let ids = Tensor::zeros((1, length), DType::U32, &CPU).unwrap();
        model.logits(&ids, &Pass::all(), Some(&mut cache)).unwrap();
        assert_eq!(cache.room(), 24);
    }
    assert_eq!(cache.positions(), 24);
}

/// A listener hears every token of every row, with what was asked of the layers, and ends what it will.
#[test]
fn a_listener_hears_all_and_may_end() {
    let (cfg, variant, store) = upcycled("Flat5");
    let model = tiny::sparse(&cfg, variant, &store);
    let texts = texts(cfg.vocab_size as u32, 1);
    let pass = Pass { ask: Ask { gates: true, ..Ask::default() }, ..Pass::routed() };
    let mut heard = vec![Vec::new(); texts.len()];
    let mut listen = |step: &mut Step<'_>| {
        let rows = step.prompts.len() * step.read;
        let gates = |trace: &Trace| trace.gates.as_ref().unwrap().dims().to_vec();
        assert!(step.traces.iter().all(|trace| gates(trace) == [rows, 5]));
        for (row, (prompt, token)) in step.prompts.iter().zip(step.tokens).enumerate() {
            heard[*prompt].push(*token);
            step.ended[row] |= heard[*prompt].len() > *prompt;
        }
        Ok(())
    };
    let written = model.generate(prompts(&texts), &greedily(4), &pass, &mut listen).unwrap();
    assert_eq!(written, heard);
    assert_eq!(written.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 3, 4, 4, 4]);
}

#[rstest]
#[case::nothing(vec![vec![1], vec![]], 3, &["`prompt`", "empty"])]
#[case::too_long(vec![vec![1; 65]], 1, &["`prompt`", "65 tokens", "64 positions", "shorten"])]
#[case::without_end(vec![vec![1; 60]], usize::MAX, &["`tokens`", "ask for 5 or fewer"])]
#[case::too_many(vec![vec![1; 60]], 6, &["`tokens`", "6 tokens", "64", "ask for 5 or fewer"])]
fn what_cannot_be_continued_is_refused(#[case] texts: Vec<Vec<u32>>, #[case] tokens: usize, #[case] words: &[&str]) {
    let cfg: Arch = config(20, false);
    let model = dense(&cfg, &weights(&cfg, DType::F32), DType::F32);
    let error = message(model.generate(prompts(&texts), &greedily(tokens), &Pass::all(), true, &mut |_| Ok(())));
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
    assert!(model.generate(prompts(&[vec![1; 60]]), &greedily(5), &Pass::all(), true, &mut |_| Ok(())).is_ok());
    assert!(model.generate(vec![], &greedily(5), &Pass::all(), true, &mut |_| Ok(())).unwrap().is_empty());
}
