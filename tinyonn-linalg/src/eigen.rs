//! Eigenvalues and eigenvectors of a symmetric matrix.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::{Mat, MatRef, Par, Spec};

/// A V = V diag(λ), the largest eigenvalue first; equal ones in the order in which they are found.
#[derive(Clone, Debug)]
pub struct Eigen {
    /// λ, descending.
    pub values: Vec<f64>,
    /// The eigenvectors as rows, `[n, n]`, row-major, orthonormal. Nothing decides a vector's sign: its largest coordinate (the first of
    /// equally large ones) is made positive.
    pub vectors: Vec<f64>,
}

/// The eigenvalues and -vectors of the symmetric matrix `a_nn`, row-major, of which the lower triangle is read. `None` where the iteration
/// does not end, as of a matrix that holds values that are no finite numbers.
///
/// # Panics
/// `a_nn` is not n × n.
///
/// ```
/// use tinyonn_linalg::{Eigen, symmetric_eigen};
/// let eigen: Eigen = symmetric_eigen(&[2.0, 1.0, 1.0, 2.0], 2).unwrap();
/// assert!((eigen.values[0] - 3.0).abs() < 1e-12 && (eigen.values[1] - 1.0).abs() < 1e-12);
/// assert!((eigen.vectors[0] - 0.5f64.sqrt()).abs() < 1e-12);
/// ```
#[must_use]
pub fn symmetric_eigen(a_nn: &[f64], n: usize) -> Option<Eigen> {
    if !a_nn.iter().all(|x| x.is_finite()) {
        return None;
    }
    let a = MatRef::from_row_major_slice(a_nn, n, n);
    let (mut values, mut vectors) = (Diag::zeros(n), Mat::zeros(n, n));
    let scratch = self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, Par::Seq, Spec::default());
    let mut scratch = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut scratch);
    self_adjoint_evd(a, values.as_mut(), Some(vectors.as_mut()), Par::Seq, stack, Spec::default()).ok()?;
    let values = values.column_vector();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]).then(a.cmp(b)));
    let mut rows = Vec::with_capacity(n * n);
    for at in &order {
        let vector = vectors.col(*at);
        let largest = vector.iter().fold(0f64, |most, x| if x.abs() > most.abs() { *x } else { most });
        let sign = if largest < 0.0 { -1.0 } else { 1.0 };
        rows.extend(vector.iter().map(|x| sign * x));
    }
    Some(Eigen { values: order.iter().map(|at| values[*at]).collect(), vectors: rows })
}
