//! The command line of a program.

use std::any::TypeId;
use std::ffi::OsString;
use std::time::Duration;

use clap::{ArgMatches, Command, Parser};
use tinyonn::{Error, Result};

/// The flags of this process. What is wrong with them clap says, and ends the process.
///
/// # Errors
/// An argument that is not Unicode: what a run was given is written down as text, and must lead to the same files when it is read again. A number that is not
/// finite: no setting means one, and JSON, as which settings are merged and kept, has none.
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
    let command = C::command();
    let mut matches = command.clone().get_matches();
    refuse_not_finite(&command, &matches)?;
    C::from_arg_matches_mut(&mut matches).map_err(|error| error.with_cmd(&command)).or_else(|error| error.exit())
}

/// Minutes that a flag gives.
///
/// # Errors
/// None that are a number from 0 to a thousand million.
pub fn minutes(text: &str) -> std::result::Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    // Further off no clock has a time.
    if !(0.0..=1e9).contains(&number) {
        return Err("give a number from 0 to 1e9".into());
    }
    Ok(Duration::from_secs_f64(60.0 * number))
}

fn refuse_not_finite(command: &Command, matches: &ArgMatches) -> Result<()> {
    let numbers =
        command.get_arguments().filter(|argument| argument.get_value_parser().type_id() == TypeId::of::<f64>());
    for argument in numbers {
        let given = matches.try_get_many::<f64>(argument.get_id().as_str()).ok().flatten();
        if let Some(number) = given.into_iter().flatten().find(|number| !number.is_finite()) {
            let name = argument.get_long().map_or_else(|| argument.get_id().to_string(), |long| format!("--{long}"));
            return Err(Error::setting(name, format!("{number} is not a finite number"), "give a finite one"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use rstest::rstest;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[arg(long, allow_negative_numbers = true)]
        rate: Option<f64>,
        #[arg(long, value_delimiter = ',')]
        shares: Vec<f64>,
        #[arg(long)]
        seed: Option<u64>,
    }

    #[rstest]
    #[case("1.5", Some(90))]
    #[case("0", Some(0))]
    #[case("1e300", None)]
    #[case("-1", None)]
    #[case("nan", None)]
    #[case("soon", None)]
    fn minutes_are_a_time_that_clocks_have(#[case] given: &str, #[case] seconds: Option<u64>) {
        assert_eq!(minutes(given).ok(), seconds.map(Duration::from_secs));
    }

    #[rstest]
    #[case::finite(&["--rate", "-0.5", "--shares", "0.25,0.5", "--seed", "3"], None)]
    #[case::none(&[], None)]
    #[case::nan(&["--rate", "nan"], Some("`--rate`: NaN"))]
    #[case::infinite(&["--rate=-inf"], Some("`--rate`: -inf"))]
    #[case::too_large(&["--rate", "1e999"], Some("`--rate`: inf"))]
    #[case::in_a_list(&["--shares", "0.5,nan"], Some("`--shares`: NaN"))]
    fn a_number_that_is_not_finite_is_refused_by_its_flag(#[case] given: &[&str], #[case] error: Option<&str>) {
        let command = Flags::command();
        let matches = command.clone().get_matches_from(["program"].iter().chain(given));
        let said = refuse_not_finite(&command, &matches).err().map(|error| error.to_string());
        assert_eq!(said.is_some(), error.is_some(), "{said:?}");
        assert!(said.unwrap_or_default().starts_with(error.unwrap_or_default()));
    }
}
