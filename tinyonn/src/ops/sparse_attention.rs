//! Causal grouped-query attention to some keys a query: y_i = Σ_{j ∈ N(i)} softmax_{j ∈ N(i)}(q_i·k_j / √D) v_j (DESIGN §8).
//!
//! Shapes as in [`attention`](super::attention). N(i) are the keys that a [`PairsSpec`] keeps: those next to the query and at the beginning, and the best of the others by
//! an index, ties to the lower position. The choice is made in f32 in main memory, by tiles of queries, so that nothing of size T·S is held; it has no derivative, and the gradient of what is
//! kept is exact: dS = P ⊙ (dP − Σ_j dP ⊙ P) / √D over N(i). Kept for the backward is each query's threshold, the score and position of the last key that was chosen,
//! by which the same choice is made once more. Where every query keeps all it sees the caller asks [`attention`](super::attention), whose bits these are not.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use tinyonn::moe::{KeptPairs, PairIndex, PairsSpec};
//! use tinyonn::ops::sparse_attention::{Choosing, Saved, backward, forward};
//!
//! // One sequence of six positions, two query heads over one key and value head of width 4.
//! let random = |heads| Tensor::randn(0f32, 1f32, (1, 6, heads, 4), &Device::Cpu);
//! let (q, k, v) = (random(2)?, random(1)?, random(1)?);
//! let pairs = PairsSpec { near: 1, first: 1, ..PairsSpec::new(KeptPairs::Share(0.5), PairIndex::Components(2)) };
//! let by = Choosing { pairs, directions_krd: None };
//! let (y, saved): (Tensor, Saved) = forward(&q, &k, &v, 6, &by)?;
//! let kept = saved.kept()?.to_dtype(candle_core::DType::F32)?;
//! assert_eq!(kept.narrow(1, 0, 1)?.sum(3)?.flatten_all()?.to_vec1::<f32>()?, [1.0, 2.0, 2.0, 2.0, 3.0, 3.0]);
//! let [dq, dk, dv] = backward(&saved, &y.ones_like()?)?;
//! assert_eq!((dq.dims(), dk.dims(), dv.dims()), (q.dims(), k.dims(), v.dims()));
//! # Ok::<(), candle_core::Error>(())
//! ```

mod choice;
mod fused;
mod gathered;
mod index;
mod plain;

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use tinyonn_spec::{PairIndex, PairsSpec};

use super::attention::{Attention, Shape};
use super::{few_queries, lanes};
use choice::{Chooser, Threshold};

/// Queries that choose at once: their scores stay in the cache.
const TILE: usize = 64;

/// What chooses the pairs.
#[derive(Clone, Debug)]
pub struct Choosing {
    /// What is declared.
    pub pairs: PairsSpec,
    /// The main directions of the keys of each key head as rows, `[K, r, D]`, where the index is of directions.
    pub directions_krd: Option<Tensor>,
}

/// The same, asked of given keys.
#[derive(Debug)]
struct Prepared {
    pairs: PairsSpec,
    /// `[K, r, D]`.
    directions: Option<Tensor>,
    /// `[B, K, r, room]`.
    indexed: Option<Tensor>,
}

/// What the backward needs.
#[derive(Debug)]
pub struct Saved {
    op: Attention,
    by: Prepared,
    y_bthd: Tensor,
    /// By sequence and key head, and tile of queries.
    thresholds: Vec<Vec<Threshold>>,
    /// log Σ exp over what is kept, `[B, H, T]`, if the fused form was taken.
    log_sums: Option<Vec<f32>>,
}

impl Choosing {
    /// Those that the index is of.
    fn directions(&self) -> Option<&Tensor> {
        self.directions_krd.as_ref().filter(|_| matches!(self.pairs.index, PairIndex::Directions(_)))
    }

