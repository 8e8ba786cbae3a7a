//! What a step does to those that do not learn from it, bit by bit: weights, moments and step counts of the states that a training leaves.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::checkpoint::{ParamStore, grow_deltas};
use tinyonn::data::Sampler;
use tinyonn::decoder::smk_rule::{Losers, Over, Per, Scope, Select, Surprise};
use tinyonn::decoder::{Pass, SmkRule};
use tinyonn::interrupt::Interrupt;
use tinyonn::metrics::MetricsLog;
use tinyonn::moe::ExpertsAre;
use tinyonn::train::{Checkpoints, Memory, OptimizerConfig, SmkConfig, train_smk};

use super::choice::matrices;
use super::{ADAMW, text, upcycled};

const DECAY: f64 = 0.1;
const STEPS: u64 = 5;

/// The tensors of a state, as f32 (step counts exactly), a row a neuron.
type State = BTreeMap<String, Vec<Vec<f32>>>;

/// The store before the training, the expert of each neuron, and the states behind each step but the last.
fn states(name: &str, rule: SmkRule, micro_batches: usize) -> (ParamStore, Vec<State>) {
    let (cfg, variant, mut store) = upcycled(name);
    grow_deltas(&mut store, &cfg, &variant.spec).unwrap();
    let before = store.deep_copy().unwrap();
    let (dir, set) = (TempDir::new().unwrap(), text());
    let sampler = Sampler::new(&set, 8, 4, 0, &Device::Cpu).unwrap();
    let mut log = MetricsLog::create(dir.path().join("log.jsonl")).unwrap();
    let checkpoints =
        Checkpoints { dir: dir.path().join("states"), every: 1, keep: 99, interrupt: Interrupt::default() };
    let config = SmkConfig {
        steps: STEPS,
        batch: 4,
        min_k: 2,
        rule,
        optimizer: OptimizerConfig { decay: DECAY, ..ADAMW },
        memory: Memory { micro_batches, ..Memory::DEFAULT },
        ..SmkConfig::DEFAULT
    };
    let text = (&sampler, None);
    train_smk((&store, &cfg, variant), &Pass::routed(), text, &config, &mut log, Some(&checkpoints)).unwrap();
    let read = |step: u64| -> State {
        let path = checkpoints.dir.join(format!("state-{step:08}.safetensors"));
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let rows = |tensor: &Tensor| {
            let tensor = tensor.to_dtype(DType::F32).unwrap();
            if tensor.rank() == 2 { tensor.to_vec2().unwrap() } else { tensor.unsqueeze(1).unwrap().to_vec2().unwrap() }
        };
        tensors.iter().map(|(name, tensor)| (name.clone(), rows(tensor))).collect()
    };
    (before, (1..STEPS).map(read).collect())
}

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|x| x.to_bits()).collect()
}

const EXACT: SmkRule = SmkRule { surprise: Surprise::Exact, ..SmkRule::DEFAULT };
const PARTS_APART: SmkRule = SmkRule { over: Some(Over::MicroBatch), ..EXACT };

/// Two experts win a step, or a micro-batch, or a group; the weights, both moments and the counts of all others keep their bits.
#[rstest]
#[case::smk(SmkRule::DEFAULT, 1, 2)]
#[case::max_k(SmkRule { select: Select::MaxK, ..SmkRule::DEFAULT }, 1, 2)]
#[case::random_k(SmkRule { select: Select::RandomK, ..SmkRule::DEFAULT }, 1, 2)]
#[case::min_load(SmkRule { select: Select::MinLoad, ..SmkRule::DEFAULT }, 1, 2)]
#[case::all_compete(SmkRule { scope: Scope::All, ..SmkRule::DEFAULT }, 1, 2)]
#[case::by_group(SmkRule { per: Per::Group, ..SmkRule::DEFAULT }, 1, 14)]
#[case::each_part(SmkRule::DEFAULT, 2, 4)]
#[case::exact(EXACT, 1, 2)]
#[case::exact_over_the_step(EXACT, 2, 2)]
#[case::exact_in_each_part(PARTS_APART, 2, 4)]
#[case::exact_by_group(SmkRule { per: Per::Group, select: Select::MaxK, ..EXACT }, 1, 14)]
fn who_loses_is_skipped(#[case] rule: SmkRule, #[case] micro_batches: usize, #[case] most: usize) {
    let (store, states) = states("Moe7x3", rule, micro_batches);
    let mut winners_differ = BTreeSet::new();
    for pair in states.windows(2) {
        for layer in 0..2 {
            let owners = store.get(&format!("model.layers.{layer}.mlp.neuron_expert")).unwrap();
            let owners = owners.to_vec1::<u32>().unwrap();
            for name in matrices(layer) {
                let row = |state: usize, kind: &str, i: usize| pair[state][&format!("{kind}{name}")][i].clone();
                let steps = |i: usize| row(1, "steps/", i)[0] - row(0, "steps/", i)[0];
                let of = |learns: f32| (0..owners.len()).filter(|i| steps(*i) == learns).map(|i| owners[i]).collect();
                let (winners, losers): (BTreeSet<u32>, BTreeSet<u32>) = (of(1.0), of(0.0));
                // Whole experts win, and somebody does and somebody does not.
                assert!(winners.is_disjoint(&losers) && winners.len() + losers.len() == 21);
                assert!((2..=most).contains(&winners.len()), "{winners:?}");
                for (i, owner) in owners.iter().enumerate() {
                    for kind in ["", "m/", "v/"] {
                        let same = bits(&row(0, kind, i)) == bits(&row(1, kind, i));
                        // An idle winner may have nothing to forget.
                        let moves = winners.contains(owner) && (rule.scope == Scope::Active || kind.is_empty());
                        assert!(!losers.contains(owner) || same, "{kind}{name}, neuron {i}");
                        assert!(!(moves && same), "{kind}{name}, neuron {i}");
                    }
                }
                winners_differ.insert(winners);
            }
        }
    }
    assert!(winners_differ.len() > 1, "always the same win: take another text");
}

