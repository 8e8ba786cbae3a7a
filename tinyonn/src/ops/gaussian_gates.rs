//! The gates of a few rows by a hierarchy of Gaussian routers, as decoding asks for them (`gaussian_gates.cu`): of one or two rows by one launch, of more by a product for all
//! projections, and a launch from there.
//!
//! What [`GaussianRouting`] and [`Hierarchy`] say of many tokens, formulas and ties alike; nothing is kept for a backward. Shapes: x `[b, d]`, gates `[b, N]` in x's type.

use candle_core::{DType, Result, Tensor};

use super::gemv::{self, Normed, Stored};
use super::kernel::{Argument, Grid, Kernel, THREADS, card};
use super::{GaussianRouting, Hierarchy, Workspace};

static KERNEL: Kernel = Kernel::overlapping(
    "gaussian_gates",
    concat!(
        "#define KEPT_IN_BF16 true\n",
        include_str!("numbers.cu"),
        include_str!("overlap.cu"),
        include_str!("gaussian_packed.cu"),
        include_str!("hierarchy_nodes.cu"),
        include_str!("row_products.cu"),
        include_str!("gaussian_gates.cu")
    ),
);

/// Rows whose z and gates are made by one launch: its last block takes them one by one.
const AT_ONCE: usize = 2;
/// Bytes of a node as the kernels have it: its place in the hierarchy, log p and log Σ p, and a mark.
const NODE_BYTES: usize = 6 * 4 + 2 * 4 + 1;

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
    let (b, outputs, device) = (of.x_bd.dim(0)?, of_few.projections.dim(0)?, of.x_bd.device());
    let from_x = b <= AT_ONCE;
    let z_b2r = if from_x {
        workspace.take(&[b, outputs], DType::F32, device)?
    } else {
        gemv::project(of, &[(&of_few.projections, None)], None, Stored::Wide, workspace)?
    };
    let gates_bn = workspace.take(&[b, experts], of.x_bd.dtype(), device)?;
    let tensors = [&z_b2r, &of_few.packed, &of_few.table, nodes_table, heads, &gates_bn].map(Argument::of);
    let tensors = tensors.into_iter().collect::<Result<Vec<_>>>()?;
    let (values, parameters) = (outputs / 2, of_few.packed.elem_count());
    let numbers =
        [values, of_few.table.dim(0)?, nodes, routed, experts, heads.dim(0)?, parameters, usize::from(normalised)];
    let of_routers = [&tensors[..], &numbers.map(Argument::count)].concat();
    let own_bytes = 4 * (values + routed + heads.dim(0)?) + NODE_BYTES * nodes;
    if from_x {
        let arrived = workspace.take(&[1], DType::U32, device)?;
        let projected = [Argument::of(&of_few.projections)?, Argument::of(&arrived)?];
        let arguments = [&of.arguments()?[..], &projected, &of_routers].concat();
        let shared_bytes = (gemv::held_bytes(of.x_bd)? + own_bytes) as u32;
        let grid = Grid { blocks: (gemv::blocks(outputs, device)?, 1), threads: THREADS, shared_bytes };
        // SAFETY: the signature of gates_from_x: x and its norm, projections [2 R, d] of x's type and a count of arrivals, zero at first and left so; then as below. The
        // shared memory holds x, and behind it what a row needs.
        unsafe { KERNEL.launch_function(&format!("gates_from_x_{b}"), card(of.x_bd)?, &grid, &arguments)? };
    } else {
        let grid = Grid { blocks: (b, 1), threads: THREADS, shared_bytes: own_bytes as u32 };
        // SAFETY: the signature of gates_from_z: z of every row, the routers' parameters and table, the hierarchy's tables of as many nodes, and gates of every row and expert in
        // bf16, as x is; the shared memory holds z, of every expert a number, and of every node what the kernel has of it.
        unsafe { KERNEL.launch_function("gates_from_z", card(of.x_bd)?, &grid, &of_routers)? };
    }
    Ok(Some(gates_bn))
}
