//! The enum form: named groups of their own sizes, each with its own router; those that `always` take part have none.

use std::collections::BTreeMap;

use proc_macro2::Ident;
use syn::Fields;
use syn::spanned::Spanned;

use super::settings::Settings;
use super::{Hierarchy, MOST, router, top_k};
use crate::errors::Errors;
use crate::parse::{GroupAttribute, Named, Value};
use crate::variant::{Always, GroupName, Level, Router, Run, snake_case};

/// What can be said of a group.
pub(crate) const GROUP_SETTINGS: [&str; 4] = ["experts", "top_k", "router", "always"];

/// The flags of groups that always take part.
pub(super) fn always(named: &Named) -> Vec<&Ident> {
    let settings = named.groups.iter().flatten().flat_map(|group| &group.settings).flatten();
    settings.map(|setting| &setting.key).filter(|key| *key == "always").collect()
}

/// What a variant of the enum says.
struct Group {
    experts: usize,
    /// How many of them are taken, and by what; `None` if all always take part.
    routed: Option<(usize, Router)>,
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
    let adaptive = top_k::is_adaptive(settings);
    let default = routers.as_ref().and_then(|routers| routers.last());
    let groups: Vec<Option<Group>> =
        (0..named.groups.len()).map(|index| group(named, index, default, adaptive, errors)).collect();
    let names = names(named, errors);
    order(named, errors);
    let routed = named.groups.iter().filter(|group| !is_always(group.as_ref())).count();
    let taken = settings.or("top_k", top_k::default("group", routed, adaptive), errors, |_, value, errors| {
        if let Value::List { .. } = value {
            let problem = "`top_k` of an enum is the number of its groups that are taken";
            errors.on(value, format!("{problem}; write `top_k = 1` here, and `#[group(top_k = 2)]` for experts"));
            return None;
        }
        top_k::at_most(value, Some(routed), |s| format!("group{s} that routers choose"), errors)
    });
    let groups: Vec<Group> = groups.into_iter().collect::<Option<_>>()?;
    let all: u128 = groups.iter().map(|group| group.experts as u128).sum();
    if all > MOST as u128 {
        errors.on(&named.item.ident, format!("the groups are {all} experts; use {MOST} or fewer"));
    }
    let of_groups = routers?.into_iter().next()?;
    let group = Run { name: "group".to_owned(), parents: 1, choices: routed, top_k: taken?, router: of_groups };
    let (mut runs, mut always) = (Vec::new(), Vec::new());
    for (Group { experts, routed }, name) in groups.into_iter().zip(names.iter().cloned()) {
        match routed {
            Some((top_k, router)) => runs.push(Run { name, parents: 1, choices: experts, top_k, router }),
            None => always.push(Always { name, experts }),
        }
    }
    let groups = named.item.variants.iter().zip(names);
    Some(Hierarchy {
        levels: vec![Level { name: "group", runs: vec![group] }, Level { name: "expert", runs }],
        always,
        groups: groups
            .map(|(variant, name)| GroupName { attrs: variant.attrs.clone(), ident: variant.ident.clone(), name })
            .collect(),
    })
}

fn is_always(group: Option<&GroupAttribute>) -> bool {
    group.is_some_and(|group| group.settings.iter().flatten().any(|setting| setting.key == "always"))
}

/// One variant of the enum; `default` is the router of groups that name none.
fn group(named: &Named, index: usize, default: Option<&Router>, adaptive: bool, errors: &mut Errors) -> Option<Group> {
    let variant = named.item.variants.get(index)?;
    let name = &variant.ident;
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
    let Some(group) = &named.groups[index] else {
        errors.on(name, format!("`{name}` does not say what it holds; write `#[group(experts = 10)] {name}`"));
        return None;
    };
    let what = "setting of a group";
    let settings = Settings::new(group.settings.as_ref()?.iter(), what, &GROUP_SETTINGS, &["always"], errors);
    let experts =
        settings.required("experts", &format!("the number of experts of `{name}`"), group.attribute.span(), errors);
    if settings.is_given("always") {
        for key in ["top_k", "router"].iter().filter_map(|key| settings.key(key)) {
            errors.on(key, format!("`{name}` always takes part, and no router chooses; remove `{key}`, or `always`"));
        }
        return Some(Group { experts: experts?, routed: None });
    }
    let router = if settings.is_given("router") {
        settings.value("router").and_then(|value| router::router("router", value, errors))
    } else {
        default.cloned()
    };
    let of = |s: &str| format!("expert{s} of `{name}`");
    let taken = if settings.is_given("top_k") {
        settings.value("top_k").and_then(|value| top_k::at_most(value, experts, of, errors))
    } else {
        experts.map(|experts| top_k::default("expert", experts, adaptive))
    };
    Some(Group { experts: experts?, routed: Some((taken?, router?)) })
}

/// Groups that routers choose from come first, and there is one.
fn order(named: &Named, errors: &mut Errors) {
    let Named { item, groups } = named;
    if groups.is_empty() {
        let remedy = "add one: `#[group(experts = 10)] Language`";
        errors.on(&item.ident, format!("`{}` has no groups; {remedy}", item.ident));
        return;
    }
    let is_routed = |group: &Option<GroupAttribute>| !is_always(group.as_ref());
    let Some(last) = groups.iter().rposition(is_routed) else {
        let remedy = "remove one `always`, or write a unit struct with `groups` and `experts`";
        errors
            .on(&item.ident, format!("every group of `{}` always takes part: nothing is routed; {remedy}", item.ident));
        return;
    };
    for (variant, _) in item.variants.iter().zip(groups).take(last).filter(|(_, group)| !is_routed(group)) {
        let problem = format!("`{0}` always takes part and stands before groups that routers choose", variant.ident);
        errors.on(&variant.ident, format!("{problem}; move `{}` to the end", variant.ident));
    }
}

/// Each group's name in metrics and checkpoints, no two alike.
fn names(named: &Named, errors: &mut Errors) -> Vec<String> {
    let mut taken = BTreeMap::new();
    let mut names = Vec::new();
    for (variant, group) in named.item.variants.iter().zip(&named.groups) {
        let name = snake_case(&variant.ident);
        if name == "group" && !is_always(group.as_ref()) {
            let problem = format!("`{name}_router` is the router over the groups");
            errors.on(&variant.ident, format!("{problem}; give `{}` another name", variant.ident));
        } else if let Some(first) = taken.insert(name.clone(), &variant.ident) {
            let problem = format!("`{first}` and `{}` are both `{name}` in a checkpoint", variant.ident);
            errors.on(&variant.ident, format!("{problem}; rename one"));
        }
        names.push(name);
    }
    names
}
