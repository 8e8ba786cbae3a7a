//! LDA: white within classes, the classes' differences in the first rows, nothing lost of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use approx::assert_relative_eq;
use candle_core::{Device, Tensor};
use nalgebra::{DMatrix, DVector, SymmetricEigen};
use rstest::rstest;
use tinyonn::imaging::inputs::Samples;
use tinyonn::ops::{ClassScatter, Weigh};
use tinyonn::train::projection::{lda, pca};
use tinyonn::{Result, random};

use super::normal;

const D: usize = 8;

/// Rows x = A (u_class + ε) with a fixed well-conditioned A: within classes the covariance is A Aᵀ, and the distance of two
/// classes in units of it is ‖u_a − u_b‖ whatever A. Class c has twice as many rows as class c − 1.
fn classes(centres: &[[f64; D]], rows: usize) -> Samples {
    let mut rng = random::stream(0, "tests/classes");
    let mixing: Vec<Vec<f64>> = (0..D)
        .map(|i| (0..D).map(|j| 0.3 * normal(&mut rng) + if i == j { 1.0 + i as f64 / 2.0 } else { 0.0 }).collect())
        .collect();
    let mut samples = Samples::default();
    for (class, centre) in centres.iter().enumerate() {
        for _ in 0..rows << class {
            let white: Vec<f64> = centre.iter().map(|u| u + normal(&mut rng)).collect();
            let x = mixing.iter().map(|row| row.iter().zip(&white).map(|(a, w)| a * w).sum::<f64>() as f32);
            samples.values.extend(x);
            samples.tasks.push(3 * class as u32 + 1); // numbers need not be consecutive
        }
    }
    samples
}

/// z = P x by class.
fn projected(samples: &Samples, projection: &[f32], r: usize) -> Vec<Vec<Vec<f64>>> {
    let d = projection.len() / r;
    let z = |x: &[f32]| -> Vec<f64> {
        projection.chunks_exact(d).map(|p| p.iter().zip(x).map(|(p, x)| f64::from(*p) * f64::from(*x)).sum()).collect()
    };
    let mut names = samples.tasks.clone();
    names.dedup();
    let of_class = |class: &u32| {
        let rows = samples.values.chunks_exact(d).zip(&samples.tasks);
        rows.filter(|(_, task)| *task == class).map(|(x, _)| z(x)).collect()
    };
    names.iter().map(of_class).collect()
}

fn mean(rows: &[Vec<f64>], j: usize) -> f64 {
    rows.iter().map(|z| z[j]).sum::<f64>() / rows.len() as f64
}

const CENTRES: [[f64; D]; 3] =
    [[0.0; D], [4.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, -3.0]];

#[rstest]
#[case::one_class(1, 5)]
#[case::fewer_than_classes(3, 1)]
#[case::just_the_means(3, 2)]
#[case::filled_up(3, 5)]
#[case::all(3, D)]
#[case::capped(3, 100)]
fn rows_are_white_within_classes_and_hold_the_means_first(#[case] count: usize, #[case] dim: usize) {
    let samples = classes(&CENTRES[..count], 400);
    let (projection, r) = lda(&samples, dim).unwrap();
    assert_eq!((r, projection.len()), (dim.min(D), dim.min(D) * D));
    let z = projected(&samples, &projection, r);
    for a in 0..r {
        for b in 0..r {
            let of_class = |rows: &Vec<Vec<f64>>| {
                let (ma, mb) = (mean(rows, a), mean(rows, b));
                rows.iter().map(|z| (z[a] - ma) * (z[b] - mb)).sum::<f64>() / rows.len() as f64
            };
            let covariance = z.iter().map(of_class).sum::<f64>() / z.len() as f64;
            // The ridge is 1e-3 of the mean variance: 2 % of that of a direction a twentieth as wide.
            assert_relative_eq!(covariance, f64::from(u8::from(a == b)), epsilon = 2e-2);
        }
    }
    let between = |a: usize, b: usize, j: usize| mean(&z[a], j) - mean(&z[b], j);
    for (a, b) in (0..count).flat_map(|a| (0..a).map(move |b| (a, b))) {
        // Behind the first classes − 1 rows no class differs: f32 projections of values of order 10.
        (count - 1..r).for_each(|j| assert_relative_eq!(between(a, b, j), 0.0, epsilon = 1e-4));
        if r >= count - 1 {
            let found = (0..r).map(|j| between(a, b, j).powi(2)).sum::<f64>().sqrt();
            let exact = (0..D).map(|j| (CENTRES[a][j] - CENTRES[b][j]).powi(2)).sum::<f64>().sqrt();
            // Means and covariance of 400 rows and more: 1/√400 = 5 % each way.
            assert_relative_eq!(found, exact, max_relative = 0.1);
        }
    }
    // The first row separates most.
    let spread = |j: usize| (0..count).map(|a| (0..a).map(|b| between(a, b, j).powi(2)).sum::<f64>()).sum::<f64>();
    (1..r).for_each(|j| assert!(spread(0) >= spread(j) - 1e-4));
}

