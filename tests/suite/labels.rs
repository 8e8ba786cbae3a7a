//! Labels: the best path of every task against a search by hand, the controls, and the figures that describe them.

mod greedy;

use std::collections::BTreeSet;

use approx::assert_relative_eq;
use proptest::prelude::*;
use rand::Rng;
use rstest::rstest;
use tinyonn::decoder::PathTable;
use tinyonn::imaging::{Integral, LabelBalance, Labels};
use tinyonn::moe::MoeSpec;
use tinyonn::random;

use crate::tiny::spec;

/// Hierarchies of one to three levels.
const SPECS: [&[(usize, usize)]; 6] =
    [&[(6, 2)], &[(1, 1), (1, 1)], &[(2, 1), (4, 2)], &[(3, 3), (2, 1)], &[(7, 3), (3, 2)], &[(2, 2), (3, 1), (2, 1)]];

fn any_spec() -> impl Strategy<Value = MoeSpec> {
    prop::sample::select(SPECS.to_vec()).prop_map(spec)
}

/// Scores `[task][layer][i]`; coarse ones tie often.
fn integral(seed: u64, tasks: usize, layers: usize, width: usize, coarse: bool) -> Integral {
    let mut rng = random::stream(seed, "tests/labels");
    let mut score = || if coarse { f64::from(rng.random_range(0..3u8)) } else { rng.random::<f64>() - 0.5 };
    let mut layer = || (0..width).map(|_| score()).collect();
    Integral { neurons: (0..tasks).map(|_| (0..layers).map(|_| layer()).collect()).collect() }
}

/// Experts below each node of a level.
fn below(spec: &MoeSpec, level: usize) -> usize {
    spec.levels[level + 1..].iter().map(|level| level.routers[0].choices).product()
}

/// The best path by hand: from the root, the k best children of every chosen node, the first among equals.
pub(crate) fn best_path(values: &[f64], units: &[u32], spec: &MoeSpec) -> Vec<u32> {
    let mut nodes = vec![0];
    for (level, declared) in spec.levels.iter().map(|level| &level.routers[0]).enumerate() {
        let score = |node: usize| {
            let own: Vec<f64> = values
                .iter()
                .zip(units)
                .filter(|(_, e)| **e as usize / below(spec, level) == node)
                .map(|(x, _)| *x)
                .collect();
            own.iter().sum::<f64>() / own.len() as f64
        };
        let mut next = Vec::new();
        for parent in nodes {
            let mut children: Vec<usize> = (0..declared.choices).map(|c| parent * declared.choices + c).collect();
            for _ in 0..declared.top_k {
                let mut best = 0;
                for c in 1..children.len() {
                    if score(children[c]) > score(children[best]) {
                        best = c;
                    }
                }
                next.push(children.remove(best));
            }
        }
        next.sort_unstable();
        nodes = next;
    }
    nodes.into_iter().map(|node| node as u32).collect()
}

