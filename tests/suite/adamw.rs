//! AdamW against a scalar loop in f64: both insides of the operation, lines that skip, clipping over all variables.

use approx::assert_relative_eq;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use rstest::rstest;
use tinyonn::ops::{self, AdamwStep, adamw};
use tinyonn::train::optimizer::Lines;
use tinyonn::train::{AdamW, AdamwConfig};

use crate::gradients::inputs;

const CONFIG: AdamwConfig =
    AdamwConfig { rate: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.1, clip: f64::INFINITY };

fn step(scale: f64) -> AdamwStep {
    let AdamwConfig { rate, beta1, beta2, eps, decay, .. } = CONFIG;
    AdamwStep { rate, beta1, beta2, eps, decay, scale }
}

/// θ, m, v and t of one number.
#[derive(Clone, Copy, Debug)]
struct Scalar {
    p: f64,
    m: f64,
    v: f64,
    t: i32,
}

impl Scalar {
    /// Loshchilov and Hutter's algorithm 2, line by line.
    fn step(&mut self, g: f64, decay: f64) {
        let c = CONFIG;
        self.t += 1;
        self.m = c.beta1 * self.m + (1.0 - c.beta1) * g;
        self.v = c.beta2 * self.v + (1.0 - c.beta2) * g * g;
        let (m, v) = (self.m / (1.0 - c.beta1.powi(self.t)), self.v / (1.0 - c.beta2.powi(self.t)));
        self.p = self.p - c.rate * m / (v.sqrt() + c.eps) - c.rate * decay * self.p;
    }
}

/// A matrix's values by row.
fn values(x: &Tensor) -> Vec<Vec<f64>> {
    x.to_dtype(DType::F64).unwrap().to_vec2().unwrap()
}

/// Which lines learn in a step: all in the first, then two in three.
fn learns(line: usize, step: usize) -> bool {
    step == 0 || !(line + step).is_multiple_of(3)
}

/// f64 takes the plain inside, as do columns; f32 rows and whole tensors the fused one.
#[rstest]
#[case::fused_whole(DType::F32, None)]
#[case::fused_rows(DType::F32, Some(0))]
#[case::plain_columns(DType::F32, Some(1))]
#[case::plain_whole(DType::F64, None)]
#[case::plain_rows(DType::F64, Some(0))]
#[case::plain_columns_f64(DType::F64, Some(1))]
fn ten_steps_equal_the_scalar_algorithm(#[case] dtype: DType, #[case] axis: Option<usize>) {
    let (rows, columns) = (9, 7);
    let xs = inputs(1, &[&[9usize, 7][..]; 11]);
    let mut state: [Tensor; 3] = [
        xs[0].to_dtype(dtype).unwrap(),
        xs[0].zeros_like().unwrap().to_dtype(dtype).unwrap(),
        xs[0].zeros_like().unwrap().to_dtype(dtype).unwrap(),
    ];
    let start = values(&state[0]);
    let mut expected: Vec<Vec<Scalar>> =
        start.iter().map(|row| row.iter().map(|p| Scalar { p: *p, m: 0.0, v: 0.0, t: 0 }).collect()).collect();
    let lines = axis.map_or(1, |axis| [rows, columns][axis]);
    let mut counts = vec![0u64; lines];
    for (at, g) in xs[1..].iter().enumerate() {
        let g = g.to_dtype(dtype).unwrap();
        let learning: Vec<bool> = (0..lines).map(|line| axis.is_none() || learns(line, at)).collect();
        counts.iter_mut().zip(&learning).for_each(|(count, learns)| *count += u64::from(*learns));
        let now: Vec<u64> =
            counts.iter().zip(&learning).map(|(count, learns)| if *learns { *count } else { 0 }).collect();
        let [p, m, v] = &state;
        let next = adamw(&step(0.5), [p, &g, m, v], &now, axis.unwrap_or(0)).unwrap();
        for (i, row) in values(&g).iter().enumerate() {
            for (j, g) in row.iter().enumerate() {
                let line = axis.map_or(0, |axis| [i, j][axis]);
                if learning[line] {
                    expected[i][j].step(0.5 * g, CONFIG.decay);
                } else {
                    // Not a bit of a line that skips moves.
                    for (before, after) in state.iter().zip(&next) {
                        assert_eq!(values(before)[i][j].to_bits(), values(after)[i][j].to_bits());
                    }
                }
            }
        }
        state = next;
    }
    // f32: ten updates of 1e-2 to values of order 1, each rounded to 6e-8. f64: 1e-16.
    let tolerance = if dtype == DType::F64 { 1e-12 } else { 1e-6 };
    let found = state.each_ref().map(values);
    for (i, row) in expected.iter().enumerate() {
        for (j, scalar) in row.iter().enumerate() {
            for (found, expected) in found.iter().zip([scalar.p, scalar.m, scalar.v]) {
                assert_relative_eq!(found[i][j], expected, epsilon = tolerance, max_relative = tolerance);
            }
        }
    }
}

