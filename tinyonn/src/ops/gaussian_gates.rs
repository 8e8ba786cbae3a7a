//! The gates of a few rows by a hierarchy of Gaussian routers, as decoding asks for them: a product for all projections, and a launch from there (`gaussian_gates.cu`).
//!
//! What [`GaussianRouting`] and [`Hierarchy`] say of many tokens, formulas and ties alike; nothing is kept for a backward. Shapes: x `[b, d]`, gates `[b, N]` in x's type.

use candle_core::Result;
use candle_core::Tensor;

use super::gemv::Normed;
use super::kernel::{Argument, Grid, Kernel, card};
use super::{GaussianRouting, Hierarchy, Workspace};

static KERNEL: Kernel = Kernel::overlapping(
    "gaussian_gates",
    concat!(
        include_str!("numbers.cu"),
        include_str!("overlap.cu"),
        include_str!("gaussian_packed.cu"),
        include_str!("hierarchy_nodes.cu"),
        include_str!("gaussian_gates.cu")
    ),
);

const THREADS: u32 = 512;

/// The gates, in a tensor of the workspace; `None` where the kernels do not read the routers or x.
///
/// # Errors
/// Routers of another hierarchy; what the device reports.
#[allow(unsafe_code)]
pub(crate) fn forward(
    routing: &GaussianRouting,
    hierarchy: &Hierarchy,
    of: Normed<'_>,
    workspace: &mut Workspace,
) -> Result<Option<Tensor>> {
    let Some(of_few) = routing.of_few(of, workspace)? else { return Ok(None) };
    let ([nodes_table, heads], [nodes, routed, experts], normalised) = hierarchy.parts();
    if of_few.nodes != nodes {
        candle_core::bail!("gaussian_gates: {} nodes of routers in a hierarchy of {nodes}", of_few.nodes);
    }
    let (b, values) = (of.x_bd.dim(0)?, of_few.z_b2r.dim(1)? / 2);
    let gates_bn = workspace.take(&[b, experts], of.x_bd.dtype(), of.x_bd.device())?;
    let tensors = [&of_few.z_b2r, &of_few.packed, &of_few.table, nodes_table, heads, &gates_bn].map(Argument::of);
    let tensors = tensors.into_iter().collect::<Result<Vec<_>>>()?;
    let numbers = [values, of_few.table.dim(0)?, nodes, routed, experts, heads.dim(0)?, usize::from(normalised)];
    let arguments = [&tensors[..], &numbers.map(Argument::count), &[Argument::half(&gates_bn)]].concat();
    let shared_bytes = 4 * (values + nodes + routed) + nodes;
    let grid = Grid { blocks: (b, 1), threads: THREADS, shared_bytes: shared_bytes as u32 };
    // SAFETY: the signature of gaussian_gates: z of every row, the routers' parameters and table, the hierarchy's tables of as many nodes, and gates of every row and expert; the
    // shared memory holds z, two values and a mark of every node.
    unsafe { KERNEL.launch_function("gaussian_gates", card(of.x_bd)?, &grid, &arguments)? };
    Ok(Some(gates_bn))
}
