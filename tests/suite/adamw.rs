//! AdamW against a scalar loop in f64: both insides of the operation, lines that skip, clipping over all variables, and what a gradient that
//! is no number leaves as it was.

use approx::assert_relative_eq;
use candle_core::{DType, Device, Tensor, Var};
use rstest::rstest;
use tinyonn::ops::{AdamwStep, Lines, adamw};
use tinyonn::train::{AdamwConfig, Slot, TrainState};

use crate::gradients::inputs;

const CONFIG: AdamwConfig =
    AdamwConfig { rate: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.1, clip: f64::INFINITY };

fn step() -> AdamwStep {
    let AdamwConfig { rate, beta1, beta2, eps, decay, .. } = CONFIG;
    AdamwStep { rate, beta1, beta2, eps, decay }
}

fn list<T: candle_core::WithDType>(values: &[T]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

/// θ, m and v after an update of copies of them: `counts` is t of each line (or of the whole), 0 of one that sits out.
fn updated([p, g, m, v]: [&Tensor; 4], counts: &[u64], axis: usize, scale: f64) -> [Tensor; 3] {
    let own = [p, m, v].map(|x| x.copy().unwrap());
    let learn: Vec<u8> = counts.iter().map(|count| u8::from(*count > 0)).collect();
    let counts: Vec<f64> = counts.iter().map(|count| *count as f64).collect();
    let lines = Lines { axis, learn: list(&learn) };
    adamw(&step(), [&own[0], g, &own[1], &own[2]], &list(&counts), Some(&lines), &list(&[scale])).unwrap();
    own
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

/// f64 takes the plain inside, f32 the fused one.
#[rstest]
#[case::fused_whole(DType::F32, None)]
#[case::fused_rows(DType::F32, Some(0))]
#[case::fused_columns(DType::F32, Some(1))]
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
        let next = updated([p, &g, m, v], &now, axis.unwrap_or(0), 0.5);
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

/// Blocks that threads share, lines by rows and by columns: all insides agree on large tensors too.
#[test]
fn rows_columns_and_wholes_agree_on_many_blocks() {
    let xs: Vec<Tensor> =
        inputs(2, &[&[300, 130], &[300, 130], &[300, 130]]).iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    let v = xs[2].sqr().unwrap();
    let counts: Vec<u64> = (0..300).map(|row| row % 5).collect();
    let rows = updated([&xs[0], &xs[1], &xs[2], &v], &counts, 0, 1.0);
    let turned = [&xs[0], &xs[1], &xs[2], &v].map(|x| x.t().unwrap().contiguous().unwrap());
    let columns = updated(turned.each_ref(), &counts, 1, 1.0);
    let wide = turned.each_ref().map(|x| x.to_dtype(DType::F64).unwrap());
    let plain = updated(wide.each_ref(), &counts, 1, 1.0);
    for ((rows, columns), plain) in rows.iter().zip(&columns).zip(&plain) {
        let by_row = |x: &Tensor| values(&x.t().unwrap()).concat();
        for ((a, b), c) in values(rows).concat().iter().zip(by_row(columns)).zip(by_row(plain)) {
            assert_eq!(*a, b);
            assert_relative_eq!(b, c, epsilon = 1e-6, max_relative = 1e-6);
        }
    }
    let whole = updated([&xs[0], &xs[1], &xs[2], &v], &[3], 0, 1.0);
    let each = updated([&xs[0], &xs[1], &xs[2], &v], &[3; 300], 0, 1.0);
    assert!(whole.iter().zip(&each).all(|(a, b)| values(a) == values(b)));
    // Without lines everything learns.
    let own = [&xs[0], &xs[2], &v].map(|x| x.copy().unwrap());
    adamw(&step(), [&own[0], &xs[1], &own[1], &own[2]], &list(&[3f64]), None, &list(&[1f64])).unwrap();
    assert!(whole.iter().zip(&own).all(|(a, b)| values(a) == values(b)));
}

#[test]
fn step_counts_must_be_of_the_axis() {
    let x = Tensor::zeros((3, 4), DType::F32, &Device::Cpu).unwrap();
    let refused = |counts: usize, learn: usize| {
        let lines = Lines { axis: 0, learn: list(&vec![1u8; learn]) };
        let counts = list(&vec![1f64; counts]);
        adamw(&step(), [&x, &x, &x, &x], &counts, Some(&lines), &list(&[1f64])).unwrap_err().to_string()
    };
    assert!(refused(4, 4).contains("4 step counts and 4 marks for axis 0"));
    assert!(refused(1, 3).contains("1 step counts and 3 marks for axis 0"));
}

/// A training of these weights.
fn training(vars: &[(String, Var)]) -> TrainState {
    TrainState::new(vars.iter().map(|(name, var)| Slot::new(name.clone(), 0, var.clone())).collect()).unwrap()
}

/// A step by given gradients of the first of them; the norm before clipping.
fn take(state: &mut TrainState, vars: &[(String, Var)], gradients: &[Tensor], config: &AdamwConfig) -> f64 {
    for ((_, var), gradient) in vars.iter().zip(gradients) {
        state.grads.add_with(var, || Ok(gradient.clone())).unwrap();
    }
    state.update(config, config.rate).unwrap().to_vec1::<f64>().unwrap()[0]
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
        let mut state = training(&vars);
        let norms: Vec<f64> = (0..steps).map(|_| take(&mut state, &vars, gradient, &config)).collect();
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
        let mut state = training(&vars);
        for at in which {
            let learn: Vec<u8> = (0..count).map(|line| u8::from(line != 1 || at % 2 == 0)).collect();
            state.grads.restrict(&vars[0].1, axis, &list(&learn)).unwrap();
            take(&mut state, &vars, &raw[*at..=*at], &CONFIG);
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
    take(&mut training(&vars), &vars, &[g], &CONFIG);
    assert_eq!(before[12..], flat(&vars)[12..]);
    assert!(before[..12].iter().zip(flat(&vars)).all(|(a, b)| *a != b));
}

/// A step whose gradient is no finite number changes nothing, and once that has happened no later step does.
#[rstest]
fn a_bad_step_and_all_behind_it_change_nothing(
    #[values(f32::NAN, f32::INFINITY)] bad: f32,
    #[values(false, true)] lines: bool,
) {
    let vars = variables(9);
    let mut state = training(&vars);
    let good: Vec<Tensor> = inputs(10, &[&[4, 3], &[5]]).iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    let finite = |state: &TrainState| state.finite().to_vec1::<u8>().unwrap() == [1];
    let next = |state: &mut TrainState, gradients: &[Tensor]| {
        if lines {
            state.grads.restrict(&vars[0].1, 0, &list(&[1u8, 0, 1, 1])).unwrap();
        }
        take(state, &vars, gradients, &CONFIG)
    };
    let start = flat(&vars);
    next(&mut state, &good);
    let after_one = flat(&vars);
    assert!(finite(&state) && after_one != start);
    let spoilt = [good[0].clone(), Tensor::full(bad, 5, &Device::Cpu).unwrap()];
    assert!(!next(&mut state, &spoilt).is_finite() && !finite(&state));
    assert_eq!(flat(&vars), after_one);
    assert!(next(&mut state, &good).is_finite() && !finite(&state));
    assert_eq!((flat(&vars), state.step), (after_one, 3));
}
