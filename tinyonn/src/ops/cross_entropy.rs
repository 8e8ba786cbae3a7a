//! Cross-entropy of a language-model head, without the logits outliving a chunk: ℓ_t = log Σ_v exp(x_t·W_v) − x_t·W_target.
//!
//! Shapes: x `[.., d]`, W `[V, d]`, targets `[..]` u32 with `u32::MAX` for "no target", ℓ `[..]` f32 in nats (0 without a
//! target). Tokens go in chunks of at most 2²⁶ logits. The logits of a single chunk are kept for the backward; with
//! more chunks each is computed anew: memory stays bounded whatever V. dlogits = (softmax − one-hot) dℓ.

use candle_core::{D, DType, Result, Tensor};

use super::lanes::{self, exp};
use super::linear::rows;
use super::tape::{self, Backward};

/// Logits held at once: 2²⁶ (256 MB in f32), below candle's limit of 2³² elements a launch.
const CHUNK: usize = 1 << 26;

/// The cross-entropy of each token, differentiable in x and W.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn head_cross_entropy(x: &Tensor, weight: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (x_td, weight_vd) = (rows(&x.detach())?, weight.detach());
    let chunk = (CHUNK / weight_vd.dim(0)?.max(1)).max(1);
    let mut op = Head { x_td, weight_vd, targets: targets.flatten_all()?.to_vec1()?, chunk, logits: None };
    let tokens = op.targets.len();
    if op.x_td.dim(0)? != tokens {
        candle_core::bail!("head_cross_entropy: {} rows of x, {tokens} targets", op.x_td.dim(0)?);
    }
    let mut losses = Vec::with_capacity(tokens.div_ceil(chunk));
    for first in (0..tokens).step_by(chunk) {
        let logits_tv = op.logits(first)?;
        losses.push(op.losses(first, &logits_tv)?);
        if tokens <= chunk {
            op.logits = Some(logits_tv);
        }
    }
    let loss = Tensor::cat(&losses, 0)?.reshape(targets.shape())?;
    tape::record(&[x, weight], loss, op)
}

struct Head {
    x_td: Tensor,
    weight_vd: Tensor,
    targets: Vec<u32>,
    chunk: usize,
    /// All logits, when they fit one chunk.
    logits: Option<Tensor>,
}

impl Head {
    fn rows_from(&self, first: usize) -> usize {
        self.chunk.min(self.targets.len() - first)
    }

    /// `[rows, V]` of the chunk that starts at token `first`.
    fn logits(&self, first: usize) -> Result<Tensor> {
        self.x_td.narrow(0, first, self.rows_from(first))?.matmul(&self.weight_vd.t()?)
    }

    fn losses(&self, first: usize, logits_tv: &Tensor) -> Result<Tensor> {
        let targets = &self.targets[first..first + self.rows_from(first)];
        if lanes::fused(&[logits_tv]) {
            return fused_losses(logits_tv, targets);
        }
        let logits_tv = logits_tv.to_dtype(wide(logits_tv.dtype()))?;
        let index = Tensor::new(targets, logits_tv.device())?;
        let known = index.ne(u32::MAX)?;
        let index = known.where_cond(&index, &index.zeros_like()?)?;
        let target = logits_tv.gather(&index.unsqueeze(1)?, 1)?.squeeze(1)?;
        let losses = (logits_tv.log_sum_exp(D::Minus1)? - target)?;
        known.where_cond(&losses, &losses.zeros_like()?)
    }

