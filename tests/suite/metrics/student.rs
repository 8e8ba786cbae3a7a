//! Student's interval: its width by tables, its coverage by drawing.

use approx::assert_relative_eq;
use rstest::rstest;
use tinyonn::metrics::mean_interval;
use tinyonn::random;

use crate::router_fit::normal;

/// Half the width over s/√n is t: printed tables of the 97.5th percentile.
#[rstest]
#[case(2, 12.706)]
#[case(3, 4.303)]
#[case(5, 2.776)]
#[case(11, 2.228)]
#[case(12, 2.201)]
#[case(21, 2.086)]
#[case(61, 2.000)]
#[case(1001, 1.962)]
#[case(10_000_001, 1.960)]
fn its_width_is_students(#[case] count: usize, #[case] t: f64) {
    let values: Vec<f64> = (0..count).map(|at| 3.0 + at as f64).collect();
    let found = mean_interval(&values).unwrap();
    let mean = values.iter().sum::<f64>() / count as f64;
    let deviation = (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (count - 1) as f64).sqrt();
    let half = t * deviation / (count as f64).sqrt();
    assert_relative_eq!(found.mean, mean, max_relative = 1e-12);
    // Tables have three decimals.
    assert_relative_eq!(found.high - found.mean, half, max_relative = 3e-4);
    assert_relative_eq!(found.mean - found.low, half, max_relative = 3e-4);
}

/// Of 4000 samples of a normal distribution 95 % hold its mean: 3800 ± 14, so within 60.
#[rstest]
#[case(2)]
#[case(5)]
#[case(14)]
fn it_covers_what_it_says(#[case] count: usize) {
    let mut rng = random::stream(count as u64, "student");
    let holds = |_: &usize| {
        let sample: Vec<f64> = (0..count).map(|_| 1.0 + 2.0 * normal(&mut rng)).collect();
        mean_interval(&sample).is_some_and(|found| found.low <= 1.0 && 1.0 <= found.high)
    };
    let covered = (0..4000).filter(holds).count();
    assert!(covered.abs_diff(3800) < 60, "{covered}");
}

#[test]
fn of_one_or_none_there_is_none() {
    assert!(mean_interval(&[]).is_none() && mean_interval(&[2.0]).is_none());
    let same = mean_interval(&[2.0, 2.0]).unwrap();
    assert_eq!((same.low, same.high), (2.0, 2.0));
}
