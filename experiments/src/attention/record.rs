//! What is kept of a cell: losses by document and answers by fact, so that any two cells can be compared in pairs.

use serde::{Deserialize, Serialize};

use super::Cell;
use crate::evidence::KindLosses;

/// A fact that was asked again.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// Tokens from where it was told to where it was asked.
    pub distance: usize,
    /// Nats of all its digits, each given those before it.
    pub nats: f64,
    /// Whether each digit was the most probable: the answer that would have been written.
    pub right: bool,
}

/// What was found of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionRecord {
    /// Which.
    pub cell: Cell,
    /// SHA-256 of the sources of the library that made it.
    pub sources: String,
    /// SHA-256 of what was read.
    pub material_sha256: String,
    /// By kind, past a quarter of each document.
    pub text: Vec<KindLosses>,
    /// By text.
    pub facts: Vec<Vec<Asked>>,
    /// Pairs that were computed, of all causal ones past the prefill of documents, mean over query heads and layers.
    pub kept: f64,
    /// Rows of a cache that some head of a key head read, likewise.
    pub read: f64,
    /// Bytes of a dense cache that index and rows read.
    pub bytes: f64,
    /// Wall-clock.
    pub seconds: f64,
}
