//! Uneven hierarchies, deep ones, and experts that always take part: partitions, labels, priors, fits and accuracy.

use std::collections::BTreeMap;

use candle_core::DType;
use proptest::prelude::*;
use rand::Rng;
use rstest::rstest;
use tinyonn::checkpoint::{ParamStore, upcycle};
use tinyonn::imaging::inputs::Samples;
use tinyonn::imaging::{Integral, Labels, NeuronMarks, Partition, PartitionSources, partition};
use tinyonn::moe::{MoeLayer, MoeSpec};
use tinyonn::ops::ClassSums;
use tinyonn::random;
use tinyonn::train::{RouterFitConfig, RouterFitter, router_accuracy};

use crate::models::{self, message};
use crate::router_fit::normal;
use crate::routing::{hierarchy, slots, upcycled};
use crate::tiny;

mod declared {
    use tinyonn::moe::moe;

    #[moe(levels = [4], router = gaussian(project = identity, covariance = shared), top_k = 1)]
    pub(crate) struct SharedIdentity;

    #[moe(levels = [4], router = gaussian(project = identity, covariance = isotropic), top_k = 1)]
    pub(crate) struct IsotropicIdentity;
}

fn integral(seed: u64, tasks: usize, width: usize) -> Integral {
    let mut rng = random::stream(seed, "tests/hierarchies");
    let mut layer = || (0..width).map(|_| rng.random::<f64>() - 0.5).collect();
    Integral { neurons: (0..tasks).map(|_| (0..2).map(|_| layer()).collect()).collect() }
}

/// The best path by hand, from means over the neurons of all experts under a node.
fn best_path(values: &[f64], units: &[u32], spec: &MoeSpec) -> Vec<u32> {
    let mut nodes = vec![0];
    for (level, declared) in spec.levels.iter().enumerate() {
        let under = spec.experts_under(level);
        let score = |node: &usize| {
            let own = values.iter().zip(units).filter(|(_, expert)| under[*node].contains(&(**expert as usize)));
            let own: Vec<f64> = own.map(|(value, _)| *value).collect();
            own.iter().sum::<f64>() / own.len() as f64
        };
        let slots = slots(declared);
        let mut next = Vec::new();
        for parent in nodes {
            let (choices, top_k) = slots[parent].clone();
            let mut order: Vec<usize> = choices.collect();
            order.sort_by(|a, b| score(b).total_cmp(&score(a)));
            next.extend(&order[..top_k]);
        }
        next.sort_unstable();
        nodes = next;
    }
    nodes.into_iter().map(|expert| expert as u32).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn partitions_are_even_over_all_experts_and_labels_are_best_paths_of_routed_ones(
        seed in any::<u64>(),
        which in 0usize..9,
        extra in 0usize..30,
    ) {
        let spec = hierarchy(seed, false);
        prop_assume!(spec.experts() <= 60);
        let strategy = Partition::ALL[which];
        let width = spec.experts() + extra;
        let integral = integral(seed, 3, width);
        let [gate_rows, hidden] = [[width, 3], [9, width]].map(|shape| {
            [0, 1].map(|layer| crate::gradients::inputs(seed ^ layer, &[&shape]).remove(0))
        });
        let rows = |layer: usize| Ok(gate_rows[layer].clone());
        let marks = hidden.each_ref().map(|hidden| NeuronMarks::of(hidden).unwrap());
        let sources = PartitionSources {
            integral: Some(&integral),
            gate_rows: Some(&rows),
            coactivation: Some(&hidden),
            marks: Some(&marks),
        };
        let units = partition::assign(strategy, &spec, (2, width), sources, seed).unwrap();
        for layer in &units {
            let mut widths = vec![0; spec.experts()];
            layer.iter().for_each(|expert| widths[*expert as usize] += 1);
            let (least, most) = (widths.iter().min().unwrap(), widths.iter().max().unwrap());
            prop_assert!(*least >= 1 && most - least <= 1, "{widths:?}");
        }
        let labels = Labels::from_integral(&integral, &units, &spec);
        let random = Labels::random(3, 2, &spec, seed);
        for task in 0..3 {
            for layer in 0..2 {
                let expected = best_path(&integral.neurons[task][layer], &units[layer], &spec);
                prop_assert_eq!(&labels.paths.experts[task][layer], &expected);
                for path in [&labels, &random, &labels.permuted(seed)].map(|labels| &labels.paths.experts[task][layer]) {
                    prop_assert!(path.is_sorted() && path.iter().all(|expert| (*expert as usize) < spec.routed_experts()));
                }
                for level in 0..spec.levels.len() {
                    let under = spec.experts_under(level);
                    let on_path = (0..under.len()).filter(|node| expected.iter().any(|e| under[*node].contains(&(*e as usize))));
                    prop_assert_eq!(labels.nodes(task, layer, level, &spec), on_path.collect::<Vec<_>>());
                }
            }
        }
    }
}

