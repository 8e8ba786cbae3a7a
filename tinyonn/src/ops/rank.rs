//! The rank of a choice among its router's: the number of choices that beat it, those of a larger key, and those of the same key and a lower index.
//!
//! Shapes: keys and ranks `[t, P, C]` f32. (Adding 0 makes one zero of two; what is no number beats all others, and loses to a lower index.)
//! On a GPU it is one launch; the plain form compares `[t, P, C, C]` and reads nothing on the host either.

use candle_core::{D, DType, Result, Tensor};

/// The number of choices that beat each, f32.
///
/// # Errors
/// Keys that are not `[t, P, C]`; what the device reports.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::ranks;
///
/// let keys = Tensor::new(&[[[0.5f32, 2.0, 0.5]]], &Device::Cpu)?;
/// assert_eq!(ranks(&keys)?.flatten_all()?.to_vec1::<f32>()?, [1.0, 0.0, 2.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn ranks(key_tpc: &Tensor) -> Result<Tensor> {
    let (_, _, choices) = key_tpc.dims3()?;
    #[cfg(feature = "cuda")]
    if key_tpc.device().is_cuda() && key_tpc.dtype() == DType::F32 {
        return on_a_card::ranks(&key_tpc.contiguous()?, choices);
    }
    let most = Tensor::full(f32::INFINITY, key_tpc.shape(), key_tpc.device())?;
    let key_tpc = key_tpc.eq(key_tpc)?.where_cond(&(key_tpc + 0.0)?, &most)?;
    let (own, other) = (key_tpc.unsqueeze(3)?, key_tpc.unsqueeze(2)?);
    let at = Tensor::arange(0, choices as u32, key_tpc.device())?;
    let before_cc = at.unsqueeze(0)?.broadcast_lt(&at.unsqueeze(1)?)?;
    let ties = other.broadcast_eq(&own)?.broadcast_mul(&before_cc.reshape((1, 1, choices, choices))?)?;
    let ahead = (other.broadcast_gt(&own)? + ties)?;
    ahead.to_dtype(DType::F32)?.sum(D::Minus1)
}

#[cfg(feature = "cuda")]
mod on_a_card {
    use candle_core::{Result, Tensor};

    use super::super::kernel::{Argument, Kernel, THREADS, card, room_like};

    static RANKS: Kernel = Kernel::new("ranks", concat!(include_str!("numbers.cu"), include_str!("rank.cu")));

    #[allow(unsafe_code)]
    pub(super) fn ranks(key_tpc: &Tensor, choices: usize) -> Result<Tensor> {
        let (rank_tpc, n) = (room_like(key_tpc)?, key_tpc.elem_count());
        let [keys, ranks] = [key_tpc, &rank_tpc].map(Argument::of);
        let arguments = [keys?, ranks?, Argument::count(n), Argument::count(choices)];
        // SAFETY: the signature of ranks: n keys and as many ranks in f32, `choices`, which divides n, side by side; the ranks are new.
        unsafe { RANKS.launch(card(key_tpc)?, n.div_ceil(THREADS as usize), &arguments)? };
        Ok(rank_tpc)
    }
}