    /// dlogits of a chunk, in the logits' dtype.
    fn logits_gradient(&self, first: usize, logits_tv: &Tensor, dloss: &Tensor) -> Result<Tensor> {
        let targets = &self.targets[first..first + self.rows_from(first)];
        let dloss = dloss.narrow(0, first, targets.len())?;
        if lanes::fused(&[logits_tv, &dloss]) {
            return fused_gradient(logits_tv, targets, &dloss.to_vec1()?);
        }
        let wide = wide(logits_tv.dtype());
        let p_tv = candle_nn::ops::softmax(&logits_tv.to_dtype(wide)?, D::Minus1)?;
        let index = Tensor::new(targets, p_tv.device())?;
        let columns = Tensor::arange(0u32, p_tv.dim(1)? as u32, p_tv.device())?.unsqueeze(0)?;
        let one_hot = index.unsqueeze(1)?.broadcast_eq(&columns)?.to_dtype(wide)?;
        let scale = (dloss.to_dtype(wide)? * index.ne(u32::MAX)?.to_dtype(wide)?)?.unsqueeze(1)?;
        (p_tv - one_hot)?.broadcast_mul(&scale)?.to_dtype(logits_tv.dtype())
    }
}

impl Backward for Head {
    fn name(&self) -> &'static str {
        "head_cross_entropy"
    }

    fn backward(&self, _: &Tensor, grad: &Tensor, needs: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let dloss = grad.flatten_all()?;
        let (mut dx, mut dw) = (Vec::new(), None::<Tensor>);
        for first in (0..self.targets.len()).step_by(self.chunk) {
            let logits_tv = match &self.logits {
                Some(logits) => logits.clone(),
                None => self.logits(first)?,
            };
            let dlogits_tv = self.logits_gradient(first, &logits_tv, &dloss)?;
            if needs[0] {
                dx.push(dlogits_tv.matmul(&self.weight_vd)?);
            }
            if needs[1] {
                let part = dlogits_tv.t()?.matmul(&self.x_td.narrow(0, first, self.rows_from(first))?)?;
                dw = Some(match dw {
                    Some(sum) => (sum + part)?,
                    None => part,
                });
            }
        }
        let dx = needs[0].then(|| Tensor::cat(&dx, 0)?.reshape(self.x_shape(grad)?)).transpose()?;
        Ok(vec![dx, dw])
    }
}

impl Head {
    fn x_shape(&self, grad: &Tensor) -> Result<Vec<usize>> {
        Ok(grad.dims().iter().copied().chain([self.x_td.dim(1)?]).collect())
    }
}

fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

#[inline(always)]
fn maximum_and_sum(row: &[f32]) -> (f32, f32) {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    let max = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0f32; 16];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += exp(x - max));
    }
    (max, sums.iter().sum::<f32>() + rest.iter().map(|x| exp(x - max)).sum::<f32>())
}

fn fused_losses(logits_tv: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let v = logits_tv.dim(1)?;
    let mut losses = vec![0f32; targets.len()];
    lanes::with_slices([logits_tv], |[logits]| {
        lanes::by_rows(&mut losses, 1, |first, losses| {
            for (row, loss) in losses.iter_mut().enumerate() {
                let target = targets[first + row] as usize;
                if let Some(at_target) = logits[(first + row) * v..][..v].get(target) {
                    let (max, sum) = maximum_and_sum(&logits[(first + row) * v..][..v]);
                    *loss = max + sum.ln() - at_target;
                }
            }
        });
    })?;
    Tensor::from_vec(losses, targets.len(), logits_tv.device())
}

fn fused_gradient(logits_tv: &Tensor, targets: &[u32], dloss: &[f32]) -> Result<Tensor> {
    let v = logits_tv.dim(1)?;
    let mut gradient = vec![0f32; targets.len() * v];
    lanes::with_slices([logits_tv], |[logits]| {
        lanes::by_rows(&mut gradient, v, |first, gradient| {
            for (row, gradient) in gradient.chunks_exact_mut(v).enumerate() {
                let (logits, target) = (&logits[(first + row) * v..][..v], targets[first + row] as usize);
                if target >= v {
                    continue;
                }
                let (max, sum) = maximum_and_sum(logits);
                let scale = dloss[first + row] / sum;
                gradient.iter_mut().zip(logits).for_each(|(g, x)| *g = exp(x - max) * scale);
                gradient[target] -= dloss[first + row];
            }
        });
    })?;
    Tensor::from_vec(gradient, logits_tv.shape(), logits_tv.device())
}
