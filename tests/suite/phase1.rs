//! Phase 1 by itself, its studies, and phase 2 that goes on from it.

use std::collections::BTreeSet;
use std::fs;

use candle_core::{DType, Device};
use experiments::causal::{Intervention, random_of_norm};
use experiments::frontier::{HowMany, SHARES};
use experiments::runs;
use experiments::studies::RunSummary;
use proptest::prelude::*;
use rand::seq::SliceRandom;
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::checkpoint::{Expansion, TinyOnnFolder, expand_folder};
use tinyonn::files::StagedFolder;
use tinyonn::imaging::Partition;
use tinyonn::phases::{LabelUnit, Passed, RunConfig, phase1, phase2, phase2_from};

use crate::models::message;
use crate::phase2::setting;

/// A run of phase 1 and the folder it lies in.
pub(crate) fn run(change: impl Fn(&mut RunConfig)) -> (TempDir, RunConfig, RunSummary) {
    let dir = TempDir::new().unwrap();
    let mut config = RunConfig { study_tokens: 60, ..setting(dir.path(), DType::BF16) };
    change(&mut config);
    let summary = runs::phase1(&config, None, Passed::default()).unwrap();
    (dir, config, summary)
}

/// One after the other is both at once, to the last bit: weights, losses, load.
#[rstest]
fn phase_2_goes_on_where_phase_1_ended(#[values("Moe2x4", "ByTask", "SegmentOf3")] variant: &str) {
    let (dir, config, _) = run(|config| config.variant = variant.into());
    let at_once = phase2(&RunConfig { out: dir.path().join("at-once"), ..config.clone() }, None).unwrap();
    let settings = RunConfig::of_phase1(&config.out).unwrap();
    // Found from any folder.
    assert_eq!(settings, RunConfig { cache: std::path::absolute(&config.cache).unwrap(), ..config.clone() });
    let continued = phase2_from(&config.out, &RunConfig { out: dir.path().join("after"), ..settings }, None).unwrap();
    let [continued, at_once] = [continued, at_once].map(|summary| serde_json::to_value(summary).unwrap());
    assert_eq!(continued["smk"], at_once["smk"]);
    assert_eq!(continued["loss"], at_once["loss"]);
    let weights = |out: &str| fs::read(dir.path().join(out).join("tiny-onn/model.safetensors")).unwrap();
    assert!(weights("after") == weights("at-once"));
}

#[test]
fn another_smk_may_follow_and_nothing_else_may_differ() {
    let (dir, config, before) = run(|_| {});
    let out = dir.path().join("after");
    let mut other = RunConfig { out: out.clone(), ..config.clone() };
    other.smk.steps = 1;
    let summary = phase2_from(&config.out, &other, None).unwrap();
    assert_eq!(summary.phase1.loss.routed_before.to_bits(), before.phase1.loss.routed_before.to_bits());
    let refused = |change: &dyn Fn(&mut RunConfig)| {
        let mut config = RunConfig { out: out.clone(), ..config.clone() };
        change(&mut config);
        message(phase2_from(&config.out.with_file_name("out"), &config, None))
    };
    assert!(refused(&|config| config.seed = 9).contains("`seed`: is not what phase 1 had"));
    assert!(refused(&|config| config.contrast = true).contains("`contrast`"));
    let none = message(phase2_from(dir.path(), &config, None));
    assert!(none.contains("has no phase1.json; give the folder of a run of exp_phase1"), "{none}");
    // The text is what it was, or nothing that was measured holds.
    let file = dir.path().join("arithmetic.txt");
    fs::write(&file, fs::read_to_string(&file).unwrap() + "one more line\n").unwrap();
    let changed = message(phase2_from(&config.out, &RunConfig { out, ..config.clone() }, None));
    assert!(changed.contains("the text is not what it was"), "{changed}");
}

