//! Where Gaussian routers look: a linear map z = P x, P `[r, d]`, found from a sample of their inputs (DESIGN §2).
//!
//! - `lda`: linear discriminant analysis finds the directions along which class means differ most against the spread within classes; their
//!   number is at most classes − 1, so the rest is filled up with the leading principal directions, all of unit variance within
//!   classes and uncorrelated.
//! - `pca`: the leading principal directions of all rows, orthonormal.
//! - `random`: orthonormal rows drawn at random.
//! - `identity`: the first r coordinates.

use nalgebra::{DMatrix, DVector, SymmetricEigen};
use serde::{Deserialize, Serialize};

use crate::imaging::inputs::{Samples, spread};
use crate::{Error, Result, random};

/// How the projections of routers that learn theirs (`project` not declared, or `learned`) are found. Declared ones stay what they are:
/// `project = identity` has none, `project = random` keeps what was drawn when the model was upcycled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// Linear discriminant analysis of the tasks.
    #[default]
    Lda,
    /// Principal components of all rows.
    Pca,
    /// Orthonormal rows drawn at random.
    Random,
    /// The first coordinates.
    Identity,
}

impl Projection {
    /// Its name in configurations and tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lda => "lda",
            Self::Pca => "pca",
            Self::Random => "random",
            Self::Identity => "identity",
        }
    }

    /// P `[r, d]`, row-major, and r = min(`dim`, d). `random` is deterministic in `seed` and `layer`; the others need neither.
    ///
    /// # Errors
    /// No samples; samples that are no finite numbers.
    pub fn find(self, samples: &Samples, dim: usize, (seed, layer): (u64, usize)) -> Result<(Vec<f32>, usize)> {
        let d = width(samples)?;
        let r = dim.min(d);
        match self {
            Self::Lda => lda(samples, dim),
            Self::Pca => pca(samples, dim),
            Self::Random => Ok((orthonormal(r, d, &mut random::stream(seed, &format!("projection/{layer}"))), r)),
            Self::Identity => {
                let row = |i: usize| (0..d).map(move |j| f32::from(u8::from(i == j)));
                Ok(((0..r).flat_map(row).collect(), r))
            }
        }
    }
}

/// Rows that a projection is found from, at most.
const SAMPLE: usize = 32_768;
/// Added to the diagonal of the spread within classes, as a share of its mean.
const RIDGE: f64 = 1e-3;

/// d of samples that can be used.
pub(super) fn width(samples: &Samples) -> Result<usize> {
    if samples.tasks.is_empty() {
        return Err(Error::setting("inputs", "none were collected", "scan at least one sequence of each task"));
    }
    if !samples.values.iter().all(|x| x.is_finite()) {
        let remedy = "check the model's tensors for values that are not finite";
        return Err(Error::setting("inputs", "what the routers see holds values that are not finite", remedy));
    }
    Ok(samples.values.len() / samples.tasks.len())
}

/// At most [`SAMPLE`] rows, those of `task` if there is one, `[n, d]`.
fn sampled(samples: &Samples, d: usize, task: Option<u32>) -> DMatrix<f64> {
    let rows = spread(samples.tasks.len(), SAMPLE).filter(|row| task.is_none_or(|task| samples.tasks[*row] == task));
    let values: Vec<f64> = rows.flat_map(|row| samples.values[row * d..][..d].iter().map(|x| f64::from(*x))).collect();
    DMatrix::from_row_slice(values.len() / d, d, &values)
}

/// The mean of the rows `[d]` and the sum of the outer products of their differences from it, `[d, d]`.
fn centred(mut rows: DMatrix<f64>) -> (DVector<f64>, DMatrix<f64>) {
    let mean = rows.row_mean();
    rows.row_iter_mut().for_each(|mut row| row -= &mean);
    (mean.transpose(), rows.tr_mul(&rows))
}

/// Eigenvalues and -vectors of a symmetric matrix, the largest first.
fn principal(matrix: DMatrix<f64>) -> Vec<(f64, DVector<f64>)> {
    let eigen = SymmetricEigen::new(matrix);
    let mut order: Vec<usize> = (0..eigen.eigenvalues.len()).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]).then(a.cmp(b)));
    order.into_iter().map(|at| (eigen.eigenvalues[at], eigen.eigenvectors.column(at).into_owned())).collect()
}

/// P `[r, d]`, row-major: the directions along which all rows vary most, orthonormal, the first most.
///
/// # Errors
/// As [`Projection::find`].
pub fn pca(samples: &Samples, dim: usize) -> Result<(Vec<f32>, usize)> {
    let d = width(samples)?;
    let r = dim.min(d);
    let (_, scatter) = centred(sampled(samples, d, None));
    let rows = principal(scatter).into_iter().take(r);
    Ok((rows.flat_map(|(_, row)| row.iter().map(|x| *x as f32).collect::<Vec<_>>()).collect(), r))
}

/// Orthonormal rows `[r, d]`, evenly drawn from all such: the Q of a normal matrix.
fn orthonormal(r: usize, d: usize, rng: &mut random::Rng) -> Vec<f32> {
    let drawn = random::normal(d * r, 0.0, 1.0, rng).into_iter().map(f64::from);
    let q_dr = DMatrix::from_iterator(d, r, drawn).qr().q();
    q_dr.iter().map(|x| *x as f32).collect()
}

/// P `[r, d]`, row-major, from labelled rows; classes weigh equally.
///
/// # Errors
/// As [`Projection::find`].
pub fn lda(samples: &Samples, dim: usize) -> Result<(Vec<f32>, usize)> {
    let d = width(samples)?;
    let r = dim.min(d);
    let classes: Vec<u32> =
        samples.tasks.iter().copied().collect::<std::collections::BTreeSet<_>>().into_iter().collect();
    let mut within = DMatrix::<f64>::zeros(d, d);
    let mut means = Vec::with_capacity(classes.len());
    for class in &classes {
        let rows = sampled(samples, d, Some(*class));
        // Of very many classes a sample may hold none of one.
        let count = rows.nrows();
        if count > 0 {
            let (mean, scatter) = centred(rows);
            within += scatter / count as f64;
            means.push(mean);
        }
    }
    within /= means.len() as f64;
    let ridge = RIDGE * spread_of(within.trace() / d as f64, &means);
    within.iter_mut().step_by(d + 1).for_each(|x| *x += ridge);
    // Rows of W = Λ^(−½) Vᵀ, leading principal direction first: x ↦ W x has unit variance within classes.
    let mut whiten = DMatrix::<f64>::zeros(d, d);
    for (row, (variance, direction)) in principal(within).iter().enumerate() {
        whiten.set_row(row, &(direction.transpose() / variance.max(ridge).sqrt()));
    }
    let directions = directions(&whiten, &means, r);
    let projection = directions * whiten;
    Ok((projection.transpose().iter().map(|x| *x as f32).collect(), r))
}

/// The mean variance within classes; where every class is a single point, that of the points, or 1 if they too are one.
fn spread_of(within: f64, means: &[DVector<f64>]) -> f64 {
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
    let gram = principal(between.tr_mul(&between));
    let largest = gram.first().map_or(0.0, |(value, _)| value.max(0.0)).sqrt();
    let spanned = gram.iter().map(|(_, direction)| &between * direction);
    let axes = (0..d).map(|axis| {
        let mut e = DVector::zeros(d);
        e[axis] = 1.0;
        e
    });
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
