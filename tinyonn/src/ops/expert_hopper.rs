//! The products of [`expert_products`](super::expert_products) for cards of compute capability 9.0, by the kernels of `expert_hopper.cu`: the same values
//! in the same layouts.
//!
//! Blocks stay, one a multiprocessor, and take one tile of an expert after the other; where each expert's tiles begin they find by themselves.

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute;
use candle_core::{DType, Result, Tensor};

use super::expert_neurons::NeuronLists;
use super::expert_products::of;
use super::expert_rows::{Rows, Shape};
use super::kernel::{Argument, Grid, Kernel, attribute, card, is_hopper, room};

static KERNELS: Kernel = Kernel::for_hopper(
    "expert_hopper",
    concat!(
        "#define ROW_VALUES 64\n",
        include_str!("numbers.cu"),
        include_str!("tiles.cu"),
        include_str!("wgmma.cu"),
        include_str!("expert_hopper.cu")
    ),
);

/// Two warpgroups that multiply, and one that copies.
const MULTIPLYING_AND_COPYING: u32 = 384;

/// What passes through a block's shared memory, by the names that its sizes have in the kernels' text.
#[derive(Clone, Copy)]
struct Ring {
    stages: usize,
    lines: usize,
}

const RING: Ring = Ring { stages: 4, lines: 384 };
const RING_OF_DELTAS_64: Ring = Ring { stages: 5, lines: 320 };

impl Ring {
    /// Stages of lines of 128 bytes, two barriers a stage, and a word for each expert and one more.
    fn bytes(self, experts: usize) -> usize {
        self.stages * (self.lines * 128 + 16) + 4 * (experts + 1)
    }

    fn grid(self, device: &CudaDevice, experts: usize) -> Result<Grid> {
        let blocks = (attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?, 1);
        Ok(Grid { blocks, threads: MULTIPLYING_AND_COPYING, shared_bytes: self.bytes(experts) as u32 })
    }
}

/// Whether the card has these kernels, and room for as many experts in their shared memory: some 6,800.
///
/// # Errors
/// What the driver reports.
pub(super) fn takes(s: Shape, device: &CudaDevice) -> Result<bool> {
    let there = attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
    let needed = RING.bytes(s.experts).max(RING_OF_DELTAS_64.bytes(s.experts));
    Ok(s.width > 0 && is_hopper(device)? && there >= needed)
}

/// Neurons of an expert in a tile of up and deltas: 128, where no more than 8 of 100 neurons that a row computes lie behind its `width`, else 64.
///
/// On an H200, T = 8192, d = 2048, ms of up and deltas by tiles of 128 and of 64: 0.414 + 0.302 and 0.446 + 0.331 for 5 of 10 experts of 614 neurons,
/// which fill either (0.93 and 0.91 of the time); 0.376 + 0.247 and 0.227 + 0.197 for 25 of 100 experts of 61, which fill half of 128.
fn tile_neurons(s: Shape) -> usize {
    if 100 * s.width.next_multiple_of(128) <= 108 * s.width { 128 } else { 64 }
}

/// g, u and h of every row.
#[allow(unsafe_code)]
pub(super) fn up(x_td: &Tensor, matrices: &[Tensor; 3], neurons: &NeuronLists, rows: &Rows) -> Result<[Tensor; 3]> {
    let (s, device, values) = (rows.shape, card(x_td)?, [rows.room(x_td)?, rows.room(x_td)?, rows.room(x_td)?]);
    let ([gate, up, _], [g, u, h]) = (matrices, &values);
    let inputs = of([x_td, gate, up, &neurons.order_i, &neurons.starts, &rows.starts, &rows.tokens_r])?;
    let outputs = of([&rows.gates_r, g, u, h])?;
    let all = [&inputs[..], &outputs, &[s.hidden, s.width, s.experts].map(Argument::count)].concat();
    let function = if tile_neurons(s) == 128 { "up_128" } else { "up_64" };
    // SAFETY: the signature of up_128 and up_64: x and the matrices in bf16, as `grouped_mlp::takes` has seen, and of shapes that `forward` has
    // compared; lists of neurons and rows that name no more than there are; g, u and h are new.
    unsafe { KERNELS.launch_function(function, device, &RING.grid(device, s.experts)?, &all)? };
    Ok(values)
}

