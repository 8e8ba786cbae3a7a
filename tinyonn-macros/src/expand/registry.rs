//! The registry's entries: the variant by its name, and an activation of the user's by its own.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;

use crate::variant::Variant;

pub(super) fn entries(variant: &Variant) -> TokenStream {
    let name = &variant.name;
    let activation = variant.activation.as_ref().map(|path| {
        // A type that is no activation is refused where the user named it.
        let borrowed = quote_spanned!(path.span()=> &#path);
        quote! {
            ::tinyonn::inventory::submit! {
                ::tinyonn::ops::ActivationEntry(#borrowed)
            }
        }
    });
    quote! {
        ::tinyonn::inventory::submit! {
            ::tinyonn::moe::Variant {
                spec: #name::SPEC,
                module_path: ::core::module_path!(),
                build: #name::layer,
            }
        }

        #activation
    }
}
