//! Linear systems of a positive definite matrix.

use faer::linalg::solvers::Solve as _;
use faer::{MatRef, Side};

/// X `[n, r]` of A X = B, row-major, for the symmetric A `[n, n]`, of which the lower triangle is read. `None` where A is not positive definite, as
/// far as f64 can tell.
///
/// # Panics
/// A slice of another length than its shape asks for.
///
/// ```
/// use tinyonn_linalg::solve_positive_definite;
/// let x = solve_positive_definite(&[4.0, 2.0, 2.0, 3.0], &[8.0, 7.0], (2, 1)).unwrap();
/// assert!((x[0] - 1.25).abs() < 1e-12 && (x[1] - 1.5).abs() < 1e-12);
/// assert!(solve_positive_definite(&[1.0, 2.0, 2.0, 1.0], &[0.0, 0.0], (2, 1)).is_none());
/// ```
#[must_use]
pub fn solve_positive_definite(a_nn: &[f64], b_nr: &[f64], (n, r): (usize, usize)) -> Option<Vec<f64>> {
    let factor = MatRef::from_row_major_slice(a_nn, n, n).llt(Side::Lower).ok()?;
    let x_nr = factor.solve(MatRef::from_row_major_slice(b_nr, n, r));
    let values: Vec<f64> = (0..n).flat_map(|row| x_nr.row(row).iter().copied().collect::<Vec<_>>()).collect();
    values.iter().all(|x| x.is_finite()).then_some(values)
}
