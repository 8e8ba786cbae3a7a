//! Every operation: its derivative against central differences (f64), its fused form (f32) against a composition of
//! candle's own differentiable operations, and its promises about frozen inputs.

use std::sync::{Arc, Mutex};

use candle_core::{D, DType, Device, Result, Tensor, Var};
use rstest::rstest;
use tinyonn::ops::{self, MlpBackward, MlpGate, MlpProbe, MlpWeights, NeuronSums, Silu, WeightGrads};

use crate::gradients::{Function, assert_derivative, assert_same, inputs, relative_difference};

/// f32 carries 2⁻²⁴ = 6e-8 an operation; sums of a few hundred terms of mixed sign reach about 1e-6.
const F32: f64 = 5e-6;

fn check(op: Function<'_>, composition: Function<'_>, xs: &[Tensor]) {
    assert_derivative(op, xs);
    assert_same(op, composition, xs, DType::F64, 1e-12);
    assert_same(op, composition, xs, DType::F32, F32);
}

#[rstest]
#[case(&[5, 7], 3, true)]
#[case(&[2, 70, 8], 9, false)]
#[case(&[1, 1, 4], 4, true)]
fn linear(#[case] x: &[usize], #[case] m: usize, #[case] bias: bool) {
    let n = *x.last().unwrap();
    let (w, b) = ([m, n], [m]);
    let shapes: Vec<&[usize]> = if bias { vec![x, &w, &b] } else { vec![x, &w] };
    check(
        &|xs| ops::linear(&xs[0], &xs[1], xs.get(2)),
        &|xs| {
            let y = xs[0].reshape(((), n))?.matmul(&xs[1].t()?)?;
            let y = xs.get(2).map_or(Ok(y.clone()), |b| y.broadcast_add(b))?;
            let mut shape = xs[0].dims().to_vec();
            *shape.last_mut().unwrap() = m;
            y.reshape(shape)
        },
        &inputs(1, &shapes),
    );
}

