//! What the binaries share: devices by name, flags over a file, and the record of a run.

use std::fs;
use std::path::PathBuf;

use experiments::overwrite::{refuse_file, replaces};
use experiments::run_folder::first_free;
use experiments::settings::{layered, over_file, required};
use experiments::{DeviceName, OutFlags, RunFlags, RunFolder};
use rstest::rstest;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;
use tinyonn::phases::RunConfig;

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
#[case::no_number("rate = nan", &["`rate`", "finite"])]
fn a_file_that_cannot_be_used_is_refused_in_one_line(#[case] text: &str, #[case] words: &[&str]) {
    let (_dir, path) = file(text);
    let refused = message(over_file(&Settings::default(), Some(&path)));
    assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
    assert!(refused.contains("run.toml") && !refused.contains('\n'), "{refused}");
}

/// A setting that records leave out where it has its default, beside a flag that was not given.
#[test]
fn what_is_left_out_keeps_its_default() {
    let flags = json!({ "dtype": null, "seed": 4 });
    let settings = layered(&RunConfig::default(), None, &flags).unwrap();
    assert_eq!(settings, RunConfig { seed: 4, ..RunConfig::default() });
}

/// As the programs have them: their own settings, and those that all have.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Program {
    min_k: Option<usize>,
    #[serde(flatten)]
    run: RunFlags,
    #[serde(flatten)]
    output: OutFlags,
}

#[test]
fn shared_flags_are_keys_like_any_other() {
    let (_dir, path) = file("seed = 3\nmin_k = 5\nout = \"there\"\ndevice = \"cuda:1\"");
    let flags = Program { run: RunFlags { seed: Some(4), ..RunFlags::default() }, ..Program::default() };
    let settings = over_file(&flags, Some(&path)).unwrap();
    assert_eq!((settings.run.seed, settings.run.device, settings.min_k), (Some(4), Some(DeviceName::Cuda(1)), Some(5)));
    assert_eq!(settings.output.out, Some(PathBuf::from("there")));
    // What only the command line says is in no record either.
    let record = json!(Program { output: OutFlags { overwrite: true, ..OutFlags::default() }, ..settings });
    assert!(record.get("overwrite").is_none() && record.get("config").is_none(), "{record}");
}

#[rstest]
#[case::unknown("min_k = 5\nmink = 6", &["line 2", "mink"])]
#[case::wrong_type("\n\nseed = \"five\"", &["line 3", "five"])]
#[case::device("seed = 1\ndevice = \"gpu\"", &["line 2", "gpu", "cuda:N"])]
#[case::overwrite("seed = 1\noverwrite = true", &["line 2", "overwrite"])]
#[case::config("config = \"other.toml\"", &["line 1", "config"])]
#[case::twice("seed = 5\nseed = 6", &["line 2", "duplicate"])]
fn shared_flags_are_refused_by_their_line(#[case] text: &str, #[case] words: &[&str]) {
    let (_dir, path) = file(text);
    let refused = message(over_file(&Program::default(), Some(&path)));
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
    let folder = RunFolder::create(&dir, &settings, 7, DeviceName::Cuda(1), false).unwrap();
    assert!(!dir.exists(), "it has its name when it is whole");
    let config: Value = serde_json::from_slice(&fs::read(folder.dir().join("config.json")).unwrap()).unwrap();
    assert_eq!((&config["seed"], &config["device"]), (&json!(7), &json!("cuda:1")));
    assert_eq!(config["settings"], json!(settings));
    assert_eq!(config["versions"]["tinyonn"], env!("CARGO_PKG_VERSION"));
    let command: Vec<String> = std::env::args().collect();
    assert_eq!(config["command"], json!(command));
    // A commit's forty hexadecimal digits, or nothing known at all.
    let (commit, dirty) = (config["git"]["commit"].as_str().unwrap(), &config["git"]["dirty"]);
    let known = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()) && dirty.is_boolean();
    assert!(known || (commit == "unknown" && dirty == "unknown"), "{}", config["git"]);

    assert!(message(RunFolder::create(&dir, &settings, 7, DeviceName::Cpu, false)).contains("another process"));
    assert_eq!(first_free(&dir).unwrap(), parent.path().join("deep/run-2"));
    assert_eq!(folder.finish().unwrap(), dir);
    assert!(dir.join("config.json").exists());
    assert_eq!(first_free(&dir).unwrap(), parent.path().join("deep/run-2"));
    assert!(message(RunFolder::create(&dir, &settings, 7, DeviceName::Cpu, false)).contains("not empty"));
    let refused = message(replaces(&dir, false, &[]));
    assert!(refused.contains("not empty") && refused.contains("--out"), "{refused}");
    let empty = parent.path().join("empty");
    fs::create_dir(&empty).unwrap();
    RunFolder::create(&empty, &settings, 7, DeviceName::Cpu, false).unwrap().finish().unwrap();
    assert!(empty.join("config.json").exists());
}

