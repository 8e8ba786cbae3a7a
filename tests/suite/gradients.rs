//! The gradient checker: an operation, which is a forward and a backward, against central differences and against another composition.

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::Rng;
use tinyonn::ops::Grads;
use tinyonn::random;

/// A function of several tensors to one, in candle's differentiable operations.
pub(crate) type Function<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// The way back of an operation: from the gradient of its output to those of the inputs that are no weights, by their index; those of
/// weights go to [`Grads`].
pub(crate) type Back<'a> = Box<dyn FnOnce(&Tensor, &mut Grads) -> Result<Vec<(usize, Tensor)>> + 'a>;

/// A function of several tensors to one, with the way back.
pub(crate) type Pair<'a> = &'a dyn Fn(&[Tensor]) -> Result<(Tensor, Back<'a>)>;

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

/// A composition of candle's operations as a pair: the way back is candle's own tape.
pub(crate) fn by_tape<'a>(f: Function<'a>, xs: &[Tensor]) -> Result<(Tensor, Back<'a>)> {
    let (y, xs) = (f(xs)?, xs.to_vec());
    let value = y.detach();
    let back = move |dy: &Tensor, _: &mut Grads| {
        let store = (y * dy)?.sum_all()?.backward()?;
        Ok(xs.iter().enumerate().filter_map(|(at, x)| Some((at, store.get(x)?.clone()))).collect())
    };
    Ok((value, Box::new(back)))
}

/// The value and the gradients of Σ weight ⊙ f(inputs), all in `dtype` on `device`, with the weights drawn at random.
/// Both are returned to the processor.
pub(crate) fn value_and_gradients(
    f: Pair<'_>,
    inputs: &[Tensor],
    dtype: DType,
    device: &Device,
) -> Result<(Tensor, Vec<Tensor>)> {
    let vars: Vec<Var> =
        inputs.iter().map(|x| Var::from_tensor(&x.to_dtype(dtype)?.to_device(device)?)).collect::<Result<_>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let mut grads = Grads::new(tensors.iter().map(|x| (x, 0)))?;
    let (value, back) = f(&tensors)?;
    let mut returned = back(&weights(&value)?, &mut grads)?;
    let of_input = |(at, x): (usize, &Tensor)| {
        let own = returned.iter().position(|(index, _)| *index == at).map(|place| returned.swap_remove(place).1);
        assert!(own.is_none() || grads.get(x).is_none(), "input {at} has two gradients");
        let found = own.or_else(|| grads.get(x).map(|grad| grad.copy().unwrap()));
        found.unwrap_or_else(|| panic!("input {at} has no gradient")).to_device(&Device::Cpu)
    };
    let gradients = tensors.iter().enumerate().map(of_input).collect::<Result<_>>()?;
    Ok((value.detach().to_device(&Device::Cpu)?, gradients))
}

fn weights(value: &Tensor) -> Result<Tensor> {
    inputs(99, &[value.dims()])[0].to_dtype(value.dtype())?.to_device(value.device())
}

/// The difference's norm, relative to the larger one's.
pub(crate) fn relative_difference(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_dtype(DType::F64).unwrap(), b.to_dtype(DType::F64).unwrap());
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
    norm(&(&a - &b).unwrap()) / norm(&a).max(norm(&b)).max(1e-12)
}

