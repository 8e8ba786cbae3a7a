//! The gradient checker: an operation's derivative against central differences and against another composition.

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::Rng;
use tinyonn::{ops, random};

/// A function of several tensors to one.
pub(crate) type Function<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// Random inputs of the given shapes, f64, standard-normal-like (sum of uniforms).
pub(crate) fn inputs(seed: u64, shapes: &[&[usize]]) -> Vec<Tensor> {
    let mut rng = random::stream(seed, "tests/inputs");
    let mut draw = |shape: &&[usize]| {
        let values: Vec<f64> = (0..shape.iter().product())
            .map(|_| (0..6).map(|_| rng.random::<f64>() - 0.5).sum::<f64>() * 2f64.sqrt())
            .collect();
        Tensor::from_vec(values, *shape, &Device::Cpu).unwrap()
    };
    shapes.iter().map(&mut draw).collect()
}

/// The processor, and the first GPU in a build for one.
pub(crate) fn devices() -> Vec<Device> {
    if cfg!(feature = "cuda") { vec![Device::Cpu, Device::new_cuda(0).unwrap()] } else { vec![Device::Cpu] }
}

/// The value and the gradients of Σ weight ⊙ f(inputs), all in `dtype` on `device`, with the weights drawn at random.
/// Both are returned to the processor.
pub(crate) fn value_and_gradients(
    f: Function<'_>,
    inputs: &[Tensor],
    dtype: DType,
    device: &Device,
) -> Result<(Tensor, Vec<Tensor>)> {
    let vars: Vec<Var> =
        inputs.iter().map(|x| Var::from_tensor(&x.to_dtype(dtype)?.to_device(device)?)).collect::<Result<_>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let value = f(&tensors)?;
    let loss = (&value * weights(&value)?)?.sum_all()?;
    let grads = ops::backward(&loss)?;
    let grads = vars.iter().map(|var| grads.get(var).unwrap().to_device(&Device::Cpu)).collect::<Result<_>>()?;
    Ok((value.detach().to_device(&Device::Cpu)?, grads))
}

fn weights(value: &Tensor) -> Result<Tensor> {
    inputs(99, &[value.dims()])[0].to_dtype(value.dtype())?.to_device(value.device())
}

/// The largest difference, relative to the larger one's norm per element.
pub(crate) fn relative_difference(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_dtype(DType::F64).unwrap(), b.to_dtype(DType::F64).unwrap());
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
    norm(&(&a - &b).unwrap()) / norm(&a).max(norm(&b)).max(1e-12)
}

/// Central differences in f64 along random directions: ⟨∇f, v⟩ = (f(x + εv) − f(x − εv)) / 2ε.
pub(crate) fn assert_derivative(f: Function<'_>, inputs_f64: &[Tensor]) {
    let (_, grads) = value_and_gradients(f, inputs_f64, DType::F64, &Device::Cpu).unwrap();
    let loss = |xs: &[Tensor]| -> f64 {
        let value = f(xs).unwrap();
        (&value * weights(&value).unwrap()).unwrap().sum_all().unwrap().to_scalar().unwrap()
    };
    for (which, (x, grad)) in inputs_f64.iter().zip(&grads).enumerate() {
        for direction in 0..3 {
            let v = &inputs(7 + direction, &[x.dims()])[0];
            let eps = 1e-5;
            let at = |step: f64| {
                let mut xs = inputs_f64.to_vec();
                xs[which] = (x + (v * step).unwrap()).unwrap();
                loss(&xs)
            };
            let numeric = (at(eps) - at(-eps)) / (2.0 * eps);
            let exact: f64 = (grad * v).unwrap().sum_all().unwrap().to_scalar().unwrap();
            // Truncation is O(ε²) = 1e-10 and cancellation about 1e-16 / ε = 1e-11 of values of order 1 to 100.
            approx::assert_relative_eq!(numeric, exact, max_relative = 1e-6, epsilon = 1e-7);
        }
    }
}

/// Equal values and gradients of two functions, `f` in `dtype` on every device and `reference` in f64.
pub(crate) fn assert_same(f: Function<'_>, reference: Function<'_>, xs: &[Tensor], dtype: DType, tolerance: f64) {
    let (expected, expected_grads) = value_and_gradients(reference, xs, DType::F64, &Device::Cpu).unwrap();
    for device in devices() {
        let (value, grads) = value_and_gradients(f, xs, dtype, &device).unwrap();
        assert_eq!(value.dims(), expected.dims());
        let difference = relative_difference(&value, &expected);
        assert!(difference <= tolerance, "values on {device:?} differ by {difference}");
        for (which, (grad, expected)) in grads.iter().zip(&expected_grads).enumerate() {
            assert_eq!(grad.dims(), expected.dims(), "gradient {which}");
            let difference = relative_difference(grad, expected);
            assert!(difference <= tolerance, "gradient {which} on {device:?} differs by {difference}");
        }
    }
}