/// With everything active the frontier ends in the dense model; each point is as active as its numbers say.
#[test]
fn the_frontier_ends_in_the_dense_model() {
    let (_dir, _, summary) = run(|_| {});
    let frontier = summary.studies.frontier.unwrap();
    let fixed: Vec<_> = frontier.points.iter().filter(|point| point.form == HowMany::Fixed).collect();
    assert_eq!(fixed.len(), 2 * 4);
    for point in &fixed {
        // 26 neurons in 8 experts of 3 or 4.
        let experts = point.top_k.iter().product::<usize>() as f64;
        assert!((3.0 * experts / 26.0..=4.0 * experts / 26.0).contains(&point.active_share), "{point:?}");
        assert_eq!((point.expert_share, point.by_layer.len()), (experts / 8.0, 0));
        assert!(point.loss.low <= point.loss.mean && point.loss.mean <= point.loss.high);
    }
    let all = fixed.iter().find(|point| point.top_k == [2, 4]).unwrap();
    assert_eq!(all.active_share, 1.0);
    // The one is a mean of means by task, the other of documents: f64 sums in another order.
    approx::assert_relative_eq!(all.loss.mean, frontier.dense, max_relative = 1e-12);
    for point in &frontier.points {
        // A model that was only drawn may have MLPs that are worth nothing.
        let expected = (frontier.without - point.loss.mean) / (frontier.without - frontier.dense);
        assert_eq!(point.recovery.is_some(), frontier.without > frontier.dense);
        if let Some(recovery) = point.recovery {
            approx::assert_relative_eq!(recovery.mean, expected, max_relative = 1e-6);
        }
    }
    for point in &frontier.points {
        // A whole sequence is read twice where its own surprisal decides.
        let first_pass = if point.form == HowMany::Surprisal { 1.0 } else { 0.0 };
        assert_eq!(point.cost_share, point.active_share + first_pass, "{:?}", point.form);
    }
    for point in &frontier.points {
        // Eight experts in a layer; their share is counted in f32.
        let taken = point.load.taken().unwrap();
        approx::assert_relative_eq!(taken.mean, 8.0 * point.expert_share, max_relative = 1e-6);
        assert!(taken.fewest as f64 <= taken.mean && taken.mean <= taken.most as f64);
        assert!(point.form != HowMany::Fixed || taken.fewest == taken.most);
    }
    for form in [HowMany::Entropy, HowMany::Nucleus, HowMany::Surprisal] {
        assert!(frontier.points.iter().any(|point| point.form == form), "{form:?}");
    }
    assert!(frontier.points.is_sorted_by(|a, b| a.active_share <= b.active_share));
}

/// 90 % of eight experts in two layers is no single number: six and eight are nearest; what a share recovers is told of the best that meets it.
#[test]
fn shares_that_no_number_meets_are_met_by_layer() {
    let (_dir, config, summary) = run(|_| {});
    let frontier = summary.studies.frontier.unwrap();
    let by_layer: Vec<_> = frontier.points.iter().filter(|point| point.form == HowMany::FixedByLayer).collect();
    assert_eq!(by_layer.len(), 1);
    assert_eq!(by_layer[0].by_layer, [[2, 3], [2, 4]]);
    assert_eq!((by_layer[0].top_k.as_slice(), by_layer[0].expert_share), (&[2, 4][..], 7.0 / 8.0));
    for (percent, met) in SHARES.into_iter().zip([0.25, 0.5, 0.75, 0.875]) {
        let best = frontier.best_fixed_at(percent as f64 / 100.0).unwrap();
        assert_eq!(best.expert_share, met);
        let same = frontier.points.iter().filter(|point| point.is_fixed() && point.expert_share == met);
        assert!(same.into_iter().all(|point| best.loss.mean <= point.loss.mean));
        let adaptive = frontier.adaptive_near(percent as f64 / 100.0).unwrap();
        let apart = |share: f64| (share - percent as f64 / 100.0).abs();
        let others = frontier.points.iter().filter(|point| !point.is_fixed());
        assert!(
            !adaptive.is_fixed()
                && others.into_iter().all(|p| apart(adaptive.expert_share) <= apart(p.expert_share) + 1e-6)
        );
    }
    let page = fs::read_to_string(config.out.join("report.html")).unwrap();
    let page = page.replace('\u{a0}', " ");
    assert!(page.contains("2 × 3 in 1 layer, 2 × 4 in 1 (nearest: 87.5 %)"), "{page}");
    let csv = fs::read_to_string(config.out.join("figures/frontier.csv")).unwrap();
    assert_eq!(csv.lines().count(), frontier.points.len() + 1);
    assert!(csv.contains("fixed by layer,2 × 4,2 × 3; 2 × 4,,87.5,"), "{csv}");
}

/// What the task path of a variant is, it is: it has no other number of choices to be measured at.
#[test]
fn a_task_routed_variant_has_no_frontier() {
    let (_dir, _, summary) = run(|config| config.variant = "ByTask".into());
    assert!(summary.studies.frontier.unwrap().points.is_empty());
}

