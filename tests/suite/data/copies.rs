//! Documents that are there more than once.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tinyonn::data::{
    Corpus, Document, SplitShares, Splits, Task, TextTokenizer, TokenSet, default_corpus, workspace_root,
};
use tinyonn::phases::Text;

use super::corpus;

/// Documents whose texts are those of `kinds`.
fn of_kinds(kinds: &[usize]) -> Corpus {
    let document =
        |(at, kind): (usize, &usize)| Document::new(at.to_string(), format!("text {kind} ").repeat(1 + kind % 7));
    Corpus { tasks: vec![Task { name: "t".into(), documents: kinds.iter().enumerate().map(document).collect() }] }
}

fn texts(corpus: &Corpus) -> BTreeSet<&str> {
    corpus.tasks[0].documents.iter().map(|document| document.text.as_str()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    /// However often each is there: every document in one split, no text in two, none of the splits empty.
    #[test]
    fn copies_stay_together(kinds in prop::collection::vec(0usize..12, 3..60), seed in any::<u64>()) {
        let corpus = of_kinds(&kinds);
        let distinct = texts(&corpus).len();
        let Ok(splits) = Splits::new(&corpus, SplitShares::default(), seed) else {
            prop_assert!(distinct < 3);
            return Ok(());
        };
        let parts = [&splits.train, &splits.validation, &splits.test];
        prop_assert_eq!(parts.iter().map(|part| texts(part).len()).sum::<usize>(), distinct);
        prop_assert_eq!(parts.iter().map(|part| part.tasks[0].documents.len()).sum::<usize>(), kinds.len());
        prop_assert!(parts.iter().all(|part| !part.tasks[0].documents.is_empty()));
    }
}

#[test]
fn fewer_than_three_that_differ_are_refused() {
    let message = Splits::new(&of_kinds(&[1, 1, 2, 2, 1]), SplitShares::default(), 0).unwrap_err().to_string();
    assert!(message.contains("task t") && message.contains("5 documents, of which 2 differ,"), "{message}");
}

/// An interval over documents draws a text once, however often it is there.
#[test]
fn copies_count_as_one_document() {
    let documents = [("a", "one two"), ("b", "three"), ("c", "one two"), ("d", "four"), ("e", "three")];
    let (two, other) = (corpus("u", &documents), corpus("t", &[("x", "three"), ("y", "five")]));
    let corpus = Corpus { tasks: [other.tasks, two.tasks].concat() };
    let tokenizer = TextTokenizer::train(&corpus, 260).unwrap();
    let before = TokenSet::encode(&corpus, &tokenizer).unwrap();
    let mut set = before.clone();
    set.number_copies_alike(&corpus);
    // Of another task it is another document.
    let numbers = |task: usize| set.tasks[task].documents.iter().copied().collect::<BTreeSet<u32>>();
    assert_eq!((numbers(0), numbers(1)), (BTreeSet::from([0, 1]), BTreeSet::from([2, 3, 5])));
    assert_eq!(set.tasks[1].tokens, before.tasks[1].tokens);
    // Where nothing is there twice nothing is changed.
    assert_eq!((set.documents, &set.tasks[0]), (before.documents, &before.tasks[0]));
    let text = Text::split(&Corpus { tasks: vec![of_kinds(&[0; 9]).tasks[0].clone(); 2] }, 0);
    assert!(text.is_err());
}

/// The text that results are known for has none: its splits are what they were.
#[test]
fn the_default_text_holds_no_copies() {
    for task in default_corpus(&workspace_root().unwrap(), 0).unwrap().tasks {
        let distinct: BTreeSet<&str> = task.documents.iter().map(|document| document.text.as_str()).collect();
        assert_eq!(distinct.len(), task.documents.len(), "{}", task.name);
    }
}
