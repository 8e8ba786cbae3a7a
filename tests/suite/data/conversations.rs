//! Conversations to learn from: tokens and masks of transformers (`make_conversations.py`), and what becomes of them on the way to a batch.

use std::fs;
use std::path::Path;

use candle_core::{DType, Device};
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;
use tinyonn::data::{
    Batches, Conversations, Corpus, Counted, DataSource, NO_DOCUMENT, NO_TARGET, READ_ONLY, TextTokenizer, TokenFile,
    TokenSet, read_sources, sorting,
};
use tinyonn::generation::ChatTemplate;
use tinyonn::phases::{RunConfig, phase2};

use crate::models::message;
use crate::phase2::setting;

const PLAIN: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/conversations").join(name)).unwrap()
}

fn template(source: &str, special_tokens: Value) -> Conversations {
    ChatTemplate::new(source, special_tokens, "chat_template.jinja").unwrap().into_conversations()
}

#[test]
fn tokens_and_masks_are_those_of_transformers() {
    let all: Value = serde_json::from_slice(&fixture("cases.json")).unwrap();
    let tokenizer = TextTokenizer::from_json(&fixture("tokenizer.json"), "tokenizer.json", None).unwrap();
    let (mut marked, mut refused) = (0, 0);
    for case in all["cases"].as_array().unwrap() {
        let own = template(case["template"].as_str().unwrap(), all["special_tokens"].clone());
        let found = tokenizer.clone().with_conversations(own).encode_conversation(&case["messages"]);
        if case["refused"] == true {
            refused += 1;
            let error = message(found);
            assert!(error.contains("{% generation %}") && error.contains("chat_template.jinja"), "{error}");
            continue;
        }
        let found = found.unwrap();
        assert_eq!(json!(found.tokens), case["ids"], "{case}");
        let mask: Vec<u8> = found.answers.unwrap().into_iter().map(u8::from).collect();
        assert_eq!(json!(mask), case["mask"], "{case}");
        marked += usize::from(case["template"].as_str().unwrap().contains("endgeneration"));
    }
    assert_eq!((marked, refused), (16, 3));
}

/// Lines of JSON, some conversations, some text.
const LINES: &str = r#"{"messages": [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "de"}], "id": NaN}
{"text": "plain"}
{"messages": [{"role": "user", "content": "f"}, {"role": "assistant", "content": "gh"}, {"role": "user", "content": "i"}], "text": "text wins"}
{"messages": [{"role": "system", "content": "s"}, {"role": "assistant", "content": "jk"}, {"role": "assistant", "content": "l"}], "text": null}
"#;

fn read(dir: &Path, name: &str, lines: &str) -> tinyonn::Result<Corpus> {
    fs::write(dir.join(name), lines).unwrap();
    read_sources(&[DataSource { name: "t".into(), path: dir.join(name) }])
}

/// A byte a token but for what was merged: the tokenizer knows no pair.
fn tokenizer() -> TextTokenizer {
    let bytes = TextTokenizer::train(&Corpus { tasks: vec![sorting(0, 2000)] }, 257).unwrap();
    bytes.with_conversations(template(PLAIN, json!({})))
}

#[rstest]
fn only_answers_are_predicted(#[values("t.jsonl", "t.txt")] name: &str, #[values(false, true)] in_a_folder: bool) {
    let dir = TempDir::new().unwrap();
    let mut corpus = read(dir.path(), name, LINES).unwrap();
    if in_a_folder {
        corpus = read_sources(&[DataSource { name: "t".into(), path: dir.path().to_path_buf() }]).unwrap();
    }
    let tokenizer = tokenizer();
    let set = TokenSet::encode(&corpus, &tokenizer).unwrap();
    let task = &set.tasks[0];
    // What is predicted of it, an end of text being `|`, and all of it.
    let shown = |keep: &dyn Fn(u32) -> bool| {
        let kept = task.tokens.iter().zip(&task.documents).filter(|(_, owner)| keep(**owner)).map(|(token, _)| *token);
        tokenizer.decode(&kept.collect::<Vec<_>>()).unwrap().replace("<|endoftext|>", "|")
    };
    let all = "<user>abc<assistant>de|plain|text wins|<system>s<assistant>jk<assistant>l|";
    assert_eq!(shown(&|_| true), all);
    assert_eq!(shown(&|owner| owner & READ_ONLY == 0), "deplain|text wins|jkl");
    assert!(task.documents.iter().all(|owner| (owner & !READ_ONLY) < 4 && *owner != NO_DOCUMENT));
    // In memory and on disk, whatever the length of rows.
    let file = TokenFile::write(&Counted::new(&corpus).unwrap(), &tokenizer, usize::MAX, dir.path()).unwrap();
    assert_eq!((file.sha256(), file.corpus_sha256()), (set.sha256(), &*corpus.sha256()));
    for length in [1, 7, 200] {
        let batch = set.batch_of_task(0, 0, (length, 99), &Device::Cpu).unwrap();
        let other = file.batch_of_task(0, 0, (length, 99), &Device::Cpu).unwrap();
        assert_eq!((&batch.counted, &batch.documents), (&other.counted, &other.documents));
        let targets = batch.targets.flatten_all().unwrap().to_vec1::<u32>().unwrap();
        let inputs = batch.inputs.flatten_all().unwrap().to_vec1::<u32>().unwrap();
        assert_eq!(inputs[..task.tokens.len() - 1], task.tokens[..task.tokens.len() - 1]);
        for (at, target) in targets.iter().enumerate().take(task.tokens.len() - 1) {
            let (token, owner) = (task.tokens[at + 1], task.documents[at + 1]);
            let read_only = owner & READ_ONLY != 0;
            let expected = if read_only { (NO_TARGET, NO_DOCUMENT) } else { (token, owner) };
            assert_eq!((*target, batch.documents[at]), expected);
        }
    }
}

