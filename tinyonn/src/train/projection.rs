//! Where Gaussian routers look: a linear map z = P x that sets the tasks apart.
//!
//! Linear discriminant analysis finds the directions along which class means differ most against the spread within classes; their
//! number is at most classes − 1, so the rest is filled up with the leading principal directions, all of unit variance
//! within classes and uncorrelated (DESIGN §2).

use nalgebra::{DMatrix, DVector, SymmetricEigen};

use crate::imaging::inputs::Samples;
use crate::{Error, Result};

/// Added to the diagonal of the spread within classes, as a share of its mean.
const RIDGE: f64 = 1e-3;

/// P `[r, d]`, row-major, from labelled rows; classes weigh equally.
///
/// # Errors
/// No samples; samples that are no finite numbers.
pub fn lda(samples: &Samples, dim: usize) -> Result<(Vec<f32>, usize)> {
    if samples.tasks.is_empty() {
        return Err(Error::setting("inputs", "none were collected", "scan at least one sequence of each task"));
    }
    if !samples.values.iter().all(|x| x.is_finite()) {
        let remedy = "check the model's tensors for values that are not finite";
        return Err(Error::setting("inputs", "what the routers see holds values that are not finite", remedy));
    }
    let d = samples.values.len() / samples.tasks.len();
    let r = dim.min(d);
    let classes: Vec<u32> =
        samples.tasks.iter().copied().collect::<std::collections::BTreeSet<_>>().into_iter().collect();
    let mut within = DMatrix::<f64>::zeros(d, d);
    let mut means = Vec::with_capacity(classes.len());
    for class in &classes {
        let rows: Vec<f64> = samples
            .values
            .chunks_exact(d)
            .zip(&samples.tasks)
            .filter(|(_, task)| *task == class)
            .flat_map(|(row, _)| row.iter().map(|x| f64::from(*x)))
            .collect();
        let count = rows.len() / d;
        let mut matrix = DMatrix::from_row_slice(count, d, &rows);
        let mean = matrix.row_mean();
        matrix.row_iter_mut().for_each(|mut row| row -= &mean);
        within += matrix.tr_mul(&matrix) / (count * classes.len()) as f64;
        means.push(mean.transpose());
    }
    let ridge = RIDGE * spread(within.trace() / d as f64, &means);
    within.iter_mut().step_by(d + 1).for_each(|x| *x += ridge);
    let eigen = SymmetricEigen::new(within);
    let mut order: Vec<usize> = (0..d).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]).then(a.cmp(b)));
    // Rows of W = Λ^(−½) Vᵀ, leading principal direction first: x ↦ W x has unit variance within classes.
    let mut whiten = DMatrix::<f64>::zeros(d, d);
    for (row, at) in order.iter().enumerate() {
        let scale = 1.0 / eigen.eigenvalues[*at].max(ridge).sqrt();
        whiten.set_row(row, &(eigen.eigenvectors.column(*at).transpose() * scale));
    }
    let directions = directions(&whiten, &means, r);
    let projection = directions * whiten;
    Ok((projection.transpose().iter().map(|x| *x as f32).collect(), r))
}

/// The mean variance within classes; where every class is a single point, that of the points, or 1 if they too are one.
fn spread(within: f64, means: &[DVector<f64>]) -> f64 {
    let centre = centre(means);
    let squares = means.iter().map(|mean| (mean - &centre).norm_squared()).sum::<f64>();
    let between = squares / (means.len() * centre.len()) as f64;
    [within, between].into_iter().find(|variance| *variance > 0.0).unwrap_or(1.0)
}

fn centre(means: &[DVector<f64>]) -> DVector<f64> {
    means.iter().fold(DVector::zeros(means[0].len()), |sum, mean| sum + mean) / means.len() as f64
}

/// Orthonormal rows `[r, d]` in whitened space: first those the class means span, then the leading axes.
fn directions(whiten: &DMatrix<f64>, means: &[DVector<f64>], r: usize) -> DMatrix<f64> {
    let d = whiten.nrows();
    let centre = centre(means);
    let between = DMatrix::from_columns(&means.iter().map(|mean| whiten * (mean - &centre)).collect::<Vec<_>>());
    // The means' own span, strongest direction first: eigenvectors of the small Gram matrix.
    let gram = SymmetricEigen::new(between.tr_mul(&between));
    let mut order: Vec<usize> = (0..means.len()).collect();
    order.sort_by(|a, b| gram.eigenvalues[*b].total_cmp(&gram.eigenvalues[*a]).then(a.cmp(b)));
    let spanned = order.iter().map(|at| &between * gram.eigenvectors.column(*at));
    let axes = (0..d).map(|axis| {
        let mut e = DVector::zeros(d);
        e[axis] = 1.0;
        e
    });
    let largest = gram.eigenvalues.iter().copied().fold(0.0, f64::max).sqrt();
    let mut rows = DMatrix::<f64>::zeros(r, d);
    let mut found: Vec<DVector<f64>> = Vec::with_capacity(r);
    let class_directions = means.len().saturating_sub(1);
    for (at, mut candidate) in spanned.take(class_directions).chain(axes).enumerate() {
        let before = if at < class_directions { largest } else { 1.0 };
        // Twice: one pass of Gram-Schmidt leaves rounding behind.
        for _ in 0..2 {
            for row in &found {
                let along = row.dot(&candidate);
                candidate.axpy(-along, row, 1.0);
            }
        }
        let norm = candidate.norm();
        if found.len() < r && norm > 1e-6 * before {
            found.push(candidate / norm);
        }
    }
    found.iter().enumerate().for_each(|(at, row)| rows.set_row(at, &row.transpose()));
    rows
}