    /// What the index reads of keys `[B, T, K, D]` and a cache can hold beside them, `[B, K, r, T]` in the keys' type, so that a component of all positions lies in a row: the keys in their
    /// main directions, or, of f32 in main memory, all of their components; `None` where it reads the keys themselves.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use tinyonn::moe::{KeptPairs, PairIndex, PairsSpec};
    /// use tinyonn::ops::sparse_attention::Choosing;
    ///
    /// let by = |index| Choosing { pairs: PairsSpec::new(KeptPairs::Share(0.5), index), directions_krd: None };
    /// let k = Tensor::new(&[[[[1f32, 2.0]], [[3.0, 4.0]]]], &Device::Cpu)?; // two positions of one key head
    /// let indexed = by(PairIndex::Components(1)).indexed(&k)?.unwrap();
    /// assert_eq!(indexed.flatten_all()?.to_vec1::<f32>()?, [1.0, 3.0, 2.0, 4.0]);
    /// assert!(by(PairIndex::Window).indexed(&k)?.is_none());
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the device reports.
    pub fn indexed(&self, k_btkd: &Tensor) -> Result<Option<Tensor>> {
        let Some(directions_krd) = self.directions() else {
            // Elsewhere the choice reads the keys.
            let reads = matches!(self.pairs.index, PairIndex::Components(_)) && lanes::fused(&[k_btkd]);
            return reads.then(|| k_btkd.detach().permute((0, 2, 3, 1))?.contiguous()).transpose();
        };
        let of_heads = k_btkd.detach().permute((2, 0, 1, 3))?.contiguous()?;
        let (heads, b, t, d) = of_heads.dims4()?;
        let turned = directions_krd.to_dtype(k_btkd.dtype())?.to_device(k_btkd.device())?.t()?.contiguous()?;
        let turned = of_heads.reshape((heads, b * t, d))?.matmul(&turned)?;
        turned.reshape((heads, b, t, ()))?.permute((1, 0, 3, 2))?.contiguous().map(Some)
    }
}

impl Saved {
    /// Whether a pair is kept, `[B, H, T, S]` u8 in main memory: for whoever looks at choices.
    ///
    /// # Errors
    /// What the device reports.
    pub fn kept(&self) -> Result<Tensor> {
        let s = self.op.shape;
        let mut kept = vec![0u8; s.batch * s.heads * s.queries * s.keys];
        with_chooser(&self.op, &self.by, |chooser| {
            for ((unit, rows), held) in tiles(s).zip(&self.thresholds) {
                let choice = chooser.choose(unit, rows.clone(), Some(held));
                for (member, i) in (0..s.group()).flat_map(|member| (0..rows.len()).map(move |i| (member, i))) {
                    let row = (unit * s.group() + member) * s.queries + rows.start + i;
                    let places = kept[row * s.keys..].iter_mut();
                    places.zip(choice.of(member, i)).for_each(|(place, kept)| *place = u8::from(*kept));
                }
            }
        })?;
        Tensor::from_vec(kept, (s.batch, s.heads, s.queries, s.keys), &Device::Cpu)
    }
}

/// Attention of the last T of `positions` positions to the keys that `by` keeps; keys and values are `[B, room, K, D]`, of which so many are taken.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together; directions that are not there, or of other heads; more components than a head has.
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, positions: usize, by: &Choosing) -> Result<(Tensor, Saved)> {
    forward_in_room(q, [k, v], None, positions, by)
}

/// As [`forward`], with what [`Choosing::indexed`] said of all keys, in as much room, where it was kept.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::moe::{KeptPairs, PairIndex, PairsSpec};
/// use tinyonn::ops::sparse_attention::{Choosing, forward, forward_in_room};
///
/// // A new position behind seven others, in a cache with room for eight.
/// let random = |positions, heads| Tensor::randn(0f32, 1f32, (1, positions, heads, 4), &Device::Cpu);
/// let (q, k, v) = (random(1, 2)?, random(8, 1)?, random(8, 1)?);
/// let pairs = PairsSpec { near: 1, first: 1, ..PairsSpec::new(KeptPairs::Keys(3), PairIndex::Components(4)) };
/// let by = Choosing { pairs, directions_krd: None };
/// let (y, _) = forward_in_room(&q, [&k, &v], by.indexed(&k)?.as_ref(), 8, &by)?;
/// let (same, _) = forward(&q, &k, &v, 8, &by)?;
/// assert!((y - same)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// As of [`forward`]; an index of other shape.
pub fn forward_in_room(
    q: &Tensor,
    kv: [&Tensor; 2],
    indexed: Option<&Tensor>,
    positions: usize,
    by: &Choosing,
) -> Result<(Tensor, Saved)> {
    let (q, [mut k, mut v]) = (q.detach(), kv.map(Tensor::detach));
    let fused = lanes::fused(&[&q, &k, &v]);
    let mut indexed = match indexed {
        Some(indexed) => Some(indexed.detach()),
        // Components that nobody has laid in rows are read of the keys.
        None if by.directions().is_some() => by.indexed(&k)?,
        None => None,
    };
    if !fused {
        [k, v] = [k.narrow(1, 0, positions)?, v.narrow(1, 0, positions)?];
        indexed = indexed.map(|indexed| indexed.narrow(3, 0, positions)).transpose()?;
    }
    let op = Attention::new(&q, &k, &v, positions)?;
    check(op.shape, by)?;
    if let Some(indexed) = &indexed {
        let s = op.shape;
        let r = if let PairIndex::Directions(r) = by.pairs.index { r } else { s.head_dim };
        if indexed.dims() != [s.batch, s.kv_heads, r, s.room] {
            candle_core::bail!("sparse_attention: an index of rows {:?}, of {s:?}", indexed.dims());
        }
    }
    let by = Prepared { pairs: by.pairs, directions: by.directions().cloned(), indexed };
    let (y_bthd, thresholds, log_sums) = if fused && op.shape.queries <= few_queries::FEW {
        gathered::forward(&op, &by)?
    } else if fused {
        fused::forward(&op, &by)?
    } else {
        plain::forward(&op, &by)?
    };
    Ok((y_bthd.clone(), Saved { op, by, y_bthd, thresholds, log_sums }))
}