fn is_path(path: &[u32], spec: &MoeSpec) -> bool {
    let mut nodes: BTreeSet<usize> = [0].into();
    let all: BTreeSet<usize> = path.iter().map(|e| *e as usize).collect();
    spec.levels.iter().map(|level| &level.routers[0]).enumerate().all(|(level, declared)| {
        let next: BTreeSet<usize> = all.iter().map(|e| e / below(spec, level)).collect();
        let whole = nodes
            .iter()
            .all(|parent| next.iter().filter(|n| **n / declared.choices == *parent).count() == declared.top_k);
        let within = next.iter().all(|node| nodes.contains(&(node / declared.choices)));
        nodes = next;
        whole && within
    }) && path.is_sorted_by(|a, b| a < b)
        && path.len() == spec.active_experts()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn every_task_takes_its_best_path(
        spec in any_spec(), seed in any::<u64>(), tasks in 1usize..5, extra in 0usize..30, coarse in any::<bool>(),
    ) {
        let width = spec.experts() + extra;
        let units: Vec<Vec<u32>> =
            (0..2).map(|layer| (0..width).map(|i| ((i + 3 * layer) % spec.experts()) as u32).collect()).collect();
        let integral = integral(seed, tasks, 2, width, coarse);
        let labels = Labels::from_integral(&integral, &units, &spec);
        for task in 0..tasks {
            for layer in 0..2 {
                let path = &labels.paths.experts[task][layer];
                prop_assert!(is_path(path, &spec), "{:?}", path);
                prop_assert_eq!(path, &best_path(&integral.neurons[task][layer], &units[layer], &spec));
            }
        }
    }

    #[test]
    fn random_paths_are_paths_and_seeded(spec in any_spec(), seed in any::<u64>()) {
        let labels = Labels::random(40, 3, &spec, seed);
        prop_assert!(labels.paths.experts.iter().flatten().all(|path| is_path(path, &spec)));
        prop_assert_eq!((labels.paths.experts.len(), labels.paths.experts[0].len()), (40, 3));
        prop_assert_eq!(&labels, &Labels::random(40, 3, &spec, seed));
        if spec.active_experts() < spec.experts() {
            prop_assert_ne!(&labels, &Labels::random(40, 3, &spec, seed ^ 1));
            prop_assert!(labels.statistics(&spec).distinct_paths > 1);
        }
    }

    #[test]
    fn permuted_paths_are_all_anothers(tasks in 2usize..12, seed in any::<u64>()) {
        let own: Vec<Vec<Vec<u32>>> = (0..tasks as u32).map(|task| vec![vec![task], vec![task + 100]]).collect();
        let labels = Labels { paths: PathTable { experts: own.clone() } };
        let permuted = labels.permuted(seed);
        prop_assert!(permuted.paths.experts.iter().zip(&own).all(|(new, old)| new != old));
        let mut sorted = permuted.paths.experts.clone();
        sorted.sort();
        prop_assert_eq!(sorted, own);
        prop_assert_eq!(permuted, labels.permuted(seed));
    }

    #[test]
    fn statistics_are_bounded_by_one_path_and_all_experts(spec in any_spec(), seed in any::<u64>(), tasks in 1usize..9) {
        let labels = Labels::random(tasks, 2, &spec, seed);
        let statistics = labels.statistics(&spec);
        let bounds = [spec.active_experts(), spec.experts()].map(|n| (n as f64).ln());
        // Sums of at most 21 shares in f64.
        prop_assert!(statistics.entropy >= bounds[0] - 1e-12 && statistics.entropy <= bounds[1] + 1e-12);
        let distinct: BTreeSet<_> = labels.paths.experts.iter().collect();
        prop_assert_eq!(statistics.distinct_paths, distinct.len());
    }

    #[test]
    fn nodes_are_what_the_path_passes(spec in any_spec(), seed in any::<u64>()) {
        let labels = Labels::random(3, 2, &spec, seed);
        for (task, layer) in [(0, 0), (1, 1), (2, 0)] {
            let path: Vec<usize> = labels.paths.experts[task][layer].iter().map(|e| *e as usize).collect();
            let last = spec.levels.len() - 1;
            prop_assert_eq!(&labels.nodes(task, layer, last, &spec), &path);
            let mut taken = 1;
            for level in 0..=last {
                let nodes = labels.nodes(task, layer, level, &spec);
                taken *= spec.levels[level].routers[0].top_k;
                prop_assert_eq!(nodes.len(), taken);
                prop_assert!(nodes.is_sorted());
                for node in nodes {
                    let experts = node * below(&spec, level)..(node + 1) * below(&spec, level);
                    prop_assert!(path.iter().any(|e| experts.contains(e)));
                }
            }
        }
    }
}

#[test]
fn a_single_task_keeps_its_path() {
    let labels = Labels::random(1, 2, &spec(&[(4, 2)]), 0);
    assert_eq!(labels.permuted(0), labels);
}

/// The seed of a derangement matters: it is one of several.
#[test]
fn permutations_differ_by_seed() {
    let labels = Labels { paths: PathTable { experts: (0..5).map(|task| vec![vec![task]]).collect() } };
    let all: BTreeSet<_> = (0..40).map(|seed| labels.permuted(seed).paths.experts).collect();
    // Of 4! = 24 cycles through five tasks 40 draws find about 20.
    assert!(all.len() > 10, "{}", all.len());
}

