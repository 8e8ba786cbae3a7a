//! Single neurons, chosen token by token by their own gates, or fixed: the gated MLP with a mask.

use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;
use rstest::rstest;
use tinyonn::ops::{
    ByChannel, Grads, Learners, MlpGate, NeuronChoice, ReadInputs, Silu, SlicedMlp, Take, chosen_neurons, glu_mlp,
};

use super::{F32, Mixture, assert_seen_alike, in_dtype, mixtures, weights};
use crate::gradients::{Back, assert_derivative, assert_same, assert_same_sums, inputs, relative_difference};
use crate::models::bits;
use crate::ops::sliced;

/// ū, v and a fixed set of a mixture's neurons.
struct Calibrated {
    mean_up: Tensor,
    worth: Tensor,
    kept: Tensor,
    /// n, of the channels of x.
    size: Tensor,
}

/// How neurons are chosen.
#[derive(Clone, Copy, Debug)]
enum How {
    Gate(Take),
    /// By g of the channels whose |x| n reaches the second threshold; of what is taken those whose |h| v reaches the first.
    GoOn(Take, f32, f32),
    /// Among the kept alone.
    Within(Take),
    Fixed,
}

const fn gate(most: usize, least_score: f32) -> How {
    How::Gate(Take { most, least_score })
}

impl Calibrated {
    fn new(mixture: &Mixture) -> Self {
        let i = mixture.owners().len();
        let drawn = inputs(77, &[&[i], &[i], &[mixture.d]]);
        let f32 = |x: &Tensor| x.abs().unwrap().to_dtype(DType::F32).unwrap();
        let kept: Vec<f32> = (0..i).map(|at| f32::from(u8::from(at % 3 != 1))).collect();
        let (mean_up, worth, size) = (f32(&drawn[0]), f32(&drawn[1]), f32(&drawn[2]));
        Self { mean_up, worth, kept: Tensor::new(kept, &Device::Cpu).unwrap(), size }
    }

    fn on(&self, device: &Device) -> Result<Self> {
        let [mean_up, worth, kept, size] =
            [&self.mean_up, &self.worth, &self.kept, &self.size].map(|x| x.to_device(device));
        Ok(Self { mean_up: mean_up?, worth: worth?, kept: kept?, size: size? })
    }

    fn choice(&self, how: How) -> NeuronChoice<'_> {
        let Self { mean_up: mean_up_i, worth: worth_i, kept: kept_i, size: size_d } = self;
        match how {
            How::Gate(take) => {
                NeuronChoice::Gate { mean_up_i, worth_i, candidates_i: None, take, least_hidden: 0.0, inputs: None }
            }
            How::Within(take) => NeuronChoice::Gate {
                mean_up_i,
                worth_i,
                candidates_i: Some(kept_i),
                take,
                least_hidden: 0.0,
                inputs: None,
            },
            How::GoOn(take, least_hidden, least) => {
                let inputs = (least > 0.0).then_some(ReadInputs { size_d, least, by_channel: None });
                NeuronChoice::Gate { mean_up_i, worth_i, candidates_i: None, take, least_hidden, inputs }
            }
            How::Fixed => NeuronChoice::Fixed(kept_i),
        }
    }

    /// What W_g reads of x.
    fn read(&self, how: How, x_td: &Tensor) -> Result<Tensor> {
        let How::GoOn(.., least) = how else { return Ok(x_td.clone()) };
        let size_td =
            x_td.detach().abs()?.broadcast_mul(&self.size.to_dtype(x_td.dtype())?.to_device(x_td.device())?)?;
        x_td * size_td.ge(f64::from(least))?.to_dtype(x_td.dtype())?
    }

    /// m `[t, i]`, token by token, by sorting.
    fn mask(&self, mixture: &Mixture, how: How, xs: &[Tensor]) -> Tensor {
        let values = |x: &Tensor| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let g = self.read(how, &xs[0]).unwrap().matmul(&xs[1].t().unwrap()).unwrap();
        let (up, norm) = (values(&self.mean_up), values(&self.worth));
        let (owners, kept) = (mixture.owners(), values(&self.kept));
        let (t, i) = (mixture.t, owners.len());
        let (mut mask, u) = (vec![0f64; t * i], values(&xs[0].matmul(&xs[2].t().unwrap()).unwrap()));
        for (token, g) in values(&g).chunks(i).enumerate() {
            let open = |at: &usize| mixture.open[token * mixture.experts() + owners[*at] as usize];
            let size = |at: usize, up: f64| (g[at] / (1.0 + (-g[at]).exp()) * up).abs() * norm[at];
            let score = |at: usize| size(at, up[at]);
            let mut taken: Vec<usize> = (0..i).filter(open).collect();
            if matches!(how, How::Within(_) | How::Fixed) {
                taken.retain(|at| kept[*at] > 0.0);
            }
            match how {
                How::Fixed => {}
                How::Gate(take) | How::Within(take) | How::GoOn(take, ..) => {
                    taken.retain(|at| score(*at) >= f64::from(take.least_score));
                    taken.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
                    taken.truncate(take.most);
                }
            }
            if let How::GoOn(_, least, _) = how {
                taken.retain(|at| size(*at, u[token * i + at]) >= f64::from(least));
            }
            taken.into_iter().for_each(|at| mask[token * i + at] = 1.0);
        }
        Tensor::from_vec(mask, (t, i), &Device::Cpu).unwrap()
    }
}

