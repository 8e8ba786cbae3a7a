//! What a pretrained model still knows: divergence from itself, benchmarks, and the study of both.

use std::fs;
use std::path::Path;

use approx::assert_relative_eq;
use candle_core::{D, DType, Device};
use experiments::forgetting::{
    Kept, KnowledgeConfig, Matched, Outcome, Store, StudyConfig, Targets, Trials, own_text, run_shard, write_results,
};
use experiments::fragments::{FORGETTING_PRETRAINED, Written};
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::benchmark::{BenchmarkTask, Choice, Item, Metric, answers};
use tinyonn::data::NovelTask;
use tinyonn::decoder::Pass;
use tinyonn::decoder::smk_rule::Select;
use tinyonn::imaging::Shard;
use tinyonn::interrupt::Interrupt;
use tinyonn::phases::{ForgettingRecord, Method, OldKnowledge, Prepared, RunConfig, forgetting};
use tinyonn::train::evaluate::EvaluateOptions;
use tinyonn::train::{Checkpoints, UpdateRule, divergence, evaluate};

use super::{of, place, prepared, setting};
use crate::models::message;
use crate::tiny;

/// Items of two choices, of which the model of `prepared` finds the right one more probable; or the other one.
fn task(prepared: &Prepared, config: &RunConfig, rightly: bool) -> BenchmarkTask {
    // No text is a choice twice: it would be a constant answer.
    let choice =
        |id: u64, last: u64| Choice { context: format!("sort {id} 2 1 ->"), continuation: format!(" {id} {last}") };
    let items = (0..24).map(|id| Item { id, choices: vec![choice(id, 1), choice(id, 7)], gold: 0 });
    let mut task = BenchmarkTask { name: "made_up".into(), metric: Metric::Sum, items: items.collect() };
    let model = prepared.run(config).dense_model().unwrap();
    let likelihoods = |asked: &[_], greedy| model.likelihoods(asked, &Pass::all(), greedy, true);
    let found = answers(&task, &prepared.dense.tokenizer, 64, 1, likelihoods).unwrap();
    for (item, found) in task.items.iter_mut().zip(&found) {
        let answer = found.answer.unwrap();
        item.gold = if rightly { answer } else { 1 - answer };
    }
    // Where one place were right always, answering by it would be the floor.
    for item in task.items.iter_mut().step_by(2) {
        item.choices.reverse();
        item.gold = 1 - item.gold;
    }
    task
}

fn known(rightly: bool) -> (super::Place, tinyonn::Result<OldKnowledge>) {
    let place = place();
    let task = task(&place.prepared, &place.config, rightly);
    let known = OldKnowledge::new(&place.prepared, &place.config, vec![task], 2);
    (place, known)
}

/// Σ_v p (ln p − ln q) of each token that has a target, from whole logits.
#[test]
fn divergence_is_that_of_the_whole_distributions() {
    let cfg = tiny::config(37);
    let [model, original] = [1, 2].map(|seed| tiny::dense(&cfg, &tiny::dense_store(&cfg, seed)));
    let set = tiny::tokens(3, &[90, 70], 37);
    let options = EvaluateOptions { length: 8, batch: 2, skip: 0 };
    // The head is the model's: where both have their own, the model's serves for both, as of a model whose head does not learn.
    let head = model.head().t().unwrap();
    let found = divergence((&model, &original), &set, options, &Pass::all(), &Device::Cpu).unwrap();
    for task in 0..2 {
        let (mut sum, mut count) = (0.0, 0.0);
        for batch in set.batches_of_task(task, 8, 2, &Device::Cpu).unwrap() {
            let batch = batch.unwrap();
            let log_probs = |lm: &tinyonn::decoder::CausalLm<tinyonn::decoder::Mlp>| {
                let hidden = lm.hidden(&batch.inputs, &Pass::all()).unwrap().0.flatten_to(1).unwrap();
                candle_nn::ops::log_softmax(&hidden.matmul(&head).unwrap(), D::Minus1).unwrap()
            };
            let (q, p) = (log_probs(&model), log_probs(&original));
            let kl = ((p.exp().unwrap() * (&p - q).unwrap()).unwrap()).sum(1).unwrap().to_dtype(DType::F64).unwrap();
            for (kl, counted) in kl.to_vec1::<f64>().unwrap().into_iter().zip(&batch.counted) {
                sum += if *counted { kl } else { 0.0 };
                count += f64::from(u8::from(*counted));
            }
        }
        assert_relative_eq!(found.by_task[task], sum / count, max_relative = 1e-5);
    }
    let tokens: f64 = found.by_document.iter().map(|document| document.tokens).sum();
    let losses = evaluate(&model, &set, options, &Pass::all(), &Device::Cpu).unwrap();
    assert_eq!(tokens, losses.by_document.iter().map(|document| document.tokens).sum::<f64>());
    let both = found.clone().beside(losses.clone());
    assert_relative_eq!(both.mean, f64::midpoint(found.mean, losses.mean), max_relative = 1e-12);
    assert_eq!((both.by_task.len(), both.by_document.last().unwrap().task), (4, 3));
}

