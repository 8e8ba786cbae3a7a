//! The gated MLP of [`glu_mlp`](super::glu_mlp) on a GPU's tensor cores, computed only where gates are not zero: each token goes to its own experts.
//!
//! y_t = Σ_n w[t, n] Expert_n(x_t) over the n with w[t, n] ≠ 0; formulas and legend are those of [`dispatch_mlp`](super::dispatch_mlp), which is the
//! form for main memory, and as there a closed gate has no gradient.
//!
//! A *row* is a token and one of its experts. Rows are sorted by expert, so that the rows of an expert make products with its neurons' weights alone:
//! `expert_rows.cu` finds them, `expert_products.cu` multiplies. x, dy and the weights are read where they are, through lists of tokens and neurons.
//! Which rows there are is known on the device only: room is made for `most` experts of every token.
//!
//! What a token's experts say is added up in one of two forms, by a rule that reads shapes alone ([`Shape::by_rows`]): *rows*, a row of y for each
//! expert of a token, then their sum; or *zero-filled*, one product over all neurons, zeros where nothing was computed, which costs the same whatever was.
//!
//! Values are bf16, sums f32, and every sum has one order: runs are bit-equal. h, g, u and their derivatives take 2 · `most` · width bytes a token each,
//! and the rows of y and dx, which a token's sum is made of, 2 · `most` · d for as long as a call takes.
//!
//! ```no_run
//! use candle_core::{Result, Tensor};
//! use tinyonn::ops::grouped_mlp::{Choice, Deltas, Saved, forward, takes};
//! use tinyonn::ops::{ExpertNeurons, MlpGate, MlpWeights, SlicedMlp as _};
//!
//! /// Eight experts of a token, where that pays and the card has the kernels for it.
//! fn routed(x: &Tensor, weights: MlpWeights<'_>, gate: MlpGate<'_>, experts: &ExpertNeurons) -> Result<Option<Tensor>> {
//!     let choice = Choice { neurons: &experts.on_device(x.device())?, most: 8 };
//!     if !choice.pays() || !takes(x, weights)? {
//!         return Ok(None);
//!     }
//!     let (y, saved): (Tensor, Saved) = forward(x, weights, gate, choice)?;
//!     let deltas: Deltas = saved.deltas(&y.ones_like()?)?;
//!     saved.input_gradient(&deltas).map(Some)
//! }
//! # Ok::<(), tinyonn::Error>(())
//! ```

use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute;
use candle_core::{DType, Result, Tensor};

use super::activation::Silu;
use super::columns::columns;
use super::expert_neurons::NeuronLists;
use super::glu_mlp::{MlpGate, MlpWeights, SlicedMlp};
use super::kernel::{Argument, Grid, Kernel, THREADS, address, attribute, card, is_read, room};
use super::learners::LearningNeurons;
use super::linear::{rows, sum_of_products};
use super::mlp_values::MlpBackward;
use super::{Activation as _, Grads, Learners};

static KERNELS: Kernel = Kernel::new(
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
const TILE_ROWS: usize = 128;
const SLAB_NEURONS: usize = 64;
const COLUMNS: usize = 128;
const TILE: u32 = TILE_ROWS as u32 * 128;
const SLAB: u32 = 64 * 128;
const UP_BYTES: u32 = 3 * (TILE + 2 * SLAB);
const DELTA_BYTES: u32 = 4 * (TILE + SLAB);
const PRODUCT_BYTES: u32 = 2 * (TILE + 2 * SLAB);
const WEIGHT_BYTES: u32 = 3 * 4 * SLAB;

/// Copies between the memories take so many bytes at once.
const ALIGNMENT: u64 = 16;

/// What must be known before the gates are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// Where the experts' neurons are.
    pub neurons: &'a NeuronLists,
    /// Experts that a token takes at most; of more open gates the first count.
    pub most: usize,
}

impl Choice<'_> {
    /// Whether it is worth it: of more than a third of the neurons one product over all of them, at twice the rate and without lists, takes less time.
    #[must_use]
    pub fn pays(&self) -> bool {
        3 * self.most <= self.neurons.starts.elem_count().saturating_sub(1)
    }
}

