//! Pretraining learns, and the same from the same seed; evaluation is a loop over every target.

use std::sync::{Arc, LazyLock};

use approx::assert_relative_eq;
use candle_core::{Device, Tensor};
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::data::{Sampler, TokenSet};
use tinyonn::decoder::{Active, CausalLm, FeedForward, Pass, PathTable};
use tinyonn::metrics::{MetricsLog, Record};
use tinyonn::train::evaluate::EvaluateOptions;
use tinyonn::train::{DocumentLoss, Losses, OptimizerConfig, PretrainConfig, evaluate, pretrain};

use crate::tiny;

/// Tokenised once for all tests.
static TEXT: LazyLock<(TokenSet, TokenSet)> = LazyLock::new(tiny::text);

/// The training tokens of arithmetic alone.
static ARITHMETIC: LazyLock<TokenSet> =
    LazyLock::new(|| TokenSet { tasks: vec![TEXT.0.tasks[0].clone()], ..TEXT.0.clone() });

const CONFIG: PretrainConfig = PretrainConfig {
    steps: 60,
    batch: 8,
    warmup: 10,
    optimizer: OptimizerConfig {
        rate: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        decay: 0.1,
        clip: 1.0,
        ..OptimizerConfig::DEFAULT
    },
    ..PretrainConfig::DEFAULT
};

fn pretrained(config: &PretrainConfig, seed: u64) -> (tinyonn::checkpoint::ParamStore, Vec<Record>) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("log.jsonl");
    let sampler = Sampler::new(&ARITHMETIC, 32, config.batch, seed, &Device::Cpu).unwrap();
    let mut log = MetricsLog::create(&path).unwrap();
    let store = pretrain(&tiny::config(tiny::TEXT_VOCAB), config, (&sampler, None), seed, &mut log, None).unwrap();
    (store, tinyonn::metrics::read(path).unwrap())
}

fn value(record: &Record, name: &str) -> f64 {
    record.values.iter().find(|(key, _)| key == name).unwrap().1
}

fn held_out(store: &tinyonn::checkpoint::ParamStore) -> Losses {
    let cfg = tiny::config(tiny::TEXT_VOCAB);
    let options = EvaluateOptions { length: 32, batch: 8, skip: 0 };
    evaluate(&tiny::dense(&cfg, store), &TEXT.1, options, &Pass::all(), &Device::Cpu).unwrap()
}

#[test]
fn pretraining_learns_what_it_reads() {
    let (store, records) = pretrained(&CONFIG, 0);
    assert_eq!(records.iter().map(|record| record.step).collect::<Vec<_>>(), [0, 10, 20, 30, 40, 50, 59]);
    let losses: Vec<f64> = records.iter().map(|record| value(record, "loss")).collect();
    // New weights know nothing: ln V, to the spread of logits of 0.02-sized weights.
    assert_relative_eq!(losses[0], (tiny::TEXT_VOCAB as f64).ln(), epsilon = 0.05);
    assert!(losses[6] < losses[0] - 2.0, "{losses:?}");
    // It read arithmetic, not sorting, and knows arithmetic it has not read.
    let held = held_out(&store);
    assert!(held.by_task[0] < losses[0] - 2.0 && held.by_task[1] > held.by_task[0] + 0.5, "{held:?}");
    // The rate rises over 10 steps, then falls by a cosine to a tenth.
    let rate = |record: &Record| value(record, "rate");
    assert_relative_eq!(rate(&records[0]), 1e-3, max_relative = 1e-12);
    assert!(rate(&records[1]) > 9e-3 && records[1..].is_sorted_by(|a, b| rate(a) > rate(b)));
    assert_relative_eq!(rate(&records[6]), 1e-3, max_relative = 0.01);
    assert!(records.iter().all(|record| value(record, "gradient_norm") > 0.0));
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    let config = PretrainConfig { steps: 12, ..CONFIG };
    let bits = |seed| tiny::bits(&pretrained(&config, seed).0);
    let (first, other) = (bits(3), bits(4));
    assert_eq!(first, bits(3));
    // Norms begin at one whatever the seed, but learn other things.
    assert!(first.iter().zip(&other).all(|(a, b)| a != b));
}

