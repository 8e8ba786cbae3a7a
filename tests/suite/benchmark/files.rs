//! Tasks as they lie on disk: what is left out, what is refused, and the package's own counts.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;
use tinyonn::benchmark::{BenchmarkTask, Metric, TASKS, best_constant};

use super::choice;
use crate::models::message;

/// The folder that `scripts/fetch_material.sh` filled: named here, it has to be there.
const MATERIAL: &str = "TINYONN_MATERIAL";

fn line(doc_id: u64, idx: usize, label: &Value) -> Value {
    json!({
        "request_type": "loglikelihood",
        "doc": { "query": "made up", "nested": [{}, null] },
        "request": { "context": format!("Question {doc_id}?"), "continuation": format!(" answer {idx}") },
        "idx": idx, "task_name": "made_up", "doc_id": doc_id, "native_id": null, "label": label,
    })
}

/// Two items of two and three choices, and extras.
fn lines() -> Vec<String> {
    let told = [
        (0, 0, 1),
        (0, 1, 1),
        (1_000_000, 0, 1),
        (1_000_000, 1, 1),
        (3, 0, 2),
        (3, 1, 2),
        (3, 2, 2),
        (1_000_003, 0, 2),
    ];
    told.iter().map(|(doc_id, idx, label)| line(*doc_id, *idx, &json!(label)).to_string()).collect()
}

fn gzipped(text: &str) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(text.as_bytes()).unwrap();
    packed.finish().unwrap()
}

fn folder(metric: &str, instances: usize, name: &str, content: &[u8]) -> TempDir {
    let dir = TempDir::new().unwrap();
    let config =
        json!({ "task_name": "made_up", "task_config": { "primary_metric": metric }, "num_instances": instances });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    fs::write(dir.path().join(name), content).unwrap();
    dir
}

fn read(metric: &str, instances: usize, lines: &[String]) -> tinyonn::Result<BenchmarkTask> {
    let dir = folder(metric, instances, "requests.jsonl.gz", &gzipped(&lines.join("\n")));
    BenchmarkTask::read(dir.path())
}

#[rstest]
fn items_are_read_and_extras_left_out(#[values(false, true)] packed: bool, #[values("", "\n")] end: &str) {
    let text = lines().join("\n") + end;
    let (name, content) =
        if packed { ("requests.jsonl.gz", gzipped(&text)) } else { ("requests.jsonl", text.into_bytes()) };
    let dir = folder("acc_per_char", 2, name, &content);
    let task = BenchmarkTask::read(dir.path()).unwrap();
    assert_eq!((task.name.as_str(), task.metric), ("made_up", Metric::PerCharacter));
    let items: Vec<(u64, usize, usize)> =
        task.items.iter().map(|item| (item.id, item.choices.len(), item.gold)).collect();
    assert_eq!(items, [(0, 2, 1), (3, 3, 2)]);
    assert_eq!(task.items[1].choices[2], choice("Question 3?", " answer 2"));
}

#[test]
fn a_file_in_several_parts_is_read_whole() {
    let lines = lines();
    let content = [gzipped(&(lines[..3].join("\n") + "\n")), gzipped(&lines[3..].join("\n"))].concat();
    let dir = folder("acc_raw", 2, "requests.jsonl.gz", &content);
    assert_eq!(BenchmarkTask::read(dir.path()).unwrap().items.len(), 2);
}

#[test]
fn an_item_that_is_written_has_its_answer_for_a_label() {
    let lines = [line(0, 0, &json!(["answer"])).to_string(), line(1, 0, &json!("answer")).to_string()];
    let task = read("logits_per_byte", 2, &lines).unwrap();
    assert_eq!((task.metric, task.items[1].gold), (Metric::GreedyMatch, 0));
}

#[rstest]
#[case::not_json(5, "{\"doc_id\": 3,".into(), "EOF")]
#[case::empty(5, String::new(), "EOF")]
#[case::no_label(5, { let mut l = line(3, 0, &json!(2)); l.as_object_mut().unwrap().remove("label"); l.to_string() }, "`label`")]
#[case::no_continuation(5, { let mut l = line(3, 0, &json!(2)); l["request"].as_object_mut().unwrap().remove("continuation"); l.to_string() }, "`continuation`")]
#[case::empty_continuation(5, { let mut l = line(3, 0, &json!(2)); l["request"]["continuation"] = json!(""); l.to_string() }, "empty")]
#[case::no_text(5, { let mut l = line(3, 0, &json!(2)); l["request"]["context"] = json!(7); l.to_string() }, "7")]
#[case::negative(5, line(3, 0, &json!(2)).to_string().replace("\"doc_id\":3", "\"doc_id\":-3"), "-3")]
#[case::generates(5, { let mut l = line(3, 0, &json!(2)); l["request_type"] = json!("generate_until"); l.to_string() }, "`generate_until`")]
#[case::choice_missing(6, line(3, 2, &json!(2)).to_string(), "choice 2 of item 3 follows 1")]
#[case::choice_twice(6, line(3, 0, &json!(2)).to_string(), "choice 0 of item 3 follows 1")]
#[case::label_changes(6, line(3, 1, &json!(0)).to_string(), "another label")]
#[case::out_of_order(5, line(0, 0, &json!(1)).to_string(), "choice 0 of item 0 follows 2")]
#[case::comes_again(8, line(0, 0, &json!(1)).to_string(), "item 0 does not stand in its order")]
fn a_damaged_line_is_refused_by_its_number(#[case] number: usize, #[case] damaged: String, #[case] word: &str) {
    let mut lines = lines();
    lines[number - 1] = damaged;
    let refused = message(read("acc_raw", 2, &lines));
    let words = ["requests.jsonl.gz", &format!("line {number}:"), word, "fetch_material.sh"];
    assert!(words.iter().all(|word| refused.contains(word)) && !refused.contains('\n'), "{refused}");
}

