//! The struct form: an even hierarchy, `groups` of `experts` or `levels` of any depth from 1 to 4, and experts that `always` take
//! part beside it.

use proc_macro2::Span;

use super::settings::{Settings, count};
use super::{Hierarchy, MOST, router, top_k};
use crate::errors::Errors;
use crate::parse::Value;
use crate::variant::{Always, Level, Run};

/// What choices are called, counted from the experts.
const NAMES: [&str; 4] = ["division", "cluster", "group", "expert"];

/// What the experts that always take part are called.
const SHARED: &str = "shared";

/// Names of the levels of a hierarchy of that depth, from the root.
pub(super) fn names(depth: usize) -> &'static [&'static str] {
    &NAMES[NAMES.len() - depth.clamp(1, NAMES.len())..]
}

pub(super) fn hierarchy(settings: &Settings, errors: &mut Errors) -> Option<Hierarchy> {
    let always = settings.or("always", 0, errors, count);
    let choices = choices(settings, always.unwrap_or(0), errors);
    let names = choices.as_ref().map(|choices| names(choices.len()));
    let routers = router::by_level(settings, names, errors);
    let top_k = top_k::by_level(settings, names.zip(choices.as_deref()), errors);
    let choices: Vec<usize> = choices?.into_iter().collect::<Option<_>>()?;
    let mut parents = 1_usize;
    let mut levels = Vec::new();
    for (((name, choices), top_k), router) in names?.iter().zip(choices).zip(top_k?).zip(routers?) {
        levels.push(Level { name, runs: vec![Run { name: (*name).to_owned(), parents, choices, top_k, router }] });
        parents = parents.checked_mul(choices)?;
    }
    let always = Some(always?).filter(|experts| *experts > 0);
    let always = always.map(|experts| Always { name: SHARED.to_owned(), experts });
    Some(Hierarchy { levels, always: always.into_iter().collect(), groups: Vec::new() })
}

/// The choices of each router of a level; `None` where it cannot be read, and in all where not even the depth is known.
fn choices(settings: &Settings, always: usize, errors: &mut Errors) -> Option<Vec<Option<usize>>> {
    let choices = if let Some(levels) = settings.key("levels") {
        for other in ["groups", "experts"].iter().filter_map(|other| settings.key(other)) {
            let problem = format!("`{levels}` and `{other}` both declare the hierarchy");
            errors.at(other.span(), format!("{problem}; keep `{levels}`, or write `groups = 10, experts = 10`"));
        }
        listed(settings.value("levels")?, errors)?
    } else if settings.is_meant("groups") || settings.is_meant("experts") {
        let span = Span::call_site();
        let groups = "the number of groups, or write `levels = [10]` for experts without groups";
        vec![
            settings.required("groups", groups, span, errors),
            settings.required("experts", "the number of experts in each group", span, errors),
        ]
    } else {
        if !settings.is_meant("levels") {
            let remedy = "add `groups = 10, experts = 10`, or `levels = [4, 5, 5]`";
            errors.at(Span::call_site(), format!("the hierarchy is missing; {remedy}"));
        }
        return None;
    };
    let product: u128 = choices.iter().flatten().map(|choices| *choices as u128).product::<u128>() + always as u128;
    if product > MOST as u128 {
        let factors: Vec<String> = choices.iter().flatten().map(ToString::to_string).collect();
        let more = if always > 0 { format!(" + {always}") } else { String::new() };
        let problem = format!("{}{more} are {product} experts", factors.join(" × "));
        let place = settings.value("levels").or_else(|| settings.value("experts"));
        errors.on(place, format!("{problem}; use {MOST} or fewer"));
    }
    Some(choices)
}

/// `levels = [4, 5, 5]`
fn listed(value: &Value, errors: &mut Errors) -> Option<Vec<Option<usize>>> {
    let Value::List { brackets, values } = value else {
        errors.on(value, "`levels` takes the choices at each level from the root; write `levels = [4, 5, 5]`");
        return None;
    };
    if values.is_empty() || values.len() > NAMES.len() {
        let problem = format!("a hierarchy of {} levels", values.len());
        errors.on(brackets, format!("{problem}; write 1 to {}, such as `levels = [4, 5, 5]`", NAMES.len()));
        return None;
    }
    Some(values.iter().map(|value| count("levels", value.as_ref()?, errors)).collect())
}