#[test]
fn a_run_that_ends_early_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let folder = RunFolder::create(&parent.path().join("run"), &1, 7, DeviceName::Cpu, false).unwrap();
    fs::write(folder.dir().join("metrics.jsonl"), "").unwrap();
    drop(folder);
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
}

#[test]
fn an_old_run_is_replaced_when_the_new_one_is_whole() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("run");
    RunFolder::create(&dir, &"old", 7, DeviceName::Cpu, false).unwrap().finish().unwrap();
    fs::write(dir.join("left.txt"), "").unwrap();
    assert!(message(replaces(&dir, false, &[])).contains("--overwrite"));
    assert!(replaces(&dir, true, &[]).unwrap());
    let settings =
        || serde_json::from_slice::<Value>(&fs::read(dir.join("config.json")).unwrap()).unwrap()["settings"].clone();
    for finished in [false, true] {
        let folder = RunFolder::create(&dir, &"new", 7, DeviceName::Cpu, true).unwrap();
        assert!(folder.dir() != dir && dir.join("left.txt").exists());
        // Checkpoints are folders in it.
        fs::create_dir(folder.dir().join("tiny-onn")).unwrap();
        if finished {
            folder.finish().unwrap();
        } else {
            drop(folder);
        }
        assert_eq!(
            (dir.join("left.txt").exists(), settings()),
            (!finished, json!(if finished { "new" } else { "old" }))
        );
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}

#[rstest]
#[case::run(Some(r#"{"program": "exp_scan", "versions": {"tinyonn": "0.1.0"}}"#), None)]
#[case::dense(Some(r#"{"model_type": "qwen3"}"#), None)]
#[case::tinyonn(Some(r#"{"model_type": "tinyonn"}"#), None)]
#[case::dense_of_another_family(Some(r#"{"model_type": "llama"}"#), None)]
#[case::exported(Some(r#"{"model_type": "qwen3_moe"}"#), None)]
#[case::exported_as_mixtral(Some(r#"{"model_type": "mixtral"}"#), None)]
#[case::another_model(Some(r#"{"model_type": "bert"}"#), Some("config.json"))]
#[case::another_program(Some(r#"{"program": "make"}"#), Some("config.json"))]
#[case::not_json(Some("program = 1"), Some("config.json"))]
#[case::no_config(None, Some("config.json"))]
fn only_runs_and_checkpoints_are_replaced(#[case] config: Option<&str>, #[case] refusal: Option<&str>) {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("text");
    fs::write(&input, "kept").unwrap();
    if let Some(config) = config {
        fs::write(dir.path().join("config.json"), config).unwrap();
    }
    match refusal {
        Some(word) => assert!(message(replaces(dir.path(), true, &[])).contains(word)),
        None => assert!(replaces(dir.path(), true, &["/".as_ref()]).unwrap()),
    }
    // What is read must not be deleted, by whatever way it is named.
    let roundabout = dir.path().join("../").join(dir.path().file_name().unwrap()).join("text");
    for input in [&input, &roundabout] {
        assert!(replaces(dir.path(), true, &[input]).is_err());
    }
}

#[test]
fn a_file_is_replaced_only_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.safetensors");
    assert!(refuse_file(&path, false).is_ok());
    fs::write(&path, "old").unwrap();
    let refused = message(refuse_file(&path, false));
    assert!(refused.contains("image.safetensors: exists") && refused.contains("--overwrite"), "{refused}");
    assert!(refuse_file(&path, true).is_ok());
}
