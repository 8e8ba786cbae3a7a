//! Where each part of a declaration was written, for what the rules say of it.

use proc_macro2::Span;
use tinyonn_spec::{At, Part};

use super::settings::Settings;

/// Where the parts of a hierarchy were written.
pub(super) struct Spans {
    /// All of it.
    pub(super) hierarchy: Span,
    /// By level and run.
    pub(super) runs: Vec<Vec<Place>>,
    /// By group that always takes part.
    pub(super) always: Vec<Place>,
}

/// Where a run of routers, or a group that always takes part, was written.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) name: Span,
    pub(super) size: Span,
    pub(super) top_k: Span,
    pub(super) kind: Span,
}

impl Place {
    fn of(self, part: Part) -> Span {
        match part {
            Part::Name => self.name,
            Part::Size => self.size,
            Part::TopK => self.top_k,
            Part::Kind => self.kind,
        }
    }
}

impl Spans {
    /// Where the rules say that something is wrong.
    pub(super) fn of(&self, at: At, settings: &Settings<'_>) -> Span {
        let found = match at {
            At::Hierarchy => None,
            At::Run { level, run, part } => {
                self.runs.get(level).and_then(|runs| runs.get(run)).map(|place| place.of(part))
            }
            At::Always { group, part } => self.always.get(group).map(|place| place.of(part)),
            At::Setting(key) => settings.key(key).map(proc_macro2::Ident::span),
            At::Value(key) => settings.innermost(key),
            At::Argument(key, name) => settings.argument(key, name),
        };
        found.unwrap_or(self.hierarchy)
    }
}
