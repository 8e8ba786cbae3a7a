//! The load of experts: every figure against a loop over tokens, what counts as a collapse, and who reports it.

use std::sync::Arc;

use approx::assert_relative_eq;
use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;
use rand::Rng;
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::checkpoint::ParamStore;
use tinyonn::data::Sampler;
use tinyonn::decoder::{Active, Ask, FeedForward as _, Load, Pass, Trace};
use tinyonn::imaging::Labels;
use tinyonn::metrics::MetricsLog;
use tinyonn::moe::{AlwaysSpec, LoadFigures, LoadMeter, MoeSpec, RoutePer};
use tinyonn::ops::host;
use tinyonn::random;
use tinyonn::train::evaluate::{EvaluateOptions, evaluate_load};
use tinyonn::train::{SmkConfig, evaluate, train_smk};

use crate::gradients::inputs;
use crate::routing::{gates_of, upcycled};
use crate::tiny::{self, spec};

/// Six routed experts and two that always take part.
fn eight() -> MoeSpec {
    let always = vec![AlwaysSpec { name: "shared".into(), experts: 2 }];
    MoeSpec { always: always.into(), ..spec(&[(2, 1), (3, 2)]) }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    /// Gates of any value over several batches, some tokens of which no decision is for.
    #[test]
    fn figures_are_those_of_a_loop_over_tokens(seed in any::<u64>(), batches in 1usize..4, tokens in 1usize..20) {
        let mut rng = random::stream(seed, "tests/load");
        let (spec, mut meter) = (eight(), LoadMeter::new(2, 8));
        // By routed token: which experts it took.
        let mut seen: Vec<Vec<bool>> = Vec::new();
        for _ in 0..batches {
            let routed: Vec<bool> = (0..tokens).map(|_| rng.random_range(0..4) > 0).collect();
            let open: Vec<Vec<bool>> =
                (0..tokens).map(|_| (0..8).map(|expert| expert > 5 || rng.random_range(0..3) == 0).collect()).collect();
            let own: Vec<Vec<bool>> =
                open.into_iter().zip(&routed).filter(|(_, routed)| **routed).map(|(open, _)| open).collect();
            let took = |open: &Vec<bool>| open.iter().filter(|open| **open).count();
            let list = |values: Vec<f32>| Tensor::new(values, &Device::Cpu).unwrap();
            let load = Load {
                neurons_t: None,
                inputs_t: None,
                tokens_n: list((0..8).map(|expert| own.iter().filter(|open| open[expert]).count() as f32).collect()),
                counts: list((0..=8).map(|k| own.iter().filter(|open| took(open) == k).count() as f32).collect()),
            };
            let traces = [Trace::default(), Trace { load: Some(load), ..Trace::default() }];
            meter.add(&traces, &host::read(&LoadMeter::wanted(&traces)).unwrap());
            seen.extend(own);
        }
        let figures = meter.figures(&spec);
        let (untouched, layer) = (&figures.layers[0], &figures.layers[1]);
        prop_assert_eq!((untouched.max_over_mean, untouched.entropy, untouched.dead.len()), (0.0, 0.0, 6));
        let count = |expert: usize| seen.iter().filter(|open| open[expert]).count() as f64;
        let counts: Vec<f64> = (0..6).map(count).collect();
        let total: f64 = counts.iter().sum();
        prop_assert_eq!(&layer.dead, &(0..6).filter(|expert| counts[*expert] == 0.0).collect::<Vec<_>>());
        for k in 0..=8 {
            let took = seen.iter().filter(|open| open.iter().filter(|open| **open).count() == k).count() as u64;
            prop_assert_eq!(layer.experts_taken.get(&k).copied().unwrap_or(0), took);
        }
        prop_assert_eq!(layer.experts_taken.values().sum::<u64>(), seen.len() as u64);
        if total > 0.0 {
            let most = counts.iter().copied().fold(0.0, f64::max);
            let entropy = -counts.iter().map(|n| n / total).filter(|q| *q > 0.0).map(|q| q * q.ln()).sum::<f64>();
            // Sums of six terms in f64.
            assert_relative_eq!(layer.max_over_mean, most / (total / 6.0), max_relative = 1e-12);
            assert_relative_eq!(layer.entropy, entropy, epsilon = 1e-12);
            assert_relative_eq!(layer.evenness, entropy / 6f64.ln(), epsilon = 1e-12);
            let (busiest, share) = layer.busiest[0];
            prop_assert!(counts[busiest] >= most && (0..busiest).all(|expert| counts[expert] < most));
            assert_relative_eq!(share, most / total, max_relative = 1e-12);
        }
        // What training gathers by expert alone is the same but for the histogram.
        let taken = vec![vec![0.0; 8], (0..8).map(count).collect()];
        let mut alone = LoadFigures::new(&spec, &taken);
        alone.layers[1].experts_taken.clone_from(&layer.experts_taken);
        prop_assert_eq!(alone, figures);
    }
}

