//! Replicas: merged for runs of rows, and each token by its own.

use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;
use rstest::rstest;
use tinyonn::ops::{Grads, Replicas, RowRun, glu_mlp, merged_mlp, replica_dispatch};

use super::{BF16, F32, naive_mlp, weights};
use crate::gradients::{Back, assert_alike, assert_derivative, assert_same, assert_same_sums, inputs};
use crate::models::bits;

/// Some replicas of an MLP, some of which differ from it, and decisions over them.
#[derive(Clone, Debug)]
struct Case {
    d: usize,
    i: usize,
    /// Which experts differ from the base.
    differs: Vec<bool>,
    /// Which experts each decision chooses.
    chosen: Vec<Vec<bool>>,
    /// (length, decision) of each run.
    runs: Vec<(usize, Option<usize>)>,
}

impl Case {
    /// x, the base's matrices, the decisions' weights, and three matrices for each expert that differs.
    fn inputs(&self, seed: u64) -> Vec<Tensor> {
        let (d, i) = (self.d, self.i);
        let rows = self.runs.iter().map(|(length, _)| length).sum();
        let differing = self.differs.iter().filter(|differs| **differs).count();
        let (x, w) = ([rows, d], [self.chosen.len(), self.differs.len()]);
        let mut shapes: Vec<&[usize]> = vec![&x, &[0; 0], &[0; 0], &[0; 0], &w];
        let matrix = [i, d];
        shapes[1..4].fill(&matrix);
        (0..differing).for_each(|_| shapes.extend([&matrix as &[usize]; 3]));
        inputs(seed, &shapes)
    }

    fn weights(&self, w: &Tensor) -> Result<Tensor> {
        let mask: Vec<f64> = self.chosen.iter().flatten().map(|chosen| f64::from(u8::from(*chosen))).collect();
        w * Tensor::from_vec(mask, w.shape(), w.device())?.to_dtype(w.dtype())?
    }