/// What the backward needs.
#[derive(Debug)]
pub struct Saved {
    matrices: [Tensor; 3],
    x_td: Tensor,
    gate_tn: Tensor,
    neuron_expert: Tensor,
    neurons: NeuronLists,
    rows: Rows,
    /// g, u and the gated h of every row, `[r, width]`.
    values: [Tensor; 3],
}

/// What the backward pass sends to the inner values.
#[derive(Debug)]
pub struct Deltas {
    y_td: Tensor,
    /// δ_h, δ_g, δ_u of every row, `[r, width]`.
    values: [Tensor; 3],
    /// What the halves of every slab add to Σ_i δ_h h of a row, `[2 · slabs, r]` f32.
    parts: Tensor,
}

/// The rows of a pass, sorted by expert.
#[derive(Debug)]
struct Rows {
    /// Which experts each token takes, `[t, words]` u32.
    bits: Tensor,
    /// Where each expert's rows begin, `[n + 1]` u32.
    starts: Tensor,
    /// The token and the gate of each row, `[r]` u32 and f32.
    tokens_r: Tensor,
    gates_r: Tensor,
    /// The rows of each token, `[t, most]` u32.
    own_tk: Tensor,
    /// Expert and first row of each tile, `[tiles, 2]` u32.
    tiles: Tensor,
    shape: Shape,
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    tokens: usize,
    hidden: usize,
    experts: usize,
    most: usize,
    /// Neurons that a row has room for: whole slabs.
    width: usize,
    /// Of all experts.
    neurons: usize,
}

impl Shape {
    fn words(self) -> usize {
        self.experts.div_ceil(32)
    }

    fn rows(self) -> usize {
        self.tokens * self.most
    }

    fn tiles(self) -> usize {
        self.rows() / TILE_ROWS + self.experts
    }

    fn slabs(self) -> usize {
        self.width / SLAB_NEURONS
    }

    fn columns(self) -> usize {
        self.hidden.div_ceil(COLUMNS)
    }

    /// Whether sums over a token's experts are formed of rows. In units of a neuron of one dense product (2 d operations and its value's way to memory and
    /// back, 7 ps a token on an H200 for d = 2048): a neuron of an expert's own product costs 1.6, a row of y, written and read, 390 beside one product
    /// and 220 beside two.
    fn by_rows(self, products: usize) -> bool {
        let neurons = self.most * self.neurons / self.experts;
        let row = if products == 1 { 390 } else { 220 };
        8 * neurons / 5 + row * self.most <= self.neurons
    }
}

/// Whether the kernels take this MLP: SwiGLU in bf16 on a card that has tensor cores for it, d a multiple of 64.
///
/// # Errors
/// What the driver reports.
pub fn takes(x: &Tensor, weights: MlpWeights<'_>) -> Result<bool> {
    let x_td = rows(x)?;
    let (t, d) = x_td.dims2()?;
    if t == 0 || !d.is_multiple_of(64) || !weights.activation.is_silu() {
        return Ok(false);
    }
    for tensor in [&x_td, weights.gate, weights.up, weights.down] {
        if !is_read(tensor) || tensor.dtype() != DType::BF16 || address(tensor)? % ALIGNMENT != 0 {
            return Ok(false);
        }
    }
    let there = attribute(card(&x_td)?, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
    Ok(there >= UP_BYTES.max(DELTA_BYTES) as usize)
}

/// y = W_d (h ⊙ c) without the neurons whose c is zero, of what [`takes`] has agreed to.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn forward(x: &Tensor, weights: MlpWeights<'_>, gate: MlpGate<'_>, choice: Choice<'_>) -> Result<(Tensor, Saved)> {
    let (x_td, matrices) = (rows(x)?, weights.matrices());
    let (gate_tn, neurons) = (gate.gate_tn.detach().contiguous()?, choice.neurons);
    let ((tokens, hidden), (gates, experts)) = (x_td.dims2()?, gate_tn.dims2()?);
    let width = neurons.widest.next_multiple_of(SLAB_NEURONS);
    let i = neurons.order_i.dim(0)?;
    let shape = Shape { tokens, hidden, experts, most: choice.most.clamp(1, experts), width, neurons: i };
    if gates != tokens
        || !is_read(&gate_tn)
        || neurons.starts.dims() != [experts + 1]
        || gate.neuron_expert.dims() != [i]
        || gate.neuron_expert.dtype() != DType::U32
        || matrices.iter().any(|matrix| matrix.dims() != [i, hidden])
    {
        candle_core::bail!("grouped_mlp: x {:?}, gates {:?} and {i} neurons do not go together", x.shape(), gate_tn);
    }
    let rows = Rows::new(&gate_tn, shape)?;
    let values = up(&x_td, &matrices, neurons, &rows)?;
    let (neurons, neuron_expert) = (neurons.clone(), gate.neuron_expert.detach());
    let saved = Saved { matrices, x_td, gate_tn, neuron_expert, neurons, rows, values };
    let y_td = saved.product(&[(&saved.values[2], &saved.matrices[2])])?;
    Ok((y_td.reshape(x.shape())?, saved))
}

