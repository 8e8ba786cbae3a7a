//! The softmax of an attention's scores in f32 on a GPU, where no kernel does the whole of it: P_ij = softmax_j(s · S_ij) over j ≤ S − T + i, 0 behind that,
//! and its derivative dS = s · P ⊙ (dP − Σ_j dP ⊙ P), a launch each. A row is read where it lies and written once; the plain form, eight operations of candle's, stands in
//! [`attention`](super::attention).
//!
//! Shapes: scores, P `[.., T, S]`, of the last T of S positions.

use candle_core::{D, DType, Result, Tensor};

use super::kernel::{Argument, Kernel, are_read, card, room_like};

const TEXT: &str = concat!(include_str!("numbers.cu"), include_str!("causal_softmax.cu"));
static FORWARD: Kernel = Kernel::new("causal_softmax", TEXT);
static BACKWARD: Kernel = Kernel::new("causal_softmax_gradient", TEXT);

/// Rows of a block: a warp each.
const ROWS: usize = 8;

/// Whether it reads them.
pub(super) fn takes(tensors: &[&Tensor]) -> bool {
    are_read(tensors) && tensors.iter().all(|tensor| tensor.dtype() == DType::F32 && tensor.elem_count() > 0)
}

/// P.
#[allow(unsafe_code)]
pub(super) fn forward(scores: &Tensor, scale: f64) -> Result<Tensor> {
    let (rows, shape, p) = (rows(scores)?, arguments(scores, scale)?, room_like(scores)?);
    let all = [&[Argument::of(scores)?, Argument::of(&p)?][..], &shape].concat();
    // SAFETY: the signature of causal_softmax: rows of S scores in f32, as `takes` has seen, T ≤ S to a query head; P is new, and of the same shape.
    unsafe { FORWARD.launch(card(scores)?, rows.div_ceil(ROWS), &all)? };
    Ok(p)
}

/// dS, of P and dP of one shape.
#[allow(unsafe_code)]
pub(super) fn backward(p: &Tensor, dp: &Tensor, scale: f64) -> Result<Tensor> {
    if p.shape() != dp.shape() {
        candle_core::bail!("causal_softmax: P {:?} and dP {:?} are of two shapes", p.shape(), dp.shape());
    }
    let (rows, shape, ds) = (rows(p)?, arguments(p, scale)?, room_like(p)?);
    let all = [&[Argument::of(p)?, Argument::of(dp)?, Argument::of(&ds)?][..], &shape].concat();
    // SAFETY: the signature of causal_softmax_gradient: as above, P and dP of one shape; dS is new.
    unsafe { BACKWARD.launch(card(p)?, rows.div_ceil(ROWS), &all)? };
    Ok(ds)
}

fn rows(scores: &Tensor) -> Result<usize> {
    Ok(scores.elem_count() / scores.dim(D::Minus1)?.max(1))
}

fn arguments(scores: &Tensor, scale: f64) -> Result<[Argument; 4]> {
    let (queries, keys) = (scores.dim(D::Minus2)?, scores.dim(D::Minus1)?);
    if queries > keys {
        candle_core::bail!("causal_softmax: {queries} queries of {keys} keys");
    }
    let [queries, keys] = [queries, keys].map(Argument::count);
    Ok([Argument::count(rows(scores)?), queries, keys, Argument::Number(scale as f32)])
}
