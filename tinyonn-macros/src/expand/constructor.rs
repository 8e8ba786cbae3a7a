//! The declaration as a constant, and the constructor.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;

use super::spec::{gaussian, spec};
use super::{field, number, router_type, runs};
use crate::variant::{Router, Run, Variant};

pub(super) fn inherent(variant: &Variant) -> TokenStream {
    let Variant { vis, name, .. } = variant;
    let spec = spec(variant);
    let routers = runs(variant).map(|run| {
        let (field, router) = (field(run), new_router(run));
        quote!(#field: #router)
    });
    quote! {
        impl #name {
            /// The declaration.
            #vis const SPEC: ::tinyonn::moe::MoeSpec = #spec;

            /// Reads or initialises layer `layer` from the parameters of its `mlp`: the routers under their fields' names,
            /// the experts under the names of the dense MLP.
            ///
            /// # Errors
            /// An MLP narrower than the number of experts; a missing or misshapen parameter.
            #vis fn new(
                cfg: &::tinyonn::qwen3::Qwen3Config,
                layer: ::core::primitive::usize,
                vb: &::tinyonn::candle_nn::VarBuilder<'_>,
            ) -> ::tinyonn::Result<Self> {
                ::core::result::Result::Ok(Self {
                    #(#routers,)*
                    experts: ::tinyonn::moe::TinyOnnExpert::new(&Self::SPEC, cfg, layer, vb)?,
                })
            }
        }
    }
}

fn new_router(run: &Run) -> TokenStream {
    let Run { parents, choices, router, .. } = run;
    let (parents, choices) = (number(*parents), number(*choices));
    let kind = router_type(router);
    let prefix = field(run).to_string();
    let shape = quote! {
        ::tinyonn::moe::RouterShape { hidden: cfg.hidden_size, parents: #parents, choices: #choices }
    };
    match router {
        Router::Gaussian(form) => {
            let form = gaussian(form);
            quote!(#kind::with_form(#shape, &#form, &vb.pp(#prefix))?)
        }
        // A type that is no router is refused where the user named it.
        Router::Custom(path) => {
            let new = quote_spanned!(path.span()=> <#kind as ::tinyonn::moe::Router>::new);
            quote!(#new(#shape, &vb.pp(#prefix))?)
        }
        _ => quote!(<#kind as ::tinyonn::moe::Router>::new(#shape, &vb.pp(#prefix))?),
    }
}
