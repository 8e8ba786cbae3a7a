//! What scores a pair before its logit is computed, of the keys of one sequence and key head (DESIGN §8).

use rayon::prelude::*;
use tinyonn_spec::{PairIndex, PairsBy, PairsSpec};

use super::super::few_queries::FEW;
use super::super::head_matrix::{Matrix, maximum, product, sum};
use super::super::lanes::exp;
use super::super::row_tiles::{Accumulate, Dots};

/// Keys that a thread scores at once.
const RUN: usize = 1024;

/// What the index reads of the keys.
#[derive(Debug)]
pub(super) enum Index<'a> {
    /// The keys' own components: so many a query; and all of them in rows, `[D, room]`, where somebody has laid them so.
    Components(usize, Option<Matrix<'a>>),
    /// Their main directions, `[r, D]`, and the keys in these, `[r, room]`.
    Directions([Matrix<'a>; 2]),
    /// The mean key of each whole block of so many positions, `[S / size, D]`.
    Blocks { size: usize, means: Vec<f32> },
    /// Positions alone.
    Window,
    /// The keys.
    Exact,
}

impl<'a> Index<'a> {
    /// Of the keys `[S, D]`; the directions where the index is of them, and what it reads in rows.
    pub(super) fn new(
        index: PairIndex,
        keys: Matrix<'_>,
        (directions, in_rows): (Option<Matrix<'a>>, Option<Matrix<'a>>),
    ) -> Self {
        match (index, directions.zip(in_rows)) {
            (PairIndex::Directions(_), Some((directions, keys_rs))) => Self::Directions([directions, keys_rs]),
            (PairIndex::Components(r), _) => Self::Components(r, in_rows),
            (PairIndex::Blocks(size), _) => {
                let d = keys.columns;
                let mut means = vec![0f32; keys.rows / size * d];
                for (block, mean) in means.chunks_exact_mut(d).enumerate() {
                    for j in block * size..(block + 1) * size {
                        mean.iter_mut().zip(keys.row(j)).for_each(|(mean, k)| *mean += k);
                    }
                    mean.iter_mut().for_each(|mean| *mean /= size as f32);
                }
                Self::Blocks { size, means }
            }
            (PairIndex::Window, _) => Self::Window,
            // Directions that nobody gave are refused before.
            (PairIndex::Exact | PairIndex::Directions(_), _) => Self::Exact,
        }
    }

    /// The scores of a run of queries that ends with the last of `columns` keys, one table `[rows, columns]` a choice: each query head's, or the
    /// one of their group. `queries` are the group's heads, `[rows, D]` each; row i sees the keys up to `past` + i.
    pub(super) fn scores(
        &self,
        pairs: &PairsSpec,
        queries: &[Matrix<'_>],
        keys: Matrix<'_>,
        past: usize,
    ) -> Vec<Vec<f32>> {
        let (rows, columns) = (queries.first().map_or(0, |q| q.rows), keys.rows);
        let together = pairs.by == PairsBy::KvHead;
        if matches!(self, Self::Window) {
            let nearest: Vec<f32> = (0..columns).map(|j| j as f32).collect();
            return vec![nearest.repeat(rows); if together { 1 } else { queries.len() }];
        }
        let mut scores = self.logits(together, queries, keys);
        if together && scores.len() > 1 {
            let mut summed = vec![0f32; rows * columns];
            for of_head in &mut scores {
                let tables = of_head.chunks_exact_mut(columns).zip(summed.chunks_exact_mut(columns));
                for (i, (row, summed)) in tables.enumerate() {
                    let seen = self.scored(past + i + 1);
                    add_probabilities(&mut row[..seen], &mut summed[..seen]);
                }
            }
            scores = vec![summed];
        }
        if let Self::Blocks { size, .. } = self {
            // The query's own block has no mean yet: it comes before all others.
            for (i, row) in scores.iter_mut().flat_map(|table| table.chunks_exact_mut(columns).enumerate()) {
                row[(past + i) / size * size..].fill(f32::INFINITY);
            }
        }
        scores
    }

    /// How many of the `seen` keys the index has a score of.
    fn scored(&self, seen: usize) -> usize {
        match self {
            Self::Blocks { size, .. } => (seen - 1) / size * size,
            _ => seen,
        }
    }

    /// The scores of each query head.
    fn logits(&self, together: bool, queries: &[Matrix<'_>], keys: Matrix<'_>) -> Vec<Vec<f32>> {
        let (columns, d) = (keys.rows, keys.columns);
        let scale = 1.0 / (d as f32).sqrt();
        let table = |q: Matrix<'_>, keys: Matrix<'_>| {
            let mut scores = vec![0f32; q.rows * keys.rows];
            if q.rows <= FEW {
                few_scores(&mut scores, scale, q, keys);
            } else {
                product(&mut scores, false, scale, q, keys.t());
            }
            scores
        };
        // The same of keys whose components lie in rows.
        let in_row = |q: Matrix<'_>, keys_rs: Matrix<'_>| {
            let mut scores = vec![0f32; q.rows * columns];
            if q.rows <= FEW {
                few_scores_in_rows(&mut scores, scale, q, keys_rs);
            } else {
                product(&mut scores, false, scale, q, keys_rs.first_columns(columns));
            }
            scores
        };
        match self {
            Self::Components(r, in_rows) => {
                let kept = largest_components(queries, *r, together);
                let of_head = |q: &Vec<f32>| {
                    let q = Matrix::row_major(q, q.len() / d.max(1), d);
                    in_rows.filter(|_| q.rows <= FEW).map_or_else(|| table(q, keys), |keys_ds| in_row(q, keys_ds))
                };
                kept.iter().map(of_head).collect()
            }
            Self::Directions([directions_rd, keys_rs]) => {
                let r = directions_rd.rows;
                let turned = |q: &Matrix<'_>| {
                    let mut turned = vec![0f32; q.rows * r];
                    product(&mut turned, false, 1.0, *q, directions_rd.t());
                    in_row(Matrix::row_major(&turned, q.rows, r), *keys_rs)
                };
                queries.iter().map(turned).collect()
            }
            Self::Blocks { size, means } => {
                let blocks = columns / size;
                let of_head = |q: &Matrix<'_>| {
                    let of_blocks = table(*q, Matrix::row_major(means, blocks, d));
                    let mut scores = vec![0f32; q.rows * columns];
                    for (row, of_blocks) in scores.chunks_exact_mut(columns).zip(of_blocks.chunks(blocks.max(1))) {
                        for (keys, score) in row.chunks_mut(*size).zip(of_blocks) {
                            keys.fill(*score);
                        }
                    }
                    scores
                };
                queries.iter().map(of_head).collect()
            }
            Self::Window | Self::Exact => queries.iter().map(|q| table(*q, keys)).collect(),
        }
    }
}

/// scale · q kᵀ of a few queries, by runs of keys that threads share: a product of so few rows is as slow as one of many.
fn few_scores(scores: &mut [f32], scale: f32, q: Matrix<'_>, keys: Matrix<'_>) {
    for (i, row) in scores.chunks_exact_mut(keys.rows.max(1)).enumerate() {
        row.par_chunks_mut(RUN).enumerate().for_each(|(run, scores)| {
            let keys: Vec<&[f32]> = (0..scores.len()).map(|j| keys.row(run * RUN + j)).collect();
            pulp::Arch::new().dispatch(Dots { a: &[q.row(i)], b: &keys, out: scores });
            scores.iter_mut().for_each(|score| *score *= scale);
        });
    }
}

/// The same of keys whose components lie in rows, `[r, room]`: those of which a query has none are not read.
fn few_scores_in_rows(scores: &mut [f32], scale: f32, q: Matrix<'_>, keys_rs: Matrix<'_>) {
    let columns = scores.len() / q.rows.max(1);
    for (i, row) in scores.chunks_exact_mut(columns.max(1)).enumerate() {
        let own = q.row(i).iter().enumerate().filter(|(_, q)| **q != 0.0);
        let (components, q): (Vec<usize>, Vec<f32>) = own.map(|(c, q)| (c, scale * q)).unzip();
        row.par_chunks_mut(RUN).enumerate().for_each(|(run, scores)| {
            let of_run = |c: &usize| &keys_rs.row(*c)[run * RUN..run * RUN + scores.len()];
            let rows: Vec<&[f32]> = components.iter().map(of_run).collect();
            let sums = Accumulate { out: &mut [scores], rows: &[0], coefficients: &q, strides: (0, 1), b: &rows };
            pulp::Arch::new().dispatch(sums);
        });
    }
}

/// Each head's queries, zero but for their r components of largest |q|, ties to the lower one; `together` those of largest Σ |q| over the heads. They are longer by
/// √(Σ |q| / Σ |q of those|), so that a softmax of their logits is as warm as that of all (Ribar et al., 2024).
fn largest_components(queries: &[Matrix<'_>], r: usize, together: bool) -> Vec<Vec<f32>> {
    let d = queries.first().map_or(0, |q| q.columns);
    let mut kept: Vec<Vec<f32>> = queries.iter().map(|q| vec![0f32; q.rows * d]).collect();
    let (mut sizes, mut order) = (vec![0f32; d], Vec::with_capacity(d));
    let mut largest = |heads: &[Matrix<'_>], i: usize| -> Vec<usize> {
        sizes.fill(0.0);
        for q in heads {
            sizes.iter_mut().zip(q.row(i)).for_each(|(size, q)| *size += q.abs());
        }
        order.clear();
        order.extend(0..d);
        order.sort_by(|a, b| sizes[*b].total_cmp(&sizes[*a]));
        order.iter().copied().take(r).collect()
    };
    for i in 0..queries.first().map_or(0, |q| q.rows) {
        let common = together.then(|| largest(queries, i));
        for (q, kept) in queries.iter().zip(&mut kept) {
            let (row, kept) = (q.row(i), &mut kept[i * d..][..d]);
            let own = common.clone().unwrap_or_else(|| largest(&[*q], i));
            let all: f32 = row.iter().map(|q| q.abs()).sum();
            let part: f32 = own.iter().map(|c| row[*c].abs()).sum();
            let longer = if part > 0.0 { (all / part).sqrt() } else { 1.0 };
            own.iter().for_each(|c| kept[*c] = row[*c] * longer);
        }
    }
    kept
}

/// Adds the softmax of a row of scores, in whose place its terms are left.
#[inline(always)]
fn add_probabilities(scores: &mut [f32], summed: &mut [f32]) {
    let max = maximum(scores);
    scores.iter_mut().for_each(|s| *s = exp(*s - max));
    let total = sum(scores);
    summed.iter_mut().zip(scores).for_each(|(summed, s)| *summed += *s / total);
}
