//! Discriminants against their definition: of each choice two Gaussians of one covariance, in two passes over all rows.

use approx::assert_relative_eq;
use candle_core::{Device, Tensor};
use rand::Rng as _;
use tinyonn::random;
use tinyonn::train::Discriminants;

use super::gaussians::solve;
use super::normal;

const D: usize = 4;

#[test]
fn scores_are_the_log_odds_of_two_gaussians_of_one_covariance() {
    // Class 3 does not pass; class 1 takes two choices; nobody takes choice 3.
    let taken = [vec![0], vec![0, 1], vec![2], vec![]];
    let mut rng = random::stream(11, "tests/discriminants");
    let (mut rows, mut classes) = (Vec::new(), Vec::new());
    for _ in 0..400 {
        let class = rng.random_range(0..4u32);
        let shared = normal(&mut rng);
        rows.push(
            (0..D).map(|j| (shared + 0.5 * normal(&mut rng) + f64::from(class) * j as f64) as f32).collect::<Vec<_>>(),
        );
        classes.push(class);
    }
    let x = Tensor::from_vec(rows.concat(), (400, D), &Device::Cpu).unwrap();
    let found = Discriminants::fit(&x, &classes, &taken, 4).unwrap();

    let passing: Vec<(&Vec<f32>, u32)> = rows.iter().zip(classes).filter(|(_, class)| *class < 3).collect();
    let mean = |of: &[&Vec<f32>]| -> Vec<f64> {
        (0..D).map(|j| of.iter().map(|x| f64::from(x[j])).sum::<f64>() / of.len() as f64).collect()
    };
    let n = passing.len() as f64;
    let all: Vec<&Vec<f32>> = passing.iter().map(|(x, _)| *x).collect();
    let centre = mean(&all);
    let variance =
        all.iter().flat_map(|x| (0..D).map(|j| (f64::from(x[j]) - centre[j]).powi(2))).sum::<f64>() / (n * D as f64);
    for choice in 0..3 {
        let side = |takes: bool| -> Vec<&Vec<f32>> {
            let own = passing.iter().filter(|(_, class)| taken[*class as usize].contains(&choice) == takes);
            own.map(|(x, _)| *x).collect()
        };
        let (inside, outside) = (side(true), side(false));
        let means = [mean(&inside), mean(&outside)];
        let mut within = vec![vec![0.0; D]; D];
        for (of, mean) in [(&inside, &means[0]), (&outside, &means[1])] {
            for x in of {
                let apart = |j: usize| f64::from(x[j]) - mean[j];
                (0..D).for_each(|i| (0..D).for_each(|j| within[i][j] += apart(i) * apart(j) / n));
            }
        }
        (0..D).for_each(|j| within[j][j] += 0.01 * variance);
        let apart: Vec<f64> = (0..D).map(|j| means[0][j] - means[1][j]).collect();
        let weight = solve(&within, &apart);
        let middle: f64 = (0..D).map(|j| weight[j] * (means[0][j] + means[1][j]) / 2.0).sum();
        let odds = (inside.len() as f64 + 1.0) / (outside.len() as f64 + 1.0);
        for (j, weight) in weight.iter().enumerate() {
            // Products of rows are added in f32.
            assert_relative_eq!(found.weight_cd[choice * D + j], *weight, max_relative = 1e-3, epsilon = 1e-3);
        }
        assert_relative_eq!(found.bias_c[choice], odds.ln() - middle, max_relative = 1e-3, epsilon = 1e-2);
    }
    assert!(found.bias_c[3] < -1e20 && found.weight_cd[3 * D..].iter().all(|w| *w == 0.0));
}

#[test]
fn a_choice_that_all_rows_take_has_a_constant_score_and_no_rows_say_nothing() {
    let x = Tensor::new(&[[1f32, 2.0], [0.5, -1.0]], &Device::Cpu).unwrap();
    let found = Discriminants::fit(&x, &[0, 0], &[vec![1]], 2).unwrap();
    assert!(found.weight_cd.iter().all(|w| *w == 0.0) && (found.bias_c[1] - 3f64.ln()).abs() < 1e-12);
    let none = Discriminants::fit(&x, &[0, 0], &[vec![]], 2).unwrap();
    assert!(none.weight_cd.iter().chain(&none.bias_c).all(|x| *x == 0.0));
}
