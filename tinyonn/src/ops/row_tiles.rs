//! Register tiles: inner products of rows with rows, and sums of rows times coefficients, of few rows that lie anywhere.

use pulp::{Simd, WithSimd};

/// out[p·|b| + j] = ⟨a_p, b_j⟩; all rows of one length.
pub(super) struct Dots<'a> {
    pub(super) a: &'a [&'a [f32]],
    pub(super) b: &'a [&'a [f32]],
    pub(super) out: &'a mut [f32],
}

impl WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.b.len();
        let (quads, rest) = self.a.as_chunks::<4>();
        let (quads_out, rest_out) = self.out.split_at_mut(quads.len() * 4 * width);
        for (a, out) in quads.iter().zip(quads_out.chunks_exact_mut(4 * width)) {
            dots_of_rows::<S, 4, 2>(simd, a, self.b, out);
        }
        for (a, out) in rest.iter().zip(rest_out.chunks_exact_mut(width)) {
            // One row alone: more columns at once keep the multiplier busy.
            dots_of_rows::<S, 1, 4>(simd, &[*a], self.b, out);
        }
    }
}

#[inline(always)]
fn dots_of_rows<S: Simd, const M: usize, const N: usize>(simd: S, a: &[&[f32]; M], b: &[&[f32]], out: &mut [f32]) {
    let width = b.len();
    let (tiles, rest) = b.as_chunks::<N>();
    for (tile, b) in tiles.iter().enumerate() {
        let sums = dots::<S, M, N>(simd, a, b);
        for m in 0..M {
            out[m * width + tile * N..][..N].copy_from_slice(&sums[m]);
        }
    }
    for (j, b) in rest.iter().enumerate() {
        let sums = dots::<S, M, 1>(simd, a, &[*b]);
        for m in 0..M {
            out[m * width + tiles.len() * N + j] = sums[m][0];
        }
    }
}

// Loops, not closures: what is no part of this function's body would be compiled without the vector instructions.
#[inline(always)]
fn dots<S: Simd, const M: usize, const N: usize>(simd: S, a: &[&[f32]; M], b: &[&[f32]; N]) -> [[f32; N]; M] {
    let length = a[0].len();
    let vectors = length / S::F32_LANES;
    let (mut a_head, mut a_tail) = ([&[] as &[S::f32s]; M], [&[] as &[f32]; M]);
    let (mut b_head, mut b_tail) = ([&[] as &[S::f32s]; N], [&[] as &[f32]; N]);
    for m in 0..M {
        let (head, tail) = S::as_simd_f32s(&a[m][..length]);
        (a_head[m], a_tail[m]) = (&head[..vectors], tail);
    }
    for j in 0..N {
        let (head, tail) = S::as_simd_f32s(&b[j][..length]);
        (b_head[j], b_tail[j]) = (&head[..vectors], tail);
    }
    let mut sums = [[simd.splat_f32s(0.0); N]; M];
    for k in 0..vectors {
        for m in 0..M {
            for j in 0..N {
                sums[m][j] = simd.mul_add_e_f32s(a_head[m][k], b_head[j][k], sums[m][j]);
            }
        }
    }
    if !length.is_multiple_of(S::F32_LANES) {
        for m in 0..M {
            for j in 0..N {
                let (a, b) = (simd.partial_load_f32s(a_tail[m]), simd.partial_load_f32s(b_tail[j]));
                sums[m][j] = simd.mul_add_e_f32s(a, b, sums[m][j]);
            }
        }
    }
    let mut out = [[0f32; N]; M];
    for m in 0..M {
        for j in 0..N {
            out[m][j] = simd.reduce_sum_f32s(sums[m][j]);
        }
    }
    out
}

/// out_{rows[p]} += Σ_j c(p, j) b_j; all rows of one length.
pub(super) struct Accumulate<'a, 'o> {
    pub(super) out: &'a mut [&'o mut [f32]],
    pub(super) rows: &'a [u32],
    /// c(p, j) = `coefficients[p · strides.0 + j · strides.1]`.
    pub(super) coefficients: &'a [f32],
    pub(super) strides: (usize, usize),
    pub(super) b: &'a [&'a [f32]],
}

impl WithSimd for Accumulate<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (quads, rest) = self.rows.as_chunks::<4>();
        for (tile, rows) in quads.iter().enumerate() {
            let coefficients = tile_of::<4>(self.coefficients, tile * 4, self.strides, self.b.len());
            accumulate(simd, self.out, rows, &coefficients, self.b);
        }
        for (p, row) in rest.iter().enumerate() {
            let coefficients = tile_of::<1>(self.coefficients, quads.len() * 4 + p, self.strides, self.b.len());
            accumulate(simd, self.out, &[*row], &coefficients, self.b);
        }
    }
}

/// c(first.., j) for each j, so that the loop over j reads one after the other.
#[inline(always)]
fn tile_of<const M: usize>(c: &[f32], first: usize, strides: (usize, usize), columns: usize) -> Vec<[f32; M]> {
    (0..columns).map(|j| std::array::from_fn(|m| c[(first + m) * strides.0 + j * strides.1])).collect()
}

#[inline(always)]
fn accumulate<S: Simd, const M: usize>(
    simd: S,
    out: &mut [&mut [f32]],
    rows: &[u32; M],
    coefficients: &[[f32; M]],
    b: &[&[f32]],
) {
    let length = out[rows[0] as usize].len();
    let whole = length / (2 * S::F32_LANES) * 2;
    for v in (0..whole).step_by(2) {
        let mut sums = [[simd.splat_f32s(0.0); 2]; M];
        for m in 0..M {
            let (head, _) = S::as_simd_f32s(&*out[rows[m] as usize]);
            sums[m] = [head[v], head[v + 1]];
        }
        for (c, b) in coefficients.iter().zip(b) {
            let (head, _) = S::as_simd_f32s(b);
            let b = [head[v], head[v + 1]];
            for m in 0..M {
                let c = simd.splat_f32s(c[m]);
                sums[m] = [simd.mul_add_e_f32s(c, b[0], sums[m][0]), simd.mul_add_e_f32s(c, b[1], sums[m][1])];
            }
        }
        for m in 0..M {
            let (head, _) = S::as_mut_simd_f32s(&mut *out[rows[m] as usize]);
            (head[v], head[v + 1]) = (sums[m][0], sums[m][1]);
        }
    }
    let mut at = whole * S::F32_LANES;
    while at < length {
        let to = length.min(at + S::F32_LANES);
        let mut sums = [simd.splat_f32s(0.0); M];
        for m in 0..M {
            sums[m] = simd.partial_load_f32s(&out[rows[m] as usize][at..to]);
        }
        for (c, b) in coefficients.iter().zip(b) {
            let b = simd.partial_load_f32s(&b[at..to]);
            for m in 0..M {
                sums[m] = simd.mul_add_e_f32s(simd.splat_f32s(c[m]), b, sums[m]);
            }
        }
        for m in 0..M {
            simd.partial_store_f32s(&mut out[rows[m] as usize][at..to], sums[m]);
        }
        at = to;
    }
}
