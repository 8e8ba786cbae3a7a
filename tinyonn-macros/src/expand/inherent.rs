//! The declaration as a constant, and the constructor of its layers.

use std::collections::BTreeSet;

use proc_macro2::{Ident, TokenStream};
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Path, Visibility};
use tinyonn_spec::MoeSpec;

use super::spec;
use crate::errors::source;

/// `routers` are those whose types are the user's.
pub(crate) fn inherent(vis: &Visibility, name: &Ident, spec: &MoeSpec, routers: &[Path]) -> TokenStream {
    let spec = spec::spec(spec);
    let mut named = BTreeSet::new();
    let own = routers.iter().map(|path| (source(path), path)).filter(|(name, _)| named.insert(name.clone()));
    let own = own.map(|(name, path)| {
        // A type that is no router is refused where the user named it.
        let new = quote_spanned!(path.span()=> ::tinyonn::moe::new_router::<#path>);
        quote!((#name, #new))
    });
    quote! {
        impl #name {
            /// The declaration.
            #vis const SPEC: ::tinyonn::moe::MoeSpec = #spec;

            /// Reads or initialises a layer from the parameters of its `mlp`.
            ///
            /// # Errors
            /// An MLP narrower than the number of experts; a missing or misshapen parameter.
            #vis fn layer(
                cfg: &::tinyonn::decoder::Arch,
                layer: ::core::primitive::usize,
                vb: ::tinyonn::candle_nn::VarBuilder<'_>,
            ) -> ::tinyonn::Result<::tinyonn::moe::MoeLayer> {
                ::tinyonn::moe::MoeLayer::new(Self::SPEC, &[#(#own),*], cfg, layer, &vb)
            }
        }
    }
}
