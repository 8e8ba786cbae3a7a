//! Who owns what of the weights: a bucket of gradients is cut into as many equal ranges as there are ranks, and a rank steps the weights that lie in its
//! own. A range may begin and end anywhere, within a row too.

use std::ops::Range;

/// What a rank owns of one weight: some whole rows of a matrix, a part of one row, or a run of values of anything that is no matrix.
///
/// ```
/// use tinyonn::ranks::pieces::{Piece, pieces};
///
/// let of_first: Vec<Piece> = pieces(&[(vec![4, 3], 0)], 0..8);
/// assert_eq!(of_first[0].shape(), (2, 3)); // two whole rows, and a part of the third
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which weight of its bucket.
    pub weight: usize,
    /// Its values, by their places in the flattened weight.
    pub values: Range<usize>,
    /// The rows that they are of; of what is no matrix the one and only.
    pub rows: Range<usize>,
    /// Whether the first value is the first of its row: a row that is cut is begun by one piece alone.
    pub begins: bool,
    /// Where in the rank's range they begin.
    pub from: usize,
}

impl Piece {
    /// The shape in which an update sees it: rows by values of a row.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.rows.len(), self.values.len() / self.rows.len().max(1))
    }
}

/// The pieces of `range` of a bucket, in which each weight of `weights` (shape) begins at so many values.
///
/// ```
/// use tinyonn::ranks::pieces::pieces;
///
/// // Two ranges of 8 values, and a matrix of 4 rows of 3 values: the third row is cut.
/// let weights = [(vec![4, 3], 0)];
/// let found = pieces(&weights, 8..16);
/// assert_eq!(found.iter().map(|piece| (piece.values.clone(), piece.rows.clone())).collect::<Vec<_>>(), [(8..9, 2..3), (9..12, 3..4)]);
/// ```
#[must_use]
pub fn pieces(weights: &[(Vec<usize>, usize)], range: Range<usize>) -> Vec<Piece> {
    let mut found = Vec::new();
    for (weight, (shape, start)) in weights.iter().enumerate() {
        let count: usize = shape.iter().product();
        let (from, to) = (range.start.max(*start), range.end.min(start + count));
        if from >= to {
            continue;
        }
        let (first, last) = (from - start, to - start);
        let width = match shape.as_slice() {
            [_, width] => *width,
            _ => count,
        };
        let mut add = |values: Range<usize>, rows: Range<usize>| {
            if !values.is_empty() {
                let (begins, from) = (values.start.is_multiple_of(width), start + values.start - range.start);
                found.push(Piece { weight, values, rows, begins, from });
            }
        };
        // Up to the first whole row, whole rows, and what is left of the last.
        let whole = (first.next_multiple_of(width), last / width * width);
        if whole.0 > whole.1 {
            add(first..last, first / width..first / width + 1);
            continue;
        }
        add(first..whole.0, first / width..first / width + 1);
        add(whole.0..whole.1, whole.0 / width..whole.1 / width);
        add(whole.1..last, whole.1 / width..whole.1 / width + 1);
    }
    found
}