fn grid(blocks: (usize, usize), shared_bytes: u32) -> Grid {
    Grid { blocks, threads: THREADS, shared_bytes }
}

fn of<const N: usize>(tensors: [&Tensor; N]) -> Result<Vec<Argument>> {
    tensors.into_iter().map(Argument::of).collect()
}

#[allow(unsafe_code)]
impl Rows {
    fn new(gate_tn: &Tensor, shape: Shape) -> Result<Self> {
        let (device, s) = (gate_tn.device(), shape);
        let whole = |shape: (usize, usize)| room(shape, DType::U32, device);
        let (bits, counts) = (whole((s.tokens, s.words()))?, room(s.experts, DType::U32, device)?);
        let rows = Self {
            bits,
            starts: room(s.experts + 1, DType::U32, device)?,
            tokens_r: room(s.rows(), DType::U32, device)?,
            gates_r: room(s.rows(), DType::F32, device)?,
            own_tk: whole((s.tokens, s.most))?,
            tiles: whole((s.tiles(), 2))?,
            shape,
        };
        let card = card(gate_tn)?;
        let [tokens, experts, words, most, tiles] =
            [s.tokens, s.experts, s.words(), s.most, s.tiles()].map(Argument::count);
        let half = Argument::half(gate_tn);
        let all = [&of([gate_tn, &rows.bits])?[..], &[tokens, experts, most, half]].concat();
        let blocks = (s.tokens.div_ceil(THREADS as usize / 32), 1);
        // SAFETY: the signature of `taken`: gates [t, n] of a type that is read, as `forward` has seen, and bits [t, words], which are new.
        unsafe { KERNELS.launch_function("taken", card, &grid(blocks, 0), &all)? };
        let all = [&of([&rows.bits, &counts])?[..], &[tokens, words]].concat();
        // SAFETY: the signature of `counts`: the bits just written, a count for each of n blocks, which is new.
        unsafe { KERNELS.launch_function("counts", card, &grid((s.experts, 1), 0), &all)? };
        let tensors =
            of([&rows.bits, gate_tn, &counts, &rows.starts, &rows.tokens_r, &rows.gates_r, &rows.own_tk, &rows.tiles])?;
        let all = [&tensors[..], &[tokens, experts, words, most, tiles, half]].concat();
        // SAFETY: the signature of `rows`: what was just written, and new room for n + 1 starts, `most` rows of every token, for more than which no bits
        // are set, and a tile for every 128 rows and one more for every expert.
        unsafe { KERNELS.launch_function("rows", card, &grid((s.experts, 1), 0), &all)? };
        Ok(rows)
    }

    /// Values of every row, not written yet.
    fn room(&self, like: &Tensor) -> Result<Tensor> {
        room((self.shape.rows(), self.shape.width), DType::BF16, like.device())
    }
}

