//! The user's item, documented: a unit struct, whatever declared it.

use proc_macro2::TokenStream;
use quote::quote;

use crate::rustdoc;
use crate::variant::Variant;

pub(super) fn item(variant: &Variant) -> TokenStream {
    let Variant { attrs, vis, name, .. } = variant;
    let (own_docs, attrs): (Vec<_>, Vec<_>) = attrs.iter().partition(|attr| attr.path().is_ident("doc"));
    let blank = (!own_docs.is_empty()).then_some("");
    let docs = blank.map(str::to_owned).into_iter().chain(rustdoc::of(variant));
    quote! {
        #(#own_docs)*
        #(#[doc = #docs])*
        #(#attrs)*
        #vis struct #name;
    }
}
