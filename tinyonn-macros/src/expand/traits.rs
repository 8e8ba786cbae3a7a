//! What a mixture of experts does for the model, and tells the rest of the library.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;

use super::field;
use crate::variant::{Pfag, Router, Run, Variant};

/// Route, gate, combine.
pub(super) fn feed_forward(variant: &Variant) -> TokenStream {
    let name = &variant.name;
    let reads_surprisal = matches!(variant.behaviour.pfag, Pfag::Surprisal).then(|| {
        quote! {
            fn reads_surprisal(&self) -> bool {
                true
            }
        }
    });
    quote! {
        impl ::tinyonn::qwen3::FeedForward for #name {
            fn forward(
                &self,
                x: &::tinyonn::candle_core::Tensor,
                ctx: &::tinyonn::qwen3::RouteCtx,
            ) -> ::tinyonn::Result<::tinyonn::candle_core::Tensor> {
                let routing = ::tinyonn::moe::route(self, x, ctx)?;
                self.experts.forward(x, &routing, ctx)
            }

            #reads_surprisal
        }
    }
}

pub(super) fn moe_module(variant: &Variant) -> TokenStream {
    let Variant { name, levels, .. } = variant;
    let levels = levels.iter().map(|level| {
        let routers = level.runs.iter().map(borrowed);
        quote!(::std::vec![#(#routers),*])
    });
    quote! {
        impl ::tinyonn::moe::MoeModule for #name {
            fn spec(&self) -> &::tinyonn::moe::MoeSpec {
                static SPEC: ::tinyonn::moe::MoeSpec = #name::SPEC;
                &SPEC
            }

            fn experts(&self) -> &::tinyonn::moe::TinyOnnExpert {
                &self.experts
            }

            fn routers(&self) -> ::std::vec::Vec<::std::vec::Vec<&dyn ::tinyonn::moe::Router>> {
                ::std::vec![#(#levels),*]
            }
        }
    }
}

/// A type that is no router is refused where the user named it.
fn borrowed(run: &Run) -> TokenStream {
    let mut field = field(run);
    if let Router::Custom(path) = &run.router {
        let named = Span::call_site().located_at(path.span());
        field.set_span(named);
        quote_spanned!(named=> &self.#field)
    } else {
        quote!(&self.#field)
    }
}
