//! Phase 1 at the width of a real model, by shapes: what it holds in main memory beside the weights does not grow with the text. On small models
//! what is planned is held against what is kept.

use std::path::PathBuf;

use candle_core::{DType, Device};
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::data::{TaskTokens, TokenSet};
use tinyonn::decoder::Pass;
use tinyonn::imaging::inputs::{Thinning, Window};
use tinyonn::imaging::{RouterInputs, ScanOptions};
use tinyonn::metrics::Stopwatch;
use tinyonn::ops::Weigh;
use tinyonn::phases::{Prepared, Run, RunConfig, Stages, plan};

use crate::phase2::setting;
use crate::tiny;

/// Published configurations; bytes of what routers see at most, and of what a fit needs on two threads.
#[rstest]
#[case::qwen3_1_7b("qwen3_1_7b", 5.3e9, 0.6e9)]
#[case::qwen3_0_6b("qwen3_0_6b", 4.2e9, 0.3e9)]
#[case::smollm2("smollm2_135m", 3.8e9, 0.3e9)]
fn what_routers_see_is_bounded(#[case] name: &str, #[case] inputs: f64, #[case] fit: f64) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/decoders/published/{name}.json"));
    let of = |scan_tokens: usize| {
        let config = RunConfig { model: Some(path.clone()), scan_tokens, ..RunConfig::default() };
        plan(&config, Stages::Phase1).unwrap()
    };
    let plan = of(32_768);
    let stages: Vec<&str> = plan.stages.iter().map(|stage| stage.name).collect();
    assert_eq!(stages, ["scan", "proof", "router fit"]);
    let weights = 4 * plan.parameters as u64;
    // The upcycled weights are the dense ones; the proof alone reads them a second time.
    assert_eq!(plan.stages.iter().map(|stage| stage.weights / weights).collect::<Vec<_>>(), [1, 2, 1]);
    for stage in &plan.stages {
        assert!((stage.inputs as f64) < inputs, "{} {}", stage.name, stage.inputs);
    }
    let threads = rayon::current_num_threads() as f64;
    assert!((plan.stages[2].values as f64) < fit * threads / 2.0, "{}", plan.stages[2].values);
    // Of however long a text windows' means take 1 GiB of a split at most; one in so many is kept, so that the count is near its bound.
    for tokens in [100 * 32_768, 1_000_000 * 32_768] {
        for stage in &of(tokens).stages {
            assert!((stage.inputs as f64) < inputs + 3.0 * 1.1e9, "{} {}", stage.name, stage.inputs);
        }
    }
}

/// What is planned of router inputs is what they take; a refit has as much again of what it is fitted to and stopped by.
#[rstest]
fn what_is_planned_is_what_is_kept(#[values("Moe2x4", "SegmentOf3", "ByTask")] variant: &str) {
    let dir = TempDir::new().unwrap();
    let mut config = RunConfig { variant: variant.into(), ..setting(dir.path(), DType::F32) };
    let planned = |config: &RunConfig| plan(config, Stages::Phase1).unwrap().stages[2].inputs;
    let before = planned(&config);
    let as_read = config.clone();
    let prepared = Prepared::new(&as_read, &mut Stopwatch::new(), None).unwrap();
    let run = prepared.run(&as_read);
    let (scan, train) = run.scan().unwrap();
    let held = run.held_inputs().unwrap();
    let kept = train.bytes() + held.validation.bytes() + held.test.bytes();
    // A window that is not read whole has no mean: one a task, or one a segment at the end of a sequence.
    assert!(kept <= before && 10 * kept >= 9 * before, "{kept} {before}");
    let store = run.upcycle(&scan).unwrap();
    let model = run.model(&store).unwrap();
    let units = model.neuron_experts().unwrap();
    let pass = Run::routed(&run.labels(&scan, units.as_deref()));
    let fitted = run.own_inputs(model.lm(), &pass).unwrap();
    let again = fitted.bytes() + run.inputs(model.lm(), &prepared.tokens.validation, &pass).unwrap().bytes();
    config.router.refit_rounds = 1;
    assert!(planned(&config) >= kept + again && 10 * (kept + again) >= 9 * planned(&config));
}

/// As many rows are kept of eight times the text, and one matrix of all of it.
#[test]
fn more_text_takes_no_more_memory() {
    let cfg = tiny::config(40);
    let model = tiny::dense(&cfg, &tiny::dense_store(&cfg, 3));
    let options = ScanOptions { length: 16, batch: 4, tokens_per_task: usize::MAX };
    let seen = |sequences: u32| {
        let tokens = (0..=16 * sequences).map(|at| at * 7 % 40).collect();
        let all = 16 * sequences as usize;
        let task = TaskTokens { name: "t".into(), tokens, documents: vec![0; all + 1] };
        let set = TokenSet { tasks: vec![task], documents: vec!["t/0".into()], eos: 39 };
        let thinning = Thinning {
            tokens: all / 32,
            window: Window::First(8),
            windows: sequences as usize / 4,
            scatter: Some((1, Weigh::Classes)),
        };
        let mut inputs = RouterInputs::new(cfg.num_hidden_layers, thinning);
        inputs.collect(&model, &set, options, &Pass::all(), &Device::Cpu).unwrap();
        let [tokens, windows] = inputs.into_samples();
        let scatter = tokens[0].scatter.clone().unwrap();
        assert_eq!((scatter.rows(), scatter.width()), (all as f64, cfg.hidden_size));
        [tokens[0].tasks.len(), windows[0].tasks.len()]
    };
    for [tokens, windows] in [seen(16), seen(128)] {
        // One in so many, spread by the golden ratio: within two of the share.
        assert!(tokens.abs_diff(32) <= 2 && windows.abs_diff(4) <= 2, "{tokens} {windows}");
    }
}
