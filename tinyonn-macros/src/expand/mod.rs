//! Third pass: a [`Variant`] to what a person would have written for it, an artefact a file.
//!
//! Every name is an absolute path: whatever the user has in scope, it means the same.

mod group_names;
pub(crate) mod inherent;
mod item;
mod registry;
mod spec;

use proc_macro2::{Literal, TokenStream};

use crate::variant::Variant;

/// The item, the names of its groups, its declaration with the constructor, and its registry entry.
pub(crate) fn expand(variant: &Variant) -> TokenStream {
    [item::item(variant), group_names::group_names(variant), inherent::inherent(variant), registry::entries(variant)]
        .into_iter()
        .collect()
}

/// `10`, not `10usize`.
fn number(value: usize) -> Literal {
    Literal::usize_unsuffixed(value)
}

/// `0.5`, not `0.5f64`.
fn real(value: f64) -> Literal {
    Literal::f64_unsuffixed(value)
}
