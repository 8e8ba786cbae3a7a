//! Keys or values as a cache of 8 bits holds them.

use candle_core::{D, DType, Result, Tensor};

/// x `[1, T, K, D]` rounded to whole multiples of a 127th of the greatest |x| of each row.
pub(super) fn rounded(x: &Tensor) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    // A row of zeros stays one.
    let scale = (wide.abs()?.max_keepdim(D::Minus1)? / 127.0)?.clamp(1e-30f32, f32::MAX)?;
    wide.broadcast_div(&scale)?.round()?.broadcast_mul(&scale)?.to_dtype(x.dtype())
}