/// g, u and h of every row.
#[allow(unsafe_code)]
fn up(x_td: &Tensor, matrices: &[Tensor; 3], neurons: &NeuronLists, rows: &Rows) -> Result<[Tensor; 3]> {
    let (s, values) = (rows.shape, [rows.room(x_td)?, rows.room(x_td)?, rows.room(x_td)?]);
    let [g, u, h] = &values;
    let tensors = of([
        x_td,
        &matrices[0],
        &matrices[1],
        &neurons.order_i,
        &neurons.starts,
        &rows.tiles,
        &rows.starts,
        &rows.tokens_r,
        &rows.gates_r,
        g,
        u,
        h,
    ])?;
    let all = [&tensors[..], &[Argument::count(s.hidden), Argument::count(s.width)]].concat();
    // SAFETY: the signature of expert_up: x and the matrices in bf16, as `takes` has seen, and of shapes that `forward` has compared; lists of neurons
    // and rows that name no more than there are; g, u and h are new.
    unsafe { KERNELS.launch_function("expert_up", card(x_td)?, &grid((s.tiles(), s.slabs()), UP_BYTES), &all)? };
    Ok(values)
}

/// Σ over a token's rows of v W, of one pair or two of values `[r, width]` and weights `[i, d]`: `[t, d]`.
#[allow(unsafe_code)]
fn product_by_rows(pairs: &[(&Tensor, &Tensor)], neurons: &NeuronLists, rows: &Rows) -> Result<Tensor> {
    let (Some(first), Some(second)) = (pairs.first(), pairs.last()) else {
        candle_core::bail!("grouped_mlp: the sum of no products")
    };
    let (s, device) = (rows.shape, first.0.device());
    let y_rd = room((s.rows(), s.hidden), DType::BF16, device)?;
    let y_td = room((s.tokens, s.hidden), DType::BF16, device)?;
    let tensors = of([
        first.0,
        second.0,
        first.1,
        second.1,
        &neurons.order_i,
        &neurons.starts,
        &rows.tiles,
        &rows.starts,
        &y_rd,
    ])?;
    let all = [&tensors[..], &[pairs.len(), s.hidden, s.width].map(Argument::count)].concat();
    let grid_of = grid((s.columns(), s.tiles()), PRODUCT_BYTES);
    // SAFETY: the signature of expert_product: as of expert_up; the values are those that a kernel has written, and y is new.
    unsafe { KERNELS.launch_function("expert_product", card(&y_rd)?, &grid_of, &all)? };
    let tensors = of([&y_rd, &rows.bits, &rows.own_tk, &y_td])?;
    let all = [&tensors[..], &[s.words(), s.most, s.hidden].map(Argument::count)].concat();
    // SAFETY: the signature of expert_combine: the rows just written, those of every token, and y [t, d], which is new.
    unsafe { KERNELS.launch_function("expert_combine", card(&y_td)?, &grid((s.tokens, 1), 0), &all)? };
    Ok(y_td)
}

impl SlicedMlp for Saved {
    type Deltas = Deltas;

    #[allow(unsafe_code)]
    fn deltas(&self, dy: &Tensor) -> Result<Deltas> {
        let (s, y_td) = (self.rows.shape, rows(dy)?);
        if y_td.dims() != self.x_td.dims() || y_td.dtype() != DType::BF16 {
            candle_core::bail!("grouped_mlp: dy {:?} of x {:?} in bf16", dy.shape(), self.x_td.shape());
        }
        let y_td = if address(&y_td)? % ALIGNMENT == 0 { y_td } else { y_td.force_contiguous()? };
        let values = [self.rows.room(&y_td)?, self.rows.room(&y_td)?, self.rows.room(&y_td)?];
        let parts = room((2 * s.slabs(), s.rows()), DType::F32, y_td.device())?;
        let (rows, neurons, [g, u, _], [dh, dg, du]) = (&self.rows, &self.neurons, &self.values, &values);
        let tensors = of([
            &y_td,
            &self.matrices[2],
            &neurons.order_i,
            &neurons.starts,
            &rows.tiles,
            &rows.starts,
            &rows.tokens_r,
            &rows.gates_r,
            g,
            u,
            dh,
            dg,
            du,
            &parts,
        ])?;
        let all = [&tensors[..], &[s.hidden, s.width, s.rows()].map(Argument::count)].concat();
        let grid = grid((s.tiles(), s.slabs()), DELTA_BYTES);
        // SAFETY: the signature of expert_deltas: as of expert_up; dy is of the shape and type of x, the deltas and parts are new.
        unsafe { KERNELS.launch_function("expert_deltas", card(&y_td)?, &grid, &all)? };
        Ok(Deltas { y_td, values, parts })
    }

