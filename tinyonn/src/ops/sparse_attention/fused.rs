//! f32 on the CPU: one task a (sequence, key head, tile of queries), whose products are masked by the choice.

use std::ops::Range;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::super::attention::{Attention, Shape};
use super::super::head_matrix::{Matrix, by_position, product, sum};
use super::super::lanes::{self, dot, exp};
use super::choice::{Choice, Chooser, Threshold, keys, queries};
use super::{Prepared, Saved, TILE, tiles, with_chooser};

/// y, the thresholds of each tile, and the log-sums.
pub(super) type Outcome = (Tensor, Vec<Vec<Threshold>>, Option<Vec<f32>>);

/// What a tile's task makes: y and log-sums of each member of the group, `[G, rows, D]` and `[G, rows]`.
struct Tile {
    y: Vec<f32>,
    log_sums: Vec<f32>,
    thresholds: Vec<Threshold>,
}

pub(super) fn forward(op: &Attention, by: &Prepared) -> Result<Outcome> {
    let s = op.shape;
    let of_tile = |chooser: &Chooser<'_>, [q, k, v]: [&[f32]; 3], (unit, rows): (usize, Range<usize>)| {
        lanes::vectorised(|| {
            let choice = chooser.choose(unit, rows.clone(), None);
            let columns = s.keys - s.queries + rows.end;
            let [k, v] = [k, v].map(|x| keys(s, x, unit, columns));
            let (mut y, mut log_sums) = (vec![0f32; s.group() * rows.len() * s.head_dim], Vec::new());
            let mut p = vec![0f32; rows.len() * columns];
            for (member, y) in y.chunks_exact_mut(rows.len() * s.head_dim).enumerate() {
                product(&mut p, false, s.scale() as f32, queries(s, q, (unit, member), &rows), k.t());
                for (i, row) in p.chunks_exact_mut(columns).enumerate() {
                    log_sums.push(softmax(row, choice.of(member, i)));
                }
                product(y, false, 1.0, Matrix::row_major(&p, rows.len(), columns), v);
            }
            Tile { y, log_sums, thresholds: choice.thresholds }
        })
    };
    let all: Vec<(usize, Range<usize>)> = tiles(s).collect();
    let made: Vec<Tile> = with_chooser(op, by, |chooser| {
        lanes::with_slices([&op.q_bthd, &op.k_bskd, &op.v_bskd], |tensors| {
            all.par_iter().map(|tile| of_tile(chooser, tensors, tile.clone())).collect()
        })
    })??;
    let mut y = vec![0f32; s.batch * s.heads * s.queries * s.head_dim];
    let mut log_sums = vec![0f32; s.batch * s.heads * s.queries];
    let mut thresholds = Vec::with_capacity(all.len());
    for ((unit, rows), tile) in all.into_iter().zip(made) {
        for member in 0..s.group() {
            let at = (unit * s.group() + member) * s.queries + rows.start;
            let own = member * rows.len()..(member + 1) * rows.len();
            log_sums[at..][..rows.len()].copy_from_slice(&tile.log_sums[own.clone()]);
            let values = &tile.y[own.start * s.head_dim..own.end * s.head_dim];
            y[at * s.head_dim..][..values.len()].copy_from_slice(values);
        }
        thresholds.push(tile.thresholds);
    }
    let y = by_position(&y, s.queries, s.heads, s.head_dim);
    Ok((Tensor::from_vec(y, op.q_bthd.shape(), op.q_bthd.device())?, thresholds, Some(log_sums)))
}

/// The softmax of a row of logits over what is kept, 0 elsewhere; returns its log-sum.
#[inline(always)]
pub(super) fn softmax(row: &mut [f32], kept: &[bool]) -> f32 {
    let masked = |x: f32, kept: bool| if kept { x } else { f32::NEG_INFINITY };
    let max = row.iter().zip(kept).fold(f32::NEG_INFINITY, |max, (x, kept)| max.max(masked(*x, *kept)));
    for (x, kept) in row.iter_mut().zip(kept) {
        *x = if *kept { exp(*x - max) } else { 0.0 };
    }
    let total = sum(row);
    row.iter_mut().for_each(|x| *x /= total);
    max + total.ln()
}

