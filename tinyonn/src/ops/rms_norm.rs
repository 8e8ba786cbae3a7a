//! y = x / √(mean(x²) + ε) ⊙ w, the mean over the last dimension.
//!
//! Shapes: x, y `[.., d]`, w `[d]`. The mean and the root are f32 whatever the dtype (f64 stays f64); the normalised x is rounded to
//! the dtype before the product with w, as in `transformers`. With n = x r, r the inverse root and g = dy ⊙ w:
//! dx = r (g − n mean(g ⊙ n)), dw = Σ dy ⊙ n. The inverse root is computed anew in the backward.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use tinyonn::ops::{Grads, rms_norm};
//!
//! let (x, weight) = (Tensor::new(&[[3f32, 4.0]], &Device::Cpu)?, Tensor::new(&[1f32, 2.0], &Device::Cpu)?);
//! let y = rms_norm::forward(&x, &weight, 0.0)?.to_vec2::<f32>()?;
//! assert!((y[0][0] - 3.0 / 12.5f32.sqrt()).abs() < 1e-6); // mean(x²) = 12.5
//! let [sum, normalised] = rms_norm::forward_sum(&x, &x, &weight, 0.0)?;
//! assert_eq!((sum.to_vec2::<f32>()?, normalised.dims()), (vec![vec![6.0, 8.0]], x.dims()));
//! let dy = x.ones_like()?;
//! let dx = rms_norm::backward(&x, &weight, 0.0, &dy, &mut Grads::none())?;
//! let with_residual = rms_norm::backward_sum(&x, &weight, 0.0, &dy, &dy, &mut Grads::none())?;
//! assert!((with_residual - (dx + dy)?)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-6);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{D, DType, Result, Tensor};
use rayon::prelude::*;

use super::Grads;
use super::elementwise;
use super::lanes::{self, ROW_BLOCK, dot};
use super::linear::rows;

/// Root-mean-square normalisation over the last dimension (Zhang and Sennrich, 2019).
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn forward(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let op = RmsNorm { x_td: rows(x)?, weight: weight.detach(), eps };
    #[cfg(feature = "cuda")]
    if super::kernel::are_read(&[&op.x_td, &op.weight]) {
        return op.on_a_card_forward(None)?.1.reshape(x.shape());
    }
    let y_td = if lanes::fused(&[x, weight]) { op.fused_forward() } else { op.plain_forward() }?;
    y_td.reshape(x.shape())
}

/// a + b, and its normalisation: what follows a residual connection.
///
/// # Errors
/// As above.
pub fn forward_sum(a: &Tensor, b: &Tensor, weight: &Tensor, eps: f64) -> Result<[Tensor; 2]> {
    #[cfg(feature = "cuda")]
    {
        let (op, b_td) = (RmsNorm { x_td: rows(a)?, weight: weight.detach(), eps }, rows(b)?);
        if super::kernel::are_read(&[&op.x_td, &op.weight, &b_td]) && a.dims() == b.dims() {
            let (sum_td, y_td) = op.on_a_card_forward(Some(&b_td))?;
            return Ok([sum_td.reshape(a.shape())?, y_td.reshape(a.shape())?]);
        }
    }
    let sum = elementwise::add(a, b)?;
    let y = forward(&sum, weight, eps)?;
    Ok([sum, y])
}

/// dx; dw goes to `grads`, if the weight learns there.
///
/// # Errors
/// As above.
pub fn backward(x: &Tensor, weight: &Tensor, eps: f64, dy: &Tensor, grads: &mut Grads) -> Result<Tensor> {
    derivative((x, weight, eps), dy, None, grads)
}

/// dx + `also`, the gradient that goes round the norm by a residual connection; dw as above.
///
/// # Errors
/// As above.
pub fn backward_sum(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
    dy: &Tensor,
    also: &Tensor,
    grads: &mut Grads,
) -> Result<Tensor> {
    derivative((x, weight, eps), dy, Some(also), grads)
}

fn derivative(
    (x, weight, eps): (&Tensor, &Tensor, f64),
    dy: &Tensor,
    also: Option<&Tensor>,
    grads: &mut Grads,
) -> Result<Tensor> {
    let (op, dy_td) = (RmsNorm { x_td: rows(x)?, weight: weight.detach(), eps }, rows(dy)?);
    #[cfg(feature = "cuda")]
    {
        let also_td = also.map(rows).transpose()?;
        let all = [&op.x_td, &op.weight, &dy_td].into_iter().chain(&also_td);
        if super::kernel::are_read(&all.collect::<Vec<_>>()) && also.is_none_or(|also| also.dims() == x.dims()) {
            let (dx_td, roots_t) = op.on_a_card_input(&dy_td, also_td.as_ref())?;
            grads.add_with(weight, || op.on_a_card_weight(&dy_td, &roots_t))?;
            return dx_td.reshape(x.shape());
        }
    }
    let fused = lanes::fused(&[x, weight, dy]);
    let (dx_td, dw) = if fused { op.fused_backward(&dy_td) } else { op.plain_backward(&dy_td) }?;
    grads.add_with(weight, || Ok(dw))?;
    let dx = dx_td.reshape(x.shape())?;
    also.map_or(Ok(dx.clone()), |also| elementwise::add(also, &dx))
}