/// dq, dk, dv.
///
/// # Errors
/// As above; the room of a cache, which has no backward.
pub fn backward(saved: &Saved, dy: &Tensor) -> Result<[Tensor; 3]> {
    let dy = dy.detach().contiguous()?;
    if saved.op.shape.room != saved.op.shape.keys {
        candle_core::bail!("sparse_attention: a cache has no backward");
    }
    match &saved.log_sums {
        Some(log_sums) => fused::backward(saved, &dy, log_sums),
        None => plain::backward(saved, &dy),
    }
}

/// Refuses an index that the heads cannot have.
fn check(s: Shape, by: &Choosing) -> Result<()> {
    let r = match by.pairs.index {
        PairIndex::Components(r) | PairIndex::Directions(r) => r,
        PairIndex::Blocks(_) | PairIndex::Window | PairIndex::Exact => return Ok(()),
    };
    let directed = matches!(by.pairs.index, PairIndex::Directions(_));
    let given = by.directions_krd.as_ref().map(|directions| directions.dims().to_vec());
    if r > s.head_dim || (directed && given.as_deref() != Some(&[s.kv_heads, r, s.head_dim])) {
        candle_core::bail!(
            "sparse_attention: an index of {r} of {} values of {} key heads, with directions {given:?}",
            s.head_dim,
            s.kv_heads
        );
    }
    Ok(())
}

/// The tiles of each sequence's key head, in order.
fn tiles(s: Shape) -> impl Iterator<Item = (usize, Range<usize>)> {
    let of_unit =
        move |unit| (0..s.queries).step_by(TILE).map(move |first| (unit, first..(first + TILE).min(s.queries)));
    (0..s.batch * s.kv_heads).flat_map(of_unit)
}

/// `f` of what chooses in this operation, f32 in main memory.
fn with_chooser<R>(op: &Attention, by: &Prepared, f: impl FnOnce(&Chooser<'_>) -> R) -> Result<R> {
    let in_memory = |x: &Tensor| x.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.contiguous();
    let (q, k) = (in_memory(&op.q_bthd)?, in_memory(&op.k_bskd)?);
    let chooser = |[q, k]: [&[f32]; 2], directions: Option<&[f32]>, indexed: Option<&[f32]>| {
        f(&Chooser::new(&by.pairs, op.shape, [q, k], (directions, indexed)))
    };
    match (&by.directions, &by.indexed) {
        (Some(directions), Some(indexed)) => {
            let tensors = [&q, &k, &in_memory(directions)?, &in_memory(indexed)?];
            lanes::with_slices(tensors, |[q, k, directions, indexed]| chooser([q, k], Some(directions), Some(indexed)))
        }
        (None, Some(indexed)) => {
            lanes::with_slices([&q, &k, &in_memory(indexed)?], |[q, k, indexed]| chooser([q, k], None, Some(indexed)))
        }
        _ => lanes::with_slices([&q, &k], |[q, k]| chooser([q, k], None, None)),
    }
}
