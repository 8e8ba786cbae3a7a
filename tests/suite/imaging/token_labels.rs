//! Labels of single tokens against the definition, token by token, and against the rows that routers are fitted to.

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use rstest::rstest;
use tinyonn::data::TokenSet;
use tinyonn::decoder::{Answers, CausalLm, FeedForward, Learn, Mlp, Pass, Trace};
use tinyonn::imaging::inputs::{Thinning, Window};
use tinyonn::imaging::{
    Integral, LabelBalance, Labels, NeuronScan, RouterInputs, RowLabels, Score, TokenPass, TokenScore, scan,
    token_labels, token_prices,
};
use tinyonn::moe::{LayerLoad, MoeSpec};
use tinyonn::ops::{self, Grads, SlicedMlp as _};

use super::{VOCAB, options};
use crate::labels::best_path;
use crate::models::{learnt, message};
use crate::tiny;

fn model() -> CausalLm<Mlp> {
    let cfg = tiny::config(VOCAB as usize);
    tiny::dense(&cfg, &tiny::dense_store(&cfg, 1))
}

/// Tasks of other sizes, each with padding in its last row of 8.
fn set() -> TokenSet {
    tiny::tokens(1, &[52, 37, 22], VOCAB)
}

fn units(experts: usize) -> Vec<Vec<u32>> {
    (0..2).map(|layer| (0..26).map(|i| ((i * 7 + layer) % experts) as u32).collect()).collect()
}

/// a, S and taylor by layer, `[task][token][i]`, of every token with a target, in the batches of the library.
type Seen = Vec<[Vec<Vec<Vec<f64>>>; 3]>;

/// a, S and taylor of one layer, `[token][i]`.
type Told = [Vec<Vec<f64>>; 3];

/// An MLP that tells what its backward pass sees of every token: a, S and taylor.
struct Seeing {
    mlp: Mlp,
    layer: usize,
    told: Arc<Mutex<Vec<Told>>>,
}

impl FeedForward for Seeing {
    type Saved = <Mlp as FeedForward>::Saved;

    fn forward(&self, x: &Tensor, pass: &Pass) -> tinyonn::Result<(Tensor, Trace, Option<Self::Saved>)> {
        self.mlp.forward(x, pass)
    }

    fn backward(
        &self,
        saved: Self::Saved,
        dy: &Tensor,
        learn: &Learn,
        _: bool,
        grads: &mut Grads,
    ) -> tinyonn::Result<(Option<Tensor>, Answers)> {
        let deltas = saved.deltas(dy)?;
        let pass = saved.image(&deltas);
        let [a, s] = ops::activation_and_surprise(&pass)?;
        let taylor = (pass.h_ti * pass.delta_h_ti)?.neg()?;
        self.told.lock().unwrap()[self.layer] =
            [a, s, taylor].map(|x| x.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap());
        self.mlp.backward(saved, dy, learn, true, grads)
    }

    fn learns(&self, _: &Learn, _: &Grads) -> bool {
        true
    }
}

fn seen(set: &TokenSet) -> Seen {
    let cfg = tiny::config(VOCAB as usize);
    let (store, told) = (tiny::dense_store(&cfg, 1), Arc::new(Mutex::new(vec![Told::default(); 2])));
    let build = |layer, vb: VarBuilder<'_>| Ok(Seeing { mlp: Mlp::new(&cfg, layer, &vb)?, layer, told: told.clone() });
    let model = CausalLm::new(&cfg, &store.builder(DType::F32, |_| false), build).unwrap();
    let mut layers: Seen = (0..2).map(|_| std::array::from_fn(|_| vec![Vec::new(); set.tasks.len()])).collect();
    for task in 0..set.tasks.len() {
        for batch in set.batches_of_task(task, 8, 3, &Device::Cpu).unwrap() {
            let batch = batch.unwrap();
            let text = (&batch.inputs, &batch.targets);
            learnt(&model, (&store, &|_| false), text, &Pass::all(), &Learn::default());
            let targets = batch.targets.flatten_all().unwrap().to_vec1::<u32>().unwrap();
            for (layer, kept) in layers.iter_mut().zip(told.lock().unwrap().iter()) {
                for (own, rows) in layer.iter_mut().zip(kept) {
                    let counted = rows.iter().zip(&targets).filter(|(_, target)| **target != u32::MAX);
                    own[task].extend(counted.map(|(row, _)| row.clone()));
                }
            }
        }
    }
    layers
}

/// Mean and deviation over a layer's tokens and neurons, tasks weighted equally.
fn moments(values: &[Vec<Vec<f64>>]) -> (f64, f64) {
    let average = |f: &dyn Fn(f64) -> f64| {
        let of_task = |task: &Vec<Vec<f64>>| {
            task.iter().flatten().map(|x| f(*x)).sum::<f64>() / (task.len() * task[0].len()) as f64
        };
        values.iter().map(of_task).sum::<f64>() / values.len() as f64
    };
    let mean = average(&|x| x);
    (mean, average(&|x| (x - mean).powi(2)).sqrt())
}