/// Too little text for a spread within classes, or for any: the rows are finite and keep what differs.
#[rstest]
#[case::one_row_a_class(&[[1.0, 2.0], [5.0, -1.0]])]
#[case::one_row_a_class_that_f32_rounds(&[[0.1, 0.7], [1000.3, -0.37]])]
#[case::all_rows_equal(&[[1.0, 2.0], [1.0, 2.0]])]
#[case::nothing_but_zero(&[[0.0, 0.0], [0.0, 0.0]])]
fn inputs_without_spread_make_finite_projections(#[case] rows: &[[f32; 2]]) {
    let samples = Samples { values: rows.concat(), tasks: vec![0, 1], documents: vec![0, 1], scatter: None };
    let (projection, r) = lda(&samples, 2).unwrap();
    assert!(projection.iter().all(|p| p.is_finite()), "{projection:?}");
    let z = projected(&samples, &projection, r);
    let apart = (0..r).map(|j| (z[0][0][j] - z[1][0][j]).abs()).sum::<f64>();
    assert_eq!(apart > 0.1, rows[0] != rows[1], "{z:?}");
}

/// The plain form: all rows centred in f64, the eigenproblem by another library. Directions that the data tell apart are the same up to sign;
/// so is what all of them span. Products in f32 of rows counted from the first ones leave 1e-6 of the largest, which the ridge of 1e-3
/// bounds to 1e-3 of the weakest direction.
#[rstest]
#[case::near_the_origin(0.0, false)]
#[case::far_from_it(40.0, false)]
#[case::summed_up_on_the_way(0.0, true)]
#[case::both(40.0, true)]
fn the_projection_is_that_of_the_plain_form(#[case] offset: f32, #[case] on_the_way: bool) {
    let mut samples = classes(&CENTRES, 400);
    samples.values.iter_mut().for_each(|x| *x += offset);
    for (projection, weigh, plain) in [
        (lda as fn(&Samples, usize) -> Result<(Vec<f32>, usize)>, Weigh::Classes, plain_lda(&samples)),
        (pca, Weigh::Rows, plain_pca(&samples)),
    ] {
        let given = if on_the_way { summed_up(&samples, weigh) } else { samples.clone() };
        let (found, r) = projection(&given, D).unwrap();
        assert_eq!((r, found.len()), (D, D * D));
        for (a, b) in found.chunks_exact(D).zip(&plain) {
            let size = b.iter().map(|x| x * x).sum::<f64>().sqrt();
            let along = a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum::<f64>();
            let apart = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - along.signum() * b).powi(2)).sum::<f64>().sqrt();
            assert!(apart <= 1e-3 * size, "{a:?} against {b:?}");
        }
    }
}

