//! Last step: a [`Variant`] to what a person would have written for it, an artefact a file.
//!
//! Every name is an absolute path, or imported in the block that uses it: whatever the user has in scope, it means the same.

pub(crate) mod group_names;
pub(crate) mod inherent;
mod item;
mod registry;
mod spec;

use proc_macro2::TokenStream;

use crate::variant::Variant;

/// The item, the names of its groups, its declaration with the constructor, and its registry entry.
pub(crate) fn expand(variant: &Variant) -> TokenStream {
    let Variant { vis, name, spec, groups, routers, .. } = variant;
    [
        item::item(variant),
        group_names::group_names(vis, name, groups, |group| spec.describe_group(group).unwrap_or_default()),
        inherent::inherent(vis, name, spec, routers),
        registry::entries(variant),
    ]
    .into_iter()
    .collect()
}
