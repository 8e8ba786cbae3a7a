//! Texts that share rows of tokens with others.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// Tokens of a row.
const ROW: usize = 16;
/// The part of a text's rows that others may have.
const MOST: f64 = 0.05;

/// The rows of texts that were taken.
#[derive(Clone, Default)]
pub(super) struct SharedText(HashSet<u64>);

impl SharedText {
    /// Takes a text that shares at most a twentieth of its rows with those that were taken; whether it did.
    pub(super) fn takes(&mut self, tokens: &[u32]) -> bool {
        let own = rows(tokens);
        let fits = self.fits(&own);
        if fits {
            self.0.extend(own);
        }
        fits
    }

    /// Whether a text would be taken.
    pub(super) fn would_take(&self, tokens: &[u32]) -> bool {
        self.fits(&rows(tokens))
    }

    fn fits(&self, own: &HashSet<u64>) -> bool {
        let shared = own.iter().filter(|row| self.0.contains(row)).count();
        shared as f64 <= MOST * own.len() as f64
    }
}

fn rows(tokens: &[u32]) -> HashSet<u64> {
    let hashed = |row: &[u32]| {
        let mut hasher = DefaultHasher::new();
        row.hash(&mut hasher);
        hasher.finish()
    };
    tokens.windows(ROW).map(hashed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_shares_more_than_a_twentieth_is_left_out() {
        let numbered = |from: u32, count: u32| (from..from + count).collect::<Vec<u32>>();
        let mut taken = SharedText::default();
        assert!(taken.takes(&numbered(0, 1000)) && !taken.takes(&numbered(0, 1000)));
        let beside = |shared: u32| [numbered(0, shared), numbered(5000, 1000 - shared)].concat();
        assert!(!taken.would_take(&beside(80)) && taken.would_take(&beside(60)) && taken.would_take(&[]));
        assert!(taken.takes(&beside(60)) && !taken.would_take(&beside(500)));
    }
}
