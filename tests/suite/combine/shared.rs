//! Decisions that runs of rows share: the gated MLP with those gates at every row.

use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;
use rstest::rstest;
use tinyonn::ops::{Grads, Learners, MlpGate, RowRun, Silu, SlicedMlp, glu_mlp, shared_mlp};

use super::{BF16, F32, Mixture, assert_seen_alike, in_dtype, mixtures, weights};
use crate::gradients::in_memory::{assert_alike, assert_same, assert_same_sums};
use crate::gradients::{Back, assert_derivative, inputs};
use crate::models::bits;
use crate::ops::sliced;

/// A mixture whose gates are those of decisions, and (length, decision) of each run.
#[derive(Clone, Debug)]
struct Case {
    decisions: Mixture,
    runs: Vec<(usize, Option<usize>)>,
}

impl Case {
    fn runs(&self) -> Vec<RowRun> {
        let mut next = 0;
        let run = |(length, decision): &(usize, Option<usize>)| {
            next += length;
            RowRun { rows: next - length..next, decision: *decision }
        };
        self.runs.iter().map(run).collect()
    }

    fn inputs(&self, seed: u64) -> Vec<Tensor> {
        let mut xs = self.decisions.inputs(seed);
        let rows = self.runs.iter().map(|(length, _)| length).sum();
        xs[0] = inputs(seed + 1, &[&[rows, self.decisions.d]]).remove(0);
        xs
    }

    fn shared(&self, xs: &[Tensor]) -> Result<(Tensor, shared_mlp::Saved)> {
        let neuron_expert = self.decisions.neuron_expert(xs[0].device())?;
        let gate_tn = self.decisions.gates(&xs[4])?;
        let gate = MlpGate { gate_tn: &gate_tn, neuron_expert: &neuron_expert };
        shared_mlp::forward(&xs[0], weights(xs), gate, &self.runs())
    }

    fn shared_pair<'a>(&'a self, xs: &[Tensor]) -> Result<(Tensor, Back<'a>)> {
        let (y, saved) = self.shared(xs)?;
        Ok((y, sliced(xs, &Silu, saved, |dgate| self.decisions.gates(dgate))))
    }

    /// The gates of every row.
    fn spread(&self, gate_dn: &Tensor) -> Result<Tensor> {
        let gate_dn = self.decisions.gates(gate_dn)?;
        let of_run = |(length, decision): &(usize, Option<usize>)| {
            let shape = (*length, self.decisions.experts());
            match decision {
                Some(decision) => gate_dn.narrow(0, *decision, 1)?.broadcast_as(shape),
                None => Tensor::ones(shape, gate_dn.dtype(), gate_dn.device()),
            }
        };
        Tensor::cat(&self.runs.iter().map(of_run).collect::<Result<Vec<_>>>()?, 0)
    }

    fn concat(&self, xs: &[Tensor]) -> Result<(Tensor, glu_mlp::Saved)> {
        let neuron_expert = self.decisions.neuron_expert(xs[0].device())?;
        let gate_tn = self.spread(&xs[4])?;
        let gate = MlpGate { gate_tn: &gate_tn, neuron_expert: &neuron_expert };
        glu_mlp::forward(&xs[0], weights(xs), Some(gate))
    }

    /// The gates of a decision have the sum of what those of its rows have.
    fn concat_pair<'a>(&'a self, xs: &[Tensor]) -> Result<(Tensor, Back<'a>)> {
        let (y, saved) = self.concat(xs)?;
        let by_decision = |dgate_tn: &Tensor| {
            let mut sums =
                vec![Tensor::zeros((1, dgate_tn.dim(1)?), dgate_tn.dtype(), dgate_tn.device())?; self.decisions.t];
            for RowRun { rows, decision } in self.runs().into_iter().filter(|run| !run.rows.is_empty()) {
                if let Some(decision) = decision {
                    let own = dgate_tn.narrow(0, rows.start, rows.len())?.sum_keepdim(0)?;
                    sums[decision] = (&sums[decision] + own)?;
                }
            }
            self.decisions.gates(&Tensor::cat(&sums, 0)?)
        };
        Ok((y, sliced(xs, &Silu, saved, by_decision)))
    }

    fn naive(&self, xs: &[Tensor]) -> Result<Tensor> {
        self.decisions.naive_gated(xs, &self.spread(&xs[4])?)
    }
}

fn segments() -> Case {
    let decisions = Mixture::new(4, 6, &[3, 1, 5, 2], |d, n| d != 2 && (d + n) % 2 == 0);
    Case {
        decisions,
        runs: vec![(5, None), (7, Some(1)), (1, Some(0)), (6, Some(1)), (2, Some(2)), (0, Some(0)), (3, None)],
    }
}

