//! Every operation: its derivative against central differences (f64), its fused form (f32) against a composition of
//! candle's own differentiable operations, and what it does not form: gradients of what is frozen.

use candle_core::{D, DType, Device, Result, Tensor};
use rstest::rstest;
use tinyonn::ops::share_loss::{self, Shares};
use tinyonn::ops::{
    self, Activation, Grads, Imaging, Learners, LearningNeurons, MlpGate, MlpWeights, Silu, SlicedMlp, attention,
    cross_entropy, elementwise, embedding, gaussian_density, glu_mlp, linear, open_gates, rms_norm, rope,
};

use crate::gradients::{Back, Function, Pair, assert_derivative, assert_same, doubled, inputs, relative_difference};

/// f32 carries 2⁻²⁴ = 6e-8 an operation; sums of a few hundred terms of mixed sign reach about 1e-6.
const F32: f64 = 5e-6;

fn check(op: Pair<'_>, composition: Function<'_>, xs: &[Tensor]) {
    assert_derivative(op, xs);
    assert_same(op, composition, xs, DType::F64, 1e-12);
    assert_same(op, composition, xs, DType::F32, F32);
}

/// The way back of an operation whose first inputs get a gradient each.
fn firsts<const N: usize>(gradients: [Tensor; N]) -> Vec<(usize, Tensor)> {
    gradients.into_iter().enumerate().collect()
}

