//! The records of a study, and what is said of a cell beside the dense model.

use tinyonn::Result;
use tinyonn::metrics::Interval;
use tinyonn::moe::Prefill;

use super::{Asked, AttentionConfig, AttentionRecord, AttentionStore, Cell, Method};
use crate::evidence::{KindLosses, rise};

/// All cells of a study with what was found of those that were made.
#[derive(Clone, Debug)]
pub struct AttentionOutcome {
    /// In their order.
    pub cells: Vec<(Cell, Option<AttentionRecord>)>,
    seed: u64,
}

impl AttentionOutcome {
    /// Reads what is there.
    ///
    /// # Errors
    /// A record that cannot be read.
    pub fn read(config: &AttentionConfig) -> Result<Self> {
        let store = AttentionStore::new(&config.out);
        let of = |cell: Cell| Ok((cell, store.record(&cell)?));
        Ok(Self { cells: config.cells().into_iter().map(of).collect::<Result<_>>()?, seed: config.seed })
    }

    /// Cells that were not made.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        self.cells.iter().filter(|(_, record)| record.is_none()).map(|(cell, _)| cell.id()).collect()
    }

    /// The sources of the library that made cells, and how many each.
    #[must_use]
    pub fn sources(&self) -> Vec<(String, usize)> {
        let mut found: Vec<(String, usize)> = Vec::new();
        for record in self.made() {
            match found.iter_mut().find(|(sources, _)| *sources == record.sources) {
                Some((_, count)) => *count += 1,
                None => found.push((record.sources.clone(), 1)),
            }
        }
        found
    }

    /// Those that were.
    pub(super) fn made(&self) -> impl Iterator<Item = &AttentionRecord> {
        self.cells.iter().filter_map(|(_, record)| record.as_ref())
    }

    /// What was found of `cell`.
    pub(super) fn of(&self, cell: &Cell) -> Option<&AttentionRecord> {
        self.cells.iter().find(|(own, _)| own == cell)?.1.as_ref()
    }

    /// The dense model at the length of `cell`.
    pub(super) fn dense(&self, cell: &Cell) -> Option<&AttentionRecord> {
        self.of(&Cell { method: Method::Dense, share: 1.0, prefill: Prefill::Sparse, length: cell.length })
    }

    /// Loss past a quarter of a document above that of another, mean over kinds.
    pub(super) fn text_above(&self, own: &AttentionRecord, other: &AttentionRecord) -> Option<Interval> {
        rise(&own.text, &other.text, self.seed)
    }

    /// Nats a digit above those of another; texts are drawn whole.
    pub(super) fn facts_above(&self, own: &AttentionRecord, other: &AttentionRecord) -> Option<Interval> {
        rise(&[digits(own)], &[digits(other)], self.seed)
    }

    /// Loss above the dense model's.
    pub(super) fn text_rise(&self, own: &AttentionRecord) -> Option<Interval> {
        self.text_above(own, self.dense(&own.cell)?)
    }

    /// The same of one kind.
    pub(super) fn kind_rise(&self, own: &AttentionRecord, kind: &str) -> Option<Interval> {
        let of = |record: &AttentionRecord| record.text.iter().find(|own| own.kind == kind).cloned();
        rise(&[of(own)?], &[of(self.dense(&own.cell)?)?], self.seed)
    }

    /// Nats a digit above the dense model's.
    pub(super) fn facts_rise(&self, own: &AttentionRecord) -> Option<Interval> {
        self.facts_above(own, self.dense(&own.cell)?)
    }
}

/// Nats a digit, of five.
fn by_digit(nats: f64) -> f64 {
    nats / 5.0
}

/// The facts of a cell, nats a digit, as a kind of text.
fn digits(record: &AttentionRecord) -> KindLosses {
    let of_text = |asked: &Vec<Asked>| {
        let nats = asked.iter().map(|asked| by_digit(asked.nats)).sum();
        (nats, asked.len() as f64)
    };
    KindLosses { kind: "facts".into(), documents: record.facts.iter().map(of_text).collect() }
}

/// Nats a digit of the facts that were told so far before, and how many of them were answered right.
pub(super) fn at_distance(record: &AttentionRecord, from: usize, to: usize) -> Option<(f64, f64)> {
    let asked = record.facts.iter().flatten().filter(|asked| (from..to).contains(&asked.distance));
    let (mut nats, mut right, mut count) = (0.0, 0.0, 0.0);
    for asked in asked {
        nats += by_digit(asked.nats);
        right += f64::from(u8::from(asked.right));
        count += 1.0;
    }
    (count > 0.0).then(|| (nats / count, right / count))
}