/// y, what the backward needs, and how many neurons each token took.
fn computed(mixture: &Mixture, how: How, xs: &[Tensor]) -> Result<(Tensor, glu_mlp::Saved, Tensor)> {
    let device = xs[0].device();
    let (neuron_expert, gate_tn) = (mixture.neuron_expert(device)?, mixture.gates(&xs[4])?);
    let calibrated = Calibrated::new(mixture).on(device)?;
    let gate = MlpGate { gate_tn: &gate_tn, neuron_expert: &neuron_expert };
    chosen_neurons::forward(&xs[0], weights(xs), Some(gate), calibrated.choice(how))
}

fn chosen<'a>(mixture: &'a Mixture, how: How, xs: &[Tensor]) -> Result<(Tensor, Back<'a>)> {
    let (y, saved, _) = computed(mixture, how, xs)?;
    Ok((y, sliced(xs, &Silu, saved, |dgate| mixture.gates(dgate))))
}

/// y = W_d (h ⊙ c ⊙ m), the mask given.
fn naive(mixture: &Mixture, mask_ti: &Tensor, xs: &[Tensor]) -> Result<Tensor> {
    naive_of(mixture, mask_ti, &xs[0], xs)
}

/// The same of what W_g reads of x.
fn naive_of(mixture: &Mixture, mask_ti: &Tensor, read_td: &Tensor, xs: &[Tensor]) -> Result<Tensor> {
    let g = read_td.matmul(&xs[1].t()?)?;
    let h = ((&g * candle_nn::ops::sigmoid(&g)?)? * xs[0].matmul(&xs[2].t()?)?)?;
    let c = mixture.gates(&xs[4])?.index_select(&mixture.neuron_expert(xs[0].device())?, 1)?;
    ((h * c)? * mask_ti.to_dtype(xs[0].dtype())?.to_device(xs[0].device())?)?.matmul(&xs[3])
}

