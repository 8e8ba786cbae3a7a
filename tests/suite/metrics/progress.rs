//! The live line: plain lines in a pipe, one line that is drawn over on a terminal.

use std::process::{Command, Stdio};
use std::time::Duration;

use tinyonn::metrics::Progress;

const CHILD: &str = "TINYONN_PROGRESS_CHILD";
const NAME: &str = "metrics::progress::a_stage";

/// The child of the tests below; without them it does nothing.
#[test]
fn a_stage() {
    let Ok(how) = std::env::var(CHILD) else { return };
    let every = if how == "half a minute" { Duration::from_secs(30) } else { Duration::from_millis(100) };
    let progress = Progress::resumed(40, 100, "smk").with_lines_every(every);
    progress.device_memory(3 << 30);
    for step in 41..=80u32 {
        let loss = if step % 10 == 0 { &[("loss", f64::from(step) / 32.0)][..] } else { &[] };
        progress.update(step.into(), loss, 512);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(progress.position(), 80);
    if how == "stopped" {
        drop(progress);
    } else {
        progress.finish();
        progress.finish();
        assert_eq!(progress.position(), 100);
    }
}

fn lines(how: &str) -> Vec<String> {
    let program = std::env::current_exe().unwrap();
    let child = Command::new(program).args(["--exact", NAME, "--nocapture"]).env(CHILD, how).output().unwrap();
    let (out, said) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && out.contains("1 passed"), "{out} {said}");
    said.lines().map(str::to_owned).collect()
}

#[test]
fn in_a_pipe_a_stage_is_a_line_at_its_beginning_and_at_its_end() {
    let said = lines("half a minute");
    assert_eq!(said.len(), 2, "{said:#?}");
    assert_eq!(said[0], "smk: begins at 40/100");
    assert!(said[1].starts_with("smk: done, 100/100 in 0.") && said[1].contains(" s, loss 2.500, "), "{said:#?}");
    assert!(said[1].contains(" tokens/s, ") && said[1].ends_with("3.0 GiB on the device"), "{said:#?}");
    assert!(!said[1].contains("left"), "{said:#?}");
}

#[test]
fn in_a_pipe_a_line_comes_whenever_it_is_due() {
    let said = lines("often");
    // At least 400 ms, a line each 100: three, or more on a busy machine.
    assert!((5..40).contains(&said.len()), "{said:#?}");
    for line in &said[1..said.len() - 1] {
        assert!(line.starts_with("smk: ") && line.contains("/100, "), "{said:#?}");
        assert!(line.contains(" tokens/s, ") && line.contains(" s left, "), "{said:#?}");
        #[cfg(target_os = "linux")]
        assert!(line.contains("iB, 3.0 GiB on the device"), "{said:#?}");
    }
    let last = lines("stopped").pop().unwrap();
    assert!(last.starts_with("smk: stopped at 80/100 after 0.") && last.contains(", loss 2.500, "), "{last}");
}

/// Whoever read standard error has left: the stage goes on.
#[test]
fn a_closed_pipe_stops_nothing() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(std::env::current_exe().unwrap());
    let child = command.args(["--exact", NAME, "--nocapture"]).env(CHILD, "often").stderr(writer).output().unwrap();
    assert!(child.status.success(), "{child:?}");
}

/// Python gives the child a terminal.
#[test]
fn on_a_terminal_one_line_is_drawn_over() {
    let spawn = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let mut command = Command::new("python3");
    command.args(["-c", spawn]).arg(std::env::current_exe().unwrap()).args(["--exact", NAME, "--nocapture"]);
    let Ok(child) = command.env(CHILD, "often").env("TERM", "xterm").stdin(Stdio::null()).output() else {
        use std::io::Write as _;
        writeln!(std::io::stderr(), "skipped: metrics::progress: no python3 to make a terminal").ok();
        return;
    };
    let shown = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && shown.contains("1 passed"), "{shown}");
    assert!(!shown.contains("smk: "), "no plain line: {shown}");
    // Drawn several times, always on the line it stands on.
    let drawn: Vec<&str> = shown.split('\r').filter(|line| line.contains("/100")).collect();
    assert!(drawn.len() > 2 && drawn.iter().all(|line| line.contains("smk")), "{shown:?}");
    assert!(
        shown.contains("loss 2.") && shown.contains("tokens/s") && shown.contains("GiB on the device"),
        "{shown:?}"
    );
}
