//! Which keys a query keeps, given their scores: those that are kept whatever their score, and the best of the others.

use std::ops::Range;

use rayon::prelude::*;
use tinyonn_spec::PairsSpec;

use super::super::attention::Shape;
use super::super::head_matrix::Matrix;
use super::super::lanes;
use super::index::Index;

/// The last that a query keeps of the keys that are not kept anyway: any of a higher score is kept, any of the same score up to that position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Threshold {
    /// Its score, as a number of the same order.
    score: i32,
    position: u32,
}

/// The choice of a run of queries of one sequence and key head.
#[derive(Debug)]
pub(super) struct Choice {
    /// `[choices, rows]`: of each query head, or one of their group.
    pub(super) thresholds: Vec<Threshold>,
    /// Whether a pair is kept, `[choices, rows, columns]`.
    kept: Vec<bool>,
    rows: usize,
    columns: usize,
}

/// A [`Choice`] as lists, for queries so few that the rows they keep are gathered.
#[derive(Debug)]
pub(super) struct Kept {
    /// As of [`Choice`].
    pub(super) thresholds: Vec<Threshold>,
    /// The positions that are kept, ascending, `[choices, rows]`.
    pub(super) positions: Vec<Vec<u32>>,
}

impl Choice {
    /// The keys that query `i` of a member of the group keeps, of all columns.
    pub(super) fn of(&self, member: usize, i: usize) -> &[bool] {
        let choice = if self.thresholds.len() > self.rows { member } else { 0 };
        &self.kept[(choice * self.rows + i) * self.columns..][..self.columns]
    }
}

/// What chooses, in queries `[B, T, H, D]` and keys `[B, room, K, D]`.
pub(super) struct Chooser<'a> {
    pairs: &'a PairsSpec,
    shape: Shape,
    q: &'a [f32],
    k: &'a [f32],
    /// By sequence and key head.
    indices: Vec<Index<'a>>,
}

impl<'a> Chooser<'a> {
    /// The directions `[K, r, D]` where the index is of them, and what it reads in rows, `[B, K, r, room]`, where that is there.
    pub(super) fn new(
        pairs: &'a PairsSpec,
        shape: Shape,
        [q, k]: [&'a [f32]; 2],
        (directions, indexed): (Option<&'a [f32]>, Option<&'a [f32]>),
    ) -> Self {
        let of_unit = |unit: usize| {
            let directions = directions.map(|directions| {
                let size = directions.len() / shape.kv_heads;
                let own = &directions[unit % shape.kv_heads * size..][..size];
                Matrix::row_major(own, size / shape.head_dim, shape.head_dim)
            });
            let indexed = indexed.map(|indexed| {
                let size = indexed.len() / (shape.batch * shape.kv_heads);
                Matrix::row_major(&indexed[unit * size..][..size], size / shape.room, shape.room)
            });
            lanes::vectorised(|| Index::new(pairs.index, keys(shape, k, unit, shape.keys), (directions, indexed)))
        };
        let indices = (0..shape.batch * shape.kv_heads).into_par_iter().map(of_unit).collect();
        Self { pairs, shape, q, k, indices }
    }

    /// The choice of the queries `rows` of a sequence and key head; by given thresholds, the same choice once more.
    #[inline(always)]
    pub(super) fn choose(&self, unit: usize, rows: Range<usize>, held: Option<&[Threshold]>) -> Choice {
        let s = self.shape;
        let past = s.keys - s.queries + rows.start;
        let columns = past + rows.len();
        let queries: Vec<Matrix<'_>> = (0..s.group()).map(|member| queries(s, self.q, (unit, member), &rows)).collect();
        let scores = self.indices[unit].scores(self.pairs, &queries, keys(s, self.k, unit, columns), past);
        let mut choice = Choice {
            thresholds: Vec::with_capacity(scores.len() * rows.len()),
            kept: vec![false; scores.len() * rows.len() * columns],
            rows: rows.len(),
            columns,
        };
        let mut place = Vec::new();
        for (at, (row, kept)) in scores
            .iter()
            .flat_map(|table| table.chunks_exact(columns))
            .zip(choice.kept.chunks_exact_mut(columns))
            .enumerate()
        {
            let seen = past + at % rows.len() + 1;
            let open = open_keys(self.pairs, seen);
            let threshold = held.map_or_else(|| threshold(self.pairs, row, seen, &mut place), |held| held[at]);
            for (j, (score, kept)) in row[..seen].iter().zip(kept).enumerate() {
                let score = ordered(*score);
                let best = score > threshold.score || (score == threshold.score && j <= threshold.position as usize);
                *kept = best || !open.contains(&j);
            }
            choice.thresholds.push(threshold);
        }
        choice
    }

    /// The same choice, as the positions that are kept.
    #[inline(always)]
    pub(super) fn kept(&self, unit: usize, rows: Range<usize>) -> Kept {
        let s = self.shape;
        let past = s.keys - s.queries + rows.start;
        let columns = past + rows.len();
        let queries: Vec<Matrix<'_>> = (0..s.group()).map(|member| queries(s, self.q, (unit, member), &rows)).collect();
        let scores = self.indices[unit].scores(self.pairs, &queries, keys(s, self.k, unit, columns), past);
        let mut kept = Kept { thresholds: Vec::new(), positions: Vec::new() };
        let mut place = Vec::new();
        for (at, row) in scores.iter().flat_map(|table| table.chunks_exact(columns)).enumerate() {
            let seen = past + at % rows.len() + 1;
            let open = open_keys(self.pairs, seen);
            let threshold = threshold(self.pairs, row, seen, &mut place);
            let mut positions = vec![0u32; seen + 1];
            let mut count = 0;
            let mut list = |range: Range<usize>, all: bool| {
                for j in range {
                    let score = ordered(row[j]);
                    let best =
                        score > threshold.score || (score == threshold.score && j <= threshold.position as usize);
                    // Written in any case and counted where it is kept: no branch to be guessed.
                    positions[count] = j as u32;
                    count += usize::from(all || best);
                }
            };
            list(0..open.start, true);
            list(open.clone(), false);
            list(open.end..seen, true);
            positions.truncate(count);
            kept.thresholds.push(threshold);
            kept.positions.push(positions);
        }
        kept
    }
}

/// The keys of a sequence and key head up to `count`, `[count, D]`.
pub(super) fn keys(s: Shape, k: &[f32], unit: usize, count: usize) -> Matrix<'_> {
    Matrix::head(k, (unit / s.kv_heads, unit % s.kv_heads), s.room, s.kv_heads, s.head_dim).rows(0, count)
}

