//! What stands in for a module that could not be written: code that names the variant, its `SPEC`, its constructor, its traits or
//! its groups brings no errors besides the declaration's own. None of it can run, for the declaration does not compile.

use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens, format_ident, quote};
use syn::{Attribute, Generics, ItemEnum, Visibility};

use crate::expand::{derives_debug, spec};
use crate::keywords::{Combine, ExpertsAre};
use crate::parse::{Named, Subject};
use crate::variant::{Balance, Behaviour, Pfag, RoutePer, Variant};

/// The item as it was, an enum as what it would have become, with stubs for the rest of what a declaration writes.
pub(crate) fn fallback(item: &Subject) -> TokenStream {
    match item {
        Subject::Struct(item) if is_plain(&item.generics) => {
            let stubs = stubs(&item.attrs, &item.vis, &item.ident);
            quote!(#item #stubs)
        }
        Subject::Enum(Named { item, .. }) if is_plain(&item.generics) => {
            let ItemEnum { attrs, vis, ident, .. } = item;
            let (stubs, groups) = (stubs(attrs, vis, ident), groups(item));
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

/// What the module would have had.
fn stubs(attrs: &[Attribute], vis: &Visibility, name: &Ident) -> TokenStream {
    let spec = spec::spec(&stand_in(vis, name));
    let debug = (!derives_debug(attrs.iter())).then(|| {
        quote! {
            impl ::core::fmt::Debug for #name {
                fn fmt(&self, _: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                    ::core::unreachable!("what was refused does not compile")
                }
            }
        }
    });
    quote! {
        #[allow(missing_docs, dead_code)]
        impl #name {
            #vis const SPEC: ::tinyonn::moe::MoeSpec = #spec;

            #vis fn new(
                _: &::tinyonn::qwen3::Qwen3Config,
                _: ::core::primitive::usize,
                _: &::tinyonn::candle_nn::VarBuilder<'_>,
            ) -> ::tinyonn::Result<Self> {
                ::core::unreachable!("what was refused does not compile")
            }
        }

        #debug

        impl ::tinyonn::qwen3::FeedForward for #name {
            fn forward(
                &self,
                _: &::tinyonn::candle_core::Tensor,
                _: &::tinyonn::qwen3::RouteCtx,
            ) -> ::tinyonn::Result<::tinyonn::candle_core::Tensor> {
                ::core::unreachable!("what was refused does not compile")
            }
        }

        impl ::tinyonn::moe::MoeModule for #name {
            fn spec(&self) -> &::tinyonn::moe::MoeSpec {
                ::core::unreachable!("what was refused does not compile")
            }

            fn experts(&self) -> &::tinyonn::moe::TinyOnnExpert {
                ::core::unreachable!("what was refused does not compile")
            }

            fn routers(&self) -> ::std::vec::Vec<::std::vec::Vec<&dyn ::tinyonn::moe::Router>> {
                ::core::unreachable!("what was refused does not compile")
            }
        }
    }
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
