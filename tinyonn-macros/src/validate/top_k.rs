//! How many choices are taken: as written, or by default.

use super::levels;
use super::settings::{Settings, count};
use crate::errors::Errors;
use crate::parse::Value;

/// Experts of each router taken unless said otherwise, capped at what there is.
const EXPERTS: usize = 2;

/// One number a level; the names and choices of the levels are `None` if not even their number is known.
pub(super) fn by_level(
    settings: &Settings,
    levels: Option<(&[&str], &[Option<usize>])>,
    errors: &mut Errors,
) -> Option<Vec<usize>> {
    let (names, choices) = levels?;
    if !settings.is_given("top_k") {
        let adaptive = is_adaptive(settings);
        let taken = names.iter().zip(choices);
        return taken.map(|(name, choices)| choices.map(|choices| default(name, choices, adaptive))).collect();
    }
    let value = settings.value("top_k")?;
    let taken: Vec<Option<&Value>> = match value {
        Value::List { brackets, values } if values.len() != names.len() => {
            let problem = format!("`top_k` lists {} for {} levels", values.len(), names.len());
            errors.on(brackets, format!("{problem}; {}", remedy(names)));
            return None;
        }
        Value::List { values, .. } => values.iter().map(Option::as_ref).collect(),
        _ if names.len() == 1 => vec![Some(value)],
        _ => {
            errors.on(value, format!("`top_k` takes a number for each level; {}", remedy(names)));
            return None;
        }
    };
    let checked = taken.into_iter().zip(choices).enumerate().map(|(level, (value, choices))| {
        let of = level.checked_sub(1).map_or(String::new(), |before| format!(" of a {}", names[before]));
        at_most(value?, *choices, |s| format!("{}{s}{of}", names[level]), errors)
    });
    // Every number is looked at before the first bad one counts.
    checked.collect::<Vec<_>>().into_iter().collect()
}

/// `write `top_k = [1, 2]`: group, expert`
fn remedy(names: &[&str]) -> String {
    let taken: Vec<String> = names.iter().map(|name| default(name, EXPERTS, false).to_string()).collect();
    format!("write `top_k = [{}]`: {}", taken.join(", "), names.join(", "))
}

/// Whether `pfag` decides how many are taken, and `top_k` only bounds it.
pub(super) fn is_adaptive(settings: &Settings) -> bool {
    match settings.value("pfag") {
        Some(Value::Word { name, .. }) => name != "off",
        value => value.is_some(),
    }
}

/// What a router over choices called `name` takes: all of them where their number is decided by the input.
pub(super) fn default(name: &str, choices: usize, adaptive: bool) -> usize {
    let experts = levels::names(1)[0];
    match (adaptive, name == experts) {
        (true, _) => choices,
        (false, true) => EXPERTS.min(choices),
        (false, false) => 1,
    }
}

/// A number of choices, no more than there are; `what` names them with the given ending.
pub(super) fn at_most(
    value: &Value,
    choices: Option<usize>,
    what: impl Fn(&str) -> String,
    errors: &mut Errors,
) -> Option<usize> {
    let k = count("top_k", value, errors)?;
    match choices {
        Some(1) if k > 1 => errors.on(value, format!("top_k = {k} exceeds the 1 {}; use 1", what(""))),
        Some(choices) if k > choices => {
            errors.on(value, format!("top_k = {k} exceeds the {choices} {}; use {choices} or fewer", what("s")));
        }
        _ => return Some(k),
    }
    None
}
