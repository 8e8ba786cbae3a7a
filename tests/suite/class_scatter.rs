//! How rows scatter by class: against all rows held in f64, whatever the pieces they come in.

use approx::assert_abs_diff_eq;
use candle_core::{Device, Tensor};
use proptest::prelude::*;
use tinyonn::ops::{ClassScatter, Weigh};

use crate::gradients::inputs;

fn rows(seed: u64, count: usize, d: usize, offset: f32) -> Vec<f32> {
    let drawn = inputs(seed, &[&[count, d]]).remove(0).flatten_all().unwrap().to_vec1::<f64>().unwrap();
    // Columns of unlike spread, around unlike means.
    drawn.into_iter().enumerate().map(|(at, x)| x as f32 * (1 + at % d) as f32 + offset * (at % 3) as f32).collect()
}

fn mean(rows: &[&[f32]], d: usize) -> Vec<f64> {
    (0..d).map(|j| rows.iter().map(|row| f64::from(row[j])).sum::<f64>() / rows.len() as f64).collect()
}

/// Σ (x − x̄)(x − x̄)ᵀ, `[d, d]`.
fn centred(rows: &[&[f32]], d: usize) -> Vec<f64> {
    let mean = mean(rows, d);
    let apart = |row: &[f32], j: usize| f64::from(row[j]) - mean[j];
    let entry = |at: usize| rows.iter().map(|row| apart(row, at / d) * apart(row, at % d)).sum::<f64>();
    (0..d * d).map(entry).collect()
}

proptest! {
    #[test]
    fn it_is_that_of_all_rows_in_f64(
        seed in any::<u64>(),
        counts in prop::collection::vec(0usize..70, 1..4),
        piece in 1usize..40,
        d in 1usize..9,
        offset in prop::sample::select(vec![0f32, 30.0, -1000.0]),
    ) {
        prop_assume!(counts.iter().sum::<usize>() > 0);
        let of_class: Vec<Vec<f32>> = counts.iter().enumerate()
            .map(|(class, count)| rows(seed ^ class as u64, *count, d, offset + class as f32)).collect();
        for weigh in [Weigh::Classes, Weigh::Rows] {
            let mut scatter = ClassScatter::new(weigh);
            for (class, values) in of_class.iter().enumerate() {
                for piece in values.chunks(piece * d) {
                    let x = Tensor::from_slice(piece, (piece.len() / d, d), &Device::Cpu).unwrap();
                    scatter.push(&x, class).unwrap();
                }
            }
            scatter.close().unwrap();
            prop_assert_eq!(scatter.rows() as usize, counts.iter().sum::<usize>());
            let seen: Vec<Vec<&[f32]>> =
                of_class.iter().filter(|rows| !rows.is_empty()).map(|rows| rows.chunks(d).collect()).collect();
            let expected: Vec<f64> = match weigh {
                Weigh::Rows => centred(&seen.concat(), d),
                Weigh::Classes => {
                    let each: Vec<Vec<f64>> = seen.iter()
                        .map(|rows| centred(rows, d).into_iter().map(|x| x / rows.len() as f64).collect()).collect();
                    (0..d * d).map(|at| each.iter().map(|m| m[at]).sum::<f64>() / each.len() as f64).collect()
                }
            };
            // f32 holds what lies 1000 from zero to 6e-5; counted from the first rows, products of some hundred of them keep six digits.
            let largest = expected.iter().fold(1.0, |most: f64, x| most.max(x.abs()));
            for (found, expected) in scatter.matrix().into_iter().zip(expected) {
                assert_abs_diff_eq!(found, expected, epsilon = 2e-4 * largest);
            }
            for (class, values) in of_class.iter().enumerate() {
                let rows: Vec<&[f32]> = values.chunks(d).collect();
                match scatter.mean(class) {
                    None => prop_assert!(rows.is_empty()),
                    Some(found) => {
                        for (a, b) in found.iter().zip(mean(&rows, d)) {
                            assert_abs_diff_eq!(*a, b, epsilon = 1e-4 * (1.0 + b.abs()));
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_class_that_was_closed_and_rows_of_another_width_are_refused() {
    let row = |d: usize| Tensor::ones((1, d), candle_core::DType::F32, &Device::Cpu).unwrap();
    let mut scatter = ClassScatter::new(Weigh::Classes);
    scatter.push(&row(3), 0).unwrap();
    scatter.push(&row(3), 2).unwrap();
    assert!(scatter.push(&row(3), 0).unwrap_err().to_string().contains("closed"));
    assert!(scatter.push(&row(4), 2).unwrap_err().to_string().contains("rows of 4"));
}
