//! Text and settings as they come: through pipes, with marks in front, of names in any script.

use std::fs;

use serde_json::json;

use super::{PHASE2, Place, SCAN, assert_done, printed};

/// What it is is known by what is in it: from a pipe, which has no name, as from a file of another.
#[cfg(unix)]
#[test]
fn json_lines_from_a_pipe_are_documents() {
    let place = Place::new();
    let text = fs::read_to_string(place.path("a.txt")).unwrap();
    let lines: String = text
        .as_bytes()
        .chunks(500)
        .map(|part| json!({ "text": String::from_utf8_lossy(part) }).to_string() + "\n")
        .collect();
    fs::write(place.path("lines.jsonl"), &lines).unwrap();
    fs::write(place.path("lines.json"), &lines).unwrap();
    let counted = |data: &str, out: &str| {
        let arguments = format!("--model dense --data a={data} --length 32 --out {out}");
        let script = format!("cat lines.json | {SCAN} {arguments}");
        let output =
            std::process::Command::new("sh").args(["-c", &script]).current_dir(place.dir.path()).output().unwrap();
        printed(&output).lines().next().unwrap().to_owned()
    };
    let expected = counted("lines.jsonl", "one");
    assert_eq!([counted("lines.json", "two"), counted("/dev/stdin", "three")], [expected.clone(), expected]);
}

#[test]
fn a_byte_order_mark_in_front_of_settings_and_ids_is_none_of_them() {
    let place = Place::new();
    fs::write(place.path("run.toml"), "\u{feff}length = 32\nmodel = \"dense\"").unwrap();
    assert_done(&place.run(PHASE2, "--data a=a.txt --data b=b.txt --config run.toml --dry-run"));
    assert_done(&place.run(SCAN, "--data a=a.txt --config run.toml --out out"));
    fs::write(place.path("ids.json"), "\u{feff}[[1, 2, 3]]").unwrap();
    assert_done(&place.run(SCAN, "--model dense --tokens ids.json --dump image"));
}

#[test]
fn what_the_fonts_lack_is_said_once() {
    let place = Place::new();
    let output = place.run(SCAN, "--model dense --data 中文=a.txt --data русский=b.txt --length 32 --out out");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let warnings: Vec<&str> = said.lines().filter(|line| line.contains("WARN")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("characters like 中: boxes in PNG pictures"), "{said}");
}
