//! Causal grouped-query attention: y_i = Σ_{j ≤ i} softmax_j(q_i·k_j / √D) v_j.
//!
//! Shapes: q, y `[B, T, H, D]`, k, v `[B, S, K, D]`; head h reads the keys of head h / (H/K). With S > T the T queries
//! are the last T positions (a cache). Nothing of size T·S outlives the call: the backward computes the probabilities
//! anew from the saved log-sums (Dao et al., 2022), with dS = P ⊙ (dP − Σ_j dP ⊙ P) / √D.

use candle_core::{D, DType, Result, Tensor};

use super::lanes;
use super::tape::{self, Backward};

/// Causal attention of the last T of S positions.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together; more queries than keys.
pub fn causal_attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let op = Attention::new(&q.detach(), &k.detach(), &v.detach())?;
    let (y, log_sums) = if lanes::fused(&[q, k, v]) { fused::forward(&op)? } else { (op.plain_forward()?, vec![]) };
    tape::record(&[q, k, v], y, Recorded { op, log_sums })
}

struct Attention {
    q_bthd: Tensor,
    k_bskd: Tensor,
    v_bskd: Tensor,
    shape: Shape,
}

#[derive(Clone, Copy)]
struct Shape {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Shape {
    fn scale(self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    fn group(self) -> usize {
        self.heads / self.kv_heads
    }
}

struct Recorded {
    op: Attention,
    /// log Σ_j exp(q_i·k_j / √D), `[B, H, T]`; empty on the plain path.
    log_sums: Vec<f32>,
}

impl Backward for Recorded {
    fn name(&self) -> &'static str {
        "causal_attention"
    }

