//! Selection and adaptive gating against walks down the hierarchy by the definition.

use candle_core::{Device, Tensor};
use proptest::prelude::*;
use rand::Rng;
use rstest::rstest;
use tinyonn::moe::select::{chosen, paths};
use tinyonn::moe::{MoeSpec, Pfag, Selection, select, select_on_device, variants};
use tinyonn::random;

use super::{by_input, hierarchy, log_softmax, scores, slots};
use crate::models::message;

/// How many choices a router takes; `None` where rounding decides.
fn count(pfag: Pfag, log_p: &[f64], top_k: usize, surprisal: f64) -> Option<usize> {
    let mass = match pfag {
        Pfag::Off => return Some(top_k),
        Pfag::Entropy => {
            let entropy: f64 = -log_p.iter().map(|l| l.exp() * l).sum::<f64>();
            let k = entropy.exp() + 0.5;
            return ((k - k.round()).abs() > 1e-4).then(|| (k.floor() as usize).clamp(1, top_k));
        }
        Pfag::Nucleus { mass } => mass,
        Pfag::Surprisal => 1.0 / (1.0 + (-surprisal.clamp(0.1, 5.0)).exp()),
    };
    let mut p: Vec<f64> = log_p.iter().map(|l| l.exp()).collect();
    p.sort_by(|a, b| b.total_cmp(a));
    let mut sum = 0.0;
    for (at, p) in p.iter().enumerate() {
        sum += p;
        if (sum - mass).abs() < 1e-5 && at + 1 < log_p.len() {
            return None;
        }
        if sum >= mass {
            return Some((at + 1).min(top_k));
        }
    }
    Some(top_k)
}

/// The experts that are taken, by the definition: at every router that is come by, the best remaining choice again and again, the
/// first among equals.
fn walk(spec: &MoeSpec, scores: &[Vec<f32>], bias: Option<&[Vec<f32>]>, surprisal: f64) -> Option<Vec<f32>> {
    let mut nodes = vec![0];
    for (level, declared) in spec.levels.iter().enumerate() {
        let slots = slots(declared);
        let mut next = Vec::new();
        for parent in nodes {
            let (choices, top_k) = slots[parent].clone();
            let own: Vec<f64> = scores[level][choices.clone()].iter().map(|l| f64::from(*l)).collect();
            let value = |node: usize| match bias {
                None => scores[level][node],
                Some(bias) => scores[level][node].exp() + bias[level][node],
            };
            let k = count(spec.pfag, &own, top_k, surprisal)?;
            let mut left: Vec<usize> = choices.collect();
            for _ in 0..k {
                let mut best = 0;
                for at in 1..left.len() {
                    if value(left[at]) > value(left[best]) {
                        best = at;
                    }
                }
                next.push(left.remove(best));
            }
        }
        nodes = next;
    }
    let mut taken = vec![0.0; spec.experts()];
    nodes.into_iter().chain(spec.routed_experts()..spec.experts()).for_each(|expert| taken[expert] = 1.0);
    Some(taken)
}

fn tensors(spec: &MoeSpec, inputs: &[Vec<Vec<f32>>]) -> Vec<Tensor> {
    let level = |level: usize| {
        let values: Vec<f32> = inputs.iter().flat_map(|input| input[level].clone()).collect();
        Tensor::from_vec(values, (inputs.len(), spec.levels[level].nodes()), &Device::Cpu).unwrap()
    };
    (0..spec.levels.len()).map(level).collect()
}

/// Biases by level and surprisals as selection reads them.
fn lists(bias: Option<&[Vec<f32>]>, surprisal: &[f32]) -> (Option<Vec<Tensor>>, Tensor) {
    let list = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
    (bias.map(|bias| bias.iter().map(|level| list(level)).collect()), list(surprisal))
}

/// Scores that tie often, both zeros among them.
fn coarse(spec: &MoeSpec, seed: u64, inputs: usize) -> Vec<Vec<Vec<f32>>> {
    let mut rng = random::stream(seed, "tests/coarse");
    let mut level = |nodes: usize| (0..nodes).map(|_| [-1.5, -0.0, 0.0, 2.0][rng.random_range(0..4)]).collect();
    (0..inputs).map(|_| spec.levels.iter().map(|declared| level(declared.nodes())).collect()).collect()
}

