//! silu(g) ⊙ u and its derivative on a GPU, a launch each; the formulas stand at [`Silu`](super::Silu).

use candle_core::{Result, Tensor};

use super::kernel::{Argument, Kernel, card, in_chunks, room_like};

const TEXT: &str = concat!(include_str!("numbers.cu"), include_str!("silu.cu"));
static FORWARD: Kernel = Kernel::new("silu_forward", TEXT);
static BACKWARD: Kernel = Kernel::new("silu_backward", TEXT);

/// h, of g and u of one shape and a type that kernels read.
#[allow(unsafe_code)]
pub(super) fn forward(g: &Tensor, u: &Tensor) -> Result<Tensor> {
    let (h, n) = (room_like(g)?, g.elem_count());
    let arguments = [Argument::of(g)?, Argument::of(u)?, Argument::of(&h)?, Argument::count(n), Argument::half(g)];
    // SAFETY: the signature of silu_forward: all three have n values of one type, as the caller has seen; h is new.
    unsafe { FORWARD.launch(card(g)?, n.div_ceil(in_chunks(g)), &arguments)? };
    Ok(h)
}

/// δ_g, δ_u and, if it is wanted `again`, h, of g, u and δ of one shape and a type that kernels read.
#[allow(unsafe_code)]
pub(super) fn backward(
    g: &Tensor,
    u: &Tensor,
    delta: &Tensor,
    again: bool,
) -> Result<(Tensor, Tensor, Option<Tensor>)> {
    let (dg, du, n) = (room_like(g)?, room_like(u)?, g.elem_count());
    let h = again.then(|| room_like(g)).transpose()?;
    let arguments = [
        Argument::of(g)?,
        Argument::of(u)?,
        Argument::of(delta)?,
        Argument::of(&dg)?,
        Argument::of(&du)?,
        h.as_ref().map_or(Ok(Argument::NOTHING), Argument::of)?,
        Argument::count(n),
        Argument::half(g),
    ];
    // SAFETY: the signature of silu_backward: all six have n values of one type, as the caller has seen; δ_g, δ_u and h are new.
    unsafe { BACKWARD.launch(card(g)?, n.div_ceil(in_chunks(g)), &arguments)? };
    Ok((dg, du, h))
}
