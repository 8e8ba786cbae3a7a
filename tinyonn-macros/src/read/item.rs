//! The item under the attribute: a struct without fields, or an enum of groups.

use syn::{Attribute, Fields, Generics, Ident, Visibility};

use crate::errors::Errors;
use crate::parse::Subject;

/// What the module takes over from the item.
pub(super) struct Header {
    pub(super) attrs: Vec<Attribute>,
    pub(super) vis: Visibility,
    pub(super) name: Ident,
}

/// Checks all but the variants of an enum, which are groups.
pub(super) fn header(item: &Subject, errors: &mut Errors) -> Option<Header> {
    let (attrs, vis, name) = match item {
        Subject::Struct(item) => {
            if !matches!(item.fields, Fields::Unit) {
                errors.on(&item.fields, format!("a declaration has no fields; write `struct {};`", item.ident));
            }
            without_parameters(&item.generics, &format!("struct {};", item.ident), errors);
            (&item.attrs, &item.vis, &item.ident)
        }
        Subject::Enum(named) => {
            let item = &named.item;
            without_parameters(&item.generics, &format!("enum {} {{ .. }}", item.ident), errors);
            (&item.attrs, &item.vis, &item.ident)
        }
        Subject::Other(item) => {
            errors.on(
                item,
                "`#[moe]` declares a variant on a unit struct or an enum of groups; write `pub struct Name;` below it",
            );
            return None;
        }
        Subject::Unreadable(_) => return None,
    };
    Some(Header { attrs: attrs.clone(), vis: vis.clone(), name: name.clone() })
}

fn without_parameters(generics: &Generics, instead: &str, errors: &mut Errors) {
    if !generics.params.is_empty() {
        errors.on(generics, format!("a variant is one type, without parameters; write `{instead}`"));
    }
    if let Some(clause) = &generics.where_clause {
        errors.on(clause, format!("a variant is one type, without bounds; write `{instead}`"));
    }
}
