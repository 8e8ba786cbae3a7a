//! The study of growth: what stands in its table, and that what was stopped goes on to the same figures.

use std::fs;
use std::path::Path;

use candle_core::DType;
use experiments::fragments::{GROWTH, Written};
use experiments::growth::{GrowthConfig, Record, records, run_subject, write_results};
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::phases::{DenseShape, RunConfig};
use tinyonn::train::{PretrainConfig, RouterFitConfig, SmkConfig};

use crate::models::message;
use crate::phase2::setting;

fn study(dir: &Path) -> GrowthConfig {
    let base = GrowthConfig::default();
    let dense = DenseShape {
        vocab_size: 300,
        hidden_size: 16,
        intermediate_size: 210,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 8,
    };
    let RunConfig { data, .. } = setting(dir, DType::F32);
    let run = RunConfig {
        data,
        cache: dir.join("cache"),
        length: 16,
        scan_tokens: 300,
        test_tokens: 200,
        dense,
        pretrain: PretrainConfig { steps: 6, batch: 2, warmup: 1, ..base.run.pretrain },
        router: RouterFitConfig { steps: 2, ..base.run.router },
        smk: SmkConfig { steps: 8, batch: 4, ..base.run.smk },
        ..base.run
    };
    GrowthConfig { out: dir.join("study"), seeds: vec![3], run, ..base }
}

fn found(config: &GrowthConfig) -> Vec<(&'static str, Record)> {
    records(config).unwrap().into_iter().map(|(arm, found)| (arm.key, found[0].clone().unwrap())).collect()
}

/// Growth changes no loss at the step where it happens; what children share costs no more operations; and an arm that is run again, from its state or
/// from nothing, comes to the same figures.
#[test]
fn the_study_measures_the_same_model_grown_and_not() {
    let dir = TempDir::new().unwrap();
    let config = study(dir.path());
    config.validate().unwrap();
    let mut heard = Vec::new();
    run_subject(&config, 3, |arm, _| heard.push(arm.key)).unwrap();
    let first = found(&config);
    assert_eq!(heard, first.iter().map(|(key, _)| *key).collect::<Vec<_>>());
    assert!(!config.out.join("states-3").exists());
    let of = |key: &str| &first.iter().find(|(own, _)| *own == key).unwrap().1;
    for (key, record) in &first {
        let trunk = of(if key.starts_with("dense") { "dense" } else { "none" });
        // Products of more than 512 neurons add up in other blocks.
        assert!((record.at_half - trunk.at_half).abs() < 1e-5, "{key}");
        assert!(record.at_end.is_finite() && record.at_end != record.at_half, "{key}");
    }
    assert_eq!((of("none").neurons, of("wider").neurons, of("dense-equal").neurons), (210, 610, 510));
    assert!((of("shared-fitted").taken / of("none-fitted").taken - 1.0).abs() < 0.25);
    assert!(of("wider").operations > of("none").operations && of("dense-wider").operations > of("wider").operations);
    assert_ne!(of("none").at_end, of("wider").at_end);

    for key in ["none-fitted", "wider"] {
        fs::remove_file(config.out.join(format!("records/3-{key}.json"))).unwrap();
    }
    heard.clear();
    run_subject(&config, 3, |arm, _| heard.push(arm.key)).unwrap();
    assert_eq!(heard, ["none-fitted", "wider"]);
    for ((key, a), (_, b)) in first.iter().zip(found(&config)) {
        assert_eq!((a.at_half, a.at_end, a.taken), (b.at_half, b.at_end, b.taken), "{key}");
    }

    write_results(&config, &[("computed on".to_owned(), "cpu".to_owned())]).unwrap();
    let path = config.results_file();
    let page = fs::read_to_string(&path).unwrap();
    let written = Written::read(&path, &page, &GROWTH).unwrap();
    assert_eq!(written.declared, config.declared());
    assert!(
        page.starts_with("# What does growth buy?\n") && page.contains("| new neurons, which ride | 610 |"),
        "{page}"
    );
}

#[rstest]
#[case("seeds", |config: &mut GrowthConfig| config.seeds.clear())]
#[case("seeds", |config: &mut GrowthConfig| config.seeds = vec![0, 1, 0])]
#[case("run.smk.steps", |config: &mut GrowthConfig| config.run.smk.steps = 10)]
#[case("new_neurons", |config: &mut GrowthConfig| config.new_neurons = 0)]
#[case("run.model", |config: &mut GrowthConfig| config.run.model = Some("there".into()))]
#[case("Nobody", |config: &mut GrowthConfig| config.grown = "Nobody".into())]
fn settings_that_cannot_be_are_refused_by_name(#[case] name: &str, #[case] change: fn(&mut GrowthConfig)) {
    let mut config = GrowthConfig::default();
    config.validate().unwrap();
    change(&mut config);
    let refused = message(config.validate());
    assert!(refused.contains(&format!("`{name}`")), "{refused}");
}
