//! Answering benchmarks: what is written, and what cannot be answered. The items are made up.

use std::fs;

use serde_json::{Value, json};

use tinyonn::benchmark::TASKS;

use super::{BENCHMARK, Place, UPCYCLE, assert_done, assert_refused};

/// Gives a place two tasks of three items each.
pub(super) fn with_items(place: &Place) {
    with_items_of(place, |task| ["piqa", "lambada"].contains(&task));
}

/// The same of those tasks that are `asked` for.
pub(super) fn with_items_of(place: &Place, asked: impl Fn(&str) -> bool) {
    for (_, folder) in TASKS.iter().filter(|(name, _)| asked(name)) {
        let (metric, choices) = if folder.contains("bpb") { ("logits_per_byte", 1) } else { ("acc_per_char", 2) };
        let dir = place.path("material/benchmarks").join(folder);
        fs::create_dir_all(&dir).unwrap();
        let name = folder.split('/').next().unwrap();
        let config = json!({ "task_name": name, "task_config": { "primary_metric": metric }, "num_instances": 3 });
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        let line = |doc: usize, idx: usize| {
            let request = json!({ "context": format!("sort {doc} 1 ->"), "continuation": format!(" {idx} secret") });
            json!({ "request_type": "loglikelihood", "request": request, "idx": idx, "doc_id": doc, "label": doc % choices })
        };
        let lines = (0..3).flat_map(|doc| (0..choices).map(move |idx| line(doc, idx).to_string() + "\n"));
        fs::write(dir.join("requests.jsonl"), lines.collect::<String>()).unwrap();
    }
}

#[test]
fn answers_and_their_figures_are_written() {
    let place = Place::new();
    with_items(&place);
    assert_done(&place.run(UPCYCLE, "--model dense --variant TinyOnn --out sparse"));
    for (model, more) in
        [("dense", ""), ("sparse", "--active routed"), ("sparse", "--limit 2"), ("dense", "--dtype bf16")]
    {
        let arguments = format!("{model} --material material --tasks piqa,lambada --out out --overwrite {more}");
        let output = place.run(BENCHMARK, &arguments);
        assert_done(&output);
        let read = |name: &str| fs::read_to_string(place.path("out").join(name)).unwrap();
        let summary: Value = serde_json::from_str(&read("summary.json")).unwrap();
        let items = if more.contains("limit") { 2 } else { 3 };
        for (task, name) in summary["tasks"].as_array().unwrap().iter().zip(["piqa", "lambada"]) {
            assert_eq!((task["task"].as_str(), task["items"].as_u64()), (Some(name), Some(items)), "{summary}");
            assert!(task["bits_per_byte"]["mean"].as_f64().unwrap() > 0.0 && task["seconds"].is_f64(), "{summary}");
            let answers = read(&format!("answers/{name}.jsonl"));
            assert_eq!(answers.lines().count() as u64, items);
            // Figures alone: no words of an item leave its file.
            assert!(!answers.contains("secret") && !answers.contains("sort"), "{answers}");
        }
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(printed.contains("piqa") && !printed.contains("secret"), "{printed}");
    }
}

#[test]
fn what_cannot_be_answered_is_refused() {
    let place = Place::new();
    with_items(&place);
    let run = |arguments: &str| place.run(BENCHMARK, arguments);
    assert_refused(&run("--material material --out out"), &["MODEL", "--help"]);
    assert_refused(&run("dense --out out"), &["--material"]);
    assert_refused(&run("dense --material material --out out"), &["arc_easy", "config.json", "fetch_material.sh"]);
    assert_refused(&run("dense --material material --tasks piqa,mmlu --out out"), &["--tasks", "`mmlu`", "arc_easy, "]);
    assert_refused(&run("dense --material material --tasks piqa,piqa --out out"), &["--tasks", "twice"]);
    assert_refused(&run("dense --material material --tasks piqa --limit 0 --out out"), &["--limit"]);
    assert_refused(&run("nowhere --material material --tasks piqa --out out"), &["nowhere"]);
    fs::remove_file(place.path("dense/tokenizer.json")).unwrap();
    assert_refused(&run("dense --material material --tasks piqa --out out"), &["tokenizer.json"]);
}