struct RmsNorm {
    x_td: Tensor,
    weight: Tensor,
    eps: f64,
}

fn inverse_root(row: &[f32], eps: f64) -> f32 {
    1.0 / (dot(row, row) / row.len() as f32 + eps as f32).sqrt()
}

impl RmsNorm {
    fn fused_forward(&self) -> Result<Tensor> {
        let (t, d) = self.x_td.dims2()?;
        let mut y = vec![0f32; t * d];
        lanes::with_slices([&self.x_td, &self.weight], |[x, w]| {
            lanes::by_rows(&mut y, d, |first, y| {
                for (y, x) in y.chunks_exact_mut(d).zip(x[first * d..].chunks_exact(d)) {
                    let r = inverse_root(x, self.eps);
                    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                        *y = x * r * w;
                    }
                }
            });
        })?;
        Tensor::from_vec(y, (t, d), self.x_td.device())
    }

    fn fused_backward(&self, dy_td: &Tensor) -> Result<(Tensor, Tensor)> {
        let (t, d) = self.x_td.dims2()?;
        let mut dx = vec![0f32; t * d];
        let dw = lanes::with_slices([&self.x_td, &self.weight, dy_td], |[x, w, dy]| {
            let partial: Vec<Vec<f32>> = dx
                .par_chunks_mut(ROW_BLOCK * d)
                .enumerate()
                .map(|(block, dx)| {
                    let first = block * ROW_BLOCK * d;
                    lanes::vectorised(|| rows_backward(dx, &x[first..], &dy[first..], w, self.eps))
                })
                .collect();
            let mut dw = vec![0f32; d];
            for partial in partial {
                dw.iter_mut().zip(&partial).for_each(|(sum, part)| *sum += part);
            }
            dw
        })?;
        Ok((Tensor::from_vec(dx, (t, d), dy_td.device())?, Tensor::from_vec(dw, d, dy_td.device())?))
    }

    /// Normalised x and the inverse root, in at least f32.
    fn normalised(&self) -> Result<(Tensor, Tensor)> {
        let wide = if self.x_td.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let x_td = self.x_td.to_dtype(wide)?;
        let r_t1 = (x_td.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?.recip()?;
        Ok((x_td.broadcast_mul(&r_t1)?, r_t1))
    }

    fn plain_forward(&self) -> Result<Tensor> {
        let (n_td, _) = self.normalised()?;
        n_td.to_dtype(self.x_td.dtype())?.broadcast_mul(&self.weight)
    }

    fn plain_backward(&self, dy_td: &Tensor) -> Result<(Tensor, Tensor)> {
        let (n_td, r_t1) = self.normalised()?;
        let dy_td = dy_td.to_dtype(n_td.dtype())?;
        let g_td = dy_td.broadcast_mul(&self.weight.to_dtype(n_td.dtype())?)?;
        let mean_t1 = (&g_td * &n_td)?.mean_keepdim(D::Minus1)?;
        let dx_td = (g_td - n_td.broadcast_mul(&mean_t1)?)?.broadcast_mul(&r_t1)?;
        let dw = (dy_td * n_td)?.sum(0)?;
        Ok((dx_td.to_dtype(self.x_td.dtype())?, dw.to_dtype(self.weight.dtype())?))
    }
}

#[inline(always)]
fn rows_backward(dx: &mut [f32], x: &[f32], dy: &[f32], w: &[f32], eps: f64) -> Vec<f32> {
    let d = w.len();
    let mut dw = vec![0f32; d];
    let mut g = vec![0f32; d];
    for ((dx, x), dy) in dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(dy.chunks_exact(d)) {
        let r = inverse_root(x, eps);
        for (((g, dw), dy), (w, x)) in g.iter_mut().zip(&mut dw).zip(dy).zip(w.iter().zip(x)) {
            *g = dy * w;
            *dw += dy * x * r;
        }
        let mean = dot(&g, x) * r / d as f32;
        for ((dx, g), x) in dx.iter_mut().zip(&g).zip(x) {
            *dx = r * (g - x * r * mean);
        }
    }
    dw
}

#[cfg(feature = "cuda")]
mod on_a_card {
    use candle_core::{DType, Result, Tensor};

