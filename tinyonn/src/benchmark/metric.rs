//! What a task asks of the likelihoods of an item's choices.

use serde::{Deserialize, Serialize};

/// Which choice is the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Metric {
    /// `acc_raw`: that of the highest ℓ, its log-likelihood.
    Sum,
    /// `acc_per_char`: that of the highest ℓ / c, c the characters of its continuation, a blank before it included.
    PerCharacter,
    /// `logits_per_byte`, an item of one continuation, which the model writes by itself, token for token, or does not.
    GreedyMatch,
}

impl Metric {
    /// That which a config.json names, if it is one of these.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "acc_raw" => Some(Self::Sum),
            "acc_per_char" => Some(Self::PerCharacter),
            "logits_per_byte" => Some(Self::GreedyMatch),
            _ => None,
        }
    }

    /// The answer of an item, given each choice's log-likelihood, its characters, and whether it is a greedy match. `None`, which is no
    /// right answer: a tie of the highest, a log-likelihood that is not a number, or no match. (Where the right answers of a task all
    /// stand at one place, the first of a tie would be always or never right.)
    ///
    /// ```
    /// use tinyonn::benchmark::Metric;
    /// assert_eq!(Metric::Sum.answer(&[-2.0, -1.5], &[2, 1], &[None, None]), Some(1));
    /// assert_eq!(Metric::PerCharacter.answer(&[-2.0, -1.5], &[2, 1], &[None, None]), Some(0));
    /// assert_eq!(Metric::Sum.answer(&[-2.0, -2.0], &[2, 1], &[None, None]), None);
    /// assert_eq!(Metric::GreedyMatch.answer(&[-2.0], &[2], &[Some(true)]), Some(0));
    /// ```
    #[must_use]
    pub fn answer(self, log_likelihoods: &[f64], characters: &[usize], greedy: &[Option<bool>]) -> Option<usize> {
        if self == Self::GreedyMatch {
            return greedy.iter().position(|matched| *matched == Some(true));
        }
        let value = |(ll, characters): (&f64, &usize)| match self {
            Self::PerCharacter => ll / *characters as f64,
            _ => *ll,
        };
        let values: Vec<f64> = log_likelihoods.iter().zip(characters).map(value).collect();
        if values.iter().any(|value| value.is_nan()) {
            return None;
        }
        let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut at = values.iter().enumerate().filter(|(_, value)| **value == highest).map(|(at, _)| at);
        at.next().filter(|_| at.next().is_none())
    }
}