/// A model is as it was before it is taught: no divergence, its own answers; and both are worse behind. Looks and rounds of questions come when they are due.
#[rstest]
#[case::dense(Method::DENSE)]
#[case::smk(Method::Experts { select: Select::Smk, routed: false })]
#[case::lora(Method::Lora { rank: 2 })]
fn what_is_known_is_measured_as_tasks_are_taught(#[case] method: Method) {
    let (place, known) = known(true);
    let found = forgetting(&place.prepared, &place.config, &of(method), Some(&known.unwrap())).unwrap();
    assert_eq!((found.old[0], found.looks[0].old), (0.0, 0.0));
    assert!(found.old[1] > 1e-6 && found.looks[2].old == found.old[1], "{:?}", found.old);
    let more = found.knowledge.as_ref().unwrap();
    let rounds: Vec<(usize, u64)> = more.asked.iter().map(|asked| (asked.task, asked.step)).collect();
    assert_eq!(rounds, [(0, 0), (0, 2), (0, 4), (1, 0), (1, 2), (1, 4)]);
    assert!(more.asked[0].right.iter().all(|right| *right) && more.asked[2].right == more.asked[3].right);
    assert_eq!((more.benchmarks[0].items, more.benchmarks[0].accuracy.mean), (24, 1.0));
    let tokens: f64 = found.old_tokens.iter().sum();
    for (look, sums) in found.looks.iter().zip(&more.old_sums_by_look) {
        assert_relative_eq!(look.old, sums.iter().sum::<f64>() / tokens, epsilon = 1e-9);
    }
    // New tasks are measured as without it.
    let plain = forgetting(&place.prepared, &place.config, &of(method), None).unwrap();
    assert_eq!(found.losses, plain.losses);
    assert!(found.multiply_adds > plain.multiply_adds && plain.knowledge.is_none());
    let text = serde_json::to_string(&found).unwrap();
    assert_eq!(serde_json::from_str::<ForgettingRecord>(&text).unwrap(), found);
}

#[test]
fn a_model_whose_answers_say_nothing_is_refused() {
    let (_place, known) = known(false);
    assert!(message(known.map(drop)).contains("`knowledge.benchmarks`: have no task"));
}

fn record(old: &[[f64; 2]; 3], right: &[[bool; 4]; 3]) -> ForgettingRecord {
    let look = |task: usize, step: u64, new: f64, old: &[f64; 2]| serde_json::json!({ "task": task, "step": step, "new": new, "old": (old[0] + old[1]) / 4.0, "distance": step as f64 });
    let looks =
        [look(0, 0, 4.0, &old[0]), look(0, 10, 2.0, &old[1]), look(1, 0, 4.0, &old[1]), look(1, 10, 2.0, &old[2])];
    let asked = [(0, 0, 0), (0, 10, 1), (1, 0, 1), (1, 10, 2)]
        .map(|(task, step, at)| serde_json::json!({ "task": task, "step": step, "right": right[at] }));
    serde_json::from_value(serde_json::json!({
        "tasks": ["a", "b"], "losses": [[4.0, 4.0], [2.0, 4.0], [2.0, 2.0]], "old": [0.0, 1.0, 2.0], "old_tasks": ["x"], "old_by_task": [],
        "old_sums": old, "old_tokens": [2.0, 2.0], "looks": looks, "learnable": 1, "stepped": 1.0, "moved": 1,
        "multiply_adds": 1.0, "seconds": 1.0,
        "knowledge": { "benchmarks": [], "asked": asked, "old_sums_by_look": [old[0], old[1], old[1], old[2]] },
    }))
    .unwrap()
}

/// A task is compared only where divergence *and* answers are worse; what is compared is taken where the target is reached, by document and by item.
#[test]
fn both_must_be_worse_and_are_taken_at_equal_learning() {
    let all = [true; 4];
    let dense = record(&[[0.0, 0.0], [2.0, 4.0], [4.0, 8.0]], &[all, [false; 4], [false; 4]]);
    let targets = Targets::of(&dense, 0.5, 0).unwrap();
    // Over task b no answer is lost any more.
    assert_eq!(targets.forgets, [true, false]);
    let matched = Matched::new(&dense, &targets);
    let kept: &Kept = matched.kept.as_ref().unwrap();
    // Half way from 4 to 2 the target of 3 is reached: half of what is lost over the task.
    assert_eq!((&kept.documents[..], &kept.items[..]), (&[(1.0, 2.0), (2.0, 2.0)][..], &[-0.5; 4][..]));
    assert_eq!((kept.divergence(0).mean, kept.right(0).mean), (0.75, -0.5));
    let calm = record(&[[0.0, 0.0], [1.0, 2.0], [4.0, 8.0]], &[all, all, all]);
    assert!(Targets::of(&calm, 0.5, 0).unwrap().forgets == [false, false]);
    let own = Matched::new(&calm, &targets).kept.unwrap();
    let (divergence, right) = own.minus(kept, 0);
    assert_eq!((divergence.mean, right.mean), (-0.375, 0.5));
    assert!(Matched::new(&calm, &targets.gated_by(&calm, 0)).kept.is_none());
}