    fn backward(&self, output: &Tensor, grad: &Tensor, needs: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let [dq, dk, dv] = if self.log_sums.is_empty() {
            self.op.plain_backward(grad)?
        } else {
            fused::backward(&self.op, output, grad, &self.log_sums)?
        };
        Ok([dq, dk, dv].into_iter().zip(needs).map(|(grad, need)| need.then_some(grad)).collect())
    }
}

impl Attention {
    fn new(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Self> {
        let (batch, queries, heads, head_dim) = q.dims4()?;
        let (k_batch, keys, kv_heads, k_dim) = k.dims4()?;
        if (k_batch, k_dim) != (batch, head_dim) || v.dims() != k.dims() || queries > keys || heads % kv_heads != 0 {
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
            shape: Shape { batch, queries, keys, heads, kv_heads, head_dim },
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
        let scores = (self.by_kv_head(&self.q_bthd)?.matmul(&k_bkds)? * s.scale())?;
        let wide = if scores.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let past = s.keys - s.queries;
        let mask: Vec<f32> = (0..s.queries)
            .flat_map(|i| (0..s.keys).map(move |j| if j <= past + i { 0.0 } else { f32::NEG_INFINITY }))
            .collect();
        let mask_ts = Tensor::from_vec(mask, (s.queries, s.keys), scores.device())?.to_dtype(wide)?;
        let scores = scores.to_dtype(wide)?.reshape((s.batch, s.heads, s.queries, s.keys))?.broadcast_add(&mask_ts)?;
        candle_nn::ops::softmax(&scores, D::Minus1)?.reshape((s.batch, s.kv_heads, s.group() * s.queries, s.keys))
    }

    fn plain_forward(&self) -> Result<Tensor> {
        let p = self.probabilities()?.to_dtype(self.v_bskd.dtype())?;
        self.by_position(&p.matmul(&self.v_bskd.transpose(1, 2)?.contiguous()?)?)
    }

    fn plain_backward(&self, dy_bthd: &Tensor) -> Result<[Tensor; 3]> {
        let (p, dy) = (self.probabilities()?, self.by_kv_head(dy_bthd)?);
        let dtype = self.v_bskd.dtype();
        let dp = dy.matmul(&self.v_bskd.permute((0, 2, 3, 1))?.contiguous()?)?.to_dtype(p.dtype())?;
        let ds = (&p * dp.broadcast_sub(&(&dp * &p)?.sum_keepdim(D::Minus1)?)?)? * self.shape.scale();
        let (p, ds) = (p.to_dtype(dtype)?, ds?.to_dtype(dtype)?);
        let dq = ds.matmul(&self.k_bskd.transpose(1, 2)?.contiguous()?)?;
        let dk = ds.t()?.contiguous()?.matmul(&self.by_kv_head(&self.q_bthd)?)?;
        let dv = p.t()?.contiguous()?.matmul(&dy)?;
        Ok([self.by_position(&dq)?, dk.transpose(1, 2)?.contiguous()?, dv.transpose(1, 2)?.contiguous()?])
    }
}

/// f32 on the CPU: one task a (sequence, key head), blocks of query rows, only the causal part of each block.
#[allow(unsafe_code)]
mod fused {
    use candle_core::{Result, Tensor};
    use gemm::Parallelism;
    use rayon::prelude::*;

    use super::super::lanes::{self, dot, exp};
    use super::{Attention, Shape};

    /// Query rows handled at once: the scores of a block stay in the cache.
    const BLOCK: usize = 64;

    /// A strided matrix inside a tensor's storage; rows and columns are counted in elements.
    #[derive(Clone, Copy)]
    struct Matrix {
        start: *mut f32,
        rows: usize,
        columns: usize,
        row_stride: usize,
        column_stride: usize,
    }

    // SAFETY: tasks that hold a `Matrix` over an output touch disjoint heads of it (see `forward`, `backward`).
    unsafe impl Send for Matrix {}
    // SAFETY: as above.
    unsafe impl Sync for Matrix {}

    impl Matrix {
        fn row_major(data: &[f32], rows: usize, columns: usize) -> Self {
            debug_assert!(rows * columns <= data.len());
            Self { start: data.as_ptr().cast_mut(), rows, columns, row_stride: columns, column_stride: 1 }
        }

        fn t(self) -> Self {
            Self {
                rows: self.columns,
                columns: self.rows,
                row_stride: self.column_stride,
                column_stride: self.row_stride,
                ..self
            }
        }

        fn rows(self, first: usize, rows: usize) -> Self {
            debug_assert!(first + rows <= self.rows);
            Self { start: self.start.wrapping_add(first * self.row_stride), rows, ..self }
        }

        /// Row `i` of a matrix whose rows are contiguous.
        fn row<'a>(self, i: usize) -> &'a [f32] {
            debug_assert!(i < self.rows && self.column_stride == 1);
            // SAFETY: row `i` lies inside the storage that `head` measured out, and nobody writes it meanwhile.
            unsafe { std::slice::from_raw_parts(self.start.wrapping_add(i * self.row_stride), self.columns) }
        }
    }

    /// Positions × D of one head of `[B, positions, heads, D]`.
    fn head(data: &[f32], (b, h): (usize, usize), positions: usize, heads: usize, d: usize) -> Matrix {
        debug_assert!((b + 1) * positions * heads * d <= data.len());
        let start = data.as_ptr().cast_mut().wrapping_add((b * positions * heads + h) * d);
        Matrix { start, rows: positions, columns: d, row_stride: heads * d, column_stride: 1 }
    }

    /// out = [out +] scale · a b, on this thread.
    fn product(out: Matrix, accumulate: bool, scale: f32, a: Matrix, b: Matrix) {
        assert!(a.columns == b.rows && out.rows == a.rows && out.columns == b.columns);
        // SAFETY: the three matrices lie inside their storages (`head`, `row_major`, `rows` keep to them), `out` is
        // written by this task alone and overlaps neither input.
        unsafe {
            gemm::gemm(
                out.rows,
                out.columns,
                a.columns,
                out.start,
                out.column_stride as isize,
                out.row_stride as isize,
                accumulate,
                a.start.cast_const(),
                a.column_stride as isize,
                a.row_stride as isize,
                b.start.cast_const(),
                b.column_stride as isize,
                b.row_stride as isize,
                1.0,
                scale,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }

    fn maximum(row: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; 16];
        let (chunks, rest) = row.as_chunks::<16>();
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane = if *x > *lane { *x } else { *lane };
            }
        }
        lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
    }

    /// Scores of a block of query rows against the first `columns` keys, scaled.
    fn scores(buffer: &mut [f32], q: Matrix, k: Matrix, columns: usize, scale: f32) -> Matrix {
        let out = Matrix { start: buffer.as_mut_ptr(), ..Matrix::row_major(buffer, q.rows, columns) };
        product(out, false, scale, q, k.rows(0, columns).t());
        out
    }

    pub(super) fn forward(op: &Attention) -> Result<(Tensor, Vec<f32>)> {
        let s = op.shape;
        let mut y = vec![0f32; s.batch * s.queries * s.heads * s.head_dim];
        let mut log_sums = vec![0f32; s.batch * s.heads * s.queries];
        lanes::with_slices([&op.q_bthd, &op.k_bskd, &op.v_bskd], |[q, k, v]| {
            let y = &mut y[..];
            let whole = y.as_mut_ptr();
            let out = Matrix { start: whole, ..Matrix::row_major(y, s.batch * s.queries, s.heads * s.head_dim) };
            log_sums.par_chunks_mut(s.queries.max(1)).enumerate().for_each(|(unit, log_sums)| {
                let (b, h) = (unit / s.heads, unit % s.heads);
                let q = head(q, (b, h), s.queries, s.heads, s.head_dim);
                let k = head(k, (b, h / s.group()), s.keys, s.kv_heads, s.head_dim);
                let v = head(v, (b, h / s.group()), s.keys, s.kv_heads, s.head_dim);
                // Each unit writes its own head's columns of its own sequence's rows.
                let rows = out.rows(b * s.queries, s.queries);
                let y = Matrix { start: rows.start.wrapping_add(h * s.head_dim), columns: s.head_dim, ..rows };
                lanes::vectorised(|| head_forward(s, [q, k, v, y], log_sums));
            });
        })?;
        Ok((Tensor::from_vec(y, op.q_bthd.shape(), op.q_bthd.device())?, log_sums))
    }

    #[inline(always)]
    fn head_forward(s: Shape, [q, k, v, y]: [Matrix; 4], log_sums: &mut [f32]) {
        let past = s.keys - s.queries;
        let mut buffer = vec![0f32; BLOCK.min(s.queries) * s.keys];
        for first in (0..s.queries).step_by(BLOCK) {
            let rows = BLOCK.min(s.queries - first);
            let columns = past + first + rows;
            let p = scores(&mut buffer, q.rows(first, rows), k, columns, s.scale() as f32);
            for (i, row) in buffer.chunks_exact_mut(columns).take(rows).enumerate() {
                let (seen, hidden) = row.split_at_mut(past + first + i + 1);
                let max = maximum(seen);
                seen.iter_mut().for_each(|x| *x = exp(*x - max));
                let sum = sum(seen);
                seen.iter_mut().for_each(|x| *x /= sum);
                hidden.fill(0.0);
                log_sums[first + i] = max + sum.ln();
            }
            product(y.rows(first, rows), false, 1.0, p, v.rows(0, columns));
        }
    }

    #[inline(always)]
    fn sum(row: &[f32]) -> f32 {
        let mut lanes = [0f32; 16];
        let (chunks, rest) = row.as_chunks::<16>();
        for chunk in chunks {
            lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane += x);
        }
        lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
    }