/// log p in f32 of random ℓ, or of ones that tie.
fn log_probs(spec: &MoeSpec, seed: u64, inputs: usize, ties: bool) -> Vec<Vec<Vec<f32>>> {
    let logits: Vec<Vec<Vec<f64>>> = if ties {
        let wide = |level: &Vec<f32>| level.iter().map(|l| f64::from(*l)).collect();
        coarse(spec, seed, inputs).iter().map(|input| input.iter().map(wide).collect()).collect()
    } else {
        by_input(&scores(spec, seed, inputs, 6.0))
    };
    let narrow = |(level, logits): (_, &Vec<f64>)| log_softmax(level, logits).into_iter().map(|l| l as f32).collect();
    logits.iter().map(|input| spec.levels.iter().zip(input).map(narrow).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn takes_what_a_walk_by_the_definition_takes(seed in any::<u64>(), wide in any::<bool>()) {
        let spec = hierarchy(seed, wide);
        let inputs = coarse(&spec, seed, 5);
        let taken = select(&spec, &tensors(&spec, &inputs), Selection::default()).unwrap().to_vec2::<f32>().unwrap();
        let on_device = select_on_device::select(&spec, &tensors(&spec, &inputs), None, None).unwrap();
        prop_assert_eq!(&on_device.to_vec2::<f32>().unwrap(), &taken);
        let walked = paths(&spec, &tensors(&spec, &inputs)).unwrap();
        for ((input, taken), path) in inputs.iter().zip(&taken).zip(&walked) {
            prop_assert_eq!(taken, &walk(&spec, input, None, 0.0).unwrap());
            prop_assert_eq!(&chosen(&spec, |level| &input[level]), path);
            let routed = taken[..spec.routed_experts()].iter().enumerate().filter(|(_, gate)| **gate > 0.0);
            prop_assert_eq!(path, &routed.map(|(expert, _)| expert as u32).collect::<Vec<_>>());
            prop_assert!(taken.iter().sum::<f32>() as usize <= spec.active_experts());
        }
    }

    #[test]
    fn biases_and_adaptive_counts_take_what_their_definitions_take(
        seed in any::<u64>(),
        wide in any::<bool>(),
        ties in any::<bool>(),
        biased in any::<bool>(),
        form in 0usize..4,
    ) {
        let pfag = [Pfag::Off, Pfag::Entropy, Pfag::Nucleus { mass: 0.617 }, Pfag::Surprisal][form];
        let spec = MoeSpec { pfag, ..hierarchy(seed, wide) };
        let inputs = log_probs(&spec, seed, 5, ties);
        let mut rng = random::stream(seed, "tests/bias");
        let surprisal: Vec<f32> = (0..5).map(|_| rng.random_range(0.0..7.0)).collect();
        let mut of_node = || if ties { 0.25 * f32::from(rng.random_range(0..3u8)) } else { rng.random_range(-0.3..0.3) };
        let bias: Vec<Vec<f32>> =
            spec.levels.iter().map(|level| (0..level.nodes()).map(|_| of_node()).collect()).collect();
        let bias = biased.then_some(bias.as_slice());
        let lists = lists(bias, &surprisal);
        let with = Selection { bias: lists.0.as_deref(), surprisal: Some(&lists.1) };
        let taken = select(&spec, &tensors(&spec, &inputs), with).unwrap().to_vec2::<f32>().unwrap();
        let on_device = select_on_device::select(&spec, &tensors(&spec, &inputs), with.bias, with.surprisal).unwrap();
        let on_device = on_device.to_vec2::<f32>().unwrap();
        for (((input, taken), on_device), surprisal) in inputs.iter().zip(&taken).zip(&on_device).zip(&surprisal) {
            if let Some(expected) = walk(&spec, input, bias, f64::from(*surprisal)) {
                prop_assert_eq!(taken, &expected);
                prop_assert_eq!(on_device, &expected);
            }
        }
    }
}

/// Of every variant that is declared here or shipped: what is selected in plain operations, as on a GPU, is what is selected in main memory.
#[test]
fn every_variant_is_selected_alike_in_plain_operations() {
    let routed = variants().into_iter().filter(|variant| !variant.spec.levels.is_empty());
    for (seed, variant) in routed.enumerate() {
        let spec = &variant.spec;
        let scores = scores(spec, seed as u64, 40, 6.0).log_probs().unwrap();
        let mut rng = random::stream(seed as u64, "tests/alike");
        let surprisal: Vec<f32> = (0..40).map(|_| rng.random_range(0.0..7.0)).collect();
        let of_level =
            |level: &tinyonn::moe::LevelSpec| (0..level.nodes()).map(|_| rng.random_range(-0.2..0.2)).collect();
        let bias: Vec<Vec<f32>> = spec.levels.iter().map(of_level).collect();
        for bias in [None, Some(bias.as_slice())] {
            let lists = lists(bias, &surprisal);
            let with = Selection { bias: lists.0.as_deref(), surprisal: Some(&lists.1) };
            let [here, there] =
                [select(spec, &scores, with), select_on_device::select(spec, &scores, with.bias, with.surprisal)];
            assert!(
                here.unwrap().to_vec2::<f32>().unwrap() == there.unwrap().to_vec2::<f32>().unwrap(),
                "{}",
                spec.name
            );
        }
    }
}

#[test]
fn scores_that_are_no_numbers_take_no_more_than_top_k() {
    for (choices, top_k) in [(6, 2), (40, 3)] {
        let spec = crate::tiny::spec(&[(choices, top_k)]);
        for nans in 0..=choices {
            let row: Vec<f32> = (0..choices).map(|at| if at < nans { f32::NAN } else { at as f32 }).collect();
            let scores = tensors(&spec, &[vec![row]]);
            for taken in
                [select(&spec, &scores, Selection::default()), select_on_device::select(&spec, &scores, None, None)]
            {
                assert_eq!(taken.unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), top_k as f32);
            }
        }
    }
}