/// Some queries of a member of a group, `[rows, D]`.
pub(super) fn queries<'a>(s: Shape, q: &'a [f32], (unit, member): (usize, usize), rows: &Range<usize>) -> Matrix<'a> {
    let head = unit % s.kv_heads * s.group() + member;
    Matrix::head(q, (unit / s.kv_heads, head), s.queries, s.heads, s.head_dim).rows(rows.start, rows.len())
}

/// The positions of the keys that are not kept whatever their score.
fn open_keys(pairs: &PairsSpec, seen: usize) -> Range<usize> {
    let from = pairs.first.min(seen);
    from..seen.saturating_sub(pairs.near).max(from)
}

/// The threshold of a query that sees `seen` keys of these scores; `place` is room to sort in.
fn threshold(pairs: &PairsSpec, scores: &[f32], seen: usize, place: &mut Vec<i32>) -> Threshold {
    let open = open_keys(pairs, seen);
    let wanted = (pairs.keys(seen) + open.len()).saturating_sub(seen);
    if wanted == 0 {
        return Threshold { score: i32::MAX, position: 0 };
    }
    if wanted >= open.len() {
        return Threshold { score: i32::MIN, position: u32::MAX };
    }
    place.clear();
    place.extend(scores[open.clone()].iter().map(|score| ordered(*score)));
    // Counted by their highest bits first, so that those of one count alone are sorted.
    let bin = |score: i32| ((score ^ i32::MIN).cast_unsigned() >> 21) as usize;
    let (mut counts, mut left, mut own) = ([0usize; 1 << 11], wanted, (1 << 11) - 1);
    place.iter().for_each(|score| counts[bin(*score)] += 1);
    while counts[own] < left {
        left -= counts[own];
        own -= 1;
    }
    place.retain(|score| bin(*score) == own);
    let (higher, last, _) = place.select_nth_unstable_by(left - 1, |a, b| b.cmp(a));
    let (score, mut ties) = (*last, left - higher.iter().filter(|other| **other > *last).count());
    let mut position = open.start;
    for (j, other) in open.clone().zip(&scores[open]) {
        if ordered(*other) == score {
            position = j;
            ties -= 1;
            if ties == 0 {
                break;
            }
        }
    }
    Threshold { score, position: position as u32 }
}

/// A whole number whose order is that of the scores; −0 is 0.
#[inline(always)]
fn ordered(score: f32) -> i32 {
    let bits = (score + 0.0).to_bits().cast_signed();
    bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
}
