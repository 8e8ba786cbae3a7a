//! The enum that a declaration of named groups leaves: their names, for metrics and pictures.

use proc_macro2::{Ident, Literal, TokenStream};
use quote::{format_ident, quote};
use syn::Visibility;

use crate::variant::GroupName;

/// Nothing for a struct; `description` says what there is to say of a group.
pub(crate) fn group_names(
    vis: &Visibility,
    name: &Ident,
    groups: &[GroupName],
    description: impl Fn(&str) -> String,
) -> TokenStream {
    if groups.is_empty() {
        return TokenStream::new();
    }
    let enumeration = format_ident!("{name}Group");
    let docs = format!(" The groups of [`{name}`], in their order: those that routers choose from come first.");
    let all = Literal::usize_unsuffixed(groups.len());
    let idents: Vec<_> = groups.iter().map(|group| &group.ident).collect();
    let names = groups.iter().map(|group| &group.name);
    let variants = groups.iter().map(|GroupName { attrs, ident, name }| {
        let blank = attrs.iter().any(|attr| attr.path().is_ident("doc")).then(|| quote!(#[doc = ""]));
        let doc = format!(" {}", description(name));
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
