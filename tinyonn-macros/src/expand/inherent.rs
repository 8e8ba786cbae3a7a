//! The declaration as a constant, and the constructor of its layers.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;

use super::spec::spec;
use crate::errors::source;
use crate::variant::{Router, Variant};

pub(crate) fn inherent(variant: &Variant) -> TokenStream {
    let Variant { vis, name, .. } = variant;
    let (spec, own) = (spec(variant), own_routers(variant));
    quote! {
        impl #name {
            /// The declaration.
            #vis const SPEC: ::tinyonn::moe::MoeSpec = #spec;

            /// Reads or initialises a layer from the parameters of its `mlp`.
            ///
            /// # Errors
            /// An MLP narrower than the number of experts; a missing or misshapen parameter.
            #vis fn layer(
                cfg: &::tinyonn::qwen3::Qwen3Config,
                layer: ::core::primitive::usize,
                vb: ::tinyonn::candle_nn::VarBuilder<'_>,
            ) -> ::tinyonn::Result<::tinyonn::moe::MoeLayer> {
                ::tinyonn::moe::MoeLayer::new(Self::SPEC, &[#(#own),*], cfg, layer, &vb)
            }
        }
    }
}

/// The constructors of the user's types, each once. A type that is no router is refused where the user named it.
fn own_routers(variant: &Variant) -> Vec<TokenStream> {
    let mut named = Vec::new();
    let runs = variant.levels.iter().flat_map(|level| &level.runs);
    let own = runs.filter_map(|run| if let Router::Custom(path) = &run.router { Some(path) } else { None });
    own.filter_map(|path| {
        let name = source(path);
        let new = quote_spanned!(path.span()=> ::tinyonn::moe::new_router::<#path>);
        let is_new = !named.contains(&name);
        named.push(name.clone());
        is_new.then(|| quote!((#name, #new)))
    })
    .collect()
}
