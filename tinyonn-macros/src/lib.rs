//! `#[moe(..)]`: a mixture of experts declared in a few lines.
//!
//! Four steps: `parse` finds settings, `read` makes a [`tinyonn_spec::MoeSpec`] of them and keeps where each part stands, the rules of
//! `tinyonn_spec` are asked, `expand` writes it out. All that is wrong is reported at once, each error on its own span with its
//! remedy; `fallback` then stands in, so that what uses the variant brings no errors of its own.

mod errors;
mod expand;
mod fallback;
mod parse;
mod read;
#[cfg(test)]
mod tests;
mod variant;

use std::panic::{AssertUnwindSafe, catch_unwind};

use proc_macro2::{Span, TokenStream};

use errors::Errors;

/// A mixture of experts, registered under the name of its type: a hierarchy on a unit struct, or named groups of their own sizes
/// on an enum.
///
#[doc = include_str!("../grammar.md")]
#[proc_macro_attribute]
pub fn moe(settings: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    declare(settings.into(), item.into()).into()
}

/// The expansion; or else what stands in for it, and every error.
fn declare(settings: TokenStream, item: TokenStream) -> TokenStream {
    let mut errors = Errors::default();
    let steps = AssertUnwindSafe(|| {
        let declaration = parse::parse(settings, item.clone(), &mut errors);
        match read::read(&declaration, &mut errors) {
            Some(variant) => expand::expand(&variant),
            None => fallback::fallback(&declaration.item),
        }
    });
    let expansion = catch_unwind(steps).unwrap_or_else(|_| {
        errors.at(Span::call_site(), "`#[moe]` failed on this declaration; that is a bug of tinyonn: report it");
        item
    });
    [expansion, errors.to_compile_errors()].into_iter().collect()
}
