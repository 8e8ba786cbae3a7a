//! Products of matrices.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

/// a b, row-major `[m, n]`, of row-major a `[m, k]` and b `[k, n]`.
///
/// # Panics
/// A slice of another length than its shape asks for.
///
/// ```
/// use tinyonn_linalg::product;
/// assert_eq!(product(&[1.0, 2.0], &[3.0, 4.0, 5.0, 6.0], (1, 2, 2)), [13.0, 16.0]);
/// ```
#[must_use]
pub fn product(a_mk: &[f64], b_kn: &[f64], (m, k, n): (usize, usize, usize)) -> Vec<f64> {
    // faer's own matrices are column-major: (a b)ᵀ = bᵀ aᵀ has the values in the order that is wanted.
    let (at_km, bt_nk) = (MatRef::from_column_major_slice(a_mk, k, m), MatRef::from_column_major_slice(b_kn, n, k));
    let mut c_nm = Mat::<f64>::zeros(n, m);
    matmul(&mut c_nm, Accum::Replace, bt_nk, at_km, 1.0, Par::Seq);
    c_nm.col_iter().flat_map(|column| column.iter().copied().collect::<Vec<_>>()).collect()
}

/// a bᵀ, row-major `[m, n]`, of row-major a `[m, k]` and b `[n, k]`.
///
/// # Panics
/// A slice of another length than its shape asks for.
///
/// ```
/// use tinyonn_linalg::product_transposed;
/// assert_eq!(product_transposed(&[1.0, 2.0], &[3.0, 5.0, 4.0, 6.0], (1, 2, 2)), [13.0, 16.0]);
/// ```
#[must_use]
pub fn product_transposed(a_mk: &[f64], b_nk: &[f64], (m, k, n): (usize, usize, usize)) -> Vec<f64> {
    let (at_km, b_nk) = (MatRef::from_column_major_slice(a_mk, k, m), MatRef::from_row_major_slice(b_nk, n, k));
    let mut c_nm = Mat::<f64>::zeros(n, m);
    matmul(&mut c_nm, Accum::Replace, b_nk, at_km, 1.0, Par::Seq);
    c_nm.col_iter().flat_map(|column| column.iter().copied().collect::<Vec<_>>()).collect()
}
