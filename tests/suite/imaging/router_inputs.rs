//! What routers are fitted to: the feed-forwards' inputs, evenly sampled, of positions that count.

use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use rstest::rstest;
use tinyonn::data::TokenSet;
use tinyonn::imaging::inputs::Window;
use tinyonn::imaging::{RouterInputs, scan};
use tinyonn::qwen3::{Observer, RouteCtx};

use super::{VOCAB, options};
use crate::tiny;

/// Rows `[t][d]` of each layer's feed-forward input for one row of tokens.
fn inputs_of(ids: &[u32]) -> Vec<Vec<Vec<f32>>> {
    struct Keep(Mutex<Vec<Vec<Vec<f32>>>>);
    impl Observer for Keep {
        fn feed_forward_input(&self, _: usize, x: &Tensor) -> tinyonn::Result<()> {
            self.0.lock().unwrap().push(x.squeeze(0)?.to_vec2()?);
            Ok(())
        }
    }
    let cfg = tiny::config(VOCAB as usize);
    let keep = Arc::new(Keep(Mutex::default()));
    let ctx = RouteCtx { observer: Some(keep.clone()), ..RouteCtx::all() };
    let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    tiny::dense(&cfg, &tiny::dense_store(&cfg, 1)).logits(&ids, &ctx, None).unwrap();
    keep.0.lock().unwrap().clone()
}

fn collected(set: &TokenSet, length: usize, stride: usize, window: Window) -> Arc<RouterInputs> {
    let cfg = tiny::config(VOCAB as usize);
    let inputs = Arc::new(RouterInputs::new(2, stride, window));
    let model = tiny::dense(&cfg, &tiny::dense_store(&cfg, 1));
    scan(&model, set, options(length, 3), &Device::Cpu, Some(&inputs)).unwrap();
    // A forward pass alone keeps the same.
    let forward = Arc::new(RouterInputs::new(2, stride, window));
    forward.collect(&model, set, options(length, 3), &RouteCtx::all(), &Device::Cpu).unwrap();
    for (a, b) in [(inputs.tokens(), forward.tokens()), (inputs.sequences(), forward.sequences())] {
        for (a, b) in a.iter().zip(&b) {
            assert_eq!((&a.values, &a.tasks, &a.documents), (&b.values, &b.tasks, &b.documents));
        }
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
    let inputs = collected(&set, 8, 1, window);
    let (tokens, sequences) = (inputs.tokens(), inputs.sequences());
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
        let inputs = Arc::new(RouterInputs::new(2, stride, Window::First(1)));
        inputs.collect(&model, &set, options(length, 3), &RouteCtx::all(), &Device::Cpu).unwrap();
        inputs.tokens().swap_remove(0)
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
