//! An orthonormal basis of the span of some vectors.

use faer::MatRef;

/// Orthonormal rows `[r, d]`, row-major, that span what the rows of `a_rd` span: the Q of a QR decomposition of its transpose.
///
/// # Panics
/// `a_rd` is not r × d, or r > d.
///
/// ```
/// use tinyonn_linalg::orthonormal_rows;
/// let q = orthonormal_rows(&[3.0, 4.0], 1, 2);
/// assert!((q[0].abs() - 0.6).abs() < 1e-12 && (q[1].abs() - 0.8).abs() < 1e-12);
/// ```
#[must_use]
pub fn orthonormal_rows(a_rd: &[f64], r: usize, d: usize) -> Vec<f64> {
    assert!(r <= d, "{r} vectors of {d} numbers are not independent");
    // Row-major [r, d] is column-major [d, r].
    let q_dr = MatRef::from_column_major_slice(a_rd, d, r).qr().compute_thin_Q();
    (0..r).flat_map(|row| q_dr.col(row).iter().copied().collect::<Vec<_>>()).collect()
}