/// A few of the samples' rows, which stand for all of them by their scatter.
fn summed_up(samples: &Samples, weigh: Weigh) -> Samples {
    let mut scatter = ClassScatter::new(weigh);
    for (row, task) in samples.values.chunks(D).zip(&samples.tasks) {
        scatter.push(&Tensor::from_slice(row, (1, D), &Device::Cpu).unwrap(), *task as usize).unwrap();
    }
    scatter.close().unwrap();
    let kept: Vec<usize> = (0..samples.tasks.len()).step_by(100).collect();
    let values = kept.iter().flat_map(|row| samples.values[row * D..][..D].to_vec()).collect();
    let tasks = kept.iter().map(|row| samples.tasks[*row]).collect();
    Samples { values, tasks, documents: Vec::new(), scatter: Some(Arc::new(scatter)) }
}

fn rows_of(samples: &Samples, class: Option<u32>) -> DMatrix<f64> {
    let rows = samples.values.chunks(D).zip(&samples.tasks).filter(|(_, task)| class.is_none_or(|c| **task == c));
    let values: Vec<f64> = rows.flat_map(|(row, _)| row.iter().map(|x| f64::from(*x)).collect::<Vec<_>>()).collect();
    DMatrix::from_row_slice(values.len() / D, D, &values)
}

fn centred(mut rows: DMatrix<f64>) -> (DVector<f64>, DMatrix<f64>) {
    let mean = rows.row_mean();
    rows.row_iter_mut().for_each(|mut row| row -= &mean);
    (mean.transpose(), rows.tr_mul(&rows))
}

/// Eigenvectors, the largest eigenvalue first.
fn principal(matrix: DMatrix<f64>) -> Vec<(f64, DVector<f64>)> {
    let eigen = SymmetricEigen::new(matrix);
    let mut order: Vec<usize> = (0..eigen.eigenvalues.len()).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    order.into_iter().map(|at| (eigen.eigenvalues[at], eigen.eigenvectors.column(at).into_owned())).collect()
}

fn plain_pca(samples: &Samples) -> Vec<Vec<f64>> {
    let (_, scatter) = centred(rows_of(samples, None));
    principal(scatter).into_iter().map(|(_, row)| row.iter().copied().collect()).collect()
}

/// With two directions of means among `D`.
fn plain_lda(samples: &Samples) -> Vec<Vec<f64>> {
    let classes: BTreeSet<u32> = samples.tasks.iter().copied().collect();
    let (mut within, mut means) = (DMatrix::<f64>::zeros(D, D), Vec::new());
    for class in &classes {
        let rows = rows_of(samples, Some(*class));
        let count = rows.nrows() as f64;
        let (mean, scatter) = centred(rows);
        within += scatter / count / classes.len() as f64;
        means.push(mean);
    }
    let ridge = 1e-3 * within.trace() / D as f64;
    within += DMatrix::identity(D, D) * ridge;
    let mut whiten = DMatrix::<f64>::zeros(D, D);
    for (row, (variance, direction)) in principal(within).iter().enumerate() {
        whiten.set_row(row, &(direction.transpose() / variance.sqrt()));
    }
    let centre = means.iter().fold(DVector::zeros(D), |sum, mean| sum + mean) / means.len() as f64;
    let between = DMatrix::from_columns(&means.iter().map(|mean| &whiten * (mean - &centre)).collect::<Vec<_>>());
    let spanned = principal(between.tr_mul(&between)).into_iter().take(means.len() - 1).map(|(_, v)| &between * v);
    let axes = (0..D).map(|axis| DVector::from_fn(D, |j, _| f64::from(u8::from(j == axis))));
    let mut found: Vec<DVector<f64>> = Vec::new();
    for mut candidate in spanned.chain(axes) {
        for _ in 0..2 {
            found.iter().for_each(|row| candidate -= row * row.dot(&candidate));
        }
        if found.len() < D && candidate.norm() > 1e-6 {
            found.push(candidate.normalize());
        }
    }
    found.iter().map(|row| (row.transpose() * &whiten).iter().copied().collect()).collect()
}

#[test]
fn no_samples_are_refused() {
    assert!(lda(&Samples::default(), 4).unwrap_err().to_string().contains("none were collected"));
}
