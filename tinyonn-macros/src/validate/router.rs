//! Routers: one kind for all levels, or one for each.

use super::settings::{Call, Settings, count, word};
use crate::errors::Errors;
use crate::keywords::Project;
use crate::parse::{Argument, Value, names_a_type};
use crate::variant::{GAUSSIAN, Gaussian, Router};

/// The routers that have a word.
pub(crate) const ROUTERS: [&str; 4] = ["gaussian", "linear", "cosine", "random"];
/// What can be said of `gaussian`.
pub(crate) const GAUSSIAN_ARGUMENTS: [&str; 4] = ["dim", "reduce", "covariance", "project"];

/// The router of each level; `names` is `None` if not even the number of levels is known.
pub(super) fn by_level(settings: &Settings, names: Option<&[&str]>, errors: &mut Errors) -> Option<Vec<Router>> {
    let depth = names.map(<[_]>::len);
    if !settings.is_given("router") {
        return Some(vec![Router::Gaussian(GAUSSIAN); depth?]);
    }
    match settings.value("router")? {
        Value::List { brackets, values } => {
            if let Some(names) = names
                && names.len() != values.len()
            {
                let problem = format!("`router` lists {} for {} levels", values.len(), names.len());
                errors.on(brackets, format!("{problem}; write one for all, or one for each: {}", names.join(", ")));
            }
            let routers: Vec<_> = values.iter().map(|value| router("router", value.as_ref()?, errors)).collect();
            routers.into_iter().collect()
        }
        value => router("router", value, errors).map(|router| Some(vec![router; depth?]))?,
    }
}

/// One router.
pub(super) fn router(key: &str, value: &Value, errors: &mut Errors) -> Option<Router> {
    let (name, arguments) = match value {
        Value::Path(path) => return Some(Router::Custom(path.clone())),
        Value::Word { name, arguments } => (name, arguments),
        _ => {
            errors.on(value, "`router` takes the kind of router; write `router = gaussian`, or the path of a type");
            return None;
        }
    };
    if names_a_type(name) {
        errors.on(name, format!("`{name}` is a type, which takes no argument here; write `router = {name}`"));
        return None;
    }
    if name == "gaussian" {
        return gaussian(arguments, errors).map(Router::Gaussian);
    }
    if !ROUTERS.iter().any(|known| name == known) {
        errors.unknown(name, "router", &[ROUTERS.as_slice(), &["or the path of a type"]].concat());
        return None;
    }
    let call = Call::of(key, value, &ROUTERS, errors)?;
    call.without_arguments(key, errors)?;
    match call.word {
        "linear" => Some(Router::Linear),
        "cosine" => Some(Router::Cosine),
        _ => Some(Router::Random),
    }
}

fn gaussian(arguments: &[Argument], errors: &mut Errors) -> Option<Gaussian> {
    let mut named = Vec::new();
    for argument in arguments {
        match argument {
            Argument::Named(setting) => named.push(setting),
            Argument::Plain(value) => {
                errors.on(value, "this argument of `gaussian` has no name; write `gaussian(dim = 64)`");
            }
        }
    }
    let given = Settings::new(named.into_iter(), "argument of `gaussian`", &GAUSSIAN_ARGUMENTS, &[], errors);
    let dim = given.or("dim", GAUSSIAN.dim, errors, count);
    let reduce = given.or("reduce", GAUSSIAN.reduce, errors, word);
    let covariance = given.or("covariance", GAUSSIAN.covariance, errors, word);
    let project = given.or("project", GAUSSIAN.project, errors, word);
    if let (Some(Project::Identity), Some(dim)) = (project, given.key("dim")) {
        let problem = "`project = identity` leaves the hidden size as it is";
        errors.at(dim.span(), format!("{problem}; remove `dim`, or write `project = learned`"));
    }
    Some(Gaussian { dim: dim?, reduce: reduce?, covariance: covariance?, project: project? })
}
