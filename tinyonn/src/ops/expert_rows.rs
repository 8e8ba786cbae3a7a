//! The rows of [`grouped_mlp`](super::grouped_mlp), a token and one of its experts each, found on the device by `expert_rows.cu`.

use candle_core::{DType, Result, Tensor};

use super::expert_products::{KERNELS, grid, of};
use super::kernel::{Argument, THREADS, card, room};

// Sizes by the names that they have in the kernels' texts.
pub(super) const TILE_ROWS: usize = 128;
pub(super) const SLAB_NEURONS: usize = 64;

/// The rows of a pass, sorted by expert.
#[derive(Debug)]
pub(super) struct Rows {
    /// Which experts each token takes, `[t, words]` u32.
    pub(super) bits: Tensor,
    /// Where each expert's rows begin, `[n + 1]` u32.
    pub(super) starts: Tensor,
    /// The token and the gate of each row, `[r]` u32 and f32.
    pub(super) tokens_r: Tensor,
    pub(super) gates_r: Tensor,
    /// The rows of each token, `[t, most]` u32.
    pub(super) own_tk: Tensor,
    /// Expert and first row of each tile, `[tiles, 2]` u32.
    pub(super) tiles: Tensor,
    pub(super) shape: Shape,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) tokens: usize,
    pub(super) hidden: usize,
    pub(super) experts: usize,
    pub(super) most: usize,
    /// Neurons that a row has room for: whole slabs.
    pub(super) width: usize,
    /// Of all experts.
    pub(super) neurons: usize,
}

impl Shape {
    pub(super) fn words(self) -> usize {
        self.experts.div_ceil(32)
    }

    pub(super) fn rows(self) -> usize {
        self.tokens * self.most
    }

    pub(super) fn tiles(self) -> usize {
        self.rows() / TILE_ROWS + self.experts
    }

    pub(super) fn slabs(self) -> usize {
        self.width / SLAB_NEURONS
    }
}

#[allow(unsafe_code)]
impl Rows {
    pub(super) fn new(gate_tn: &Tensor, shape: Shape) -> Result<Self> {
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
    pub(super) fn room(&self, like: &Tensor) -> Result<Tensor> {
        room((self.shape.rows(), self.shape.width), DType::BF16, like.device())
    }
}
