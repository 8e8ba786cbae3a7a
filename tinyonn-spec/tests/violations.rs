//! What a broken declaration is told: all at once, each where it is wrong, in the compiler's own words.

use serde_json::to_value;
use tinyonn_spec::{
    AlwaysSpec, At, AttentionSpec, Balance, Combine, Covariance, ExpertsAre, Gate, GaussianSpec, KeptPairs, LevelSpec,
    MoeSpec, PairIndex, PairsBy, PairsChosen, PairsSpec, Part, PartitionStrategy, Pfag, Prefill, Project, Reduce,
    RoutePer, RouterKind, RouterSpec, Word,
};

/// Ten groups of ten, of which a group takes `top_k`.
fn hundred(top_k: usize) -> MoeSpec {
    let run = |name, parents, top_k| RouterSpec {
        name,
        ..RouterSpec::new("", parents, 10, top_k, RouterKind::Gaussian(GaussianSpec::PLAIN))
    };
    let level = |name: &'static str, parents, top_k| LevelSpec {
        name: name.into(),
        routers: vec![run(name.into(), parents, top_k)].into(),
    };
    MoeSpec {
        name: "Hundred".into(),
        levels: vec![level("group", 1, 1), level("expert", 10, top_k)].into(),
        ..MoeSpec::PLAIN
    }
}

fn places(spec: &MoeSpec) -> Vec<At> {
    spec.validate().iter().map(|violation| violation.at).collect()
}

#[test]
fn what_can_be_run_breaks_no_rule() {
    assert_eq!(hundred(10).validate(), []);
    assert_eq!((hundred(10).experts(), hundred(3).active_experts()), (100, 3));
}

#[test]
fn the_compiler_says_the_same() {
    let said = include_str!("../../tinyonn-macros/tests/ui/top_k_exceeds_experts.stderr");
    let found = hundred(12).validate();
    assert_eq!(found.len(), 1);
    assert!(said.contains(&found[0].to_string()), "{said}\n{}", found[0]);
}

#[test]
fn all_that_is_wrong_is_found_at_once_where_it_is() {
    let spec = MoeSpec {
        always: vec![AlwaysSpec { name: "expert".into(), experts: 0 }].into(),
        combine: Combine::Merge,
        gate: Gate::Scaled,
        route_per: RoutePer::Task,
        pfag: Pfag::Nucleus { mass: 2.0 },
        balance: Balance::Bias { rate: f64::NAN },
        jitter: 1.0,
        ..hundred(0)
    };
    let expected = [
        At::Run { level: 1, run: 0, part: Part::TopK },
        At::Always { group: 0, part: Part::Name },
        At::Always { group: 0, part: Part::Size },
        At::Value("combine"),
        At::Value("pfag"),
        At::Value("balance"),
        At::Value("jitter"),
        At::Setting("gate"),
        At::Setting("pfag"),
        At::Setting("balance"),
        At::Setting("jitter"),
    ];
    assert_eq!(places(&spec), expected);
}

#[test]
fn pairs_are_refused_argument_by_argument() {
    let of = |pairs: PairsSpec| MoeSpec { attention: AttentionSpec::Pairs(pairs), ..hundred(1) };
    let half = PairsSpec::new(KeptPairs::Share(0.5), PairIndex::Components(8));
    assert_eq!(of(half).validate(), []);
    for share in [0.0, -0.5, 1.01, f64::NAN, f64::INFINITY] {
        let spec = of(PairsSpec { keep: KeptPairs::Share(share), ..half });
        assert_eq!(places(&spec), [At::Argument("attention", "keep")], "{share}");
    }
    let nothing = of(PairsSpec { keep: KeptPairs::Keys(0), index: PairIndex::Blocks(0), near: usize::MAX, ..half });
    let expected = ["keep", "index", "near"].map(|name| At::Argument("attention", name));
    assert_eq!(places(&nothing), expected);
    // Without levels one expert holds the MLP's neurons.
    let alone = MoeSpec { levels: vec![].into(), ..of(half) };
    assert_eq!(places(&alone), [At::Hierarchy]);
    let shared = vec![AlwaysSpec { name: "shared".into(), experts: 1 }];
    assert_eq!(MoeSpec { always: shared.into(), ..alone }.validate(), []);
}

#[test]
fn the_cost_of_pairs_is_that_of_their_sum() {
    // By hand, of ten positions: 1, 2, 2, 2, 3, 3, 4, 4, 5, 5 keys of 55 pairs, and three of eight values of each for the index.
    let pairs = PairsSpec { near: 1, first: 1, ..PairsSpec::new(KeptPairs::Share(0.5), PairIndex::Components(3)) };
    assert!((pairs.operations(8, 10) - (3.0 / 16.0 + 31.0 / 55.0)).abs() < 1e-12);
    let blocks = PairsSpec { index: PairIndex::Blocks(4), ..pairs };
    assert!((blocks.operations(8, 10) - (1.0 / 8.0 + 31.0 / 55.0)).abs() < 1e-12);
    let heads = PairsSpec { by: PairsBy::Head, ..pairs };
    // Of the last position five rows of ten, or ten where two heads agree on none; three or six components of eight.
    assert_eq!(heads.bytes(8, 2, 10), [3.0 / 16.0 + 0.5, 6.0 / 16.0 + 1.0]);
    assert_eq!(pairs.bytes(8, 2, 10), [3.0 / 16.0 + 0.5; 2]);
}

#[test]
fn no_number_is_too_large_to_be_refused() {
    let mut spec = hundred(1);
    for level in spec.levels.to_mut() {
        for run in level.routers.to_mut() {
            (run.parents, run.choices, run.top_k) = (usize::MAX, usize::MAX, usize::MAX);
        }
    }
    spec.always = vec![AlwaysSpec { name: "shared".into(), experts: usize::MAX }; 2].into();
    assert!(places(&spec).contains(&At::Hierarchy));
}

#[test]
fn words_are_what_a_checkpoint_holds() {
    fn check<K: Word + serde::Serialize>() {
        for word in K::ALL {
            assert_eq!(to_value(word).unwrap(), word.word());
        }
    }
    check::<Reduce>();
    check::<Covariance>();
    check::<Project>();
    check::<ExpertsAre>();
    check::<Combine>();
    check::<Gate>();
    check::<PartitionStrategy>();
    check::<PairsBy>();
    check::<PairsChosen>();
    check::<Prefill>();
}
