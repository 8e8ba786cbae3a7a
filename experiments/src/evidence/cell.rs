//! A cell of the study: a method at a share of the operations, with one thing changed at most.

use serde::{Deserialize, Serialize};

use super::Method;

/// One thing that is otherwise than by default.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The same share in each layer.
    UniformShares,
    /// A unit of h is worth the norm of its row of W_d.
    ByNorm,
    /// As many neurons for each token.
    TopK,
    /// Layers are not repaired.
    NoRepair,
    /// A repair without b.
    NoBias,
    /// λ of the repair.
    Ridge(f64),
    /// The share of a layer's neurons that tokens may take at all.
    Candidates(f64),
    /// The share of the channels of its input that W_g reads.
    Inputs(f64),
    /// So many times the calibration text.
    Calibration(f64),
}

impl Change {
    fn name(self) -> String {
        match self {
            Self::UniformShares => "uniform_shares".into(),
            Self::ByNorm => "by_norm".into(),
            Self::TopK => "top_k".into(),
            Self::NoRepair => "no_repair".into(),
            Self::NoBias => "no_bias".into(),
            Self::Ridge(ridge) => format!("ridge_{ridge}"),
            Self::Candidates(share) => format!("candidates_{share}"),
            Self::Inputs(share) => format!("inputs_{share}"),
            Self::Calibration(times) => format!("calibration_{times}"),
        }
    }
}

/// A cell.
///
/// ```
/// use experiments::evidence::{Cell, Method};
///
/// let cell = Cell { steps: 120, ..Cell::of(Method::OwnGate, 50, 1) };
/// assert_eq!((cell.id().as_str(), cell.closed().steps), ("own_gate-50-kl120-seed1", 0));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// How neurons are found.
    pub method: Method,
    /// The share of the MLPs' operations, in percent.
    pub percent: u32,
    /// What is otherwise than by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    /// Steps of distillation behind the closed form.
    pub steps: u64,
    /// Decides the splits of text and everything random.
    pub seed: u64,
}

impl Cell {
    /// By default, in closed form.
    #[must_use]
    pub fn of(method: Method, percent: u32, seed: u64) -> Self {
        Self { method, percent, change: None, steps: 0, seed }
    }

    /// Its name, and its record's.
    #[must_use]
    pub fn id(&self) -> String {
        let mut words = vec![self.method.name(), self.percent.to_string()];
        words.extend(self.change.map(Change::name));
        if self.steps > 0 {
            words.push(format!("kl{}", self.steps));
        }
        words.push(format!("seed{}", self.seed));
        words.join("-")
    }

    /// The share of the operations.
    #[must_use]
    pub fn share(&self) -> f64 {
        f64::from(self.percent) / 100.0
    }

    /// What it is before distillation.
    #[must_use]
    pub fn closed(&self) -> Self {
        Self { steps: 0, ..*self }
    }

    /// Its leading words in a table.
    #[cfg(feature = "pictures")]
    pub(crate) fn leading(&self) -> Vec<String> {
        let change = self.change.map_or_else(|| "–".to_owned(), Change::name);
        vec![self.method.name(), format!("{} %", self.percent), change, self.steps.to_string(), self.seed.to_string()]
    }
}
