//! What routers are fitted to: the feed-forwards' inputs, evenly sampled, of positions that count.

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use rstest::rstest;
use tinyonn::data::TokenSet;
use tinyonn::decoder::{Answers, CausalLm, FeedForward, Learn, Mlp, Pass, Trace};
use tinyonn::imaging::inputs::{Samples, Thinning, Window};
use tinyonn::imaging::{RouterInputs, scan};
use tinyonn::ops::{ClassScatter, Grads, Weigh};

use super::{VOCAB, options};
use crate::tiny;

/// Rows `[t][d]` of each layer's feed-forward input for one row of tokens.
fn inputs_of(ids: &[u32]) -> Vec<Vec<Vec<f32>>> {
    struct Keep(Arc<Mutex<Vec<Vec<Vec<f32>>>>>, Mlp);
    impl FeedForward for Keep {
        type Saved = ();

        fn forward(&self, x: &Tensor, pass: &Pass) -> tinyonn::Result<(Tensor, Trace, Option<()>)> {
            self.0.lock().unwrap().push(x.squeeze(0)?.to_vec2()?);
            let (y, trace, _) = self.1.forward(x, pass)?;
            Ok((y, trace, None))
        }

        fn backward(
            &self,
            (): (),
            _: &Tensor,
            _: &Learn,
            _: bool,
            _: &mut Grads,
        ) -> tinyonn::Result<(Option<Tensor>, Answers)> {
            unreachable!("nothing goes back")
        }

        fn learns(&self, _: &Learn, _: &Grads) -> bool {
            false
        }
    }
    let cfg = tiny::config(VOCAB as usize);
    let (store, seen) = (tiny::dense_store(&cfg, 1), Arc::new(Mutex::default()));
    let build = |layer, vb: VarBuilder<'_>| Ok(Keep(Arc::clone(&seen), Mlp::new(&cfg, layer, &vb)?));
    let model = CausalLm::new(&cfg, &store.builder(DType::F32, |_| false), build).unwrap();
    let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    model.logits(&ids, &Pass::all(), None).unwrap();
    seen.lock().unwrap().clone()
}

fn collected(set: &TokenSet, length: usize, stride: usize, window: Window) -> [Vec<Samples>; 2] {
    let cfg = tiny::config(VOCAB as usize);
    let mut inputs = RouterInputs::new(2, Thinning::one_in(stride, window));
    let model = tiny::dense(&cfg, &tiny::dense_store(&cfg, 1));
    scan(&model, set, options(length, 3), &Device::Cpu, Some(&mut inputs)).unwrap();
    // A forward pass alone keeps the same.
    let mut forward = RouterInputs::new(2, Thinning::one_in(stride, window));
    forward.collect(&model, set, options(length, 3), &Pass::all(), &Device::Cpu).unwrap();
    let (inputs, forward) = (inputs.into_samples(), forward.into_samples());
    for (a, b) in inputs.iter().flatten().zip(forward.iter().flatten()) {
        assert_eq!((&a.values, &a.tasks, &a.documents), (&b.values, &b.tasks, &b.documents));
    }
    inputs
}

fn close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    // The reference runs rows one by one: products of other shapes may round otherwise.
    found
        .iter()
        .zip(expected)
        .for_each(|(a, b)| approx::assert_relative_eq!(a, b, max_relative = 1e-4, epsilon = 1e-5));
}

/// Rows of 8 from 21 tokens of each task: 8, 8 and 4.
#[rstest]
#[case::first(Window::First(5), &[0], 5)]
#[case::whole(Window::First(8), &[0], 8)]
#[case::every(Window::Every(3), &[0, 3], 3)]
fn every_counted_position_and_the_mean_of_every_window(
    #[case] window: Window,
    #[case] starts: &[usize],
    #[case] length: usize,
) {
    let mut set = tiny::tokens(1, &[21, 21], VOCAB);
    // Documents of five tokens: a row is its target's, the token behind it.
    for (at, task) in set.tasks.iter_mut().enumerate() {
        task.documents = (0..21).map(|token| 5 * at as u32 + token / 5).collect();
    }
    let [tokens, sequences] = collected(&set, 8, 1, window);
    for layer in 0..2 {
        let mut expected = Vec::new();
        let (mut means, mut tasks, mut documents) = (Vec::new(), Vec::new(), Vec::new());
        for (at, task) in set.tasks.iter().enumerate() {
            for from in [0, 8, 16] {
                let x = inputs_of(&task.tokens[from..(from + 8).min(20)]).swap_remove(layer);
                // The last row of a task holds 4 tokens: too few for most windows.
                for start in starts {
                    let Some(window) = x.get(*start..start + length) else { continue };
                    documents.push(task.documents[from + start + 1]);
                    means.extend((0..16).map(|j| window.iter().map(|x| x[j]).sum::<f32>() / length as f32));
                    tasks.push(at as u32);
                }
                expected.extend(x.into_iter().flatten());
            }
        }
        close(&tokens[layer].values, &expected);
        assert_eq!(tokens[layer].tasks, [vec![0; 20], vec![1; 20]].concat());
        close(&sequences[layer].values, &means);
        assert_eq!(sequences[layer].tasks, tasks);
        assert_eq!(sequences[layer].documents, documents);
        let targets: Vec<u32> = set.tasks.iter().flat_map(|task| task.documents[1..].to_vec()).collect();
        assert_eq!(tokens[layer].documents, targets);
    }
}