/// What z(a) and z(S) are multiplied by.
fn signs(score: Score) -> (f64, f64) {
    match score {
        Score::Sps => (1.0, -1.0),
        Score::Activation => (1.0, 0.0),
        Score::Surprise => (0.0, 1.0),
        Score::Calm => (0.0, -1.0),
        Score::ActivationPlusSurprise => (1.0, 1.0),
        // Taylor scores are of neither.
        _ => (f64::NAN, f64::NAN),
    }
}

/// The score of every token's neurons in one layer, `[task][token][i]`.
fn scores([a, s, taylor]: &[Vec<Vec<Vec<f64>>>; 3], score: Score, contrast: bool) -> Vec<Vec<Vec<f64>>> {
    let ((mean_a, deviation_a), (mean_s, deviation_s)) = (moments(a), moments(s));
    let (of_a, of_s) = signs(score);
    let mut scores = taylor.clone();
    for (task, tokens) in scores.iter_mut().enumerate() {
        for (t, row) in tokens.iter_mut().enumerate() {
            for (i, x) in row.iter_mut().enumerate() {
                if score == Score::TaylorMagnitude {
                    *x = x.abs();
                } else if score != Score::Taylor {
                    let (a, s) = ((a[task][t][i] - mean_a) / deviation_a, (s[task][t][i] - mean_s) / deviation_s);
                    *x = of_a * a + of_s * s;
                }
            }
        }
    }
    if contrast {
        let common = |i: usize| {
            let of_task = |task: &Vec<Vec<f64>>| task.iter().map(|row| row[i]).sum::<f64>() / task.len() as f64;
            scores.iter().map(of_task).sum::<f64>() / scores.len() as f64
        };
        let common: Vec<f64> = (0..26).map(common).collect();
        scores.iter_mut().flatten().for_each(|row| row.iter_mut().zip(&common).for_each(|(x, mean)| *x -= mean));
    }
    scores
}

fn scanned(model: &CausalLm<Mlp>, set: &TokenSet) -> NeuronScan {
    scan(model, set, options(8, 3), &Device::Cpu, None).unwrap()
}

fn pass<'a>(model: &'a CausalLm<Mlp>, set: &'a TokenSet, stride: usize) -> TokenPass<'a, Mlp> {
    TokenPass { model, set, options: options(8, 3), stride, device: &Device::Cpu }
}

fn labelled(by: TokenScore<'_>, set: &TokenSet, stride: usize) -> Vec<RowLabels> {
    token_labels(&pass(&model(), set, stride), by).unwrap()
}

const SPECS: [&[(usize, usize)]; 3] = [&[(5, 2)], &[(2, 1), (3, 2)], &[(2, 2), (3, 1), (2, 1)]];

fn spec(levels: &[(usize, usize)]) -> (MoeSpec, usize) {
    (tiny::spec(levels), levels.iter().map(|(choices, _)| choices).product())
}

#[rstest]
fn a_token_takes_the_best_path_by_its_own_score(
    #[values(0, 1, 2)] hierarchy: usize,
    #[values(
        Score::Sps,
        Score::Activation,
        Score::Surprise,
        Score::Calm,
        Score::ActivationPlusSurprise,
        Score::Taylor,
        Score::TaylorMagnitude
    )]
    score: Score,
    #[values(false, true)] contrast: bool,
) {
    let (model, set, (spec, experts)) = (model(), set(), spec(SPECS[hierarchy]));
    let (scan, units) = (scanned(&model, &set), units(experts));
    let found =
        labelled(TokenScore { scan: &scan, score, contrast, units: &units, spec: &spec, prices: None }, &set, 1);
    let (mut rows, mut different) = (0, 0);
    for (layer, seen) in seen(&set).iter().enumerate() {
        let expected = scores(seen, score, contrast).into_iter().flatten();
        let expected: Vec<Vec<u32>> = expected.map(|row| best_path(&row, &units[layer], &spec)).collect();
        assert_eq!(found[layer].class_of_row.len(), 51 + 36 + 21);
        rows += expected.len();
        different += (0..expected.len()).filter(|row| found[layer].path(*row) != expected[*row]).count();
    }
    // The moments come from sums in another order: two scores that agree to 1e-12 may change places, and none did.
    assert_eq!(different, 0, "of {rows}");
    assert!(found.iter().all(|layer| layer.paths.len() > 1));
}

