//! y = x Wᵀ + b.
//!
//! Shapes: x `[.., n]`, W `[m, n]`, b `[m]`, y `[.., m]`; any float dtype. Leading dimensions are flattened into one
//! product. Backward: dx = dy W, dW = dyᵀ x, db = Σ dy; each is formed only if its input learns.

use candle_core::{Result, Tensor};

use super::tape::{self, Backward};

/// y = x Wᵀ + b, differentiable in all three.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (x_tn, weight_mn) = (rows(&x.detach())?, weight.detach());
    let mut y_tm = x_tn.matmul(&weight_mn.t()?)?;
    if let Some(bias) = bias {
        y_tm = y_tm.broadcast_add(&bias.detach())?;
    }
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = weight.dim(0)?;
    }
    let derivative = Linear { x_shape: x.dims().to_vec(), x_tn, weight_mn };
    let y = y_tm.reshape(shape)?;
    match bias {
        Some(bias) => tape::record(&[x, weight, bias], y, derivative),
        None => tape::record(&[x, weight], y, derivative),
    }
}

/// `[.., n]` as `[t, n]`, contiguous.
pub(super) fn rows(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(candle_core::D::Minus1)?;
    x.contiguous()?.reshape(((), width))
}

struct Linear {
    x_shape: Vec<usize>,
    x_tn: Tensor,
    weight_mn: Tensor,
}

impl Backward for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn backward(&self, _: &Tensor, grad: &Tensor, needs: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let dy_tm = rows(grad)?;
        let need = |i: usize| needs.get(i).copied().unwrap_or(false);
        let dx = need(0).then(|| dy_tm.matmul(&self.weight_mn)?.reshape(self.x_shape.as_slice())).transpose()?;
        let dw = need(1).then(|| dy_tm.t()?.matmul(&self.x_tn)).transpose()?;
        let db = need(2).then(|| dy_tm.sum(0)).transpose()?;
        Ok(vec![dx, dw, db])
    }
}
