//! Root-mean-square normalisation with its weight.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

use crate::Result;
use crate::ops::{Grads, rms_norm};

/// y = x / √(mean(x²) + ε) ⊙ weight.
#[derive(Clone, Debug)]
pub(crate) struct RmsNorm {
    pub(super) weight: Tensor,
    pub(super) eps: f64,
}

impl RmsNorm {
    /// Over a last dimension of `size`; a new weight is one.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub(crate) fn new(size: usize, eps: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self { weight: vb.get_with_hints(size, "weight", Init::Const(1.0))?, eps })
    }

    /// Normalises the last dimension.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not go together.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(rms_norm::forward(x, &self.weight, self.eps)?)
    }

    /// dx of an x that [`forward`](Self::forward) was given.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn backward(&self, x: &Tensor, dy: &Tensor, grads: &mut Grads) -> Result<Tensor> {
        Ok(rms_norm::backward(x, &self.weight, self.eps, dy, grads)?)
    }

    /// a + b, and its normalisation.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn forward_sum(&self, a: &Tensor, b: &Tensor) -> Result<[Tensor; 2]> {
        Ok(rms_norm::forward_sum(a, b, &self.weight, self.eps)?)
    }

    /// dx + `also`, for what goes round the norm by a residual connection.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn backward_sum(&self, x: &Tensor, dy: &Tensor, also: &Tensor, grads: &mut Grads) -> Result<Tensor> {
        Ok(rms_norm::backward_sum(x, &self.weight, self.eps, dy, also, grads)?)
    }

    /// Whether its weight learns.
    pub(crate) fn learns(&self, grads: &Grads) -> bool {
        grads.learns(&self.weight)
    }
}