/// Blocks that threads share, and lines: the fused inside agrees with the plain one on large tensors too.
#[test]
fn fused_and_plain_agree_on_many_blocks() {
    let xs: Vec<Tensor> =
        inputs(2, &[&[300, 130], &[300, 130], &[300, 130]]).iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    let v = xs[2].sqr().unwrap();
    let counts: Vec<u64> = (0..300).map(|row| row % 5).collect();
    let rows = adamw(&step(1.0), [&xs[0], &xs[1], &xs[2], &v], &counts, 0).unwrap();
    let turned = [&xs[0], &xs[1], &xs[2], &v].map(|x| x.t().unwrap().contiguous().unwrap());
    let columns = adamw(&step(1.0), turned.each_ref(), &counts, 1).unwrap();
    for (rows, columns) in rows.iter().zip(&columns) {
        for (a, b) in values(rows).iter().flatten().zip(values(&columns.t().unwrap()).iter().flatten()) {
            assert_relative_eq!(a, b, epsilon = 1e-6, max_relative = 1e-6);
        }
    }
    let whole = adamw(&step(1.0), [&xs[0], &xs[1], &xs[2], &v], &[3], 0).unwrap();
    let each = adamw(&step(1.0), [&xs[0], &xs[1], &xs[2], &v], &[3; 300], 0).unwrap();
    assert!(whole.iter().zip(&each).all(|(a, b)| values(a) == values(b)));
}

#[test]
fn step_counts_must_be_of_the_axis() {
    let x = Tensor::zeros((3, 4), DType::F32, &Device::Cpu).unwrap();
    let error = adamw(&step(1.0), [&x, &x, &x, &x], &[1; 4], 0).unwrap_err().to_string();
    assert!(error.contains("4 step counts for axis 0"), "{error}");
}

/// The gradients of Σ g ⊙ x, which are g.
fn gradients(vars: &[(String, Var)], values: &[Tensor]) -> GradStore {
    let terms: Vec<Tensor> =
        vars.iter().zip(values).map(|((_, x), g)| (x.as_tensor() * g).unwrap().sum_all().unwrap()).collect();
    ops::backward(&Tensor::stack(&terms, 0).unwrap().sum_all().unwrap()).unwrap()
}

fn variables(seed: u64) -> Vec<(String, Var)> {
    let values = inputs(seed, &[&[4, 3], &[5]]);
    let var =
        |(name, x): (&str, &Tensor)| (name.to_owned(), Var::from_tensor(&x.to_dtype(DType::F32).unwrap()).unwrap());
    ["matrix", "vector"].into_iter().zip(&values).map(var).collect()
}

