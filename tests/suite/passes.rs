//! The passes of phase 1 by shards: what they make adds up to what one process makes, and phase 1 goes on from it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;
use experiments::runs;
use experiments::studies::RunSummary;
use rstest::rstest;
use tinyonn::Result;
use tinyonn::checkpoint::ModelFolder;
use tinyonn::imaging::{Score, Shard, StoredScan};
use tinyonn::metrics::Stopwatch;
use tinyonn::phases::{LabelSet, LabelUnit, PassFile, Passed, Prepared, RowPass, Run, RunConfig};
use tinyonn::train::{FitBy, RouterFitConfig};

use crate::models::message;
use crate::phase1::run;

/// What a run of its own makes, on a machine of its own.
fn on_a_machine<R>(config: &RunConfig, passed: Passed<'_>, make: impl FnOnce(&Run<'_>) -> Result<R>) -> Result<R> {
    let prepared = Prepared::new(config, &mut Stopwatch::new(), None)?;
    make(&Run { passed, ..prepared.run(config) })
}

pub(crate) fn scan_shard(config: &RunConfig, shard: Shard, file: &Path) -> Result<StoredScan> {
    on_a_machine(config, Passed::default(), |run| run.scan_shard(shard, file))
}

fn rows_shard(config: &RunConfig, (pass, shard): (RowPass, Shard), passed: Passed<'_>) -> Result<PassFile> {
    on_a_machine(config, passed, |run| run.rows_shard(pass, shard))
}

pub(crate) fn refit_shards(
    config: &RunConfig,
    shard: Shard,
    passed: Passed<'_>,
    save: impl FnMut(PassFile) -> Result<()>,
) -> Result<()> {
    on_a_machine(config, passed, |run| run.refit_shards(shard, save))
}

pub(crate) fn scanned(scan: &Path) -> Passed<'_> {
    Passed { scan: Some(scan), ..Passed::default() }
}

/// Whoever scans: of one part phase 1 finds the same to the last bit; of several an image whose sums are rounded elsewhere, from which experts that are nearly
/// equal may be chosen otherwise.
#[rstest]
#[case(1, 0.0)]
#[case(3, 1e-2)]
fn a_scan_in_shards_is_gone_on_from(#[case] of: usize, #[case] tolerance: f64) {
    let (dir, config, at_once) = run(|_| {});
    let config = RunConfig { out: dir.path().join("later"), ..config };
    let shard = |index: usize| {
        let path = dir.path().join(format!("{index}-{of}"));
        (path.clone(), scan_shard(&config, Shard { index, of }, &path).unwrap())
    };
    let sum = StoredScan::sum((0..of).rev().map(shard).collect(), false).unwrap();
    let whole = dir.path().join("whole");
    sum.save(&whole).unwrap();
    let later = runs::phase1(&config, None, scanned(&whole)).unwrap();
    assert_eq!(later.phase1.scan.tokens, at_once.phase1.scan.tokens);
    let [at_once, later] = [at_once, later].map(|summary| summary.phase1.loss);
    assert_eq!(at_once.dense.to_bits(), later.dense.to_bits());
    for (a, b) in [(at_once.routed_before, later.routed_before), (at_once.label_paths, later.label_paths)] {
        assert!((a - b).abs() <= tolerance * a, "{a} and {b}");
    }
}

#[test]
fn a_scan_of_something_else_is_refused() {
    let (dir, config, _) = run(|_| {});
    let path = dir.path().join("scan");
    let scan = |config: &RunConfig, shard: Shard| {
        let _ = fs::remove_file(&path);
        scan_shard(config, shard, &path).unwrap();
    };
    let refused = |config: &RunConfig| message(runs::phase1(config, None, scanned(&path)));
    scan(&config, Shard { index: 1, of: 2 });
    assert!(refused(&config).contains("lacks shard 0/2"));
    scan(&config, Shard::WHOLE);
    assert!(refused(&RunConfig { seed: 9, ..config.clone() }).contains("of another seed, split or length"));
    assert!(refused(&RunConfig { length: 8, ..config.clone() }).contains("of another seed, split or length"));
    let [first, second] = [0, 1].map(|task| config.data[task].split_once('=').unwrap());
    let swapped = [(first.0, second.1), (second.0, first.1)].map(|(name, path)| format!("{name}={path}"));
    let other = RunConfig { data: swapped.to_vec(), ..config.clone() };
    let said = refused(&other);
    assert!(said.contains("of another text"), "{said}");
    let dense = config.model.as_deref().unwrap();
    let store = ModelFolder::open(dense).unwrap().load(&Device::Cpu, None).unwrap();
    let norm = store.get("model.norm.weight").unwrap();
    norm.set(&(norm.as_tensor() * 2.0).unwrap()).unwrap();
    let changed = dir.path().join("changed");
    ModelFolder::save(&changed, &ModelFolder::open(dense).unwrap().arch().unwrap().to_json(), &store, Some(dense))
        .unwrap();
    assert!(refused(&RunConfig { model: Some(changed), ..config }).contains("of another model"));
}

