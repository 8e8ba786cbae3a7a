//! What stands in for a variant that could not be written: code that names it, its `SPEC`, its layers or its groups brings no errors
//! besides the declaration's own. None of it can run, for the declaration does not compile.

use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens, format_ident, quote};
use syn::{Generics, ItemEnum, Visibility};

use crate::expand::inherent::inherent;
use crate::keywords::{Combine, ExpertsAre};
use crate::parse::{Named, Subject};
use crate::variant::{Balance, Behaviour, Pfag, RoutePer, Variant};

/// The item as it was, an enum as what it would have become, with stubs for the rest of what a declaration writes.
pub(crate) fn fallback(item: &Subject) -> TokenStream {
    match item {
        Subject::Struct(item) if is_plain(&item.generics) => {
            let stubs = inherent(&stand_in(&item.vis, &item.ident));
            quote!(#item #stubs)
        }
        Subject::Enum(Named { item, .. }) if is_plain(&item.generics) => {
            let ItemEnum { attrs, vis, ident, .. } = item;
            let (stubs, groups) = (inherent(&stand_in(vis, ident)), groups(item));
            quote!(#(#attrs)* #vis struct #ident; #stubs #groups)
        }
        Subject::Struct(item) => item.to_token_stream(),
        Subject::Enum(Named { item, .. }) => item.to_token_stream(),
        Subject::Other(item) => item.to_token_stream(),
        Subject::Unreadable(tokens) => tokens.clone(),
    }
}

fn is_plain(generics: &Generics) -> bool {
    generics.params.is_empty() && generics.where_clause.is_none()
}

/// The enum of the groups' names.
fn groups(item: &ItemEnum) -> TokenStream {
    let ItemEnum { vis, ident, variants, .. } = item;
    let groups = format_ident!("{ident}Group");
    let (names, count) = (variants.iter().map(|group| &group.ident).collect::<Vec<_>>(), variants.len());
    quote! {
        #[derive(
            ::core::clone::Clone,
            ::core::marker::Copy,
            ::core::fmt::Debug,
            ::core::cmp::PartialEq,
            ::core::cmp::Eq,
        )]
        #[allow(missing_docs, dead_code)]
        #vis enum #groups { #(#names),* }

        #[allow(missing_docs, dead_code)]
        impl #groups {
            #vis const ALL: [Self; #count] = [#(Self::#names),*];

            #vis const fn name(self) -> &'static ::core::primitive::str {
                ""
            }
        }
    }
}

/// A declaration of nothing, for a `SPEC` of the right type.
fn stand_in(vis: &Visibility, name: &Ident) -> Variant {
    Variant {
        attrs: Vec::new(),
        vis: vis.clone(),
        name: name.clone(),
        levels: Vec::new(),
        always: Vec::new(),
        groups: Vec::new(),
        behaviour: Behaviour {
            experts_are: ExpertsAre::Slice,
            combine: Combine::Concat,
            gate: None,
            partition: None,
            activation: None,
            route_per: RoutePer::Token,
            pfag: Pfag::Off,
            balance: Balance::None,
            z_loss: 0.0,
            jitter: 0.0,
        },
    }
}