    fn deltas<'a>(&self, xs: &'a [Tensor]) -> Vec<Option<[&'a Tensor; 3]>> {
        let mut own = xs[5..].chunks_exact(3);
        let delta = |differs: &bool| differs.then(|| own.next().map(|m| [&m[0], &m[1], &m[2]])).flatten();
        self.differs.iter().map(delta).collect()
    }

    fn merged(&self, xs: &[Tensor]) -> Result<(Tensor, merged_mlp::Saved)> {
        let replicas = Replicas { base: weights(xs), deltas: &self.deltas(xs) };
        let mut next = 0;
        let run = |(length, decision): &(usize, Option<usize>)| {
            next += length;
            RowRun { rows: next - length..next, decision: *decision }
        };
        let runs: Vec<RowRun> = self.runs.iter().map(run).collect();
        merged_mlp::forward(&xs[0], replicas, &self.weights(&xs[4])?, &runs)
    }

    fn merged_pair<'a>(&'a self, xs: &[Tensor]) -> Result<(Tensor, Back<'a>)> {
        let (xs, (y, saved)) = (xs.to_vec(), self.merged(xs)?);
        let back = move |dy: &Tensor, grads: &mut Grads| {
            let replicas = Replicas { base: weights(&xs), deltas: &self.deltas(&xs) };
            let [dx, dw] = merged_mlp::backward(&saved, replicas, dy, (true, true), grads)?.map(Option::unwrap);
            Ok(vec![(0, dx), (4, self.weights(&dw)?)])
        };
        Ok((y, Box::new(back)))
    }

    /// The weights of one run, and the matrices that they make.
    fn naive_matrices(&self, xs: &[Tensor], decision: Option<usize>) -> Result<[Tensor; 3]> {
        let w = match decision {
            Some(decision) => self.weights(&xs[4])?.get(decision)?,
            None => (Tensor::ones(self.differs.len(), xs[4].dtype(), xs[4].device())? / self.differs.len() as f64)?,
        };
        let mut matrices = [xs[1].clone(), xs[2].clone(), xs[3].clone()];
        for (n, delta) in self.deltas(xs).into_iter().enumerate() {
            for (matrix, delta) in matrices.iter_mut().zip(delta.into_iter().flatten()) {
                *matrix = (&*matrix + delta.broadcast_mul(&w.get(n)?)?)?;
            }
        }
        Ok(matrices)
    }

    fn naive_merged(&self, xs: &[Tensor]) -> Result<Tensor> {
        let (mut parts, mut next) = (Vec::new(), 0);
        for (length, decision) in self.runs.iter().filter(|(length, _)| *length > 0) {
            let [gate, up, down] = self.naive_matrices(xs, *decision)?;
            parts.push(naive_mlp(&xs[0].narrow(0, next, *length)?, &gate, &up, &down)?);
            next += length;
        }
        // Where nobody differs the weights decide nothing, and have a gradient, of zero, all the same.
        Tensor::cat(&parts, 0)?.broadcast_add(&(&xs[4] * xs[4].zeros_like()?)?.sum_all()?)
    }

    fn dispatch(&self, xs: &[Tensor]) -> Result<(Tensor, replica_dispatch::Saved)> {
        let replicas = Replicas { base: weights(xs), deltas: &self.deltas(xs) };
        replica_dispatch::forward(&xs[0], replicas, &self.weights(&xs[4])?)
    }

    fn dispatch_pair<'a>(&'a self, xs: &[Tensor]) -> Result<(Tensor, Back<'a>)> {
        let (xs, (y, saved)) = (xs.to_vec(), self.dispatch(xs)?);
        let back = move |dy: &Tensor, grads: &mut Grads| {
            let replicas = Replicas { base: weights(&xs), deltas: &self.deltas(&xs) };
            let [dx, dw] = replica_dispatch::backward(&saved, replicas, dy, (true, true), grads)?.map(Option::unwrap);
            Ok(vec![(0, dx), (4, self.weights(&dw)?)])
        };
        Ok((y, Box::new(back)))
    }

    fn naive_dispatch(&self, xs: &[Tensor]) -> Result<Tensor> {
        let w_tn = self.weights(&xs[4])?;
        let mut y = xs[0].zeros_like()?;
        for (n, delta) in self.deltas(xs).into_iter().enumerate() {
            let mut matrices = [xs[1].clone(), xs[2].clone(), xs[3].clone()];
            for (matrix, delta) in matrices.iter_mut().zip(delta.into_iter().flatten()) {
                *matrix = (&*matrix + delta)?;
            }
            let [gate, up, down] = matrices;
            y = (y + naive_mlp(&xs[0], &gate, &up, &down)?.broadcast_mul(&w_tn.narrow(1, n, 1)?)?)?;
        }
        Ok(y)
    }

    /// A decision for each row: what `replica_dispatch` takes.
    fn by_row(rows: usize, d: usize, i: usize, differs: &[bool], chosen: impl Fn(usize, usize) -> bool) -> Self {
        let chosen = (0..rows).map(|t| (0..differs.len()).map(|n| chosen(t, n)).collect()).collect();
        Self { d, i, differs: differs.to_vec(), chosen, runs: (0..rows).map(|t| (1, Some(t))).collect() }
    }

    /// As it is, but only experts that some run chooses differ: the others would get no gradient.
    fn without_idle_differences(mut self) -> Self {
        for n in 0..self.differs.len() {
            let used = |(length, decision): &(usize, Option<usize>)| {
                *length > 0 && decision.is_none_or(|decision| self.chosen[decision][n])
            };
            self.differs[n] &= self.runs.iter().any(used);
        }
        self
    }
}

fn segments() -> Case {
    Case {
        d: 4,
        i: 7,
        differs: vec![true, false, true],
        chosen: vec![vec![true, true, false], vec![false, true, false], vec![false, true, true]],
        runs: vec![(3, None), (4, Some(2)), (1, Some(0)), (2, Some(2)), (2, Some(1))],
    }
}

