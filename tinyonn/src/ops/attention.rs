//! Causal grouped-query attention: y_i = Σ_{j ≤ i} softmax_j(q_i·k_j / √D) v_j.
//!
//! Shapes: q, y `[B, T, H, D]`, k, v `[B, S, K, D]`; head h reads the keys of head h / (H/K). With S > T the T queries
//! are the last T positions (a cache). Nothing of size T·S outlives the call: the backward computes the probabilities
//! anew from the saved log-sums (Dao et al., 2022), with dS = P ⊙ (dP − Σ_j dP ⊙ P) / √D. On a GPU, bf16 with D of 64 or 128 takes kernels
//! of our own (`attention.cu`, on compute capability 9.0 `attention_hopper.cu`); the rest is a composition, on a GPU with the softmax in one launch (`causal_softmax.cu`).
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use tinyonn::ops::attention::{Saved, backward, forward, forward_in_room};
//!
//! // One sequence of three positions, two query heads over one key and value head of width 4.
//! let random = |heads| Tensor::randn(0f32, 1f32, (1, 3, heads, 4), &Device::Cpu);
//! let (q, k, v) = (random(2)?, random(1)?, random(1)?);
//! let (y, saved): (Tensor, Saved) = forward(&q, &k, &v)?;
//! let [dq, dk, dv] = backward(&saved, &y.ones_like()?)?;
//! assert_eq!((dq.dims(), dk.dims(), dv.dims()), (q.dims(), k.dims(), v.dims()));
//!
//! // The same out of room for eight positions, of which three are taken.
//! let room = |x: &Tensor| x.pad_with_zeros(1, 0, 5);
//! let (same, _) = forward_in_room(&q, &room(&k)?, &room(&v)?, 3)?;
//! assert!((same - y)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-6);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{D, DType, Result, Tensor};

#[cfg(feature = "cuda")]
use super::{attention_kernel, causal_softmax};
use super::{few_queries, lanes};

/// What the backward needs.
#[derive(Debug)]
pub struct Saved {
    op: Attention,
    y_bthd: Tensor,
    log_sums: LogSums,
}

/// log Σ_j exp(q_i·k_j / √D), `[B, H, T]`, where it lies.
#[derive(Debug)]
enum LogSums {
    /// The composition takes the softmax again.
    Unsaved,
    Host(Vec<f32>),
    #[cfg(feature = "cuda")]
    Card(Tensor),
}

/// Causal attention of the last T of S positions.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together; more queries than keys.
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Saved)> {
    forward_in_room(q, k, v, k.dim(1)?)
}

/// As [`forward`], of keys and values `[B, room, K, D]` of which the first `positions` positions of each sequence are taken; in main memory in f32, and by our
/// kernels, the others are stepped over, and nothing is copied.
///
/// # Errors
/// As above; more positions than there is room for.
pub fn forward_in_room(q: &Tensor, k: &Tensor, v: &Tensor, positions: usize) -> Result<(Tensor, Saved)> {
    let [mut k, mut v] = [k.detach(), v.detach()];
    let fused = lanes::fused(&[q, &k, &v]);
    #[cfg(feature = "cuda")]
    let on_card = attention_kernel::takes([q, &k, &v])?;
    #[cfg(not(feature = "cuda"))]
    let on_card = false;
    if !fused && !on_card {
        [k, v] = [k.narrow(1, 0, positions)?, v.narrow(1, 0, positions)?];
    }
    let op = Attention::new(&q.detach(), &k, &v, positions)?;
    #[cfg(feature = "cuda")]
    if on_card {
        let (y, log_sums) = attention_kernel::forward(&op)?;
        return Ok((y.clone(), Saved { op, y_bthd: y, log_sums: LogSums::Card(log_sums) }));
    }
    let (y, log_sums) = if fused {
        let few = op.shape.queries <= few_queries::FEW && op.shape.keys > op.shape.queries;
        let (y, log_sums) =
            if few { few_queries::forward(&op, &few_queries::all(op.shape))? } else { fused::forward(&op)? };
        (y, LogSums::Host(log_sums))
    } else {
        (op.plain_forward()?, LogSums::Unsaved)
    };
    Ok((y.clone(), Saved { op, y_bthd: y, log_sums }))
}

