//! Second step: a [`Declaration`] to a [`Variant`]. How settings are written and which words there are is known here; whether the
//! declaration makes sense, the rules of [`MoeSpec::validate`] know, and here is where each of its parts stands.
//!
//! What cannot be read is reported and then stands for whatever breaks no rule, so that the rules speak of the rest.

mod attention;
mod behaviour;
mod groups;
mod item;
mod levels;
mod router;
mod runs;
mod settings;
mod spans;
mod top_k;

#[cfg(test)]
pub(crate) use router::{GAUSSIAN_ARGUMENTS, LINEAR_ARGUMENTS, ROUTERS};
#[cfg(test)]
pub(crate) use {
    attention::ATTENTION, attention::INDICES, attention::PAIRS, behaviour::ACTIVATIONS, behaviour::BALANCE,
    behaviour::GATES, behaviour::PFAG, behaviour::ROUTE_PER, groups::GROUP_SETTINGS,
};

use std::collections::BTreeSet;

use syn::Path;
use tinyonn_spec::{AlwaysSpec, LevelSpec, MoeSpec};

use crate::errors::Errors;
use crate::parse::{Declaration, Subject};
use crate::variant::{GroupName, Variant};
use settings::Settings;
use spans::Spans;

/// The settings there are.
pub(crate) const SETTINGS: [&str; 19] = [
    "groups",
    "experts",
    "levels",
    "always",
    "always_by",
    "router",
    "top_k",
    "experts_are",
    "combine",
    "gate",
    "neurons",
    "attention",
    "route_per",
    "pfag",
    "balance",
    "z_loss",
    "jitter",
    "partition",
    "activation",
];

/// What is decided among what.
struct Hierarchy {
    levels: Vec<LevelSpec>,
    always: Vec<AlwaysSpec>,
    groups: Vec<GroupName>,
    /// The routers whose types are the user's.
    routers: Vec<Path>,
    spans: Spans,
}

/// Reads and checks everything; `None` if anything is wrong, all of which is then in `errors`.
pub(crate) fn read(declaration: &Declaration, errors: &mut Errors) -> Option<Variant> {
    let header = item::header(&declaration.item, errors);
    let settings = Settings::new(declaration.settings.iter(), "setting", &SETTINGS, &[], errors);
    let hierarchy = match &declaration.item {
        Subject::Enum(named) => groups::hierarchy(named, &settings, errors),
        _ => levels::hierarchy(&settings, errors),
    };
    let (spec, activation) = behaviour::behaviour(&settings, errors);
    // A hierarchy of which not even the depth is known is one expert, to which no rule objects.
    let Hierarchy { levels, always, groups, routers, spans } = hierarchy.unwrap_or_else(levels::stand_in);
    let name = header.as_ref().map_or(String::new(), |header| header.name.to_string());
    let spec = MoeSpec { name: name.into(), levels: levels.into(), always: always.into(), ..spec };
    // Runs share the router of their level: what is wrong with it is said once.
    let mut said = BTreeSet::new();
    for violation in spec.validate() {
        let span = spans.of(violation.at, &settings);
        if said.insert((format!("{span:?}"), violation.to_string())) {
            errors.at(span, violation);
        }
    }
    let item::Header { attrs, vis, name } = header?;
    errors.is_empty().then_some(Variant { attrs, vis, name, spec, groups, routers, activation })
}
