//! What the decompositions promise, of matrices of any size.

use approx::assert_abs_diff_eq;
use proptest::prelude::*;
use rstest::rstest;
use tinyonn_linalg::{orthonormal_rows, product, product_transposed, symmetric_eigen};

fn transposed(a: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|j| (0..rows).map(move |i| a[i * columns + j])).collect()
}

/// f64 carries 1e-16 a term; a hundred terms of size one.
const CLOSE: f64 = 1e-12;

fn assert_orthonormal(rows: &[f64], r: usize, d: usize) {
    for (at, value) in product(rows, &transposed(rows, r, d), (r, d, r)).into_iter().enumerate() {
        assert_abs_diff_eq!(value, f64::from(u8::from(at / r == at % r)), epsilon = CLOSE);
    }
}

proptest! {
    #[test]
    fn a_product_is_the_sum_of_its_terms(m in 1usize..6, k in 1usize..6, n in 1usize..6, values in prop::collection::vec(-1.0f64..1.0, 72)) {
        let (a, b) = (&values[..m * k], &values[36..36 + k * n]);
        let c = product(a, b, (m, k, n));
        for (at, value) in c.into_iter().enumerate() {
            let (i, j) = (at / n, at % n);
            let sum: f64 = (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
            assert_abs_diff_eq!(value, sum, epsilon = CLOSE);
        }
        let turned = product_transposed(a, &transposed(b, k, n), (m, k, n));
        for (x, y) in turned.iter().zip(product(a, b, (m, k, n))) {
            assert_abs_diff_eq!(*x, y, epsilon = CLOSE);
        }
    }

    #[test]
    fn eigenvectors_put_the_matrix_together_again(n in 1usize..40, values in prop::collection::vec(-1.0f64..1.0, 1600)) {
        let matrix: Vec<f64> = (0..n * n).map(|at| values[at] + values[at % n * n + at / n]).collect();
        let eigen = symmetric_eigen(&matrix, n).unwrap();
        prop_assert!(eigen.values.is_sorted_by(|a, b| a >= b));
        assert_orthonormal(&eigen.vectors, n, n);
        let scaled: Vec<f64> =
            eigen.vectors.chunks(n).zip(&eigen.values).flat_map(|(row, value)| row.iter().map(move |x| x * value)).collect();
        let again = product(&transposed(&eigen.vectors, n, n), &scaled, (n, n, n));
        for (a, b) in again.iter().zip(&matrix) {
            assert_abs_diff_eq!(*a, *b, epsilon = 10.0 * CLOSE);
        }
        for row in eigen.vectors.chunks(n) {
            let largest = row.iter().fold(0f64, |most, x| if x.abs() > most.abs() { *x } else { most });
            prop_assert!(largest > 0.0);
        }
    }

    #[test]
    fn rows_are_orthonormal_and_span_the_same(r in 1usize..8, more in 0usize..8, values in prop::collection::vec(-1.0f64..1.0, 120)) {
        let d = r + more;
        let a = &values[..r * d];
        let q = orthonormal_rows(a, r, d);
        assert_orthonormal(&q, r, d);
        // What of a row lies along the basis is the row.
        let shares = product(a, &transposed(&q, r, d), (r, d, r));
        for (x, y) in product(&shares, &q, (r, r, d)).iter().zip(a) {
            assert_abs_diff_eq!(*x, *y, epsilon = CLOSE);
        }
    }
}

#[rstest]
#[case(f64::NAN)]
#[case(f64::INFINITY)]
fn what_is_no_number_has_no_eigenvectors(#[case] value: f64) {
    assert!(symmetric_eigen(&[1.0, value, value, 1.0], 2).is_none());
}
