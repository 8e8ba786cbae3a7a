//! The products of [`grouped_mlp`](super::grouped_mlp) over experts' rows, by the kernels of `expert_products.cu`, and the ways from rows to tokens.
//!
//! A card of compute capability 9.0 has a form of its own of the products ([`expert_hopper`](super::expert_hopper)).

use candle_core::{DType, Result, Tensor};

use super::expert_neurons::NeuronLists;
use super::expert_rows::Rows;
use super::kernel::{Argument, Grid, Kernel, THREADS, card, room};

pub(super) static KERNELS: Kernel = Kernel::new(
    "grouped_mlp",
    concat!(
        "#define ROW_VALUES 64\n",
        include_str!("numbers.cu"),
        include_str!("tiles.cu"),
        include_str!("expert_rows.cu"),
        include_str!("expert_products.cu")
    ),
);

// Sizes by the names that they have in the kernels' texts; bytes are of shared memory.
const COLUMNS: usize = 128;
const TILE: u32 = 128 * 128;
const SLAB: u32 = 64 * 128;
const UP_BYTES: u32 = 3 * (TILE + 2 * SLAB);
const DELTA_BYTES: u32 = 4 * (TILE + SLAB);
const PRODUCT_BYTES: u32 = 2 * (TILE + 2 * SLAB);
const WEIGHT_BYTES: u32 = 3 * 4 * SLAB;

/// Shared memory that a block needs at most.
pub(super) const MOST_BYTES: u32 = if UP_BYTES > DELTA_BYTES { UP_BYTES } else { DELTA_BYTES };

pub(super) fn grid(blocks: (usize, usize), shared_bytes: u32) -> Grid {
    Grid { blocks, threads: THREADS, shared_bytes }
}

pub(super) fn of<const N: usize>(tensors: [&Tensor; N]) -> Result<Vec<Argument>> {
    tensors.into_iter().map(Argument::of).collect()
}

/// g, u and h of every row.
#[allow(unsafe_code)]
pub(super) fn up(x_td: &Tensor, matrices: &[Tensor; 3], neurons: &NeuronLists, rows: &Rows) -> Result<[Tensor; 3]> {
    let (s, values) = (rows.shape, [rows.room(x_td)?, rows.room(x_td)?, rows.room(x_td)?]);
    let ([gate, up, _], [g, u, h]) = (matrices, &values);
    let inputs = of([x_td, gate, up, &neurons.order_i, &neurons.starts, &rows.tiles, &rows.starts])?;
    let outputs = of([&rows.tokens_r, &rows.gates_r, g, u, h])?;
    let all = [&inputs[..], &outputs, &[Argument::count(s.hidden), Argument::count(s.width)]].concat();
    // SAFETY: the signature of expert_up: x and the matrices in bf16, as `takes` has seen, and of shapes that `forward` has compared; lists of neurons
    // and rows that name no more than there are; g, u and h are new.
    unsafe { KERNELS.launch_function("expert_up", card(x_td)?, &grid((s.tiles(), s.slabs()), UP_BYTES), &all)? };
    Ok(values)
}

/// δ_h, δ_g, δ_u of every row, and what the halves of every slab add to Σ_i δ_h h of a row, `[2 · slabs, r]` f32.
#[allow(unsafe_code)]
pub(super) fn deltas(
    y_td: &Tensor,
    down: &Tensor,
    [g, u, _]: &[Tensor; 3],
    neurons: &NeuronLists,
    rows: &Rows,
) -> Result<([Tensor; 3], Tensor)> {
    let (s, values) = (rows.shape, [rows.room(y_td)?, rows.room(y_td)?, rows.room(y_td)?]);
    let parts = room((2 * s.slabs(), s.rows()), DType::F32, y_td.device())?;
    let [dh, dg, du] = &values;
    let inputs = of([y_td, down, &neurons.order_i, &neurons.starts, &rows.tiles, &rows.starts])?;
    let outputs = of([&rows.tokens_r, &rows.gates_r, g, u, dh, dg, du, &parts])?;
    let all = [&inputs[..], &outputs, &[s.hidden, s.width, s.rows()].map(Argument::count)].concat();
    let grid = grid((s.tiles(), s.slabs()), DELTA_BYTES);
    // SAFETY: the signature of expert_deltas: as of expert_up; dy is of the shape and type of x, the deltas and parts are new.
    unsafe { KERNELS.launch_function("expert_deltas", card(y_td)?, &grid, &all)? };
    Ok((values, parts))
}