/// What shards of a pass have made, a file for each of `of` shards and for each thing that is made, added up, saved under its pass' name in the folder `dir`.
pub(crate) fn added_up(dir: &Path, of: usize, mut shard: impl FnMut(Shard, &mut dyn FnMut(PassFile))) -> Vec<PathBuf> {
    let mut made: BTreeMap<String, Vec<(PathBuf, PassFile)>> = BTreeMap::new();
    for index in (0..of).rev() {
        shard(Shard { index, of }, &mut |file| {
            let (pass, path) = (file.pass().to_string(), dir.join(format!("{}-{index}-{of}", file.pass())));
            file.save(&path).unwrap();
            made.entry(pass).or_default().push((path.clone(), PassFile::load(&path).unwrap()));
        });
    }
    let whole = |(pass, files): (String, Vec<(PathBuf, PassFile)>)| {
        let whole = dir.join(pass);
        let turned = PassFile::sum(files.iter().rev().cloned().collect(), false).unwrap();
        turned.save(&whole).unwrap();
        let bytes = fs::read(&whole).unwrap();
        PassFile::sum(files, false).unwrap().save(&whole).unwrap();
        assert!(fs::read(&whole).unwrap() == bytes, "the order of the files shows");
        whole
    };
    made.into_iter().map(whole).collect()
}

/// As above, of a pass that makes one file.
pub(crate) fn made(dir: &Path, config: &RunConfig, (pass, of): (RowPass, usize), passed: Passed<'_>) -> PathBuf {
    added_up(dir, of, |shard, save| save(rows_shard(config, (pass, shard), passed).unwrap())).remove(0)
}

/// All but the seconds of a run.
fn told(summary: RunSummary) -> serde_json::Value {
    let mut told = serde_json::to_value(summary).unwrap();
    told["seconds"].take();
    told
}

/// Rows are those of one process, bit for bit and in its order: so is all that follows from them. The run scans its text in one piece.
#[rstest]
#[case("Moe2x4", LabelUnit::Task, 1)]
#[case("SegmentOf3", LabelUnit::Task, 3)]
#[case("Moe2x4", LabelUnit::Token, 3)]
fn rows_in_shards_are_gone_on_from(#[case] variant: &str, #[case] label: LabelUnit, #[case] of: usize) {
    let (dir, config, at_once) = run(|config| (config.variant, config.label) = (variant.into(), label));
    let later = RunConfig { out: dir.path().join("later"), ..config.clone() };
    let scan = dir.path().join("scan");
    scan_shard(&later, Shard::WHOLE, &scan).unwrap();
    let mut rows = vec![made(dir.path(), &later, (RowPass::Inputs, of), Passed::default())];
    if label == LabelUnit::Token {
        rows.push(made(dir.path(), &later, (RowPass::Labels, of), scanned(&scan)));
    }
    let later = runs::phase1(&later, None, Passed { scan: Some(&scan), rows: &rows }).unwrap();
    let [at_once, later] = [at_once, later].map(told);
    assert_eq!(later["routers"], at_once["routers"]);
    assert_eq!(later["loss"], at_once["loss"]);
}

