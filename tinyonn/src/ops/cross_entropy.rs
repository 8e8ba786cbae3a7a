//! Cross-entropy of a language-model head, without the logits outliving a chunk: ℓ_t = log Σ_v exp(x_t·W_v) − x_t·W_target.
//!
//! Shapes: x `[.., d]`, W `[V, d]`, targets `[..]` u32 with `u32::MAX` for "no target", ℓ `[..]` f32 in nats (0 without a
//! target). Tokens go in chunks of at most 2²⁶ logits (4 GiB of them on a GPU). The logits of a single chunk are kept for the backward; with
//! more chunks each is computed anew: memory stays bounded whatever V. dlogits = (softmax − one-hot) dℓ.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use tinyonn::ops::Grads;
//! use tinyonn::ops::cross_entropy::{Saved, backward, forward};
//!
//! // Two states of width 3, a head of four tokens that knows nothing: ln 4 each.
//! let (x, head) = (Tensor::ones((2, 3), DType::F32, &Device::Cpu)?, Tensor::zeros((4, 3), DType::F32, &Device::Cpu)?);
//! let (losses, saved): (Tensor, Option<Saved>) = forward(&x, &head, &Tensor::new(&[1u32, 3], &Device::Cpu)?, true)?;
//! assert!(losses.to_vec1::<f32>()?.iter().all(|loss| (loss - 4f32.ln()).abs() < 1e-6));
//! let saved = saved.expect("it was kept");
//! let dx = backward(saved, &head, &losses.ones_like()?, true, &mut Grads::none())?;
//! assert_eq!(dx.map(|dx| dx.dims().to_vec()), Some(vec![2, 3]));
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{D, DType, Result, Tensor};

use super::Grads;
use super::lanes::{self, exp};
use super::linear::rows;

/// Logits held at once in main memory: 2²⁶ (256 MB in f32), below candle's limit of 2³² elements a launch.
const CHUNK: usize = 1 << 26;
/// Bytes of logits held at once on a GPU: those of 8,192 tokens and 2¹⁸ entries in bf16, which need not be computed anew then.
const BYTES_ON_A_CARD: usize = 1 << 32;

/// What the backward needs.
#[derive(Debug)]
pub struct Saved {
    head: Head,
    /// All logits, when they fit one chunk.
    logits_tv: Option<Tensor>,
    /// Of each chunk what its losses were made of, where the derivative has use for it.
    peaks: Vec<Option<Tensor>>,
}

/// The cross-entropy of each token, f32; what the backward needs only if `keep`.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn forward(x: &Tensor, weight_vd: &Tensor, targets: &Tensor, keep: bool) -> Result<(Tensor, Option<Saved>)> {
    let (x_td, weight_vd) = (rows(x)?, weight_vd.detach());
    let on_a_card = BYTES_ON_A_CARD / weight_vd.dtype().size_in_bytes();
    let logits = if weight_vd.device().is_cuda() { on_a_card } else { CHUNK };
    let chunk = (logits / weight_vd.dim(0)?.max(1)).max(1);
    let targets_t = targets.flatten_all()?.contiguous()?;
    let head = Head { x_td, weight_vd, targets_t, chunk };
    let tokens = head.tokens();
    if head.x_td.dim(0)? != tokens {
        candle_core::bail!("head_cross_entropy: {} rows of x, {tokens} targets", head.x_td.dim(0)?);
    }
    let (mut losses, mut peaks, mut logits) = (Vec::with_capacity(tokens.div_ceil(chunk)), Vec::new(), None);
    for first in (0..tokens).step_by(chunk) {
        let logits_tv = head.logits(first)?;
        let (of_chunk, peaks_t2) = head.losses(first, &logits_tv)?;
        losses.push(of_chunk);
        peaks.push(peaks_t2);
        if keep && tokens <= chunk {
            logits = Some(logits_tv);
        }
    }
    let losses = Tensor::cat(&losses, 0)?.reshape(targets.shape())?;
    Ok((losses, keep.then_some(Saved { head, logits_tv: logits, peaks })))
}

/// dx `[t, d]`, given the gradient of each token's loss, if `input`; dW goes to `grads`, if `weight_vd` learns there.
///
/// # Errors
/// As above.
pub fn backward(
    saved: Saved,
    weight_vd: &Tensor,
    dlosses: &Tensor,
    input: bool,
    grads: &mut Grads,
) -> Result<Option<Tensor>> {
    let Saved { head, logits_tv, peaks } = saved;
    let (mut kept, mut dx, dloss_t) = (logits_tv, Vec::new(), dlosses.detach().flatten_all()?.contiguous()?);
    for (first, peaks_t2) in (0..head.tokens()).step_by(head.chunk).zip(&peaks) {
        let logits_tv = kept.take().map_or_else(|| head.logits(first), Ok)?;
        let dlogits_tv = head.logits_gradient(first, logits_tv, peaks_t2.as_ref(), &dloss_t)?;
        if input {
            dx.push(dlogits_tv.matmul(&head.weight_vd)?);
        }
        grads.add_product(weight_vd, &dlogits_tv, &head.x_td.narrow(0, first, head.rows_from(first))?)?;
    }
    input.then(|| Tensor::cat(&dx, 0)).transpose()
}

#[derive(Debug)]
struct Head {
    x_td: Tensor,
    weight_vd: Tensor,
    targets_t: Tensor,
    chunk: usize,
}

impl Head {
    fn tokens(&self) -> usize {
        self.targets_t.elem_count()
    }

    fn rows_from(&self, first: usize) -> usize {
        self.chunk.min(self.tokens() - first)
    }

