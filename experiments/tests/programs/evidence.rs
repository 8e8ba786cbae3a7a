//! The study of evidence as a user starts it, on a model that takes a moment.

use std::fs;

use serde_json::Value;

use super::benchmark::with_items;
use super::{Place, assert_done, assert_refused};

const EVIDENCE: &str = env!("CARGO_BIN_EXE_exp_evidence");
const FLAGS: &str = "--model dense --out study --config small.toml";

fn place() -> Place {
    let place = Place::new();
    place.configure("max_position_embeddings", serde_json::json!(1024));
    with_items(&place);
    fs::write(place.path("small.toml"), include_str!("book/evidence.toml")).unwrap();
    for (folder, text) in [("text/english", "a.txt"), ("text/rust", "b.txt"), ("held_out_text/french", "a.txt")] {
        let folder = place.path("material").join(folder);
        fs::create_dir_all(&folder).unwrap();
        let text = fs::read_to_string(place.path(text)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (number, document) in lines.chunks(lines.len().div_ceil(12)).enumerate() {
            fs::write(folder.join(format!("{number}.md")), document.join("\n") + "\n").unwrap();
        }
    }
    place
}

fn record(place: &Place, name: &str) -> Value {
    serde_json::from_slice(&fs::read(place.path("study/cells").join(format!("{name}.json"))).unwrap()).unwrap()
}

/// Every method makes a record at the share that was asked for; what is made is not made again, and the page says what is missing.
#[test]
fn cells_are_made_once_and_told() {
    let place = place();
    let names = [
        "dense-100",
        "own_gate-50",
        "own_gate-50-kl2",
        "pruned-50",
        "cmoe_16-50",
        "teal-50",
        "cats-50",
        "oracle-50",
        "shared_16-50",
        "random-50",
        "permuted-50",
        "own_gate-50-no_repair",
    ];
    let asked: String = names.iter().map(|name| format!(" --cell {name}-seed1")).collect();
    assert_done(&place.run(EVIDENCE, &format!("{FLAGS}{asked}")));
    for name in names {
        let found = record(&place, &format!("{name}-seed1"));
        let operations = found["operations"].as_f64().unwrap();
        let share = if name.starts_with("dense") { 1.0 } else { 0.5 };
        // So small a layer has few neurons to divide, and held-out text is another one.
        assert!((operations - share).abs() < 0.12, "{name}: {operations}");
        let is_final = ["dense", "own_gate", "pruned", "cmoe"].iter().any(|own| name.starts_with(own))
            && !name.contains("no_repair");
        assert_eq!(found["test"].as_array().unwrap().len(), if is_final { 2 } else { 0 }, "{name}");
        let answers = place.path("study/answers").join(format!("{name}-seed1.json"));
        assert_eq!(answers.exists(), is_final, "{name}");
        assert_eq!(found["validation"].as_array().unwrap().len(), 2);
        if name.starts_with("own_gate") || name.starts_with("pruned") {
            assert_eq!(found["bit_equal"], true, "{name}");
        }
        assert_eq!(
            found["repaired_on"].as_u64().unwrap() > 0,
            !name.contains("no_repair") && !name.starts_with("dense"),
            "{name}"
        );
    }
    let path = place.path("study/cells/pruned-50-seed1.json");
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    assert_done(&place.run(EVIDENCE, &format!("{FLAGS}{asked}")));
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);

    let told = place.run(EVIDENCE, "--report --out study");
    assert_done(&told);
    assert!(String::from_utf8_lossy(&told.stdout).contains("missing"), "{told:?}");
    let page = fs::read_to_string(place.path("study/RESULTS.md")).unwrap();
    for row in
        ["| perplexity ÷ the dense model's | 50 % | ≤ 1.22 |", "| own_gate | 50 % | – | 2 | 1 |", "| teal | 50 % |"]
    {
        assert!(page.contains(row), "{row}\n{page}");
    }
    // Other items are asked of the finalists alone, and losses stay.
    let whole = include_str!("book/evidence.toml").replace("items = 2", "items = \"all\"");
    fs::write(place.path("small.toml"), whole).unwrap();
    let finalists = " --cell dense-100-seed1 --cell pruned-50-seed1 --cell teal-50-seed1";
    let planned = place.run(EVIDENCE, &format!("{FLAGS}{finalists} --dry-run"));
    assert_done(&planned);
    let said = String::from_utf8_lossy(&planned.stdout).into_owned();
    assert!(said.contains("pruned-50-seed1: answers alone") && said.contains("teal-50-seed1: done"), "{said}");
    assert_done(&place.run(EVIDENCE, &format!("{FLAGS}{finalists}")));
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
    let answers = fs::read(place.path("study/answers/pruned-50-seed1.json")).unwrap();
    let answers: Value = serde_json::from_slice(&answers).unwrap();
    let tasks = answers["tasks"].as_array().unwrap();
    assert!(tasks.iter().all(|task| task["figures"]["items"] == 3 && task["right"].as_array().unwrap().len() == 3));
    // The same model, made once more.
    let losses = record(&place, "pruned-50-seed1");
    let mean = |kind: &Value| {
        let documents = kind["documents"].as_array().unwrap();
        let sum = |at: usize| documents.iter().map(|own| own[at].as_f64().unwrap()).sum::<f64>();
        sum(0) / sum(1)
    };
    let kinds = losses["validation"].as_array().unwrap();
    let loss = kinds.iter().map(mean).sum::<f64>() / kinds.len() as f64;
    // On one processor the same bits, added up in the same order.
    assert!((answers["validation"].as_f64().unwrap() - loss).abs() < 1e-9, "{answers}");
    let apart = answers["divergence"].as_array().unwrap();
    assert!(apart.len() == 2 && apart.iter().all(|kind| mean(kind) > 0.0), "{apart:?}");
    assert!(page.contains("| KL to dense |"), "{page}");
    // Times come beside, of any machine: no cell is made anew for them.
    assert_done(&place.run(EVIDENCE, "--time --out study --minutes 20"));
    let speed = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(place.path("study/speeds").join(format!("{name}.json"))).unwrap()).unwrap()
    };
    for name in ["dense-100-seed1", "own_gate-50-seed1", "pruned-75-seed1"] {
        let found = speed(name);
        assert!(found["decode"]["own"].as_f64().unwrap() > 0.0 && found["prefill"]["dense"].as_f64().unwrap() > 0.0);
        assert!(found["mlp"]["low"].as_f64().unwrap() <= found["mlp"]["mean"].as_f64().unwrap());
    }
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
    assert_done(&place.run(EVIDENCE, "--report --out study"));
    let page = fs::read_to_string(place.path("study/RESULTS.md")).unwrap();
    assert!(page.contains("| MLP's time for a token ÷ the dense MLP's, on a processor | 50 % | ≤ 0.65 |"), "{page}");
    // Figures alone: no words of an item.
    assert!(!page.contains("secret"));
}

#[test]
fn what_cannot_be_is_said_before_any_work() {
    let place = place();
    assert_refused(
        &place.run(EVIDENCE, &format!("{FLAGS} --cell own_gate-51-seed1")),
        &["--cell", "own_gate-51-seed1"],
    );
    let planned = place.run(EVIDENCE, &format!("{FLAGS} --dry-run"));
    assert_done(&planned);
    let said = String::from_utf8_lossy(&planned.stdout).into_owned();
    assert!(
        said.contains("own_gate-25-seed1") && said.contains("multiply-adds") && !place.path("study").exists(),
        "{said}"
    );
}