/// δ_h, δ_g, δ_u of every row, and what each of its tiles adds to Σ_i δ_h h of it, `[tiles of a row, r]` f32.
#[allow(unsafe_code)]
pub(super) fn deltas(
    y_td: &Tensor,
    down: &Tensor,
    [g, u, _]: &[Tensor; 3],
    neurons: &NeuronLists,
    rows: &Rows,
) -> Result<([Tensor; 3], Tensor)> {
    let (s, device, values) = (rows.shape, card(y_td)?, [rows.room(y_td)?, rows.room(y_td)?, rows.room(y_td)?]);
    let (function, own, ring) = match tile_neurons(s) {
        128 => ("deltas_128", 128, RING),
        _ => ("deltas_64", 64, RING_OF_DELTAS_64),
    };
    let parts = room((s.width.div_ceil(own), s.rows()), DType::F32, y_td.device())?;
    let [dh, dg, du] = &values;
    let inputs = of([y_td, down, &neurons.order_i, &neurons.starts, &rows.starts, &rows.tokens_r, &rows.gates_r])?;
    let outputs = of([g, u, dh, dg, du, &parts])?;
    let all = [&inputs[..], &outputs, &[s.hidden, s.width, s.rows(), s.experts].map(Argument::count)].concat();
    // SAFETY: the signature of deltas_128 and deltas_64: as of up; dy is of the shape and type of x, g and u are what up has written, the deltas and
    // the parts, of all tiles of a row, are new.
    unsafe { KERNELS.launch_function(function, device, &ring.grid(device, s.experts)?, &all)? };
    Ok((values, parts))
}

/// v W of every row, or the sum of two, of pairs of values `[r, width]` and weights `[i, d]`: `[r, d]`.
#[allow(unsafe_code)]
pub(super) fn row_products(pairs: &[(&Tensor, &Tensor)], neurons: &NeuronLists, rows: &Rows) -> Result<Tensor> {
    let ([(v0, w0), ..], [.., (v1, w1)]) = (pairs, pairs) else {
        candle_core::bail!("grouped_mlp: the sum of no products")
    };
    let (s, device) = (rows.shape, card(v0)?);
    let y_rd = room((s.rows(), s.hidden), DType::BF16, v0.device())?;
    let factors = of([v0, v1, w0, w1])?;
    let others = of([&neurons.order_i, &neurons.starts, &rows.starts, &y_rd])?;
    let all = [&factors[..], &others, &[pairs.len(), s.hidden, s.width, s.experts].map(Argument::count)].concat();
    // SAFETY: the signature of row_products: as of up; the values are those that a kernel has written, and y is new.
    unsafe { KERNELS.launch_function("row_products", device, &RING.grid(device, s.experts)?, &all)? };
    Ok(y_rd)
}

/// dW[i] = Σ_r v[r, i] a[token of r] of one weight, or of two of one type that are both written or both added to (`add`): pairs of v and dW.
#[allow(unsafe_code)]
pub(super) fn weight_sums(
    pairs: &[(&Tensor, Tensor)],
    a_td: &Tensor,
    add: bool,
    neurons: &NeuronLists,
    rows: &Rows,
) -> Result<()> {
    let ([(v0, dw0), ..], [.., (v1, dw1)]) = (pairs, pairs) else { return Ok(()) };
    let (s, device) = (rows.shape, card(a_td)?);
    let lists = of([a_td, &neurons.order_i, &neurons.starts, &rows.starts, &rows.tokens_r])?;
    let [matrices, hidden, width, add, experts] =
        [pairs.len(), s.hidden, s.width, usize::from(add), s.experts].map(Argument::count);
    let sizes = [hidden, width, Argument::half(dw0), add, experts];
    let all = [&of([v0, v1])?[..], &[matrices], &lists, &of([dw0, dw1])?, &sizes].concat();
    // SAFETY: the signature of weight_sums: values that a kernel has written, x or dy as above, and gradients [i, d] in f32 or bf16 that begin at
    // multiples of 256 bytes and of which no other reference is used; every warpgroup writes rows and columns that are its own.
    unsafe { KERNELS.launch_function("weight_sums", device, &RING.grid(device, s.experts)?, &all) }
}
