//! What the binaries share: devices by name, flags over a file, and the record of a run.

use std::fs;
use std::path::PathBuf;

use experiments::settings::{over_file, required};
use experiments::{DeviceName, RunFolder};
use rstest::rstest;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::models::message;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    min_k: Option<usize>,
    rate: Option<f64>,
    quiet: Option<bool>,
    device: Option<DeviceName>,
    out: Option<PathBuf>,
}

fn file(text: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    fs::write(&path, text).unwrap();
    (dir, path)
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_nothing() {
    let (_dir, path) = file("min_k = 5\nrate = 2\nquiet = true\ndevice = \"cuda:3\"");
    let flags = Settings { quiet: Some(false), rate: Some(0.5), out: Some("here".into()), ..Settings::default() };
    let settings = over_file(&flags, Some(&path)).unwrap();
    let expected = Settings { min_k: Some(5), device: Some(DeviceName::Cuda(3)), ..flags.clone() };
    assert_eq!(settings, expected);
    assert_eq!(over_file(&flags, None).unwrap(), flags);
}

#[rstest]
#[case::unknown("min_k = 5\nmink = 6", &["line 2", "mink", "min_k"])]
#[case::wrong_type("\n\nmin_k = \"five\"", &["line 3", "five"])]
#[case::negative("min_k = -5", &["line 1", "-5"])]
#[case::device("device = \"gpu\"", &["gpu", "cuda:N"])]
#[case::not_toml("min_k 5", &["line 1"])]
#[case::twice("min_k = 5\nmin_k = 6", &["line 2", "duplicate"])]
fn a_file_that_cannot_be_used_is_refused_in_one_line(#[case] text: &str, #[case] words: &[&str]) {
    let (_dir, path) = file(text);
    let refused = message(over_file(&Settings::default(), Some(&path)));
    assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
    assert!(refused.contains("run.toml") && !refused.contains('\n'), "{refused}");
}

#[test]
fn a_file_that_is_not_there_and_a_setting_that_is_missing_are_named() {
    let refused = message(over_file(&Settings::default(), Some("nowhere.toml".as_ref())));
    assert!(refused.contains("nowhere.toml"), "{refused}");
    let refused = message(required(None::<usize>, "min-k"));
    assert!(refused.contains("--min-k") && refused.contains("`min_k`"), "{refused}");
    assert_eq!(required(Some(3), "min-k").unwrap(), 3);
}

#[rstest]
#[case("cpu", Some(DeviceName::Cpu))]
#[case("cuda", Some(DeviceName::Cuda(0)))]
#[case("cuda:0", Some(DeviceName::Cuda(0)))]
#[case("cuda:12", Some(DeviceName::Cuda(12)))]
#[case("cuda:", None)]
#[case("cuda:-1", None)]
#[case("cuda:1:2", None)]
#[case("CPU", None)]
#[case("mps", None)]
#[case("", None)]
fn devices_have_names(#[case] text: &str, #[case] device: Option<DeviceName>) {
    match device {
        Some(device) => {
            assert_eq!(text.parse::<DeviceName>().unwrap(), device);
            assert_eq!(device.to_string().parse::<DeviceName>().unwrap(), device);
            assert_eq!(serde_json::from_value::<DeviceName>(json!(device)).unwrap(), device);
        }
        None => assert!(message(text.parse::<DeviceName>()).contains("--device")),
    }
}

#[test]
fn a_gpu_that_cannot_be_had_is_refused_with_the_reason() {
    assert!(DeviceName::Cpu.open().unwrap().is_cpu());
    // No machine has so many.
    let refused = message(DeviceName::Cuda(4096).open());
    let reason = if cfg!(feature = "cuda") { "nvidia-smi" } else { "--features cuda" };
    assert!(refused.contains("cuda:4096") && refused.contains(reason) && !refused.contains('\n'), "{refused}");
}

#[test]
fn a_run_leaves_what_repeats_it() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("deep/run");
    let settings = Settings { min_k: Some(5), ..Settings::default() };
    let folder = RunFolder::create(&dir, &settings, 7, DeviceName::Cuda(1)).unwrap();
    assert_eq!(folder.path("config.json"), dir.join("config.json"));
    let config: Value = serde_json::from_slice(&fs::read(folder.path("config.json")).unwrap()).unwrap();
    assert_eq!((&config["seed"], &config["device"]), (&json!(7), &json!("cuda:1")));
    assert_eq!(config["settings"], json!(settings));
    let versions = &config["versions"];
    assert_eq!(versions["tinyonn"], env!("CARGO_PKG_VERSION"));
    assert!(
        ["candle", "rustc"].iter().all(|name| versions[name].as_str().is_some_and(|text| !text.is_empty())),
        "{versions}"
    );
    let command: Vec<String> = std::env::args().collect();
    assert_eq!(config["command"], json!(command));
    // A commit's forty hexadecimal digits, or nothing known at all.
    let (commit, dirty) = (config["git"]["commit"].as_str().unwrap(), &config["git"]["dirty"]);
    let known = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()) && dirty.is_boolean();
    assert!(known || (commit == "unknown" && dirty == "unknown"), "{}", config["git"]);

    let refused = message(RunFolder::create(&dir, &settings, 7, DeviceName::Cpu));
    assert!(refused.contains("not empty") && refused.contains("--out"), "{refused}");
    let empty = parent.path().join("empty");
    fs::create_dir(&empty).unwrap();
    RunFolder::create(&empty, &settings, 7, DeviceName::Cpu).unwrap();
}
