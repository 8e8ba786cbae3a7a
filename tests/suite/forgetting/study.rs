//! The study: its grid, its shards, what it says.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use experiments::forgetting::{Outcome, RunKey, Store, StudyConfig, Targets, Trial, Trials, run_shard, write_results};
use experiments::fragments::{FORGETTING, Written};
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::data::NovelTask;
use tinyonn::decoder::smk_rule::Select;
use tinyonn::imaging::Shard;
use tinyonn::interrupt::Interrupt;
use tinyonn::phases::Method;
use tinyonn::train::{Checkpoints, UpdateRule};

use super::setting;
use crate::models::message;

const SMK: Method = Method::Experts { select: Select::Smk, routed: false };
const RANDOM: Method = Method::Experts { select: Select::RandomK, routed: false };

fn study(dir: &Path) -> StudyConfig {
    let order = vec![NovelTask::Ledger, NovelTask::LetterSums];
    let trials = |method| Trials { method, rule: UpdateRule::Adamw, rates: vec![3e-3, 1e-2] };
    StudyConfig {
        out: dir.join("study"),
        results: None,
        knowledge: None,
        run: setting(dir),
        orders: vec![order.clone(), order.into_iter().rev().collect()],
        task_bytes: 12_000,
        fisher_sequences: 2,
        screen_seed: 5,
        seeds: vec![6, 7],
        reference_rate: 1e-2,
        margin: 0.5,
        trials: [Method::DENSE, SMK, RANDOM, Method::LeastImportant].map(trials).to_vec(),
        finalists: vec![Method::DENSE, SMK, RANDOM],
        open_places: 1,
    }
}

fn checkpoints(config: &StudyConfig) -> Checkpoints {
    Checkpoints { dir: config.out.clone(), every: 100, keep: 2, interrupt: Interrupt::default() }
}

fn shards(config: &StudyConfig, keys: &[RunKey], of: usize) -> usize {
    let mut ran = 0;
    for index in (0..of).rev() {
        let left = run_shard(config, (keys, Shard { index, of }), None, &checkpoints(config), |_| ran += 1).unwrap();
        assert_eq!(left, 0);
    }
    ran
}

/// The figures of all runs, but for their seconds.
fn figures(config: &StudyConfig, keys: &[RunKey]) -> Vec<serde_json::Value> {
    let store = Store::new(&config.out);
    let of = |key: &RunKey| {
        let mut record = serde_json::to_value(store.record(key).unwrap().unwrap()).unwrap();
        record["record"]["seconds"] = 1.0.into();
        record
    };
    keys.iter().map(of).collect()
}

#[test]
fn a_study_in_shards_says_what_one_in_one_go_says() {
    let dir = TempDir::new().unwrap();
    let config = study(dir.path());
    config.validate().unwrap();
    let store = Store::new(&config.out);
    store.begin(&config, "abc").unwrap();
    assert_eq!(Outcome::read(&config).unwrap().screen_left.len(), 8);
    assert_eq!(shards(&config, &config.screen(), 3), 8);
    let outcome = Outcome::read(&config).unwrap();
    let finalists = outcome.finalists(&config);
    // A method that has no figure takes no open place.
    let rivals = finalists.len();
    assert!((3..=4).contains(&rivals));
    assert!(finalists.iter().zip([Method::DENSE, SMK, RANDOM]).all(|(trial, method)| trial.method == method));
    let finals = config.finals(&finalists);
    // A run of another text is in nobody's company.
    let file = store.file(&config.screen()[3]);
    let (kept, mut record) = (fs::read(&file).unwrap(), store.record(&config.screen()[3]).unwrap().unwrap());
    record.corpus_sha256 = "0".repeat(64);
    store.keep(&record).unwrap();
    let said = message(Outcome::read(&config));
    assert!(said.contains(&*file.to_string_lossy()) && said.contains("another old text"), "{said}");
    fs::write(&file, kept).unwrap();
    assert_eq!((finals.len(), outcome.finals_left.len()), (4 * rivals, 4 * rivals));
    assert_eq!(config.most_runs(), 24);
    assert_eq!(shards(&config, &finals, 2), 4 * rivals);
    // What is there is not run again.
    assert_eq!(shards(&config, &[config.screen(), finals.clone()].concat(), 1), 0);
    let dealt = figures(&config, &[config.screen(), finals.clone()].concat());

    let outcome = Outcome::read(&config).unwrap();
    assert!(outcome.left().is_empty());
    let said = write_results(&outcome, &config, &[("computed by".into(), "a test".into())]).unwrap();
    assert!(said[0].starts_with("At equal learning Surprise Min-K forgets"), "{said:?}");
    let page = fs::read_to_string(config.results_file()).unwrap();
    let written = Written::read(&config.results_file(), &page, &FORGETTING).unwrap();
    assert_eq!(written.declared, config.declared());
    assert!(page.contains("| least_important | adamw |") && config.out.join("report.html").exists());
    for figure in ["first-task", "rates", "finals"] {
        let drawn = config.out.join("figures").join(format!("{figure}.svg")).exists();
        // Rates at which nothing is learnt have no figure.
        assert!(drawn || figure != "first-task", "{figure}");
        // Beside the fragment too, which names them.
        let beside = format!("RESULTS.figures/{figure}.svg");
        assert_eq!((config.out.join(&beside).exists(), page.contains(&format!("`{beside}`"))), (drawn, drawn));
    }

    fs::remove_dir_all(&config.out).unwrap();
    store.begin(&config, "abc").unwrap();
    assert_eq!(shards(&config, &config.screen(), 1), 8);
    assert_eq!(Outcome::read(&config).unwrap().finalists(&config), finalists);
    assert_eq!(shards(&config, &finals, 1), 4 * rivals);
    assert_eq!(figures(&config, &[config.screen(), finals].concat()), dealt);
}