#[rstest]
#[case::beyond(json!(3))]
#[case::negative(json!(-1))]
#[case::no_number(json!(["answer"]))]
#[case::none(json!(null))]
fn a_label_that_names_no_choice_is_refused(#[case] label: Value) {
    let mut lines = lines();
    for idx in 0..3 {
        lines[4 + idx] = line(3, idx, &label).to_string();
    }
    let refused = message(read("acc_raw", 2, &lines));
    assert!(refused.contains("line 7: the label of item 3 names none of its 3 choices"), "{refused}");
}

#[rstest]
#[case::one_choice("acc_raw", &[(0, 0)], "line 1: item 0 has 1 choices")]
#[case::many_choices("logits_per_byte", &[(0, 0), (0, 1)], "line 2: item 0 has 2 choices")]
fn items_that_a_metric_cannot_compare_are_refused(
    #[case] metric: &str,
    #[case] told: &[(u64, usize)],
    #[case] words: &str,
) {
    let lines: Vec<String> = told.iter().map(|(id, idx)| line(*id, *idx, &json!(0)).to_string()).collect();
    assert!(message(read(metric, 1, &lines)).contains(words));
}

#[test]
fn a_folder_that_is_not_whole_is_refused() {
    let refused = |dir: &Path, words: &[&str]| {
        let refused = message(BenchmarkTask::read(dir));
        assert!(words.iter().all(|word| refused.contains(word)) && !refused.contains('\n'), "{refused}");
    };
    let dir = TempDir::new().unwrap();
    refused(dir.path(), &["config.json", "is not there", "fetch_material.sh"]);
    fs::write(dir.path().join("config.json"), "{\"task_name\": \"x\"}").unwrap();
    refused(dir.path(), &["config.json", "task_config", "fetch_material.sh"]);
    let text = lines().join("\n");
    let dir = folder("acc_uncond", 2, "requests.jsonl", text.as_bytes());
    refused(dir.path(), &["config.json", "acc_uncond", "acc_per_char"]);
    let dir = folder("acc_raw", 3, "requests.jsonl", text.as_bytes());
    refused(dir.path(), &["requests.jsonl", "holds 2 items", "says 3"]);
    let dir = folder("acc_raw", 2, "other.jsonl", text.as_bytes());
    refused(dir.path(), &["requests.jsonl.gz", "is not there"]);
    let dir = folder("acc_raw", 0, "requests.jsonl", b"");
    refused(dir.path(), &["holds no items"]);
    let packed = gzipped(&text);
    let dir = folder("acc_raw", 2, "requests.jsonl.gz", &packed[..packed.len() - 9]);
    refused(dir.path(), &["requests.jsonl.gz", "line ", "fetch_material.sh"]);
    let dir = folder("acc_raw", 2, "requests.jsonl.gz", text.as_bytes());
    refused(dir.path(), &["requests.jsonl.gz", "line 1", "gzip"]);
    let dir = folder("acc_raw", 2, "requests.jsonl", b"{\"doc_id\": \xff");
    refused(dir.path(), &["requests.jsonl", "line 1", "UTF-8"]);
}

/// The items that the package holds, and what is known of them.
#[test]
fn the_packages_own_counts_come_out() {
    let Some(material) = std::env::var_os(MATERIAL).map(PathBuf::from) else {
        println!("skipped: {MATERIAL} names no folder that scripts/fetch_material.sh has filled");
        return;
    };
    let told = |(name, folder): (&str, &str)| {
        let task = BenchmarkTask::read(material.join("benchmarks").join(folder)).unwrap();
        assert_eq!(task.name, name);
        (task.items.len(), task.metric, best_constant(&task))
    };
    let found = TASKS.map(told);
    let counts = [570, 299, 10_042, 1_838, 1_267, 3_270, 500, 1_000, 5_153];
    assert_eq!(found.map(|(items, ..)| items), counts);
    let of = |name: &str| TASKS.iter().position(|(task, _)| *task == name).map(|at| found[at]).unwrap();
    for (name, metric) in [("sciq", Metric::Sum), ("piqa", Metric::PerCharacter), ("lambada", Metric::GreedyMatch)] {
        assert_eq!(of(name).1, metric);
    }
    // Yes, always; and of SciQ, whose right answers all stand at one place, nothing that could be said always.
    approx::assert_relative_eq!(of("boolq").2, 2033.0 / 3270.0);
    assert!(of("sciq").2 < 0.05, "{:?}", of("sciq"));
}
