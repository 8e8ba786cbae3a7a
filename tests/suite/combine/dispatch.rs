//! Slices by permutation: the gated MLP, computed only where a gate is open.

use candle_core::{DType, Device, Result, Tensor, Var};
use proptest::prelude::*;
use rstest::rstest;
use tinyonn::ops::{self, MlpGate};

use super::{BF16, F32, Mixture, assert_probed_alike, mixtures, weights};
use crate::gradients::{assert_derivative, assert_same};
use crate::models::bits;

fn dispatch(mixture: &Mixture, xs: &[Tensor]) -> Result<Tensor> {
    let neuron_expert = mixture.neuron_expert(xs[0].device())?;
    let gate_tn = mixture.gates(&xs[4])?;
    ops::dispatch_mlp(&xs[0], weights(xs), MlpGate { gate_tn: &gate_tn, neuron_expert: &neuron_expert }, None)
}

fn concat(mixture: &Mixture, xs: &[Tensor]) -> Result<Tensor> {
    let neuron_expert = mixture.neuron_expert(xs[0].device())?;
    let gate_tn = mixture.gates(&xs[4])?;
    ops::glu_mlp(&xs[0], weights(xs), Some(MlpGate { gate_tn: &gate_tn, neuron_expert: &neuron_expert }), None)
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
    let (op, naive) = (|xs: &[Tensor]| dispatch(&mixture, xs), |xs: &[Tensor]| mixture.naive(xs));
    assert_derivative(&op, &xs);
    assert_same(&op, &naive, &xs, DType::F64, 1e-12);
    assert_same(&op, &naive, &xs, DType::F32, F32);
    assert_same(&op, &naive, &xs, DType::BF16, BF16);
    assert_same(&op, &|xs| concat(&mixture, xs), &xs, DType::F32, F32);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_mixture_is_the_loop_over_experts(mixture in mixtures(), seed in 0u64..1000) {
        let xs = mixture.inputs(seed);
        assert_same(&|xs| dispatch(&mixture, xs), &|xs| mixture.naive(xs), &xs, DType::F32, F32);
        assert_same(&|xs| dispatch(&mixture, xs), &|xs| mixture.naive(xs), &xs, DType::F64, 1e-12);
    }
}

/// A probe sees the neurons of closed gates as silent, which is all that imaging and Surprise Min-K read of them.
#[rstest]
fn a_probe_sees_what_it_sees_of_concat(
    #[values(DType::F32, DType::F64)] dtype: DType,
    #[values(false, true)] closed: bool,
) {
    let mixture = Mixture::new(300, 12, &[3, 5, 2, 4], |t, n| !closed && (t + n) % 4 < 2);
    let dispatched = |xs: &[Tensor], probe| {
        let (gate_tn, neuron_expert) = (mixture.gates(&xs[4])?, mixture.neuron_expert(&Device::Cpu)?);
        ops::dispatch_mlp(&xs[0], weights(xs), MlpGate { gate_tn: &gate_tn, neuron_expert: &neuron_expert }, probe)
    };
    let concat = |xs: &[Tensor], probe| {
        let (gate_tn, neuron_expert) = (mixture.gates(&xs[4])?, mixture.neuron_expert(&Device::Cpu)?);
        ops::glu_mlp(&xs[0], weights(xs), Some(MlpGate { gate_tn: &gate_tn, neuron_expert: &neuron_expert }), probe)
    };
    assert_probed_alike(&mixture.inputs(31), dtype, [&dispatched, &concat]);
}

#[rstest]
#[case(DType::F32)]
#[case(DType::F64)]
fn frozen_weights_form_no_gradients(#[case] dtype: DType) {
    let mixture = Mixture::new(9, 4, &[3, 2], |t, n| t % 2 == n);
    let xs: Vec<Tensor> = mixture.inputs(32).iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
    assert!(!dispatch(&mixture, &xs).unwrap().track_op());
    let vars: Vec<Var> = xs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let mixed = [
        vars[0].as_tensor().clone(),
        vars[1].as_detached_tensor(),
        vars[2].as_tensor().clone(),
        vars[3].as_detached_tensor(),
        vars[4].as_detached_tensor(),
    ];
    let grads = ops::backward(&dispatch(&mixture, &mixed).unwrap()).unwrap();
    let formed: Vec<bool> = vars.iter().map(|var| grads.get(var).is_some()).collect();
    assert_eq!(formed, [true, false, true, false, false]);
}

#[test]
fn runs_are_equal_bit_for_bit() {
    let mixture = Mixture::new(700, 33, &[8, 7, 3, 12], |t, n| (t * 5 + n) % 3 == 0);
    let xs: Vec<Tensor> = mixture.inputs(33).iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    let run = || bits(&dispatch(&mixture, &xs).unwrap());
    assert_eq!(run(), run());
}

#[test]
fn what_does_not_go_together_is_refused() {
    let mixture = Mixture::new(3, 4, &[2, 3], |_, _| true);
    let xs = mixture.inputs(34);
    let refusal = |owners: &[u32], gate_tn: &Tensor| {
        let neuron_expert = Tensor::new(owners, &Device::Cpu).unwrap();
        let gate = MlpGate { gate_tn, neuron_expert: &neuron_expert };
        ops::dispatch_mlp(&xs[0], weights(&xs), gate, None).unwrap_err().to_string()
    };
    assert!(refusal(&[0, 1, 1, 2, 0], &xs[4]).contains("neuron 3 is of expert 2 of 2"));
    assert!(refusal(&[0, 1, 1, 1], &xs[4]).contains("4 neurons"));
    assert!(refusal(&[0, 1, 1, 1, 0], &xs[4].narrow(0, 0, 2).unwrap()).contains("2 tokens for 3 tokens"));
}
