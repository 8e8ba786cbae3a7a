//! Root-mean-square normalisation with its weight.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

use crate::{Result, ops};

/// y = x / √(mean(x²) + ε) ⊙ weight.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// Over a last dimension of `size`; a new weight is one.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn new(size: usize, eps: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self { weight: vb.get_with_hints(size, "weight", Init::Const(1.0))?, eps })
    }

    /// Normalises the last dimension.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not go together.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::rms_norm(x, &self.weight, self.eps)?)
    }
}
