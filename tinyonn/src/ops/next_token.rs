//! What a step of decoding begins and ends with, on the device: rows of the embedding, and the token with the highest logit of every row, which the next step reads
//! (`next_token.cu`).
//!
//! Shapes: ids `[B]` u32, W `[V, d]`, logits `[B, V]` f32. Ties go to the lower token, as in [`Sampling`](crate::decoder::Sampling).

use candle_core::{DType, Result, Tensor};

use super::Workspace;
use super::kernel::{Argument, Grid, Kernel, THREADS, card, is_read};

static KERNELS: Kernel = Kernel::overlapping(
    "next_token",
    concat!(include_str!("numbers.cu"), include_str!("overlap.cu"), include_str!("next_token.cu")),
);

/// What stands for no token: none of the logits is a number.
pub(crate) const NONE: u32 = u32::MAX;

/// Blocks that look for the best of a row.
const PARTS: usize = 64;

/// x `[B, d]` of the rows of W that ids name.
#[allow(unsafe_code)]
pub(crate) fn embedded(ids: &Tensor, weight_vd: &Tensor, workspace: &mut Workspace) -> Result<Tensor> {
    let (rows, (vocabulary, d)) = (ids.dims1()?, weight_vd.dims2()?);
    if ids.dtype() != DType::U32 || !is_read(weight_vd) {
        candle_core::bail!("next_token: ids {ids:?} of an embedding {weight_vd:?}");
    }
    let x_bd = workspace.take(&[rows, d], weight_vd.dtype(), weight_vd.device())?;
    let numbers = [Argument::count(d), Argument::count(vocabulary), Argument::half(weight_vd)];
    let arguments = [&[Argument::of(ids)?, Argument::of(weight_vd)?, Argument::of(&x_bd)?][..], &numbers].concat();
    let grid = Grid { blocks: (rows, 1), threads: THREADS, shared_bytes: 0 };
    // SAFETY: the signature of embedded_rows: an id a row, and W and x in one type.
    unsafe { KERNELS.launch_function("embedded_rows", card(weight_vd)?, &grid, &arguments)? };
    Ok(x_bd)
}

/// Writes the best token of every row to `ids` ([`NONE`] where no logit is a number), and one more to `position`.
#[allow(unsafe_code)]
pub(crate) fn choose(logits_bv: &Tensor, ids: &Tensor, position: &Tensor, workspace: &mut Workspace) -> Result<()> {
    let (rows, vocabulary) = logits_bv.dims2()?;
    let typed = [ids, position].iter().all(|x| x.dtype() == DType::U32) && logits_bv.dtype() == DType::F32;
    if !typed || ids.dims() != [rows] || position.elem_count() != 1 {
        candle_core::bail!("next_token: logits {:?}, ids {:?}", logits_bv.shape(), ids.shape());
    }
    // A pair of u32 is a key.
    let found = workspace.take(&[rows, PARTS, 2], DType::U32, logits_bv.device())?;
    let arrived = workspace.take(&[1], DType::U32, logits_bv.device())?;
    let tensors = [logits_bv, &found, &arrived, ids, position].map(Argument::of);
    let tensors = tensors.into_iter().collect::<Result<Vec<_>>>()?;
    let grid = Grid { blocks: (PARTS, rows), threads: THREADS, shared_bytes: 0 };
    let arguments = [&tensors[..], &[Argument::count(vocabulary)]].concat();
    // SAFETY: the signature of next_token: logits of every row and token, a key of every row and part, a count of arrivals that is zero at first and left so, ids and the
    // position, which no other launch of the step writes.
    unsafe { KERNELS.launch_function("next_token", card(logits_bv)?, &grid, &arguments) }
}