#[rstest]
#[case(&[3, 8])]
#[case(&[2, 67, 5, 6])] // more rows than a block
fn rms_norm(#[case] x: &[usize]) {
    let d = *x.last().unwrap();
    check(
        &|xs| ops::rms_norm(&xs[0], &xs[1], 1e-6),
        &|xs| {
            let r = (xs[0].sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?.recip()?;
            xs[0].broadcast_mul(&r)?.broadcast_mul(&xs[1])
        },
        &inputs(2, &[x, &[d]]),
    );
}

#[rstest]
#[case([1, 1, 1, 2])]
#[case([2, 70, 3, 6])]
fn rope(#[case] x: [usize; 4]) {
    let angles = &inputs(3, &[&[x[1], x[3] / 2]])[0];
    let table =
        |dtype: DType| (angles.cos().unwrap().to_dtype(dtype).unwrap(), angles.sin().unwrap().to_dtype(dtype).unwrap());
    check(
        &|xs| {
            let (cos, sin) = table(xs[0].dtype());
            ops::rope(&xs[0], &cos.to_device(xs[0].device())?, &sin.to_device(xs[0].device())?)
        },
        &|xs| {
            let (cos, sin) = table(xs[0].dtype());
            candle_nn::rotary_emb::rope_slow(&xs[0].transpose(1, 2)?.contiguous()?, &cos, &sin)?.transpose(1, 2)
        },
        &inputs(4, &[&x]),
    );
}

#[rstest]
#[case(1, 5, 5, 2, 2, 4)]
#[case(2, 70, 70, 4, 2, 6)] // more rows than a block, grouped
#[case(2, 3, 9, 6, 1, 4)] // a cache before the queries, one key head
#[case(1, 1, 1, 1, 1, 2)]
fn causal_attention(
    #[case] b: usize,
    #[case] t: usize,
    #[case] s: usize,
    #[case] h: usize,
    #[case] k: usize,
    #[case] d: usize,
) {
    check(
        &|xs| ops::causal_attention(&xs[0], &xs[1], &xs[2]),
        &|xs| {
            let repeat = |x: &Tensor| {
                x.unsqueeze(3)?.broadcast_as((b, s, k, h / k, d))?.reshape((b, s, h, d))?.transpose(1, 2)?.contiguous()
            };
            let q = xs[0].transpose(1, 2)?.contiguous()?;
            let scores = (q.matmul(&repeat(&xs[1])?.t()?.contiguous()?)? / (d as f64).sqrt())?;
            let hidden = |i: usize, j: usize| if j > s - t + i { -1e9 } else { 0.0 };
            let mask: Vec<f64> = (0..t).flat_map(|i| (0..s).map(move |j| hidden(i, j))).collect();
            let mask = Tensor::from_vec(mask, (t, s), &Device::Cpu)?.to_dtype(scores.dtype())?;
            let p = candle_nn::ops::softmax(&scores.broadcast_add(&mask)?, D::Minus1)?;
            p.matmul(&repeat(&xs[2])?)?.transpose(1, 2)?.contiguous()
        },
        &inputs(5, &[&[b, t, h, d], &[b, s, k, d], &[b, s, k, d]]),
    );
}

#[test]
fn attention_is_causal() {
    let xs: Vec<Tensor> =
        inputs(6, &[&[1, 70, 2, 4], &[1, 70, 2, 4]]).iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    let y = ops::causal_attention(&xs[0], &xs[1], &xs[1]).unwrap();
    let changed = Tensor::cat(&[&xs[1].narrow(1, 0, 69).unwrap(), &xs[0].narrow(1, 0, 1).unwrap()], 1).unwrap();
    let z = ops::causal_attention(&xs[0], &changed, &changed).unwrap();
    let before = |y: &Tensor| y.narrow(1, 0, 69).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(before(&y), before(&z));
    assert!(relative_difference(&y, &z) > 0.0);
}

#[rstest]
#[case(vec![0, 3, 3, 1])]
#[case(vec![4])]
fn embedding(#[case] ids: Vec<u32>) {
    let ids = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap();
    check(
        &|xs| ops::embedding(&ids.to_device(xs[0].device())?, &xs[0]),
        &|xs| xs[0].index_select(&ids, 0),
        &inputs(7, &[&[5, 3]]),
    );
}

#[rstest]
#[case(&[4], 11)]
#[case(&[2, 40], 50)]
fn head_cross_entropy(#[case] shape: &[usize], #[case] v: usize) {
    let tokens: usize = shape.iter().product();
    // Every fifth position has no target.
    let ids: Vec<u32> = (0..tokens).map(|t| if t % 5 == 4 { u32::MAX } else { (t * 7 % v) as u32 }).collect();
    let targets = Tensor::from_vec(ids.clone(), shape, &Device::Cpu).unwrap();
    let x: Vec<usize> = shape.iter().copied().chain([6]).collect();
    let losses = |xs: &[Tensor]| -> Result<Tensor> {
        let log_p = candle_nn::ops::log_softmax(&xs[0].reshape(((), 6))?.matmul(&xs[1].t()?)?, D::Minus1)?;
        let one_hot: Vec<f64> =
            ids.iter().flat_map(|id| (0..v).map(move |c| if c as u32 == *id { -1.0 } else { 0.0 })).collect();
        let one_hot = Tensor::from_vec(one_hot, (tokens, v), &Device::Cpu)?.to_dtype(log_p.dtype())?;
        (log_p * one_hot)?.sum(D::Minus1)?.reshape(shape)
    };
    let xs = inputs(8, &[&x, &[v, 6]]);
    let op = |xs: &[Tensor]| ops::head_cross_entropy(&xs[0], &xs[1], &targets.to_device(xs[0].device())?);
    check(&op, &losses, &xs);
}

#[rstest]
#[case(5, 3, 4)]
#[case(70, 9, 6)]
fn gaussian_density(#[case] t: usize, #[case] c: usize, #[case] r: usize) {
    let op = |xs: &[Tensor]| ops::gaussian_density(&xs[0], &xs[1], &xs[2]);
    check(&op, &density_composition, &inputs(15, &[&[t, r], &[c, r], &[c, r]]));
}

/// −½ mean_j [(z − μ)² / σ² + log σ²], the square of a difference.
fn density_composition(xs: &[Tensor]) -> Result<Tensor> {
    let offset = xs[0].unsqueeze(1)?.broadcast_sub(&xs[1].unsqueeze(0)?)?;
    let distance = offset.sqr()?.broadcast_mul(&xs[2].neg()?.exp()?.unsqueeze(0)?)?;
    distance.broadcast_add(&xs[2].unsqueeze(0)?)?.mean(D::Minus1)? * -0.5
}

/// A thousand deviations from zero: z² alone has no digit left for what tells the choices apart.
#[test]
fn gaussian_density_far_from_zero() {
    let far = |x: &Tensor| (x + 1000.0).unwrap().to_dtype(DType::F32).unwrap().to_dtype(DType::F64).unwrap();
    let xs = inputs(16, &[&[20, 6], &[7, 6], &[7, 6]]);
    let xs = [far(&xs[0]), far(&xs[1]), xs[2].clone()];
    let op = |xs: &[Tensor]| ops::gaussian_density(&xs[0], &xs[1], &xs[2]);
    // Differences of numbers within a factor of two are exact, and what follows is of order one; z² would be off by 0.06.
    assert_same(&op, &density_composition, &xs, DType::F32, 1e-5);
}

/// y = W_d (silu(W_g x) ⊙ (W_u x) ⊙ c) from candle's operations.
fn mlp_composition(xs: &[Tensor], neuron_expert: Option<&Tensor>) -> Result<Tensor> {
    let x = xs[0].reshape(((), xs[0].dim(D::Minus1)?))?;
    let g = x.matmul(&xs[1].t()?)?;
    let h = ((&g * candle_nn::ops::sigmoid(&g)?)? * x.matmul(&xs[2].t()?)?)?;
    let h = match neuron_expert {
        Some(neuron_expert) => (h * xs[4].index_select(neuron_expert, 1)?)?,
        None => h,
    };
    h.matmul(&xs[3].t()?)?.reshape(xs[0].shape())
}

fn weights(xs: &[Tensor]) -> MlpWeights<'_> {
    MlpWeights { gate: &xs[1], up: &xs[2], down: &xs[3], activation: &Silu }
}