/// Of eight experts, asked to be even: half of them is enough, twice the mean is not too much.
#[rstest]
#[case::even(&[1.0; 8], false)]
#[case::five_of_eight(&[1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0], false)]
#[case::three_of_eight(&[1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], true)]
#[case::one(&[0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 0.0], true)]
#[case::a_peak_below_twice_the_mean(&[19.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 7.0], false)]
#[case::a_peak_above_it_though_all_are_used(&[30.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0], true)]
#[case::nothing_routed(&[0.0; 8], false)]
fn a_collapse_is_half_the_spread_or_twice_the_peak(#[case] taken: &[f64], #[case] collapsed: bool) {
    let spec = spec(&[(8, 1)]);
    let found = LoadFigures::new(&spec, &[vec![1.0; 8], taken.to_vec()]);
    let warnings = found.warnings(&spec, &LoadFigures::even(&spec, 2));
    assert_eq!(warnings.len(), usize::from(collapsed), "{warnings:?}");
    for warning in warnings {
        let busiest = (0..8).rev().max_by(|a, b| taken[*a].total_cmp(&taken[*b])).unwrap();
        for word in ["collapse", "layer 1", &format!("expert {busiest} "), "8.0 are asked for", "declare `balance"] {
            assert!(warning.contains(word), "{word}: {warning}");
        }
    }
}

/// Labels leave experts out on purpose: that is no collapse; less than half of what they ask for is.
#[test]
fn a_load_is_held_against_what_labels_ask_for() {
    let variant = tinyonn::moe::variant("Cortex").unwrap();
    let labels = Labels::random(3, 1, &variant.spec, 1);
    let asked = LoadFigures::of_paths(&variant.spec, &labels.paths, &[5.0, 5.0, 5.0]);
    assert!(asked.warnings(&variant.spec, &asked).is_empty());
    let mut one = vec![0.0; 11];
    one[2] = 15.0;
    let warnings = LoadFigures::new(&variant.spec, &[one]).warnings(&variant.spec, &asked);
    assert!(warnings[0].contains("expert 2 (language) 100 %") && warnings[0].contains("8 of 9"), "{warnings:?}");
}

/// Along the labels' own paths the meter sees what the labels ask for.
#[test]
fn what_labels_ask_for_is_the_load_along_their_paths() {
    for name in ["Cortex", "Deep3"] {
        let (cfg, variant, store) = upcycled(name);
        let set = tiny::tokens(1, &[33, 65], 40);
        let labels = Labels::random(2, 2, &variant.spec, 3);
        let pass = Pass { active: Active::Paths(Arc::new(labels.paths.clone())), ..Pass::default() };
        let options = EvaluateOptions { length: 16, batch: 3, skip: 0 };
        let (model, experts) = (tiny::sparse(&cfg, variant, &store), variant.spec.experts());
        let (losses, meter) = evaluate_load(model.lm(), &set, options, &pass, &Device::Cpu, experts).unwrap();
        assert_eq!(losses, evaluate(model.lm(), &set, options, &pass, &Device::Cpu).unwrap());
        let mut found = meter.figures(&variant.spec);
        let counts = |layer: usize| found.layers[layer].experts_taken.values().sum::<u64>();
        assert_eq!([counts(0), counts(1)], [96, 96]);
        found.layers.iter_mut().for_each(|layer| layer.experts_taken.clear());
        assert_eq!(found, LoadFigures::of_paths(&variant.spec, &labels.paths, &[32.0, 64.0]));
    }
}

