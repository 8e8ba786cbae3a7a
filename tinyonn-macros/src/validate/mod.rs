//! Second pass: a [`Declaration`] to a [`Variant`]. All grammar beyond the shape of a setting, and all arithmetic, is here.

mod behaviour;
mod groups;
mod item;
mod levels;
mod router;
mod settings;
mod top_k;

#[cfg(test)]
pub(crate) use router::{GAUSSIAN_ARGUMENTS, ROUTERS};
#[cfg(test)]
pub(crate) use {
    behaviour::ACTIVATIONS, behaviour::BALANCE, behaviour::PFAG, behaviour::ROUTE_PER, groups::GROUP_SETTINGS,
};

use crate::errors::Errors;
use crate::parse::{Declaration, Subject};
use crate::variant::{Always, GroupName, Level, Variant};
use settings::Settings;

/// The settings there are.
pub(crate) const SETTINGS: [&str; 16] = [
    "groups",
    "experts",
    "levels",
    "always",
    "router",
    "top_k",
    "experts_are",
    "combine",
    "gate",
    "route_per",
    "pfag",
    "balance",
    "z_loss",
    "jitter",
    "partition",
    "activation",
];
/// No MLP is wider, and no other number is sensibly larger.
const MOST: usize = 1 << 24;

/// What is decided among what.
struct Hierarchy {
    levels: Vec<Level>,
    always: Vec<Always>,
    groups: Vec<GroupName>,
}

/// Checks everything; `None` if anything is wrong, all of which is then in `errors`.
pub(crate) fn validate(declaration: &Declaration, errors: &mut Errors) -> Option<Variant> {
    let header = item::header(&declaration.item, errors);
    let settings = Settings::new(declaration.settings.iter(), "setting", &SETTINGS, &[], errors);
    let (hierarchy, behaviour) = if let Subject::Enum(named) = &declaration.item {
        (groups::hierarchy(named, &settings, errors), behaviour::behaviour(&settings, &groups::always(named), errors))
    } else {
        let always: Vec<_> = settings.key("always").into_iter().collect();
        (levels::hierarchy(&settings, errors), behaviour::behaviour(&settings, &always, errors))
    };
    let (header, Hierarchy { levels, always, groups }, behaviour) = (header?, hierarchy?, behaviour?);
    let item::Header { attrs, vis, name } = header;
    errors.is_empty().then_some(Variant { attrs, vis, name, levels, always, groups, behaviour })
}
