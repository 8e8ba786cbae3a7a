//! Rotary position embedding: each pair (x_j, x_{j+D/2}) of a head is turned by an angle that grows with its position.
//!
//! Shapes: x, y `[B, T, H, D]`, cos and sin `[T, D/2]` (Su et al., 2021; the half-split layout of Qwen and Llama).
//! y₁ = x₁ cos − x₂ sin, y₂ = x₂ cos + x₁ sin; the backward turns by the opposite angle. The angles are constants.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use tinyonn::ops::rope;
//!
//! // One head of width 2 at one position, turned by a right angle, and back.
//! let x = Tensor::new(&[[[[1f32, 0.0]]]], &Device::Cpu)?;
//! let (cos, sin) = (Tensor::new(&[[0f32]], &Device::Cpu)?, Tensor::new(&[[1f32]], &Device::Cpu)?);
//! let y = rope::forward(&x, &cos, &sin)?;
//! assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [0.0, 1.0]);
//! assert_eq!(rope::backward(&y, &cos, &sin)?.flatten_all()?.to_vec1::<f32>()?, [1.0, 0.0]);
//! # Ok::<(), candle_core::Error>(())
//! ```

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
    #[cfg(feature = "cuda")]
    if let Some(y_bthd) = on_a_card::turn(x_bthd, cos, sin, sign)? {
        return Ok(y_bthd);
    }
    let dtype = x_bthd.dtype();
    let (cos, sin) = (cos.to_dtype(dtype)?.reshape((t, 1, half))?, sin.to_dtype(dtype)?.reshape((t, 1, half))?);
    let sin = if sign < 0.0 { sin.neg()? } else { sin };
    let (x1, x2) = (x_bthd.narrow(D::Minus1, 0, half)?, x_bthd.narrow(D::Minus1, half, half)?);
    let y1 = (x1.broadcast_mul(&cos)? - x2.broadcast_mul(&sin)?)?;
    let y2 = (x2.broadcast_mul(&cos)? + x1.broadcast_mul(&sin)?)?;
    Tensor::cat(&[y1, y2], D::Minus1)?.contiguous()
}

#[cfg(feature = "cuda")]
mod on_a_card {
    use candle_core::{Result, Tensor};

    use super::super::kernel::{Argument, Kernel, THREADS, card, is_read, room_like};

    static ROPE: Kernel = Kernel::new("rope", concat!(include_str!("numbers.cu"), include_str!("rope.cu")));

    /// Of x and angles in types that kernels read.
    #[allow(unsafe_code)]
    pub(super) fn turn(x_bthd: &Tensor, cos: &Tensor, sin: &Tensor, sign: f32) -> Result<Option<Tensor>> {
        let ((_, t, heads, d), x_bthd) = (x_bthd.dims4()?, x_bthd.contiguous()?);
        let angles = |of: &Tensor| is_read(of) && of.elem_count() == t * (d / 2);
        let counted = u32::try_from(x_bthd.elem_count()).is_ok();
        if !counted || !is_read(&x_bthd) || d % 2 != 0 || !angles(cos) || !angles(sin) || cos.dtype() != sin.dtype() {
            return Ok(None);
        }
        let (y_bthd, pairs) = (room_like(&x_bthd)?, x_bthd.elem_count() / 2);
        // Pairs of a thread.
        let each = if (d / 2).is_multiple_of(4) { 4 } else { 1 };
        let [of_x, of_cos, of_sin, of_y] = [&x_bthd, cos, sin, &y_bthd].map(Argument::of);
        let [pairs_of, positions, heads, half_dim] = [pairs, t, heads, d / 2].map(Argument::count);
        let arguments = [
            of_x?,
            of_cos?,
            of_sin?,
            of_y?,
            pairs_of,
            positions,
            heads,
            half_dim,
            Argument::Number(sign),
            Argument::half(&x_bthd),
            Argument::half(cos),
        ];
        // SAFETY: the signature of rope: x and y, which is new, have twice as many values as pairs, of one type, the angles t·d/2 each, of another.
        unsafe { ROPE.launch(card(&x_bthd)?, pairs.div_ceil(each).div_ceil(THREADS as usize), &arguments)? };
        Ok(Some(y_bthd))
    }
}