/// dq, dk, dv.
///
/// # Errors
/// As above.
pub fn backward(saved: &Saved, dy: &Tensor) -> Result<[Tensor; 3]> {
    let dy = dy.detach().contiguous()?;
    if saved.op.shape.room != saved.op.shape.keys {
        candle_core::bail!("causal_attention: a cache has no backward");
    }
    match &saved.log_sums {
        LogSums::Unsaved => saved.op.plain_backward(&dy),
        LogSums::Host(log_sums) => fused::backward(&saved.op, &saved.y_bthd, &dy, log_sums),
        #[cfg(feature = "cuda")]
        LogSums::Card(log_sums) => attention_kernel::backward(&saved.op, &saved.y_bthd, &dy, log_sums),
    }
}

#[derive(Debug)]
pub(super) struct Attention {
    pub(super) q_bthd: Tensor,
    pub(super) k_bskd: Tensor,
    pub(super) v_bskd: Tensor,
    pub(super) shape: Shape,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) batch: usize,
    pub(super) queries: usize,
    pub(super) keys: usize,
    /// Positions from one sequence's keys to the next's.
    pub(super) room: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

impl Shape {
    pub(super) fn scale(self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    pub(super) fn group(self) -> usize {
        self.heads / self.kv_heads
    }
}

impl Attention {
    pub(super) fn new(q: &Tensor, k: &Tensor, v: &Tensor, keys: usize) -> Result<Self> {
        let (batch, queries, heads, head_dim) = q.dims4()?;
        let (k_batch, room, kv_heads, k_dim) = k.dims4()?;
        if (k_batch, k_dim) != (batch, head_dim)
            || v.dims() != k.dims()
            || queries > keys
            || keys > room
            || !heads.is_multiple_of(kv_heads)
        {
            candle_core::bail!(
                "causal_attention: q {:?}, k {:?}, v {:?} do not go together",
                q.shape(),
                k.shape(),
                v.shape()
            );
        }
        Ok(Self {
            q_bthd: q.contiguous()?,
            k_bskd: k.contiguous()?,
            v_bskd: v.contiguous()?,
            shape: Shape { batch, queries, keys, room, heads, kv_heads, head_dim },
        })
    }

    /// Heads outside, one row a (query head of the group, position): `[B, K, G·T, D]`.
    fn by_kv_head(&self, x_bthd: &Tensor) -> Result<Tensor> {
        let s = self.shape;
        x_bthd.transpose(1, 2)?.contiguous()?.reshape((s.batch, s.kv_heads, s.group() * s.queries, s.head_dim))
    }

    fn by_position(&self, x: &Tensor) -> Result<Tensor> {
        let s = self.shape;
        x.reshape((s.batch, s.heads, s.queries, s.head_dim))?.transpose(1, 2)?.contiguous()
    }

    /// P `[B, K, G·T, S]`, in at least f32.
    fn probabilities(&self) -> Result<Tensor> {
        let s = self.shape;
        let k_bkds = self.k_bskd.permute((0, 2, 3, 1))?.contiguous()?;
        let scores = self.by_kv_head(&self.q_bthd)?.matmul(&k_bkds)?;
        let wide = if scores.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let scores = scores.to_dtype(wide)?.reshape((s.batch, s.heads, s.queries, s.keys))?;
        let by_kv_head = (s.batch, s.kv_heads, s.group() * s.queries, s.keys);
        #[cfg(feature = "cuda")]
        if causal_softmax::takes(&[&scores]) {
            return causal_softmax::forward(&scores, s.scale())?.reshape(by_kv_head);
        }
        let past = s.keys - s.queries;
        let device = scores.device();
        let own = Tensor::arange(past as u32, s.keys as u32, device)?.unsqueeze(1)?;
        let hidden_ts = own.broadcast_lt(&Tensor::arange(0, s.keys as u32, device)?.unsqueeze(0)?)?;
        let nothing = Tensor::zeros(hidden_ts.shape(), wide, device)?;
        let mask_ts = hidden_ts.where_cond(&(&nothing + f64::NEG_INFINITY)?, &nothing)?;
        let scores = (scores * s.scale())?.broadcast_add(&mask_ts)?;
        candle_nn::ops::softmax(&scores, D::Minus1)?.reshape(by_kv_head)
    }

    /// dS of P and dP.
    fn scores_gradient(&self, p: &Tensor, dp: &Tensor) -> Result<Tensor> {
        let s = self.shape;
        #[cfg(feature = "cuda")]
        if causal_softmax::takes(&[p, dp]) {
            let by_head = |x: &Tensor| x.reshape((s.batch, s.heads, s.queries, s.keys));
            return causal_softmax::backward(&by_head(p)?, &by_head(dp)?, s.scale())?.reshape(p.shape());
        }
        (p * dp.broadcast_sub(&(dp * p)?.sum_keepdim(D::Minus1)?)?)? * s.scale()
    }