/// The rows that a router is fitted to, and no others, in their order.
#[rstest]
#[case(1)]
#[case(3)]
fn labels_are_of_the_rows_that_are_collected(#[case] stride: usize) {
    let (model, set, (spec, experts)) = (model(), set(), spec(SPECS[1]));
    let (scan, units) = (scanned(&model, &set), units(experts));
    let by = TokenScore { scan: &scan, score: Score::Sps, contrast: false, units: &units, spec: &spec, prices: None };
    let [all, some] = [1, stride].map(|stride| {
        let mut inputs = RouterInputs::new(2, Thinning::one_in(stride, Window::First(1)));
        inputs.collect(&model, &set, options(8, 3), &Pass::all(), &Device::Cpu).unwrap();
        let [tokens, _] = inputs.into_samples();
        (tokens, labelled(by, &set, stride))
    });
    for layer in 0..2 {
        let (every, kept) = (&all.0[layer], &some.0[layer]);
        assert_eq!(some.1[layer].class_of_row.len(), kept.tasks.len());
        // Rows stand in reading order, so each is found further on.
        let mut at = 0;
        for (row, values) in kept.values.chunks_exact(16).enumerate() {
            while every.values[16 * at..][..16] != *values {
                at += 1;
            }
            assert_eq!(some.1[layer].path(row), all.1[layer].path(at), "row {row}");
            at += 1;
        }
    }
}

/// By the prices of all tokens, tokens take what tasks with their scores would; those of some are prices too.
#[rstest]
fn tokens_share_the_experts_out_by_prices(#[values(0, 1, 2)] hierarchy: usize) {
    let (model, set, (spec, experts)) = (model(), set(), spec(SPECS[hierarchy]));
    let (scan, units) = (scanned(&model, &set), units(experts));
    let by = TokenScore { scan: &scan, score: Score::Sps, contrast: false, units: &units, spec: &spec, prices: None };
    let [of_all, of_some] = [1, 3].map(|stride| token_prices(&pass(&model, &set, stride), by).unwrap());
    let labelled = |prices| labelled(TokenScore { prices, ..by }, &set, 1);
    let (even, nearly, free) = (labelled(Some(&of_all[..])), labelled(Some(&of_some[..])), labelled(None));
    for (layer, seen) in seen(&set).iter().enumerate() {
        let rows = scores(seen, Score::Sps, false).into_iter().flatten();
        let integral = Integral { neurons: rows.map(|row| vec![row]).collect() };
        let expected = Labels::balanced(&integral, &units[layer..=layer], &spec, LabelBalance::Sinkhorn);
        let different = |row: &usize| even[layer].path(*row) != expected.paths.experts[*row][0];
        assert_eq!((0..integral.neurons.len()).filter(different).count(), 0);
        let load = |labels: &RowLabels| {
            let mut taken = vec![0.0; experts];
            (0..labels.class_of_row.len()).flat_map(|row| labels.path(row)).for_each(|e| taken[*e as usize] += 1.0);
            LayerLoad::new(&spec, &taken).evenness
        };
        assert_ne!(nearly[layer], free[layer]);
        let [even, nearly, free] = [&even, &nearly, &free].map(|labels| load(&labels[layer]));
        assert!(even > 0.99 && even >= nearly.max(free), "{even} {nearly} {free}");
    }
}

/// Held-out text is standardised by the moments of the scan: the same tokens get the same paths whatever stands beside them.
#[test]
fn moments_are_those_of_the_first_pass() {
    let (model, set, (spec, experts)) = (model(), set(), spec(SPECS[1]));
    let (scan, units) = (scanned(&model, &set), units(experts));
    let by = TokenScore {
        scan: &scan,
        score: Score::ActivationPlusSurprise,
        contrast: true,
        units: &units,
        spec: &spec,
        prices: None,
    };
    let whole = labelled(by, &set, 1);
    let alone = TokenSet { tasks: set.tasks[1..2].to_vec(), ..set.clone() };
    for (whole, alone) in whole.iter().zip(labelled(by, &alone, 1)) {
        assert_eq!(alone.class_of_row.len(), 36);
        (0..36).for_each(|row| assert_eq!(alone.path(row), whole.path(51 + row)));
    }
}

#[test]
fn a_scan_or_units_of_another_model_are_refused() {
    let (model, set, (spec, experts)) = (model(), set(), spec(SPECS[1]));
    let (scan, units) = (scanned(&model, &set), units(experts));
    let error = |scan: &NeuronScan, units: &[Vec<u32>]| {
        let by = TokenScore { scan, score: Score::Sps, contrast: false, units, spec: &spec, prices: None };
        message(token_labels(&pass(&model, &set, 1), by))
    };
    assert!(error(&NeuronScan::zero(vec!["a".into()], 2, 25), &units).starts_with("`scan`"));
    assert!(error(&NeuronScan::zero(vec!["a".into()], 1, 26), &units).starts_with("`scan`"));
    assert!(error(&scan, &units[..1]).starts_with("`units`"));
    assert!(error(&scan, &[units[0].clone(), vec![experts as u32; 26]]).starts_with("`units`"));
}