#[rstest]
#[case(&[3, 4], 7)]
#[case(&[2, 70, 6], 33)]
fn glu_mlp(#[case] x: &[usize], #[case] i: usize) {
    let d = *x.last().unwrap();
    check(
        &|xs| ops::glu_mlp(&xs[0], weights(xs), None, None),
        &|xs| mlp_composition(xs, None),
        &inputs(9, &[x, &[i, d], &[i, d], &[d, i]]),
    );
}

#[rstest]
#[case(&[5, 4], 7, 3)]
#[case(&[2, 70, 6], 33, 4)]
fn gated_glu_mlp(#[case] x: &[usize], #[case] i: usize, #[case] n: usize) {
    let (d, t) = (*x.last().unwrap(), x[..x.len() - 1].iter().product());
    let neuron_expert: Vec<u32> = (0..i).map(|neuron| (neuron * 5 % n) as u32).collect();
    let neuron_expert = Tensor::new(neuron_expert.as_slice(), &Device::Cpu).unwrap();
    check(
        &|xs| {
            let neuron_expert = neuron_expert.to_device(xs[0].device())?;
            let gate = MlpGate { gate_tn: &xs[4], neuron_expert: &neuron_expert };
            ops::glu_mlp(&xs[0], weights(xs), Some(gate), None)
        },
        &|xs| mlp_composition(xs, Some(&neuron_expert)),
        &inputs(10, &[x, &[i, d], &[i, d], &[d, i], &[t, n]]),
    );
}

/// Remembers the sums of the pass it saw and lets some neurons learn.
pub(crate) struct Spy {
    learners: WeightGrads,
    pub(crate) seen: Mutex<Vec<(usize, NeuronSums)>>,
}

