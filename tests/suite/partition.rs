//! Partitions: every neuron in one expert, balanced, reproducible; clusters that are there are found.

use proptest::prelude::*;
use rand::Rng;
use rand::seq::SliceRandom;
use rstest::rstest;
use tinyonn::imaging::{Integral, Partition};
use tinyonn::random;

use crate::tiny::spec;

const ALL: [Partition; 4] = [Partition::Contiguous, Partition::Random, Partition::Activation, Partition::Sps];

fn integral(seed: u64, tasks: usize, layers: usize, width: usize) -> Integral {
    let mut rng = random::stream(seed, "tests/partition");
    let mut layer = || (0..width).map(|_| rng.random::<f64>() - 0.5).collect();
    Integral { neurons: (0..tasks).map(|_| (0..layers).map(|_| layer()).collect()).collect() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn every_neuron_has_one_expert_and_widths_are_even(
        which in 0usize..4,
        groups in 1usize..5,
        experts in 1usize..5,
        deep in any::<bool>(),
        extra in 0usize..40,
        tasks in 1usize..4,
        seed in any::<u64>(),
    ) {
        let levels = if deep { vec![(groups, 1), (experts, 1), (2, 1)] } else { vec![(groups, 1), (experts, 1)] };
        let (spec, strategy) = (spec(&levels), ALL[which]);
        let (count, width) = (spec.experts(), spec.experts() + extra);
        let integral = integral(seed, tasks, 2, width);
        let units = strategy.assign(&spec, (2, width), Some(&integral), seed).unwrap();
        prop_assert_eq!(units.len(), 2);
        for layer in &units {
            prop_assert_eq!(layer.len(), width);
            for expert in 0..count {
                let found = layer.iter().filter(|e| **e as usize == expert).count();
                // The first experts take the remainder, so a group's width follows from its experts'.
                prop_assert_eq!(found, width / count + usize::from(expert < width % count));
            }
        }
        prop_assert_eq!(&units, &strategy.assign(&spec, (2, width), Some(&integral), seed).unwrap());
        if strategy == Partition::Contiguous {
            prop_assert!(units.iter().all(|layer| layer.is_sorted()));
        }
    }
}

#[test]
fn random_partitions_differ_by_seed_and_layer() {
    let assign = |seed| Partition::Random.assign(&spec(&[(2, 1), (3, 1)]), (2, 60), None, seed).unwrap();
    let (one, two) = (assign(1), assign(2));
    assert!(one[0] != one[1] && one[0] != two[0] && !one[0].is_sorted());
}

/// Neurons of six kinds in random order, the kinds of a group alike: `groups` × `experts` tasks, each kind loudest on its own,
/// louder on its group's than on the others'.
fn planted(seed: u64, groups: usize, experts: usize, width: usize) -> (Integral, Vec<usize>) {
    let mut rng = random::stream(seed, "tests/planted");
    let kinds = groups * experts;
    let mut kind: Vec<usize> = (0..width).map(|i| i % kinds).collect();
    kind.shuffle(&mut rng);
    let mut value = |task: usize, kind: usize| {
        let loud = f64::from(u8::from(task == kind)) + 0.6 * f64::from(u8::from(task / experts == kind / experts));
        // Neurons differ in scale by the unit norm of their profiles no more, and by a baseline the contrast removes.
        (1.0 + 2.0 * (kind as f64)) + loud * (1.0 + rng.random::<f64>()) + 0.02 * rng.random::<f64>()
    };
    let neurons = (0..kinds).map(|task| vec![kind.iter().map(|kind| value(task, *kind)).collect()]).collect();
    (Integral { neurons }, kind)
}

/// Noise within a kind is a fifth of the distance between kinds, so every seed must find them.
#[rstest]
#[case(Partition::Activation, 2, 3, 48)]
#[case(Partition::Sps, 2, 3, 48)]
#[case(Partition::Activation, 3, 2, 31)] // one kind has a neuron more, as has the first expert
#[case(Partition::Activation, 1, 4, 40)]
#[case(Partition::Activation, 4, 1, 40)]
fn planted_kinds_are_found(
    #[case] strategy: Partition,
    #[case] groups: usize,
    #[case] experts: usize,
    #[case] width: usize,
) {
    let spec = spec(&[(groups, 1), (experts, 1)]);
    for seed in 0..20 {
        let (integral, kind) = planted(seed, groups, experts, width);
        let units = strategy.assign(&spec, (1, width), Some(&integral), seed).unwrap().remove(0);
        let mut pairs: Vec<(usize, u32)> = kind.iter().copied().zip(units).collect();
        pairs.sort_unstable();
        pairs.dedup();
        // A kind in two experts is a pair too many; with an odd neuron one pair may be.
        let odd = width % (groups * experts);
        assert!(pairs.len() <= groups * experts + 2 * odd, "seed {seed}: {pairs:?}");
        if odd == 0 {
            let mut of_groups: Vec<(usize, usize)> =
                pairs.iter().map(|(kind, unit)| (kind / experts, *unit as usize / experts)).collect();
            of_groups.dedup();
            assert_eq!(of_groups.len(), groups, "seed {seed}: {pairs:?}");
        }
    }
}

#[rstest]
#[case(ALL[0])]
#[case(ALL[1])]
#[case(ALL[2])]
#[case(ALL[3])]
fn fewer_neurons_than_experts_are_refused_by_name(#[case] strategy: Partition) {
    let error =
        strategy.assign(&spec(&[(2, 1), (4, 1)]), (1, 7), Some(&integral(0, 2, 1, 7)), 0).unwrap_err().to_string();
    assert!(error.contains("variant `Test`") && error.contains("7 neurons for 8 experts"), "{error}");
}

#[rstest]
#[case(None, "clusters neurons by what they do on tasks")]
#[case(Some((1, 9)), "the scan is not of layer 0 with 10 neurons")]
#[case(Some((1, 10)), "the scan is not of layer 1 with 10 neurons")]
fn clusters_need_a_scan_of_this_model(#[case] scanned: Option<(usize, usize)>, #[case] problem: &str) {
    let integral = scanned.map(|(layers, width)| integral(0, 2, layers, width));
    let spec = spec(&[(2, 1), (2, 1)]);
    for strategy in [Partition::Activation, Partition::Sps] {
        let error = strategy.assign(&spec, (2, 10), integral.as_ref(), 0).unwrap_err().to_string();
        assert!(error.starts_with("`partition`") && error.contains(problem), "{error}");
    }
    assert!(Partition::Random.assign(&spec, (2, 10), integral.as_ref(), 0).is_ok());
}

#[test]
fn names_read_back() {
    for strategy in ALL {
        assert_eq!(strategy.to_string().parse::<Partition>().unwrap(), strategy);
        assert_eq!(serde_json::to_value(strategy).unwrap(), strategy.to_string());
    }
    assert!(
        "halves".parse::<Partition>().unwrap_err().to_string().contains("use contiguous, random, activation or sps")
    );
}
