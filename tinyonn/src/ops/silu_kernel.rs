//! silu(g) ⊙ u and its derivative on a GPU, a launch each; the formulas stand at [`Silu`](super::Silu).

use candle_core::{Result, Tensor};

use super::kernel::{Argument, Kernel, THREADS, card, room_like};

const TEXT: &str = concat!(include_str!("numbers.cu"), include_str!("silu.cu"));
static FORWARD: Kernel = Kernel::new("silu_forward", TEXT);
static BACKWARD: Kernel = Kernel::new("silu_backward", TEXT);

/// Values of a block: a thread takes four.
const VALUES: usize = 4 * THREADS as usize;

/// h, of g and u of one shape and a type that kernels read.
#[allow(unsafe_code)]
pub(super) fn forward(g: &Tensor, u: &Tensor) -> Result<Tensor> {
    let (h, n) = (room_like(g)?, g.elem_count());
    let arguments = [Argument::of(g)?, Argument::of(u)?, Argument::of(&h)?, Argument::count(n), Argument::half(g)];
    // SAFETY: the signature of silu_forward: all three have n values of one type, as the caller has seen; h is new.
    unsafe { FORWARD.launch(card(g)?, n.div_ceil(VALUES), &arguments)? };
    Ok(h)
}

/// δ_g and δ_u, of g, u and δ of one shape and a type that kernels read.
#[allow(unsafe_code)]
pub(super) fn backward(g: &Tensor, u: &Tensor, delta: &Tensor) -> Result<(Tensor, Tensor)> {
    let (dg, du, n) = (room_like(g)?, room_like(u)?, g.elem_count());
    let arguments = [
        Argument::of(g)?,
        Argument::of(u)?,
        Argument::of(delta)?,
        Argument::of(&dg)?,
        Argument::of(&du)?,
        Argument::count(n),
        Argument::half(g),
    ];
    // SAFETY: the signature of silu_backward: all five have n values of one type, as the caller has seen; δ_g and δ_u are new.
    unsafe { BACKWARD.launch(card(g)?, n.div_ceil(VALUES), &arguments)? };
    Ok((dg, du))
}