/// v W of every row, or the sum of two, of pairs of values `[r, width]` and weights `[i, d]`: `[r, d]`.
#[allow(unsafe_code)]
pub(super) fn row_products(pairs: &[(&Tensor, &Tensor)], neurons: &NeuronLists, rows: &Rows) -> Result<Tensor> {
    let ([(v0, w0), ..], [.., (v1, w1)]) = (pairs, pairs) else {
        candle_core::bail!("grouped_mlp: the sum of no products")
    };
    let s = rows.shape;
    let y_rd = room((s.rows(), s.hidden), DType::BF16, v0.device())?;
    let factors = of([v0, v1, w0, w1])?;
    let others = of([&neurons.order_i, &neurons.starts, &rows.tiles, &rows.starts, &y_rd])?;
    let all = [&factors[..], &others, &[pairs.len(), s.hidden, s.width].map(Argument::count)].concat();
    let grid = grid((s.hidden.div_ceil(COLUMNS), s.tiles()), PRODUCT_BYTES);
    // SAFETY: the signature of expert_product: as of expert_up; the values are those that a kernel has written, and y is new.
    unsafe { KERNELS.launch_function("expert_product", card(&y_rd)?, &grid, &all)? };
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
    let (s, [(_, first), ..]) = (rows.shape, pairs) else { return Ok(()) };
    let function = if pairs.len() == 2 { "expert_weights_2" } else { "expert_weights_1" };
    let values = pairs.iter().map(|(values, _)| Argument::of(values)).collect::<Result<Vec<_>>>()?;
    let out = pairs.iter().map(|(_, target)| Argument::of(target)).collect::<Result<Vec<_>>>()?;
    let lists = of([a_td, &neurons.order_i, &neurons.starts, &rows.starts, &rows.tokens_r])?;
    let sizes = [Argument::count(s.hidden), Argument::count(s.width), Argument::half(first)];
    let all = [&values[..], &lists, &out, &sizes, &[Argument::count(usize::from(add))]].concat();
    let grid = grid((s.hidden.div_ceil(COLUMNS), s.experts * s.slabs()), WEIGHT_BYTES);
    // SAFETY: the signatures of expert_weights_1 and _2: values that a kernel has written, x or dy as above, and gradients [i, d] in f32 or bf16 of
    // which no other reference is used; every block writes rows and columns that are its own.
    unsafe { KERNELS.launch_function(function, card(a_td)?, &grid, &all) }
}

/// The sum of each token's rows, `[r, d]` to `[t, d]`.
#[allow(unsafe_code)]
pub(super) fn combine(y_rd: &Tensor, rows: &Rows) -> Result<Tensor> {
    let s = rows.shape;
    let y_td = room((s.tokens, s.hidden), DType::BF16, y_rd.device())?;
    let tensors = of([y_rd, &rows.bits, &rows.own_tk, &y_td])?;
    let all = [&tensors[..], &[s.words(), s.most, s.hidden].map(Argument::count)].concat();
    // SAFETY: the signature of expert_combine: rows that a kernel has written, those of every token, and y [t, d], which is new.
    unsafe { KERNELS.launch_function("expert_combine", card(&y_td)?, &grid((s.tokens, 1), 0), &all)? };
    Ok(y_td)
}

/// The gates' gradients, like `gate_tn`, of the parts that deltas have written.
#[allow(unsafe_code)]
pub(super) fn gates(gate_tn: &Tensor, parts: &Tensor, rows: &Rows) -> Result<Tensor> {
    let (s, dgate_tn) = (rows.shape, room(gate_tn.shape(), gate_tn.dtype(), gate_tn.device())?);
    let tensors = of([&rows.bits, &rows.own_tk, parts, &dgate_tn])?;
    let counts = [s.tokens, s.experts, s.words(), s.most, s.rows(), parts.dim(0)?].map(Argument::count);
    let all = [&tensors[..], &counts, &[Argument::half(&dgate_tn)]].concat();
    let blocks = ((s.tokens * s.experts).div_ceil(THREADS as usize), 1);
    // SAFETY: the signature of expert_gates: the rows of every token, their parts, as many as are counted, and gradients [t, n], which are new.
    unsafe { KERNELS.launch_function("expert_gates", card(&dgate_tn)?, &grid(blocks, 0), &all)? };
    Ok(dgate_tn)
}

/// Values of rows `[r, width]` as values of tokens `[t, i]`; 0 where nothing was computed.
#[allow(unsafe_code)]
pub(super) fn dense(values: &Tensor, neuron_expert: &Tensor, neurons: &NeuronLists, rows: &Rows) -> Result<Tensor> {
    let s = rows.shape;
    let out_ti = room((s.tokens, s.neurons), DType::BF16, values.device())?;
    let tensors = of([&rows.bits, &rows.own_tk, values, neuron_expert, &neurons.place_i, &out_ti])?;
    let all = [&tensors[..], &[s.words(), s.most, s.width, s.neurons].map(Argument::count)].concat();
    let grid = grid((s.tokens, 1), 8 * s.words() as u32);
    // SAFETY: the signature of expert_dense: values that a kernel has written, the rows of every token, the expert and the place of every neuron,
    // and room for i values of each token, which is new; the shared memory holds two words for each of the token's bits.
    unsafe { KERNELS.launch_function("expert_dense", card(values)?, &grid, &all)? };
    Ok(out_ti)
}
