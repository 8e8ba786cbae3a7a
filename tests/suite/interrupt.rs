//! Signals: a loop that heeds them stops where it can go on, anything else ends at once and leaves nothing half written.
#![cfg(unix)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use rstest::rstest;
use tempfile::TempDir;
use tinyonn::Error;
use tinyonn::files::{StagedFolder, write_with};
use tinyonn::interrupt::{Interrupt, Signal};

const DIR: &str = "TINYONN_INTERRUPT_DIR";
const HOW: &str = "TINYONN_INTERRUPT_CHILD";

/// The child of the tests below, which has a folder and a file under way; without them it does nothing.
#[test]
fn a_program() {
    let (Ok(dir), Ok(how)) = (std::env::var(DIR), std::env::var(HOW)) else { return };
    let interrupt = Interrupt::on_signals().unwrap();
    let staged = StagedFolder::new(Path::new(&dir).join("run")).unwrap();
    fs::create_dir(staged.path().join("model")).unwrap();
    let nested = StagedFolder::new(staged.path().join("model/inner")).unwrap();
    let heeded = (how != "heedless").then(|| interrupt.heed());
    let stopped = write_with(Path::new(&dir).join("file"), |_| {
        println!("\nready");
        for step in 1u64.. {
            fs::write(nested.path().join(format!("{step}")), "some").ok();
            std::thread::sleep(Duration::from_millis(1));
            if let (Some(signal), "heedful") = (interrupt.requested(), how.as_str()) {
                return Err(Error::interrupted(signal, format!("step {step} is saved"), "go on"));
            }
        }
        Ok(())
    });
    drop((heeded, nested, staged));
    let Err(Error::Interrupted { signal, saved, .. }) = stopped else { panic!("{stopped:?}") };
    eprintln!("{saved}");
    std::process::exit(signal.exit_code().into());
}

struct Program {
    child: Child,
    out: BufReader<ChildStdout>,
    dir: TempDir,
}

impl Program {
    fn start(how: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "interrupt::a_program", "--nocapture"]).env(DIR, dir.path()).env(HOW, how);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while line.trim() != "ready" {
            line.clear();
            assert_ne!(out.read_line(&mut line).unwrap(), 0, "it ended before it began");
        }
        Self { child, out, dir }
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{signal} {}", self.child.id())).status().unwrap();
        assert!(sent.success());
    }

    /// What it said, its exit code, and the names it left.
    fn end(self) -> (String, Option<i32>, Vec<String>) {
        // Read until it has ended: a child must not wait for a full pipe.
        drop(self.out);
        let Output { status, stderr, .. } = self.child.wait_with_output().unwrap();
        let left =
            fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        (String::from_utf8(stderr).unwrap(), status.code(), left.collect())
    }
}

#[rstest]
#[case("INT", "SIGINT", 130)]
#[case("TERM", "SIGTERM", 143)]
fn a_loop_that_heeds_a_signal_saves_and_stops(#[case] send: &str, #[case] name: &str, #[case] code: i32) {
    let program = Program::start("heedful");
    program.signal(send);
    let (said, status, left) = program.end();
    assert_eq!((status, left), (Some(code), vec![]), "{said}");
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with(&format!("{name}: stopping behind this step")), "{said}");
    assert!(lines.len() == 2 && lines[1].ends_with(" is saved"), "{said}");
}

#[rstest]
#[case::nobody_heeds("heedless", &["TERM"], 143)]
#[case::nobody_heeds("heedless", &["INT"], 130)]
#[case::the_second_time("hard of hearing", &["INT", "INT"], 130)]
#[case::of_another_kind("hard of hearing", &["INT", "TERM"], 143)]
fn a_program_that_is_ended_at_once_takes_away_what_was_not_whole(
    #[case] how: &str,
    #[case] signals: &[&str],
    #[case] code: i32,
) {
    let program = Program::start(how);
    for signal in signals {
        program.signal(signal);
        // Signals that wait are not told apart.
        std::thread::sleep(Duration::from_millis(200));
    }
    let (said, status, left) = program.end();
    assert_eq!((status, left), (Some(code), vec![]), "{said}");
    assert_eq!(said.lines().count(), signals.len(), "{said}");
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("ended by SIG") && last.contains(".run.saving") && last.contains(".writing"), "{said}");
    assert!(last.contains("removed what was not whole") && last.ends_with("give the same command again"), "{said}");
}

#[test]
fn a_handle_and_its_copies_are_one() {
    let interrupt = Interrupt::default();
    let copy = interrupt.clone();
    assert_eq!(copy.requested(), None);
    interrupt.request(Signal::Terminate);
    assert_eq!((interrupt.requested(), copy.requested()), (Some(Signal::Terminate), Some(Signal::Terminate)));
    assert_eq!(Interrupt::default().requested(), None);
}