/// SMK logs the load of the steps since the last line, whether routers learn or not: that of the model as it is before each step.
#[rstest]
fn training_logs_its_load(#[values(false, true)] routers: bool) {
    let (cfg, variant, store) = upcycled("Linear3x4");
    let set = tiny::tokens(4, &[600, 600], 40);
    let sampler = Sampler::new(&set, 16, 4, 0, &Device::Cpu).unwrap();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("smk.jsonl");
    let trained = |store: &ParamStore, steps: u64| {
        let mut log = MetricsLog::create(&path).unwrap();
        let config = SmkConfig { steps, batch: 4, min_k: 2, routers, ..SmkConfig::DEFAULT };
        train_smk((store, &cfg, variant), &Pass::routed(), (&sampler, None), &config, &mut log, None).unwrap();
        tinyonn::metrics::read(&path).unwrap()
    };
    let figures = |store: &ParamStore, step: u64| {
        let model = tiny::sparse(&cfg, variant, store);
        let figures =
            tiny::load(&model, &sampler.batch_at(step).unwrap().inputs, &Pass::routed()).figures(&variant.spec);
        assert_eq!(figures.layers[0].experts_taken.values().sum::<u64>(), 4 * 16);
        figures
    };
    let after_one = store.deep_copy().unwrap();
    trained(&after_one, 1);
    let expected = [figures(&store, 0), figures(&after_one, 1)];
    let records = trained(&store.deep_copy().unwrap(), 2);
    assert_eq!(records.len(), 2);
    for (record, expected) in records.iter().zip(&expected) {
        let names: Vec<&str> = record.values.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["loss", "load_max_over_mean", "load_evenness", "load_dead"]);
        let values: Vec<f64> = record.values[1..].iter().map(|(_, value)| *value).collect();
        assert_eq!(values, [expected.max_over_mean(), expected.evenness(), expected.dead()]);
        assert!(values[0] >= 1.0);
    }
}

/// What a layer says it gave its experts is what a loop over its gates counts, tokens that a decision is for alone.
#[rstest]
fn the_load_of_a_layer_is_counted_from_its_gates(
    #[values("Flat5", "Cortex", "Linear3x4", "SegmentOf3", "SequenceOf2", "ByTask", "ByEntropy", "Dispatch3x4")]
    name: &str,
    #[values(1, 2, 3, 7)] length: usize,
) {
    let (cfg, variant, store) = upcycled(name);
    let layer = (variant.build)(&cfg, 0, store.builder(DType::F32, |_| false).pp("model.layers.0.mlp")).unwrap();
    let x = inputs(8, &[&[3, length, cfg.hidden_size]]).remove(0).to_dtype(DType::F32).unwrap();
    let paths = Some(Arc::new(Labels::random(2, 2, &variant.spec, 8).paths));
    let ask = Ask { load: true, gates: true, ..Ask::default() };
    let pass = Pass { ask, paths, ..Pass::routed().of_tasks(&[0, 1, 1]) };
    let trace = layer.forward(&x, &pass).unwrap().1;
    let load = trace.load.as_ref().unwrap();
    // What a decision reads for others, and a sequence too short for one.
    let open = match variant.spec.route_per {
        RoutePer::Token | RoutePer::Task => 0,
        RoutePer::Segment { tokens } => tokens,
        RoutePer::Sequence { first } => first,
    };
    let decided = gates_of(&trace).into_iter().enumerate().filter(|(t, _)| t % length >= open).map(|(_, gates)| gates);
    let (mut tokens, mut counts) = (vec![0f32; variant.spec.experts()], vec![0f32; variant.spec.experts() + 1]);
    for gates in decided {
        gates.iter().zip(&mut tokens).for_each(|(gate, tokens)| *tokens += f32::from(*gate > 0.0));
        counts[gates.iter().filter(|gate| **gate > 0.0).count()] += 1.0;
    }
    assert_eq!(load.tokens_n.to_vec1::<f32>().unwrap(), tokens);
    assert_eq!(load.counts.to_vec1::<f32>().unwrap(), counts);
    // All active nobody was given anything by a decision.
    assert!(layer.forward(&x, &Pass { ask: pass.ask, ..Pass::all() }).unwrap().1.load.is_none());
}
