//! What decisions that many tokens share are asked about: means of the tokens before them.
//!
//! m[b, k] = (1/r) Σ_{j < r} x[b, k r + j] for the segments k < K of r tokens each from the beginning of a sequence, in f32; backward,
//! dx[b, t] = dm[b, ⌊t/r⌋] / r where that segment is read, else 0. Shapes: x `[B, T, d]`, m `[B·K, d]`.

use candle_core::{DType, Result, Tensor};

/// The segments that are read of every sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// How many, K.
    pub count: usize,
    /// Tokens of each, r.
    pub tokens: usize,
}

/// m `[B·K, d]` in f32, of x in any type.
///
/// # Errors
/// Sequences that are shorter than their segments; no segment at all.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::segment_means::{Segments, forward};
///
/// let x = Tensor::new(&[[[1f32], [3.0], [5.0], [9.0], [100.0]]], &Device::Cpu)?;
/// let means = forward(&x, Segments { count: 2, tokens: 2 })?;
/// assert_eq!(means.to_vec2::<f32>()?, [[2.0], [7.0]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn forward(x: &Tensor, segments: Segments) -> Result<Tensor> {
    let Segments { count, tokens } = segments;
    let (b, t, d) = x.dims3()?;
    if count * tokens > t || count == 0 || tokens == 0 {
        candle_core::bail!("segment_means: {count} segments of {tokens} tokens, of sequences of {t}");
    }
    #[cfg(feature = "cuda")]
    if on_a_card::takes(x) {
        return on_a_card::forward(x, segments);
    }
    let read = x.narrow(1, 0, count * tokens)?.to_dtype(DType::F32)?;
    read.reshape((b, count, tokens, d))?.mean(2)?.flatten_to(1)
}

/// dx `[B, T, d]` in `dtype`, of dm `[B·K, d]`.
///
/// # Errors
/// Shapes that do not go together.
pub fn backward(dmeans_rd: &Tensor, segments: Segments, shape: (usize, usize, usize), dtype: DType) -> Result<Tensor> {
    let ((b, t, d), Segments { count, tokens }) = (shape, segments);
    if count * tokens > t || dmeans_rd.dims() != [b * count, d] {
        candle_core::bail!(
            "segment_means: {:?} for {count} segments of {tokens} tokens of {shape:?}",
            dmeans_rd.shape()
        );
    }
    #[cfg(feature = "cuda")]
    if on_a_card::takes(dmeans_rd) && dmeans_rd.dtype() == DType::F32 && matches!(dtype, DType::F32 | DType::BF16) {
        return on_a_card::backward(dmeans_rd, segments, shape, dtype);
    }
    let each = (dmeans_rd.reshape((b, count, 1, d))? / tokens as f64)?.broadcast_as((b, count, tokens, d))?;
    let read = each.contiguous()?.reshape((b, count * tokens, d))?;
    read.pad_with_zeros(1, 0, t - count * tokens)?.to_dtype(dtype)
}

#[cfg(feature = "cuda")]
mod on_a_card {
    use candle_core::{DType, Result, Tensor};

    use super::super::kernel::{Argument, Grid, Kernel, THREADS, card, is_read, room};
    use super::Segments;

    static KERNELS: Kernel =
        Kernel::new("segment_means", concat!(include_str!("numbers.cu"), include_str!("segment_means.cu")));

    /// Columns of a block, by the name that they have in the kernels' text.
    const COLUMNS: usize = 256;

    pub(super) fn takes(x: &Tensor) -> bool {
        is_read(x) && x.elem_count() > 0
    }

    #[allow(unsafe_code)]
    pub(super) fn forward(x: &Tensor, Segments { count, tokens }: Segments) -> Result<Tensor> {
        let (b, t, d) = x.dims3()?;
        let means = room((b * count, d), DType::F32, x.device())?;
        let sizes = [t, d, count, tokens].map(Argument::count);
        let all = [&[Argument::of(x)?, Argument::of(&means)?], &sizes[..], &[Argument::half(x)]].concat();
        let grid = Grid { blocks: (d.div_ceil(COLUMNS), b * count), threads: THREADS, shared_bytes: 0 };
        // SAFETY: the signature of segment_means: x [B, T, d] of a type that is read, T no less than the tokens that are, and means that are new.
        unsafe { KERNELS.launch_function("segment_means", card(x)?, &grid, &all)? };
        Ok(means)
    }

    #[allow(unsafe_code)]
    pub(super) fn backward(
        dmeans_rd: &Tensor,
        Segments { count, tokens }: Segments,
        (b, t, d): (usize, usize, usize),
        dtype: DType,
    ) -> Result<Tensor> {
        let dx = room((b, t, d), dtype, dmeans_rd.device())?;
        let sizes = [t, d, count, tokens].map(Argument::count);
        let all = [&[Argument::of(dmeans_rd)?, Argument::of(&dx)?], &sizes[..], &[Argument::half(&dx)]].concat();
        let grid = Grid { blocks: (b * t, 1), threads: THREADS, shared_bytes: 0 };
        // SAFETY: the signature of segment_spread: f32 means of every segment that is read, as the caller has compared, and dx, which is new.
        unsafe { KERNELS.launch_function("segment_spread", card(dmeans_rd)?, &grid, &all)? };
        Ok(dx)
    }
}
