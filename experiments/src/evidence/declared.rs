//! What the page of the study must hold, known before anything is run.

use serde_json::json;

use super::bars::bars;
use super::tables::{BARS, CELLS, FINALS, KINDS, TASKS};
use super::{Cell, EvidenceConfig};
use crate::fragments::{Declared, DeclaredTable, EVIDENCE};

impl EvidenceConfig {
    /// The tables and rows that its grid asks for.
    #[must_use]
    pub fn declared(&self) -> Declared {
        let cells = self.cells();
        let table = |heading: &str, rows| DeclaredTable { heading: heading.to_owned(), rows };
        let finals = || cells.iter().filter(|cell| self.is_final(cell)).map(Cell::leading).collect::<Vec<_>>();
        // Where a model and its text lie is each machine's own.
        let settings = json!({
            "length": self.length, "calibration_tokens": self.calibration_tokens, "share_tokens": self.share_tokens,
            "validation_tokens": self.validation_tokens, "test_tokens": self.test_tokens, "tasks": self.tasks, "items": self.items, "distil": self.distil,
        });
        let tables = vec![
            table(BARS, bars().iter().map(super::bars::Bar::leading).collect()),
            table(FINALS, finals()),
            table(KINDS, finals()),
            table(TASKS, finals()),
            table(CELLS, cells.iter().map(Cell::leading).collect()),
        ];
        let seeds = std::iter::once(self.seed).chain(self.seeds.iter().copied()).collect();
        Declared { study: EVIDENCE.name.into(), seeds, settings, tables }
    }
}