    fn plain_forward(&self) -> Result<Tensor> {
        let p = self.probabilities()?.to_dtype(self.v_bskd.dtype())?;
        self.by_position(&p.matmul(&self.v_bskd.transpose(1, 2)?.contiguous()?)?)
    }

    fn plain_backward(&self, dy_bthd: &Tensor) -> Result<[Tensor; 3]> {
        let (p, dy) = (self.probabilities()?, self.by_kv_head(dy_bthd)?);
        let dtype = self.v_bskd.dtype();
        let dp = dy.matmul(&self.v_bskd.permute((0, 2, 3, 1))?.contiguous()?)?.to_dtype(p.dtype())?;
        let ds = self.scores_gradient(&p, &dp)?.to_dtype(dtype)?;
        let p = p.to_dtype(dtype)?;
        let dq = ds.matmul(&self.k_bskd.transpose(1, 2)?.contiguous()?)?;
        let dk = ds.t()?.contiguous()?.matmul(&self.by_kv_head(&self.q_bthd)?)?;
        let dv = p.t()?.contiguous()?.matmul(&dy)?;
        Ok([self.by_position(&dq)?, dk.transpose(1, 2)?.contiguous()?, dv.transpose(1, 2)?.contiguous()?])
    }
}

/// f32 on the CPU: one task a (sequence, head), blocks of query rows, only the causal part of each block.
///
/// Tasks read the tensors' strided heads and write contiguous pieces of their own, heads outside; the outcome is put in the tensors'
/// order at the end, which costs one copy of T·D values beside the T²·D of their making.
mod fused {
    use candle_core::{Result, Tensor};
    use rayon::prelude::*;

    use super::super::head_matrix::{Matrix, by_position, maximum, product, sum};
    use super::super::lanes::{self, dot, exp};
    use super::{Attention, Shape};

    /// Query rows handled at once: the scores of a block stay in the cache.
    const BLOCK: usize = 64;

    pub(super) fn forward(op: &Attention) -> Result<(Tensor, Vec<f32>)> {
        let s = op.shape;
        let unit_size = (s.queries * s.head_dim).max(1);
        let mut y = vec![0f32; s.batch * s.heads * s.queries * s.head_dim];
        let mut log_sums = vec![0f32; s.batch * s.heads * s.queries];
        lanes::with_slices([&op.q_bthd, &op.k_bskd, &op.v_bskd], |[q, k, v]| {
            let units = y.par_chunks_mut(unit_size).zip(log_sums.par_chunks_mut(s.queries.max(1)));
            units.enumerate().for_each(|(unit, (y, log_sums))| {
                let (b, h) = (unit / s.heads, unit % s.heads);
                let q = Matrix::head(q, (b, h), s.queries, s.heads, s.head_dim);
                let [k, v] = [k, v].map(|x| Matrix::head(x, (b, h / s.group()), s.room, s.kv_heads, s.head_dim));
                lanes::vectorised(|| head_forward(s, [q, k, v], y, log_sums));
            });
        })?;
        let y = by_position(&y, s.queries, s.heads, s.head_dim);
        Ok((Tensor::from_vec(y, op.q_bthd.shape(), op.q_bthd.device())?, log_sums))
    }