#[rstest]
#[case::one_token(Mixture::new(1, 5, &[3, 2, 4], |_, n| n != 1), gate(3, 0.0))]
#[case::few_tokens(Mixture::new(4, 18, &[1, 9, 5, 2], |t, n| n != 2 && (t + n) % 3 == 0), gate(4, 0.0))]
#[case::many(Mixture::new(23, 18, &[1, 9, 5, 2], |t, n| n != 2 && (t + n) % 3 == 0), gate(4, 0.0))]
#[case::a_threshold(Mixture::new(23, 18, &[9, 8], |_, _| true), gate(17, 0.3))]
#[case::a_threshold_of_one_token(Mixture::new(1, 18, &[9, 8], |_, _| true), gate(17, 0.3))]
#[case::both(Mixture::new(9, 18, &[9, 8], |_, _| true), gate(3, 0.3))]
#[case::none(Mixture::new(3, 4, &[2, 3], |_, _| true), gate(0, 0.0))]
#[case::out_of_reach(Mixture::new(6, 4, &[2, 3], |_, _| true), gate(5, 1e9))]
#[case::all(Mixture::new(11, 6, &[3, 4], |_, _| true), gate(7, 0.0))]
#[case::fixed(Mixture::new(11, 6, &[3, 4, 1], |t, n| (t + n) % 3 != 0), How::Fixed)]
#[case::fixed_of_one_token(Mixture::new(1, 6, &[3, 4, 1], |_, _| true), How::Fixed)]
#[case::within_a_set(Mixture::new(9, 6, &[3, 4, 1], |t, n| (t + n) % 3 != 0), How::Within(Take { most: 2, least_score: 0.1 }))]
#[case::within_a_set_of_one_token(Mixture::new(1, 6, &[3, 4, 1], |_, _| true), How::Within(Take { most: 8, least_score: 0.2 }))]
#[case::all_within_a_set(Mixture::new(11, 6, &[3, 4, 1], |_, _| true), How::Within(Take { most: 8, least_score: 0.0 }))]
#[case::more_rows_than_a_block(Mixture::new(600, 34, &[8, 70, 5, 6, 1], |t, n| (t * 7 + n * 3) % 11 < 8), gate(21, 0.1))]
fn is_the_masked_mlp(#[case] mixture: Mixture, #[case] how: How) {
    let xs = mixture.inputs(30);
    let mask_ti = Calibrated::new(&mixture).mask(&mixture, how, &xs);
    assert_derivative(&|xs| chosen(&mixture, how, xs), &xs);
    let reference = |xs: &[Tensor]| naive(&mixture, &mask_ti, xs);
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, F32)] {
        assert_same(&|xs| chosen(&mixture, how, xs), &reference, &xs, dtype, tolerance);
    }
    let taken = computed(&mixture, how, &in_dtype(&xs, DType::F32)).unwrap().2.to_vec1::<f32>().unwrap();
    assert_eq!(taken, mask_ti.sum(1).unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn of_any_mixture(mixture in mixtures(), seed in 0u64..1000, most in 0usize..12) {
        let (xs, how) = (mixture.inputs(seed), gate(most, 0.0));
        let mask_ti = Calibrated::new(&mixture).mask(&mixture, how, &xs);
        let reference = |xs: &[Tensor]| naive(&mixture, &mask_ti, xs);
        assert_same_sums(&|xs| chosen(&mixture, how, xs), &reference, &xs, DType::F64, 1e-12);
    }
}

/// W_g reads the channels that are large enough, and of what is taken those go on that turn out to be; the others count half.
#[rstest]
#[case::one_token(1, Take { most: 18, least_score: 0.2 }, 0.4)]
#[case::few(4, Take { most: 6, least_score: 0.0 }, 0.3)]
#[case::many(23, Take { most: 18, least_score: 0.2 }, 0.4)]
#[case::all_are_scored(9, Take { most: 18, least_score: 0.0 }, 0.5)]
fn what_goes_on_is_the_masked_mlp(
    #[case] t: usize,
    #[case] take: Take,
    #[case] least: f32,
    #[values(0.0, 0.3)] input: f32,
) {
    let mixture = Mixture::new(t, 12, &[5, 9, 4], |t, n| (t + n) % 4 < 3);
    let (xs, calibrated, how) = (mixture.inputs(30), Calibrated::new(&mixture), How::GoOn(take, least, input));
    let [first_ti, mask_ti] = [How::GoOn(take, 0.0, input), how].map(|how| calibrated.mask(&mixture, how, &xs));
    assert_derivative(&|xs| chosen(&mixture, how, xs), &xs);
    let reference = |xs: &[Tensor]| naive_of(&mixture, &mask_ti, &calibrated.read(how, &xs[0])?, xs);
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, F32)] {
        assert_same(&|xs| chosen(&mixture, how, xs), &reference, &xs, dtype, tolerance);
    }
    let taken = computed(&mixture, how, &in_dtype(&xs, DType::F32)).unwrap().2.to_vec1::<f32>().unwrap();
    let expected = ((first_ti + mask_ti.clone()).unwrap().sum(1).unwrap() * 0.5).unwrap();
    assert_eq!(taken, expected.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap());
}

