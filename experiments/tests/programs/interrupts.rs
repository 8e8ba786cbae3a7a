//! Signals to programs: what was half written goes, in one line, with the exit code that shells expect.
#![cfg(unix)]

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rstest::rstest;

use super::{PHASE2, Place, RUN};

#[rstest]
#[case("INT", 130)]
#[case("TERM", 143)]
fn a_run_that_is_ended_leaves_no_hidden_folder(#[case] signal: &str, #[case] code: i32) {
    let place = Place::new();
    fs::write(place.path("run.toml"), RUN.replace("[smk]\nsteps = 2", "[smk]\nsteps = 100000000")).unwrap();
    let before = place.files();
    let arguments = "--model dense --data a=a.txt --data b=b.txt --config run.toml --out out";
    let child = place.command(PHASE2, arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    // Until the first step is logged.
    let log = place.path(".out.saving/metrics.jsonl");
    while fs::metadata(&log).map_or(0, |file| file.len()) == 0 && started.elapsed() < Duration::from_mins(2) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let sent = Command::new("sh").arg("-c").arg(format!("kill -{signal} {}", child.id())).status().unwrap();
    assert!(sent.success());
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(code), "{said}");
    let last = said.lines().last().unwrap();
    assert!(last.starts_with(&format!("ended by SIG{signal}: ")) && last.contains("/.out.saving"), "{said}");
    assert_eq!(place.files(), before);
    // What it said before: a line at the beginning of each stage, and one at its end.
    assert!(said.contains("smk: begins at 0/100000000\n"), "{said}");
}
