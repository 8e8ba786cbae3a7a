//! The cells, in the order in which they are run: what the bars ask for first.

use tinyonn::moe::{PairsBy, Prefill};

use super::{AttentionConfig, Cell, Method};

/// What is compared, as it matters: the trial's two rows first.
pub(super) const METHODS: [Method; 15] = [
    Method::Components { r: 8, by: PairsBy::Head },
    Method::Directions { r: 16, by: PairsBy::KvHead },
    Method::Components { r: 8, by: PairsBy::KvHead },
    Method::Directions { r: 16, by: PairsBy::Head },
    Method::Window,
    Method::MinMax { size: 16 },
    Method::BlockMeans { size: 16 },
    Method::Sparq { r: 8, mean_value: true },
    Method::Sparq { r: 8, mean_value: false },
    Method::HeavyHitters,
    Method::Exact,
    Method::LargestMass { size: 16 },
    Method::BlockMeans { size: 8 },
    Method::MinMax { size: 64 },
    Method::LargestMass { size: 64 },
];
/// The share at which both prefills are shown, if it is one of the study's.
const BOTH: f64 = 0.125;
/// By this share the main row reads as many bytes as a cache of 8 bits, of heads of 64 values: 0.516 of a dense cache's, 0.125 of them its index.
pub(super) const AS_EIGHT_BITS: f64 = 0.39;

impl AttentionConfig {
    /// All cells.
    ///
    /// ```
    /// use experiments::attention::{AttentionConfig, Cell};
    ///
    /// let cells = AttentionConfig::default().cells();
    /// let ids: std::collections::BTreeSet<String> = cells.iter().map(Cell::id).collect();
    /// assert_eq!(ids.len(), cells.len());
    /// assert!(ids.contains("dense-100-sparse-4096") && ids.contains("sparq_8-12.5-dense-8192"));
    /// ```
    #[must_use]
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for texts in &self.texts {
            let of = |method, share, prefill| Cell { method, share, prefill, length: texts.length };
            cells.push(of(Method::Dense, 1.0, Prefill::Sparse));
            let mut shares = self.shares.clone();
            // What the bars ask for stands first.
            shares.sort_by(|a, b| (a - BOTH).abs().total_cmp(&(b - BOTH).abs()));
            for share in shares {
                cells.extend(METHODS.map(|method| of(method, share, Prefill::Sparse)));
                if (share - BOTH).abs() < 1e-9 {
                    cells.extend(METHODS.map(|method| of(method, share, Prefill::Dense)));
                }
            }
            cells.push(of(Method::EightBits, 1.0, Prefill::Sparse));
            cells.push(of(Method::Directions { r: 16, by: PairsBy::KvHead }, AS_EIGHT_BITS, Prefill::Sparse));
        }
        cells
    }
}
