//! The rules of levels, their routers, and the groups that no router chooses.

use std::collections::BTreeSet;

use super::{At, Found, MOST, Part};
use crate::{GaussianSpec, LevelSpec, MoeSpec, RouterKind};

/// Levels of a hierarchy, at most.
const DEPTH: usize = 4;

pub(super) fn check(spec: &MoeSpec, found: &mut Found) {
    let depth = spec.levels.len();
    // Where neurons or pairs are chosen there may be no experts to choose from: one that always takes part holds the neurons.
    let none_is_needed = spec.needs_no_levels() && !spec.always.is_empty();
    if (depth == 0 && !none_is_needed) || depth > DEPTH {
        let remedy = format!("write 1 to {DEPTH}, such as `levels = [4, 5, 5]`");
        return found.add(At::Hierarchy, format!("a hierarchy of {depth} levels"), remedy);
    }
    nodes(spec, found);
    routers(spec, found);
    names(spec, found);
    for (group, always) in spec.always.iter().enumerate().filter(|(_, always)| always.experts == 0) {
        let at = At::Always { group, part: Part::Size };
        found.add(at, format!("`{}` has 0 experts", always.name), "use 1 or more");
    }
}

/// Each run of routers by itself.
fn routers(spec: &MoeSpec, found: &mut Found) {
    for (level, declared) in spec.levels.iter().enumerate() {
        for (run, routers) in declared.routers.iter().enumerate() {
            let at = |part| At::Run { level, run, part };
            let (choices, top_k) = (routers.choices, routers.top_k);
            if choices == 0 {
                let problem = format!("there are 0 {}", choices_of(spec, level, run, "s"));
                found.add(at(Part::Size), problem, "use 1 or more");
            }
            if top_k == 0 {
                found.add(at(Part::TopK), "`top_k` is 0", "use 1 or more");
            } else if top_k > choices && choices > 0 {
                let (plural, remedy) =
                    if choices == 1 { ("", "use 1".to_owned()) } else { ("s", format!("use {choices} or fewer")) };
                let what = choices_of(spec, level, run, plural);
                found.add(at(Part::TopK), format!("top_k = {top_k} exceeds the {choices} {what}"), remedy);
            }
            if let RouterKind::Gaussian(GaussianSpec { dim, .. }) | RouterKind::LowRank { dim } = routers.kind {
                found.count(at(Part::Kind), "dim", dim);
            }
            match (routers.kind.projects_to(MOST), spec.shared_projection(MOST)) {
                (Some(own), Some((_, shared))) if own != shared => {
                    let problem = format!("`linear(dim = {own})` stands beside `linear(dim = {shared})`");
                    let remedy = "use one `dim`: all levels of a layer read one projection";
                    found.add(at(Part::Kind), problem, remedy);
                }
                _ => (),
            }
        }
    }
}

/// What a router chooses among: `experts of a group`, ``experts of `language` ``.
fn choices_of(spec: &MoeSpec, level: usize, run: usize, plural: &str) -> String {
    let LevelSpec { name, routers } = &spec.levels[level];
    let run = &routers[run].name;
    let of = match level.checked_sub(1).map(|above| &spec.levels[above].name) {
        _ if run != name => format!(" of `{run}`"),
        Some(above) => format!(" of a {above}"),
        None if spec.always.is_empty() => String::new(),
        None => " that routers choose".to_owned(),
    };
    format!("{name}{plural}{of}")
}

/// What a checkpoint keeps apart by its name.
fn names(spec: &MoeSpec, found: &mut Found) {
    let mut routers = BTreeSet::new();
    for (level, declared) in spec.levels.iter().enumerate() {
        for (run, declared) in declared.routers.iter().enumerate().filter(|(_, run)| !routers.insert(&run.name)) {
            let problem = format!("two routers are called `{}_router` in a checkpoint", declared.name);
            found.add(At::Run { level, run, part: Part::Name }, problem, "rename one");
        }
    }
    let experts = spec.levels.last().into_iter().flat_map(|level| level.routers.iter());
    let mut groups: BTreeSet<_> = experts.map(|run| &run.name).collect();
    for (group, always) in spec.always.iter().enumerate().filter(|(_, always)| !groups.insert(&always.name)) {
        let at = At::Always { group, part: Part::Name };
        found.add(at, format!("two groups are called `{}` in a checkpoint", always.name), "rename one");
    }
}

/// A router for each node of the level before, and no more experts than an MLP has neurons.
fn nodes(spec: &MoeSpec, found: &mut Found) {
    let always = sum(spec.always.iter().map(|group| group.experts as u128));
    let more = if always > 0 { format!(" + {always}") } else { String::new() };
    let mut too_many = |what: &str, routed: u128| {
        let experts = routed.saturating_add(always);
        if experts > MOST as u128 {
            found.add(At::Hierarchy, format!("{what}{more} are {experts} experts"), format!("use {MOST} or fewer"));
        }
        experts > MOST as u128
    };
    let even: Option<Vec<usize>> = spec.levels.iter().map(even).collect();
    if let Some(choices) = even {
        let factors: Vec<String> = choices.iter().map(ToString::to_string).collect();
        let product = choices.iter().fold(1, |product: u128, choices| product.saturating_mul(*choices as u128));
        if too_many(&factors.join(" × "), product) {
            return;
        }
    } else if too_many("the groups", spec.levels.last().map_or(0, choices_in_all)) {
        return;
    }
    let mut nodes = 1;
    for level in spec.levels.iter() {
        let parents = sum(level.routers.iter().map(|run| run.parents as u128));
        if parents != nodes {
            let problem = format!("level `{}` has {parents} routers for {nodes} nodes", level.name);
            found.add(At::Hierarchy, problem, "declare one for each node of the level before");
        } else if let Some(run) = level.routers.iter().find(|run| run.parents == 0 && nodes > 0) {
            found.add(At::Hierarchy, format!("there are 0 routers `{}_router`", run.name), "declare one or more");
        }
        nodes = choices_in_all(level);
    }
}

/// The choices of each router of a level whose routers are equal.
fn even(level: &LevelSpec) -> Option<usize> {
    if let [run] = &*level.routers { Some(run.choices) } else { None }
}

/// The nodes of a level, however many.
fn choices_in_all(level: &LevelSpec) -> u128 {
    sum(level.routers.iter().map(|run| run.parents as u128 * run.choices as u128))
}

fn sum(numbers: impl Iterator<Item = u128>) -> u128 {
    numbers.fold(0, u128::saturating_add)
}
