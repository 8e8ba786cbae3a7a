//! The struct form: an even hierarchy, `groups` of `experts` or `levels` of any depth, and experts that `always` take part beside it.

use proc_macro2::Span;
use quote::ToTokens;
use syn::spanned::Spanned;
use tinyonn_spec::{AlwaysSpec, LevelSpec, RouterSpec};

use super::router::{self, Router};
use super::runs::{NAMES, Run, names};
use super::settings::{Number, Settings};
use super::spans::{Place, Spans};
use super::{Hierarchy, top_k};
use crate::errors::Errors;
use crate::parse::Value;

/// What the experts that always take part are called.
const SHARED: &str = "shared";

/// One expert: what stands for a hierarchy of which nothing could be read.
pub(super) fn stand_in() -> Hierarchy {
    let routers = vec![RouterSpec::new(NAMES[3], 1, 1, 1, Router::plain().kind)];
    Hierarchy {
        levels: vec![LevelSpec { name: NAMES[3].into(), routers: routers.into() }],
        always: Vec::new(),
        groups: Vec::new(),
        routers: Vec::new(),
        spans: Spans { hierarchy: Span::call_site(), runs: Vec::new(), always: Vec::new() },
    }
}

pub(super) fn hierarchy(settings: &Settings, errors: &mut Errors) -> Option<Hierarchy> {
    if needs_no_levels(settings) {
        return Some(one_expert(settings, errors));
    }
    let choices = choices(settings, errors);
    let names = choices.as_ref().map(|choices| names(choices.len())).filter(|names| !names.is_empty());
    let routers = router::by_level(settings, names, errors);
    let top_k = top_k::by_level(settings, names, errors);
    let always = settings.key("always").map(|key| (key, Number::read("always", settings.value("always"), errors)));
    let declared = settings.value("levels").or_else(|| settings.value("experts"));
    let hierarchy = declared.map_or_else(Span::call_site, |value| value.to_token_stream().span());
    let mut parents = 1_usize;
    let (mut levels, mut places) = (Vec::new(), Vec::new());
    let plain = Router::plain();
    for (at, size) in choices?.into_iter().enumerate() {
        let name = names.and_then(|names| names.get(at).copied()).unwrap_or(NAMES[3]);
        let run = Run {
            name: name.to_owned(),
            named: size.span,
            of: name,
            parents,
            size,
            top_k: top_k.as_ref().and_then(|top_k| top_k.get(at).copied()),
            router: routers.get(at).unwrap_or(&plain),
        };
        let (run, place) = run.assemble(top_k::is_adaptive(settings));
        parents = parents.saturating_mul(run.choices);
        levels.push(LevelSpec { name: name.into(), routers: vec![run].into() });
        places.push(vec![place]);
    }
    let shared = |(_, experts): (_, Number)| AlwaysSpec { name: SHARED.into(), experts: experts.value.unwrap_or(1) };
    let place = |(key, experts): (&proc_macro2::Ident, Number)| Place {
        name: key.span(),
        size: experts.span,
        top_k: key.span(),
        kind: key.span(),
    };
    Some(Hierarchy {
        levels,
        always: always.map(shared).into_iter().collect(),
        groups: Vec::new(),
        routers: routers.into_iter().filter_map(|router| router.path).collect(),
        spans: Spans { hierarchy, runs: places, always: always.map(place).into_iter().collect() },
    })
}

/// Whether nothing is said of a hierarchy, and neurons or pairs are what is chosen.
fn needs_no_levels(settings: &Settings) -> bool {
    ["neurons", "attention"].into_iter().any(|key| settings.is_meant(key))
        && !["groups", "experts", "levels"].into_iter().any(|key| settings.is_meant(key))
}

/// No levels: all neurons are of experts that always take part, of one unless said otherwise.
fn one_expert(settings: &Settings, errors: &mut Errors) -> Hierarchy {
    for key in ["router", "top_k"].iter().filter_map(|key| settings.key(key)) {
        let remedy = format!("remove `{key}`, or add `groups = 10, experts = 10`");
        errors.on(key, format!("`{key}` is said of a hierarchy, and there is none; {remedy}"));
    }
    let declared =
        settings.key("always").map(|key| (key.span(), Number::read("always", settings.value("always"), errors)));
    let span = declared.map_or_else(Span::call_site, |(span, _)| span);
    let experts = declared.and_then(|(_, experts)| experts.value).unwrap_or(1);
    Hierarchy {
        levels: Vec::new(),
        always: vec![AlwaysSpec { name: SHARED.into(), experts }],
        groups: Vec::new(),
        routers: Vec::new(),
        spans: Spans {
            hierarchy: span,
            runs: Vec::new(),
            always: vec![Place {
                name: span,
                size: declared.map_or(span, |(_, experts)| experts.span),
                top_k: span,
                kind: span,
            }],
        },
    }
}

/// The choices of each router of a level; `None` if not even the depth is known.
fn choices(settings: &Settings, errors: &mut Errors) -> Option<Vec<Number>> {
    if let Some(levels) = settings.key("levels") {
        for other in ["groups", "experts"].iter().filter_map(|other| settings.key(other)) {
            let problem = format!("`{levels}` and `{other}` both declare the hierarchy");
            errors.at(other.span(), format!("{problem}; keep `{levels}`, or write `groups = 10, experts = 10`"));
        }
        return listed(settings.value("levels")?, errors);
    }
    if settings.is_meant("groups") || settings.is_meant("experts") {
        let span = Span::call_site();
        let groups = "the number of groups, or write `levels = [10]` for experts without groups";
        return Some(vec![
            settings.required("groups", groups, span, errors),
            settings.required("experts", "the number of experts in each group", span, errors),
        ]);
    }
    if !settings.is_meant("levels") {
        let remedy = "add `groups = 10, experts = 10`, or `levels = [4, 5, 5]`";
        errors.at(Span::call_site(), format!("the hierarchy is missing; {remedy}"));
    }
    None
}

/// `levels = [4, 5, 5]`
fn listed(value: &Value, errors: &mut Errors) -> Option<Vec<Number>> {
    let Value::List { values, .. } = value else {
        errors.on(value, "`levels` takes the choices at each level from the root; write `levels = [4, 5, 5]`");
        return None;
    };
    Some(values.iter().map(|value| Number::read("levels", value.as_ref(), errors)).collect())
}
