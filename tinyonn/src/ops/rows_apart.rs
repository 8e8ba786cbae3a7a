//! Rows of a matrix in main memory, f32, that need not lie one behind the other: what of a matrix a token that skips neurons reads.
//!
//! A processor reads ahead of rows that follow each other; of rows that lie apart it learns where the next one is when it is asked for, and waits for memory at each.
//! The rows to come are known here, so that the cache is asked for them before they are needed: at a width of 576 twice the rows a second.

use super::lanes;

/// Rows that the cache is asked for ahead of the one that is read.
const AHEAD: usize = 4;
/// Values of a cache line.
const LINE: usize = 16;

/// Some rows of a matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a> {
    /// The matrix, row by row.
    pub(super) matrix: &'a [f32],
    /// Values of a row.
    pub(super) width: usize,
    /// Which rows: none may end beyond the matrix.
    pub(super) at: &'a [u32],
}

impl<'a> Rows<'a> {
    fn row(self, place: usize) -> &'a [f32] {
        &self.matrix[self.at[place] as usize * self.width..][..self.width]
    }

    /// Asks the cache for the row `AHEAD` places on, unless it follows in memory too.
    #[inline(always)]
    fn ask(self, place: usize) {
        if let Some(next) = self.at.get(place + AHEAD)
            && *next as usize != self.at[place] as usize + AHEAD
        {
            ask(&self.matrix[*next as usize * self.width..][..self.width]);
        }
    }

    /// out[k] = x · row k.
    pub(super) fn dots(self, x: &[f32], out: &mut [f32]) {
        lanes::vectorised(|| {
            for (place, out) in out.iter_mut().enumerate() {
                self.ask(place);
                *out = lanes::dot(self.row(place), x);
            }
        });
    }

    /// sum += Σ weight k · row k.
    pub(super) fn add_weighted(self, weights: &[f32], sum: &mut [f32]) {
        lanes::vectorised(|| {
            for (place, weight) in weights.iter().enumerate() {
                self.ask(place);
                sum.iter_mut().zip(self.row(place)).for_each(|(sum, value)| *sum += weight * value);
            }
        });
    }
}

/// Asks for all lines of some values, into the second level: more of these requests are under way at once than of those into the first.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[allow(unsafe_code)]
fn ask(values: &[f32]) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    for line in values.chunks(LINE) {
        // SAFETY: the address is of values that are borrowed; the instruction is of every processor of this kind, changes nothing and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
}

/// No instruction for it in stable Rust.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn ask(_: &[f32]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_apart_are_the_rows_of_the_matrix() {
        let width = 37;
        let matrix: Vec<f32> = (0..50 * width).map(|at| (at % 11) as f32 - 5.0).collect();
        let x: Vec<f32> = (0..width).map(|at| (at % 3) as f32).collect();
        // Neighbours, gaps, one row twice, out of order.
        let at = [0, 1, 2, 3, 4, 5, 6, 9, 30, 30, 49, 7];
        let rows = Rows { matrix: &matrix, width, at: &at };
        let (mut out, mut sum) = (vec![0.0; at.len()], vec![0.0; width]);
        rows.dots(&x, &mut out);
        rows.add_weighted(&out, &mut sum);
        let own = |row: u32| &matrix[row as usize * width..][..width];
        // Whole numbers, small enough that every order of additions is exact.
        let expected: Vec<f32> = at.iter().map(|row| own(*row).iter().zip(&x).map(|(a, b)| a * b).sum()).collect();
        assert_eq!(out, expected);
        for (column, sum) in sum.iter().enumerate() {
            assert_eq!(*sum, at.iter().zip(&expected).map(|(row, weight)| own(*row)[column] * weight).sum::<f32>());
        }
    }
}
