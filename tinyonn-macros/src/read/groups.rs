//! The enum form: named groups of their own sizes, each with its own router; those that `always` take part have none.

use proc_macro2::{Ident, Span};
use syn::Fields;
use syn::spanned::Spanned;
use tinyonn_spec::{AlwaysSpec, LevelSpec};

use super::router::{self, Router};
use super::runs::Run;
use super::settings::{Number, Settings};
use super::spans::{Place, Spans};
use super::{Hierarchy, top_k};
use crate::errors::Errors;
use crate::parse::{GroupAttribute, Named, Value};
use crate::variant::{GroupName, snake_case};

/// What can be said of a group.
pub(crate) const GROUP_SETTINGS: [&str; 4] = ["experts", "top_k", "router", "always"];

/// What a variant of the enum says.
struct Group {
    size: Number,
    /// How many of its experts are taken, if it says so.
    top_k: Option<Number>,
    /// The router over them, if it names one.
    router: Option<Router>,
    /// Where it says that all of them always take part.
    always: Option<Span>,
}

pub(super) fn hierarchy(named: &Named, settings: &Settings, errors: &mut Errors) -> Option<Hierarchy> {
    for key in ["groups", "experts", "levels"].iter().filter_map(|key| settings.key(key)) {
        let problem = format!("the variants of an enum are its groups: `{key}` has no place here");
        errors.on(key, format!("{problem}; remove it, and write `#[group(experts = 10)]` on each"));
    }
    if let Some(key) = settings.key("always") {
        let problem = "the variants of an enum are its groups: `always` is a word of the group it is said of";
        errors.on(key, format!("{problem}; remove it, and write `#[group(experts = 2, always)]`"));
    }
    let routers = router::by_level(settings, Some(&["group", "expert"]), errors);
    let groups: Vec<Group> = (0..named.groups.len()).map(|index| group(named, index, errors)).collect();
    let top_k = settings.value("top_k").map(|value| match value {
        Value::List { brackets, .. } => {
            let problem = "`top_k` of an enum is the number of its groups that are taken";
            errors.on(value, format!("{problem}; write `top_k = 1` here, and `#[group(top_k = 2)]` for experts"));
            Number { value: None, span: brackets.span() }
        }
        value => Number::read("top_k", Some(value), errors),
    });
    let is_ordered = order(named, errors);
    let [of_groups, of_experts] = routers.as_slice() else { return None };
    let idents = named.item.variants.iter().map(|variant| &variant.ident);
    let mut own: Vec<_> = of_groups.path.iter().cloned().collect();
    let (mut runs, mut places, mut always, mut always_places) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (Group { size, top_k, router, always: flag }, ident) in groups.into_iter().zip(idents) {
        let name = snake_case(ident);
        if let Some(flag) = flag {
            always.push(AlwaysSpec { name: name.into(), experts: size.value.unwrap_or(1) });
            always_places.push(Place { name: ident.span(), size: size.span, top_k: flag, kind: flag });
            continue;
        }
        let router = router.as_ref().unwrap_or(of_experts);
        own.extend(router.path.clone());
        let run = Run { name, named: ident.span(), of: "expert", parents: 1, size, top_k, router };
        let (run, place) = run.assemble(top_k::is_adaptive(settings));
        runs.push(run);
        places.push(place);
    }
    let size = Number { value: Some(runs.len()), span: named.item.ident.span() };
    let (name, of) = ("group".to_owned(), "group");
    let group = Run { name, named: size.span, of, parents: 1, size, top_k, router: of_groups };
    let (group, place) = group.assemble(top_k::is_adaptive(settings));
    let names = named.item.variants.iter().map(|variant| GroupName {
        attrs: variant.attrs.clone(),
        ident: variant.ident.clone(),
        name: snake_case(&variant.ident),
    });
    is_ordered.then(|| Hierarchy {
        levels: vec![
            LevelSpec { name: "group".into(), routers: vec![group].into() },
            LevelSpec { name: "expert".into(), routers: runs.into() },
        ],
        always,
        groups: names.collect(),
        routers: own,
        spans: Spans { hierarchy: size.span, runs: vec![vec![place], places], always: always_places },
    })
}

fn is_always(group: Option<&GroupAttribute>) -> bool {
    group.is_some_and(|group| group.settings.iter().flatten().any(|setting| setting.key == "always"))
}

/// One variant of the enum.
fn group(named: &Named, index: usize, errors: &mut Errors) -> Group {
    let variant = &named.item.variants[index];
    let name = &variant.ident;
    let mut group = Group { size: Number { value: None, span: name.span() }, top_k: None, router: None, always: None };
    if !matches!(variant.fields, Fields::Unit) {
        errors.on(&variant.fields, format!("a group is a name, without fields; write `{name}`"));
    }
    if let Some((_, value)) = &variant.discriminant {
        errors.on(value, format!("groups are numbered in their order; write `{name}` without a number"));
    }
    for switch in variant.attrs.iter().filter(|attr| attr.path().is_ident("cfg") || attr.path().is_ident("cfg_attr")) {
        let problem = format!("`{name}` cannot be switched: the hierarchy is counted before");
        errors.on(switch, format!("{problem}; write the whole declaration twice, each under its `#[cfg(..)]`"));
    }
    let Some(attribute) = &named.groups[index] else {
        errors.on(name, format!("`{name}` does not say what it holds; write `#[group(experts = 10)] {name}`"));
        return group;
    };
    let Some(settings) = &attribute.settings else { return group };
    let settings = Settings::new(settings.iter(), "setting of a group", &GROUP_SETTINGS, &["always"], errors);
    let what = format!("the number of experts of `{name}`");
    group.size = settings.required("experts", &what, attribute.attribute.span(), errors);
    group.always = settings.key("always").map(Ident::span);
    if group.always.is_some() {
        for key in ["top_k", "router"].iter().filter_map(|key| settings.key(key)) {
            errors.on(key, format!("`{name}` always takes part, and no router chooses; remove `{key}`, or `always`"));
        }
        return group;
    }
    group.router = settings.value("router").and_then(|value| router::router("router", value, errors));
    group.top_k = settings.value("top_k").map(|value| Number::read("top_k", Some(value), errors));
    group
}

/// Groups that routers choose from come first; whether there is one.
fn order(named: &Named, errors: &mut Errors) -> bool {
    let Named { item, groups } = named;
    if groups.is_empty() {
        let remedy = "add one: `#[group(experts = 10)] Language`";
        errors.on(&item.ident, format!("`{}` has no groups; {remedy}", item.ident));
        return false;
    }
    let is_routed = |group: &Option<GroupAttribute>| !is_always(group.as_ref());
    let Some(last) = groups.iter().rposition(is_routed) else {
        let remedy = "remove one `always`, or write a unit struct with `groups` and `experts`";
        errors
            .on(&item.ident, format!("every group of `{}` always takes part: nothing is routed; {remedy}", item.ident));
        return false;
    };
    for (variant, _) in item.variants.iter().zip(groups).take(last).filter(|(_, group)| !is_routed(group)) {
        let problem = format!("`{0}` always takes part and stands before groups that routers choose", variant.ident);
        errors.on(&variant.ident, format!("{problem}; move `{}` to the end", variant.ident));
    }
    true
}
