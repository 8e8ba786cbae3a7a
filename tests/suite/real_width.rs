//! Phase 1 at the width of a real model, by shapes: what it holds in main memory beside the weights does not grow with the text.

use std::path::PathBuf;

use rstest::rstest;
use tinyonn::phases::{RunConfig, Stages, plan};

/// Published configurations; bytes of what routers see at most, and of what a fit needs on two threads.
#[rstest]
#[case::qwen3_1_7b("qwen3_1_7b", 4.3e9, 0.6e9)]
#[case::qwen3_0_6b("qwen3_0_6b", 3.8e9, 0.3e9)]
#[case::smollm2("smollm2_135m", 3.4e9, 0.2e9)]
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
    assert_eq!(of(100 * 32_768).stages, plan.stages);
}
