//! Text that is there more than once is spoken of.

use std::fs;

use super::{PHASE2, Place, assert_done};

#[test]
fn copies_and_near_copies_are_counted_aloud() {
    let place = Place::new();
    let page = |at: usize| (0..40).map(|word| format!("w{} ", at * 40 + word)).collect::<String>();
    let line = |text: &str| serde_json::json!({ "text": text }).to_string() + "\n";
    let license = (0..60).map(|word| format!("license{word} ")).collect::<String>();
    let own: String = (0..30).map(|at| line(&page(at))).collect();
    fs::write(place.path("copied.jsonl"), own.clone() + &line(&page(3)).repeat(5)).unwrap();
    fs::write(
        place.path("licensed.jsonl"),
        (30..60).map(|at| line(&(license.clone() + &page(at)))).collect::<String>(),
    )
    .unwrap();
    fs::write(place.path("own.jsonl"), own).unwrap();
    fs::write(place.path("run.toml"), "length = 8").unwrap();
    let said = |data: &str| {
        let output = place.run(PHASE2, &format!("--model dense --config run.toml --dry-run {data}"));
        assert_done(&output);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let first = said("--data copied=copied.jsonl --data licensed=licensed.jsonl");
    assert!(first.contains("task copied: 5 of 35 documents are copies of others"), "{first}");
    assert!(
        first.contains("task licensed: ") && first.contains("held-out documents share half of their text or more"),
        "{first}"
    );
    assert!(!first.contains("task copied: 1") && first.lines().count() == 2, "{first}");
    assert_eq!(said("--data own=own.jsonl --data a=a.txt"), "");
}
