//! Attention of a few queries in main memory, f32: a row of keys and values is read once for all query heads over it, in runs that threads share.
//!
//! Each run of keys makes its own softmax, max m, Σ exp(ℓ − m) and Σ exp(ℓ − m) v; runs are put together in their order, so that the outcome depends on no thread
//! (Dao et al., 2023, Flash-Decoding). Legend: r rows (query heads and queries that read the same keys), j keys of a run, D the width of a head.

use std::ops::Range;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::attention::{Attention, Shape};
use super::head_matrix::{Matrix, maximum, sum};
use super::lanes::{self, exp};
use super::row_tiles::{Accumulate, Dots};

/// So few queries of a sequence are computed so.
pub(super) const FEW: usize = 4;
/// Keys of a run: with their values they fit a core's cache.
const RUN: usize = 256;

/// Query heads of a sequence's key head that read the same keys.
pub(super) struct Readers {
    /// The sequence and key head.
    pub(super) unit: usize,
    /// Members of the group, and queries.
    pub(super) rows: Vec<(usize, usize)>,
    /// The positions that all of them read; none: those that each sees.
    pub(super) positions: Option<Vec<u32>>,
}

/// What a run of keys gives each row.
struct Part {
    max_r: Vec<f32>,
    sum_r: Vec<f32>,
    /// `[r, D]`.
    y_rd: Vec<f32>,
}

/// Who reads what where every query reads all that it sees.
pub(super) fn all(s: Shape) -> Vec<Readers> {
    let rows = || (0..s.group()).flat_map(|member| (0..s.queries).map(move |t| (member, t))).collect();
    (0..s.batch * s.kv_heads).map(|unit| Readers { unit, rows: rows(), positions: None }).collect()
}

/// y `[B, T, H, D]`, and log Σ exp `[B, H, T]`.
pub(super) fn forward(op: &Attention, readers: &[Readers]) -> Result<(Tensor, Vec<f32>)> {
    let (s, d) = (op.shape, op.shape.head_dim);
    let runs = |of: &Readers| {
        let count = of.positions.as_ref().map_or(s.keys, Vec::len);
        (0..count).step_by(RUN).map(move |first| first..(first + RUN).min(count))
    };
    let work: Vec<(&Readers, Range<usize>)> =
        readers.iter().flat_map(|of| runs(of).map(move |run| (of, run))).collect();
    let parts: Vec<Part> = lanes::with_slices([&op.q_bthd, &op.k_bskd, &op.v_bskd], |tensors| {
        let part = |(of, run): &(&Readers, Range<usize>)| match &of.positions {
            Some(positions) => part(s, tensors, of, &positions[run.clone()].iter().map(|at| *at as usize)),
            None => part(s, tensors, of, run),
        };
        work.par_iter().map(part).collect()
    })?;
    let (mut y, mut log_sums) =
        (vec![0f32; s.batch * s.queries * s.heads * d], vec![0f32; s.batch * s.heads * s.queries]);
    let mut parts = parts.into_iter();
    for of in readers {
        let own: Vec<Part> = parts.by_ref().take(runs(of).len()).collect();
        for (r, (member, t)) in of.rows.iter().enumerate() {
            let (b, head) = (of.unit / s.kv_heads, of.unit % s.kv_heads * s.group() + member);
            let y = &mut y[((b * s.queries + t) * s.heads + head) * d..][..d];
            let log_sum = &mut log_sums[(b * s.heads + head) * s.queries + t];
            if own.is_empty() {
                // Who keeps nothing has nothing.
                *log_sum = f32::NEG_INFINITY;
                continue;
            }
            let max = own.iter().map(|part| part.max_r[r]).fold(f32::NEG_INFINITY, f32::max);
            let mut total = 0f32;
            // A sum that is no number is not left out.
            for part in own.iter().filter(|part| part.sum_r[r] != 0.0) {
                let times = exp(part.max_r[r] - max);
                total += times * part.sum_r[r];
                y.iter_mut().zip(&part.y_rd[r * d..]).for_each(|(y, own)| *y += times * own);
            }
            y.iter_mut().for_each(|y| *y /= total);
            *log_sum = max + total.ln();
        }
    }
    Ok((Tensor::from_vec(y, op.q_bthd.shape(), op.q_bthd.device())?, log_sums))
}

