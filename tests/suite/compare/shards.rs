//! A comparison dealt to several machines: each cell is one shard's, and the results are those of one run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use experiments::compare::{Cell, CompareConfig, Outcome, run_subject, write_report, write_results};
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::imaging::Shard;

use super::{run_all, setting};
use crate::models::message;

/// A subject is read by no more shards than there have to be.
#[rstest]
fn every_cell_and_every_subject_is_one_shards(
    #[values(1, 2, 3, 4, 5, 7, 200)] of: usize,
    #[values(1, 2, 3, 5)] seeds: u64,
) {
    let dir = TempDir::new().unwrap();
    let config = CompareConfig { seeds: (0..seeds).collect(), ..setting(dir.path()) };
    let (subjects, mut shards_in_use) = (config.subjects().count(), 0);
    for subject in 0..subjects {
        let parts: Vec<_> = (0..of).filter_map(|index| config.part(subject, Shard { index, of })).collect();
        shards_in_use += parts.len();
        assert_eq!(parts.iter().filter(|part| part.has_record).count(), 1);
        let mut cells: Vec<String> = parts.iter().flat_map(|part| &part.cells).map(Cell::id).collect();
        let mut expected: Vec<String> = config.cells().iter().map(Cell::id).collect();
        cells.sort();
        expected.sort();
        assert_eq!(cells, expected);
        // Routed cells take longest: no shard of a subject has more than one of them above another.
        let routed = parts.iter().map(|part| part.cells.iter().filter(|cell| cell.routed).count());
        let (least, most) = (routed.clone().min().unwrap(), routed.max().unwrap());
        assert!(most <= least + 1, "{least} {most}");
    }
    assert_eq!(shards_in_use, subjects.max(of));
}

/// What the results are written from and what they say, without seconds.
fn written(config: &CompareConfig) -> BTreeMap<String, Vec<u8>> {
    fn files_below(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { files_below(&path, found) } else { found.push(path) }
        }
    }
    let mut records = Vec::new();
    files_below(&config.out.join("subjects"), &mut records);
    for path in records.iter().filter(|path| path.extension().is_some_and(|extension| extension == "json")) {
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        record["seconds"] = 1.0.into();
        fs::write(path, record.to_string()).unwrap();
    }
    let outcome = Outcome::read(config).unwrap();
    let trials = outcome.trials(config);
    write_results(&outcome, &trials, config, &[]).unwrap();
    write_report(&outcome, &trials, config).unwrap();
    let results = config.results_file();
    let figures = fs::read_dir(config.out.join("figures")).unwrap().map(|entry| entry.unwrap().path());
    let pages = [results.clone(), results.with_extension("json"), config.out.join("report.html")];
    figures
        .chain(pages)
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap()))
        .collect()
}

#[rstest]
fn shards_write_the_bytes_of_one_run(#[values(2, 3)] of: usize) {
    let dir = TempDir::new().unwrap();
    let whole = setting(dir.path());
    whole.begin("abc").unwrap();
    run_all(&whole);
    let in_one = written(&whole);
    assert!(in_one.len() > 5 && in_one.contains_key("RESULTS.md"), "{:?}", in_one.keys());

    // The same folder, so that every path is the same.
    fs::remove_dir_all(&whole.out).unwrap();
    fs::remove_file(whole.results_file()).unwrap();
    whole.begin("abc").unwrap();
    let all: Vec<Shard> = (0..of).map(|index| Shard { index, of }).collect();
    let mut ran = 0;
    // The last one first: nothing hangs on their order.
    for (at, shard) in all.iter().rev().enumerate() {
        let _place = whole.begin_shard(*shard).unwrap();
        assert!(message(whole.begin_shard(*shard)).contains("another process runs this shard"));
        let missing: Vec<Shard> = whole.missing_shards().unwrap().into_iter().map(|(shard, _)| shard).collect();
        assert_eq!(missing, all[..of - at]);
        for subject in whole.subjects() {
            run_subject(&whole, subject, *shard, None, |_| ran += 1).unwrap();
        }
    }
    assert_eq!((ran, whole.missing_shards().unwrap()), (2 * whole.cells().len(), vec![]));
    assert_eq!(run_all(&whole), 0, "nothing is left to the command without a shard");
    let dealt = written(&whole);
    assert_eq!(dealt.keys().collect::<Vec<_>>(), in_one.keys().collect::<Vec<_>>());
    for (name, bytes) in &dealt {
        assert!(in_one[name] == *bytes, "{name}");
    }
}