#[test]
fn nodes_are_called_by_their_groups() {
    let [cortex, deep] = ["Cortex", "Deep3"].map(|name| &tinyonn::moe::variant(name).unwrap().spec);
    assert_eq!([0, 1, 2].map(|node| cortex.node_name(0, node)), ["language", "arithmetic", "lone"]);
    assert_eq!(cortex.node_name(1, 7), "expert 7");
    assert_eq!((cortex.experts(), cortex.routed_experts(), cortex.active_experts()), (11, 9, 7));
    assert_eq!(
        [deep.node_name(0, 2), deep.node_name(1, 5), deep.node_name(2, 11)],
        ["cluster 2", "group 5", "expert 11"]
    );
    let alone = &tinyonn::moe::variant("Alone").unwrap().spec;
    assert_eq!(alone.node_name(0, 0), "only");
}

mod alone {
    use tinyonn::moe::moe;

    #[moe(router = linear)]
    pub(crate) enum Alone {
        #[group(experts = 3)]
        Only,
        #[group(experts = 1, always)]
        Shared,
    }
}

#[test]
fn priors_are_in_proportion_to_experts() {
    for name in ["Cortex", "Deep3", "Deep4", "Isotropic3x4"] {
        let (_, variant, store) = upcycled(name);
        for (level, declared) in variant.spec.levels.iter().enumerate() {
            let under = variant.spec.experts_under(level);
            let mut nodes = 0;
            for run in declared.routers.iter() {
                let of_run = nodes..nodes + run.parents * run.choices;
                nodes = of_run.end;
                let Some(prior) = store.get(&format!("model.layers.1.mlp.{}_router.log_prior", run.name)) else {
                    assert!(!matches!(run.kind, tinyonn::moe::RouterKind::Gaussian(_)));
                    continue;
                };
                let prior = prior.to_vec2::<f32>().unwrap();
                for (router, prior) in under[of_run].chunks(run.choices).zip(prior) {
                    let all: usize = router.iter().map(std::ops::Range::len).sum();
                    for (experts, prior) in router.iter().zip(prior) {
                        let expected = (experts.len() as f64 / all as f64).ln() as f32;
                        approx::assert_abs_diff_eq!(prior, expected, epsilon = 1e-6);
                    }
                }
            }
        }
    }
}

const TASKS: usize = 4;
const HIDDEN: usize = 16;

/// Two layers of rows: task means twice standard normal, noise of a size that depends on task and dimension.
fn planted(purpose: &str, rows: usize) -> Vec<Samples> {
    let layer = |layer: usize| {
        let mut means = random::stream(7, &format!("tests/hierarchies/{layer}"));
        let means: Vec<Vec<f64>> =
            (0..TASKS).map(|_| (0..HIDDEN).map(|_| 2.0 * normal(&mut means)).collect()).collect();
        let mut rng = random::stream(7, &format!("tests/{purpose}/{layer}"));
        let mut samples = Samples::default();
        for row in 0..rows {
            let task = row % TASKS;
            let noisy = |(j, mean): (usize, &f64)| {
                (mean + normal(&mut rng) * (0.6 + 0.2 * task as f64 + 0.03 * j as f64)) as f32
            };
            samples.values.extend(means[task].iter().enumerate().map(noisy));
            samples.tasks.push(task as u32);
            samples.documents.push(row as u32);
        }
        samples
    };
    (0..2).map(layer).collect()
}

/// Fits the routers of `name` to random paths and says how often they find them on rows never seen, by level.
fn fitted(name: &str, steps: u64) -> tinyonn::Result<(Labels, ParamStore, Vec<f64>)> {
    let (cfg, variant, store) = upcycled(name);
    let labels = Labels::random(TASKS, 2, &variant.spec, 3);
    let (train, validation) = (planted("train", 800), planted("validation", 200));
    let mut fitter = RouterFitter::new(&train, &validation, TASKS, 64)?;
    let config = RouterFitConfig { steps, batch: 64, rate: 2e-2, ..RouterFitConfig::default() };
    fitter.fit((&store, &cfg, variant), &labels, &config, 0)?;
    let model = tiny::sparse(&cfg, variant, &store);
    let modules: Vec<&MoeLayer> = (0..2).map(|layer| model.moe(layer)).collect();
    let accuracy = router_accuracy(&modules, &planted("test", 400), &labels)?;
    let levels = (0..variant.spec.levels.len()).map(|level| accuracy.mean(level)).collect();
    for task in accuracy.load.iter().flatten() {
        assert!(task[variant.spec.routed_experts()..].iter().all(|load| *load == 0.0));
    }
    Ok((labels, store, levels))
}

