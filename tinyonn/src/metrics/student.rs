//! How sure a mean of a few independent values is: x̄ ± t s/√n (Student, 1908), s² = Σ (x − x̄)²/(n − 1), t the 97.5th percentile of Student's
//! distribution of n − 1 degrees of freedom.
//!
//! What the models of several seeds say is such a sample: it speaks of other models that would be made alike, where the bootstrap over
//! documents ([`super::interval()`]) speaks of these.

use super::Interval;

/// t of 1 to 10 degrees of freedom (R. A. Fisher's table).
const T: [f64; 10] = [12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281];
/// That of the normal distribution.
const Z: f64 = 1.959_964;

/// The 95 % interval of the mean of `values`; `None` of fewer than two, which say nothing of others.
///
/// ```
/// use tinyonn::metrics::mean_interval;
/// let found = mean_interval(&[1.0, 2.0, 3.0]).unwrap();
/// // s = 1, t of two degrees of freedom 4.303, √3 = 1.732.
/// assert!((found.mean - 2.0).abs() < 1e-12 && (found.high - 4.484).abs() < 1e-3 && (found.low + 0.484).abs() < 1e-3);
/// assert!(mean_interval(&[1.0]).is_none());
/// ```
#[must_use]
pub fn mean_interval(values: &[f64]) -> Option<Interval> {
    let count = values.len();
    if count < 2 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / count as f64;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (count - 1) as f64;
    let half = quantile(count - 1) * (variance / count as f64).sqrt();
    Some(Interval { mean, low: mean - half, high: mean + half })
}

/// t of `freedom` ≥ 1 degrees of freedom; beyond the table by the expansion in 1/ν (Abramowitz and Stegun, 26.7.5), right to 2e-4.
fn quantile(freedom: usize) -> f64 {
    if let Some(t) = T.get(freedom.saturating_sub(1)) {
        return *t;
    }
    let nu = freedom as f64;
    let first = (Z.powi(3) + Z) / 4.0;
    let second = (5.0 * Z.powi(5) + 16.0 * Z.powi(3) + 3.0 * Z) / 96.0;
    let third = (3.0 * Z.powi(7) + 19.0 * Z.powi(5) + 17.0 * Z.powi(3) - 15.0 * Z) / 384.0;
    Z + first / nu + second / nu.powi(2) + third / nu.powi(3)
}
