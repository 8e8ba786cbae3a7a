//! The command line of a program.

use std::ffi::OsString;

use clap::Parser;
use tinyonn::{Error, Result};

/// The flags of this process. What is wrong with them clap says, and ends the process.
///
/// # Errors
/// An argument that is not Unicode: what a run was given is written down as text, and must lead to the same files when it is read again.
pub fn parse<C: Parser>() -> Result<C> {
    let mut before = OsString::new();
    for argument in std::env::args_os().skip(1) {
        if argument.to_str().is_none() {
            let (given, before) = (argument.to_string_lossy(), before.to_string_lossy());
            let name = match given.split_once('=') {
                Some((flag, _)) if flag.starts_with("--") => flag,
                _ if before.starts_with("--") => &before,
                _ => "arguments",
            };
            let problem = format!("{given} is not UTF-8, and would not be found again from a run's record");
            return Err(Error::setting(name, problem, "rename the file or folder, or name it by a link"));
        }
        before = argument;
    }
    Ok(C::parse())
}