#[test]
fn interventions_say_what_their_matrices_say() {
    let (_dir, _, summary) = run(|_| {});
    assert!(!summary.studies.causal.is_empty());
    for found in &summary.studies.causal {
        let tasks = found.delta.len();
        let own = (0..tasks).map(|task| found.delta[task][task]).sum::<f64>() / tasks as f64;
        let others =
            (0..tasks * tasks).filter(|at| at / tasks != at % tasks).map(|at| found.delta[at / tasks][at % tasks]);
        let others = others.sum::<f64>() / (tasks * (tasks - 1)) as f64;
        // Sums over documents in another order: f64 rounding of losses of a few nats.
        approx::assert_abs_diff_eq!(found.specificity.mean, own - others, epsilon = 1e-9);
        assert!(found.count == if found.unit == "expert" { 1 } else { 3 }, "a tenth of 8 experts and of 26 neurons");
        assert!(found.delta.iter().flatten().all(|delta| delta.is_finite()));
    }
    let of = |source: &str, unit: &str, factor: f64| {
        let same = |f: &&Intervention| f.source == source && f.unit == unit && f.factor == factor;
        summary.studies.causal.iter().find(same).unwrap()
    };
    // ∫SPS' highest are its own measure of norm; the lowest are others, and so are the controls where they can be.
    assert_eq!(of("sps", "neuron", 0.0).norm_to_sps, 1.0);
    assert_ne!(of("sps_lowest", "neuron", 0.0).delta, of("sps", "neuron", 0.0).delta);
    let (drawn, same) = (of("random", "neuron", 0.0), of("random_of_norm_of_sps", "neuron", 0.0));
    let apart = |found: &Intervention| (found.norm_to_sps - 1.0).abs();
    assert!(apart(same) <= apart(drawn) && apart(same) < 0.25, "{} {}", drawn.norm_to_sps, same.norm_to_sps);
    assert_eq!(same.norm_to_matched, Some(same.norm_to_sps));
    assert_eq!((drawn.draws, of("sps", "neuron", 0.0).draws), (3, 1));
    // Multiplied by one and a half is another thing than taken away.
    assert_ne!(of("sps", "expert", 1.5).delta, of("sps", "expert", 0.0).delta);
}