impl MlpProbe for Spy {
    fn observe(&self, layer: usize, pass: &MlpBackward<'_>) -> Result<WeightGrads> {
        // Every seventh token is left out.
        let counted: Vec<bool> = (0..pass.x_td.dim(0)?).map(|t| t % 7 != 3).collect();
        self.seen.lock().unwrap().push((layer, ops::neuron_moments(pass, &counted)?));
        Ok(self.learners.clone())
    }
}

pub(crate) fn spy(learners: WeightGrads) -> Arc<Spy> {
    Arc::new(Spy { learners, seen: Mutex::new(Vec::new()) })
}

#[rstest]
#[case(DType::F32, F32)]
#[case(DType::F64, 1e-12)]
fn only_learners_get_weight_gradients(#[case] dtype: DType, #[case] tolerance: f64) {
    let xs: Vec<Var> = inputs(11, &[&[9, 4], &[7, 4], &[7, 4], &[4, 7]])
        .iter()
        .map(|x| Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap())
        .collect();
    let tensors: Vec<Tensor> = xs.iter().map(|x| x.as_tensor().clone()).collect();
    let gradients = |learners| {
        let y = ops::glu_mlp(&tensors[0], weights(&tensors), None, Some((spy(learners), 3))).unwrap();
        ops::backward(&y.sqr().unwrap()).unwrap()
    };
    let (all, some) = (gradients(WeightGrads::All), gradients(WeightGrads::Neurons(vec![1, 4])));
    assert!(relative_difference(all.get(&xs[0]).unwrap(), some.get(&xs[0]).unwrap()) == 0.0);
    for (which, by_row) in [(1, true), (2, true), (3, false)] {
        let neurons = |store: &candle_core::backprop::GradStore| {
            let grad = store.get(&xs[which]).unwrap();
            if by_row { grad.clone() } else { grad.t().unwrap().contiguous().unwrap() }
        };
        for neuron in 0..7 {
            let (full, part) = (neurons(&all).get(neuron).unwrap(), neurons(&some).get(neuron).unwrap());
            if [1, 4].contains(&neuron) {
                assert!(relative_difference(&full, &part) <= tolerance);
            } else {
                assert_eq!(part.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap(), vec![0.0; 4]);
            }
        }
    }
    let none = gradients(WeightGrads::Neurons(vec![]));
    assert_eq!(
        none.get(&xs[3])
            .unwrap()
            .sqr()
            .unwrap()
            .sum_all()
            .unwrap()
            .to_dtype(DType::F64)
            .unwrap()
            .to_scalar::<f64>()
            .unwrap(),
        0.0
    );
}

#[test]
fn a_probe_of_frozen_weights_still_sees_the_backward() {
    let xs: Vec<Tensor> = inputs(12, &[&[9, 4], &[7, 4], &[7, 4], &[4, 7]]);
    let spy = spy(WeightGrads::All);
    let y = ops::glu_mlp(&xs[0], weights(&xs), None, Some((spy.clone(), 5))).unwrap();
    ops::backward(&y.sqr().unwrap()).unwrap();
    let seen = spy.seen.lock().unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].0, 5);
    assert!(seen[0].1.each().iter().all(|sum| sum.iter().any(|x| *x != 0.0)));
}

#[rstest]
#[case(false)]
#[case(true)]
fn fused_moments_equal_the_definition(#[case] gated: bool) {
    let mut xs = inputs(13, &[&[600, 4], &[7, 4], &[7, 4], &[4, 7], &[600, 3]]);
    let neuron_expert = Tensor::new(&[0u32, 1, 2, 0, 1, 2, 0], &Device::Cpu).unwrap();
    let mut run = |dtype| {
        xs.iter_mut().for_each(|x| *x = x.to_dtype(dtype).unwrap());
        let spy = spy(WeightGrads::All);
        let gate = gated.then_some(MlpGate { gate_tn: &xs[4], neuron_expert: &neuron_expert });
        let y = ops::glu_mlp(&xs[0], weights(&xs), gate, Some((spy.clone(), 0))).unwrap();
        ops::backward(&y.sqr().unwrap()).unwrap();
        let (_, sums) = spy.seen.lock().unwrap().pop().unwrap();
        sums
    };
    let (expected, fused) = (run(DType::F64), run(DType::F32));
    for (expected, fused) in expected.each().into_iter().zip(fused.each()) {
        for (expected, fused) in expected.iter().zip(fused) {
            // The tokens' values are f32; only their sums are f64.
            approx::assert_relative_eq!(expected, fused, max_relative = 2e-5, epsilon = 1e-5);
        }
    }
}