/// Where documents are cut or chosen a conversation is one, whatever of it is predicted; and what is predicted tells texts apart.
#[test]
fn a_conversation_is_one_document() {
    let dir = TempDir::new().unwrap();
    let corpus = read(dir.path(), "t.jsonl", LINES).unwrap();
    let set = TokenSet::encode(&corpus, &tokenizer()).unwrap();
    let mut cut = set.clone();
    cut.beginnings(60);
    let begun: Vec<u32> =
        cut.tasks[0].documents.iter().filter(|o| **o != NO_DOCUMENT).map(|o| o & !READ_ONLY).collect();
    assert!(cut.tasks[0].tokens.len() <= 60 && (0..4).all(|document| begun.contains(&document)));
    let mut few = set.clone();
    few.spread_documents(1000, 30);
    let mut left: Vec<u32> = few.tasks[0].documents.iter().map(|owner| owner & !READ_ONLY).collect();
    left.dedup();
    assert_eq!((left.as_slice(), few.tasks[0].tokens.len()), ([0].as_slice(), 23));
    let mut twice = Corpus { tasks: corpus.tasks.clone() };
    let copy = twice.tasks[0].documents[0].clone();
    twice.tasks[0].documents.push(copy);
    let mut numbered = TokenSet::encode(&twice, &tokenizer()).unwrap();
    numbered.number_copies_alike(&twice);
    let last: Vec<u32> = numbered.tasks[0].documents.iter().rev().take(23).rev().copied().collect();
    assert_eq!(last, numbered.tasks[0].documents[..23]);

    let mut all_read = set.clone();
    all_read.tasks[0].documents.iter_mut().for_each(|owner| *owner &= !READ_ONLY);
    assert_ne!(all_read.sha256(), set.sha256());
    let mut as_text = corpus.clone();
    as_text.tasks[0].documents[0].conversation = false;
    assert_ne!(as_text.sha256(), corpus.sha256());
}

#[rstest]
#[case::no_list(r#"{"messages": "hello"}"#, "`messages` is no list of messages with a `role`")]
#[case::empty(r#"{"messages": []}"#, "`messages` is no list")]
#[case::no_role(r#"{"messages": [{"content": "x"}]}"#, "`messages` is no list")]
#[case::neither(r#"{"message": []}"#, "no field `text`, nor `messages`")]
fn lines_that_are_no_conversation_are_refused(#[case] line: &str, #[case] says: &str) {
    let dir = TempDir::new().unwrap();
    let refused = message(read(dir.path(), "t.jsonl", line));
    assert!(refused.contains("line 1: ") && refused.contains(says), "{refused}");
}

#[test]
fn what_cannot_be_written_or_says_nothing_is_refused_by_its_document() {
    let dir = TempDir::new().unwrap();
    let corpus = read(dir.path(), "t.jsonl", LINES).unwrap();
    let bytes = TextTokenizer::train(&Corpus { tasks: vec![sorting(0, 2000)] }, 257).unwrap();
    let refused = |tokenizer: TextTokenizer, corpus: &Corpus| message(TokenSet::encode(corpus, &tokenizer));
    let error = refused(bytes.clone(), &corpus);
    assert!(error.contains("document `t/t.jsonl#1`") && error.contains("no chat template"), "{error}");
    assert!(message(TextTokenizer::train(&corpus, 300)).contains("document `t/t.jsonl#1`"));
    let mute = read(dir.path(), "t.jsonl", r#"{"messages": [{"role": "user", "content": "abc"}]}"#).unwrap();
    let error = refused(tokenizer(), &mute);
    assert!(error.contains("document `t/t.jsonl#1`") && error.contains("says nothing"), "{error}");
    let raising = "{{ raise_exception('no') }}";
    let error = refused(bytes.with_conversations(template(raising, json!({}))), &corpus);
    assert!(error.contains("refuses the conversation: no"), "{error}");
}

/// From a folder with a template to a trained checkpoint; without one it is refused before anything is scanned.
#[test]
fn a_run_learns_from_conversations() {
    let dir = TempDir::new().unwrap();
    let own = setting(dir.path(), DType::F32);
    let line = |n: usize| {
        let messages = json!([
            { "role": "user", "content": format!("what is {n} + {n}?") },
            { "role": "assistant", "content": format!("{n} + {n} = {}", 2 * n) },
        ]);
        json!({ "messages": messages }).to_string() + "\n"
    };
    let chat = dir.path().join("chat.jsonl");
    fs::write(&chat, (0..400).map(line).collect::<String>()).unwrap();
    let data = vec![own.data[0].clone(), format!("chat={}", chat.display())];
    // All of it: of the beginnings of many conversations nobody answers.
    let config = RunConfig { data, test_tokens: 100_000, ..own };
    let refused = message(phase2(&config, None));
    assert!(refused.contains("chat/") && refused.contains("has no chat template"), "{refused}");
    assert!(!config.out.join("upcycled").exists());
    fs::write(config.model.as_ref().unwrap().join("chat_template.jinja"), PLAIN).unwrap();
    let summary = phase2(&config, None).unwrap();
    assert!(summary.smk.by_task["routed"]["chat"].is_finite());
    // The template goes with the model: its checkpoint can learn from conversations, too.
    assert!(config.out.join("tiny-onn/chat_template.jinja").exists());
}