/// A source's own units, weakened to the norm of others, do what scaling its outputs by hand does, and are told apart from those others
/// document by document.
#[test]
fn what_is_weakened_is_held_against_others_of_its_norm() {
    let (_dir, _, summary) = run(|_| {});
    let of = |source: &str, like: &Intervention| {
        let same = |f: &&Intervention| f.source == source && f.unit == like.unit && f.factor == like.factor;
        summary.studies.causal.iter().find(same).unwrap()
    };
    let mut weaker = 0;
    for found in &summary.studies.causal {
        let as_random = found.source.strip_suffix("_as_random").map(|source| (source, "random".to_owned()));
        let as_others =
            || found.source.strip_suffix("_as_others").map(|source| (source, format!("random_of_norm_of_{source}")));
        let beside = as_random.or_else(as_others);
        assert_eq!(found.beyond_random.is_some(), beside.is_some(), "{}", found.source);
        let Some((source, control)) = beside else {
            assert_eq!(found.strength, 1.0);
            continue;
        };
        let (whole, control) = (of(source, found), of(&control, found));
        // Sums over documents in another order.
        let beyond = found.specificity.mean - control.specificity.mean;
        approx::assert_abs_diff_eq!(found.beyond_random.unwrap().mean, beyond, epsilon = 1e-9);
        // The same norm, or all of a source that has less; the mean norm of three draws is not the norm of each.
        assert!(found.norm_to_sps <= 1.02 * control.norm_to_sps, "{} {}", found.norm_to_sps, control.norm_to_sps);
        assert!(found.strength == 1.0 || found.norm_to_sps > 0.9 * control.norm_to_sps);
        // What is weakened does something, and something else than the whole.
        assert!(found.delta.iter().flatten().any(|delta| *delta != 0.0));
        assert_eq!(found.delta == whole.delta, found.strength == 1.0, "{} {}", found.source, found.strength);
        weaker += usize::from(found.strength < 0.9);
    }
    assert!(weaker >= 4, "some are much weaker: {weaker}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Others, as many, each once, and of the same norm; or the strongest or weakest that there are.
    #[test]
    fn random_units_of_a_norm_are_others_of_that_norm(
        power in prop::collection::vec(0.01f64..4.0, 20..90),
        seed in 0u64..1000,
        share in 0.05f64..0.3,
    ) {
        let mut rng = tinyonn::random::stream(seed, "matched");
        let mut units: Vec<usize> = (0..power.len()).collect();
        units.shuffle(&mut rng);
        let (matched, others) = units.split_at(((power.len() as f64 * share) as usize).max(1));
        let sum = |units: &[usize]| units.iter().map(|unit| power[*unit]).sum::<f64>();
        let drawn = random_of_norm(&power, matched, &mut rng);
        let distinct: BTreeSet<usize> = drawn.iter().copied().collect();
        prop_assert_eq!((drawn.len(), distinct.len()), (matched.len(), matched.len()));
        prop_assert!(drawn.iter().all(|unit| others.contains(unit)));
        let mut ordered = others.to_vec();
        ordered.sort_by(|a, b| power[*a].total_cmp(&power[*b]));
        let (least, most) = (sum(&ordered[..drawn.len()]), sum(&ordered[ordered.len() - drawn.len()..]));
        let (found, target) = (sum(&drawn), sum(matched));
        if most <= target {
            approx::assert_relative_eq!(found, most, max_relative = 1e-12);
        } else if least >= target {
            approx::assert_relative_eq!(found, least, max_relative = 1e-12);
        } else {
            // No swap of two units brings it nearer than a hundredth of the target, or the gap between the nearest two units.
            let mut gaps: Vec<f64> = ordered.windows(2).map(|pair| power[pair[1]] - power[pair[0]]).collect();
            gaps.sort_by(f64::total_cmp);
            let coarse = gaps.last().copied().unwrap_or(0.0);
            prop_assert!((found - target).abs() <= 0.01 * target + coarse, "{found} of {target}, gaps to {coarse}");
        }
    }
}

/// Tokens that have labels of their own: routers are measured against those too.
#[test]
fn tokens_may_have_labels_of_their_own() {
    let (_dir, _, by_task) = run(|_| {});
    assert!(by_task.phase1.router.own_labels.is_empty());
    let (_dir, _, by_token) = run(|config| config.label = LabelUnit::Token);
    assert_eq!(by_token.phase1.router.own_labels.len(), 2);
    assert_ne!(by_token.phase1.loss.routed_before, by_task.phase1.loss.routed_before);
    let dir = TempDir::new().unwrap();
    let config = RunConfig { label: LabelUnit::Token, variant: "SegmentOf3".into(), ..setting(dir.path(), DType::F32) };
    assert!(message(phase1(&config, None)).contains("`label`: is token"));
}

/// A checkpoint that grew is gone on with: its partition stays, its routers are fitted anew, and phase 2 follows.
#[test]
fn a_grown_checkpoint_has_its_routers_fitted_anew() {
    let (dir, config, before) = run(|config| config.partition = Some(Partition::Random));
    let (young, grown) = (config.out.join("tiny-onn"), dir.path().join("grown"));
    let folder = TinyOnnFolder::open(&young).unwrap();
    let variants = ["Moe2x4", "Moe2x8"].map(|name| tinyonn::moe::variant(name).unwrap());
    let expansion = Expansion::new(folder.arch(), variants, None, 0, 0).unwrap();
    let staged = StagedFolder::new(&grown).unwrap();
    expand_folder(&folder, &expansion, &staged).unwrap();
    staged.publish().unwrap();

    let out = dir.path().join("fitted");
    let settings = RunConfig { model: Some(grown.clone()), variant: "Moe2x8".into(), partition: None, out, ..config };
    let fitted = phase1(&settings, None).unwrap();
    assert!(fitted.lossless.bit_equal);
    // All active it is the model that did not grow.
    assert_eq!(fitted.loss.dense.to_bits(), before.phase1.loss.dense.to_bits());
    let parts = |dir: &std::path::Path| {
        let folder = TinyOnnFolder::open(dir).unwrap();
        let store = folder.load(&Device::Cpu, None).unwrap();
        let part = |name: &str| crate::models::bits(store.get(&format!("model.layers.0.mlp.{name}")).unwrap());
        (part("neuron_expert"), part("expert_router.log_prior"), folder.config().partition.clone())
    };
    let (own, fit) = (parts(&grown), parts(&settings.out.join("tiny-onn")));
    assert_eq!((&own.0, &own.2), (&fit.0, &fit.2));
    assert_ne!(own.1, fit.1);
    let after = dir.path().join("after");
    phase2_from(&settings.out, &RunConfig { out: after, ..RunConfig::of_phase1(&settings.out).unwrap() }, None)
        .unwrap();

    let refused = |change: &dyn Fn(&mut RunConfig)| {
        let mut config = RunConfig { out: dir.path().join("refused"), ..settings.clone() };
        change(&mut config);
        message(phase1(&config, None))
    };
    assert!(refused(&|config| config.variant = "Moe2x4".into()).contains("a Tiny-ONN checkpoint already, of `Moe2x8`"));
    assert!(refused(&|config| config.partition = Some(Partition::Random)).contains("grown brings its own"));
}
