//! What the page of the study must hold, known before anything is run.

use serde_json::json;

use super::bars::{Bar, Rival, bars, rivals};
use super::tables::{BARS, DISTANCES, FACTS, KINDS, RIVALS, TEXT};
use super::{AttentionConfig, Cell};
use crate::fragments::{ATTENTION, Declared, DeclaredTable};

impl AttentionConfig {
    /// The tables and rows that its grid asks for.
    #[must_use]
    pub fn declared(&self) -> Declared {
        let rows = || self.cells().iter().map(Cell::leading).collect::<Vec<_>>();
        let table = |heading: &str, rows| DeclaredTable { heading: heading.to_owned(), rows };
        // Where a model and its text lie is each machine's own.
        let settings = json!({
            "texts": self.texts, "shares": self.shares, "near": self.near, "first": self.first, "calibration_tokens": self.calibration_tokens,
        });
        let tables = vec![
            table(BARS, bars(self).iter().map(Bar::leading).collect()),
            table(RIVALS, rivals(self).iter().map(Rival::leading).collect()),
            table(TEXT, rows()),
            table(KINDS, rows()),
            table(FACTS, rows()),
            table(DISTANCES, rows()),
        ];
        Declared { study: ATTENTION.name.into(), seeds: vec![self.seed], settings, tables }
    }
}
