//! A declaration as it was read: what the library knows of it, and what only the macro needs.

use heck::ToSnakeCase as _;
use proc_macro2::Ident;
use syn::ext::IdentExt as _;
use syn::{Attribute, Path, Visibility};
use tinyonn_spec::MoeSpec;

/// A mixture of experts.
pub(crate) struct Variant {
    /// The user's documentation and other attributes.
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) name: Ident,
    pub(crate) spec: MoeSpec,
    /// The variants of the enum that declared the groups; none on a struct.
    pub(crate) groups: Vec<GroupName>,
    /// The routers whose types are the user's.
    pub(crate) routers: Vec<Path>,
    /// The activation, if its type is the user's.
    pub(crate) activation: Option<Path>,
}

/// A variant of the enum that names the groups.
pub(crate) struct GroupName {
    /// The user's documentation and other attributes.
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) ident: Ident,
    pub(crate) name: String,
}

/// `WrittenWords` to `written_words`.
pub(crate) fn snake_case(ident: &Ident) -> String {
    ident.unraw().to_string().to_snake_case()
}