#[rstest]
#[case::equal(0.0, &[0, 1])]
#[case::zeros_of_both_signs(-0.0, &[0, 1])]
#[case::finer_than_f32(1e-12, &[2, 3])]
fn differences_decide_and_ties_go_to_the_lower_index(#[case] more: f64, #[case] path: &[u32]) {
    let scores = match more {
        0.0 if more.is_sign_negative() => vec![-0.0, 0.0, 0.0, -0.0],
        more => vec![1.0, 1.0, 1.0 + more, 1.0 + more],
    };
    let integral = Integral { neurons: vec![vec![scores]] };
    let labels = Labels::from_integral(&integral, &[vec![0, 1, 2, 3]], &spec(&[(4, 2)]));
    assert_eq!(labels.paths.experts[0][0], path);
}

/// A group is scored by its neurons, not by its best expert nor by experts of uneven width alike.
#[test]
fn a_group_is_the_mean_over_its_neurons() {
    let integral = Integral { neurons: vec![vec![vec![9.0, 0.0, 0.0, 3.0, 3.0, 3.0, 4.0]]] };
    let units = [vec![0u32, 1, 1, 2, 2, 2, 3]];
    // Group 0: 9 / 3 = 3, though its experts' mean is 4.5; group 1: 13 / 4.
    let labels = Labels::from_integral(&integral, &units, &spec(&[(2, 1), (2, 1)]));
    assert_eq!(labels.paths.experts[0][0], [3]);
}

#[test]
fn entropy_at_its_bounds() {
    let spec = spec(&[(2, 1), (3, 2)]);
    let labels =
        |paths: &[&[u32]]| Labels { paths: PathTable { experts: paths.iter().map(|p| vec![p.to_vec(); 2]).collect() } };
    let same = labels(&[&[0, 2], &[0, 2], &[0, 2]]).statistics(&spec);
    assert_eq!(same.distinct_paths, 1);
    assert_relative_eq!(same.entropy, 2f64.ln(), epsilon = 1e-12);
    assert_relative_eq!(same.overlap, 1.0, epsilon = 1e-12);
    let all = labels(&[&[0, 1], &[2, 0], &[1, 2], &[3, 4], &[5, 3], &[4, 5]]).statistics(&spec);
    assert_eq!(all.distinct_paths, 6);
    assert_relative_eq!(all.entropy, 6f64.ln(), epsilon = 1e-12);
}

/// How often each choice of the root is taken, by layer 0.
fn counts(labels: &Labels, spec: &MoeSpec) -> Vec<usize> {
    let mut counts = vec![0; spec.levels[0].nodes()];
    for task in 0..labels.paths.experts.len() {
        labels.nodes(task, 0, 0, spec).into_iter().for_each(|node| counts[node] += 1);
    }
    counts
}

/// Units of one neuron each.
fn each(spec: &MoeSpec) -> Vec<Vec<u32>> {
    vec![(0..spec.experts() as u32).collect()]
}

/// Everybody wants the same choices, a little more or less: left alone they collapse, balanced they are shared out to within one.
#[rstest]
#[case(12, &[(4, 1)], 1)]
#[case(5, &[(10, 1), (10, 2)], 1)]
#[case(7, &[(7, 1)], 1)]
#[case(30, &[(4, 1), (3, 1)], 1)]
#[case(12, &[(6, 2)], 1)]
#[case(20, &[(8, 3)], 1)]
fn sinkhorn_evens_the_choices(#[case] tasks: usize, #[case] levels: &[(usize, usize)], #[case] off: usize) {
    let spec = spec(levels);
    for seed in 0..20 {
        let mut integral = integral(seed, tasks, 1, spec.experts(), false);
        for task in &mut integral.neurons {
            task[0].iter_mut().enumerate().for_each(|(expert, score)| *score -= 2.0 * expert as f64);
        }
        let alone = Labels::from_integral(&integral, &each(&spec), &spec);
        assert_eq!(alone.statistics(&spec).distinct_paths, 1, "the test is blind");
        let labels = Labels::balanced(&integral, &each(&spec), &spec, LabelBalance::Sinkhorn);
        assert!(labels.paths.experts.iter().all(|path| is_path(&path[0], &spec)));
        let counts = counts(&labels, &spec);
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(most - least <= off, "{levels:?}, {seed}: {counts:?}");
    }
}

