//! The default corpus and the division into splits.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use rstest::rstest;
use tinyonn::data::{Corpus, Document, SplitShares, Splits, Task, default_corpus, workspace_root};

use super::corpus;

fn ids(task: &Task) -> Vec<&str> {
    task.documents.iter().map(|document| document.id.as_str()).collect()
}

#[test]
fn the_default_corpus_takes_the_sources_and_nothing_that_tools_write() {
    let root = tempfile::tempdir().unwrap();
    let rust = "//! A page.\n\n/// What it does.\nfn f() {} // a remark\n//// a rule\n";
    for (path, text) in [
        ("README.md", "read me"),
        ("RESULTS.md", "written"),
        ("runs/a/notes.md", "written"),
        ("target/doc/page.md", "written"),
        (".ci/log.md", "written"),
        ("elsewhere/a.rs", "fn elsewhere() {}"),
        ("docs/guide.md", "a guide"),
        ("tinyonn/Cargo.toml", ""),
        ("tinyonn/src/lib.rs", rust),
        ("tinyonn/runs/x.rs", "fn written() {}"),
        ("tests/fixtures/golden.rs", "fn written() {}"),
        ("tests/fixtures/golden.md", "written"),
        ("tests/suite/RESULTS.md", "written"),
        ("tests/suite/only_docs.rs", "//! Nothing else.\n"),
    ] {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let corpus = default_corpus(root.path(), 0).unwrap();
    assert_eq!(corpus.task_names(), ["rust", "prose", "arithmetic", "sorting", "records"]);
    let [rust, prose, ..] = corpus.tasks.as_slice() else { panic!() };
    assert_eq!(ids(rust), ["tinyonn/src/lib.rs"]);
    assert_eq!(rust.documents[0].text, "\nfn f() {} // a remark\n//// a rule\n");
    assert_eq!(ids(prose), ["README.md", "tinyonn/src/lib.rs", "tests/suite/only_docs.rs", "docs/guide.md"]);
    assert_eq!(prose.documents[1].text, "A page.\nWhat it does.\n");
    assert_ne!(corpus.sha256(), default_corpus(root.path(), 1).unwrap().sha256());
}

#[test]
fn this_workspace_is_a_corpus_that_splits() {
    let root = workspace_root().unwrap();
    let corpus = default_corpus(&root, 0).unwrap();
    assert_eq!(corpus, default_corpus(&root, 0).unwrap());
    Splits::new(&corpus, SplitShares::default(), 0).unwrap();
}

#[test]
fn a_folder_without_sources_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let message = default_corpus(root.path(), 0).unwrap_err().to_string();
    assert!(
        message.contains("no text for the default task `rust`") && message.contains("--data NAME=PATH"),
        "{message}"
    );
    let message = default_corpus(&PathBuf::from("/gone"), 0).unwrap_err().to_string();
    assert!(message.starts_with("/gone: "), "{message}");
}

/// Texts that differ, of two bytes or more.
fn of_sizes(sizes: &[usize]) -> Corpus {
    let documents =
        sizes.iter().enumerate().map(|(index, size)| Document::new(index.to_string(), format!("{index:x>size$}")));
    Corpus { tasks: vec![Task { name: "t".into(), documents: documents.collect() }] }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Whatever the sizes: every document in exactly one split, none empty, the same again for the same seed, and the
    /// shares met to within the largest document.
    #[test]
    fn splits_are_disjoint_complete_and_fair(sizes in prop::collection::vec(2usize..3000, 3..60), seed in any::<u64>()) {
        let corpus = of_sizes(&sizes);
        let splits = Splits::new(&corpus, SplitShares::default(), seed).unwrap();
        prop_assert_eq!(&splits, &Splits::new(&corpus, SplitShares::default(), seed).unwrap());
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        let (total, largest) = (corpus.bytes() as f64, *sizes.iter().max().unwrap() as f64);
        for (split, share) in [(&splits.train, 0.8), (&splits.validation, 0.1), (&splits.test, 0.1)] {
            let task = &split.tasks[0];
            prop_assert!(!task.documents.is_empty());
            for id in ids(task) {
                *seen.entry(id).or_default() += 1;
            }
            // Moving a document into an empty split can cost one more.
            prop_assert!((task.bytes() as f64 - share * total).abs() <= 2.0 * largest + 1.0);
        }
        prop_assert_eq!(seen.len(), sizes.len());
        prop_assert!(seen.values().all(|count| *count == 1));
    }
}

#[test]
fn another_seed_divides_otherwise_and_other_tasks_change_nothing() {
    let one = of_sizes(&[100; 50]);
    let first = Splits::new(&one, SplitShares::default(), 0).unwrap();
    assert_eq!([first.train.bytes(), first.validation.bytes(), first.test.bytes()], [4000, 500, 500]);
    assert_ne!(first, Splits::new(&one, SplitShares::default(), 1).unwrap());

    let mut two = one.clone();
    two.tasks.insert(0, Task { name: "other".into(), ..one.tasks[0].clone() });
    let second = Splits::new(&two, SplitShares::default(), 0).unwrap();
    assert_eq!(first.test.tasks[0], second.test.tasks[1]);
    let kept: BTreeSet<&str> = ids(&second.test.tasks[0]).into_iter().collect();
    assert_ne!(kept, ids(&second.test.tasks[1]).into_iter().collect());
}

#[test]
fn a_task_of_two_documents_is_refused_by_name() {
    let message =
        Splits::new(&corpus("law", &[("a", "x"), ("b", "y")]), SplitShares::default(), 0).unwrap_err().to_string();
    assert!(
        message.contains("task law") && message.contains("2 documents") && message.contains("three files"),
        "{message}"
    );
}

#[rstest]
#[case(0.9, 0.1, 0.1)]
#[case(0.9, 0.1, 0.0)]
#[case(1.2, -0.1, -0.1)]
#[case(f64::NAN, 0.1, 0.1)]
fn shares_that_do_not_divide_are_refused(#[case] train: f64, #[case] validation: f64, #[case] test: f64) {
    let message = Splits::new(&of_sizes(&[1; 9]), SplitShares { train, validation, test }, 0).unwrap_err().to_string();
    assert!(message.contains("three positive shares that add up to 1"), "{message}");
}