/// Of the keys at `positions`.
fn part(s: Shape, [q, k, v]: [&[f32]; 3], of: &Readers, positions: &(impl Iterator<Item = usize> + Clone)) -> Part {
    let (d, rows, scale) = (s.head_dim, of.rows.len(), s.scale() as f32);
    let (b, key_head) = (of.unit / s.kv_heads, of.unit % s.kv_heads);
    let of_head = |x| {
        let x = Matrix::head(x, (b, key_head), s.room, s.kv_heads, d);
        positions.clone().map(|at| x.row(at)).collect::<Vec<&[f32]>>()
    };
    let (keys, values) = (of_head(k), of_head(v));
    let query = |(member, t): &(usize, usize)| {
        Matrix::head(q, (b, key_head * s.group() + member), s.queries, s.heads, d).row(*t)
    };
    let mut queries: Vec<&[f32]> = of.rows.iter().map(query).collect();
    // Tiles are of four rows: three rows padded to four read the keys once, three single rows would read them three times.
    let tiles = if rows > 1 { rows.next_multiple_of(4) } else { rows };
    queries.resize(tiles, queries[0]);
    let mut p_rj = vec![0f32; tiles * keys.len()];
    let arch = pulp::Arch::new();
    arch.dispatch(Dots { a: &queries, b: &keys, out: &mut p_rj });
    if of.positions.is_none() && s.queries > 1 {
        for (p, (_, t)) in p_rj.chunks_exact_mut(keys.len()).zip(&of.rows) {
            let hidden = p.iter_mut().zip(positions.clone()).filter(|(_, at)| *at > s.keys - s.queries + t);
            hidden.for_each(|(p, _)| *p = f32::NEG_INFINITY);
        }
    }
    let mut found =
        Part { max_r: Vec::with_capacity(rows), sum_r: Vec::with_capacity(rows), y_rd: vec![0.0; tiles * d] };
    for p in p_rj.chunks_exact_mut(keys.len()).take(rows) {
        let [max, sum] = lanes::vectorised(|| exponentials(p, scale));
        found.max_r.push(max);
        found.sum_r.push(sum);
    }
    let mut y: Vec<&mut [f32]> = found.y_rd.chunks_exact_mut(d).collect();
    let all: Vec<u32> = (0..tiles as u32).collect();
    arch.dispatch(Accumulate { out: &mut y, rows: &all, coefficients: &p_rj, strides: (keys.len(), 1), b: &values });
    found
}

/// exp(s x − max), of hidden keys, which are −∞, nothing; the maximum and the sum.
#[inline(always)]
fn exponentials(row: &mut [f32], scale: f32) -> [f32; 2] {
    row.iter_mut().for_each(|x| *x *= scale);
    let max = maximum(row);
    // Of keys of which it sees none a query has nothing.
    let lowest = max.max(f32::MIN);
    row.iter_mut().for_each(|x| *x = if *x < f32::MIN { 0.0 } else { exp(*x - lowest) });
    [max, sum(row)]
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Result, Tensor};
    use rstest::rstest;

    use super::super::attention;

    /// An overflow or a broken key in one run is seen, however many runs there are.
    #[rstest]
    fn what_is_no_number_stays_none(#[values(100, 600)] positions: usize) -> Result<()> {
        let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu);
        let (q, v) = (ones(&[1, 1, 3, 8])?, ones(&[1, positions, 1, 8])?);
        let k = v.copy()?;
        k.slice_set(&(ones(&[1, 1, 1, 8])? * f64::INFINITY)?, 1, 5)?;
        let (y, _) = attention::forward_in_room(&q, &k, &v, positions)?;
        assert!(y.flatten_all()?.to_vec1::<f32>()?.iter().all(|y| y.is_nan()));
        Ok(())
    }

    /// Heads over one key head and over several, widths that fill no vector, several runs of keys, keys that the first of the queries do not see, and room behind them.
    #[rstest]
    fn a_few_queries_attend_as_many_do(
        #[values(1, 2)] batch: usize,
        #[values(1, 2, 3, 4)] queries: usize,
        #[values([1, 1], [3, 1], [6, 2], [10, 2])] heads: [usize; 2],
        #[values(8, 20, 64)] d: usize,
        #[values(5, 256, 600)] positions: usize,
    ) -> Result<()> {
        let wave = |shape: &[usize], step: f64| -> Result<Tensor> {
            let count = shape.iter().product::<usize>();
            Tensor::arange(0f64, count as f64, &Device::Cpu)?.affine(step, 0.3)?.sin()?.reshape(shape)
        };
        let q = wave(&[batch, queries, heads[0], d], 12.9)?;
        let [k, v] = [78.2, 37.7].map(|step| wave(&[batch, positions + 3, heads[1], d], step));
        let (k, v) = (k?, v?);
        let (wide, _) = attention::forward_in_room(&q, &k, &v, positions)?;
        let narrow = |x: &Tensor| x.to_dtype(DType::F32);
        let (y, _) = attention::forward_in_room(&narrow(&q)?, &narrow(&k)?, &narrow(&v)?, positions)?;
        let apart = (y.to_dtype(DType::F64)? - wide)?.abs()?.max_all()?.to_scalar::<f64>()?;
        // Sums of at most 600 values below 1 in f32.
        assert!(apart < 1e-5, "{apart}");
        Ok(())
    }
}
