//! Gaussians in closed form against the formulas, in two passes over all rows.

use approx::assert_relative_eq;
use proptest::prelude::*;
use tinyonn::ops::ClassSums;
use tinyonn::random;
use tinyonn::train::gda::{Gaussians, fit};

use super::normal;

/// Rows of each task; the last dimension is constant.
fn rows(seed: u64, counts: &[usize], r: usize) -> Vec<Vec<Vec<f32>>> {
    let mut rng = random::stream(seed, "tests/gda");
    let mut row = |task: usize| -> Vec<f32> {
        (0..r)
            .map(|j| if j + 1 == r { 3.0 } else { (normal(&mut rng) * (1 + j) as f64 + (task * j) as f64) as f32 })
            .collect()
    };
    counts.iter().enumerate().map(|(task, count)| (0..*count).map(|_| row(task)).collect()).collect()
}

fn sums(rows: &[Vec<Vec<f32>>], r: usize) -> ClassSums {
    let mut sums = ClassSums::zero(rows.len(), r);
    for (task, rows) in rows.iter().enumerate() {
        sums.push_rows(&rows.concat(), &vec![task as u32; rows.len()]).unwrap();
    }
    sums
}

/// Mean and variance of one dimension.
fn moments(rows: &[&Vec<f32>], j: usize) -> (f64, f64) {
    let n = rows.len() as f64;
    let mean = rows.iter().map(|z| f64::from(z[j])).sum::<f64>() / n;
    (mean, rows.iter().map(|z| (f64::from(z[j]) - mean).powi(2)).sum::<f64>() / n)
}

fn by_hand(rows: &[Vec<Vec<f32>>], labels: &[Vec<usize>], choices: usize, r: usize) -> Gaussians {
    let taking = |choice: Option<usize>| -> Vec<&Vec<f32>> {
        let tasks =
            rows.iter().zip(labels).filter(|(_, taken)| choice.map_or(!taken.is_empty(), |c| taken.contains(&c)));
        tasks.flat_map(|(rows, _)| rows).collect()
    };
    let everyone = taking(None);
    let pooled: Vec<(f64, f64)> = (0..r).map(|j| moments(&everyone, j)).collect();
    let floor = 1e-6 * pooled.iter().map(|(_, variance)| variance).sum::<f64>() / r as f64;
    // A single row has no spread.
    let floor = if floor > 0.0 { floor } else { 1.0 };
    let total: usize = (0..choices).map(|c| taking(Some(c)).len()).sum();
    let mut fitted = Gaussians { mean: vec![], log_variance: vec![], log_prior: vec![] };
    for choice in 0..choices {
        let own = taking(Some(choice));
        let n = own.len() as f64;
        let of = |j: usize| if own.is_empty() { pooled[j] } else { moments(&own, j) };
        let variance =
            |j: usize| if own.is_empty() { pooled[j].1 } else { (n * of(j).1 + 32.0 * pooled[j].1) / (n + 32.0) };
        fitted.mean.push((0..r).map(|j| of(j).0).collect());
        fitted.log_variance.push((0..r).map(|j| variance(j).max(floor).ln()).collect());
        fitted.log_prior.push(((n + 1.0) / (total + choices) as f64).ln());
    }
    fitted
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn parameters_are_the_formulas(
        seed in any::<u64>(),
        counts in prop::collection::vec(1usize..90, 2..5),
        choices in 2usize..5,
        width in 2usize..5,
    ) {
        let rows = rows(seed, &counts, width);
        // Task t takes choice t and, if it is odd, choice 0 too; task 0 may pass by another router.
        let labels: Vec<Vec<usize>> = (0..counts.len())
            .map(|t| if t == 0 && seed % 2 == 0 { vec![] } else if t % 2 == 1 && t % choices != 0 { vec![0, t % choices] } else { vec![t % choices] })
            .collect();
        let (found, expected) = (fit(&sums(&rows, width), &labels, choices), by_hand(&rows, &labels, choices, width));
        for choice in 0..choices {
            let labelled = labels.iter().any(|taken| taken.contains(&choice));
            for j in 0..width {
                // Values of order 10 in f64; variances as differences of squares lose a few of sixteen digits, and the constant
                // dimension sits on its floor exactly.
                assert_relative_eq!(found.mean[choice][j], expected.mean[choice][j], epsilon = 1e-10);
                assert_relative_eq!(found.log_variance[choice][j], expected.log_variance[choice][j], epsilon = 1e-8);
            }
            if labelled {
                assert_relative_eq!(found.log_prior[choice], expected.log_prior[choice], epsilon = 1e-12);
            } else {
                // Below any log-density that f32 inputs of ordinary size can reach, and finite: its product with 0 is 0.
                prop_assert!(found.log_prior[choice] < -1e20 && (found.log_prior[choice] as f32).is_finite());
            }
        }
        let all_labelled = (0..choices).all(|c| labels.iter().any(|taken| taken.contains(&c)));
        if all_labelled {
            assert_relative_eq!(found.log_prior.iter().map(|p| p.exp()).sum::<f64>(), 1.0, epsilon = 1e-12);
        }
    }
}

#[test]
fn a_router_nobody_passes_is_uniform_and_rows_without_spread_are_finite() {
    let nobody = fit(&sums(&rows(0, &[5, 5], 3), 3), &[vec![], vec![]], 4);
    assert!(nobody.log_prior.iter().all(|p| (p - 0.25f64.ln()).abs() < 1e-12));
    assert!(nobody.mean.iter().flatten().chain(nobody.log_variance.iter().flatten()).all(|x| *x == 0.0));
    let still = vec![vec![vec![2.0f32, -1.0]; 9]; 2];
    let fitted = fit(&sums(&still, 2), &[vec![0], vec![1]], 2);
    let parameters = fitted.mean.iter().chain(&fitted.log_variance).flatten().chain(&fitted.log_prior);
    assert!(parameters.clone().all(|x| x.abs() < 50.0), "{fitted:?}");
}
