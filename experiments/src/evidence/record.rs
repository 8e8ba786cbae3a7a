//! What is kept of a cell: losses by document, so that any two cells can be compared in pairs. Answers to benchmarks lie beside it ([`super::CellAnswers`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tinyonn::data::TokenSet;
use tinyonn::train::Losses;

use super::Cell;

/// Losses on one kind of text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KindLosses {
    /// Its name.
    pub kind: String,
    /// Of each document Σ of its tokens' losses in nats, and how many there are.
    pub documents: Vec<(f64, f64)>,
}

impl KindLosses {
    /// By kind.
    pub(crate) fn of(set: &TokenSet, losses: &Losses) -> Vec<Self> {
        let of_kind = |(task, name): (usize, &str)| {
            let own = losses.by_document.iter().filter(|document| document.task == task && document.tokens > 0.0);
            Self { kind: name.to_owned(), documents: own.map(|document| (document.sum, document.tokens)).collect() }
        };
        set.tasks.iter().map(|task| task.name.as_str()).enumerate().map(of_kind).collect()
    }

    /// Nats a token.
    #[must_use]
    pub fn mean(&self) -> f64 {
        let (sum, tokens) = self.documents.iter().fold((0.0, 0.0), |(a, b), (sum, tokens)| (a + sum, b + tokens));
        sum / tokens
    }

    /// Its mean over kinds, each counted alike.
    #[must_use]
    pub fn mean_of(kinds: &[Self]) -> f64 {
        kinds.iter().map(Self::mean).sum::<f64>() / kinds.len() as f64
    }
}

/// What was found of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellRecord {
    /// Which.
    pub cell: Cell,
    /// SHA-256 of the sources of the library that made it.
    pub sources: String,
    /// SHA-256 of the text that it was calibrated on.
    pub corpus_sha256: String,
    /// The share of the MLPs' operations that held-out text takes; of an oracle and of shared choices, of the neurons.
    pub operations: f64,
    /// Tokens that choices were calibrated by.
    pub calibrated_on: usize,
    /// Tokens that layers were repaired on.
    pub repaired_on: usize,
    /// Numbers beside the weights.
    pub added: usize,
    /// Whether all active its logits are the dense model's, bit for bit; of a method that is no declared variant there is no such pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bit_equal: Option<bool>,
    /// The divergence that distillation came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distilled_to: Option<f64>,
    /// On the validation split, by kind.
    pub validation: Vec<KindLosses>,
    /// On the test split, of a finalist.
    pub test: Vec<KindLosses>,
    /// On kinds that nothing was calibrated on, of a finalist.
    pub unseen: Vec<KindLosses>,
    /// Wall-clock by stage.
    pub seconds: BTreeMap<String, f64>,
}
