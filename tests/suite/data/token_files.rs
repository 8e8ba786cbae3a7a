//! Tokens on disk: batch by batch those of the set that would hold them.

use std::fs;

use candle_core::Device;
use proptest::prelude::*;
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::data::{
    Batch, Batches, Corpus, Counted, DataSource, Document, Documents, Task, TextTokenizer, TokenFile, TokenSet,
    arithmetic, check_sources, read_sources,
};

fn tokenizer() -> TextTokenizer {
    TextTokenizer::train(&Corpus { tasks: vec![arithmetic(0, 3000)] }, 270).unwrap()
}

fn on_disk(text: &dyn Documents, most: usize) -> (TokenFile, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (TokenFile::write(&Counted::new(text).unwrap(), &tokenizer(), most, folder.path()).unwrap(), folder)
}

fn in_memory(corpus: &Corpus, most: usize) -> TokenSet {
    let mut set = TokenSet::encode(corpus, &tokenizer()).unwrap();
    set.truncate(most);
    set
}

/// Inputs and targets; tasks and documents.
fn content(batch: tinyonn::Result<Batch>) -> ([Vec<Vec<u32>>; 2], [Vec<u32>; 2]) {
    let Batch { inputs, targets, tasks, documents, counted } = batch.unwrap();
    let [inputs, targets] = [inputs, targets].map(|tokens| tokens.to_vec2::<u32>().unwrap());
    // What counts is what has a target.
    assert_eq!(counted, targets.concat().iter().map(|target| *target != u32::MAX).collect::<Vec<_>>());
    ([inputs, targets], [tasks, documents])
}

/// Every batch, in no order of the file's.
fn assert_same(file: &TokenFile, set: &TokenSet, shape: (usize, usize)) {
    assert_eq!((file.names(), file.targets(), file.sha256()), (Batches::names(set), set.targets(), set.sha256()));
    let counts = file.counts(shape).unwrap();
    assert_eq!(counts, set.counts(shape).unwrap());
    let of_each = |count: usize| (0..count).rev();
    for (task, number) in counts.iter().enumerate().flat_map(|(task, count)| of_each(*count).map(move |n| (task, n))) {
        let [found, expected] =
            [file as &dyn Batches, set].map(|text| text.batch_of_task(task, number, shape, &Device::Cpu));
        assert_eq!(content(found), content(expected), "batch {number} of task {task}");
    }
    for (task, number) in [(0, counts[0]), (counts.len(), 0)] {
        let refused =
            |text: &dyn Batches| text.batch_of_task(task, number, shape, &Device::Cpu).unwrap_err().to_string();
        assert_eq!(refused(file), refused(set));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn batches_on_disk_are_those_in_memory(
        tasks in prop::collection::vec(prop::collection::vec("[a-z0-9é🦀 \n]{0,120}", 1..30), 1..4),
        length in 1usize..40,
        batch in 1usize..6,
        most in prop_oneof![Just(usize::MAX), 1usize..600],
    ) {
        let document = |(at, text): (usize, &String)| Document::new(at.to_string(), text.clone());
        let task = |(at, texts): (usize, &Vec<String>)| Task {
            name: format!("task{at}"),
            documents: texts.iter().enumerate().map(document).collect(),
        };
        let corpus = Corpus { tasks: tasks.iter().enumerate().map(task).collect() };
        let (file, _folder) = on_disk(&corpus, most);
        assert_same(&file, &in_memory(&corpus, most), (length, batch));
        prop_assert_eq!(file.corpus_sha256(), corpus.sha256());
    }
}

/// A folder, with a file that is cut, one that is no text, large and small, and JSON lines; a file of text; JSON lines.
fn sources(root: &TempDir) -> Vec<DataSource> {
    let line = |at: usize| format!("{{\"text\":\"{at} and é {}\\n\"}}\r\n{}", at * at, "\n".repeat(at % 2));
    let lines: String = (0..300).map(line).collect();
    // More than is read at a time, not a line long, with characters across the ends of pieces.
    let large = "größer 🦀 ".repeat(100_000) + "\n\n" + &"line\n".repeat(3000) + &" ".repeat(20_000);
    let no_text = [large.as_bytes(), b"\xff"].concat();
    let files: [(&str, &[u8]); 7] = [
        ("folder/a/small.txt", b"small"),
        ("folder/b.jsonl", lines.as_bytes()),
        ("folder/c.txt", large.as_bytes()),
        ("folder/d.bin", &no_text),
        ("folder/e.bin", b"nul\0"),
        ("text.txt", large.as_bytes()),
        ("lines.jsonl", lines.as_bytes()),
    ];
    for (name, content) in files {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    ["folder", "text.txt", "lines.jsonl"]
        .map(|name| DataSource { name: name.replace('.', "-"), path: root.path().join(name) })
        .into()
}

#[rstest]
fn files_that_are_visited_are_those_that_are_read(#[values(1, 900, 70_000, usize::MAX)] most: usize) {
    let root = tempfile::tempdir().unwrap();
    let sources = sources(&root);
    let corpus = read_sources(&sources).unwrap();
    let (file, _folder) = on_disk(&sources, most);
    assert_same(&file, &in_memory(&corpus, most), (64, 7));
    assert_eq!(file.corpus_sha256(), corpus.sha256());
    let counts: Vec<usize> = corpus.tasks.iter().map(|task| task.documents.len()).collect();
    assert_eq!(sources.iter().map(|source| source.count().unwrap()).collect::<Vec<_>>(), counts);
    check_sources(&sources).unwrap();
}

#[test]
fn what_cannot_be_read_is_refused_before_anything_is_tokenised() {
    let root = tempfile::tempdir().unwrap();
    let mut sources = sources(&root);
    fs::write(root.path().join("bad.jsonl"), "{\"text\":\"fine\"}\n{\"text\": oops}\n").unwrap();
    for (name, problem) in
        [("bad.jsonl", "line 2: expected value"), ("folder/d.bin", "not UTF-8 at byte"), ("none", "no such file")]
    {
        sources[1].path = root.path().join(name);
        let refused = Counted::new(&sources).err().unwrap().to_string();
        assert_eq!(refused, read_sources(&sources).unwrap_err().to_string());
        assert!(refused.contains(name) && refused.contains(problem), "{refused}");
    }
}