fn flat(vars: &[(String, Var)]) -> Vec<f32> {
    vars.iter().flat_map(|(_, var)| var.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

#[test]
fn one_norm_over_all_variables_is_clipped_and_vectors_do_not_decay() {
    let raw: Vec<Tensor> = inputs(4, &[&[4, 3], &[5]]).iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    let norm = raw.iter().map(|g| g.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sum::<f32>().sqrt();
    let scaled: Vec<Tensor> = raw.iter().map(|g| (g * f64::from(0.25 / norm)).unwrap()).collect();
    let after = |config: AdamwConfig, gradient: &[Tensor], steps: usize| {
        let vars = variables(3);
        let mut optimizer = AdamW::new(config);
        let norms: Vec<f64> =
            (0..steps).map(|_| optimizer.step(&vars, &gradients(&vars, gradient), |_| None).unwrap()).collect();
        (norms[0], flat(&vars))
    };
    // A large ε keeps the update proportional to the gradient, or its scale would cancel.
    let config = AdamwConfig { eps: 1.0, ..CONFIG };
    let clipped = after(AdamwConfig { clip: 0.25, ..config }, &raw, 3);
    let expected = after(config, &scaled, 3);
    assert_relative_eq!(clipped.0, f64::from(norm), max_relative = 1e-6);
    assert_relative_eq!(expected.0, 0.25, max_relative = 1e-6);
    clipped.1.iter().zip(&expected.1).for_each(|(a, b)| assert_relative_eq!(a, b, epsilon = 1e-6));
    assert!(after(config, &raw, 3).1.iter().zip(&expected.1).any(|(a, b)| (a - b).abs() > 1e-3));
    // Below the limit nothing is scaled.
    assert_eq!(after(AdamwConfig { clip: 0.3, ..config }, &scaled, 3), expected);
    // Without a gradient only decay is left, of the matrix alone: (1 − η λ) θ.
    let still: Vec<Tensor> = raw.iter().map(|g| g.zeros_like().unwrap()).collect();
    let (before, after) = (flat(&variables(3)), after(config, &still, 1).1);
    for (at, (before, after)) in before.iter().zip(&after).enumerate() {
        let factor = if at < 12 { 1.0 - 1e-2 * 0.1 } else { 1.0 };
        assert_relative_eq!(*after, before * factor, max_relative = 1e-6);
    }
}

/// A line that sat out a step is, bit for bit, where a run that never had that step left it: momentum, variance and step count too.
#[rstest]
#[case(0)]
#[case(1)]
fn a_skipped_step_never_was(#[case] axis: usize) {
    let first = variables(5).remove(0);
    let count = first.1.dims()[axis];
    let raw: Vec<Tensor> = inputs(6, &[&[4usize, 3][..]; 6]).iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    // Line 1 learns in the even steps.
    let run = |which: &[usize]| {
        let vars = vec![variables(5).remove(0)];
        let mut optimizer = AdamW::new(CONFIG);
        for at in which {
            let learn = (0..count).map(|line| line != 1 || at % 2 == 0).collect();
            let lines = |_: &str| Some(Lines { axis, learn: Vec::clone(&learn) });
            optimizer.step(&vars, &gradients(&vars, &raw[*at..=*at]), lines).unwrap();
        }
        values(&if axis == 0 { vars[0].1.as_tensor().clone() } else { vars[0].1.t().unwrap() })
    };
    let (all, even) = (run(&[0, 1, 2, 3, 4]), run(&[0, 2, 4]));
    assert_eq!(all[1], even[1]);
    assert_ne!(all[0], even[0]);
    assert_ne!(all[1], run(&[0, 2])[1]);
}

#[test]
fn variables_without_a_gradient_stay() {
    let vars = variables(7);
    let before = flat(&vars);
    let g = inputs(8, &[&[4, 3]])[0].to_dtype(DType::F32).unwrap();
    AdamW::new(CONFIG).step(&vars, &gradients(&vars[..1], &[g]), |_| None).unwrap();
    assert_eq!(before[12..], flat(&vars)[12..]);
    assert!(before[..12].iter().zip(flat(&vars)).all(|(a, b)| *a != b));
}
