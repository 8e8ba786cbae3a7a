//! How sure a mean of a few independent values is: x̄ ± t s/√n (Student, 1908), s² = Σ (x − x̄)²/(n − 1), t the 97.5th percentile of Student's
//! distribution of n − 1 degrees of freedom.
//!
//! What the models of several seeds say is such a sample: it speaks of other models that would be made alike, where the bootstrap over
//! documents ([`super::interval()`]) speaks of these.

use statrs::distribution::{ContinuousCDF as _, StudentsT};

use super::Interval;

/// More degrees of freedom than these count as these, which makes the interval wider by 0.012 % at most: at ten million `statrs` gives
/// 1.83, and at a thousand million it does not end.
const MOST_FREEDOM: f64 = 10_000.0;

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

/// t of `freedom` ≥ 1 degrees of freedom.
fn quantile(freedom: usize) -> f64 {
    let freedom = (freedom as f64).clamp(1.0, MOST_FREEDOM);
    StudentsT::new(0.0, 1.0, freedom).map_or(f64::NAN, |t| t.inverse_cdf(0.975))
}
