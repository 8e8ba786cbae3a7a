//! The greedy-ablation oracle: it equals the plain loop, keeps what matters, and beats paths drawn at random on its own text.

use std::sync::Arc;

use candle_core::{D, Device, Tensor};
use rstest::rstest;
use tinyonn::checkpoint::ParamStore;
use tinyonn::data::{TaskTokens, TokenSet};
use tinyonn::decoder::{Active, Arch, Pass, PathTable};
use tinyonn::imaging::{GreedyOptions, Labels};
use tinyonn::moe::{MoeSpec, Variant, select};
use tinyonn::train::evaluate;
use tinyonn::train::evaluate::EvaluateOptions;

use crate::models::message;
use crate::routing::{slots, upcycled};
use crate::tiny;

const OPTIONS: GreedyOptions = GreedyOptions { length: 12, sequences: 2 };

/// Two tasks of 24 tokens with a target, each of which the whole model thinks the likeliest after those before it.
fn likely(model: (&Arch, &'static Variant, &ParamStore)) -> TokenSet {
    let lm = tiny::sparse(model.0, model.1, model.2);
    let task = |first: u32| {
        let mut tokens = vec![first];
        while tokens.len() < 25 {
            // Each sequence of 12 is read alone.
            let from = (tokens.len() - 1) / 12 * 12;
            let ids = Tensor::new(&tokens[from..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let best = lm.logits(&ids, &Pass::all(), None).unwrap().argmax(D::Minus1).unwrap();
            tokens.push(best.flatten_all().unwrap().to_vec1::<u32>().unwrap()[ids.elem_count() - 1]);
        }
        TaskTokens { name: format!("task{first}"), documents: vec![0; tokens.len()], tokens }
    };
    TokenSet { tasks: vec![task(3), task(17)], documents: vec!["all".into()], eos: 0 }
}

fn losses(model: (&Arch, &'static Variant, &ParamStore), set: &TokenSet, paths: PathTable) -> Vec<f64> {
    let ctx = Pass { active: Active::Paths(Arc::new(paths)), ..Pass::default() };
    let options = EvaluateOptions { length: 12, batch: 2, skip: 0 };
    evaluate(tiny::sparse(model.0, model.1, model.2).lm(), set, options, &ctx, &Device::Cpu).unwrap().by_task
}

/// Takes choices away one at a time, a loss for each candidate of each task.
fn by_hand(model: (&Arch, &'static Variant, &ParamStore), set: &TokenSet) -> Vec<Vec<Vec<u32>>> {
    let spec: &MoeSpec = &model.1.spec;
    let widths = select::path_widths(spec);
    let loss = |task: usize, path: &Vec<Vec<u32>>| {
        losses(model, set, PathTable { experts: vec![path.clone(); set.tasks.len()] })[task]
    };
    let of_task = |task: usize| {
        let mut path: Vec<Vec<u32>> = vec![(0..spec.routed_experts() as u32).collect(); 2];
        for (level, declared) in spec.levels.iter().enumerate() {
            let under = spec.experts_under(level);
            for layer in 0..2 {
                for (router, (choices, _)) in slots(declared).into_iter().enumerate() {
                    loop {
                        let on_path = |node: &usize| path[layer].iter().any(|e| under[*node].contains(&(*e as usize)));
                        let left: Vec<usize> = choices.clone().filter(on_path).collect();
                        if left.len() <= widths[level][router] {
                            break;
                        }
                        let mut best: Option<(f64, Vec<Vec<u32>>)> = None;
                        for node in left {
                            let mut without = path.clone();
                            without[layer].retain(|expert| !under[node].contains(&(*expert as usize)));
                            let loss = loss(task, &without);
                            if best.as_ref().is_none_or(|(least, _)| loss <= *least) {
                                best = Some((loss, without));
                            }
                        }
                        path = best.unwrap().1;
                    }
                }
            }
        }
        path
    };
    (0..set.tasks.len()).map(of_task).collect()
}

#[rstest]
fn it_is_the_plain_loop(#[values("Cortex", "Deep3", "Flat5", "ByEntropy")] name: &str) {
    let (cfg, variant, store) = upcycled(name);
    let model = (&cfg, variant, &store);
    let set = likely(model);
    let labels =
        Labels::greedy(tiny::sparse(&cfg, variant, &store).lm(), &variant.spec, &set, OPTIONS, &Device::Cpu).unwrap();
    assert_eq!(labels.paths.experts, by_hand(model, &set));
    assert_ne!(labels.paths.experts[0], labels.paths.experts[1], "the test is blind to the task");

    // On its own text it loses less than paths drawn at random do on average, the best of which may be luckier than greed.
    let own = losses(model, &set, labels.paths);
    let random: Vec<Vec<f64>> =
        (0..20).map(|seed| losses(model, &set, Labels::random(2, 2, &variant.spec, seed).paths)).collect();
    for task in 0..2 {
        let mean = random.iter().map(|losses| losses[task]).sum::<f64>() / 20.0;
        let below = random.iter().filter(|losses| losses[task] < own[task]).count();
        assert!(own[task] < mean && below <= 2, "{name}, task {task}: {} {mean} {below}", own[task]);
    }
}

/// Only one expert of each layer does anything: it is kept exactly where its removal costs, which is nearly everywhere, since the text
/// is what the whole model thinks likely.
#[rstest]
fn what_matters_is_kept(#[values(0, 4, 7, 11)] matters: u32) {
    let (cfg, variant, store) = upcycled("Linear3x4");
    for layer in 0..2 {
        let name = |name: &str| format!("model.layers.{layer}.mlp.{name}");
        let owners = store.get(&name("neuron_expert")).unwrap().to_vec1::<u32>().unwrap();
        let keep: Vec<f32> = owners.iter().map(|owner| if *owner == matters { 3.0 } else { 0.0 }).collect();
        let down = name("down_proj.weight");
        let keep = Tensor::new(keep, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
        let only = store.get(&down).unwrap().as_detached_tensor().broadcast_mul(&keep).unwrap();
        store.set(&down, &only).unwrap();
    }
    let set = likely((&cfg, variant, &store));
    let model = tiny::sparse(&cfg, variant, &store);
    let labels = Labels::greedy(model.lm(), &variant.spec, &set, OPTIONS, &Device::Cpu).unwrap();
    // With it or without it in a layer, all others active.
    let with = |on: &[bool; 2]| {
        let layer = |on: &bool| (0..12).filter(|expert| *on || *expert != matters).collect();
        let paths = PathTable { experts: vec![on.iter().map(layer).collect(); 2] };
        losses((&cfg, variant, &store), &set, paths)
    };
    let mut kept = 0;
    for task in 0..2 {
        let mut on = [true, true];
        for layer in 0..2 {
            let mut off = on;
            off[layer] = false;
            on[layer] = with(&off)[task] > with(&on)[task];
            assert_eq!(labels.paths.experts[task][layer].contains(&matters), on[layer], "task {task}, layer {layer}");
            kept += usize::from(on[layer]);
        }
    }
    assert!(kept >= 3, "what was made to matter does not: the test is blind");
}

#[test]
fn text_too_short_and_replicas_are_refused() {
    let (cfg, variant, store) = upcycled("Flat5");
    let model = tiny::sparse(&cfg, variant, &store);
    let short = tiny::tokens(1, &[40, 12], 30);
    let refused = message(Labels::greedy(model.lm(), &variant.spec, &short, OPTIONS, &Device::Cpu));
    assert!(refused.contains("task `task1` has no 2 sequences of 12 tokens"), "{refused}");
    let merged = tinyonn::moe::variant("Merged").unwrap();
    let refused = message(Labels::greedy(model.lm(), &merged.spec, &short, OPTIONS, &Device::Cpu));
    assert!(refused.contains("variant `Merged`") && refused.contains("alike"), "{refused}");
}
