//! y = x Wᵀ + b.
//!
//! Shapes: x `[.., n]`, W `[m, n]`, b `[m]`, y `[.., m]`; any float dtype. Leading dimensions are flattened into one
//! product. Backward: dx = dy W, dW = dyᵀ x, db = Σ dy.
//!
//! x may be narrower than W, as that of a router of a bf16 model is: y is in W's type then, dx in x's. On a GPU the product of bf16 and f32 is two
//! products of bf16, with W rounded and with what rounding took of it: 16 bits of W, and a tenth of the time of one in f32.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use tinyonn::ops::{Grads, linear};
//!
//! let w = Var::new(&[[1f32, 2.0]], &Device::Cpu)?;
//! let x = Tensor::new(&[[3f32, 4.0]], &Device::Cpu)?;
//! assert_eq!(linear::forward(&x, &w, None)?.to_vec2::<f32>()?, [[11.0]]);
//! let dx = linear::backward(&x, &w, None, &Tensor::new(&[[1f32]], &Device::Cpu)?, true, &mut Grads::none())?;
//! assert_eq!(dx.expect("asked for").to_vec2::<f32>()?, [[1.0, 2.0]]);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{DType, Result, Tensor};

use super::product::accumulate;
use super::{Grads, elementwise};

/// y.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn forward(x: &Tensor, weight_mn: &Tensor, bias_m: Option<&Tensor>) -> Result<Tensor> {
    let (x_tn, weight_mn) = (rows(x)?, weight_mn.detach());
    let mut y_tm = if x_tn.dtype() == weight_mn.dtype() {
        x_tn.matmul(&weight_mn.t()?)?
    } else if (x_tn.dtype(), weight_mn.dtype()) == (DType::BF16, DType::F32) && x_tn.device().is_cuda() {
        let rounded_mn = elementwise::cast(&weight_mn, DType::BF16)?;
        let rest_mn = elementwise::cast(&(&weight_mn - elementwise::cast(&rounded_mn, DType::F32)?)?, DType::BF16)?;
        let y_tm = Tensor::zeros((x_tn.dim(0)?, weight_mn.dim(0)?), DType::F32, x_tn.device())?;
        accumulate(&y_tm, &x_tn, &rounded_mn.t()?, false)?;
        accumulate(&y_tm, &x_tn, &rest_mn.t()?, true)?;
        y_tm
    } else {
        x_tn.to_dtype(weight_mn.dtype())?.matmul(&weight_mn.t()?)?
    };
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
    let dx = || {
        let weight_mn = weight_mn.detach();
        let dx_tn = if x.dtype() == dy_tm.dtype() {
            dy_tm.matmul(&weight_mn)?
        } else if x.device().is_cuda() {
            // What x's type has no digits for is not computed.
            elementwise::cast(&dy_tm, x.dtype())?.matmul(&elementwise::cast(&weight_mn, x.dtype())?)?
        } else {
            dy_tm.matmul(&weight_mn)?.to_dtype(x.dtype())?
        };
        dx_tn.reshape(x.shape())
    };
    input.then(dx).transpose()
}

/// Σ a b over pairs of a `[t, k]` and b `[k, n]`. On a GPU later products are added where the first lies, in f32 before they are rounded.
///
/// # Errors
/// No pair; shapes, dtypes or devices that do not go together.
pub(crate) fn sum_of_products<'a>(pairs: impl IntoIterator<Item = (&'a Tensor, &'a Tensor)>) -> Result<Tensor> {
    let mut pairs = pairs.into_iter();
    let Some((a, b)) = pairs.next() else { candle_core::bail!("the sum of no products") };
    let mut sum = a.matmul(b)?;
    for (a, b) in pairs {
        if sum.device().is_cuda() {
            accumulate(&sum, a, b, true)?;
        } else {
            sum = elementwise::add(&sum, &a.matmul(b)?)?;
        }
    }
    Ok(sum)
}

/// `[.., n]` as `[t, n]`, contiguous and without a history.
pub(super) fn rows(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(candle_core::D::Minus1)?;
    x.detach().contiguous()?.reshape(((), width))
}
