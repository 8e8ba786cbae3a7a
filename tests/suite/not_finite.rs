//! Values that have left the numbers stop every stage where they first show, in one line that says what to do.

use candle_core::Device;
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::checkpoint::ParamStore;
use tinyonn::data::{Sampler, TokenSet};
use tinyonn::decoder::Pass;
use tinyonn::imaging::inputs::{Samples, Thinning, Window};
use tinyonn::imaging::{Labels, RouterInputs, ScanOptions, dump, scan};
use tinyonn::metrics::MetricsLog;
use tinyonn::train::evaluate::EvaluateOptions;
use tinyonn::train::{
    OptimizerConfig, PretrainConfig, RouterFitConfig, RouterFitter, SmkConfig, evaluate, pretrain, train_smk,
};

use crate::models::message;
use crate::tiny;

const VOCAB: usize = 40;

fn text() -> TokenSet {
    tiny::tokens(3, &[200, 200], VOCAB as u32)
}

/// One line with all `words`.
fn assert_says(refused: &str, words: &[&str]) {
    assert!(words.iter().all(|word| refused.contains(word)) && !refused.contains('\n'), "{refused}");
}

fn with_log<R>(f: impl FnOnce(&mut MetricsLog) -> R) -> R {
    let dir = TempDir::new().unwrap();
    f(&mut MetricsLog::create(dir.path().join("log.jsonl")).unwrap())
}

/// A dense store with one value that is not finite in `name`.
fn spoilt(name: &str, value: f32) -> ParamStore {
    let store = tiny::dense_store(&tiny::config(VOCAB), 1);
    spoil(&store, name, value);
    store
}