/// A few tokens read channels of W_gᵀ where it is at hand: the same but for the order of additions, of all neurons and of candidates.
#[rstest]
fn channels_that_are_not_read_need_not_be(#[values(1, 4)] t: usize, #[values(false, true)] within: bool) {
    let mixture = Mixture::new(t, 12, &[5, 9, 4], |_, _| true);
    let (xs, calibrated) = (in_dtype(&mixture.inputs(31), DType::F32), Calibrated::new(&mixture));
    let kept: Vec<f32> = calibrated.kept.to_vec1().unwrap();
    let own = kept.iter().zip(0u32..).filter(|(kept, _)| !within || **kept > 0.0).map(|(_, at)| at);
    let own = Tensor::new(own.collect::<Vec<u32>>(), &Device::Cpu).unwrap();
    let by_channel = xs[1].index_select(&own, 0).unwrap().t().unwrap().contiguous().unwrap();
    let of = |by_channel| {
        let choice = NeuronChoice::Gate {
            mean_up_i: &calibrated.mean_up,
            worth_i: &calibrated.worth,
            candidates_i: within.then_some(&calibrated.kept),
            take: Take { most: 18, least_score: 0.1 },
            least_hidden: 0.05,
            inputs: Some(ReadInputs { size_d: &calibrated.size, least: 0.3, by_channel }),
        };
        chosen_neurons::forward(&xs[0], weights(&xs), None, choice).unwrap()
    };
    let [(y, _, taken), (by_channel_y, _, by_channel_taken)] =
        [of(None), of(Some(ByChannel { gate_dc: &by_channel, place_i: None }))];
    assert!(taken.sum_all().unwrap().to_scalar::<f32>().unwrap() > 0.0);
    assert_eq!(taken.to_vec1::<f32>().unwrap(), by_channel_taken.to_vec1::<f32>().unwrap());
    // Sums of twelve products in f32, in two orders.
    assert!(relative_difference(&y, &by_channel_y) < 1e-5);
}

/// Who takes all neurons computes the dense MLP, to the last bit, be it one token or many.
#[rstest]
fn all_neurons_are_the_dense_mlp(
    #[values(1, 4, 9)] t: usize,
    #[values(DType::F32, DType::BF16, DType::F64)] dtype: DType,
) {
    let mixture = Mixture::new(t, 12, &[5, 9], |_, _| true);
    let xs = in_dtype(&mixture.inputs(4), dtype);
    let calibrated = Calibrated::new(&mixture);
    let (y, ..) = chosen_neurons::forward(&xs[0], weights(&xs), None, calibrated.choice(gate(14, 0.0))).unwrap();
    assert_eq!(bits(&y), bits(&glu_mlp::forward(&xs[0], weights(&xs), None).unwrap().0));
}