/// Central differences in f64 along random directions: ⟨∇f, v⟩ = (f(x + εv) − f(x − εv)) / 2ε.
pub(crate) fn assert_derivative(f: Pair<'_>, inputs_f64: &[Tensor]) {
    let (_, grads) = value_and_gradients(f, inputs_f64, DType::F64, &Device::Cpu).unwrap();
    let loss = |xs: &[Tensor]| -> f64 {
        let value = f(xs).unwrap().0;
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

/// Equal values and gradients of an operation, in `dtype` on every device, and of a composition of candle's own operations in f64.
pub(crate) fn assert_same(f: Pair<'_>, reference: Function<'_>, xs: &[Tensor], dtype: DType, tolerance: f64) {
    assert_alike(f, &|xs| by_tape(reference, xs), xs, dtype, tolerance);
}

/// As [`assert_same`], for sums of so few terms that they may nearly cancel: beside `tolerance` a difference may be 8 roundings of the
/// sum of its terms' sizes. `reference` consists of products and sums, so that of its inputs' sizes it has about those, or more.
pub(crate) fn assert_same_sums(f: Pair<'_>, reference: Function<'_>, xs: &[Tensor], dtype: DType, tolerance: f64) {
    same_sums(&devices(), f, reference, xs, dtype, tolerance);
}

fn same_sums(on: &[Device], f: Pair<'_>, reference: Function<'_>, xs: &[Tensor], dtype: DType, tolerance: f64) {
    let sizes = |xs: &[Tensor]| {
        let xs: Vec<Tensor> = xs.iter().map(Tensor::abs).collect::<Result<_>>()?;
        let value = reference(&xs)?;
        // The checker weighs values by numbers of both signs; so signed, they add up.
        &value * weights(&value)?.sign()?
    };
    let (expected, expected_grads) =
        value_and_gradients(&|xs| by_tape(reference, xs), xs, DType::F64, &Device::Cpu).unwrap();
    let (size, size_grads) = value_and_gradients(&|xs| by_tape(&sizes, xs), xs, DType::F64, &Device::Cpu).unwrap();
    let unit = if dtype == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) } / 2.0;
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
    for device in on {
        let (value, grads) = value_and_gradients(f, xs, dtype, device).unwrap();
        let found = std::iter::once(&value).chain(&grads);
        let expected = std::iter::once(&expected).chain(&expected_grads);
        let sizes = std::iter::once(&size).chain(&size_grads);
        for (which, ((found, expected), size)) in found.zip(expected).zip(sizes).enumerate() {
            assert_eq!(found.dims(), expected.dims(), "output {which}");
            let difference = norm(&(found.to_dtype(DType::F64).unwrap() - expected).unwrap());
            let allowed = tolerance * norm(expected) + 8.0 * unit * norm(size);
            assert!(
                difference <= allowed,
                "output {which} (0 the value) on {device:?} differs by {difference}, {allowed} is allowed"
            );
        }
    }
}

/// Equal values and gradients of two operations, `f` in `dtype` on every device and `reference` in f64.
pub(crate) fn assert_alike(f: Pair<'_>, reference: Pair<'_>, xs: &[Tensor], dtype: DType, tolerance: f64) {
    alike(&devices(), f, reference, xs, dtype, tolerance);
}

fn alike(on: &[Device], f: Pair<'_>, reference: Pair<'_>, xs: &[Tensor], dtype: DType, tolerance: f64) {
    let (expected, expected_grads) = value_and_gradients(reference, xs, DType::F64, &Device::Cpu).unwrap();
    for device in on {
        let (value, grads) = value_and_gradients(f, xs, dtype, device).unwrap();
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

/// The same of operations that are forms for main memory, which read on the host who is asked.
pub(crate) mod in_memory {
    use candle_core::{DType, Device, Tensor};

    use super::{Function, Pair, alike, by_tape, same_sums};

    pub(crate) fn assert_same(f: Pair<'_>, reference: Function<'_>, xs: &[Tensor], dtype: DType, tolerance: f64) {
        assert_alike(f, &|xs| by_tape(reference, xs), xs, dtype, tolerance);
    }

    pub(crate) fn assert_same_sums(f: Pair<'_>, reference: Function<'_>, xs: &[Tensor], dtype: DType, tolerance: f64) {
        same_sums(&[Device::Cpu], f, reference, xs, dtype, tolerance);
    }

    pub(crate) fn assert_alike(f: Pair<'_>, reference: Pair<'_>, xs: &[Tensor], dtype: DType, tolerance: f64) {
        alike(&[Device::Cpu], f, reference, xs, dtype, tolerance);
    }
}

/// The gradients of Σ y², which most tests of who learns take: what it does not matter for is which loss it is.
pub(crate) fn doubled(y: &Tensor) -> Tensor {
    (y * 2.0).unwrap()
}
