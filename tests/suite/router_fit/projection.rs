//! LDA: white within classes, the classes' differences in the first rows, nothing lost of them.

use approx::assert_relative_eq;
use rstest::rstest;
use tinyonn::imaging::inputs::Samples;
use tinyonn::random;
use tinyonn::train::projection::lda;

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
#[case::all_rows_equal(&[[1.0, 2.0], [1.0, 2.0]])]
#[case::nothing_but_zero(&[[0.0, 0.0], [0.0, 0.0]])]
fn inputs_without_spread_make_finite_projections(#[case] rows: &[[f32; 2]]) {
    let samples = Samples { values: rows.concat(), tasks: vec![0, 1], documents: vec![0, 1] };
    let (projection, r) = lda(&samples, 2).unwrap();
    assert!(projection.iter().all(|p| p.is_finite()), "{projection:?}");
    let z = projected(&samples, &projection, r);
    let apart = (0..r).map(|j| (z[0][0][j] - z[1][0][j]).abs()).sum::<f64>();
    assert_eq!(apart > 0.1, rows[0] != rows[1], "{z:?}");
}

#[test]
fn no_samples_are_refused() {
    assert!(lda(&Samples::default(), 4).unwrap_err().to_string().contains("none were collected"));
}