/// Of equal scores the lower index; a score that is no number is taken first, so that it shows.
#[test]
fn ties_and_numbers_that_are_none() {
    let take = |most, least_score| Take { most, least_score };
    let chosen = |scores: &[f32], take| {
        let scores = Tensor::from_slice(scores, (1, scores.len()), &Device::Cpu).unwrap();
        chosen_neurons::chosen(&scores, None, take).unwrap().to_vec2::<f32>().unwrap().remove(0)
    };
    assert_eq!(chosen(&[1.0, 2.0, 1.0, 1.0], take(3, 0.0)), [1.0, 1.0, 1.0, 0.0]);
    assert_eq!(chosen(&[0.0; 4], take(2, 0.0)), [1.0, 1.0, 0.0, 0.0]);
    assert_eq!(chosen(&[0.5, 1.0, 0.2], take(9, 0.5)), [1.0, 1.0, 0.0]);
    assert_eq!(chosen(&[f32::INFINITY, 1.0, f32::INFINITY], take(2, 0.0)), [1.0, 0.0, 1.0]);
    let mixture = Mixture::new(1, 3, &[2, 2], |_, _| true);
    let mut xs = in_dtype(&mixture.inputs(8), DType::F32);
    xs[1] = Tensor::new(&[[f32::NAN; 3], [0.1; 3], [0.2; 3], [0.3; 3]], &Device::Cpu).unwrap();
    let (y, ..) = computed(&mixture, gate(1, 0.0), &xs).unwrap();
    assert!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|y| y.is_nan()));
    let how = How::GoOn(Take { most: 4, least_score: 0.0 }, 1e9, 0.0);
    let (y, ..) = computed(&mixture, how, &xs).unwrap();
    assert!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|y| y.is_nan()));
    // A channel that is no number is read, whatever the threshold.
    xs[0] = Tensor::new(&[[f32::NAN, 0.1, 0.2]], &Device::Cpu).unwrap();
    let how = How::GoOn(Take { most: 4, least_score: 0.0 }, 0.0, 1e9);
    let (y, ..) = computed(&mixture, how, &xs).unwrap();
    assert!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|y| y.is_nan()));
}

/// Imaging sees the neurons that were not taken as silent; a gate's gradient counts those that were alone.
#[rstest]
fn imaging_sees_the_mask(#[values(DType::F32, DType::F64)] dtype: DType, #[values(3, 40)] t: usize) {
    let mixture = Mixture::new(t, 12, &[3, 5, 2, 4], |t, n| (t + n) % 4 < 3);
    let xs = in_dtype(&mixture.inputs(31), dtype);
    let how = gate(4, 0.0);
    // The same as experts of one neuron each, whose gates are the mask.
    let mask_ti = Calibrated::new(&mixture).mask(&mixture, how, &mixture.inputs(31));
    let spread = mixture.gates(&xs[4]).unwrap().index_select(&mixture.neuron_expert(&Device::Cpu).unwrap(), 1).unwrap();
    let gate_ti = (spread * mask_ti.to_dtype(dtype).unwrap()).unwrap();
    let each = Tensor::arange(0u32, 14, &Device::Cpu).unwrap();
    let single = MlpGate { gate_tn: &gate_ti, neuron_expert: &each };
    let whole = glu_mlp::forward(&xs[0], weights(&xs), Some(single)).unwrap();
    let (y, saved, _) = computed(&mixture, how, &xs).unwrap();
    assert_seen_alike(&xs, &(y, saved), &whole);
}

#[rstest]
fn frozen_weights_form_no_gradients(#[values(1, 9)] t: usize) {
    let mixture = Mixture::new(t, 6, &[3, 4], |_, _| true);
    let xs = in_dtype(&mixture.inputs(5), DType::F32);
    let (y, saved, _) = computed(&mixture, gate(2, 0.0), &xs).unwrap();
    let deltas = saved.deltas(&y).unwrap();
    let mut grads = Grads::new([(&xs[3], 0)]).unwrap();
    saved.weight_gradients(weights(&xs), &deltas, &Learners::All, &mut grads).unwrap();
    assert!(grads.get(&xs[3]).is_some() && grads.get(&xs[1]).is_none() && grads.get(&xs[2]).is_none());
}