/// A limit of time leaves the rest to the same command.
#[test]
fn a_study_that_is_out_of_time_goes_on() {
    let dir = TempDir::new().unwrap();
    let config = study(dir.path());
    Store::new(&config.out).begin(&config, "abc").unwrap();
    let keys = &config.screen()[..2];
    let now = Some(std::time::Instant::now());
    let left = run_shard(&config, (keys, Shard::WHOLE), now, &checkpoints(&config), |_| ()).unwrap();
    assert_eq!(left, 2);
    assert_eq!(shards(&config, keys, 1), 2);
}

#[rstest]
fn every_run_is_one_shards(#[values(1, 2, 3, 5, 8, 40)] of: usize) {
    let config = StudyConfig::default();
    let trials: Vec<Trial> = config.all_trials().into_iter().take(6).collect();
    for keys in [config.screen(), config.finals(&trials)] {
        let shards = (0..of).map(|index| Shard { index, of });
        let dealt: Vec<String> =
            shards.flat_map(|shard| experiments::forgetting::dealt(&keys, shard)).map(|key| key.id()).collect();
        let ids: BTreeSet<String> = keys.iter().map(RunKey::id).collect();
        assert_eq!((dealt.len(), dealt.into_iter().collect::<BTreeSet<_>>()), (keys.len(), ids));
    }
}

#[test]
fn the_default_study_asks_what_is_asked_and_ends() {
    let config = StudyConfig::default();
    config.validate().unwrap();
    StudyConfig::quick().validate().unwrap();
    assert!(config.most_runs() <= 80, "{}", config.most_runs());
    assert!(config.seeds.len() >= 3 && config.orders.len() >= 2 && config.orders[0].len() >= 3);
    let trials = config.all_trials();
    let tried = |method: Method| trials.iter().any(|trial| trial.method == method);
    for select in [Select::All, Select::Smk, Select::RandomK, Select::MaxK] {
        for routed in [false, true] {
            assert!(tried(Method::Experts { select, routed }));
        }
    }
    assert!(tried(Method::Experts { select: Select::MinLoad, routed: true }) && tried(Method::LeastImportant));
    let count = |of: fn(&Method) -> bool| trials.iter().filter(|trial| of(&trial.method)).count();
    let finalist = |of: fn(&Method) -> bool| config.finalists.iter().any(of);
    assert!(finalist(|m| matches!(m, Method::Lora { .. })) && finalist(|m| *m == SMK) && finalist(|m| *m == RANDOM));
    assert!(tried(Method::Experts { select: Select::MaxProduct, routed: true }));
    assert!(count(|m| matches!(m, Method::Lora { .. })) >= 2 && count(|m| matches!(m, Method::Replay { .. })) >= 1);
    assert!(trials.iter().any(|trial| trial.method == SMK && trial.rule == UpdateRule::Sgd));
}

