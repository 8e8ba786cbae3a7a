//! A run of routers, put together from what was read of it.

use proc_macro2::Span;
use quote::ToTokens;
use syn::spanned::Spanned;
use tinyonn_spec::RouterSpec;

use super::router::Router;
use super::settings::count;
use super::spans::Place;
use super::top_k;
use crate::errors::Errors;
use crate::parse::Value;

/// A number as it was written; `None` if it could not be read, which has been said.
#[derive(Clone, Copy)]
pub(super) struct Number {
    pub(super) value: Option<usize>,
    pub(super) span: Span,
}

impl Number {
    pub(super) fn read(key: &str, value: Option<&Value>, errors: &mut Errors) -> Self {
        let span = value.map_or_else(Span::call_site, |value| value.to_token_stream().span());
        Self { value: value.and_then(|value| count(key, value, errors)), span }
    }
}

/// Equal routers under neighbouring nodes, as they were read.
pub(super) struct Run<'a> {
    pub(super) name: String,
    /// Where the name stands.
    pub(super) named: Span,
    /// What the choices are called.
    pub(super) of: &'a str,
    pub(super) parents: usize,
    pub(super) size: Number,
    /// `None` if nothing is said of it.
    pub(super) top_k: Option<Number>,
    pub(super) router: &'a Router,
}

impl Run<'_> {
    /// The run, and where it stands. A number that could not be read stands for one that suits the others.
    pub(super) fn assemble(self, adaptive: bool) -> (RouterSpec, Place) {
        let (choices, top_k) = match (self.size.value, self.top_k.and_then(|top_k| top_k.value)) {
            (Some(choices), Some(top_k)) => (choices, top_k),
            (Some(choices), None) => (choices, top_k::default(self.of, choices, adaptive).max(1)),
            (None, top_k) => (top_k.unwrap_or(1).max(1), top_k.unwrap_or(1)),
        };
        let place = Place {
            name: self.named,
            size: self.size.span,
            top_k: self.top_k.map_or(self.named, |top_k| top_k.span),
            kind: self.router.span,
        };
        let kind = self.router.kind.clone();
        (RouterSpec { name: self.name.into(), parents: self.parents, choices, top_k, kind }, place)
    }
}
