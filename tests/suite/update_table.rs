//! Tables of updates: one call for all weights, on every device and in every type they are held in.

use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use tinyonn::ops::{Descriptor, Grads, UpdateTable};

use crate::adamw::list;
use crate::gradients::{devices, inputs};
use crate::models::CPU;
use crate::optimizers::{ADAMW, LION, Rule, SGD};

/// A weight of a table: θ, g and its moments; t; marks; the rounded θ, where there is one.
struct Weight {
    tensors: Vec<Tensor>,
    counts: Tensor,
    learn: Tensor,
    work: Option<Tensor>,
}

/// How a weight is held: its shape, θ's type, that of the gradient, of the moments, of its rounded copy; its marks.
type Kind<'a> = (&'a [usize], DType, DType, DType, Option<DType>, &'a [u8]);

const KINDS: [Kind<'_>; 11] = [
    (&[40, 70], DType::F32, DType::F32, DType::F32, None, &[1]),
    (&[3, 5], DType::F32, DType::F32, DType::F32, None, &[1, 0, 1]),
    (&[3, 5], DType::F64, DType::F64, DType::F64, None, &[0, 1, 1]),
    (&[300, 130], DType::F32, DType::F32, DType::F32, Some(DType::BF16), &[1]),
    (&[], DType::F32, DType::F32, DType::F32, None, &[1]),
    (&[7], DType::F32, DType::F32, DType::F32, None, &[0]),
    (&[4, 2049], DType::F32, DType::BF16, DType::F32, Some(DType::BF16), &[1, 1, 0, 1]),
    (&[4, 64], DType::F32, DType::BF16, DType::BF16, Some(DType::BF16), &[0, 0, 0, 1]),
    (&[3, 20000], DType::F32, DType::F32, DType::BF16, Some(DType::F16), &[1, 0, 1]),
    (&[16385], DType::F32, DType::BF16, DType::BF16, None, &[1]),
    (&[9, 24], DType::F64, DType::F64, DType::F64, Some(DType::F32), &[1]),
];

/// One weight of each kind.
fn weights(rule: Rule, device: &Device) -> Vec<Weight> {
    let of = |(at, (shape, dtype, gradient, moments, work, learn)): (usize, Kind<'_>)| {
        let on = |x: &Tensor, dtype| x.to_dtype(dtype).unwrap().to_device(device).unwrap();
        let xs = inputs(at as u64, &[shape; 4]);
        let all = [(&xs[0], dtype), (&xs[1], gradient), (&xs[2], moments), (&xs[3].sqr().unwrap(), moments)];
        let mut tensors: Vec<Tensor> = all.into_iter().map(|(x, dtype)| on(x, dtype)).collect();
        tensors.truncate(rule.tensors() + 1);
        let work = work.map(|work| tensors[0].to_dtype(work).unwrap());
        let counts = on(&list(&vec![2f64; learn.len()]), DType::F64);
        Weight { tensors, counts, learn: on(&list(learn), DType::U8), work }
    };
    KINDS.into_iter().enumerate().map(of).collect()
}

impl Weight {
    fn descriptor(&self, rule: Rule) -> Descriptor<'_> {
        let [weight, gradient, m] = [0, 1, 2].map(|at| &self.tensors[at]);
        let second = self.tensors.get(3).map(|v| (v, &self.counts));
        Descriptor { work: self.work.as_ref(), ..rule.descriptor([weight, gradient, m], second, &self.learn) }
    }

    /// All that may change of it.
    fn values(&self) -> Vec<Vec<f64>> {
        let values = |x: &Tensor| {
            let x = x.to_device(&CPU).unwrap().to_dtype(DType::F64).unwrap();
            x.flatten_all().unwrap().to_vec1::<f64>().unwrap()
        };
        self.tensors.iter().chain([&self.counts]).chain(&self.work).map(values).collect()
    }
}

/// Steps by a table; `finite` says whether it may change anything.
fn step(rule: Rule, weights: &[&Weight], finite: u8, device: &Device) {
    let on = |x: Tensor| x.to_device(device).unwrap();
    let (scale, finite) = (on(list(&[0.5f64])), on(list(&[finite])));
    let descriptors: Vec<Descriptor<'_>> = weights.iter().map(|weight| weight.descriptor(rule)).collect();
    rule.step(&UpdateTable { descriptors: &descriptors, scale: &scale, finite: &finite }).unwrap();
}

/// A table in one call is its weights one by one, and itself once more, bit for bit; where a step is not finite, nothing moves.
#[rstest]
fn a_table_is_its_weights_one_by_one(#[values(ADAMW, SGD, LION)] rule: Rule, #[values(0, 1)] finite: u8) {
    for device in devices() {
        let [together, again, alone] = [(); 3].map(|()| weights(rule, &device));
        let values = |weights: &[Weight]| weights.iter().map(Weight::values).collect::<Vec<_>>();
        let before = values(&alone);
        for _ in 0..3 {
            step(rule, &together.iter().collect::<Vec<_>>(), finite, &device);
            step(rule, &again.iter().collect::<Vec<_>>(), finite, &device);
            alone.iter().for_each(|weight| step(rule, &[weight], finite, &device));
        }
        let after = values(&together);
        assert_eq!(after, values(&alone), "{device:?}");
        assert_eq!(after, values(&again), "{device:?}");
        let moved = after.iter().zip(&before).filter(|(after, before)| after != before).count();
        assert_eq!(moved, if finite == 0 { 0 } else { KINDS.len() - 1 }, "{device:?}");
    }
}

