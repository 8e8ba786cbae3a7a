//! Third pass: a [`Variant`] to the module that a person would have written for it, an artefact a file.
//!
//! Every name is an absolute path: whatever the user has in scope, it means the same.

mod constructor;
mod group_names;
mod module;
mod registry;
pub(crate) mod spec;
mod traits;

pub(crate) use module::derives_debug;

use proc_macro2::{Ident, Literal, TokenStream};
use quote::{ToTokens, format_ident, quote};

use crate::variant::{Router, Run, Variant};

/// The module, the names of its groups, its implementations and its registry entry.
pub(crate) fn expand(variant: &Variant) -> TokenStream {
    [
        module::module(variant),
        group_names::group_names(variant),
        constructor::inherent(variant),
        traits::feed_forward(variant),
        traits::moe_module(variant),
        registry::entries(variant),
    ]
    .into_iter()
    .collect()
}

/// The runs of routers, each a field.
fn runs(variant: &Variant) -> impl Iterator<Item = &Run> {
    variant.levels.iter().flat_map(|level| &level.runs)
}

/// The field of a run of routers, which also names their parameters in a checkpoint.
fn field(run: &Run) -> Ident {
    format_ident!("{}_router", run.name)
}

/// The type of that field.
fn router_type(router: &Router) -> TokenStream {
    match router {
        Router::Gaussian(_) => quote!(::tinyonn::moe::GaussianMoeRouter),
        Router::Linear => quote!(::tinyonn::moe::LinearRouter),
        Router::Cosine => quote!(::tinyonn::moe::CosineRouter),
        Router::Random => quote!(::tinyonn::moe::RandomRouter),
        Router::Custom(path) => path.to_token_stream(),
    }
}

/// `10`, not `10usize`.
fn number(value: usize) -> Literal {
    Literal::usize_unsuffixed(value)
}

/// `0.5`, not `0.5f64`.
fn real(value: f64) -> Literal {
    Literal::f64_unsuffixed(value)
}
