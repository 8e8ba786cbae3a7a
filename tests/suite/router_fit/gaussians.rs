//! Gaussians in closed form against the formulas, in two passes over all rows.

use approx::assert_relative_eq;
use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;
use tinyonn::checkpoint::ParamStore;
use tinyonn::moe::{Covariance, GaussianMoeRouter, GaussianSpec, LinearRouter, Project, Router, RouterShape};
use tinyonn::ops::ClassSums;
use tinyonn::random;
use tinyonn::train::PooledCovariance;
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

/// Σ within choices, shrunk, in two passes over all rows.
fn within(rows: &[Vec<Vec<f32>>], labels: &[Vec<usize>], choices: usize, r: usize) -> Vec<Vec<f64>> {
    let taking = |choice: usize| {
        rows.iter().zip(labels).filter(move |(_, taken)| taken.contains(&choice)).flat_map(|(rows, _)| rows)
    };
    let everyone: Vec<&Vec<f32>> =
        rows.iter().zip(labels).filter(|(_, taken)| !taken.is_empty()).flat_map(|(rows, _)| rows).collect();
    let (mut sum, mut count) = (vec![vec![0.0; r]; r], 0.0);
    for choice in 0..choices {
        let own: Vec<&Vec<f32>> = taking(choice).collect();
        let mean: Vec<f64> = (0..r).map(|j| moments(&own, j).0).collect();
        for z in &own {
            let apart = |j: usize| f64::from(z[j]) - mean[j];
            (0..r).for_each(|i| (0..r).for_each(|j| sum[i][j] += apart(i) * apart(j)));
        }
        count += own.len() as f64;
    }
    (0..r).for_each(|j| sum[j][j] += 32.0 * moments(&everyone, j).1);
    sum.iter_mut().flatten().for_each(|x| *x /= count + 32.0);
    sum
}

/// X of A X = B by elimination, A `[n, n]` positive definite.
pub(super) fn solve(a: &[Vec<f64>], b: &[f64]) -> Vec<f64> {
    let n = b.len();
    let mut rows: Vec<Vec<f64>> = a.iter().zip(b).map(|(row, b)| row.iter().copied().chain([*b]).collect()).collect();
    for at in 0..n {
        let pivot = rows[at].clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(other, _)| *other != at) {
            let factor = row[at] / pivot[at];
            row.iter_mut().zip(&pivot).for_each(|(x, p)| *x -= factor * p);
        }
    }
    (0..n).map(|at| rows[at][n] / rows[at][at]).collect()
}

/// Choices of one Σ are compared linearly: such a router says what a linear one of W_c = Σ⁻¹ μ_c and b_c = log π_c − ½ μ_cᵀ Σ⁻¹ μ_c says, but for what all choices share.
#[test]
fn one_full_covariance_is_a_linear_router() {
    let (r, choices, counts) = (6, 3, [300, 200, 250]);
    // Dimensions that vary together: each is mixed into the next.
    let mut rows = rows(5, &counts, r + 1);
    for z in rows.iter_mut().flatten() {
        z.truncate(r);
        (1..r).for_each(|j| z[j] = 0.5 * z[j] + 0.8 * z[j - 1]);
    }
    let labels: Vec<Vec<usize>> = vec![vec![0], vec![1, 2], vec![2]];
    let fitted = fit(&sums(&rows, r), &labels, choices);
    let flat = Tensor::from_vec(rows.iter().flatten().flatten().copied().collect(), (750, r), &Device::Cpu).unwrap();
    let classes: Vec<u32> = (0..3u32).flat_map(|class| vec![class; counts[class as usize]]).collect();
    let found = PooledCovariance::fit(&flat, &classes, &labels, &fitted.mean).unwrap();

    let sigma = within(&rows, &labels, choices, r);
    let whole = |i: usize, j: usize| if i == j { 1.0 } else { found.decorrelation[i * r + j] };
    for i in 0..r {
        for j in 0..r {
            let entry = |a: usize| (0..r).map(move |b| (a, b));
            let sum: f64 = (0..r).flat_map(entry).map(|(a, b)| whole(i, a) * sigma[a][b] * whole(j, b)).sum();
            let expected = if i == j { found.log_variance[i].exp() } else { 0.0 };
            // f64 throughout, of variances of order 10; rows are read in f32.
            assert_relative_eq!(sum, expected, epsilon = 1e-9);
            assert!(i >= j || found.decorrelation[i * r + j] == 0.0);
        }
    }

    let shape = RouterShape { hidden: r, parents: 1, choices };
    let form = GaussianSpec { covariance: Covariance::SharedFull, project: Project::Identity, ..GaussianSpec::PLAIN };
    let f32s = |values: Vec<f64>, of: &[usize]| {
        Tensor::from_vec(values.iter().map(|x| *x as f32).collect::<Vec<_>>(), of, &Device::Cpu).unwrap()
    };
    let gaussian =
        ParamStore::initialise(&Device::Cpu, 0, |vb| GaussianMoeRouter::with_form(shape, &form, &vb).map(drop));
    let gaussian = gaussian.unwrap();
    for (name, value) in [
        ("mean", f32s(fitted.mean.concat(), &[1, choices, r])),
        ("log_variance", f32s(found.log_variance.clone(), &[1, 1, r])),
        ("decorrelation", f32s(found.decorrelation.clone(), &[1, r, r])),
        ("log_prior", f32s(fitted.log_prior.clone(), &[1, choices])),
    ] {
        gaussian.set(name, &value).unwrap();
    }
    let linear = ParamStore::initialise(&Device::Cpu, 0, |vb| LinearRouter::new(shape, &vb).map(drop)).unwrap();
    let weights: Vec<Vec<f64>> = fitted.mean.iter().map(|mean| solve(&sigma, mean)).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let bias = (0..choices).map(|c| fitted.log_prior[c] - 0.5 * dot(&weights[c], &fitted.mean[c])).collect();
    linear.set("weight", &f32s(weights.concat(), &[choices, r])).unwrap();
    linear.set("bias", &f32s(bias, &[choices])).unwrap();

    let builder = |store: &ParamStore| store.builder(DType::F32, |_| false);
    let by_density = GaussianMoeRouter::with_form(shape, &form, &builder(&gaussian)).unwrap().logits(&flat).unwrap();
    let by_line = LinearRouter::new(shape, &builder(&linear)).unwrap().logits(&flat).unwrap();
    let siblings = |logits: Tensor| {
        let p = candle_nn::ops::softmax(&logits, 2).unwrap();
        p.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    for (a, b) in siblings(by_density).into_iter().zip(siblings(by_line)) {
        assert_relative_eq!(a, b, epsilon = 1e-5);
    }
}