#[rstest]
#[case::segments(segments())]
#[case::nobody_differs(Case { differs: vec![false; 3], ..segments() })]
#[case::one_expert(Case { differs: vec![true], chosen: vec![vec![true]], runs: vec![(6, Some(0))], ..segments() })]
#[case::by_row(Case::by_row(9, 5, 3, &[true, true, false], |t, n| t % 3 != n))]
#[case::one_row(Case::by_row(1, 5, 3, &[true, true], |_, _| true))]
fn merging_is_the_weighted_sum_of_weights(#[case] case: Case) {
    let xs = case.inputs(50);
    let naive = |xs: &[Tensor]| case.naive_merged(xs);
    assert_derivative(&|xs| case.merged_pair(xs), &xs);
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, F32), (DType::BF16, BF16)] {
        assert_same(&|xs| case.merged_pair(xs), &naive, &xs, dtype, tolerance);
    }
}

#[rstest]
#[case::top_2(Case::by_row(11, 5, 6, &[true, false, true, false], |t, n| (t + n) % 4 < 2))]
#[case::rows_without_an_expert(Case::by_row(9, 4, 3, &[true, false], |t, n| t % 3 == n))]
#[case::nobody_differs(Case::by_row(7, 4, 5, &[false; 3], |t, n| (t + n) % 3 < 2))]
#[case::one_row(Case::by_row(1, 4, 5, &[true], |_, _| true))]
#[case::nothing_chosen(Case::by_row(4, 4, 5, &[false; 2], |_, _| false))]
fn dispatching_is_the_loop_over_replicas(#[case] case: Case) {
    let xs = case.inputs(51);
    let naive = |xs: &[Tensor]| case.naive_dispatch(xs);
    assert_derivative(&|xs| case.dispatch_pair(xs), &xs);
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, F32), (DType::BF16, BF16)] {
        assert_same(&|xs| case.dispatch_pair(xs), &naive, &xs, dtype, tolerance);
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let experts = prop::collection::vec(any::<bool>(), 1..5);
    let runs = prop::collection::vec((0usize..5, 0usize..50), 1..8);
    (1usize..9, 1usize..9, 1usize..6, experts, runs, any::<u64>()).prop_map(
        |(d, i, decisions, differs, runs, random)| {
            let bit = |decision: usize, n: usize| random >> ((decision * 7 + n) % 64) & 1 == 1;
            let chosen =
                (0..decisions).map(|decision| (0..differs.len()).map(|n| bit(decision, n)).collect()).collect();
            let decision = |at: usize| (at % (decisions + 1) < decisions).then_some(at % (decisions + 1));
            let runs = runs.into_iter().chain([(1, 0)]).map(|(length, at)| (length, decision(at))).collect();
            Case { d, i, differs, chosen, runs }
        },
    )
}

/// The gradient of a weight is one sum over all entries of three matrices (merged) or of an output (dispatched), whose terms cancel: up to a
/// thousandth of what is left is rounding. That the formula holds is seen in f64.
const OF_SUMS: f64 = 1e-3;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_replicas_merge_and_dispatch_as_the_loops_do(case in cases(), seed in 0u64..1000) {
        let case = case.without_idle_differences();
        let xs = case.inputs(seed);
        assert_same_sums(&|xs| case.merged_pair(xs), &|xs| case.naive_merged(xs), &xs, DType::F64, 1e-11);
        assert_same_sums(&|xs| case.merged_pair(xs), &|xs| case.naive_merged(xs), &xs, DType::F32, OF_SUMS);
        let rows = case.chosen.len();
        let by_row = Case { runs: (0..rows).map(|t| (1, Some(t))).collect(), ..case }.without_idle_differences();
        let xs = by_row.inputs(seed);
        assert_same_sums(&|xs| by_row.dispatch_pair(xs), &|xs| by_row.naive_dispatch(xs), &xs, DType::F64, 1e-11);
        assert_same_sums(&|xs| by_row.dispatch_pair(xs), &|xs| by_row.naive_dispatch(xs), &xs, DType::F32, OF_SUMS);
    }
}

