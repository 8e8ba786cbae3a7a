//! Lines for standard output, whether or not anybody still reads it.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write as _};

/// Prints a line as `println!` does. A reader that has left (`exp_compare | head -1`) ends the printing, not the program.
#[macro_export]
macro_rules! say {
    ($($line:tt)*) => {
        $crate::say::line(format_args!($($line)*))
    };
}

/// Prints a line.
pub fn line(line: Arguments<'_>) {
    let mut out = std::io::stdout();
    if let Err(error) = writeln!(out, "{line}")
        && error.kind() != ErrorKind::BrokenPipe
    {
        eprintln!("error: standard output cannot be written: {error}");
    }
}

/// Prints a part of a line at once.
pub fn part(text: &str) {
    let mut out = std::io::stdout();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush())
        && error.kind() != ErrorKind::BrokenPipe
    {
        eprintln!("error: standard output cannot be written: {error}");
    }
}