/// So are those of rounds of refitting, each made from the sum of the round before: of the run's labels and of the controls'.
#[rstest]
#[case("Moe2x4", LabelUnit::Task, FitBy::Gda, 3)]
#[case("SegmentOf3", LabelUnit::Task, FitBy::GdaSgd, 2)]
#[case("Moe2x4", LabelUnit::Token, FitBy::GdaSgd, 2)]
fn rounds_in_shards_are_gone_on_from(
    #[case] variant: &str,
    #[case] label: LabelUnit,
    #[case] fit: FitBy,
    #[case] of: usize,
) {
    let (dir, config, at_once) = run(|config| {
        (config.variant, config.label) = (variant.into(), label);
        config.router = RouterFitConfig { fit, refit_rounds: 2, ..config.router };
    });
    let later = RunConfig { out: dir.path().join("later"), ..config.clone() };
    let scan = dir.path().join("scan");
    scan_shard(&later, Shard::WHOLE, &scan).unwrap();
    let mut rows = vec![made(dir.path(), &later, (RowPass::Inputs, of), Passed::default())];
    if label == LabelUnit::Token {
        rows.push(made(dir.path(), &later, (RowPass::Labels, of), scanned(&scan)));
    }
    for round in 1..=2 {
        let so_far = rows.clone();
        rows.extend(added_up(dir.path(), of, |shard, save| {
            let passed = Passed { scan: Some(&scan), rows: &so_far };
            let save = |made: PassFile| {
                assert!(matches!(made.pass(), RowPass::Refit { round: found, .. } if found == round));
                assert_eq!((made.then(), made.shards()), (Some(if round == 1 { "refit" } else { "losses" }), of));
                save(made);
                Ok(())
            };
            refit_shards(&later, shard, passed, save).unwrap();
        }));
    }
    let passed = Passed { scan: Some(&scan), rows: &rows };
    let all = message(refit_shards(&later, Shard::WHOLE, passed, |_| Ok(())));
    assert!(all.contains("the files of all 2 are given"), "{all}");
    // Three draws, three dealings, the run's own labels: the same of one alone.
    assert_eq!(rows.len(), 1 + usize::from(label == LabelUnit::Token) + 2 * 7);
    let pass = RowPass::Refit { round: 2, set: LabelSet::Permuted(1) };
    let alone = rows_shard(&later, (pass, Shard::WHOLE), passed).unwrap();
    let at = dir.path().join(pass.to_string());
    assert_eq!(alone.rows(), PassFile::load(&at).unwrap().rows());
    let later = runs::phase1(&later, None, passed).unwrap();
    let [at_once, later] = [at_once, later].map(told);
    assert_eq!(later["routers"], at_once["routers"]);
    assert_eq!(later["loss"], at_once["loss"]);
}

/// Losses of the test text, made from the sums of all passes before: the whole summary is that of one process, bit for bit, and controls are not fitted again.
#[rstest]
#[case("Moe2x4", LabelUnit::Task, 0, 3)]
#[case("SegmentOf3", LabelUnit::Task, 1, 2)]
#[case("ByTask", LabelUnit::Task, 0, 2)]
#[case("Moe2x4", LabelUnit::Token, 1, 2)]
fn losses_in_shards_are_gone_on_from(
    #[case] variant: &str,
    #[case] label: LabelUnit,
    #[case] refit_rounds: usize,
    #[case] of: usize,
) {
    let (dir, config, at_once) = run(|config| {
        (config.variant, config.label) = (variant.into(), label);
        config.router = RouterFitConfig { refit_rounds, ..config.router };
    });
    let later = RunConfig { out: dir.path().join("later"), ..config.clone() };
    let scan = dir.path().join("scan");
    scan_shard(&later, Shard::WHOLE, &scan).unwrap();
    let mut rows = vec![made(dir.path(), &later, (RowPass::Inputs, 1), Passed::default())];
    if label == LabelUnit::Token {
        rows.push(made(dir.path(), &later, (RowPass::Labels, 1), scanned(&scan)));
    }
    if refit_rounds > 0 {
        let so_far = rows.clone();
        rows.extend(added_up(dir.path(), 1, |shard, save| {
            let passed = Passed { scan: Some(&scan), rows: &so_far };
            let save = |made: PassFile| {
                assert_eq!(made.then(), Some("losses"));
                save(made);
                Ok(())
            };
            refit_shards(&later, shard, passed, save).unwrap();
        }));
    }
    let losses = made(dir.path(), &later, (RowPass::Losses, of), Passed { scan: Some(&scan), rows: &rows });
    assert_eq!(PassFile::load(&losses).unwrap().then(), None);
    rows.push(losses);
    let later = runs::phase1(&later, None, Passed { scan: Some(&scan), rows: &rows }).unwrap();
    let [at_once, later] = [at_once, later].map(told);
    assert_eq!(later, at_once);
}

