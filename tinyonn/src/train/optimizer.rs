//! What moves a weight once its gradient is known: which rule, with which constants, and what does not decay.
//!
//! All rules step the f32 master θ of a slot by the gradient g, clipped to a global norm. A row (of W_g, W_u or W_d: one
//! neuron) that does not learn in a step is *skipped*: its moments, its values and its own step count stay as they are, so an idle
//! expert is not moved by momentum or decay (DESIGN §4).

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Role, Roles};
use crate::{Error, Result};

/// The rule of an update; the formulas are those of [`crate::ops::adamw()`], [`crate::ops::sgd()`] and [`crate::ops::lion()`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UpdateRule {
    /// Loshchilov and Hutter (2019): two moments, reads every constant.
    #[default]
    Adamw,
    /// Stochastic gradient descent with momentum `beta1`: one moment.
    Sgd,
    /// Chen et al. (2023): the sign of an interpolation by `beta1`, momentum by `beta2`: one moment. The paper takes a
    /// third to a tenth of AdamW's rate.
    Lion,
}

/// A rule and its constants.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Which rule.
    pub rule: UpdateRule,
    /// Learning rate, at its highest.
    pub rate: f64,
    /// Decay of the first moment; SGD's momentum.
    pub beta1: f64,
    /// Decay of the second moment; of Lion's only one.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices; vectors and scalars have none.
    pub decay: f64,
    /// Roles whose matrices have none either.
    pub no_decay: Roles,
    /// The global gradient norm is clipped to this.
    pub clip: f64,
}

impl OptimizerConfig {
    /// AdamW at 3e-3.
    pub const DEFAULT: Self = Self {
        rule: UpdateRule::Adamw,
        rate: 3e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        decay: 0.1,
        no_decay: Roles::NONE,
        clip: 1.0,
    };

    /// λ of a weight of this role and rank.
    ///
    /// ```
    /// use tinyonn::checkpoint::Role;
    /// use tinyonn::train::{OptimizerConfig, UpdateRule};
    ///
    /// let config = OptimizerConfig { rule: UpdateRule::Lion, decay: 0.1, ..OptimizerConfig::DEFAULT };
    /// assert_eq!((config.decay_of(Role::Expert, 2), config.decay_of(Role::Norm, 1)), (0.1, 0.0)); // vectors have none
    /// ```
    #[must_use]
    pub fn decay_of(&self, role: Role, rank: usize) -> f64 {
        if rank >= 2 && !self.no_decay.contains(role) { self.decay } else { 0.0 }
    }

    /// Refuses constants that no rule can work with; `key` is where they stand in the settings.
    ///
    /// # Errors
    /// The constant, by its key.
    ///
    /// ```
    /// use tinyonn::train::OptimizerConfig;
    ///
    /// let config = OptimizerConfig { beta2: 1.0, ..OptimizerConfig::DEFAULT };
    /// assert!(config.check("smk.optimizer").unwrap_err().to_string().contains("smk.optimizer.beta2"));
    /// ```
    pub fn check(&self, key: &str) -> Result<()> {
        let share = |value: f64| (0.0..1.0).contains(&value);
        let positive = |value: f64| value > 0.0;
        let finite = |value: f64| value >= 0.0 && value.is_finite();
        for (name, value, fits, remedy) in [
            ("rate", self.rate, finite(self.rate), "use a finite number, 0 or more"),
            ("beta1", self.beta1, share(self.beta1), "use a number from 0 to below 1"),
            ("beta2", self.beta2, share(self.beta2), "use a number from 0 to below 1"),
            ("eps", self.eps, positive(self.eps) && self.eps.is_finite(), "use a small number above 0"),
            ("decay", self.decay, finite(self.decay), "use a finite number, 0 or more"),
            ("clip", self.clip, positive(self.clip), "use a number above 0; inf clips nothing"),
        ] {
            if !fits {
                return Err(Error::setting(format!("{key}.{name}"), format!("is {value}"), remedy));
            }
        }
        Ok(())
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
}
