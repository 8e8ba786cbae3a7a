//! A run of routers, put together from what was read of it, and what holds by default.

use proc_macro2::Span;
use tinyonn_spec::RouterSpec;

use super::router::Router;
use super::settings::Number;
use super::spans::Place;

/// What choices are called, counted from the experts.
pub(super) const NAMES: [&str; 4] = ["division", "cluster", "group", "expert"];
/// Experts of each router taken unless said otherwise, capped at what there is.
pub(super) const EXPERTS: usize = 2;

/// Names of the levels of a hierarchy of that depth, from the root; none of a depth that cannot be.
pub(super) fn names(depth: usize) -> &'static [&'static str] {
    NAMES.len().checked_sub(depth).map_or(&[], |first| &NAMES[first..])
}

/// What a router over choices called `name` takes: all of them where their number is decided by the input.
pub(super) fn default(name: &str, choices: usize, adaptive: bool) -> usize {
    match (adaptive, name == NAMES[3]) {
        (true, _) => choices,
        (false, true) => EXPERTS.min(choices),
        (false, false) => 1,
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
            (Some(choices), None) => (choices, default(self.of, choices, adaptive).max(1)),
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
