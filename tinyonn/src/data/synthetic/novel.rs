//! Tasks that are absent from pretraining: what a model is taught afterwards, to see what it forgets over it (DESIGN §4).

use serde::{Deserialize, Serialize};

use super::{contradictions, invented_language, ledger, letter_sums};
use crate::data::Task;

/// A generated task of a kind that no pretraining text here holds.
///
/// ```
/// use tinyonn::data::NovelTask;
///
/// let task = NovelTask::Ledger.generate(0, 2_000);
/// assert_eq!(task.name, NovelTask::Ledger.name());
/// assert!(task.documents[0].text.starts_with("<<"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NovelTask {
    /// Arithmetic in an odd notation: [`letter_sums`].
    LetterSums,
    /// A file format: [`ledger`].
    Ledger,
    /// Facts that contradict older ones: [`contradictions`].
    Contradictions,
    /// A language: [`invented_language`].
    InventedLanguage,
}

impl NovelTask {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::LetterSums, Self::Ledger, Self::Contradictions, Self::InventedLanguage];

    /// Its name in settings, tables and pictures.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LetterSums => "letter_sums",
            Self::Ledger => "ledger",
            Self::Contradictions => "contradictions",
            Self::InventedLanguage => "invented_language",
        }
    }

    /// About `bytes` of its text, a pure function of `seed` and size.
    #[must_use]
    pub fn generate(self, seed: u64, bytes: usize) -> Task {
        match self {
            Self::LetterSums => letter_sums(seed, bytes),
            Self::Ledger => ledger(seed, bytes),
            Self::Contradictions => contradictions(seed, bytes),
            Self::InventedLanguage => invented_language(seed, bytes),
        }
    }
}