/// The naive form: who loses steps by a gradient of zero. m ← β₁ m, v ← β₂ v, the step is counted, the weight decays, and what is left of m
/// moves it.
#[rstest]
fn who_loses_may_step_by_nothing(#[values(Surprise::Token, Surprise::Exact)] surprise: Surprise) {
    let rule = SmkRule { losers: Losers::ZeroGrad, surprise, ..SmkRule::DEFAULT };
    let (store, states) = states("Moe7x3", rule, 1);
    let (b1, b2) = (ADAMW.beta1 as f32, ADAMW.beta2 as f32);
    let keep = (1.0 - ADAMW.rate * DECAY) as f32;
    let mut drifted = 0;
    for layer in 0..2 {
        let owners = store.get(&format!("model.layers.{layer}.mlp.neuron_expert")).unwrap();
        let owners = owners.to_vec1::<u32>().unwrap();
        for name in matrices(layer) {
            let first = store.get(&name).unwrap().to_vec2::<f32>().unwrap();
            let none = vec![vec![0.0; first[0].len()]; first.len()];
            for step in 0..states.len() {
                let of = |state: usize, kind: &str| match (state.checked_sub(1), kind) {
                    (Some(at), _) => states[at][&format!("{kind}{name}")].clone(),
                    (None, "") => first.clone(),
                    (None, _) => none.clone(),
                };
                let [p, m, v] = ["", "m/", "v/"].map(|kind| [of(step, kind), of(step + 1, kind)]);
                let mut winners = BTreeSet::new();
                // All step, and a matrix has one count.
                assert_eq!(states[step][&format!("steps/{name}")], [[step as f32 + 1.0]]);
                for i in 0..owners.len() {
                    if m[1][i].iter().zip(&m[0][i]).any(|(after, before)| *after != b1 * before) {
                        winners.insert(owners[i]);
                        continue;
                    }
                    assert!(v[1][i].iter().zip(&v[0][i]).all(|(after, before)| *after == b2 * before));
                    let decayed = |(after, before): (&f32, &f32)| *after == keep * before;
                    if m[0][i].iter().all(|m| *m == 0.0) {
                        assert!(p[1][i].iter().zip(&p[0][i]).all(decayed));
                    } else {
                        assert!(!p[1][i].iter().zip(&p[0][i]).all(decayed));
                        drifted += 1;
                    }
                }
                assert_eq!(winners.len(), 2, "{winners:?}");
            }
        }
    }
    assert!(drifted > 0, "no loser had won before: take another text");
}

/// A replica is a whole: its three matrices have one count each.
#[rstest]
#[case::merged("MergedByToken")]
#[case::dispatched("DispatchedByToken")]
fn replicas_that_lose_are_skipped_or_step(
    #[case] name: &str,
    #[values(Losers::Skip, Losers::ZeroGrad)] losers: Losers,
) {
    let (_, variant, _) = upcycled(name);
    assert_eq!(variant.spec.experts_are, ExpertsAre::Replicate);
    let (_, states) = states(name, SmkRule { losers, ..SmkRule::DEFAULT }, 1);
    for pair in states.windows(2) {
        for layer in 0..2 {
            let mut stepped = 0;
            for expert in 0..variant.spec.experts() {
                let name = format!("model.layers.{layer}.mlp.delta.{expert}.up_proj.weight");
                // Who never learnt under `skip` has no moments yet.
                let value = |state: usize, kind: &str| pair[state].get(&format!("{kind}{name}")).cloned();
                let steps = |state: usize| value(state, "steps/").map_or(0.0, |steps| steps[0][0]);
                stepped += usize::from(steps(1) > steps(0));
                if steps(1) == steps(0) {
                    for kind in ["", "m/", "v/"] {
                        let [a, b] = [0, 1].map(|state| value(state, kind).unwrap_or_default());
                        assert!(
                            a.is_empty()
                                || a.iter().flatten().map(|x| x.to_bits()).eq(b.iter().flatten().map(|x| x.to_bits()))
                        );
                    }
                }
            }
            match losers {
                Losers::Skip => assert!((1..=2).contains(&stepped), "{stepped}"),
                Losers::ZeroGrad => assert_eq!(stepped, variant.spec.experts()),
            }
        }
    }
}
