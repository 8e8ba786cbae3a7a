//! The user's item, documented: a unit struct, whatever declared it.

use proc_macro2::TokenStream;
use quote::quote;

use crate::variant::Variant;

pub(super) fn item(variant: &Variant) -> TokenStream {
    let Variant { attrs, vis, name, spec, .. } = variant;
    let (own_docs, attrs): (Vec<_>, Vec<_>) = attrs.iter().partition(|attr| attr.path().is_ident("doc"));
    let blank = (!own_docs.is_empty()).then(String::new);
    // Each line with the space that `///` would leave.
    let spaced = |line: String| if line.is_empty() { line } else { format!(" {line}") };
    let docs = blank.into_iter().chain(spec.describe().into_iter().map(spaced));
    quote! {
        #(#own_docs)*
        #(#[doc = #docs])*
        #(#attrs)*
        #vis struct #name;
    }
}