#[rstest]
#[case::orders(|c: &mut StudyConfig| c.orders.truncate(1), "`orders`: 1 orders")]
#[case::same(|c: &mut StudyConfig| c.orders[1] = c.orders[0].clone(), "`orders`")]
#[case::seed(|c: &mut StudyConfig| c.seeds = vec![5, 6], "`seeds`: [5, 6]")]
#[case::margin(|c: &mut StudyConfig| c.margin = 1.0, "`margin`: is 1")]
#[case::rate(|c: &mut StudyConfig| c.trials[0].rates.push(0.0), "`trials.rates`: has 0")]
#[case::ungated(|c: &mut StudyConfig| c.trials[1].rates.push(0.5), "`trials`: has `smk.adamw.5e-1`")]
#[case::reference(|c: &mut StudyConfig| c.reference_rate = 0.5, "`reference_rate`: is 5e-1")]
#[case::undense(|c: &mut StudyConfig| c.finalists = vec![SMK], "`finalists`: lack dense")]
#[case::untried(|c: &mut StudyConfig| c.finalists.push(Method::Lora { rank: 3 }), "`finalists`: has `lora-3`")]
#[case::method(|c: &mut StudyConfig| c.trials[3].method = Method::Lora { rank: 0 }, "`method.lora.rank`")]
fn a_study_that_cannot_be_is_refused_by_name(#[case] change: fn(&mut StudyConfig), #[case] problem: &str) {
    let dir = TempDir::new().unwrap();
    let mut config = study(dir.path());
    change(&mut config);
    let said = message(config.validate());
    assert!(said.contains(problem), "{said}");
}

#[test]
fn a_folder_of_another_study_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let config = study(dir.path());
    let store = Store::new(&config.out);
    store.begin(&config, "abc").unwrap();
    store.begin(&config, "abc").unwrap();
    // Runs do not know of one another.
    store.begin(&StudyConfig { trials: config.trials[..2].to_vec(), ..config.clone() }, "abc").unwrap();
    let said = message(store.begin(&StudyConfig { task_bytes: 9_999, ..config.clone() }, "abc"));
    assert!(said.contains("`task_bytes` was 12000 and is 9999"), "{said}");
    fs::write(dir.path().join("dense/notes.txt"), "mine").unwrap();
    let said = message(Store::new(&dir.path().join("dense")).begin(&config, "abc"));
    assert!(said.contains("is no study of forgetting"), "{said}");
    assert!(message(Store::new(&dir.path().join("none")).begun()).contains("begin a study with exp_forgetting"));
}

/// A task is compared only where dense fine-tuning makes the old text worse beyond its interval.
#[test]
fn without_forgetting_there_is_nothing_to_compare() {
    let record = |old_sums: [[f64; 3]; 3], looks: [(f64, f64); 2]| -> tinyonn::phases::ForgettingRecord {
        let look = |(step, (new, old)): (usize, &(f64, f64))| {
            serde_json::json!({
                "task": 0, "step": step, "new": new, "old": old, "distance": step as f64,
            })
        };
        let last = serde_json::json!({ "task": 1, "step": 0, "new": 0.0, "old": 3.0, "distance": 2.0 });
        let looks: Vec<_> = looks.iter().enumerate().map(look).chain([last]).collect();
        serde_json::from_value(serde_json::json!({
            "tasks": ["a", "b"], "losses": [[4.0, 4.0], [2.0, 4.0], [2.0, 2.0]], "old": [1.0, 2.0, 3.0], "old_tasks": ["x"], "old_by_task": [],
            "old_sums": old_sums, "old_tokens": [1.0, 1.0, 1.0], "looks": looks, "learnable": 1, "stepped": 1.0, "moved": 1,
            "multiply_adds": 1.0, "seconds": 1.0,
        }))
        .unwrap()
    };
    // Over task a all three documents rise; over task b one falls.
    let dense = record([[1.0; 3], [2.0, 2.5, 2.0], [3.0, 1.5, 1.0]], [(4.0, 1.0), (2.0, 2.0)]);
    let targets = Targets::of(&dense, 0.5, 0).unwrap();
    assert_eq!((&targets.losses[..], &targets.forgets[..]), (&[3.0, 3.0][..], &[true, false][..]));
    let own = experiments::forgetting::Matched::new(&dense, &targets);
    assert_eq!((own.rises, own.compared), (vec![Some(0.5), None], vec![true, false]));
    let calm = record([[1.0; 3]; 3], [(4.0, 1.0), (2.0, 2.0)]);
    let own = experiments::forgetting::Matched::new(&dense, &targets.gated_by(&calm, 0));
    assert!(own.is_without_forgetting() && own.rise().is_none() && own.learns_all());
    // Who does not come as far has no figure.
    let slow = record([[1.0; 3]; 3], [(4.0, 1.0), (3.5, 1.1)]);
    assert_eq!(experiments::forgetting::Matched::new(&slow, &targets).rise(), None);
}
