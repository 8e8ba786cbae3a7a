//! What scores the keys of a tile of queries, by each method.

use candle_core::{D, DType, Device, Result, Tensor};
use tinyonn::moe::{PairsBy, PairsSpec};

use super::Method;

/// Queries of a tile with all the keys that their last sees.
pub(super) struct Tile<'a> {
    /// `[K, G, rows, D]`, divided by √D.
    pub(super) q: Tensor,
    /// `[K, columns, D]`.
    pub(super) k: Tensor,
    /// q kᵀ, `[K, G, rows, columns]`.
    pub(super) logits: &'a Tensor,
    /// Whether a key is seen, `[rows, columns]` u8.
    pub(super) seen: &'a Tensor,
    /// The position of the first query.
    pub(super) first_row: usize,
}

/// Scores.
pub(super) struct Scores {
    /// By which keys are chosen: `[K·G, rows, columns]`, or `[K, rows, columns]` where a key head's queries choose together.
    pub(super) choice: Tensor,
    /// What the index takes the logits for, `[K, G, rows, columns]`; of blocks and positions nothing.
    pub(super) logits: Option<Tensor>,
}

impl Tile<'_> {
    /// As the method says, by directions `[K, r, D]` where it reads any.
    pub(super) fn scores(&self, method: Method, pairs: &PairsSpec, directions_krd: Option<&Tensor>) -> Result<Scores> {
        if let Some(size) = method.block().filter(|size| self.seen.dim(1).is_ok_and(|columns| columns < *size)) {
            // No block is whole: all keys are of the query's own.
            let (kv, _, rows, _) = self.q.dims4()?;
            let none = Tensor::zeros((kv, rows, 0), DType::F32, self.q.device())?;
            return Ok(Scores { choice: self.spread(&none, size)?, logits: None });
        }
        let by_blocks = |scores: Tensor, size: usize| {
            Ok(Scores { choice: self.spread(&together(&scores, &self.whole_blocks(size)?)?, size)?, logits: None })
        };
        let logits = match (method, directions_krd) {
            (Method::Components { r, .. } | Method::Sparq { r, .. }, _) => {
                logits_of(&self.largest_components(r, pairs.by)?, &self.k)?
            }
            (Method::Directions { r, .. }, Some(directions)) => {
                let turned = directions.narrow(1, 0, r)?.t()?.contiguous()?;
                let (kv, group, rows, d) = self.q.dims4()?;
                let q = self.q.reshape((kv, group * rows, d))?.matmul(&turned)?.reshape((kv, group, rows, r))?;
                logits_of(&q, &self.k.matmul(&turned)?)?
            }
            (Method::BlockMeans { size }, _) => {
                return by_blocks(logits_of(&self.q, &self.blocks(size)?.mean(2)?)?, size);
            }
            (Method::MinMax { size }, _) => {
                let blocks = self.blocks(size)?;
                let up = logits_of(&self.q.relu()?, &blocks.max(2)?)?;
                let down = logits_of(&self.q.neg()?.relu()?, &blocks.min(2)?)?;
                return by_blocks((up - down)?, size);
            }
            (Method::LargestMass { size }, _) => {
                let (kv, group, rows, columns) = self.logits.dims4()?;
                let blocks = columns / size;
                let whole = self.logits.narrow(3, 0, blocks * size)?.contiguous()?;
                return by_blocks(whole.reshape((kv, group, rows, blocks, size))?.log_sum_exp(4)?, size);
            }
            (Method::Window, _) => {
                let (kv, _, rows, columns) = self.logits.dims4()?;
                let nearest = positions(columns, self.q.device())?;
                let choice = nearest.broadcast_as((kv, rows, columns))?.contiguous()?;
                return Ok(Scores { choice, logits: None });
            }
            _ => self.logits.clone(),
        };
        let (kv, group, rows, columns) = logits.dims4()?;
        let choice = match pairs.by {
            PairsBy::Head => logits.reshape((kv * group, rows, columns))?,
            PairsBy::KvHead => together(&logits, self.seen)?,
        };
        Ok(Scores { choice, logits: Some(logits) })
    }

    /// Queries of which all but the r components of largest |q| are zero, of each, or of largest Σ |q| over a group, longer by √(Σ |q| / Σ |q of those|).
    fn largest_components(&self, r: usize, by: PairsBy) -> Result<Tensor> {
        let sizes = self.q.abs()?;
        let deciding = if by == PairsBy::KvHead { sizes.sum_keepdim(1)? } else { sizes.clone() };
        let (ordered, _) = deciding.contiguous()?.sort_last_dim(false)?;
        let taken = deciding.broadcast_ge(&ordered.narrow(3, r - 1, 1)?)?.to_dtype(DType::F32)?;
        let part = sizes.broadcast_mul(&taken)?.sum_keepdim(3)?;
        let longer = (sizes.sum_keepdim(3)? / part.clamp(1e-30f32, f32::MAX)?)?.sqrt()?;
        self.q.broadcast_mul(&taken)?.broadcast_mul(&longer)
    }

    /// The keys of whole blocks, `[K, blocks, size, D]`.
    fn blocks(&self, size: usize) -> Result<Tensor> {
        let (kv, columns, d) = self.k.dims3()?;
        self.k.narrow(1, 0, columns / size * size)?.contiguous()?.reshape((kv, columns / size, size, d))
    }

    /// Whether a block is whole and before the query's own, `[rows, blocks]` u8.
    fn whole_blocks(&self, size: usize) -> Result<Tensor> {
        let columns = self.seen.dim(1)?;
        positions(columns / size, self.q.device())?.broadcast_lt(&self.by_row(|position| position / size)?)
    }

    /// `f` of each query's position, `[rows, 1]`.
    fn by_row(&self, f: impl Fn(usize) -> usize) -> Result<Tensor> {
        let rows = self.seen.dim(0)?;
        let values: Vec<f32> = (0..rows).map(|row| f(self.first_row + row) as f32).collect();
        Tensor::from_vec(values, (rows, 1), self.q.device())
    }

    /// The scores of blocks as those of their keys, `[K, rows, columns]`; the query's own block comes before all others.
    fn spread(&self, of_blocks: &Tensor, size: usize) -> Result<Tensor> {
        let (kv, rows, blocks) = of_blocks.dims3()?;
        let columns = self.seen.dim(1)?;
        let of_keys = if blocks == 0 {
            Tensor::zeros((kv, rows, columns), DType::F32, self.q.device())?
        } else {
            let of_keys = of_blocks.unsqueeze(3)?.broadcast_as((kv, rows, blocks, size))?.contiguous()?;
            of_keys.reshape((kv, rows, blocks * size))?.pad_with_zeros(2, 0, columns - blocks * size)?
        };
        let own = self.by_row(|position| position / size * size)?;
        let own = positions(columns, self.q.device())?.broadcast_ge(&own)?;
        let first = Tensor::full(1e30f32, of_keys.shape(), of_keys.device())?;
        own.broadcast_as(of_keys.shape())?.where_cond(&first, &of_keys)
    }
}

