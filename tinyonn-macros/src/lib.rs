//! `#[moe(..)]`: a mixture of experts declared in a line, expanded to the candle module a person would have written.
//!
//! Three passes: `parse` reads settings, `validate` checks grammar and arithmetic, `expand` writes the module. All that is
//! wrong is reported at once, each error on its own span with its remedy.

mod errors;
mod expand;
mod parse;
mod rustdoc;
#[cfg(test)]
mod tests;
mod validate;

use std::panic::{AssertUnwindSafe, catch_unwind};

use proc_macro2::{Span, TokenStream};

use errors::Errors;

/// On a unit struct: a mixture of experts, registered under the struct's name.
///
#[doc = include_str!("../grammar.md")]
#[proc_macro_attribute]
pub fn moe(settings: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    declare(settings.into(), item.into()).into()
}

/// The expansion; or else the item as it was, and every error.
fn declare(settings: TokenStream, item: TokenStream) -> TokenStream {
    let mut errors = Errors::default();
    let passes = AssertUnwindSafe(|| {
        let declaration = parse::parse(settings, item.clone(), &mut errors);
        validate::validate(declaration, &mut errors).map(|variant| expand::expand(&variant))
    });
    match catch_unwind(passes) {
        Ok(Some(expansion)) => expansion,
        Ok(None) => [item, errors.to_compile_errors()].into_iter().collect(),
        Err(_) => {
            errors.at(Span::call_site(), "`#[moe]` failed on this declaration; that is a bug of tinyonn: report it");
            [item, errors.to_compile_errors()].into_iter().collect()
        }
    }
}
