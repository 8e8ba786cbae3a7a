//! silu(g) ⊙ u and its derivative on a GPU, a launch each, without gates and under those of experts; the formulas stand at [`Silu`](super::Silu) and in
//! [`glu_mlp`](super::glu_mlp).

use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute;
use candle_core::{Result, Tensor};

use super::expert_neurons::NeuronLists;
use super::glu_mlp::MlpGate;
use super::kernel::{Argument, Grid, Kernel, THREADS, attribute, card, in_chunks, room_like};

const TEXT: &str = concat!(include_str!("numbers.cu"), include_str!("silu.cu"));
static FORWARD: Kernel = Kernel::new("silu_forward", TEXT);
static BACKWARD: Kernel = Kernel::new("silu_backward", TEXT);
static GATED_FORWARD: Kernel = Kernel::new("gated_silu_forward", TEXT);
static GATED_BACKWARD: Kernel = Kernel::new("gated_silu_backward", TEXT);

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

/// Whether a block has room for the products of a token's `width` neurons.
///
/// # Errors
/// What the driver reports.
pub(super) fn has_room(x: &Tensor, width: usize) -> Result<bool> {
    let of_block = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    Ok(attribute(card(x)?, of_block)? >= products_bytes(width))
}

fn products_bytes(width: usize) -> usize {
    4 * width
}

/// h under gates, of g and u `[t, i]` and gates of one type that kernels read.
#[allow(unsafe_code)]
pub(super) fn gated_forward(g: &Tensor, u: &Tensor, gate: MlpGate<'_>) -> Result<Tensor> {
    let ((t, width), experts) = (g.dims2()?, gate.gate_tn.dim(1)?);
    let h = room_like(g)?;
    let tensors = [g, u, gate.gate_tn, gate.neuron_expert, &h].map(Argument::of);
    let tensors = tensors.into_iter().collect::<Result<Vec<_>>>()?;
    let all = [&tensors[..], &[Argument::count(width), Argument::count(experts), Argument::half(g)]].concat();
    let grid = Grid { blocks: (t, 1), threads: THREADS, shared_bytes: 0 };
    // SAFETY: the signature of gated_silu_forward: g, u and h, which is new, are [t, i] and the gates [t, n] of one type, and every neuron's expert is one of n,
    // as the caller has seen.
    unsafe { GATED_FORWARD.launch_function("gated_silu_forward", card(g)?, &grid, &all)? };
    Ok(h)
}

/// δ_g, δ_u and the gates' gradients, of the same and of δ_h.
#[allow(unsafe_code)]
pub(super) fn gated_backward(
    [g, u, delta]: [&Tensor; 3],
    gate: MlpGate<'_>,
    neurons: &NeuronLists,
) -> Result<[Tensor; 3]> {
    let ((t, width), experts) = (g.dims2()?, gate.gate_tn.dim(1)?);
    let (dg, du, dw) = (room_like(g)?, room_like(u)?, room_like(gate.gate_tn)?);
    let tensors = [g, u, delta, gate.gate_tn, gate.neuron_expert, &neurons.order_i, &neurons.starts, &dg, &du, &dw];
    let tensors = tensors.map(Argument::of).into_iter().collect::<Result<Vec<_>>>()?;
    let all = [&tensors[..], &[Argument::count(width), Argument::count(experts), Argument::half(g)]].concat();
    let grid = Grid { blocks: (t, 1), threads: THREADS, shared_bytes: products_bytes(width) as u32 };
    // SAFETY: the signature of gated_silu_backward: as above, δ_h like g, lists of the i neurons by expert, and gradients that are new.
    unsafe { GATED_BACKWARD.launch_function("gated_silu_backward", card(g)?, &grid, &all)? };
    Ok([dg, du, dw])
}