pub(super) fn backward(saved: &Saved, dy: &Tensor, log_sums: &[f32]) -> Result<[Tensor; 3]> {
    let (op, s) = (&saved.op, saved.op.shape);
    let (query_heads, key_head) = ((s.group() * s.queries * s.head_dim).max(1), (s.keys * s.head_dim).max(1));
    let mut dq = vec![0f32; s.batch * s.heads * s.queries * s.head_dim];
    let mut dk = vec![0f32; s.batch * s.kv_heads * s.keys * s.head_dim];
    let mut dv = dk.clone();
    with_chooser(op, &saved.by, |chooser| {
        lanes::with_slices([&op.q_bthd, &op.k_bskd, &op.v_bskd, &saved.y_bthd, dy], |tensors| {
            // A unit is a sequence's key head: it writes that head of dk and dv, and the query heads of its group.
            let keys = dk.par_chunks_mut(key_head).zip(dv.par_chunks_mut(key_head));
            let units = dq.par_chunks_mut(query_heads).zip(keys).enumerate();
            units.for_each(|(unit, (dq, (dk, dv)))| {
                let first = unit * s.queries.div_ceil(TILE);
                for (tile, rows) in tiles(s).filter(|(of, _)| *of == unit).map(|(_, rows)| rows).enumerate() {
                    lanes::vectorised(|| {
                        let choice = chooser.choose(unit, rows.clone(), Some(&saved.thresholds[first + tile]));
                        let log_sums = &log_sums[unit * s.group() * s.queries..];
                        tile_backward(s, (unit, &rows), tensors, [&mut *dq, &mut *dk, &mut *dv], (&choice, log_sums));
                    });
                }
            });
        })
    })??;
    let tensor = |x: &[f32], positions, heads, like: &Tensor| {
        Tensor::from_vec(by_position(x, positions, heads, s.head_dim), like.shape(), dy.device())
    };
    Ok([
        tensor(&dq, s.queries, s.heads, &op.q_bthd)?,
        tensor(&dk, s.keys, s.kv_heads, &op.k_bskd)?,
        tensor(&dv, s.keys, s.kv_heads, &op.k_bskd)?,
    ])
}

/// Of a tile of queries: their dq `[G, T, D]`, what they add to dk and dv `[S, D]`.
#[inline(always)]
fn tile_backward(
    s: Shape,
    (unit, rows): (usize, &Range<usize>),
    [q, k, v, y, dy]: [&[f32]; 5],
    [dq, dk, dv]: [&mut [f32]; 3],
    (choice, log_sums): (&Choice, &[f32]),
) {
    let (columns, scale, d) = (s.keys - s.queries + rows.end, s.scale() as f32, s.head_dim);
    let [k, v] = [k, v].map(|x| keys(s, x, unit, columns));
    let mut p = vec![0f32; rows.len() * columns];
    let mut ds = p.clone();
    for member in 0..s.group() {
        let [q, y, dy] = [q, y, dy].map(|x| queries(s, x, (unit, member), rows));
        product(&mut p, false, scale, q, k.t());
        product(&mut ds, false, 1.0, dy, v.t());
        for (i, (p, ds)) in p.chunks_exact_mut(columns).zip(ds.chunks_exact_mut(columns)).enumerate() {
            let (log_sum, mean) = (log_sums[member * s.queries + rows.start + i], dot(dy.row(i), y.row(i)));
            for ((p, ds), kept) in p.iter_mut().zip(ds).zip(choice.of(member, i)) {
                *p = if *kept { exp(*p - log_sum) } else { 0.0 };
                *ds = *p * (*ds - mean) * scale;
            }
        }
        let [p, ds] = [&p, &ds].map(|x| Matrix::row_major(x, rows.len(), columns));
        let dq = &mut dq[(member * s.queries + rows.start) * d..][..rows.len() * d];
        product(dq, false, 1.0, ds, k);
        product(&mut dk[..columns * d], true, 1.0, ds.t(), q);
        product(&mut dv[..columns * d], true, 1.0, p.t(), dy);
    }
}
