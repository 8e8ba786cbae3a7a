//! Slices by permutation: the gated MLP, computed only where a gate is open.

use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;
use rstest::rstest;
use tinyonn::ops::{Grads, Learners, MlpGate, Silu, SlicedMlp, dispatch_mlp, glu_mlp};

use super::{BF16, F32, Mixture, assert_seen_alike, in_dtype, mixtures, weights};
use crate::gradients::in_memory::{assert_alike, assert_same, assert_same_sums};
use crate::gradients::{Back, assert_derivative};
use crate::models::bits;
use crate::ops::sliced;

fn dispatched(mixture: &Mixture, xs: &[Tensor]) -> Result<(Tensor, dispatch_mlp::Saved)> {
    let neuron_expert = mixture.neuron_expert(xs[0].device())?;
    let gate_tn = mixture.gates(&xs[4])?;
    dispatch_mlp::forward(&xs[0], weights(xs), MlpGate { gate_tn: &gate_tn, neuron_expert: &neuron_expert })
}

fn whole(mixture: &Mixture, xs: &[Tensor]) -> Result<(Tensor, glu_mlp::Saved)> {
    let neuron_expert = mixture.neuron_expert(xs[0].device())?;
    let gate_tn = mixture.gates(&xs[4])?;
    glu_mlp::forward(&xs[0], weights(xs), Some(MlpGate { gate_tn: &gate_tn, neuron_expert: &neuron_expert }))
}

fn dispatch<'a>(mixture: &'a Mixture, xs: &[Tensor]) -> Result<(Tensor, Back<'a>)> {
    let (y, saved) = dispatched(mixture, xs)?;
    Ok((y, sliced(xs, &Silu, saved, |dgate| mixture.gates(dgate))))
}

fn concat<'a>(mixture: &'a Mixture, xs: &[Tensor]) -> Result<(Tensor, Back<'a>)> {
    let (y, saved) = whole(mixture, xs)?;
    Ok((y, sliced(xs, &Silu, saved, |dgate| mixture.gates(dgate))))
}

#[rstest]
#[case::one_row(Mixture::new(1, 5, &[3, 2, 4], |_, n| n != 1))]
#[case::one_expert(Mixture::new(9, 4, &[7], |t, _| t % 3 != 0))]
#[case::uneven_and_one_without_a_row(Mixture::new(23, 18, &[1, 9, 5, 2], |t, n| n != 2 && (t + n) % 3 == 0))]
#[case::one_without_a_neuron(Mixture::new(6, 4, &[3, 0, 2], |t, n| n == 1 || t % 2 == 0))]
#[case::all_open(Mixture::new(11, 6, &[3, 4], |_, _| true))]
#[case::all_closed(Mixture::new(3, 4, &[2, 3], |_, _| false))]
#[case::more_rows_than_a_block(Mixture::new(600, 34, &[8, 7, 5, 6, 1], |t, n| (t * 7 + n * 3) % 11 < 3))]
fn is_the_loop_over_experts(#[case] mixture: Mixture) {
    let xs = mixture.inputs(30);
    let naive = |xs: &[Tensor]| mixture.naive(xs);
    assert_derivative(&|xs| dispatch(&mixture, xs), &xs);
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, F32), (DType::BF16, BF16)] {
        assert_same(&|xs| dispatch(&mixture, xs), &naive, &xs, dtype, tolerance);
    }
    assert_alike(&|xs| dispatch(&mixture, xs), &|xs| concat(&mixture, xs), &xs, DType::F32, F32);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_mixture_is_the_loop_over_experts(mixture in mixtures(), seed in 0u64..1000) {
        let xs = mixture.inputs(seed);
        assert_same_sums(&|xs| dispatch(&mixture, xs), &|xs| mixture.naive(xs), &xs, DType::F32, F32);
        assert_same_sums(&|xs| dispatch(&mixture, xs), &|xs| mixture.naive(xs), &xs, DType::F64, 1e-12);
    }
}

/// Imaging sees the neurons of closed gates as silent, which is all that it and Surprise Min-K read of them.
#[rstest]
fn imaging_sees_what_it_sees_of_concat(
    #[values(DType::F32, DType::F64)] dtype: DType,
    #[values(false, true)] closed: bool,
) {
    let mixture = Mixture::new(300, 12, &[3, 5, 2, 4], |t, n| !closed && (t + n) % 4 < 2);
    let xs = in_dtype(&mixture.inputs(31), dtype);
    assert_seen_alike(&xs, &dispatched(&mixture, &xs).unwrap(), &whole(&mixture, &xs).unwrap());
}

#[rstest]
fn frozen_weights_form_no_gradients(
    #[values(DType::F32, DType::F64)] dtype: DType,
    #[values(false, true)] closed: bool,
) {
    let mixture = Mixture::new(9, 4, &[3, 2], |t, n| !closed && t % 2 == n);
    let xs = in_dtype(&mixture.inputs(32), dtype);
    let (y, saved) = dispatched(&mixture, &xs).unwrap();
    let mut grads = Grads::new([(&xs[2], 0)]).unwrap();
    let deltas = saved.deltas(&y).unwrap();
    saved.weight_gradients(weights(&xs), &deltas, &Learners::All, &mut grads).unwrap();
    let formed: Vec<bool> = xs.iter().map(|x| grads.get(x).is_some()).collect();
    assert_eq!(formed, [false, false, true, false, false]);
}

#[test]
fn runs_are_equal_bit_for_bit() {
    let mixture = Mixture::new(700, 33, &[8, 7, 3, 12], |t, n| (t * 5 + n) % 3 == 0);
    let xs: Vec<Tensor> = mixture.inputs(33).iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    let run = || bits(&dispatched(&mixture, &xs).unwrap().0);
    assert_eq!(run(), run());
}

#[test]
fn what_does_not_go_together_is_refused() {
    let mixture = Mixture::new(3, 4, &[2, 3], |_, _| true);
    let xs = mixture.inputs(34);
    let refusal = |owners: &[u32], gate_tn: &Tensor| {
        let neuron_expert = Tensor::new(owners, &Device::Cpu).unwrap();
        let gate = MlpGate { gate_tn, neuron_expert: &neuron_expert };
        dispatch_mlp::forward(&xs[0], weights(&xs), gate).unwrap_err().to_string()
    };
    assert!(refusal(&[0, 1, 1, 2, 0], &xs[4]).contains("neuron 3 is of expert 2 of 2"));
    assert!(refusal(&[0, 1, 1, 1], &xs[4]).contains("4 neurons"));
    assert!(refusal(&[0, 1, 1, 1, 0], &xs[4].narrow(0, 0, 2).unwrap()).contains("2 tokens for 3 tokens"));
}
