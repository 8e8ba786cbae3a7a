//! The struct: a field for each run of routers, and the experts.

use proc_macro2::TokenStream;
use quote::quote;
use syn::punctuated::Punctuated;
use syn::{Attribute, Path, Token};

use super::{field, router_type, runs};
use crate::rustdoc;
use crate::variant::Variant;

pub(super) fn module(variant: &Variant) -> TokenStream {
    let Variant { attrs, vis, name, .. } = variant;
    let (own_docs, attrs): (Vec<_>, Vec<_>) = attrs.iter().partition(|attr| attr.path().is_ident("doc"));
    let blank = (!own_docs.is_empty()).then_some("");
    let docs = blank.map(str::to_owned).into_iter().chain(rustdoc::of(variant));
    let debug = (!derives_debug(attrs.iter().copied())).then(|| quote!(#[derive(::core::fmt::Debug)]));
    let fields = runs(variant).map(|run| {
        let (field, kind) = (field(run), router_type(&run.router));
        quote!(#field: #kind)
    });
    quote! {
        #(#own_docs)*
        #(#[doc = #docs])*
        #(#attrs)*
        #debug
        #vis struct #name {
            #(#fields,)*
            experts: ::tinyonn::moe::TinyOnnExpert,
        }
    }
}

/// Whether the user derives `Debug` already.
pub(crate) fn derives_debug<'a>(mut attrs: impl Iterator<Item = &'a Attribute>) -> bool {
    attrs.any(|attr| {
        let derived = || attr.parse_args_with(Punctuated::<Path, Token![,]>::parse_terminated).ok();
        attr.path().is_ident("derive")
            && derived().is_some_and(|paths| {
                paths.iter().filter_map(|path| path.segments.last()).any(|last| last.ident == "Debug")
            })
    })
}
