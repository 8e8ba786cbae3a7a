//! The cross-entropy between the shares that labels ask for and the probabilities of routers' choices:
//! L = −mean_t Σ_pc w[class_t, p, c] log softmax_c ℓ[t, p, c], and ∂L/∂ℓ = (softmax ℓ · Σ_c w − w) / t.
//!
//! Legend: t rows, p routers with c choices each, k classes of rows; ℓ `[t, p, c]`, w `[k, p·c]`, classes `[t]` u32.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use tinyonn::ops::share_loss::{Shares, backward, forward};
//!
//! // One router of two choices, one row, which is asked for the first choice alone.
//! let (shares_kn, classes_t) = (Tensor::new(&[[1f32, 0.0]], &Device::Cpu)?, Tensor::new(&[0u32], &Device::Cpu)?);
//! let asked = || Shares { shares_kn: &shares_kn, classes_t: &classes_t };
//! let logits = Tensor::zeros((1, 1, 2), DType::F32, &Device::Cpu)?;
//! assert!((forward(&logits, asked())?.to_dtype(DType::F64)?.to_scalar::<f64>()? - 2f64.ln()).abs() < 1e-6);
//! assert_eq!(backward(&logits, asked())?.flatten_all()?.to_vec1::<f32>()?, [-0.5, 0.5]); // p − w
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{D, Result, Tensor};

use super::lanes;

/// What rows are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Shares<'a> {
    /// w.
    pub shares_kn: &'a Tensor,
    /// The class of each row.
    pub classes_t: &'a Tensor,
}

impl Shares<'_> {
    /// Runs `f(logits, w, classes)` on the values, if the loops here may run.
    fn in_rows<R>(&self, logits: &Tensor, f: impl FnOnce(&[f32], &[f32], &[u32]) -> R) -> Result<Option<R>> {
        let (t, p, c) = logits.dims3()?;
        let (k, n) = self.shares_kn.dims2()?;
        if self.classes_t.dims() != [t] || n != p * c {
            candle_core::bail!("shares of {n} choices for {p} routers of {c}, or not a class for each of {t} rows");
        }
        let tensors = [logits, self.shares_kn];
        if !lanes::fused(&tensors) || !tensors.iter().all(|x| x.is_contiguous()) || n == 0 {
            return Ok(None);
        }
        let [logits, shares] = [logits.detach(), self.shares_kn.detach()];
        lanes::with_ids(&self.classes_t.contiguous()?, |classes| {
            if let Some(class) = classes.iter().find(|class| **class as usize >= k) {
                candle_core::bail!("a row of class {class}, of {k}");
            }
            lanes::with_slices([&logits, &shares], |[logits, shares]| f(logits, shares, classes)).map(Some)
        })?
    }

    fn of_rows(&self) -> Result<Tensor> {
        self.shares_kn.detach().index_select(self.classes_t, 0)
    }
}

/// L, a scalar.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn forward(logits: &Tensor, asked: Shares<'_>) -> Result<Tensor> {
    let (t, p, c) = logits.dims3()?;
    let sum = asked.in_rows(logits, |logits, shares, classes| {
        let mut losses = vec![0f32; t];
        lanes::by_rows(&mut losses, 1, |first, losses| {
            let mut p_n = vec![0f32; p * c];
            for (row, loss) in losses.iter_mut().enumerate() {
                let logits = &logits[(first + row) * p * c..][..p * c];
                let shares = &shares[classes[first + row] as usize * p * c..][..p * c];
                exponentials(logits, c, &mut p_n);
                let routers = p_n.chunks_exact(c).zip(logits.chunks_exact(c)).zip(shares.chunks_exact(c));
                for ((p_c, logits), shares) in routers {
                    let log_sum = maximum(logits) + p_c.iter().sum::<f32>().ln();
                    *loss -= logits.iter().zip(shares).map(|(x, share)| (x - log_sum) * share).sum::<f32>();
                }
            }
        });
        losses.iter().map(|loss| f64::from(*loss)).sum::<f64>()
    })?;
    if let Some(sum) = sum {
        return Tensor::new(sum / t as f64, logits.device());
    }
    let log_p = candle_nn::ops::log_softmax(&logits.detach(), D::Minus1)?.flatten_from(1)?;
    (log_p * asked.of_rows()?)?.sum(D::Minus1)?.mean_all()?.neg()
}

/// ∂L/∂ℓ `[t, p, c]`.
///
/// # Errors
/// As above.
pub fn backward(logits: &Tensor, asked: Shares<'_>) -> Result<Tensor> {
    let (t, p, c) = logits.dims3()?;
    let gradient = asked.in_rows(logits, |logits, shares, classes| {
        let mut gradient = vec![0f32; t * p * c];
        let share_of_row = 1.0 / t as f32;
        lanes::by_rows(&mut gradient, p * c, |first, gradient| {
            for (row, gradient) in gradient.chunks_exact_mut(p * c).enumerate() {
                let shares = &shares[classes[first + row] as usize * p * c..][..p * c];
                exponentials(&logits[(first + row) * p * c..][..p * c], c, gradient);
                for (gradient, shares) in gradient.chunks_exact_mut(c).zip(shares.chunks_exact(c)) {
                    let factor = shares.iter().sum::<f32>() / gradient.iter().sum::<f32>();
                    gradient.iter_mut().zip(shares).for_each(|(g, share)| *g = (*g * factor - share) * share_of_row);
                }
            }
        });
        gradient
    })?;
    if let Some(gradient) = gradient {
        return Tensor::from_vec(gradient, (t, p, c), logits.device());
    }
    let shares_tpc = asked.of_rows()?.reshape((t, p, c))?;
    let asked_tp = shares_tpc.sum_keepdim(D::Minus1)?;
    let p_tpc = candle_nn::ops::softmax(&logits.detach(), D::Minus1)?;
    (p_tpc.broadcast_mul(&asked_tp)? - shares_tpc)? / t as f64
}

#[inline(always)]
fn maximum(row: &[f32]) -> f32 {
    row.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// e^(ℓ − max_c ℓ) of one row of all routers; the exponentials of a row are one loop, as that of a router is too short.
#[inline(always)]
fn exponentials(logits: &[f32], choices: usize, out: &mut [f32]) {
    for (out, logits) in out.chunks_exact_mut(choices).zip(logits.chunks_exact(choices)) {
        let max = maximum(logits);
        out.iter_mut().zip(logits).for_each(|(out, x)| *out = x - max);
    }
    out.iter_mut().for_each(|x| *x = lanes::exp(*x));
}
