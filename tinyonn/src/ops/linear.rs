//! y = x Wᵀ + b.
//!
//! Shapes: x `[.., n]`, W `[m, n]`, b `[m]`, y `[.., m]`; any float dtype. Leading dimensions are flattened into one
//! product. Backward: dx = dy W, dW = dyᵀ x, db = Σ dy.

use candle_core::{Result, Tensor};

use super::Grads;

/// y.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn forward(x: &Tensor, weight_mn: &Tensor, bias_m: Option<&Tensor>) -> Result<Tensor> {
    let mut y_tm = rows(x)?.matmul(&weight_mn.detach().t()?)?;
    if let Some(bias_m) = bias_m {
        y_tm = y_tm.broadcast_add(&bias_m.detach())?;
    }
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = weight_mn.dim(0)?;
    }
    y_tm.reshape(shape)
}

/// dx, if `input`; dW and db go to `grads`, if they learn there.
///
/// # Errors
/// As above.
pub fn backward(
    x: &Tensor,
    weight_mn: &Tensor,
    bias_m: Option<&Tensor>,
    dy: &Tensor,
    input: bool,
    grads: &mut Grads,
) -> Result<Option<Tensor>> {
    let dy_tm = rows(dy)?;
    grads.add_product(weight_mn, &dy_tm, &rows(x)?)?;
    if let Some(bias_m) = bias_m {
        grads.add_with(bias_m, || dy_tm.sum(0))?;
    }
    input.then(|| dy_tm.matmul(&weight_mn.detach())?.reshape(x.shape())).transpose()
}

/// `[.., n]` as `[t, n]`, contiguous and without a history.
pub(super) fn rows(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(candle_core::D::Minus1)?;
    x.detach().contiguous()?.reshape(((), width))
}