/// 0, 1, .., `[1, count]`.
fn positions(count: usize, device: &Device) -> Result<Tensor> {
    Tensor::arange(0, count as u32, device)?.to_dtype(DType::F32)?.unsqueeze(0)
}

/// Whether the queries from position `first_row` on see a key, `[rows, columns]` u8.
pub(super) fn seen(first_row: usize, rows: usize, columns: usize, device: &Device) -> Result<Tensor> {
    let own: Vec<f32> = (first_row..first_row + rows).map(|position| position as f32).collect();
    positions(columns, device)?.broadcast_le(&Tensor::from_vec(own, (rows, 1), device)?)
}

/// Logits `[K, G, rows, n]` of queries `[K, G, rows, r]` and keys `[K, n, r]`.
fn logits_of(q: &Tensor, k: &Tensor) -> Result<Tensor> {
    let (kv, group, rows, r) = q.dims4()?;
    let logits = q.reshape((kv, group * rows, r))?.matmul(&k.t()?.contiguous()?)?;
    logits.reshape((kv, group, rows, k.dim(1)?))
}

/// Σ over a group of its heads' softmax over what each sees, `[K, rows, n]`, as a logarithm where that is compared by halves.
fn together(logits: &Tensor, seen: &Tensor) -> Result<Tensor> {
    let seen = seen.broadcast_as(logits.shape())?;
    let nothing = Tensor::full(-1e30f32, logits.shape(), logits.device())?;
    let p = candle_nn::ops::softmax(&seen.where_cond(logits, &nothing)?, D::Minus1)?.sum(1)?;
    if p.device().is_cpu() { Ok(p) } else { p.clamp(1e-37f32, 1e9f32)?.log() }
}
