//! AdamW over the slots of a training: constants, and the update of all that has a gradient.
//!
//! A line (a row of W_g or W_u, a column of W_d: one neuron) that does not learn in a step is *skipped*: its moments, its values
//! and its own step count stay as they are, so an idle expert is not moved by momentum or decay (DESIGN §4).

use serde::{Deserialize, Serialize};

/// The constants of AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamwConfig {
    /// Learning rate.
    pub rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices; vectors and scalars have none.
    pub decay: f64,
    /// The global gradient norm is clipped to this.
    pub clip: f64,
}

impl Default for AdamwConfig {
    fn default() -> Self {
        Self { rate: 3e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.1, clip: 1.0 }
    }
}
