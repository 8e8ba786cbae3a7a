//! What attention to some pairs costs, of what dense attention does: multiply-adds, and values of the cache that a new position reads.

use crate::{PairIndex, PairsBy, PairsSpec};

impl PairsSpec {
    /// Multiply-adds of a text of `positions` positions with heads of `head_dim` values, relative to dense attention's 2 D a causal pair: those of the
    /// index, and 2 D for each pair that is kept. Of long texts (r + 2 · keep · D) / 2D for components and directions; projections and the comparisons of the selection are not
    /// among them.
    ///
    /// ```
    /// use tinyonn::moe::{KeptPairs, PairIndex, PairsSpec};
    ///
    /// let eighth = PairsSpec::new(KeptPairs::Share(0.125), PairIndex::Components(8));
    /// assert!((eighth.operations(64, 32_768) - (8.0 / 128.0 + 0.125)).abs() < 1e-3);
    /// let all = PairsSpec::new(KeptPairs::Share(1.0), PairIndex::Components(8));
    /// assert_eq!(all.operations(64, 100), 1.0); // the dense path, which asks no index
    /// ```
    #[must_use]
    pub fn operations(&self, head_dim: usize, positions: usize) -> f64 {
        if self.keeps_all(positions, positions) {
            return 1.0;
        }
        let seen = positions as f64 * (positions as f64 + 1.0) / 2.0;
        let kept: f64 = (1..=positions).map(|seen| self.keys(seen) as f64).sum();
        let d = head_dim as f64;
        let index = match self.index {
            PairIndex::Components(r) | PairIndex::Directions(r) => r.min(head_dim) as f64,
            // A mean key a block.
            PairIndex::Blocks(size) => d / size.max(1) as f64,
            PairIndex::Window => 0.0,
            PairIndex::Exact => d,
        };
        index / (2.0 * d) + kept / seen
    }

    /// Bytes that the last of `positions` positions reads, relative to the 2 D values a position of a dense cache: the index, and the rows of keys and
    /// values that any of the `queries` query heads of a key head keeps. Heads that choose for themselves may agree or not: the least, and the most.
    ///
    /// ```
    /// use tinyonn::moe::{KeptPairs, PairIndex, PairsBy, PairsSpec};
    ///
    /// let one = PairsSpec::new(KeptPairs::Share(0.125), PairIndex::Components(8));
    /// assert_eq!(one.bytes(64, 3, 32_768), [0.1875; 2]);
    /// let three = PairsSpec { by: PairsBy::Head, ..one };
    /// assert_eq!(three.bytes(64, 3, 32_768), [0.1875, 0.5625]);
    /// ```
    #[must_use]
    pub fn bytes(&self, head_dim: usize, queries: usize, positions: usize) -> [f64; 2] {
        if self.keeps_all(1, positions) {
            return [1.0; 2];
        }
        let (d, seen) = (head_dim as f64, positions as f64);
        let choices = if self.by == PairsBy::KvHead { 1 } else { queries.max(1) };
        [1, choices].map(|apart| {
            let index = match self.index {
                PairIndex::Components(r) => (apart * r).min(head_dim) as f64,
                PairIndex::Directions(r) => r.min(head_dim) as f64,
                PairIndex::Blocks(size) => d / size.max(1) as f64,
                PairIndex::Window => 0.0,
                PairIndex::Exact => d,
            };
            index / (2.0 * d) + (apart * self.keys(positions)).min(positions) as f64 / seen
        })
    }
}