    fn targets(&self, first: usize) -> Result<Tensor> {
        self.targets_t.narrow(0, first, self.rows_from(first))
    }

    /// `[rows, V]` of the chunk that starts at token `first`.
    fn logits(&self, first: usize) -> Result<Tensor> {
        self.x_td.narrow(0, first, self.rows_from(first))?.matmul(&self.weight_vd.t()?)
    }

    /// And on a GPU the maximum and Σ exp(x − maximum) of each row, `[t, 2]` f32.
    fn losses(&self, first: usize, logits_tv: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let index = self.targets(first)?;
        #[cfg(feature = "cuda")]
        if super::kernel::is_read(logits_tv) {
            let (losses_t, peaks_t2) = on_a_card::losses(logits_tv, &index)?;
            return Ok((losses_t, Some(peaks_t2)));
        }
        if lanes::fused(&[logits_tv]) {
            return Ok((lanes::with_ids(&index, |targets| fused_losses(logits_tv, targets))??, None));
        }
        let logits_tv = logits_tv.to_dtype(wide(logits_tv.dtype()))?;
        let known = index.ne(u32::MAX)?;
        let index = known.where_cond(&index, &index.zeros_like()?)?;
        let target = logits_tv.gather(&index.unsqueeze(1)?, 1)?.squeeze(1)?;
        let losses = (logits_tv.log_sum_exp(D::Minus1)? - target)?;
        Ok((known.where_cond(&losses, &losses.zeros_like()?)?, None))
    }

    /// dlogits of a chunk, in the logits' dtype; on a GPU in the logits' place.
    // By value: nobody reads the logits afterwards. The peaks are read on a GPU alone.
    #[allow(clippy::needless_pass_by_value)]
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
    fn logits_gradient(
        &self,
        first: usize,
        logits_tv: Tensor,
        peaks_t2: Option<&Tensor>,
        dloss: &Tensor,
    ) -> Result<Tensor> {
        let index = self.targets(first)?;
        let dloss = dloss.narrow(0, first, self.rows_from(first))?;
        #[cfg(feature = "cuda")]
        if let Some(peaks_t2) = peaks_t2 {
            return on_a_card::gradient(logits_tv, &index, peaks_t2, &dloss.to_dtype(DType::F32)?);
        }
        if lanes::fused(&[&logits_tv, &dloss]) {
            let gradient =
                |targets: &[u32]| lanes::with_slices([&dloss], |[dloss]| fused_gradient(&logits_tv, targets, dloss));
            return lanes::with_ids(&index, gradient)??;
        }
        let wide = wide(logits_tv.dtype());
        let p_tv = candle_nn::ops::softmax(&logits_tv.to_dtype(wide)?, D::Minus1)?;
        let columns = Tensor::arange(0u32, p_tv.dim(1)? as u32, p_tv.device())?.unsqueeze(0)?;
        let one_hot = index.unsqueeze(1)?.broadcast_eq(&columns)?.to_dtype(wide)?;
        let scale = (dloss.to_dtype(wide)? * index.ne(u32::MAX)?.to_dtype(wide)?)?.unsqueeze(1)?;
        (p_tv - one_hot)?.broadcast_mul(&scale)?.to_dtype(logits_tv.dtype())
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

#[cfg(feature = "cuda")]
mod on_a_card {
    use candle_core::{DType, Result, Tensor};

    use super::super::kernel::{Argument, Kernel, card, room};

    const TEXT: &str = concat!(include_str!("numbers.cu"), include_str!("peak.cu"), include_str!("cross_entropy.cu"));
    static LOSSES: Kernel = Kernel::new("cross_entropy", TEXT);
    static GRADIENT: Kernel = Kernel::new("cross_entropy_gradient", TEXT);

    #[allow(unsafe_code)]
    pub(super) fn losses(logits_tv: &Tensor, targets_t: &Tensor) -> Result<(Tensor, Tensor)> {
        let ((t, v), losses_t) = (logits_tv.dims2()?, room(targets_t.shape(), DType::F32, logits_tv.device())?);
        let peaks_t2 = room((t, 2), DType::F32, logits_tv.device())?;
        let [logits, targets, losses, peaks] = [logits_tv, targets_t, &losses_t, &peaks_t2].map(Argument::of);
        let arguments = [logits?, targets?, losses?, peaks?, Argument::count(v), Argument::half(logits_tv)];
        // SAFETY: the signature of cross_entropy: a block for each of t rows of v logits, as many targets in u32, losses and pairs of peaks in f32, which
        // are new.
        unsafe { LOSSES.launch(card(logits_tv)?, t, &arguments)? };
        Ok((losses_t, peaks_t2))
    }

    /// Takes the place of the logits, which nobody else has.
    #[allow(unsafe_code)]
    pub(super) fn gradient(
        logits_tv: Tensor,
        targets_t: &Tensor,
        peaks_t2: &Tensor,
        dlosses_t: &Tensor,
    ) -> Result<Tensor> {
        let ((t, v), dlosses_t) = (logits_tv.dims2()?, dlosses_t.contiguous()?);
        let [logits, targets, peaks, dlosses] = [&logits_tv, targets_t, peaks_t2, &dlosses_t].map(Argument::of);
        let arguments = [logits?, targets?, peaks?, dlosses?, Argument::count(v), Argument::half(&logits_tv)];
        // SAFETY: the signature of cross_entropy_gradient: as above, the peaks as `losses` has written them; the logits are given by value, and their storage is that of one product alone.
        unsafe { GRADIENT.launch(card(&logits_tv)?, t, &arguments)? };
        Ok(logits_tv)
    }
}