#[rstest]
#[case(&[5, 7], 3, true)]
#[case(&[2, 70, 8], 9, false)]
#[case(&[1, 1, 4], 4, true)]
fn a_linear_map(#[case] x: &[usize], #[case] m: usize, #[case] bias: bool) {
    let n = *x.last().unwrap();
    let (w, b) = ([m, n], [m]);
    let shapes: Vec<&[usize]> = if bias { vec![x, &w, &b] } else { vec![x, &w] };
    check(
        &|xs| {
            let xs = xs.to_vec();
            let y = linear::forward(&xs[0], &xs[1], xs.get(2))?;
            let back = move |dy: &Tensor, grads: &mut Grads| {
                Ok(firsts([linear::backward(&xs[0], &xs[1], xs.get(2), dy, true, grads)?.unwrap()]))
            };
            Ok((y, Box::new(back)))
        },
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
fn a_normalisation(#[case] x: &[usize]) {
    let d = *x.last().unwrap();
    check(
        &|xs| {
            let xs = xs.to_vec();
            let y = rms_norm::forward(&xs[0], &xs[1], 1e-6)?;
            Ok((y, Box::new(move |dy, grads| Ok(firsts([rms_norm::backward(&xs[0], &xs[1], 1e-6, dy, grads)?])))))
        },
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
fn rotary_positions(#[case] x: [usize; 4]) {
    let angles = &inputs(3, &[&[x[1], x[3] / 2]])[0];
    let table =
        |dtype: DType| (angles.cos().unwrap().to_dtype(dtype).unwrap(), angles.sin().unwrap().to_dtype(dtype).unwrap());
    check(
        &|xs| {
            let (cos, sin) = table(xs[0].dtype());
            let (cos, sin) = (cos.to_device(xs[0].device())?, sin.to_device(xs[0].device())?);
            let y = rope::forward(&xs[0], &cos, &sin)?;
            Ok((y, Box::new(move |dy, _| Ok(firsts([rope::backward(dy, &cos, &sin)?])))))
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
        &|xs| {
            let (y, saved) = attention::forward(&xs[0], &xs[1], &xs[2])?;
            Ok((y, Box::new(move |dy, _| Ok(firsts(attention::backward(&saved, dy)?)))))
        },
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
    let (y, _) = attention::forward(&xs[0], &xs[1], &xs[1]).unwrap();
    let changed = Tensor::cat(&[&xs[1].narrow(1, 0, 69).unwrap(), &xs[0].narrow(1, 0, 1).unwrap()], 1).unwrap();
    let (z, _) = attention::forward(&xs[0], &changed, &changed).unwrap();
    let before = |y: &Tensor| y.narrow(1, 0, 69).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(before(&y), before(&z));
    assert!(relative_difference(&y, &z) > 0.0);
}

/// Room behind the positions that are taken changes no bit, whatever lies there.
#[rstest]
fn attention_steps_over_room(#[values(DType::F32, DType::F64)] dtype: DType, #[values(1, 3)] b: usize) {
    let xs: Vec<Tensor> = inputs(8, &[&[b, 2, 4, 6], &[b, 16, 2, 6], &[b, 16, 2, 6]])
        .iter()
        .map(|x| x.to_dtype(dtype).unwrap())
        .collect();
    let bits = |y: Tensor| y.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
    for taken in [2, 9, 16] {
        let part = |x: &Tensor| x.narrow(1, 0, taken).unwrap().contiguous().unwrap();
        let (expected, _) = attention::forward(&xs[0], &part(&xs[1]), &part(&xs[2])).unwrap();
        let (found, _) = attention::forward_in_room(&xs[0], &xs[1], &xs[2], taken).unwrap();
        assert_eq!(bits(found), bits(expected), "{taken}");
    }
    assert!(attention::forward_in_room(&xs[0], &xs[1], &xs[2], 17).is_err());
    let (y, saved) = attention::forward_in_room(&xs[0], &xs[1], &xs[2], 9).unwrap();
    assert!(dtype != DType::F32 || attention::backward(&saved, &y).is_err());
}

#[rstest]
#[case(vec![0, 3, 3, 1])]
#[case(vec![4])]
fn rows_of_a_table(#[case] ids: Vec<u32>) {
    let ids = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap();
    check(
        &|xs| {
            let (ids, table) = (ids.to_device(xs[0].device())?, xs[0].clone());
            let y = embedding::forward(&ids, &table)?;
            Ok((y, Box::new(move |dy, grads| embedding::backward(&ids, &table, dy, grads).map(|()| vec![]))))
        },
        &|xs| xs[0].index_select(&ids, 0),
        &inputs(7, &[&[5, 3]]),
    );
}

#[rstest]
#[case(&[4], 11)]
#[case(&[2, 40], 50)]
fn a_head_and_its_cross_entropy(#[case] shape: &[usize], #[case] v: usize) {
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
    let op = |xs: &[Tensor]| -> Result<(Tensor, Back<'static>)> {
        let (xs, targets) = (xs.to_vec(), targets.to_device(xs[0].device())?);
        let (losses, saved) = cross_entropy::forward(&xs[0], &xs[1], &targets, true)?;
        let back = move |dlosses: &Tensor, grads: &mut Grads| {
            let dx = cross_entropy::backward(saved.unwrap(), &xs[1], dlosses, true, grads)?.unwrap();
            Ok(firsts([dx.reshape(xs[0].shape())?]))
        };
        Ok((losses, Box::new(back)))
    };
    check(&|xs| op(xs), &losses, &xs);
}

#[rstest]
#[case(5, 3, 4)]
#[case(70, 9, 6)]
fn densities_of_gaussians(#[case] t: usize, #[case] c: usize, #[case] r: usize) {
    check(&|xs| density(xs), &density_composition, &inputs(15, &[&[t, r], &[c, r], &[c, r]]));
}

/// The last class asks nothing of the second router on.
#[rstest]
#[case(5, 2, 3)]
#[case(70, 10, 10)] // more rows than a block
fn losses_against_shares(#[case] t: usize, #[case] p: usize, #[case] c: usize) {
    let shares: Vec<f64> =
        (0..3 * p * c).map(|at| if at < 2 * p * c + c { (at % 4) as f64 / 4.0 } else { 0.0 }).collect();
    let classes: Vec<u32> = (0..t as u32).map(|row| row * 7 % 3).collect();
    let asked = |x: &Tensor| -> Result<(Tensor, Tensor)> {
        let shares_kn = Tensor::from_slice(&shares, (3, p * c), x.device())?.to_dtype(x.dtype())?;
        Ok((shares_kn, Tensor::new(classes.as_slice(), x.device())?))
    };
    check(
        &|xs| {
            let (logits, (shares_kn, classes_t)) = (xs[0].clone(), asked(&xs[0])?);
            let y = share_loss::forward(&logits, Shares { shares_kn: &shares_kn, classes_t: &classes_t })?;
            let back = move |dy: &Tensor, _: &mut Grads| {
                let asked = Shares { shares_kn: &shares_kn, classes_t: &classes_t };
                let gradient = share_loss::backward(&logits, asked)?.to_dtype(dy.dtype())?;
                Ok(firsts([gradient.broadcast_mul(dy)?]))
            };
            Ok((y, Box::new(back)))
        },
        &|xs| {
            let (shares_kn, classes_t) = asked(&xs[0])?;
            let log_p = candle_nn::ops::log_softmax(&xs[0], D::Minus1)?.flatten_from(1)?;
            (log_p * shares_kn.index_select(&classes_t, 0)?)?.sum(1)?.mean_all()?.neg()
        },
        &inputs(17, &[&[t, p, c]]),
    );
}

/// What is fused in f32 against the same in plain operations, f64.
#[test]
fn scores_and_sums_by_a_factor() {
    let xs = inputs(18, &[&[70, 6], &[6], &[70, 6]]);
    let narrow = xs.iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect::<Vec<_>>();
    let scale = |dtype| Tensor::new(1.5f64, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
    let scores = |xs: &[Tensor]| gaussian_density::scores(&xs[0], &scale(xs[0].dtype()), &xs[1]).unwrap();
    assert!(relative_difference(&scores(&narrow), &scores(&xs)) < 1e-6);
    let sum = |xs: &[Tensor]| elementwise::add_scaled(&xs[0], &xs[2], -0.7).unwrap();
    assert!(relative_difference(&sum(&narrow), &sum(&xs)) < 1e-6);
}

/// The loops count what the plain operations count.
#[test]
fn tokens_by_open_gates() {
    let gates: Vec<f64> = (0..70 * 9).map(|at| if at * 5 % 7 < 3 { f64::from(at) / 600.0 } else { 0.0 }).collect();
    let gate_dn = Tensor::from_vec(gates, (70, 9), &Device::Cpu).unwrap();
    let tokens: Vec<f32> = (0..70u8).map(|d| f32::from(d % 5)).collect();
    let plain = open_gates(&gate_dn, Some(tokens.clone())).unwrap();
    let fused = open_gates(&gate_dn.to_dtype(DType::F32).unwrap(), Some(tokens.clone())).unwrap();
    for (plain, fused) in plain.iter().zip(&fused) {
        assert_eq!(plain.to_vec1::<f32>().unwrap(), fused.to_vec1::<f32>().unwrap());
    }
    assert_eq!(fused[1].sum_all().unwrap().to_scalar::<f32>().unwrap(), tokens.iter().sum::<f32>());
    assert!(open_gates(&gate_dn, Some(vec![1.0; 3])).is_err());
}

fn density(xs: &[Tensor]) -> Result<(Tensor, Back<'static>)> {
    let (y, saved) = gaussian_density::forward(&xs[0], &xs[1], &xs[2])?;
    Ok((y, Box::new(move |dy, _| Ok(firsts(gaussian_density::backward(&saved, dy)?)))))
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
    // Differences of numbers within a factor of two are exact, and what follows is of order one; z² would be off by 0.06.
    assert_same(&|xs| density(xs), &density_composition, &xs, DType::F32, 1e-5);
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
    h.matmul(&xs[3])?.reshape(xs[0].shape())
}

fn weights(xs: &[Tensor]) -> MlpWeights<'_> {
    MlpWeights { gate: &xs[1], up: &xs[2], down: &xs[3], activation: &Silu }
}

/// The way back of an MLP of slices: x is input 0, its matrices are inputs 1 to 3 and the gates input 4, from whose gradient `through` leads
/// on to that of the input.
pub(crate) fn sliced<'a, S: SlicedMlp + 'a>(
    xs: &[Tensor],
    activation: &'static dyn Activation,
    saved: S,
    through: impl Fn(&Tensor) -> Result<Tensor> + 'a,
) -> Back<'a> {
    let xs = xs.to_vec();
    Box::new(move |dy, grads| {
        let deltas = saved.deltas(dy)?;
        let weights = MlpWeights { gate: &xs[1], up: &xs[2], down: &xs[3], activation };
        saved.weight_gradients(weights, &deltas, &Learners::All, grads)?;
        let mut inputs = vec![(0, saved.input_gradient(&deltas)?.reshape(xs[0].shape())?)];
        if let Some(dgate) = saved.gate_gradient(&deltas)? {
            inputs.push((4, through(&dgate)?));
        }
        Ok(inputs)
    })
}

#[rstest]
#[case(&[3, 4], 7)]
#[case(&[2, 70, 6], 33)]
fn an_mlp(#[case] x: &[usize], #[case] i: usize) {
    let d = *x.last().unwrap();
    check(
        &|xs| {
            let (y, saved) = glu_mlp::forward(&xs[0], weights(xs), None)?;
            Ok((y, sliced(xs, &Silu, saved, |dgate| Ok(dgate.clone()))))
        },
        &|xs| mlp_composition(xs, None),
        &inputs(9, &[x, &[i, d], &[i, d], &[i, d]]),
    );
}

#[rstest]
#[case(&[5, 4], 7, 3)]
#[case(&[2, 70, 6], 33, 4)]
fn a_gated_mlp(#[case] x: &[usize], #[case] i: usize, #[case] n: usize) {
    let (d, t) = (*x.last().unwrap(), x[..x.len() - 1].iter().product());
    let neuron_expert: Vec<u32> = (0..i).map(|neuron| (neuron * 5 % n) as u32).collect();
    let neuron_expert = Tensor::new(neuron_expert.as_slice(), &Device::Cpu).unwrap();
    check(
        &|xs| {
            let neuron_expert = neuron_expert.to_device(xs[0].device())?;
            let gate = MlpGate { gate_tn: &xs[4], neuron_expert: &neuron_expert };
            let (y, saved) = glu_mlp::forward(&xs[0], weights(xs), Some(gate))?;
            Ok((y, sliced(xs, &Silu, saved, |dgate| Ok(dgate.clone()))))
        },
        &|xs| mlp_composition(xs, Some(&neuron_expert)),
        &inputs(10, &[x, &[i, d], &[i, d], &[i, d], &[t, n]]),
    );
}

/// Every seventh token is left out: 1 for each of `tokens` that counts.
pub(crate) fn counted_t(tokens: usize, device: &Device) -> Tensor {
    Tensor::new((0..tokens).map(|t| u8::from(t % 7 != 3)).collect::<Vec<_>>(), device).unwrap()
}

/// What imaging sums of a pass over L = Σ y², a sum a row of `[7, i]`.
pub(crate) fn moments<S: SlicedMlp>((y, saved): &(Tensor, S)) -> Vec<Vec<f64>> {
    let deltas = saved.deltas(&doubled(y)).unwrap();
    let see = |pass: &ops::MlpBackward<'_>| {
        let counted_t = counted_t(pass.x_td.dim(0)?, pass.x_td.device());
        ops::image_moments(pass, &counted_t, &Imaging::default())
    };
    saved.seen(&deltas, see).unwrap().neurons.to_vec2().unwrap()
}

/// The gradients of x and of the three matrices of L = Σ y², of some neurons or all.
pub(crate) fn gradients_of<S: SlicedMlp>(xs: &[Tensor], (y, saved): &(Tensor, S), learners: &Learners) -> [Tensor; 4] {
    let mut grads = Grads::new(xs[1..4].iter().map(|x| (x, 0))).unwrap();
    let deltas = saved.deltas(&doubled(y)).unwrap();
    saved.weight_gradients(weights(xs), &deltas, learners, &mut grads).unwrap();
    let of = |at: usize| grads.get(&xs[at]).unwrap().copy().unwrap();
    [saved.input_gradient(&deltas).unwrap(), of(1), of(2), of(3)]
}

/// Learners among `count` neurons.
pub(crate) fn learners(count: usize, neurons: &[usize]) -> Learners {
    let marks: Vec<u8> = (0..count).map(|neuron| u8::from(neurons.contains(&neuron))).collect();
    Learners::Neurons(LearningNeurons::new(&Tensor::new(marks, &Device::Cpu).unwrap(), neurons.len()).unwrap())
}

#[rstest]
#[case(DType::F32, F32)]
#[case(DType::F64, 1e-12)]
fn only_learners_get_weight_gradients(#[case] dtype: DType, #[case] tolerance: f64) {
    let xs: Vec<Tensor> =
        inputs(11, &[&[9, 4], &[7, 4], &[7, 4], &[7, 4]]).iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
    let pass = glu_mlp::forward(&xs[0], weights(&xs), None).unwrap();
    let gradients = |learners: &Learners| gradients_of(&xs, &pass, learners);
    let (all, some) = (gradients(&Learners::All), gradients(&learners(7, &[1, 4])));
    assert!(relative_difference(&all[0], &some[0]) == 0.0);
    for (full, part) in all[1..].iter().zip(&some[1..]) {
        for neuron in 0..7 {
            let (full, part) = (full.get(neuron).unwrap(), part.get(neuron).unwrap());
            if [1, 4].contains(&neuron) {
                assert!(relative_difference(&full, &part) <= tolerance);
            } else {
                assert_eq!(part.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap(), vec![0.0; 4]);
            }
        }
    }
    let none = gradients(&learners(7, &[]));
    let zeros = |grad: &Tensor| crate::models::bits(grad).iter().all(|bits| *bits == 0);
    assert!(none[1..].iter().all(zeros) && relative_difference(&none[0], &all[0]) == 0.0);
}

/// What imaging reads is there before any weight gradient is formed, and needs none.
#[test]
fn the_backward_of_frozen_weights_is_seen() {
    let xs: Vec<Tensor> = inputs(12, &[&[9, 4], &[7, 4], &[7, 4], &[7, 4]]);
    let sums = moments(&glu_mlp::forward(&xs[0], weights(&xs), None).unwrap());
    assert_eq!(sums.len(), 7);
    assert!(sums.iter().all(|sum| sum.iter().any(|x| *x != 0.0)));
}

#[rstest]
#[case(false)]
#[case(true)]
fn fused_moments_equal_the_definition(#[case] gated: bool) {
    let xs = inputs(13, &[&[600, 4], &[7, 4], &[7, 4], &[7, 4], &[600, 3]]);
    let neuron_expert = Tensor::new(&[0u32, 1, 2, 0, 1, 2, 0], &Device::Cpu).unwrap();
    let run = |dtype| {
        let xs: Vec<Tensor> = xs.iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
        let gate = gated.then_some(MlpGate { gate_tn: &xs[4], neuron_expert: &neuron_expert });
        moments(&glu_mlp::forward(&xs[0], weights(&xs), gate).unwrap())
    };
    let (expected, fused) = (run(DType::F64), run(DType::F32));
    for (expected, fused) in expected.iter().zip(&fused) {
        for (expected, fused) in expected.iter().zip(fused) {
            // The tokens' values are f32; only their sums are f64.
            approx::assert_relative_eq!(expected, fused, max_relative = 2e-5, epsilon = 1e-5);
        }
    }
}

#[test]
fn an_embedding_out_of_range_is_an_error() {
    let table = Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap();
    let ids = Tensor::new(&[0u32, 3], &Device::Cpu).unwrap();
    assert!(embedding::forward(&ids, &table).is_err());
}