    pub(super) fn backward(op: &Attention, y: &Tensor, dy: &Tensor, log_sums: &[f32]) -> Result<[Tensor; 3]> {
        let s = op.shape;
        let mut dq = vec![0f32; s.batch * s.queries * s.heads * s.head_dim];
        let mut dk = vec![0f32; s.batch * s.keys * s.kv_heads * s.head_dim];
        let mut dv = dk.clone();
        lanes::with_slices([&op.q_bthd, &op.k_bskd, &op.v_bskd, y, dy], |[q, k, v, y, dy]| {
            // Outputs are handed out by head: unit (b, kv head) writes its own head of dk and dv and its group's of dq.
            let outs = [&mut dq, &mut dk, &mut dv].map(|out| Shared(out.as_mut_ptr(), out.len()));
            (0..s.batch * s.kv_heads).into_par_iter().for_each(|unit| {
                let (b, kv) = (unit / s.kv_heads, unit % s.kv_heads);
                let key_head = |data: &[f32]| head(data, (b, kv), s.keys, s.kv_heads, s.head_dim);
                let [dq, dk, dv] = outs.each_ref().map(Shared::slice);
                for h in kv * s.group()..(kv + 1) * s.group() {
                    let query_head = |data: &[f32]| head(data, (b, h), s.queries, s.heads, s.head_dim);
                    let inputs = [query_head(q), key_head(k), key_head(v), query_head(y), query_head(dy)];
                    let outputs = [query_head(dq), key_head(dk), key_head(dv)];
                    let log_sums = &log_sums[(b * s.heads + h) * s.queries..][..s.queries];
                    lanes::vectorised(|| head_backward(s, inputs, outputs, log_sums));
                }
            });
        })?;
        let device = dy.device();
        Ok([
            Tensor::from_vec(dq, op.q_bthd.shape(), device)?,
            Tensor::from_vec(dk, op.k_bskd.shape(), device)?,
            Tensor::from_vec(dv, op.k_bskd.shape(), device)?,
        ])
    }

