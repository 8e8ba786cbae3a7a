//! The enum that a declaration of named groups leaves: their names, for metrics and pictures.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};

use super::number;
use crate::rustdoc;
use crate::variant::{GroupName, Variant};

/// Nothing for a struct.
pub(super) fn group_names(variant: &Variant) -> TokenStream {
    let Variant { vis, name, groups, .. } = variant;
    if groups.is_empty() {
        return TokenStream::new();
    }
    let enumeration = format_ident!("{name}Group");
    let docs = format!(" The groups of [`{name}`], in their order: those that routers choose from come first.");
    let all = number(groups.len());
    let idents: Vec<_> = groups.iter().map(|group| &group.ident).collect();
    let names = groups.iter().map(|group| &group.name);
    let variants = groups.iter().map(|group| {
        let GroupName { attrs, ident, name } = group;
        let blank = attrs.iter().any(|attr| attr.path().is_ident("doc")).then(|| quote!(#[doc = ""]));
        let doc = rustdoc::of_group(variant, name);
        quote!(#(#attrs)* #blank #[doc = #doc] #ident)
    });
    quote! {
        #[doc = #docs]
        #[derive(
            ::core::clone::Clone,
            ::core::marker::Copy,
            ::core::fmt::Debug,
            ::core::cmp::PartialEq,
            ::core::cmp::Eq,
        )]
        #[allow(dead_code)]
        #vis enum #enumeration {
            #(#variants,)*
        }

        #[allow(dead_code)]
        impl #enumeration {
            /// Every group.
            #vis const ALL: [Self; #all] = [#(Self::#idents),*];

            /// The name of the group in metrics, pictures and checkpoints.
            #[must_use]
            #vis const fn name(self) -> &'static ::core::primitive::str {
                match self {
                    #(Self::#idents => #names,)*
                }
            }
        }
    }
}