#[test]
fn losses_of_something_else_are_refused() {
    // More of the test text is scored than routers see.
    let (dir, config, _) = run(|config| (config.scan_tokens, config.test_tokens) = (100, 200));
    let scan = dir.path().join("scan");
    scan_shard(&config, Shard::WHOLE, &scan).unwrap();
    let rows = [made(dir.path(), &config, (RowPass::Inputs, 1), Passed::default())];
    let passed = Passed { scan: Some(&scan), rows: &rows };
    let losses = |config: &RunConfig, shard: Shard| rows_shard(config, (RowPass::Losses, shard), passed);
    let lacks = message(rows_shard(&config, (RowPass::Losses, Shard::WHOLE), scanned(&scan)));
    assert!(lacks.contains("what the pass `inputs` has made, which is not given"), "{lacks}");
    let mut refitted = config.clone();
    refitted.router.refit_rounds = 1;
    let lacks = message(losses(&refitted, Shard::WHOLE));
    assert!(lacks.contains("what the pass `refit-1-random-0` has made"), "{lacks}");

    let halves = [0, 1].map(|index| losses(&config, Shard { index, of: 2 }).unwrap());
    let longer = losses(&RunConfig { test_tokens: 150, ..config.clone() }, Shard { index: 1, of: 2 }).unwrap();
    let named = |files: &[&PassFile]| {
        files.iter().enumerate().map(|(at, file)| (PathBuf::from(at.to_string()), (*file).clone())).collect()
    };
    let refused = message(PassFile::sum(named(&[&halves[0], &longer]), false));
    assert!(refused.contains("is of another test text, or test_tokens"), "{refused}");

    let path = dir.path().join("losses");
    let mut given = vec![rows[0].clone(), path.clone()];
    let gone_on = |config: &RunConfig| message(runs::phase1(config, None, Passed { scan: Some(&scan), rows: &given }));
    halves[1].save(&path).unwrap();
    assert!(gone_on(&config).contains("lacks shard 0/2"));
    PassFile::sum(named(&[&halves[1], &halves[0]]), false).unwrap().save(&path).unwrap();
    let mut other = config.clone();
    other.router.rate *= 2.0;
    assert!(gone_on(&other).contains("of another fit of routers, or seed"));
    given.remove(0);
    let lacks = message(runs::phase1(&config, None, Passed { scan: Some(&scan), rows: &given }));
    assert!(lacks.contains("what the pass `inputs` has made"), "{lacks}");
}