/// Every row by itself, every target once, in f64.
fn by_hand<F: FeedForward>(model: &CausalLm<F>, set: &TokenSet, length: usize, skip: usize, ctx: &Pass) -> Losses {
    let (mut by_task, mut all, mut count) = (Vec::new(), 0.0, 0);
    let mut by_document = vec![DocumentLoss::default(); set.documents.len()];
    for (number, task) in set.tasks.iter().enumerate() {
        let (mut sum, mut scored) = (0.0, 0);
        for from in (0..task.tokens.len() - 1).step_by(length) {
            let row = &task.tokens[from..(from + length + 1).min(task.tokens.len())];
            let ids = Tensor::new(&row[..row.len() - 1], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let ctx = Pass { tasks: Some(Arc::from([number as u32])), ..ctx.clone() };
            let logits = model.logits(&ids, &ctx, None).unwrap().squeeze(0).unwrap().to_vec2::<f32>().unwrap();
            for (position, logits) in logits.iter().enumerate().skip(skip) {
                let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
                let loss = total.ln() - f64::from(logits[row[position + 1] as usize]);
                sum += loss;
                let document = &mut by_document[task.documents[from + position + 1] as usize];
                *document = DocumentLoss { task: number, sum: document.sum + loss, tokens: document.tokens + 1.0 };
                scored += 1;
            }
        }
        by_task.push(sum / f64::from(scored));
        all += sum;
        count += scored;
    }
    Losses { mean: all / f64::from(count), by_task, by_document }
}

#[rstest]
#[case::dense("", 8, 3, 0)]
#[case::one_row_a_batch("", 8, 1, 0)]
#[case::skip("", 8, 4, 3)]
#[case::routed("Moe7x3", 8, 4, 0)]
#[case::by_sequence("MoeSequence", 16, 4, 8)]
#[case::paths("paths", 8, 4, 0)]
fn evaluation_scores_every_target_once(
    #[case] mode: &str,
    #[case] length: usize,
    #[case] batch: usize,
    #[case] skip: usize,
) {
    let cfg = tiny::config(40);
    let store = tiny::dense_store(&cfg, 1);
    // Last rows of 5 and of 1 inputs, tasks of uneven size.
    let set = tiny::tokens(1, &[16 * 3 + 14, 16 * 5 + 10], 40);
    let options = EvaluateOptions { length, batch, skip };
    let (found, expected) = if mode.is_empty() {
        let model = tiny::dense(&cfg, &store);
        let ctx = Pass::all();
        (evaluate(&model, &set, options, &ctx, &Device::Cpu).unwrap(), by_hand(&model, &set, length, skip, &ctx))
    } else {
        let (variant, store) = tiny::upcycled(&cfg, if mode == "paths" { "Moe7x3" } else { mode }, &store);
        let model = tiny::sparse(&cfg, variant, &store);
        let paths = (0..2).map(|task| vec![vec![task, 7, 20]; 2]).collect();
        let active = match mode {
            "paths" => Active::Paths(Arc::new(PathTable { experts: paths })),
            _ => Active::Routed,
        };
        let ctx = Pass { active, ..Pass::all() };
        (
            evaluate(model.lm(), &set, options, &ctx, &Device::Cpu).unwrap(),
            by_hand(model.lm(), &set, length, skip, &ctx),
        )
    };
    assert_eq!(found.by_task.len(), 2);
    // Means of f32 losses against f64 ones from f32 logits.
    for (found, expected) in found.by_task.iter().zip(&expected.by_task).chain([(&found.mean, &expected.mean)]) {
        assert_relative_eq!(found, expected, max_relative = 1e-5);
    }
    assert_eq!(found.by_document.len(), expected.by_document.len());
    for (found, expected) in found.by_document.iter().zip(&expected.by_document) {
        assert_eq!((found.task, found.tokens), (expected.task, expected.tokens));
        assert_relative_eq!(found.sum, expected.sum, max_relative = 1e-5);
    }
}

#[rstest]
#[case("Moe2x4")]
#[case("Moe7x3")]
#[case("MoeSequence")]
fn paths_of_all_experts_are_all_active_bit_for_bit(#[case] name: &str) {
    let cfg = tiny::config(40);
    let (variant, store) = tiny::upcycled(&cfg, name, &tiny::dense_store(&cfg, 2));
    let model = tiny::sparse(&cfg, variant, &store);
    let set = tiny::tokens(2, &[90, 61], 40);
    let whole: Vec<u32> = (0..variant.spec.experts() as u32).collect();
    let paths = |path: &[u32]| {
        let experts = vec![vec![path.to_vec(); 2]; 2];
        Pass { active: Active::Paths(Arc::new(PathTable { experts })), ..Pass::all() }
    };
    let losses = |ctx: &Pass| {
        let options = EvaluateOptions { length: 16, batch: 4, skip: 0 };
        evaluate(model.lm(), &set, options, ctx, &Device::Cpu).unwrap()
    };
    assert_eq!(losses(&paths(&whole)), losses(&Pass::all()));
    assert_ne!(losses(&paths(&whole[1..])), losses(&Pass::all()));
}

#[rstest]
#[case::too_short(&[9, 1], 0, "task `task1` has no token to score")]
#[case::all_skipped(&[9, 9], 8, "task `task0` has no token to score; give it more text, or sequences of more than 8 tokens")]
#[case::one_task_skipped(&[9, 4], 4, "task `task1` has no token to score")]
fn a_task_without_a_scored_token_has_no_loss(#[case] sizes: &[usize], #[case] skip: usize, #[case] problem: &str) {
    let cfg = tiny::config(40);
    let model = tiny::dense(&cfg, &tiny::dense_store(&cfg, 0));
    let options = EvaluateOptions { length: 8, batch: 2, skip };
    let error = evaluate(&model, &tiny::tokens(0, sizes, 40), options, &Pass::all(), &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains(problem), "{error}");
}