/// At top-1 with weight 1 the MLP of the mean is the mean of the MLPs.
#[test]
fn merging_is_dispatching_at_top_1() {
    let case = Case::by_row(12, 6, 5, &[true, false, true], |t, n| (t * 5 + 1) % 3 == n);
    let xs = case.inputs(52);
    // The weights' own gradients differ (one is of W̃, the other of the outputs) and take no part.
    let at_one = |xs: &[Tensor]| [&xs[..4], &[xs[4].ones_like().unwrap()], &xs[5..]].concat();
    let without = |back: Back<'_>, dy: &Tensor, grads: &mut Grads| {
        let zeros = |(at, gradient): (usize, Tensor)| Ok((at, if at == 4 { gradient.zeros_like()? } else { gradient }));
        back(dy, grads)?.into_iter().map(zeros).collect::<Result<Vec<_>>>()
    };
    assert_alike(
        &|xs| {
            let (y, back) = case.merged_pair(&at_one(xs))?;
            Ok((y, Box::new(move |dy, grads| without(back, dy, grads))))
        },
        &|xs| {
            let (y, back) = case.dispatch_pair(&at_one(xs))?;
            Ok((y, Box::new(move |dy, grads| without(back, dy, grads))))
        },
        &xs,
        DType::F64,
        1e-12,
    );
}

/// Without a difference the weights decide nothing.
#[rstest]
fn replicas_that_learnt_nothing_are_the_base_bit_for_bit(
    #[values(DType::F32, DType::BF16, DType::F64)] dtype: DType,
    #[values(1, 7, 64)] segment: usize,
) {
    let chosen = vec![vec![true, false, true], vec![false, true, true], vec![true, true, true]];
    let runs = (0..5).map(|at| (segment, (at < 4).then_some(at % 3))).collect();
    let case = Case { d: 24, i: 41, differs: vec![false; 3], chosen, runs };
    let xs: Vec<Tensor> = case.inputs(53).iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
    let (dense, _) = glu_mlp::forward(&xs[0], weights(&xs), None).unwrap();
    assert_eq!(bits(&case.merged(&xs).unwrap().0), bits(&dense));
}

/// Frozen matrices form no gradients, nor do the differences of experts that nobody chose.
#[test]
fn only_what_learns_and_took_part_has_a_gradient() {
    let formed = |xs: &[Tensor], (y, back): (Tensor, Back<'_>), learn: &[usize]| -> Vec<usize> {
        let mut grads = Grads::new(learn.iter().map(|at| (&xs[*at], 0))).unwrap();
        back(&y, &mut grads).unwrap();
        (0..14).filter(|at| grads.get(&xs[*at]).is_some()).collect()
    };
    let mut case = segments();
    case.differs = vec![true, true, true];
    case.runs = vec![(4, Some(1)), (3, Some(2))]; // expert 0 is not chosen
    let xs = case.inputs(55);
    // W_g, W_u and W_d of expert n are 5 + 3 n and the two behind it; one of expert 1 is frozen.
    assert_eq!(formed(&xs, case.merged_pair(&xs).unwrap(), &[5, 6, 7, 9, 10, 11, 12, 13]), [9, 10, 11, 12, 13]);

    let by_row = Case::by_row(5, 4, 7, &[true, true, true], |_, n| n > 0);
    let xs = by_row.inputs(56);
    let learn: Vec<usize> = (5..14).collect();
    assert_eq!(formed(&xs, by_row.dispatch_pair(&xs).unwrap(), &learn), [8, 9, 10, 11, 12, 13]);
}

#[test]
fn what_does_not_go_together_is_refused() {
    let case = segments();
    let xs = case.inputs(57);
    let runs = [RowRun { rows: 0..12, decision: Some(0) }];
    let deltas = case.deltas(&xs);
    let refusal = |deltas: &[Option<[&Tensor; 3]>]| {
        let replicas = Replicas { base: weights(&xs), deltas };
        let merged = merged_mlp::forward(&xs[0], replicas, &xs[4], &runs).unwrap_err().to_string();
        let w_tn = Tensor::zeros((12, 3), DType::F64, &Device::Cpu).unwrap();
        (merged, replica_dispatch::forward(&xs[0], replicas, &w_tn).unwrap_err().to_string())
    };
    let (merged, dispatched) = refusal(&deltas[..2]);
    assert!(merged.contains("3 experts for 2") && dispatched.contains("2 experts"), "{merged} {dispatched}");
    let (merged, dispatched) = refusal(&[None, None, Some([&xs[1], &xs[0], &xs[2]])]);
    assert!(merged.contains("expert 2") && dispatched.contains("expert 2"), "{merged} {dispatched}");
}