#[test]
fn plain_backward_is_refused_with_the_remedy() {
    let x = Var::new(&[[1f32, 2.0]], &Device::Cpu).unwrap();
    let y = ops::linear(&x, x.as_tensor(), None).unwrap();
    let error = y.sum_all().unwrap().backward().unwrap_err().to_string();
    assert!(error.contains("tinyonn::ops::backward"), "{error}");
}

/// Panics in its first backward.
struct Startled(Mutex<bool>);

impl MlpProbe for Startled {
    fn observe(&self, _: usize, _: &MlpBackward<'_>) -> Result<WeightGrads> {
        assert!(std::mem::replace(&mut *self.0.lock().unwrap(), true), "startled");
        Ok(WeightGrads::All)
    }
}

#[test]
fn a_backward_that_panicked_leaves_nothing_behind() {
    let vars: Vec<Var> =
        inputs(3, &[&[2, 4], &[5, 4], &[5, 4], &[4, 5]]).iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let xs: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let probe = Arc::new(Startled(Mutex::new(false)));
    let backward = |probe: Option<(Arc<dyn MlpProbe>, usize)>| {
        let loss = ops::glu_mlp(&xs[0], weights(&xs), None, probe).unwrap().sum_all().unwrap();
        ops::backward(&loss)
    };
    let startled = Some((probe.clone() as Arc<dyn MlpProbe>, 0));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| backward(startled))).unwrap_err();
    let (again, plain) = (backward(None).unwrap(), backward(None).unwrap());
    for var in &vars {
        let [a, b] =
            [&again, &plain].map(|grads| grads.get(var).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap());
        assert_eq!(a, b);
    }
}

#[test]
fn frozen_inputs_record_nothing() {
    let xs = inputs(14, &[&[3, 4], &[2, 4]]);
    assert!(!ops::linear(&xs[0], &xs[1], None).unwrap().track_op());
    let w = Var::from_tensor(&xs[1]).unwrap();
    assert!(ops::linear(&xs[0], &w, None).unwrap().track_op());
    let grads = ops::backward(&ops::linear(&xs[0], &w, None).unwrap()).unwrap();
    assert!(grads.get(&xs[0]).is_none() && grads.get(&w).is_some());
}

#[test]
fn a_leaf_used_twice_collects_both_gradients() {
    let w = Var::new(&[[2f32, 0.0], [0.0, 3.0]], &Device::Cpu).unwrap();
    let x = Tensor::new(&[[1f32, 1.0]], &Device::Cpu).unwrap();
    let once = ops::linear(&x, &w, None).unwrap();
    // Twice through an operation of ours, once through candle's own: the collector and the tape add up.
    let own = w.get(0).unwrap().unsqueeze(0).unwrap();
    let both = ((ops::linear(&x, &w, None).unwrap() + ops::linear(&x, &w, None).unwrap()).unwrap() + own).unwrap();
    let once = ops::backward(&once).unwrap().get(&w).unwrap().to_vec2::<f32>().unwrap();
    let both = ops::backward(&both).unwrap().get(&w).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(
        both,
        vec![vec![2.0 * once[0][0] + 1.0, 2.0 * once[0][1] + 1.0], vec![2.0 * once[1][0], 2.0 * once[1][1]]]
    );
}

#[test]
fn an_embedding_out_of_range_is_an_error() {
    let table = Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap();
    let ids = Tensor::new(&[0u32, 3], &Device::Cpu).unwrap();
    assert!(ops::embedding(&ids, &table).is_err());
}