    #[inline(always)]
    fn head_forward(s: Shape, [q, k, v]: [Matrix<'_>; 3], y: &mut [f32], log_sums: &mut [f32]) {
        let past = s.keys - s.queries;
        let mut buffer = vec![0f32; BLOCK.min(s.queries) * s.keys];
        for first in (0..s.queries).step_by(BLOCK) {
            let rows = BLOCK.min(s.queries - first);
            let columns = past + first + rows;
            let p = &mut buffer[..rows * columns];
            product(p, false, s.scale() as f32, q.rows(first, rows), k.rows(0, columns).t());
            for (i, row) in p.chunks_exact_mut(columns).enumerate() {
                let (seen, hidden) = row.split_at_mut(past + first + i + 1);
                let max = maximum(seen);
                seen.iter_mut().for_each(|x| *x = exp(*x - max));
                let sum = sum(seen);
                seen.iter_mut().for_each(|x| *x /= sum);
                hidden.fill(0.0);
                log_sums[first + i] = max + sum.ln();
            }
            let y = &mut y[first * s.head_dim..][..rows * s.head_dim];
            product(y, false, 1.0, Matrix::row_major(p, rows, columns), v.rows(0, columns));
        }
    }

    pub(super) fn backward(op: &Attention, y: &Tensor, dy: &Tensor, log_sums: &[f32]) -> Result<[Tensor; 3]> {
        let s = op.shape;
        let (query_head, key_head) = ((s.queries * s.head_dim).max(1), (s.keys * s.head_dim).max(1));
        let mut dq = vec![0f32; s.batch * s.heads * s.queries * s.head_dim];
        let mut dk = vec![0f32; s.batch * s.kv_heads * s.keys * s.head_dim];
        let mut dv = dk.clone();
        lanes::with_slices([&op.q_bthd, &op.k_bskd, &op.v_bskd, y, dy], |[q, k, v, y, dy]| {
            // A unit is a sequence's key head: it writes that head of dk and dv, and the query heads of its group.
            let keys = dk.par_chunks_mut(key_head).zip(dv.par_chunks_mut(key_head));
            dq.par_chunks_mut(s.group() * query_head).zip(keys).enumerate().for_each(|(unit, (dq, (dk, dv)))| {
                let (b, kv) = (unit / s.kv_heads, unit % s.kv_heads);
                let [k, v] = [k, v].map(|x| Matrix::head(x, (b, kv), s.keys, s.kv_heads, s.head_dim));
                for (member, dq) in dq.chunks_exact_mut(query_head).enumerate() {
                    let h = kv * s.group() + member;
                    let [q, y, dy] = [q, y, dy].map(|x| Matrix::head(x, (b, h), s.queries, s.heads, s.head_dim));
                    let log_sums = &log_sums[(b * s.heads + h) * s.queries..][..s.queries];
                    lanes::vectorised(|| head_backward(s, [q, k, v, y, dy], [&mut *dq, &mut *dk, &mut *dv], log_sums));
                }
            });
        })?;
        let device = dy.device();
        let tensor = |x: &[f32], positions, heads, like: &Tensor| {
            Tensor::from_vec(by_position(x, positions, heads, s.head_dim), like.shape(), device)
        };
        Ok([
            tensor(&dq, s.queries, s.heads, &op.q_bthd)?,
            tensor(&dk, s.keys, s.kv_heads, &op.k_bskd)?,
            tensor(&dv, s.keys, s.kv_heads, &op.k_bskd)?,
        ])
    }

    #[inline(always)]
    fn head_backward(s: Shape, [q, k, v, y, dy]: [Matrix<'_>; 5], [dq, dk, dv]: [&mut [f32]; 3], log_sums: &[f32]) {
        let (past, d) = (s.keys - s.queries, s.head_dim);
        let scale = s.scale() as f32;
        let mut p_buffer = vec![0f32; BLOCK.min(s.queries) * s.keys];
        let mut ds_buffer = p_buffer.clone();
        for first in (0..s.queries).step_by(BLOCK) {
            let rows = BLOCK.min(s.queries - first);
            let columns = past + first + rows;
            let [q, dy, y] = [q, dy, y].map(|x| x.rows(first, rows));
            let (p, ds) = (&mut p_buffer[..rows * columns], &mut ds_buffer[..rows * columns]);
            product(p, false, scale, q, k.rows(0, columns).t());
            product(ds, false, 1.0, dy, v.rows(0, columns).t());
            let pairs = p.chunks_exact_mut(columns).zip(ds.chunks_exact_mut(columns));
            for (i, (p, ds)) in pairs.enumerate() {
                let (seen, log_sum) = (past + first + i + 1, log_sums[first + i]);
                let mean = dot(dy.row(i), y.row(i));
                for (p, ds) in p[..seen].iter_mut().zip(&mut ds[..seen]) {
                    *p = exp(*p - log_sum);
                    *ds = *p * (*ds - mean) * scale;
                }
                p[seen..].fill(0.0);
                ds[seen..].fill(0.0);
            }
            let [p, ds] = [&*p, &*ds].map(|x| Matrix::row_major(x, rows, columns));
            product(&mut dq[first * d..][..rows * d], false, 1.0, ds, k.rows(0, columns));
            product(&mut dk[..columns * d], true, 1.0, ds.t(), q);
            product(&mut dv[..columns * d], true, 1.0, p.t(), dy);
        }
    }
}