/// A round is of the files of the passes before it, of the labels that its routers are fitted to, and of how they are fitted.
#[test]
fn rounds_of_something_else_are_refused() {
    let (dir, config, _) = run(|config| config.router.refit_rounds = 1);
    let scan = dir.path().join("scan");
    scan_shard(&config, Shard::WHOLE, &scan).unwrap();
    let inputs = [made(dir.path(), &config, (RowPass::Inputs, 1), Passed::default())];
    let shard = |config: &RunConfig, passed| {
        let mut made = Vec::new();
        refit_shards(config, Shard::WHOLE, passed, |file| {
            made.push(file);
            Ok(())
        })
        .map(|()| made)
    };
    let lacks = |config: &RunConfig, passed| message(shard(config, passed).map(drop));
    assert!(lacks(&config, Passed::default()).contains("what the pass `scan` has made, which is not given"));
    assert!(lacks(&config, scanned(&scan)).contains("what the pass `inputs` has made"));
    let of_tokens = RunConfig { label: LabelUnit::Token, ..config.clone() };
    let passed = Passed { scan: Some(&scan), rows: &inputs };
    assert!(lacks(&of_tokens, passed).contains("what the pass `labels` has made"));
    let mut once = config.clone();
    once.router.refit_rounds = 0;
    assert!(lacks(&once, passed).contains("this one fits them once"));
    let none = message(rows_shard(&config, (RowPass::Refit { round: 2, set: LabelSet::Own }, Shard::WHOLE), passed));
    assert!(none.contains("none of the run's, which has 1 rounds"), "{none}");

    let made = shard(&config, passed).unwrap();
    let own = made.iter().find(|file| file.pass() == RowPass::Refit { round: 1, set: LabelSet::Own }).unwrap();
    let path = dir.path().join("own");
    own.save(&path).unwrap();
    let refused =
        |config: &RunConfig, rows: &[PathBuf]| message(runs::phase1(config, None, Passed { scan: Some(&scan), rows }));
    let rows = [inputs[0].clone(), path.clone()];
    assert!(
        refused(&config, std::slice::from_ref(&path)).contains("what the pass `inputs` has made, which is not given")
    );
    let mut other = config.clone();
    other.router.steps += 1;
    assert!(refused(&other, &rows).contains("of another fit of routers, or seed"));
    let other = RunConfig { contrast: true, labels: Score::Activation, ..config.clone() };
    assert!(refused(&other, &rows).contains("of another labels"));
    // The same rows of two shards: a file of other bytes before it.
    let two = dir.path().join("two");
    fs::create_dir(&two).unwrap();
    let before = added_up(&two, 2, |shard, save| {
        save(rows_shard(&config, (RowPass::Inputs, shard), Passed::default()).unwrap());
    });
    assert!(refused(&config, &[before[0].clone(), path.clone()]).contains("of another passes before"));
    let control = made.iter().find(|file| file.pass() != own.pass()).unwrap();
    let both = [own, control].map(|file| (PathBuf::from(file.pass().to_string()), file.clone()));
    assert!(message(PassFile::sum(both.to_vec(), false)).contains("of another pass (refit-1-"));
}

#[test]
fn rows_of_something_else_are_refused() {
    let (dir, config, _) = run(|config| config.label = LabelUnit::Token);
    let shard = |config: &RunConfig, index: usize, of: usize| {
        let made = rows_shard(config, (RowPass::Inputs, Shard { index, of }), Passed::default()).unwrap();
        (PathBuf::from(format!("{index}-{of}")), made)
    };
    let refused = |files: Vec<(PathBuf, PassFile)>| message(PassFile::sum(files, false));
    let other_seed = shard(&RunConfig { seed: 9, ..config.clone() }, 1, 2);
    assert!(
        refused(vec![shard(&config, 0, 2), other_seed]).contains("1-2: is of another text, seed or split than 0-2")
    );
    let other_length = shard(&RunConfig { length: 8, ..config.clone() }, 1, 2);
    assert!(refused(vec![shard(&config, 0, 2), other_length]).contains("of another length, batch or scan_tokens"));
    let twice = refused(vec![shard(&config, 0, 2), shard(&config, 0, 2)]);
    assert!(twice.contains("holds shard 0/2, which is here already"), "{twice}");
    assert!(refused(vec![shard(&config, 0, 2), shard(&config, 1, 3)]).contains("dealt otherwise"));
    assert!(refused(Vec::new()).contains("no file is given"));

    let path = dir.path().join("inputs");
    shard(&config, 1, 2).1.save(&path).unwrap();
    let refused = |config: &RunConfig, passed| message(runs::phase1(config, None, passed));
    let rows = [path.clone()];
    let inputs = Passed { rows: &rows, ..Passed::default() };
    assert!(refused(&config, inputs).contains("lacks shard 0/2"));
    shard(&config, 0, 1).1.save(&path).unwrap();
    assert!(refused(&RunConfig { seed: 9, ..config.clone() }, inputs).contains("of another text, seed or split"));
    let twice = [path.clone(), path.clone()];
    assert!(refused(&config, Passed { rows: &twice, ..Passed::default() }).contains("both hold inputs"));
    assert!(refused(&config, scanned(&path)).contains("holds no scan"));
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(refused(&config, inputs).contains("not those that were written"));

    let labels = |config: &RunConfig, passed| message(rows_shard(config, (RowPass::Labels, Shard::WHOLE), passed));
    assert!(labels(&config, Passed::default()).contains("what the pass `scan` has made, which is not given"));
    let of_tasks = RunConfig { label: LabelUnit::Task, ..config };
    assert!(labels(&of_tasks, Passed::default()).contains("set label = \"token\""));
}
