//! Where Gaussian routers look: a linear map z = P x, P `[r, d]`, found from how their inputs scatter (DESIGN §2): one matrix of their width
//! ([`ClassScatter`]), whatever their number.
//!
//! - `lda`: linear discriminant analysis finds the directions along which class means differ most against the spread within classes; their
//!   number is at most classes − 1, so the rest is filled up with the leading principal directions, all of unit variance within
//!   classes and uncorrelated.
//! - `pca`: the leading principal directions of all rows, orthonormal.
//! - `random`: orthonormal rows drawn at random.
//! - `identity`: the first r coordinates.

use std::borrow::Cow;
use std::collections::BTreeSet;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use tinyonn_linalg::{Eigen, orthonormal_rows, product, symmetric_eigen};

use crate::imaging::inputs::Samples;
use crate::ops::{ClassScatter, Weigh};
use crate::{Error, Result, random};

/// How the projections of routers that learn theirs (`project` not declared, or `learned`) are found. Declared ones stay what they are:
/// `project = identity` has none, `project = random` keeps what was drawn when the model was upcycled.
///
/// ```
/// use tinyonn::imaging::inputs::Samples;
/// use tinyonn::train::projection::{Projection, lda, pca};
///
/// // Two tasks that differ along the second axis; along the first, rows vary most.
/// let values = vec![-9.0, 0.0, 9.0, 0.1, -9.0, 1.0, 9.0, 1.1];
/// let rows = Samples { values, tasks: vec![0, 0, 1, 1], documents: vec![0, 1, 2, 3], ..Samples::default() };
/// let axis = |(p, r): (Vec<f32>, usize)| (r, usize::from(p[1].abs() > p[0].abs()));
/// assert_eq!((axis(pca(&rows, 1)?), axis(lda(&rows, 1)?)), ((1, 0), (1, 1)));
/// let (identity, _) = Projection::Identity.find(&rows, 2, (0, 0))?;
/// assert_eq!((Projection::Lda.name(), identity), ("lda", vec![1.0, 0.0, 0.0, 1.0]));
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
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

    /// What its scatter weighs equally; `None` of one that has no need of it.
    pub(crate) fn weighs(self) -> Option<Weigh> {
        match self {
            Self::Lda => Some(Weigh::Classes),
            Self::Pca => Some(Weigh::Rows),
            Self::Random | Self::Identity => None,
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

/// Added to the diagonal of the spread within classes, as a share of its mean.
const RIDGE: f64 = 1e-3;
/// Rows of a sample that are summed up at once.
const BATCH: usize = 8192;

/// d of samples that can be used.
pub(super) fn width(samples: &Samples) -> Result<usize> {
    if samples.tasks.is_empty() {
        return Err(Error::setting("inputs", "none were collected", "scan at least one sequence of each task"));
    }
    if !samples.values.iter().all(|x| x.is_finite()) {
        return Err(not_finite());
    }
    Ok(samples.values.len() / samples.tasks.len())
}

fn not_finite() -> Error {
    let remedy = "check the model's tensors for values that are not finite";
    Error::setting("inputs", "what the routers see holds values that are not finite", remedy)
}

/// How the rows scatter that `samples` were taken from: as it was summed up when they were collected, or by the rows themselves.
fn scatter(samples: &Samples, weigh: Weigh) -> Result<Cow<'_, ClassScatter>> {
    if let Some(scatter) = samples.scatter.as_deref().filter(|scatter| scatter.weigh() == weigh) {
        return Ok(Cow::Borrowed(scatter));
    }
    let d = width(samples)?;
    let classes: BTreeSet<u32> = samples.tasks.iter().copied().collect();
    let mut scatter = ClassScatter::new(weigh);
    for (at, class) in classes.iter().enumerate() {
        let own: Vec<usize> = (0..samples.tasks.len()).filter(|row| samples.tasks[*row] == *class).collect();
        for rows in own.chunks(BATCH) {
            let values: Vec<f32> = rows.iter().flat_map(|row| &samples.values[row * d..][..d]).copied().collect();
            scatter.push(&Tensor::from_vec(values, (rows.len(), d), &Device::Cpu)?, at)?;
        }
    }
    scatter.close()?;
    Ok(Cow::Owned(scatter))
}

/// The directions of a symmetric matrix, the strongest first.
fn principal(matrix_dd: &[f64], d: usize) -> Result<Eigen> {
    symmetric_eigen(matrix_dd, d).ok_or_else(not_finite)
}

/// P `[r, d]`, row-major: the directions along which all rows vary most, orthonormal, the first most.
///
/// # Errors
/// As [`Projection::find`].
pub fn pca(samples: &Samples, dim: usize) -> Result<(Vec<f32>, usize)> {
    let d = width(samples)?;
    let r = dim.min(d);
    let directions = principal(&scatter(samples, Weigh::Rows)?.matrix(), d)?.vectors;
    Ok((directions[..r * d].iter().map(|x| *x as f32).collect(), r))
}

/// Orthonormal rows `[r, d]` that span a subspace drawn evenly from all of r dimensions: the Q of a normal matrix, whose signs are those of the
/// factorisation.
fn orthonormal(r: usize, d: usize, rng: &mut random::Rng) -> Vec<f32> {
    let drawn: Vec<f64> = random::normal(d * r, 0.0, 1.0, rng).into_iter().map(f64::from).collect();
    orthonormal_rows(&drawn, r, d).into_iter().map(|x| x as f32).collect()
}

/// P `[r, d]`, row-major, from labelled rows; classes weigh equally.
///
/// # Errors
/// As [`Projection::find`].
pub fn lda(samples: &Samples, dim: usize) -> Result<(Vec<f32>, usize)> {
    let d = width(samples)?;
    let r = dim.min(d);
    let scatter = scatter(samples, Weigh::Classes)?;
    let means: Vec<Vec<f64>> = (0..scatter.classes()).filter_map(|class| scatter.mean(class)).collect();
    let mut within_dd = scatter.matrix();
    let trace: f64 = within_dd.iter().step_by(d + 1).sum();
    let ridge = RIDGE * spread_of(trace / d as f64, &means);
    within_dd.iter_mut().step_by(d + 1).for_each(|x| *x += ridge);
    // Rows of W = Λ^(−½) Vᵀ, leading principal direction first: x ↦ W x has unit variance within classes.
    let Eigen { values, vectors: mut whiten_dd } = principal(&within_dd, d)?;
    for (row, variance) in whiten_dd.chunks_exact_mut(d).zip(values) {
        let scale = 1.0 / variance.max(ridge).sqrt();
        row.iter_mut().for_each(|x| *x *= scale);
    }
    let directions_rd = directions(&whiten_dd, &means, r)?;
    Ok((product(&directions_rd, &whiten_dd, (r, d, d)).into_iter().map(|x| x as f32).collect(), r))
}

/// The mean variance within classes; where every class is a single point, that of the points, or 1 if they too are one.
fn spread_of(within: f64, means: &[Vec<f64>]) -> f64 {
    let centre = centre(means);
    let squares = means.iter().map(|mean| norm_squared(&apart(mean, &centre))).sum::<f64>();
    let between = squares / (means.len() * centre.len()) as f64;
    [within, between].into_iter().find(|variance| *variance > 0.0).unwrap_or(1.0)
}

fn centre(means: &[Vec<f64>]) -> Vec<f64> {
    let d = means.first().map_or(0, Vec::len);
    (0..d).map(|j| means.iter().map(|mean| mean[j]).sum::<f64>() / means.len() as f64).collect()
}

fn apart(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm_squared(a: &[f64]) -> f64 {
    dot(a, a)
}

/// Orthonormal rows `[r, d]` in whitened space: first those the class means span, then the leading axes.
fn directions(whiten_dd: &[f64], means: &[Vec<f64>], r: usize) -> Result<Vec<f64>> {
    let (centre, classes) = (centre(means), means.len());
    let d = centre.len();
    let whitened = |mean: &Vec<f64>| product(whiten_dd, &apart(mean, &centre), (d, d, 1));
    let between_cd: Vec<Vec<f64>> = means.iter().map(whitened).collect();
    // The means' own span, strongest direction first: eigenvectors of the small Gram matrix.
    let gram_cc: Vec<f64> = between_cd.iter().flat_map(|a| between_cd.iter().map(|b| dot(a, b))).collect();
    let gram = principal(&gram_cc, classes)?;
    let largest = gram.values.first().map_or(0.0, |value| value.max(0.0)).sqrt();
    let spanned = gram.vectors.chunks_exact(classes).take(classes - 1);
    let spanned = spanned.map(|shares| product(shares, &between_cd.concat(), (1, classes, d)));
    let axes = (0..d).map(|axis| (0..d).map(|j| f64::from(u8::from(j == axis))).collect());
    let mut found: Vec<Vec<f64>> = Vec::with_capacity(r);
    for (at, mut candidate) in spanned.chain(axes).enumerate() {
        if found.len() == r {
            break;
        }
        let before = if at + 1 < classes { largest } else { 1.0 };
        // Twice: one pass of Gram-Schmidt leaves rounding behind.
        for _ in 0..2 {
            for row in &found {
                let along = dot(row, &candidate);
                candidate.iter_mut().zip(row).for_each(|(x, row)| *x -= along * row);
            }
        }
        let norm = norm_squared(&candidate).sqrt();
        if norm > 1e-6 * before {
            found.push(candidate.into_iter().map(|x| x / norm).collect());
        }
    }
    Ok(found.concat())
}
