//! How many choices are taken, as written.

use super::runs::{EXPERTS, default};
use super::settings::{Number, Settings};
use crate::errors::Errors;
use crate::parse::Value;

/// What is written of each level, if anything is; `names` is `None` if not even the number of levels is known.
pub(super) fn by_level(settings: &Settings, names: Option<&[&str]>, errors: &mut Errors) -> Option<Vec<Number>> {
    let (names, value) = (names?, settings.value("top_k")?);
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
    Some(taken.into_iter().map(|value| Number::read("top_k", value, errors)).collect())
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
