//! A step of a training by AdamW: clipping over all variables, rows that skip, and what a gradient that is no number leaves as it was.
//! The operation itself is in [`crate::optimizers`].

use approx::assert_relative_eq;
use candle_core::{DType, Device, Tensor, Var};
use rstest::rstest;
use tinyonn::checkpoint::Role;
use tinyonn::train::{Memory, OptimizerConfig, Slot, TrainState};

use crate::gradients::inputs;

const CONFIG: OptimizerConfig = OptimizerConfig {
    rate: 1e-2,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    decay: 0.1,
    clip: f64::INFINITY,
    ..OptimizerConfig::DEFAULT
};

pub(crate) fn list<T: candle_core::WithDType>(values: &[T]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

/// A matrix's values by row.
pub(crate) fn values(x: &Tensor) -> Vec<Vec<f64>> {
    x.to_dtype(DType::F64).unwrap().to_vec2().unwrap()
}

/// A training of these weights.
pub(crate) fn training(vars: &[(String, Var)]) -> TrainState {
    let slot = |(name, var): &(String, Var)| Slot::new(name.clone(), Role::Expert, 0, var.clone());
    TrainState::new(vars.iter().map(slot).collect(), &Memory::DEFAULT).unwrap()
}

/// A step by given gradients of the first of them; the norm before clipping.
pub(crate) fn take(
    state: &mut TrainState,
    vars: &[(String, Var)],
    gradients: &[Tensor],
    config: &OptimizerConfig,
) -> f64 {
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
    let after = |config: OptimizerConfig, gradient: &[Tensor], steps: usize| {
        let vars = variables(3);
        let mut state = training(&vars);
        let norms: Vec<f64> = (0..steps).map(|_| take(&mut state, &vars, gradient, &config)).collect();
        (norms[0], flat(&vars))
    };
    // A large ε keeps the update proportional to the gradient, or its scale would cancel.
    let config = OptimizerConfig { eps: 1.0, ..CONFIG };
    let clipped = after(OptimizerConfig { clip: 0.25, ..config }, &raw, 3);
    let expected = after(config, &scaled, 3);
    assert_relative_eq!(clipped.0, f64::from(norm), max_relative = 1e-6);
    assert_relative_eq!(expected.0, 0.25, max_relative = 1e-6);
    clipped.1.iter().zip(&expected.1).for_each(|(a, b)| assert_relative_eq!(a, b, epsilon = 1e-6));
    assert!(after(config, &raw, 3).1.iter().zip(&expected.1).any(|(a, b)| (a - b).abs() > 1e-3));
    // Below the limit nothing is scaled.
    assert_eq!(after(OptimizerConfig { clip: 0.3, ..config }, &scaled, 3), expected);
    // Without a gradient only decay is left, of the matrix alone: (1 − η λ) θ.
    let still: Vec<Tensor> = raw.iter().map(|g| g.zeros_like().unwrap()).collect();
    let (before, after) = (flat(&variables(3)), after(config, &still, 1).1);
    for (at, (before, after)) in before.iter().zip(&after).enumerate() {
        let factor = if at < 12 { 1.0 - 1e-2 * 0.1 } else { 1.0 };
        assert_relative_eq!(*after, before * factor, max_relative = 1e-6);
    }
}

/// A row that sat out a step is, bit for bit, where a run that never had that step left it: momentum, variance and step count too.
#[test]
fn a_skipped_step_never_was() {
    let raw: Vec<Tensor> = inputs(6, &[&[4usize, 3][..]; 6]).iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    // Row 1 learns in the even steps.
    let run = |which: &[usize]| {
        let vars = vec![variables(5).remove(0)];
        let mut state = training(&vars);
        for at in which {
            let learn: Vec<u8> = (0..4).map(|row| u8::from(row != 1 || at % 2 == 0)).collect();
            state.grads.restrict(&vars[0].1, &list(&learn), 4).unwrap();
            take(&mut state, &vars, &raw[*at..=*at], &CONFIG);
        }
        values(&vars[0].1)
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
    #[values(false, true)] rows: bool,
) {
    let vars = variables(9);
    let mut state = training(&vars);
    let good: Vec<Tensor> = inputs(10, &[&[4, 3], &[5]]).iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    let finite = |state: &TrainState| state.finite().to_vec1::<u8>().unwrap() == [1];
    let next = |state: &mut TrainState, gradients: &[Tensor]| {
        if rows {
            state.grads.restrict(&vars[0].1, &list(&[1u8, 0, 1, 1]), 3).unwrap();
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
