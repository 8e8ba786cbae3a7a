//! How a binary begins and ends: the log, and an error as one line.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use tinyonn::ranks::launcher::of_environment;
use tinyonn::{Error, Result};
use tracing_subscriber::EnvFilter;

use crate::interrupt;

/// The exit code of a run that could not be done; 1 is left to results that fail (a tolerance exceeded).
pub const ERROR: u8 = 2;

/// Warnings, but for those of each character of each picture that no font has, which `report` says once; and how the weights that are read
/// were stored.
const FILTER: &str = "warn,usvg=error,tinyonn::checkpoint=info,experiments::hub=info";

/// candle puts the context of an error on lines of its own.
fn one_line(error: &str) -> String {
    error.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(": ")
}

/// Runs `main` with warnings logged to standard error (more with `RUST_LOG=info`) and signals heard ([`interrupt`]). An error is
/// printed with its remedy and ends the process with code [`ERROR`]; a run that was asked to stop and did says what it saved, and ends it
/// with [130, 143 or 85](tinyonn::interrupt::Signal::exit_code).
pub fn main_with(main: impl FnOnce() -> Result<ExitCode> + Send) -> ExitCode {
    // Of several ranks the first one tells what is the same for all.
    let other_rank = of_environment().is_ok_and(|launched| launched.is_some_and(|launched| launched.rank > 0));
    let filter = if other_rank { "error" } else { FILTER };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(filter));
    // Refused only where a subscriber is already set, which then serves as well.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .try_init();
    let _ = interrupt();
    // From inside the pool a parallel loop starts without waking another thread first; small models are made of small loops.
    rayon::scope(|_| main()).unwrap_or_else(|error| {
        let line = one_line(&error.to_string());
        if let Error::Interrupted { signal, .. } = error {
            say(&line);
            return ExitCode::from(signal.exit_code());
        }
        say(&format!("error: {line}"));
        ExitCode::from(ERROR)
    })
}

/// A line for whoever still reads: after Ctrl-C the other end of a pipe may be gone.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