    use super::super::kernel::{Argument, Kernel, card, room, room_like};
    use super::RmsNorm;

    const TEXT: &str = concat!(include_str!("numbers.cu"), include_str!("rms_norm.cu"));
    static FORWARD: Kernel = Kernel::new("rms_norm_forward", TEXT);
    static INPUT: Kernel = Kernel::new("rms_norm_input", TEXT);
    static WEIGHT: Kernel = Kernel::new("rms_norm_weight", TEXT);
    static SUM: Kernel = Kernel::new("rms_norm_sum", TEXT);

    /// Rows of a block: a warp takes one.
    const WARPS: usize = 8;
    /// Blocks that sum rows of dy ⊙ n, at most; and rows of each, at least.
    const PARTS: usize = 528;
    const ROWS: usize = 16;

    #[allow(unsafe_code)]
    impl RmsNorm {
        /// x, or its sum with `also`, and the norm of that.
        pub(super) fn on_a_card_forward(&self, also: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
            let ((t, d), y_td) = (self.x_td.dims2()?, room_like(&self.x_td)?);
            let sum_td = also.map_or(Ok(self.x_td.clone()), |_| room_like(&self.x_td))?;
            let arguments = [
                Argument::of(&self.x_td)?,
                also.map_or(Ok(Argument::NOTHING), Argument::of)?,
                Argument::of(&self.weight)?,
                Argument::of(&sum_td)?,
                Argument::of(&y_td)?,
                Argument::count(t),
                Argument::count(d),
                Argument::Number(self.eps as f32),
                Argument::half(&self.x_td),
            ];
            // SAFETY: the signature of rms_norm_forward: x, y, `also` and the sum have t·d values, w d, of one type that `are_read` has seen; y is new,
            // and so is the sum, which is written only beside `also`.
            unsafe { FORWARD.launch(card(&y_td)?, t.div_ceil(WARPS), &arguments)? };
            Ok((sum_td, y_td))
        }

        /// dx, or dx + `also`, and the inverse root of each row.
        pub(super) fn on_a_card_input(&self, dy_td: &Tensor, also: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
            let (t, d) = self.x_td.dims2()?;
            let (dx_td, roots_t) = (room_like(&self.x_td)?, room(t, DType::F32, self.x_td.device())?);
            let arguments = [
                Argument::of(&self.x_td)?,
                Argument::of(&self.weight)?,
                Argument::of(dy_td)?,
                also.map_or(Ok(Argument::NOTHING), Argument::of)?,
                Argument::of(&dx_td)?,
                Argument::of(&roots_t)?,
                Argument::count(t),
                Argument::count(d),
                Argument::Number(self.eps as f32),
                Argument::half(&self.x_td),
            ];
            // SAFETY: the signature of rms_norm_input: x, dy, `also` and dx have t·d values, w d, of one type that `are_read` has seen, roots t in f32;
            // dx and roots are new.
            unsafe { INPUT.launch(card(dy_td)?, t.div_ceil(WARPS), &arguments)? };
            Ok((dx_td, roots_t))
        }

        /// dw, by the inverse roots of the rows.
        pub(super) fn on_a_card_weight(&self, dy_td: &Tensor, roots_t: &Tensor) -> Result<Tensor> {
            let ((t, d), device) = (self.x_td.dims2()?, self.x_td.device());
            let rows_of_block = t.div_ceil(PARTS).max(ROWS);
            // A thread takes four columns where it can.
            let units = if d.is_multiple_of(4) { d / 4 } else { d };
            let (count, columns) = (t.div_ceil(rows_of_block), units.next_power_of_two().clamp(1, 256));
            let (parts, dw) = (room((count, d), DType::F32, device)?, room(d, DType::F32, device)?);
            let (sums, width) = (Argument::of(&parts)?, Argument::count(d));
            let arguments = [
                Argument::of(&self.x_td)?,
                Argument::of(dy_td)?,
                Argument::of(roots_t)?,
                sums,
                Argument::count(t),
                width,
                Argument::count(rows_of_block),
                Argument::count(columns),
                Argument::half(&self.x_td),
            ];
            // SAFETY: the signature of rms_norm_weight: x and dy have t·d values of one type that `are_read` has seen, roots t in f32, and `parts`, which is new,
            // has a row of d values in f32 for each block; `columns` divides 256.
            unsafe { WEIGHT.launch(card(dy_td)?, count, &arguments)? };
            let arguments = [sums, Argument::of(&dw)?, Argument::count(count), width];
            // SAFETY: the signature of rms_norm_sum: `parts` has count·d values, dw, which is new, d, all f32.
            unsafe { SUM.launch(card(dy_td)?, d.div_ceil(32), &arguments)? };
            dw.to_dtype(self.weight.dtype())
        }
    }
}
