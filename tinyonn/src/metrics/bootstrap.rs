//! How sure a mean is: the percentile bootstrap over clusters (Efron, 1979; Field and Welsh, 2007).
//!
//! Rows of one document are no independent draws, so documents are drawn, with replacement, each with all its rows: θ* = Σ a_c / Σ b_c over the
//! drawn clusters c, where a_c is the sum of a cluster's values and b_c that of their weights. The interval runs from the 2.5th to
//! the 97.5th percentile of θ* (DESIGN §3, "Splits").

use std::collections::BTreeMap;

use rand::Rng as _;
use serde::{Deserialize, Serialize};

use crate::random;

/// Draws of as many clusters as there are.
const DRAWS: usize = 1000;
/// Draws left out at either end: 2.5 %.
const TAIL: usize = DRAWS / 40;

/// A mean and where it lies with 95 % confidence.
///
/// ```
/// use tinyonn::metrics::{Interval, interval};
///
/// // A single cluster leaves nothing to draw.
/// assert_eq!(interval(&[(3.0, 2.0)], 0), Interval { mean: 1.5, low: 1.5, high: 1.5 });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The mean of what was seen.
    pub mean: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// The interval of Σ a / Σ b from each cluster's (a, b): a sum of values and of their weights (their number, say; or of what they are a
/// share of, which may be negative in some clusters).
///
/// Clusters of no weight count nowhere; without any other, all three numbers are NaN. A single cluster leaves nothing to draw: its
/// interval has no width, which is ignorance, not certainty. For a difference of two models on the same documents give the sums of the differences: the
/// interval is then paired. Deterministic in `seed`, and independent of the number of threads.
///
/// ```
/// use tinyonn::metrics::{by_cluster, interval};
/// // Three documents of two, one and one rows; 1 where a router was right.
/// let clusters = by_cluster([(7, 1.0), (7, 1.0), (8, 0.0), (9, 1.0)]);
/// assert_eq!(clusters, [(2.0, 2.0), (0.0, 1.0), (1.0, 1.0)]);
/// let found = interval(&clusters, 0);
/// assert_eq!(found.mean, 0.75);
/// assert_eq!((found.low, found.high), (0.0, 1.0));
/// ```
#[must_use]
pub fn interval(clusters: &[(f64, f64)], seed: u64) -> Interval {
    let clusters: Vec<(f64, f64)> = clusters.iter().copied().filter(|(_, weight)| *weight != 0.0).collect();
    if clusters.is_empty() {
        return Interval { mean: f64::NAN, low: f64::NAN, high: f64::NAN };
    }
    let ratio = |(a, b): (f64, f64)| a / b;
    let add = |(a, b): (f64, f64), (x, y): (f64, f64)| (a + x, b + y);
    let mean = ratio(clusters.iter().copied().fold((0.0, 0.0), add));
    let mut rng = random::stream(seed, "bootstrap");
    let mut drawn: Vec<f64> = (0..DRAWS)
        .map(|_| {
            let draw = (0..clusters.len()).map(|_| clusters[rng.random_range(0..clusters.len())]);
            ratio(draw.fold((0.0, 0.0), add))
        })
        .collect();
    drawn.sort_unstable_by(f64::total_cmp);
    // Sums in another order round otherwise: what does not vary must still lie within.
    Interval { mean, low: drawn[TAIL - 1].min(mean), high: drawn[DRAWS - TAIL].max(mean) }
}

/// Rows of (cluster, value) as [`interval`] takes them: for each cluster the sum of its values and their number, in the order of the
/// clusters' numbers.
#[must_use]
pub fn by_cluster(rows: impl IntoIterator<Item = (u32, f64)>) -> Vec<(f64, f64)> {
    let mut sums: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
    for (cluster, value) in rows {
        let (sum, count) = sums.entry(cluster).or_default();
        *sum += value;
        *count += 1.0;
    }
    sums.into_values().collect()
}
