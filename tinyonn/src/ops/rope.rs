//! Rotary position embedding: each pair (x_j, x_{j+D/2}) of a head is turned by an angle that grows with its position.
//!
//! Shapes: x, y `[B, T, H, D]`, cos and sin `[T, D/2]` (Su et al., 2021; the half-split layout of Qwen and Llama).
//! y₁ = x₁ cos − x₂ sin, y₂ = x₂ cos + x₁ sin; the backward turns by the opposite angle. The angles are constants.

use candle_core::{D, Result, Tensor};

use super::lanes;

/// Turns the heads of x by their positions' angles.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn forward(x_bthd: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    turn(&x_bthd.detach(), cos, sin, 1.0)
}

/// dx: dy turned back.
///
/// # Errors
/// As above.
pub fn backward(dy_bthd: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    turn(&dy_bthd.detach(), cos, sin, -1.0)
}

fn turn(x_bthd: &Tensor, cos: &Tensor, sin: &Tensor, sign: f32) -> Result<Tensor> {
    let (_, t, h, d) = x_bthd.dims4()?;
    let half = d / 2;
    if lanes::fused(&[x_bthd, cos, sin]) {
        let x_bthd = x_bthd.contiguous()?;
        let mut y = vec![0f32; x_bthd.elem_count()];
        lanes::with_slices([&x_bthd, &cos.contiguous()?, &sin.contiguous()?], |[x, cos, sin]| {
            lanes::by_rows(&mut y, h * d, |first, y| {
                let rows = y.chunks_exact_mut(h * d).zip(x[first * h * d..].chunks_exact(h * d));
                for (row, (y, x)) in rows.enumerate() {
                    let angles = ((first + row) % t) * half..((first + row) % t + 1) * half;
                    let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
                    for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                        let (y1, y2) = y.split_at_mut(half);
                        let (x1, x2) = x.split_at(half);
                        for j in 0..half {
                            let sin = sign * sin[j];
                            y1[j] = x1[j] * cos[j] - x2[j] * sin;
                            y2[j] = x2[j] * cos[j] + x1[j] * sin;
                        }
                    }
                }
            });
        })?;
        return Tensor::from_vec(y, x_bthd.shape(), x_bthd.device());
    }
    let dtype = x_bthd.dtype();
    let (cos, sin) = (cos.to_dtype(dtype)?.reshape((t, 1, half))?, sin.to_dtype(dtype)?.reshape((t, 1, half))?);
    let sin = if sign < 0.0 { sin.neg()? } else { sin };
    let (x1, x2) = (x_bthd.narrow(D::Minus1, 0, half)?, x_bthd.narrow(D::Minus1, half, half)?);
    let y1 = (x1.broadcast_mul(&cos)? - x2.broadcast_mul(&sin)?)?;
    let y2 = (x2.broadcast_mul(&cos)? + x1.broadcast_mul(&sin)?)?;
    Tensor::cat(&[y1, y2], D::Minus1)?.contiguous()
}