fn spoil(store: &ParamStore, name: &str, value: f32) {
    let var = store.get(name).unwrap();
    let mut values: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
    values[0] = value;
    var.set(&candle_core::Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
}

#[rstest]
#[case::at_the_first_step(f64::MAX, 0)]
#[case::far_too_high(1e30, 10)]
fn pretraining_at_too_high_a_rate_stops(#[case] rate: f64, #[case] warmup: u64) {
    let set = text();
    let sampler = Sampler::new(&set, 16, 4, 0, &Device::Cpu).unwrap();
    let optimizer = OptimizerConfig { rate, ..OptimizerConfig::DEFAULT };
    // Not a multiple of the tenth step at which the loss is read.
    let config = PretrainConfig { steps: 9, batch: 4, warmup, optimizer, ..PretrainConfig::DEFAULT };
    let refused = with_log(|log| message(pretrain(&tiny::config(VOCAB), &config, (&sampler, None), 0, log, None)));
    assert_says(&refused, &["`pretrain.optimizer.rate`", "at step 1 of pretraining", "lower the rate"]);
}

fn smk(store: &ParamStore, variant: &'static tinyonn::moe::Variant, rate: f64) -> String {
    let set = text();
    let sampler = Sampler::new(&set, 16, 4, 0, &Device::Cpu).unwrap();
    let optimizer = OptimizerConfig { rate, ..OptimizerConfig::DEFAULT };
    let config = SmkConfig { steps: 9, batch: 4, min_k: 2, optimizer, ..SmkConfig::DEFAULT };
    with_log(|log| {
        message(train_smk(
            (store, &tiny::config(VOCAB), variant),
            &Pass::routed(),
            (&sampler, None),
            &config,
            log,
            None,
        ))
    })
}

#[test]
fn surprise_min_k_at_too_high_a_rate_stops() {
    let (variant, store) = tiny::upcycled(&tiny::config(VOCAB), "Moe2x4", &tiny::dense_store(&tiny::config(VOCAB), 1));
    assert_says(&smk(&store, variant, 1e30), &["`smk.optimizer.rate`", "of Surprise Min-K", "1e30", "lower the rate"]);
}

#[rstest]
#[case("model.layers.1.mlp.up_proj.weight", f32::NAN)]
#[case("model.layers.0.self_attn.q_proj.weight", f32::INFINITY)]
fn surprise_min_k_on_a_spoilt_model_stops_before_it_moves_a_weight(#[case] name: &str, #[case] value: f32) {
    let (variant, store) = tiny::upcycled(&tiny::config(VOCAB), "Moe2x4", &spoilt(name, value));
    let before = tiny::bits(&store);
    let refused = smk(&store, variant, 1e-3);
    assert_says(
        &refused,
        &["`smk.optimizer.rate`", "at step 0 of Surprise Min-K", "tensors for values that are not finite"],
    );
    assert_eq!(tiny::bits(&store), before);
}

#[rstest]
#[case("model.layers.1.mlp.up_proj.weight", f32::NAN)]
#[case("model.norm.weight", f32::INFINITY)]
#[case("lm_head.weight", f32::NEG_INFINITY)]
fn reading_text_through_a_spoilt_model_stops(#[case] name: &str, #[case] value: f32) {
    let (cfg, set, store) = (tiny::config(VOCAB), text(), spoilt(name, value));
    let model = tiny::dense(&cfg, &store);
    let words = ["the loss on task `task0` is", "tensors for values that are not finite"];

    let options = EvaluateOptions { length: 16, batch: 4, skip: 0 };
    let refused = message(evaluate(&model, &set, options, &Pass::all(), &Device::Cpu));
    assert_says(&refused, &[&["`evaluate`"], words.as_slice()].concat());

    let options = ScanOptions { length: 16, batch: 4, tokens_per_task: 100 };
    let mut inputs = RouterInputs::new(2, Thinning::one_in(1, Window::First(4)));
    let refused = message(scan(&model, &set, options, &Device::Cpu, Some(&mut inputs)));
    assert_says(&refused, &[&["`scan`"], words.as_slice()].concat());

    let ids = set.batches_of_task(0, 16, 2, &Device::Cpu).unwrap().next().unwrap().unwrap().inputs;
    let refused = message(dump(&model, &ids, &vec![vec![0; cfg.intermediate_size]; 2], 1));
    assert_says(&refused, &["`scan`", "tensors for values that are not finite"]);
}

/// Fits routers to inputs of two tasks that lie apart.
fn fitted(spoil: fn(&mut Samples, &mut Samples), config: RouterFitConfig) -> String {
    let cfg = tiny::config(VOCAB);
    let (variant, store) = tiny::upcycled(&cfg, "Moe2x4", &tiny::dense_store(&cfg, 1));
    let rows = |shift: usize| {
        let value = |(row, column): (usize, usize)| (((row * 7 + column * 3 + shift) % 11) as f32) + (row % 2) as f32;
        let values = (0..80).flat_map(|row| (0..16).map(move |column| value((row, column)))).collect();
        Samples { values, tasks: (0..80).map(|row| row % 2).collect(), documents: (0..80).collect(), scatter: None }
    };
    let (mut train, mut held) = (rows(0), rows(1));
    spoil(&mut train, &mut held);
    let labels = Labels::random(2, 2, &variant.spec, 0);
    let (train, held) = (vec![train; 2], vec![held; 2]);
    let fitter = RouterFitter::new(&train, &held, 2, 64);
    message(fitter.and_then(|mut fitter| fitter.fit((&store, &cfg, variant), &labels, &config, 0)))
}

#[test]
fn routers_stop_at_inputs_or_rates_that_leave_the_numbers() {
    let closed = RouterFitConfig { steps: 0, ..RouterFitConfig::default() };
    let refused = fitted(|train, _| train.values[5] = f32::NAN, closed);
    assert_says(&refused, &["`inputs`", "not finite", "tensors"]);
    let refused = fitted(|_, held| held.values[5] = f32::NAN, closed);
    assert_says(&refused, &["model.layers.0.mlp.group_router", "validation text", "not finite"]);
    let refused = fitted(|_, _| (), RouterFitConfig { rate: 1e30, ..RouterFitConfig::default() });
    assert_says(&refused, &["`router.rate`", "model.layers.0.mlp.group_router", "at step 1", "lower the rate"]);
}
