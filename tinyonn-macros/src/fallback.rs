//! What stands in for a variant that was refused: code that names it, its `SPEC`, its layers or its groups brings no errors besides the
//! declaration's own. None of it can run, for the declaration does not compile.

use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens, quote};
use syn::{Generics, ItemEnum, Visibility};
use tinyonn_spec::MoeSpec;

use crate::expand::{group_names::group_names, inherent::inherent};
use crate::parse::{Named, Subject};
use crate::variant::{GroupName, snake_case};

/// The item as it was, an enum as what it would have become, with the rest of what a declaration leaves.
pub(crate) fn fallback(item: &Subject) -> TokenStream {
    match item {
        Subject::Struct(item) if is_plain(&item.generics) => {
            let stand_in = stand_in(&item.vis, &item.ident, &[]);
            quote!(#item #stand_in)
        }
        Subject::Enum(Named { item, .. }) if is_plain(&item.generics) => {
            let ItemEnum { attrs, vis, ident, variants, .. } = item;
            let group = |group: &syn::Variant| GroupName {
                // What is wrong with its attributes has been said.
                attrs: group.attrs.iter().filter(|attr| attr.path().is_ident("doc")).cloned().collect(),
                ident: group.ident.clone(),
                name: snake_case(&group.ident),
            };
            let stand_in = stand_in(vis, ident, &variants.iter().map(group).collect::<Vec<_>>());
            quote!(#(#attrs)* #vis struct #ident; #stand_in)
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

/// A declaration of nothing, and the groups.
fn stand_in(vis: &Visibility, name: &Ident, groups: &[GroupName]) -> TokenStream {
    let spec = MoeSpec { name: name.to_string().into(), ..MoeSpec::PLAIN };
    let (groups, inherent) = (group_names(vis, name, groups, str::to_owned), inherent(vis, name, &spec, &[]));
    quote!(#groups #[allow(dead_code)] #inherent)
}