    /// An output that tasks write at disjoint places.
    struct Shared(*mut f32, usize);

    // SAFETY: only pointers into it are passed on, to tasks that write disjoint heads.
    unsafe impl Sync for Shared {}

    impl Shared {
        /// For measuring out heads: the values are never read through this slice.
        fn slice<'a>(&self) -> &'a [f32] {
            // SAFETY: pointer and length are those of the vector that outlives the parallel loop.
            unsafe { std::slice::from_raw_parts(self.0, self.1) }
        }
    }

    #[inline(always)]
    fn head_backward(s: Shape, [q, k, v, y, dy]: [Matrix; 5], [dq, dk, dv]: [Matrix; 3], log_sums: &[f32]) {
        let past = s.keys - s.queries;
        let scale = s.scale() as f32;
        let mut p_buffer = vec![0f32; BLOCK.min(s.queries) * s.keys];
        let mut ds_buffer = p_buffer.clone();
        for first in (0..s.queries).step_by(BLOCK) {
            let rows = BLOCK.min(s.queries - first);
            let columns = past + first + rows;
            let (q, dy, y) = (q.rows(first, rows), dy.rows(first, rows), y.rows(first, rows));
            let p = scores(&mut p_buffer, q, k, columns, scale);
            let ds = scores(&mut ds_buffer, dy, v, columns, 1.0);
            let pairs = p_buffer.chunks_exact_mut(columns).zip(ds_buffer.chunks_exact_mut(columns));
            for (i, (p, ds)) in pairs.take(rows).enumerate() {
                let (seen, log_sum) = (past + first + i + 1, log_sums[first + i]);
                let mean = dot(dy.row(i), y.row(i));
                for (p, ds) in p[..seen].iter_mut().zip(&mut ds[..seen]) {
                    *p = exp(*p - log_sum);
                    *ds = *p * (*ds - mean) * scale;
                }
                p[seen..].fill(0.0);
                ds[seen..].fill(0.0);
            }
            product(dq.rows(first, rows), false, 1.0, ds, k.rows(0, columns));
            product(dk.rows(0, columns), true, 1.0, ds.t(), q);
            product(dv.rows(0, columns), true, 1.0, p.t(), dy);
        }
    }
}