#[rstest]
#[case::segments_and_one_decision_without_an_expert(segments())]
#[case::one_row(Case { decisions: Mixture::new(1, 4, &[2, 3], |_, n| n == 1), runs: vec![(1, Some(0))] })]
#[case::one_expert(Case { decisions: Mixture::new(2, 4, &[5], |d, _| d == 0), runs: vec![(3, Some(0)), (2, Some(1))] })]
#[case::nothing_chosen(Case { decisions: Mixture::new(1, 4, &[2, 3], |_, _| false), runs: vec![(4, Some(0))] })]
#[case::all_chosen(Case { decisions: Mixture::new(1, 9, &[20, 13], |_, _| true), runs: vec![(80, Some(0))] })]
fn is_the_loop_over_experts(#[case] case: Case) {
    let xs = case.inputs(40);
    let naive = |xs: &[Tensor]| case.naive(xs);
    assert_derivative(&|xs| case.shared_pair(xs), &xs);
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, F32), (DType::BF16, BF16)] {
        assert_same(&|xs| case.shared_pair(xs), &naive, &xs, dtype, tolerance);
    }
    assert_alike(&|xs| case.shared_pair(xs), &|xs| case.concat_pair(xs), &xs, DType::F32, F32);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_runs_are_the_loop_over_experts(
        decisions in mixtures(),
        lengths in prop::collection::vec((0usize..12, 0usize..50), 1..10),
        seed in 0u64..1000,
    ) {
        // One more than there are decisions is none.
        let runs = lengths.into_iter().chain([(1, 0)]).map(|(length, at)| (length, at % (decisions.t + 1)));
        let runs = runs.map(|(length, at)| (length, (at < decisions.t).then_some(at))).collect();
        let case = Case { decisions, runs };
        let xs = case.inputs(seed);
        assert_same_sums(&|xs| case.shared_pair(xs), &|xs| case.naive(xs), &xs, DType::F32, F32);
        assert_same_sums(&|xs| case.shared_pair(xs), &|xs| case.naive(xs), &xs, DType::F64, 1e-12);
    }
}

#[rstest]
fn imaging_sees_what_it_sees_of_concat(#[values(DType::F32, DType::F64)] dtype: DType) {
    let mut case = segments();
    case.decisions.widths = vec![4, 3, 5, 2];
    let xs = in_dtype(&case.inputs(41), dtype);
    assert_seen_alike(&xs, &case.shared(&xs).unwrap(), &case.concat(&xs).unwrap());
}

/// All rows under one decision that opens everything: the dense MLP's own products.
#[rstest]
fn everything_chosen_is_the_dense_mlp_bit_for_bit(
    #[values(DType::F32, DType::BF16, DType::F64)] dtype: DType,
    #[values(None, Some(0))] decision: Option<usize>,
) {
    let mixture = Mixture::new(1, 24, &[17, 9, 30], |_, _| true);
    let case = Case { decisions: mixture, runs: vec![(33, decision)] };
    let mut xs = case.inputs(42);
    xs[4] = xs[4].ones_like().unwrap();
    let xs: Vec<Tensor> = xs.iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
    let (dense, _) = glu_mlp::forward(&xs[0], weights(&xs), None).unwrap();
    assert_eq!(bits(&case.shared(&xs).unwrap().0), bits(&dense));
}

#[test]
fn frozen_weights_form_no_gradients() {
    let case = segments();
    let xs = case.inputs(43);
    let (y, saved) = case.shared(&xs).unwrap();
    let mut grads = Grads::new([(&xs[3], 0)]).unwrap();
    let deltas = saved.deltas(&y).unwrap();
    saved.weight_gradients(weights(&xs), &deltas, &Learners::All, &mut grads).unwrap();
    let formed: Vec<bool> = xs.iter().map(|x| grads.get(x).is_some()).collect();
    assert_eq!(formed, [false, false, false, true, false]);
}

#[rstest]
#[case::a_gap(&[(0..2, Some(0)), (3..5, Some(0))], "rows 3..5 does not begin at row 2")]
#[case::too_few(&[(0..4, Some(0))], "end at row 4 of 5")]
#[case::too_many(&[(0..4, Some(0)), (4..6, None)], "end at row 6 of 5")]
#[case::no_such_decision(&[(0..5, Some(3))], "decision Some(3) of 2")]
fn runs_that_are_not_the_rows_are_refused(
    #[case] runs: &[(std::ops::Range<usize>, Option<usize>)],
    #[case] problem: &str,
) {
    let mixture = Mixture::new(2, 4, &[2, 3], |_, _| true);
    let mut xs = mixture.inputs(44);
    xs[0] = inputs(45, &[&[5, 4]]).remove(0);
    let neuron_expert = mixture.neuron_expert(&Device::Cpu).unwrap();
    let runs: Vec<RowRun> =
        runs.iter().map(|(rows, decision)| RowRun { rows: rows.clone(), decision: *decision }).collect();
    let gate = MlpGate { gate_tn: &xs[4], neuron_expert: &neuron_expert };
    let error = shared_mlp::forward(&xs[0], weights(&xs), gate, &runs).unwrap_err().to_string();
    assert!(error.contains(problem), "{error}");
}
