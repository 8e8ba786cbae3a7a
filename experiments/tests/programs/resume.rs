//! Runs that are killed at any moment: the same command goes on, and what comes of it in the end is what would have come of it at once.
#![cfg(unix)]

use std::fs;
use std::time::Duration;

use serde_json::Value;

use super::{PHASE2, Place, assert_done};

/// Pretraining and SMK of some seconds each.
const RUN: &str = "cache = \"cache\"\nlength = 32\nscan_tokens = 600\ntest_tokens = 400\n[dense]\nvocab_size = 280\nhidden_size = 32\n\
    intermediate_size = 120\nnum_hidden_layers = 2\n[pretrain]\nsteps = 400\nbatch = 4\nwarmup = 10\n[router]\nsteps = 2\n[smk]\nsteps = 400\n\
    batch = 4";
const ARGUMENTS: &str = "--data a=a.txt --data b=b.txt --config run.toml --out out --save-every 5";

/// Milliseconds from the start of a process to its end by SIGKILL.
const KILLS: [u64; 8] = [60, 400, 900, 650, 1300, 300, 1100, 1700];

#[test]
fn a_run_that_is_killed_goes_on_to_the_same_bits() {
    let (at_once, killed) = (Place::new(), Place::new());
    for place in [&at_once, &killed] {
        fs::write(place.path("run.toml"), RUN).unwrap();
    }
    assert_done(&at_once.run(PHASE2, ARGUMENTS));
    for after in KILLS {
        let mut child = killed.command(PHASE2, ARGUMENTS).stderr(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(after));
        child.kill().unwrap();
        child.wait().unwrap();
        if killed.path("out").exists() {
            break;
        }
    }
    if !killed.path("out").exists() {
        assert_done(&killed.run(PHASE2, ARGUMENTS));
    }
    let read = |place: &Place, name: &str| fs::read(place.path("out").join(name)).unwrap();
    for name in ["tiny-onn/model.safetensors", "metrics.jsonl"] {
        assert!(read(&killed, name) == read(&at_once, name), "{name} differs");
    }
    let figures = |place: &Place| {
        let mut summary: Value = serde_json::from_slice(&read(place, "summary.json")).unwrap();
        summary.as_object_mut().unwrap().remove("seconds");
        summary
    };
    assert_eq!(figures(&killed), figures(&at_once));
    let left = |place: &Place| -> Vec<String> {
        let entries = [place.path("."), place.path("cache")].into_iter().flat_map(|dir| fs::read_dir(dir).unwrap());
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(left(&killed), left(&at_once));
}
