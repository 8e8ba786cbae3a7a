//! Signals to programs: a training saves its state and stops, in one line, with the exit code that shells expect; what was half written goes.
#![cfg(unix)]

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rstest::rstest;
use serde_json::Value;

use super::{PHASE2, Place, RUN, assert_failed, assert_refused};

const ARGUMENTS: &str = "--model dense --data a=a.txt --data b=b.txt --config run.toml --out out";

#[rstest]
#[case("INT", 130)]
#[case("TERM", 143)]
fn a_run_that_is_asked_to_stop_saves_where_it_was(#[case] signal: &str, #[case] code: i32) {
    let place = Place::new();
    let endless = RUN.replace("[smk]\nsteps = 2", "[smk]\nsteps = 100000000");
    fs::write(place.path("run.toml"), &endless).unwrap();
    let child = place.command(PHASE2, ARGUMENTS).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    // Until the first step is logged.
    let log = place.path(".out.states/metrics.jsonl");
    while fs::metadata(&log).map_or(0, |file| file.len()) == 0 && started.elapsed() < Duration::from_mins(2) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let sent = Command::new("sh").arg("-c").arg(format!("kill -{signal} {}", child.id())).status().unwrap();
    assert!(sent.success());
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(code), "{said}");
    let last = said.lines().last().unwrap();
    assert!(last.starts_with(&format!("stopped by SIG{signal}: step ")), "{said}");
    assert!(
        last.contains(" of 100000000 of Surprise Min-K is saved in ") && last.contains(".out.states/state-"),
        "{said}"
    );
    // What it said before: a line at the beginning of each stage, and one at its end.
    assert!(said.contains("Surprise Min-K: begins at 0/100000000\n"), "{said}");
    assert!(!place.path("out").exists() && !place.path(".out.saving").exists());

    // Other settings are not what it can go on with.
    fs::write(place.path("run.toml"), endless.replace("100000000", "99")).unwrap();
    let refused = place.run(PHASE2, ARGUMENTS);
    assert_failed(&refused, &[".out.states", "`settings.smk.steps` was 100000000 and is 99", "--out"]);

    // Nor are other sources of the library, and that is said before any work.
    fs::write(place.path("run.toml"), endless).unwrap();
    let run = place.path(".out.states/run.json");
    let mut of: Value = serde_json::from_slice(&fs::read(&run).unwrap()).unwrap();
    of["code"] = "another".into();
    fs::write(&run, of.to_string()).unwrap();
    let refused = place.run(PHASE2, ARGUMENTS);
    assert_refused(&refused, &[".out.states", "`code` was \"another\" and is", "the program that began it", "--out"]);
}