    fn seen<R>(&self, deltas: &Deltas, see: impl FnOnce(&MlpBackward<'_>) -> Result<R>) -> Result<R> {
        let [g, u, _] = &self.values;
        let h_ti = Silu.forward(&self.dense(g)?, &self.dense(u)?)?;
        let gate_ti = columns(&self.gate_tn.to_dtype(h_ti.dtype())?, &self.neuron_expert)?;
        let [delta_h_ti, delta_g_ti, delta_u_ti] = deltas.values.each_ref().map(|values| self.dense(values));
        see(&MlpBackward {
            x_td: &self.x_td,
            h_ti: &h_ti,
            gate_ti: Some(&gate_ti),
            delta_y_td: &deltas.y_td,
            delta_h_ti: &delta_h_ti?,
            delta_g_ti: &delta_g_ti?,
            delta_u_ti: &delta_u_ti?,
            input_matrices: Some([&self.matrices[0], &self.matrices[1]]),
        })
    }

    fn input_gradient(&self, deltas: &Deltas) -> Result<Tensor> {
        let [gate, up, _] = &self.matrices;
        let [_, dg, du] = &deltas.values;
        self.product(&[(dg, gate), (du, up)])
    }

    #[allow(unsafe_code)]
    fn gate_gradient(&self, deltas: &Deltas) -> Result<Option<Tensor>> {
        let (s, dgate_tn) = (self.rows.shape, room(self.gate_tn.shape(), self.gate_tn.dtype(), self.gate_tn.device())?);
        let tensors = of([&self.rows.bits, &self.rows.own_tk, &deltas.parts, &dgate_tn])?;
        let counts = [s.tokens, s.experts, s.words(), s.most, s.rows(), 2 * s.slabs()].map(Argument::count);
        let all = [&tensors[..], &counts, &[Argument::half(&dgate_tn)]].concat();
        let blocks = ((s.tokens * s.experts).div_ceil(THREADS as usize), 1);
        // SAFETY: the signature of expert_gates: the rows of every token, the parts that expert_deltas has written, and gradients [t, n], which are new.
        unsafe { KERNELS.launch_function("expert_gates", card(&dgate_tn)?, &grid(blocks, 0), &all)? };
        Ok(Some(dgate_tn))
    }

    /// The multiply-adds are those of `most` experts of every token, of mean width: how many there were is known on the device only.
    fn weight_gradients(
        &self,
        weights: MlpWeights<'_>,
        deltas: &Deltas,
        learners: &Learners,
        grads: &mut Grads,
    ) -> Result<u64> {
        let ([_, _, h], [_, dg, du]) = (&self.values, &deltas.values);
        let products = [(weights.gate, dg, &self.x_td), (weights.up, du, &self.x_td), (weights.down, h, &deltas.y_td)];
        let mut done = 0;
        match learners {
            Learners::Neurons(some) => {
                for (weight, values, a_td) in products {
                    if grads.learns(weight) {
                        done += self.of_some(weight, values, a_td, some, grads)?;
                    }
                }
            }
            Learners::All => {
                let s = self.rows.shape;
                let each = (s.rows() * s.hidden) as u64 * self.neurons.order_i.elem_count() as u64 / s.experts as u64;
                done += each * products.iter().filter(|(weight, ..)| grads.learns(weight)).count() as u64;
                let [gate, up, down] = products;
                if grads.alike(gate.0, up.0) {
                    self.of_all(&[(gate.0, gate.1), (up.0, up.1)], &self.x_td, grads)?;
                } else {
                    self.of_all(&[(gate.0, gate.1)], &self.x_td, grads)?;
                    self.of_all(&[(up.0, up.1)], &self.x_td, grads)?;
                }
                self.of_all(&[(down.0, down.1)], &deltas.y_td, grads)?;
            }
        }
        Ok(done)
    }
}

impl Saved {
    /// Σ over a token's rows of v W, in the form that the rule says.
    fn product(&self, pairs: &[(&Tensor, &Tensor)]) -> Result<Tensor> {
        if self.rows.shape.by_rows(pairs.len()) {
            return product_by_rows(pairs, &self.neurons, &self.rows);
        }
        let dense = pairs.iter().map(|(values, _)| self.dense(values)).collect::<Result<Vec<_>>>()?;
        sum_of_products(dense.iter().zip(pairs).map(|(v_ti, (_, weight))| (v_ti, *weight)))
    }