/// Every device has the plain form's outcome, each weight alone behind its own types. θ is of order 1 to 4 and moves by 1e-2: f32 constants
/// rounded in another order are 2e-6. bf16 keeps 8 bits of a moment or a copy, and a value between two may go either way: 2⁻⁷ of it.
#[rstest]
fn every_device_has_the_plain_outcome(#[values(ADAMW, SGD, LION)] rule: Rule) {
    let plain = |weight: Weight| {
        let transposed = |x: &Tensor| x.t().unwrap().contiguous().unwrap().t().unwrap();
        let mut tensors = weight.tensors;
        // The plain form takes a gradient whose rows lie apart.
        if tensors[1].rank() == 2 {
            tensors[1] = transposed(&tensors[1]);
        }
        Weight { tensors, ..weight }
    };
    let expected: Vec<Weight> = weights(rule, &CPU).into_iter().map(plain).collect();
    step(rule, &expected.iter().collect::<Vec<_>>(), 1, &CPU);
    for device in devices() {
        let found = weights(rule, &device);
        step(rule, &found.iter().collect::<Vec<_>>(), 1, &device);
        for (kind, (found, expected)) in KINDS.iter().zip(found.iter().zip(&expected)) {
            let dtypes = found.tensors.iter().chain([&found.counts]).chain(&found.work).map(Tensor::dtype);
            for (part, (dtype, (found, expected))) in
                dtypes.zip(found.values().into_iter().zip(expected.values())).enumerate()
            {
                let rounding = match dtype {
                    DType::BF16 => 1.0 / 128.0,
                    DType::F16 => 1.0 / 1024.0,
                    _ => 0.0,
                };
                for (found, expected) in found.iter().zip(&expected) {
                    let apart = (found - expected).abs();
                    assert!(
                        apart <= 2e-6 + rounding * expected.abs(),
                        "{kind:?}, {part}: {found} {expected}, {device:?}"
                    );
                }
            }
        }
    }
}

/// What passes compute with is θ rounded, on every device, also of rows that skip.
#[rstest]
fn a_work_weight_follows(#[values(ADAMW, SGD, LION)] rule: Rule) {
    for device in devices() {
        let weights = weights(rule, &device);
        step(rule, &weights.iter().collect::<Vec<_>>(), 1, &device);
        for Weight { tensors, work, .. } in &weights {
            let Some(work) = work else { continue };
            let f64s = |x: &Tensor| {
                let x = x.to_device(&CPU).unwrap().to_dtype(DType::F64).unwrap();
                x.flatten_all().unwrap().to_vec1::<f64>().unwrap()
            };
            assert_eq!(f64s(work), f64s(&tensors[0].to_dtype(work.dtype()).unwrap()), "{device:?}");
        }
    }
}

/// Two threads would wait for each other, or one for itself.
#[rstest]
fn a_tensor_that_stands_twice_is_refused(#[values(ADAMW, SGD, LION)] rule: Rule) {
    let weights = weights(rule, &CPU);
    let of = weights[0].descriptor(rule);
    let table = UpdateTable { descriptors: &[of, of], scale: &list(&[1.0]), finite: &list(&[1u8]) };
    assert!(rule.step(&table).unwrap_err().to_string().contains("stands in the table twice"));
}

/// The norm of many gradients is that of a sum in f64, within f32 sums of 40,000 squares on the CPU, and the same bits again; one that is
/// no number shows.
#[rstest]
fn the_norm_is_over_all_gradients(#[values(DType::F32, DType::BF16)] dtype: DType) {
    for device in devices() {
        let xs = inputs(5, &[&[300, 130], &[7], &[1], &[3, 16385]]);
        let vars: Vec<candle_core::Var> = xs
            .iter()
            .map(|x| candle_core::Var::from_tensor(&x.to_dtype(DType::F32).unwrap().to_device(&device).unwrap()))
            .collect::<Result<_, _>>()
            .unwrap();
        let mut grads = Grads::in_dtype(vars.iter().map(|var| (var.as_tensor(), 0)), dtype).unwrap();
        let norm = |grads: &Grads| grads.norm(vars.iter().map(candle_core::Var::as_tensor), &device).unwrap();
        assert_eq!(norm(&grads).to_vec1::<f64>().unwrap(), [0.0]);
        // The second has no gradient in this step.
        let written = [&vars[0], &vars[2], &vars[3]];
        written.iter().for_each(|var| grads.add_with(var, || Ok(var.as_detached_tensor())).unwrap());
        let square = |var: &&candle_core::Var| {
            let x = var.to_dtype(dtype).unwrap().to_device(&CPU).unwrap().to_dtype(DType::F64).unwrap();
            x.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
        };
        let expected = written.iter().map(square).sum::<f64>().sqrt();
        let found = norm(&grads).to_vec1::<f64>().unwrap()[0];
        approx::assert_relative_eq!(found, expected, max_relative = 1e-5);
        assert_eq!(found.to_bits(), norm(&grads).to_vec1::<f64>().unwrap()[0].to_bits());
        for bad in [f32::NAN, f32::INFINITY] {
            grads.add_with(&vars[2], || Tensor::new(&[bad], &device)).unwrap();
            assert!(!norm(&grads).to_vec1::<f64>().unwrap()[0].is_finite());
        }
    }
}
