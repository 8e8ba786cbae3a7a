//! A cell of the study: a method at a share, at a length, behind a prefill.

use serde::{Deserialize, Serialize};
use tinyonn::moe::Prefill;

use super::Method;

/// A cell.
///
/// ```
/// use experiments::attention::{Cell, Method};
/// use tinyonn::moe::Prefill;
///
/// let cell = Cell { method: Method::BlockMeans { size: 16 }, share: 0.125, prefill: Prefill::Sparse, length: 4096 };
/// assert_eq!(cell.id(), "block_means_16-12.5-sparse-4096");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// How keys are chosen.
    pub method: Method,
    /// The share of the keys that a query keeps.
    pub share: f64,
    /// Whether positions before the first that counts choose as well.
    pub prefill: Prefill,
    /// Tokens of a text.
    pub length: usize,
}

impl Cell {
    /// Its name, and its record's.
    #[must_use]
    pub fn id(&self) -> String {
        let method = self.method.name().replace(", ", "_").replace(' ', "_");
        format!("{method}-{}-{}-{}", self.percent(), self.prefill.word(), self.length)
    }

    fn percent(&self) -> String {
        format!("{}", 100.0 * self.share)
    }

    /// Its leading words in a table.
    #[cfg(feature = "pictures")]
    pub(crate) fn leading(&self) -> Vec<String> {
        let share = if self.method.has_shares() { format!("{} %", self.percent()) } else { "–".to_owned() };
        vec![self.length.to_string(), self.method.name(), share, self.prefill.word().to_owned()]
    }
}
