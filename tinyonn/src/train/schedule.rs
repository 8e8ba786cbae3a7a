//! The learning rate of a step: η(s) = η · min(1, (s + 1) / warmup) · c(s), with c = 1, or falling by a cosine to a tenth.

use serde::{Deserialize, Serialize};

/// How the rate goes on behind its rise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Schedule {
    /// It stays.
    Constant,
    /// c(s) = 0.55 + 0.45 cos(π s / steps).
    Cosine,
}

impl Schedule {
    /// The rate of `step` (from 0) of `steps`, whose highest is `peak`, after a linear rise over `warmup` steps.
    ///
    /// ```
    /// use tinyonn::train::Schedule;
    ///
    /// assert_eq!(Schedule::Constant.rate(1.0, 4, 100, 1), 0.5);
    /// assert_eq!(Schedule::Constant.rate(1.0, 0, 100, 99), 1.0);
    /// assert!((Schedule::Cosine.rate(1.0, 0, 100, 100) - 0.1).abs() < 1e-12);
    /// ```
    #[must_use]
    pub fn rate(self, peak: f64, warmup: u64, steps: u64, step: u64) -> f64 {
        let rise = ((step + 1) as f64 / warmup.max(1) as f64).min(1.0);
        let done = step as f64 / steps.max(1) as f64;
        match self {
            Self::Constant => peak * rise,
            Self::Cosine => peak * rise * (0.55 + 0.45 * (std::f64::consts::PI * done).cos()),
        }
    }
}
