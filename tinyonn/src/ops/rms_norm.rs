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
        let together = also.is_none_or(|also| also.dims() == x.dims()) && grads.takes_on_a_card(weight);
        if super::kernel::are_read(&all.collect::<Vec<_>>()) && together {
            let (dx_td, parts) = op.on_a_card_backward(&dy_td, also_td.as_ref(), grads.learns(weight))?;
            if let Some(parts) = parts {
                on_a_card::put(&[(weight, parts)], grads)?;
            }
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
pub(super) mod on_a_card {
    use candle_core::{DType, Result, Tensor};

    use super::super::Grads;
    use super::super::kernel::{Argument, Grid, Kernel, THREADS, card, room, room_like};
    use super::RmsNorm;

    pub(in super::super) static KERNELS: Kernel = Kernel::new(
        "rms_norm",
        concat!(
            include_str!("numbers.cu"),
            include_str!("rms_norm.cu"),
            include_str!("rms_norm_rows.cu"),
            include_str!("norm_rope.cu")
        ),
    );

    /// Rows of a block at once: a warp takes one.
    const WARPS: usize = 8;
    /// Blocks that take rows one after another, at most: one on each of an H200's multiprocessors, whatever the card is, so that sums have one order.
    const PARTS: usize = 132;
    /// The same, where rows of dy ⊙ n are summed for themselves; and rows of each, at least.
    const PARTS_ALONE: usize = 528;
    const ROWS: usize = 16;
    /// Columns of a block that sums those sums.
    const COLUMNS: usize = 8;

    pub(in super::super) fn grid(blocks: (usize, usize)) -> Grid {
        Grid { blocks, threads: THREADS, shared_bytes: 0 }
    }

    /// Chunks of sixteen bytes that a lane holds of a row of d values; `None` of rows that are too long for that, or end within a chunk.
    fn chunks(d: usize, dtype: DType) -> Option<usize> {
        let values = 16 / dtype.size_in_bytes();
        let chunks = (d / values).div_ceil(32).next_power_of_two();
        (d.is_multiple_of(values) && chunks <= 8).then_some(chunks)
    }

    fn or_nothing(tensor: Option<&Tensor>) -> Result<Argument> {
        tensor.map_or(Ok(Argument::NOTHING), Argument::of)
    }

    /// Gradients of weights, two at most and no weight twice, from sums of blocks `[blocks, d]`: put or added where they belong.
    #[allow(unsafe_code)]
    pub(in super::super) fn put(weights: &[(&Tensor, Tensor)], grads: &mut Grads) -> Result<()> {
        let mut sums = Vec::with_capacity(weights.len());
        for (weight, parts) in weights {
            if let Some((target, add)) = grads.target(weight) {
                sums.push((parts, target, add));
            }
        }
        let Some((parts, ..)) = sums.first() else { return Ok(()) };
        let (device, d) = (card(parts)?, parts.dim(1)?);
        let mut arguments = Vec::with_capacity(11);
        for (parts, target, add) in &sums {
            let count = Argument::count(parts.dim(0)?);
            let add = Argument::count(usize::from(*add));
            arguments.extend([Argument::of(parts)?, Argument::of(target)?, count, Argument::half(target), add]);
        }
        arguments.resize(10, Argument::NOTHING);
        arguments.push(Argument::count(d));
        let grid = grid((d.div_ceil(COLUMNS), sums.len()));
        // SAFETY: the signature of rms_norm_sum: of each sum, parts of `count` rows of d values in f32 and a gradient of d values in f32 or bf16, of which no
        // other reference is used; as many sums as the grid has rows.
        unsafe { KERNELS.launch_function("rms_norm_sum", device, &grid, &arguments) }
    }

    #[allow(unsafe_code)]
    impl RmsNorm {
        /// x, or its sum with `also`, and the norm of that.
        pub(super) fn on_a_card_forward(&self, also: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
            let ((t, d), y_td) = (self.x_td.dims2()?, room_like(&self.x_td)?);
            let sum_td = also.map_or(Ok(self.x_td.clone()), |_| room_like(&self.x_td))?;
            let arguments = [
                Argument::of(&self.x_td)?,
                or_nothing(also)?,
                Argument::of(&self.weight)?,
                Argument::of(&sum_td)?,
                Argument::of(&y_td)?,
                Argument::count(t),
                Argument::count(d),
                Argument::Number(self.eps as f32),
                Argument::half(&self.x_td),
            ];
            let name = match chunks(d, self.x_td.dtype()) {
                Some(chunks) => format!("rms_norm_forward_{chunks}"),
                None => String::from("rms_norm_forward"),
            };
            // SAFETY: the one signature of rms_norm_forward and of those that hold rows of so many chunks: x, y, `also` and the sum have t·d values, w d, of one
            // type that `are_read` has seen; y is new, and so is the sum, which is written only beside `also`.
            unsafe { KERNELS.launch_function(&name, card(&y_td)?, &grid((t.div_ceil(WARPS), 1)), &arguments)? };
            Ok((sum_td, y_td))
        }

        /// dx, or dx + `also`; and sums of dy ⊙ n of blocks of rows, `[blocks, d]`, if the weight `learns`.
        pub(super) fn on_a_card_backward(
            &self,
            dy_td: &Tensor,
            also: Option<&Tensor>,
            learns: bool,
        ) -> Result<(Tensor, Option<Tensor>)> {
            let (t, d) = self.x_td.dims2()?;
            let Some(chunks) = chunks(d, self.x_td.dtype()) else {
                let (dx_td, roots_t) = self.on_a_card_input(dy_td, also)?;
                let parts = learns.then(|| self.on_a_card_weight(dy_td, &roots_t));
                return Ok((dx_td, parts.transpose()?));
            };
            let (dx_td, blocks) = (room_like(&self.x_td)?, t.div_ceil(WARPS).min(PARTS));
            let parts = learns.then(|| room((blocks, d), DType::F32, self.x_td.device())).transpose()?;
            let arguments = [
                Argument::of(&self.x_td)?,
                Argument::of(&self.weight)?,
                Argument::of(dy_td)?,
                or_nothing(also)?,
                Argument::of(&dx_td)?,
                or_nothing(parts.as_ref())?,
                Argument::count(t),
                Argument::count(d),
                Argument::Number(self.eps as f32),
                Argument::half(&self.x_td),
            ];
            let name = format!("rms_norm_backward_{chunks}");
            // SAFETY: the signature of rms_norm_backward of so many chunks: x, dy, `also` and dx have t·d values, w d, of one type that `are_read` has seen, and
            // the parts a row of d values in f32 for each block; dx and the parts are new.
            unsafe { KERNELS.launch_function(&name, card(dy_td)?, &grid((blocks, 1)), &arguments)? };
            Ok((dx_td, parts))
        }

        /// The same of rows of any length: dx, or dx + `also`, and the inverse root of each row.
        fn on_a_card_input(&self, dy_td: &Tensor, also: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
            let (t, d) = self.x_td.dims2()?;
            let (dx_td, roots_t) = (room_like(&self.x_td)?, room(t, DType::F32, self.x_td.device())?);
            let arguments = [
                Argument::of(&self.x_td)?,
                Argument::of(&self.weight)?,
                Argument::of(dy_td)?,
                or_nothing(also)?,
                Argument::of(&dx_td)?,
                Argument::of(&roots_t)?,
                Argument::count(t),
                Argument::count(d),
                Argument::Number(self.eps as f32),
                Argument::half(&self.x_td),
            ];
            let grid = grid((t.div_ceil(WARPS), 1));
            // SAFETY: the signature of rms_norm_input: x, dy, `also` and dx have t·d values, w d, of one type that `are_read` has seen, roots t in f32;
            // dx and roots are new.
            unsafe { KERNELS.launch_function("rms_norm_input", card(dy_td)?, &grid, &arguments)? };
            Ok((dx_td, roots_t))
        }

        /// Sums of dy ⊙ n of blocks of rows, by the inverse roots of the rows.
        fn on_a_card_weight(&self, dy_td: &Tensor, roots_t: &Tensor) -> Result<Tensor> {
            let (t, d) = self.x_td.dims2()?;
            let rows_of_block = t.div_ceil(PARTS_ALONE).max(ROWS);
            // A thread takes four columns where it can.
            let units = if d.is_multiple_of(4) { d / 4 } else { d };
            let (count, columns) = (t.div_ceil(rows_of_block), units.next_power_of_two().clamp(1, 256));
            let parts = room((count, d), DType::F32, self.x_td.device())?;
            let arguments = [
                Argument::of(&self.x_td)?,
                Argument::of(dy_td)?,
                Argument::of(roots_t)?,
                Argument::of(&parts)?,
                Argument::count(t),
                Argument::count(d),
                Argument::count(rows_of_block),
                Argument::count(columns),
                Argument::half(&self.x_td),
            ];
            // SAFETY: the signature of rms_norm_weight: x and dy have t·d values of one type that `are_read` has seen, roots t in f32, and `parts`, which is new,
            // has a row of d values in f32 for each block; `columns` divides 256.
            unsafe { KERNELS.launch_function("rms_norm_weight", card(dy_td)?, &grid((count, 1)), &arguments)? };
            Ok(parts)
        }
    }
}