#[test]
fn what_does_not_belong_to_the_hierarchy_is_refused() {
    let spec = crate::tiny::spec(&[(3, 1), (2, 1)]);
    let [groups, experts] =
        [3usize, 6].map(|nodes| Tensor::zeros((4, nodes), candle_core::DType::F32, &Device::Cpu).unwrap());
    let of = |spec: &MoeSpec, scores: &[Tensor], surprisal| {
        message(select(spec, scores, Selection { bias: None, surprisal }))
    };
    let missing = of(&spec, std::slice::from_ref(&groups), None);
    assert!(missing.contains("1 levels of scores for 2"), "{missing}");
    let swapped = of(&spec, &[experts.clone(), groups.clone()], None);
    assert!(swapped.contains("[4, 6]") && swapped.contains("[4, 3]"), "{swapped}");
    let adaptive = MoeSpec { pfag: Pfag::Surprisal, ..spec };
    let three = Tensor::ones(3, candle_core::DType::F32, &Device::Cpu).unwrap();
    for surprisal in [None, Some(&three)] {
        let unknown = of(&adaptive, &[groups.clone(), experts.clone()], surprisal);
        assert!(unknown.contains("surprisal of each of 4 inputs"), "{unknown}");
    }
}

/// Where `top_k` is only a cap, a path as wide as the cap would be all there is.
#[rstest]
#[case(Pfag::Off, 12)]
#[case(Pfag::Entropy, 2)]
#[case(Pfag::Nucleus { mass: 0.9 }, 2)]
#[case(Pfag::Surprisal, 2)]
fn paths_have_a_fixed_width_whatever_adapts(#[case] pfag: Pfag, #[case] width: usize) {
    let spec = MoeSpec { pfag, ..crate::tiny::spec(&[(3, 3), (4, 4)]) };
    let rows = [vec![0.1, 0.9, 0.3], (0..12).map(|at| at as f32).collect()];
    let path = chosen(&spec, |level| &rows[level]);
    assert_eq!(path.len(), width);
    assert!(width == 12 || path == [6, 7]);
}