    /// Values of rows `[r, width]` as values of tokens `[t, i]`; 0 where nothing was computed.
    #[allow(unsafe_code)]
    fn dense(&self, values: &Tensor) -> Result<Tensor> {
        let (s, rows) = (self.rows.shape, &self.rows);
        let out_ti = room((s.tokens, s.neurons), DType::BF16, values.device())?;
        let lists = [&self.neuron_expert, &self.neurons.place_i];
        let tensors = of([&rows.bits, &rows.own_tk, values, lists[0], lists[1], &out_ti])?;
        let all = [&tensors[..], &[s.words(), s.most, s.width, s.neurons].map(Argument::count)].concat();
        let grid = grid((s.tokens, 1), 8 * s.words() as u32);
        // SAFETY: the signature of expert_dense: values that a kernel has written, the rows of every token, the expert and the place of every neuron,
        // and room for i values of each token, which is new; the shared memory holds two words for each of the token's bits.
        unsafe { KERNELS.launch_function("expert_dense", card(values)?, &grid, &all)? };
        Ok(out_ti)
    }

    /// dW[i] = Σ_r v[r, i] a[token of r] of one weight, or of two that are [`alike`](Grads::alike).
    #[allow(unsafe_code)]
    fn of_all(&self, weights: &[(&Tensor, &Tensor)], a_td: &Tensor, grads: &mut Grads) -> Result<()> {
        let (s, neurons, rows) = (self.rows.shape, &self.neurons, &self.rows);
        let lists = of([a_td, &neurons.order_i, &neurons.starts, &rows.starts, &rows.tokens_r])?;
        let mut targets = Vec::with_capacity(weights.len());
        for (weight, _) in weights {
            let Some((target, add)) = grads.target(weight) else { return Ok(()) };
            targets.push((target, add));
        }
        let [(first, add), ..] = targets.as_slice() else { return Ok(()) };
        let function = if weights.len() == 2 { "expert_weights_2" } else { "expert_weights_1" };
        let values = weights.iter().map(|(_, values)| Argument::of(values)).collect::<Result<Vec<_>>>()?;
        let out = targets.iter().map(|(target, _)| Argument::of(target)).collect::<Result<Vec<_>>>()?;
        let sizes = [Argument::count(s.hidden), Argument::count(s.width), Argument::half(first)];
        let all = [&values[..], &lists, &out, &sizes, &[Argument::count(usize::from(*add))]].concat();
        let grid = Grid { blocks: (s.columns(), s.experts * s.slabs()), threads: THREADS, shared_bytes: WEIGHT_BYTES };
        // SAFETY: the signatures of expert_weights_1 and _2: values that a kernel has written, x or dy as above, and gradients [i, d] in f32 or bf16 of
        // which no other reference is used; every block writes rows and columns that are its own.
        unsafe { KERNELS.launch_function(function, card(a_td)?, &grid, &all) }
    }

    /// The same of some neurons, by a product over all tokens.
    fn of_some(
        &self,
        weight: &Tensor,
        values: &Tensor,
        a_td: &Tensor,
        some: &LearningNeurons,
        grads: &mut Grads,
    ) -> Result<u64> {
        let v_tm = some.columns(&self.dense(values)?)?;
        some.add_rows(&v_tm.t()?.matmul(a_td)?, weight, grads)?;
        super::mlp_values::multiply_adds(&v_tm, a_td)
    }
}
