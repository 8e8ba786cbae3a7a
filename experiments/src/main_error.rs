//! How a binary begins and ends: the log, and an error as one line.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use tinyonn::Result;
use tracing_subscriber::EnvFilter;

/// The exit code of a run that could not be done; 1 is left to results that fail (a tolerance exceeded).
pub const ERROR: u8 = 2;

/// candle puts the context of an error on lines of its own.
fn one_line(error: &str) -> String {
    error.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(": ")
}

/// Runs `main` with warnings logged to standard error (more with `RUST_LOG=info`). An error is printed with its remedy and
/// ends the process with code [`ERROR`].
pub fn main_with(main: impl FnOnce() -> Result<ExitCode> + Send) -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    // Refused only where a subscriber is already set, which then serves as well.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .try_init();
    // From inside the pool a parallel loop starts without waking another thread first; small models are made of small loops.
    rayon::scope(|_| main()).unwrap_or_else(|error| {
        eprintln!("error: {}", one_line(&error.to_string()));
        ExitCode::from(ERROR)
    })
}