/// What has a closed form needs no step; every kind that learns finds the paths of planted tasks by gradient.
#[rstest]
#[case("Isotropic3x4", 0)]
#[case("Identity3x4", 0)]
#[case("Drawn3x4", 0)]
#[case("Deep4", 0)]
#[case("Deep4", 100)]
#[case("Linear3x4", 200)]
#[case("Cosine3x4", 200)]
#[case("Custom3x4", 200)]
#[case("Flat5", 200)]
#[case("Deep3", 200)]
#[case("Cortex", 200)]
#[case("BySurprisal", 200)]
#[case("ByNucleus", 200)]
fn routers_find_the_paths_of_planted_tasks(#[case] name: &str, #[case] steps: u64) {
    let (_, _, accuracy) = fitted(name, steps).unwrap();
    assert!(accuracy.iter().all(|accuracy| *accuracy > 0.95), "{name}: {accuracy:?}");
}

#[rstest]
#[case("Linear3x4", "group_router")]
#[case("Cosine3x4", "group_router")]
#[case("Custom3x4", "group_router")]
#[case("Deep3", "cluster_router")]
#[case("Cortex", "arithmetic_router")]
fn what_has_no_closed_form_needs_steps(#[case] name: &str, #[case] router: &str) {
    let error = message(fitted(name, 0));
    for word in ["router.steps", router, "no closed form", "use 1 or more"] {
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn what_was_drawn_is_never_fitted() {
    let drawn = |name: &str| name.contains("projection") || name.ends_with("_router.weight");
    for name in ["Random3x4", "Drawn3x4"] {
        let pick = |store: &ParamStore| -> BTreeMap<String, Vec<u32>> {
            tiny::bits(store).into_iter().filter(|(name, _)| drawn(name)).collect()
        };
        let before = pick(&upcycled(name).2);
        assert!(before.len() == 4);
        assert_eq!(pick(&fitted(name, 20).unwrap().1), before);
    }
}

/// Shared variances are the choices' own, weighted by π; isotropic ones their mean over dimensions.
#[rstest]
fn shared_and_isotropic_variances_are_those_of_their_moments(
    #[values("SharedIdentity", "IsotropicIdentity")] name: &str,
) {
    let (labels, store, _) = fitted(name, 0).unwrap();
    for (layer, samples) in planted("train", 800).iter().enumerate() {
        let mut of_task = ClassSums::zero(TASKS, HIDDEN);
        of_task.push_rows(&samples.values, &samples.tasks).unwrap();
        let moment = |tasks: &[usize], j: usize| {
            let n: f64 = tasks.iter().map(|task| of_task.count(*task)).sum();
            let mean = tasks.iter().map(|task| of_task.sum(*task)[j]).sum::<f64>() / n;
            (n, mean, tasks.iter().map(|task| of_task.squares(*task)[j]).sum::<f64>() / n - mean * mean)
        };
        let all: Vec<usize> = (0..TASKS).collect();
        let tasks_of = |choice: u32| -> Vec<usize> {
            (0..TASKS).filter(|task| labels.paths.experts[*task][layer] == [choice]).collect()
        };
        let (mut expected, mut weights) = (Vec::new(), Vec::new());
        for choice in 0..4 {
            let own = tasks_of(choice);
            let labelled = !own.is_empty();
            let of = |j: usize| {
                let pooled = moment(&all, j).2;
                let (n, _, variance) = if labelled { moment(&own, j) } else { (0.0, 0.0, 0.0) };
                (n * variance + 32.0 * pooled) / (n + 32.0)
            };
            expected.push((0..HIDDEN).map(of).collect::<Vec<f64>>());
            let n = if labelled { moment(&own, 0).0 } else { -1.0 };
            weights.push((n + 1.0) / (800.0 + 4.0));
        }
        let total: f64 = weights.iter().sum();
        let expected: Vec<f64> = match name {
            "SharedIdentity" => {
                (0..HIDDEN).map(|j| (0..4).map(|c| weights[c] * expected[c][j]).sum::<f64>() / total).collect()
            }
            _ => expected.iter().map(|row| row.iter().sum::<f64>() / HIDDEN as f64).collect(),
        };
        let found = store.get(&format!("model.layers.{layer}.mlp.expert_router.log_variance")).unwrap();
        assert_eq!(found.dims(), if name == "SharedIdentity" { [1, 1, HIDDEN] } else { [1, 4, 1] });
        let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (found, expected) in found.iter().zip(expected) {
            approx::assert_abs_diff_eq!(f64::from(*found), expected.ln(), epsilon = 1e-5);
        }
    }
}

/// Widths below the experts are refused with those that always take part counted.
#[test]
fn experts_that_always_take_part_need_neurons_too() {
    let (variant, cfg) = (tinyonn::moe::variant("Cortex").unwrap(), models::config(10, false));
    let refused =
        message(partition::assign(Partition::Contiguous, &variant.spec, (2, 10), PartitionSources::default(), 0));
    assert!(refused.contains("10 neurons for 11 experts"), "{refused}");
    let store = models::weights(&cfg, DType::F32);
    let by_hand = vec![vec![0; 10]; 2];
    assert_eq!(message(upcycle(store.deep_copy().unwrap(), &cfg, variant, &by_hand, 0)), refused);
}