/// Best choices that are even are kept, whatever comes behind them; so are second ones.
#[rstest]
fn sinkhorn_keeps_what_is_even(
    #[values((4, 1), (6, 2))] level: (usize, usize),
    #[values(1, 3)] times: usize,
    #[values(0, 1, 2, 3, 4)] seed: u64,
) {
    let (spec, choices) = (spec(&[level, (2, 1)]), level.0);
    let mut integral = integral(seed, times * choices, 1, spec.experts(), false);
    for (task, scores) in integral.neurons.iter_mut().enumerate() {
        for (expert, score) in scores[0].iter_mut().enumerate() {
            // Each task has a first and a second choice of its own; scores differ by at most 1 else.
            let place = (expert / 2 + choices - task % choices) % choices;
            *score += [2.5, 1.2].get(place).copied().unwrap_or(0.0);
        }
    }
    let roots = |balance| {
        let labels = Labels::balanced(&integral, &each(&spec), &spec, balance);
        (0..times * choices).map(|task| labels.nodes(task, 0, 0, &spec)).collect::<Vec<_>>()
    };
    assert_eq!(roots(LabelBalance::None), roots(LabelBalance::Sinkhorn));
}

/// Tasks that cannot be told apart keep their best.
#[test]
fn sinkhorn_parts_no_equal_tasks() {
    let spec = spec(&[(5, 2), (3, 1)]);
    let one = integral(3, 1, 1, 15, false);
    let same = Integral { neurons: vec![one.neurons[0].clone(); 7] };
    let labels = Labels::balanced(&same, &each(&spec), &spec, LabelBalance::Sinkhorn);
    assert_eq!(labels, Labels::from_integral(&same, &each(&spec), &spec));
}

/// Scores in other units are the same scores.
#[test]
fn sinkhorn_knows_no_units() {
    let spec = spec(&[(5, 2), (3, 1)]);
    let integral = integral(3, 9, 1, 15, false);
    let scaled = integral.neurons.iter().map(|t| vec![t[0].iter().map(|x| 1e-6 * x - 4.0).collect()]).collect();
    let [a, b] = [&integral, &Integral { neurons: scaled }]
        .map(|i| Labels::balanced(i, &each(&spec), &spec, LabelBalance::Sinkhorn));
    assert_eq!(a, b);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]
    /// Overlap by hand, as the mean over pairs of what two sets share; a warning wherever all share one path.
    #[test]
    fn statistics_by_layer_are_those_of_sets(spec in any_spec(), seed in any::<u64>(), tasks in 1usize..6, same in 0usize..4) {
        let mut labels = Labels::random(tasks, 3, &spec, seed);
        // In the first layers all tasks take the first one's path.
        for layer in 0..same {
            for task in 1..tasks {
                labels.paths.experts[task][layer.min(2)] = labels.paths.experts[0][layer.min(2)].clone();
            }
        }
        let statistics = labels.statistics(&spec);
        for layer in 0..3 {
            let sets: Vec<BTreeSet<u32>> =
                labels.paths.experts.iter().map(|task| task[layer].iter().copied().collect()).collect();
            let (mut sum, mut pairs) = (0.0, 0);
            for a in 0..tasks {
                for b in 0..a {
                    sum += sets[a].intersection(&sets[b]).count() as f64 / sets[a].union(&sets[b]).count() as f64;
                    pairs += 1;
                }
            }
            let expected = if pairs == 0 { 1.0 } else { sum / f64::from(pairs) };
            assert_relative_eq!(statistics.layers[layer].overlap, expected, epsilon = 1e-12);
            let distinct: BTreeSet<_> = sets.iter().collect();
            prop_assert_eq!(statistics.layers[layer].distinct_paths, distinct.len());
        }
        let warning = statistics.warning();
        let shared: Vec<usize> = (0..3).filter(|layer| statistics.layers[*layer].distinct_paths == 1).collect();
        prop_assert_eq!(warning.is_some(), tasks > 1 && !shared.is_empty());
        if let Some(warning) = warning {
            prop_assert_eq!(warning.contains("all tasks share one path: routing cannot"), shared.len() == 3);
            if shared.len() < 3 {
                prop_assert!(shared.iter().all(|layer| warning.contains(&layer.to_string())), "{warning}");
            }
        }
    }
}