/// However the stride and the length of a row divide each other, no position of a row is preferred.
#[rstest]
#[case(8, 8)]
#[case(8, 4)]
#[case(8, 16)]
#[case(8, 7)]
fn samples_are_one_in_stride_and_spread_over_positions(#[case] length: usize, #[case] stride: usize) {
    let set = tiny::tokens(1, &[length * 160 + 1], VOCAB);
    let cfg = tiny::config(VOCAB as usize);
    let model = tiny::dense(&cfg, &tiny::dense_store(&cfg, 1));
    let [all, some] = [1, stride].map(|stride| {
        let mut inputs = RouterInputs::new(2, Thinning::one_in(stride, Window::First(1)));
        inputs.collect(&model, &set, options(length, 3), &Pass::all(), &Device::Cpu).unwrap();
        let [mut tokens, _] = inputs.into_samples();
        tokens.swap_remove(0)
    });
    let expected = length * 160 / stride;
    assert!(some.tasks.len().abs_diff(expected) <= 2, "{} of {expected}", some.tasks.len());
    // Samples stand in reading order, so each is found further on.
    let mut at = 0;
    let mut by_position = vec![0usize; length];
    for row in some.values.chunks_exact(16) {
        while all.values[16 * at..][..16] != *row {
            at += 1;
        }
        by_position[at % length] += 1;
        at += 1;
    }
    let share = expected / length;
    assert!(by_position.iter().all(|count| count.abs_diff(share) <= 2 + share / 4), "{by_position:?}");
}

/// Of more tokens than are kept the scatter is that of all that were asked for, and what is kept is what a scan that asks for less keeps.
#[rstest]
#[case::by_class(Weigh::Classes)]
#[case::by_row(Weigh::Rows)]
fn the_scatter_is_that_of_the_tokens_that_are_not_kept_too(#[case] weigh: Weigh) {
    let set = tiny::tokens(1, &[400, 250], VOCAB);
    let cfg = tiny::config(VOCAB as usize);
    let model = tiny::dense(&cfg, &tiny::dense_store(&cfg, 1));
    let collect = |thinning: Thinning| {
        let mut inputs = RouterInputs::new(2, thinning);
        scan(&model, &set, options(8, 3), &Device::Cpu, Some(&mut inputs)).unwrap();
        inputs.into_samples()
    };
    let thinning = Thinning { windows: 3, ..Thinning::one_in(11, Window::First(8)) };
    let [some, windows] = collect(Thinning { scatter: Some((2, weigh)), ..thinning });
    let [plain, plain_windows] = collect(thinning);
    let [asked, all_windows] = collect(Thinning::one_in(2, Window::First(8)));
    for layer in 0..2 {
        assert_eq!((&some[layer].values, &some[layer].tasks), (&plain[layer].values, &plain[layer].tasks));
        assert_eq!(some[layer].documents, plain[layer].documents);
        assert!(plain[layer].scatter.is_none());
        let scatter = some[layer].scatter.as_ref().unwrap();
        assert_eq!(scatter.rows() as usize, asked[layer].tasks.len());
        let rows = |task: u32| -> Vec<&[f32]> {
            let rows = asked[layer].values.chunks_exact(16).zip(&asked[layer].tasks);
            rows.filter(|(_, of)| **of == task).map(|(row, _)| row).collect()
        };
        let mut plainly = ClassScatter::new(weigh);
        for task in 0..2 {
            let values = rows(task).concat();
            let x = Tensor::from_vec(values.clone(), (values.len() / 16, 16), &Device::Cpu).unwrap();
            plainly.push(&x, task as usize).unwrap();
        }
        plainly.close().unwrap();
        let largest = plainly.matrix().into_iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        for (a, b) in scatter.matrix().iter().zip(plainly.matrix()) {
            // Sums in f32 of some hundred products in another order.
            approx::assert_abs_diff_eq!(*a, b, epsilon = 1e-5 * largest);
        }
        for task in 0..2 {
            for (a, b) in scatter.mean(task).unwrap().iter().zip(plainly.mean(task).unwrap()) {
                approx::assert_relative_eq!(*a, b, max_relative = 1e-5, epsilon = 1e-6);
            }
        }
        // A third of the windows, each of them one of all.
        assert_eq!(windows[layer].values, plain_windows[layer].values);
        let (kept, of) = (windows[layer].tasks.len(), all_windows[layer].tasks.len());
        assert!(kept.abs_diff(of / 3) <= 2, "{kept} of {of}");
        let found = |row: &[f32]| all_windows[layer].values.chunks_exact(16).any(|other| other == row);
        assert!(windows[layer].values.chunks_exact(16).all(found));
    }
}