fn written(dir: &Path, task: &BenchmarkTask) {
    let dir = dir.join("benchmarks/piqa/rc_0shot");
    fs::create_dir_all(&dir).unwrap();
    let config = serde_json::json!({ "task_name": "piqa", "task_config": { "primary_metric": "acc_raw" } });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut lines = String::new();
    for item in &task.items {
        for (idx, Choice { context, continuation }) in item.choices.iter().enumerate() {
            let request = serde_json::json!({ "context": context, "continuation": continuation });
            let line = serde_json::json!({ "request_type": "loglikelihood", "request": request, "doc_id": item.id, "idx": idx, "label": item.gold });
            lines += &line.to_string();
            lines.push('\n');
        }
    }
    fs::write(dir.join("requests.jsonl"), lines).unwrap();
}

/// From the text that the model writes to the page, in two goes.
#[test]
fn the_study_of_a_pretrained_model_ends_with_its_screen() {
    let dir = TempDir::new().unwrap();
    let run = setting(dir.path());
    let trials = |method| Trials { method, rule: UpdateRule::Adamw, rates: vec![1e-2] };
    written(&dir.path().join("material"), &task(&prepared(&run), &run, true));
    let config = StudyConfig {
        out: dir.path().join("study"),
        knowledge: Some(KnowledgeConfig {
            material: dir.path().join("material"),
            benchmarks: vec!["piqa".into()],
            documents: 6,
            given: 8,
            written: 50,
            ..KnowledgeConfig::default()
        }),
        orders: vec![vec![NovelTask::Ledger, NovelTask::LetterSums]],
        task_bytes: 12_000,
        reference_rate: 1e-2,
        margin: 0.5,
        trials: [Method::DENSE, Method::Experts { select: Select::Smk, routed: false }].map(trials).to_vec(),
        run,
        ..StudyConfig::pretrained()
    };
    config.validate().unwrap();
    Store::new(&config.out).begin(&config, "abc").unwrap();
    let planned = config.plan(&config.screen()).unwrap();
    let sources = own_text(&config).unwrap().unwrap();
    assert_eq!(sources.len(), 2);
    let text = |source: &String| fs::read(source.split_once('=').unwrap().1).unwrap();
    let first: Vec<Vec<u8>> = sources.iter().map(text).collect();
    let checkpoints = Checkpoints { dir: config.out.clone(), every: 100, keep: 2, interrupt: Interrupt::default() };
    let screen = config.screen();
    let go = |keys: &[_]| {
        let mut seconds = 0.0;
        run_shard(&config, (keys, Shard::WHOLE), None, &checkpoints, |run| seconds += run.record.multiply_adds)
            .unwrap();
        seconds
    };
    assert!(go(&screen[..1]) > 0.0 && go(&screen) > 0.0 && go(&screen) == 0.0);
    assert_eq!(own_text(&config).unwrap().unwrap().iter().map(text).collect::<Vec<_>>(), first);
    let outcome = Outcome::read(&config).unwrap();
    assert!(outcome.left().is_empty() && outcome.finals.is_empty());
    assert!(planned[0].multiply_adds > 0.5 * outcome.screen[0].record.multiply_adds);
    let said = write_results(&outcome, &config, &[]).unwrap();
    assert!(said[0].starts_with("`smk`") || said[0].ends_with("no forgetting here."), "{said:?}");
    let page = fs::read_to_string(config.results_file()).unwrap();
    let written = Written::read(&config.results_file(), &page, &FORGETTING_PRETRAINED).unwrap();
    assert_eq!(written.declared, config.declared());
    assert!(page.contains("| made_up |") || page.contains("| piqa | 24 |"), "{page}");
}

#[test]
fn the_pretrained_models_study_is_a_screen_of_nineteen_runs() {
    let config = StudyConfig::pretrained();
    assert_eq!((config.most_runs(), config.screen().len(), config.finals(&config.all_trials()).len()), (19, 19, 0));
    assert!(message(config.validate()).contains("name a pretrained one with --model"));
    let dir = TempDir::new().unwrap();
    let model = setting(dir.path()).model;
    let config = StudyConfig { run: RunConfig { model, ..config.run.clone() }, ..config };
    config.validate().unwrap();
    let known = KnowledgeConfig { every: 25, ..KnowledgeConfig::default() };
    let said = message(StudyConfig { knowledge: Some(known), ..config.clone() }.validate());
    assert!(said.contains("`knowledge.every`: is 25"), "{said}");
    assert!(message(StudyConfig { seeds: vec![1], ..config }.validate()).contains("`orders`: 1 orders"));
}
