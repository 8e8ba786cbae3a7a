//! What an earlier version wrote (tests/fixtures/v1) is read for what it is, or refused by name.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{EXPORT, PHASE2, SCAN, VERIFY, assert_done, assert_failed, assert_refused, printed};

const COMPARE: &str = env!("CARGO_BIN_EXE_exp_compare");
const REPORT: &str = env!("CARGO_BIN_EXE_exp_report");
const DENSE: &str = "cache/dense-1fb6e7749f5ee7aa";
const TEXT: &str = "--data a=a.jsonl --data b=b.jsonl";
const SCANNED: &str = "--length 16 --batch 4 --max-tokens 300 --norm log1p";

/// A copy of all that the earlier version wrote.
struct Kept(TempDir);

impl Kept {
    fn new() -> Self {
        let kept = Self(TempDir::new().unwrap());
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/v1"), kept.0.path());
        kept
    }

    fn run(&self, program: &str, arguments: &str) -> Output {
        Command::new(program).current_dir(self.0.path()).args(arguments.split_whitespace()).output().unwrap()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.0.path().join(name)).unwrap()
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.read(name)).unwrap()
    }

    /// Changes the JSON file `name`.
    fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = self.json(name);
        change(&mut value);
        fs::write(self.0.path().join(name), value.to_string()).unwrap();
    }

    /// What the earlier version computed.
    fn expected(&self) -> Value {
        self.json("expected.json")
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::write(target, fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

/// Every number of `expected` is in `found`, as nearly as machines agree.
fn assert_near(found: &Value, expected: &Value) {
    if let (Some(a), Some(b)) = (found.as_f64(), expected.as_f64()) {
        assert!((a - b).abs() <= 1e-6 + 1e-3 * b.abs().min(0.1), "{a}, and it was {b}");
    } else if let Value::Object(keys) = expected {
        keys.iter().for_each(|(key, value)| assert_near(&found[key], value));
    } else {
        assert_eq!(found, expected);
    }
}

#[rstest]
#[case::levels_of_every_router("phase1/tiny-onn")]
#[case::replicas_with_deltas("replicas")]
#[case::paths_of_tasks("task")]
fn a_checkpoint_computes_what_it_did(#[case] name: &str) {
    let kept = Kept::new();
    let was = &kept.expected()["verify"][name];
    let arguments = format!("{DENSE} {name} --json {}", was["arguments"].as_str().unwrap());
    let found = serde_json::from_str(&printed(&kept.run(VERIFY, &arguments))).unwrap();
    assert_near(&found, &was["figures"]);
}

#[test]
fn a_checkpoint_becomes_the_dense_model_that_it_was() {
    let kept = Kept::new();
    assert_done(&kept.run(VERIFY, &format!("{DENSE} phase1/tiny-onn --tolerance 0")));
    assert_done(&kept.run(EXPORT, "--model phase1/tiny-onn --format dense --active all --out back"));
    assert!(kept.read("back/model.safetensors") == kept.read(&format!("{DENSE}/model.safetensors")));
}

#[test]
fn phase_2_goes_on_from_phase_1() {
    let kept = Kept::new();
    assert_done(&kept.run(PHASE2, "--from phase1 --out two"));
    assert_near(&kept.json("two/summary.json")["smk"], &kept.expected()["phase2"]);
}

#[test]
fn a_finished_scan_is_not_repeated_and_is_what_is_scanned_today() {
    let kept = Kept::new();
    let (was, model) = (kept.read("scan.safetensors"), format!("--model phase1/tiny-onn {TEXT} {SCANNED}"));
    let said = printed(&kept.run(SCAN, &format!("{model} --scan-file scan.safetensors --out kept")));
    assert!(kept.read("kept/scan.safetensors") == was);
    let anew = printed(&kept.run(SCAN, &format!("{model} --out anew")));
    assert_eq!(anew.replace("anew", "kept"), said);
    for task in ["a", "b"] {
        let line = format!("{task:<22} 300 tokens  {} nats a token", kept.expected()["scan"][task]);
        assert!(said.contains(&line), "{line} is not in\n{said}");
    }
    let merged = "--merge scan.safetensors --variant NamedGroups --norm log1p --out merged";
    assert_eq!(printed(&kept.run(SCAN, merged)).replace("merged", "kept"), said);
}

/// Other code may compute other weights: the model is pretrained anew, and the old one stays whatever else uses it.
#[test]
fn a_cached_model_is_left_alone_and_can_be_named() {
    let kept = Kept::new();
    let run = format!("{TEXT} --config run.toml --variant NamedGroups");
    assert_done(&kept.run(PHASE2, &format!("{run} --out anew")));
    assert_eq!(fs::read_dir(kept.0.path().join("cache")).unwrap().count(), 2);
    let old = kept.read(&format!("{DENSE}/model.safetensors"));
    assert!(old == fs::read(fixture(DENSE).join("model.safetensors")).unwrap());
    assert_done(&kept.run(PHASE2, &format!("{run} --model {DENSE} --out named")));
    assert_near(&kept.json("named/summary.json")["smk"], &kept.expected()["phase2"]);
}

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/v1").join(name)
}

#[test]
fn a_comparison_is_told_anew_and_not_gone_on_with() {
    let kept = Kept::new();
    let results = "--out compare --results compare/RESULTS.md";
    let said = printed(&kept.run(COMPARE, &format!("--report {results}")));
    for (rival, difference) in kept.expected()["compare"].as_object().unwrap() {
        let line = said.lines().find(|line| line.starts_with(&format!("Against `{rival}`"))).unwrap();
        assert!(line.contains(difference.as_str().unwrap()), "{line}");
    }
    let before = kept.read("compare/compare.json");
    let words = ["compare: ", "other sources", "commit 3edd3bd", "SHA-256 39608b7d", "--out"];
    assert_refused(&kept.run(COMPARE, &format!("--config grid.toml {results}")), &words);
    assert!(kept.read("compare/compare.json") == before);
}

/// What a later version may write: keys that this one does not know.
#[rstest]
#[case::of_phase1(PHASE2, "--from phase1 --out out", "phase1/phase1.json", |file: &mut Value| { file["version"] = json!("9.1.0"); file["settings"]["horizon"] = json!(3); }, &["version 9.1.0", "`horizon`", "run exp_phase1 again"])]
#[case::of_a_checkpoint(VERIFY, "task replicas", "task/config.json", |file: &mut Value| file["tinyonn"]["horizon"] = json!(3), &["`horizon`", "the program that wrote it"])]
#[case::of_a_declaration(VERIFY, "task replicas", "task/config.json", |file: &mut Value| file["tinyonn"]["spec"]["horizon"] = json!(3), &["`DeMix`", "`spec.horizon` is 3 in the file", "upcycle"])]
#[case::of_a_comparison(COMPARE, "--report --out compare --results compare/R.md", "compare/compare.json", |file: &mut Value| file["settings"]["horizon"] = json!(3), &["`horizon`", "commit 3edd3bd", "use the program that wrote it"])]
#[case::of_a_comparison_to_go_on_with(COMPARE, "--config grid.toml --out compare --results compare/R.md", "compare/compare.json", |file: &mut Value| file["settings"]["horizon"] = json!(3), &["other sources", "commit 3edd3bd", "--out"])]
#[case::of_a_subject(COMPARE, "--report --out compare --results compare/R.md", "compare/subjects/small-0/subject.json", |file: &mut Value| file["dense"] = json!(3), &["remove the file", "measured again"])]
fn what_a_later_version_wrote_is_refused_by_name(
    #[case] program: &str,
    #[case] arguments: &str,
    #[case] name: &str,
    #[case] change: fn(&mut Value),
    #[case] words: &[&str],
) {
    let kept = Kept::new();
    kept.edit(name, change);
    let refused = kept.run(program, arguments);
    assert_refused(&refused, words);
    // The folder of a comparison is named as a whole.
    let place = if words.contains(&"other sources") { "compare" } else { name };
    assert_refused(&refused, &[place]);
}

/// A run of then left less behind than its page takes; a comparison all of it.
#[test]
fn a_page_is_drawn_again_where_its_numbers_are() {
    let kept = Kept::new();
    assert_refused(&kept.run(REPORT, "phase1"), &["phase1: has no figures.json", "of a version that wrote none"]);
    assert_done(&kept.run(REPORT, "compare"));
    assert!(kept.0.path().join("compare/report.html").exists());
}

#[test]
fn a_scan_of_a_later_format_is_refused_by_name() {
    let kept = Kept::new();
    let mut bytes = kept.read("scan.safetensors");
    let old = br#"\"format\":1"#;
    let at = bytes.windows(old.len()).position(|window| window == old).unwrap();
    bytes[at + old.len() - 1] = b'9';
    fs::write(kept.0.path().join("scan.safetensors"), bytes).unwrap();
    let words = ["scan.safetensors", "format 9", "0.1.0", "the program that wrote it"];
    assert_refused(&kept.run(SCAN, "--merge scan.safetensors --variant NamedGroups --out out"), &words);
}

/// Copying it again, which helps with a model that was downloaded, is no remedy for one that was made here.
#[test]
fn a_cached_model_that_is_damaged_says_how_to_make_it_anew() {
    let kept = Kept::new();
    let run = format!("{TEXT} --config run.toml --variant NamedGroups --out out");
    assert_done(&kept.run(PHASE2, &run));
    let cached = fs::read_dir(kept.0.path().join("cache")).unwrap().map(|entry| entry.unwrap().path());
    let cached = cached.filter(|path| !path.ends_with(DENSE)).collect::<Vec<_>>();
    fs::write(cached[0].join("model.safetensors"), "short").unwrap();
    assert_failed(
        &kept.run(PHASE2, &run.replace("out out", "out more")),
        &["model.safetensors", "remove the folder cache/dense-"],
    );
    fs::remove_dir_all(&cached[0]).unwrap();
    assert_done(&kept.run(PHASE2, &run.replace("out out", "out more")));
}
