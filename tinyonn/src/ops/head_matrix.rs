//! One head's matrix in a tensor of several, read where it lies: positions × D of `[B, positions, heads, D]`, f32 in main memory.

use gemm::Parallelism;

use super::lanes;

/// A strided matrix that is read, from the first value of `data` on; rows and columns are counted in elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix<'a> {
    data: &'a [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    pub(super) fn row_major(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Positions × D of one head of `[B, positions, heads, D]`.
    pub(super) fn head(data: &'a [f32], (b, h): (usize, usize), positions: usize, heads: usize, d: usize) -> Self {
        let data = &data[(b * positions * heads + h) * d..];
        Self { data, rows: positions, columns: d, row_stride: heads * d, column_stride: 1 }
    }

    pub(super) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    pub(super) fn rows(self, first: usize, rows: usize) -> Self {
        Self { data: &self.data[first * self.row_stride..], rows, ..self }
    }

    /// The first so many columns.
    pub(super) fn first_columns(self, columns: usize) -> Self {
        Self { columns, ..self }
    }

    /// Row `i` of a matrix whose rows are contiguous.
    pub(super) fn row(self, i: usize) -> &'a [f32] {
        &self.data[i * self.row_stride..][..self.columns]
    }

    /// Whether every element lies in `data`.
    fn inside(self) -> bool {
        let last = |count: usize, stride: usize| (count - 1) * stride;
        let empty = self.rows == 0 || self.columns == 0;
        empty || last(self.rows, self.row_stride) + last(self.columns, self.column_stride) < self.data.len()
    }
}

/// out = [out +] scale · a b, on this thread; out is row-major.
#[allow(unsafe_code)]
pub(super) fn product(out: &mut [f32], accumulate: bool, scale: f32, a: Matrix<'_>, b: Matrix<'_>) {
    assert!(a.columns == b.rows && out.len() == a.rows * b.columns && a.inside() && b.inside());
    // SAFETY: as just asserted, every element that these sizes and strides reach lies in its slice; `out` is borrowed for
    // writing, so nobody else reads or writes it, and it overlaps neither input.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            b.columns as isize,
            accumulate,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
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

/// `[B, heads, positions, D]` as `[B, positions, heads, D]`.
pub(super) fn by_position(x: &[f32], positions: usize, heads: usize, d: usize) -> Vec<f32> {
    let mut y = vec![0f32; x.len()];
    lanes::by_rows(&mut y, d, |first, y| {
        for (row, y) in y.chunks_exact_mut(d).enumerate() {
            let (token, h) = ((first + row) / heads, (first + row) % heads);
            let (b, position) = (token / positions, token % positions);
            y.copy_from_slice(&x[((b * heads + h) * positions + position) * d..][..d]);
        }
    });
    y
}

/// The largest value of a row.
pub(super) fn maximum(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// The sum of a row, in the order of 16 lanes.
#[inline(always)]
pub(super) fn sum(row: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane += x);
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}
