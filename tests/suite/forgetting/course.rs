//! A run of several tasks: what learns in it, what stays, and what it leaves.

use std::collections::BTreeSet;

use approx::assert_relative_eq;
use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::checkpoint::{ParamStore, Role, dense_params, variant_params};
use tinyonn::data::{NovelTask, Sampler};
use tinyonn::decoder::smk_rule::{Select, Smk, SmkRule};
use tinyonn::decoder::{CausalLm, Experts, Learn, Pass};
use tinyonn::interrupt::Interrupt;
use tinyonn::metrics::MetricsLog;
use tinyonn::model::TinyOnnForCausalLm;
use tinyonn::phases::{ForgettingConfig, ForgettingRecord, Look, Method, RunConfig, forgetting};
use tinyonn::train::{Anchor, Checkpoints, FineTune, OptimizerConfig, Saving, SmkConfig, fine_tune, state, train_smk};

use super::{of, place, run};
use crate::models::message;
use crate::tiny;

const VOCAB: usize = 37;
const OPTIMIZER: OptimizerConfig = OptimizerConfig { rate: 1e-2, decay: 0.1, ..OptimizerConfig::DEFAULT };
const TASK: SmkConfig = SmkConfig { steps: 5, batch: 4, min_k: 2, optimizer: OPTIMIZER, ..SmkConfig::DEFAULT };

fn experts(select: Select, routed: bool) -> Method {
    Method::Experts { select, routed }
}

/// One task over the experts of `Moe7x3`, by `select`.
fn taught(select: Select, active: &Pass, saving: Option<&Saving<'_>>) -> ParamStore {
    let cfg = tiny::config(VOCAB);
    let (variant, store) = tiny::upcycled(&cfg, "Moe7x3", &tiny::dense_store(&cfg, 4));
    let params: Vec<_> =
        variant_params(&cfg, variant).unwrap().into_iter().filter(|p| p.role == Role::Expert).collect();
    let names: BTreeSet<String> = params.iter().map(|param| param.name.clone()).collect();
    let work = store.work_weights(DType::F32, |name| names.contains(name).then_some(DType::F32)).unwrap();
    let model = TinyOnnForCausalLm::new(&cfg, variant, work.builder()).unwrap();
    let rule = SmkRule { select, ..SmkRule::DEFAULT };
    let what = FineTune {
        model: model.lm(),
        slots: state::slots(&work, params),
        learn: Learn { experts: Experts::Smk(Smk { min_k: 2, rule, seed: 0 }), ..Learn::default() },
        pass: active.clone(),
        open: 0,
        anchor: None,
    };
    let set = tiny::tokens(11, &[200, 200], VOCAB as u32);
    let sampler = Sampler::new(&set, 8, 4, 0, &Device::Cpu).unwrap();
    fine_tune(what, &sampler, &TASK, saving, &mut |_| Ok(())).unwrap();
    store
}

/// Dense fine-tuning of the MLPs is `select = all`, all active, bit for bit.
#[test]
fn all_experts_learning_is_dense_fine_tuning() {
    let experts = taught(Select::All, &Pass::all(), None);
    let cfg = tiny::config(VOCAB);
    let store = tiny::dense_store(&cfg, 4);
    let work = store.work_weights(DType::F32, |name| name.contains(".mlp.").then_some(DType::F32)).unwrap();
    let model = CausalLm::dense(&cfg, work.builder()).unwrap();
    let what = FineTune {
        model: &model,
        slots: state::slots(&work, dense_params(&cfg).into_iter().filter(|param| param.role == Role::Expert)),
        learn: Learn::default(),
        pass: Pass::all(),
        open: 0,
        anchor: None,
    };
    let set = tiny::tokens(11, &[200, 200], VOCAB as u32);
    let sampler = Sampler::new(&set, 8, 4, 0, &Device::Cpu).unwrap();
    assert_eq!(fine_tune(what, &sampler, &TASK, None, &mut |_| Ok(())).unwrap(), None);
    let before = tiny::bits(&tiny::dense_store(&cfg, 4));
    let found = tiny::bits(&experts);
    for ((name, dense), (_, before)) in tiny::bits(&store).iter().zip(&before) {
        assert_eq!(dense != before, name.contains(".mlp."), "{name}");
        let (_, own) = found.iter().find(|(other, _)| other == name).unwrap();
        assert!(own == dense, "{name}");
    }
}

/// Fine-tuning by a rule is what `train_smk` does by it, bit for bit.
#[rstest]
fn fine_tuning_is_surprise_min_k(#[values(Select::Smk, Select::RandomK, Select::MinLoad)] select: Select) {
    let own = taught(select, &Pass::routed(), None);
    let cfg = tiny::config(VOCAB);
    let (variant, store) = tiny::upcycled(&cfg, "Moe7x3", &tiny::dense_store(&cfg, 4));
    let set = tiny::tokens(11, &[200, 200], VOCAB as u32);
    let sampler = Sampler::new(&set, 8, 4, 0, &Device::Cpu).unwrap();
    let dir = TempDir::new().unwrap();
    let mut log = MetricsLog::create(dir.path().join("log.jsonl")).unwrap();
    let config = SmkConfig { rule: SmkRule { select, ..SmkRule::DEFAULT }, ..TASK };
    train_smk((&store, &cfg, variant), &Pass::routed(), (&sampler, None), &config, &mut log, None).unwrap();
    assert_eq!(tiny::bits(&own), tiny::bits(&store));
}

fn rows(tensor: &Tensor) -> Vec<Vec<u32>> {
    let tensor = tensor.to_dtype(DType::F32).unwrap();
    let rows = if tensor.rank() == 2 { tensor } else { tensor.unsqueeze(1).unwrap() };
    rows.to_vec2::<f32>().unwrap().into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect()
}

/// Over a whole task, whoever loses a step keeps weights, both moments and count to the bit; and a task that was stopped and gone on with ends like one
/// in one go.
#[rstest]
fn losers_keep_their_bits_and_a_stopped_task_goes_on(
    #[values(Select::Smk, Select::RandomK, Select::MaxK)] select: Select,
) {
    let dir = TempDir::new().unwrap();
    let states =
        |name: &str| Checkpoints { dir: dir.path().join(name), every: 1, keep: 99, interrupt: Interrupt::default() };
    let checkpoints = states("whole");
    let saving = Saving { checkpoints: &checkpoints, settings: serde_json::json!({ "task": 1 }) };
    let whole = taught(select, &Pass::all(), Some(&saving));
    let owners = whole.get("model.layers.0.mlp.neuron_expert").unwrap().to_vec1::<u32>().unwrap();
    let read = |step: u64| {
        let path = checkpoints.dir.join(format!("state-{step:08}.safetensors"));
        candle_core::safetensors::load(path, &Device::Cpu).unwrap()
    };
    let name = "model.layers.0.mlp.up_proj.weight";
    let mut stayed = 0;
    for step in 1..TASK.steps - 1 {
        let [before, behind] = [read(step), read(step + 1)];
        let kind =
            |state: &std::collections::HashMap<String, Tensor>, kind: &str| rows(&state[&format!("{kind}{name}")]);
        let [counts, then] = [&before, &behind].map(|state| kind(state, "steps/"));
        let learnt: BTreeSet<u32> = (0..owners.len()).filter(|i| counts[*i] != then[*i]).map(|i| owners[i]).collect();
        assert_eq!(learnt.len(), 2);
        for what in ["", "m/", "v/"] {
            for (i, (a, b)) in kind(&before, what).iter().zip(kind(&behind, what)).enumerate() {
                assert_eq!(*a == b, !learnt.contains(&owners[i]), "{what}{name} {i}");
                stayed += usize::from(*a == b);
            }
        }
    }
    assert!(stayed > 0);
    // Stopped behind its second step: only that state is left.
    let half = states("half");
    std::fs::create_dir_all(&half.dir).unwrap();
    let state = "state-00000002.safetensors";
    std::fs::copy(checkpoints.dir.join(state), half.dir.join(state)).unwrap();
    let saving = Saving { checkpoints: &half, settings: serde_json::json!({ "task": 1 }) };
    assert_eq!(tiny::bits(&taught(select, &Pass::all(), Some(&saving))), tiny::bits(&whole));
}

/// The way back is the share η λ F of the way come, all of it at most; and nothing of it behind a number that is none.
#[test]
fn an_anchor_takes_back_its_share() {
    let var = candle_core::Var::new(&[[1f32, 2.0, 3.0]], &Device::Cpu).unwrap();
    let slots = [state::Slot::new("w", Role::Expert, 0, var.clone())];
    let fisher = Tensor::new(&[[0f32, 1.0, 9.0]], &Device::Cpu).unwrap();
    let anchor = Anchor::new(&slots, 5.0, Some(vec![fisher])).unwrap();
    var.set(&Tensor::new(&[[2f32, 3.0, 4.0]], &Device::Cpu).unwrap()).unwrap();
    let finite = |flag: u8| Tensor::new(&[flag], &Device::Cpu).unwrap();
    anchor.pull(0.05, &finite(0)).unwrap();
    assert_eq!(var.to_vec2::<f32>().unwrap(), [[2.0, 3.0, 4.0]]);
    anchor.pull(0.05, &finite(1)).unwrap();
    assert_eq!(var.to_vec2::<f32>().unwrap(), [[2.0, 2.75, 3.0]]);
}

/// Whatever the method, the old text and all tasks are measured before and behind each task, the first time as the dense model has them; looks begin
/// and end each task; and the dense model that it all began with is as it was.
#[rstest]
#[case::dense(Method::DENSE)]
#[case::smk(experts(Select::Smk, false))]
#[case::routed(experts(Select::MinLoad, true))]
#[case::lora(Method::Lora { rank: 2 })]
#[case::least(Method::LeastImportant)]
#[case::replay(Method::Replay { one_in: 5 })]
#[case::decay(Method::Decay { strength: 10.0, fisher: false })]
#[case::fisher(Method::Decay { strength: 10.0, fisher: true })]
fn every_method_teaches_the_tasks_in_their_order(#[case] method: Method) {
    let place = place();
    let before = tiny::bits(&place.prepared.dense.store);
    let found = run(&place.prepared, &place.config, method);
    assert_eq!(tiny::bits(&place.prepared.dense.store), before);
    assert_eq!(found.tasks, ["ledger", "letter_sums"]);
    assert_eq!((found.losses.len(), found.losses[0].len(), found.old.len(), found.old_sums.len()), (3, 2, 3, 3));
    let steps: Vec<(usize, u64)> = found.looks.iter().map(|look| (look.task, look.step)).collect();
    assert_eq!(steps, [(0, 0), (0, 2), (0, 4), (1, 0), (1, 2), (1, 4)]);
    let tokens: f64 = found.old_tokens.iter().sum();
    for (old, sums) in found.old.iter().zip(&found.old_sums) {
        assert_relative_eq!(*old, sums.iter().sum::<f64>() / tokens, epsilon = 1e-9);
    }
    for task in 0..2 {
        assert_relative_eq!(found.looks[3 * task + 2].new, found.losses[task + 1][task], epsilon = 1e-9);
        assert_relative_eq!(found.looks[3 * task + 2].old, found.old[task + 1], epsilon = 1e-9);
        assert!(found.losses[task + 1][task] < found.losses[task][task], "{:?}", found.losses);
    }
    assert!(found.looks[0].distance == 0.0 && found.looks[5].distance > found.looks[1].distance);
    assert!(found.forgetting().is_some() && found.old_forgetting().is_some());
    let dense = run(&place.prepared, &place.config, Method::DENSE);
    if !method.is_routed() {
        assert_eq!((found.old[0], &found.losses[0]), (dense.old[0], &dense.losses[0]));
    }
    // The same run is the same record.
    assert_eq!(run(&place.prepared, &place.config, method), found);
    match method {
        Method::DENSE | Method::Replay { .. } | Method::Decay { .. } => {
            assert_eq!(found.stepped, found.learnable as f64);
        }
        Method::Lora { rank } => assert_eq!(found.learnable, 2 * 3 * rank * (16 + 26)),
        // Two experts of eight.
        _ => assert_relative_eq!(found.stepped, found.learnable as f64 / 4.0),
    }
    if method == Method::LeastImportant {
        assert!(found.moved < found.learnable / 3, "{} {}", found.moved, found.learnable);
    }
}

/// What decays towards the dense weights stays nearer to them.
#[test]
fn decay_keeps_near() {
    let place = place();
    let last = |method| run(&place.prepared, &place.config, method).looks[5].distance;
    let free = last(Method::DENSE);
    for fisher in [false, true] {
        assert!(last(Method::Decay { strength: 30.0, fisher }) < 0.9 * free);
    }
}

/// Routers of a task are fitted to the text so far: a task that comes later does not change what came before it.
#[test]
fn nothing_is_known_of_later_tasks() {
    let place = place();
    let method = experts(Select::Smk, true);
    let first = run(&place.prepared, &place.config, method);
    let other = ForgettingConfig { order: vec![NovelTask::Ledger, NovelTask::Contradictions], ..of(method) };
    let second = forgetting(&place.prepared, &place.config, &other, None).unwrap();
    assert_eq!(first.looks[..3], second.looks[..3]);
    assert_eq!(first.old[..2], second.old[..2]);
    assert_ne!(first.looks[3..], second.looks[3..]);
}

fn record(losses: &[Vec<f64>], old: &[f64], looks: &[Look]) -> ForgettingRecord {
    let tasks = ["a", "b", "c"][..losses[0].len()].to_vec();
    serde_json::from_value(serde_json::json!({
        "tasks": tasks, "losses": losses, "old": old, "old_tasks": ["x"], "old_by_task": [],
        "old_sums": [[4.0, 6.0], [6.0, 8.0], [6.0, 8.0], [4.0, 9.0]], "old_tokens": [2.0, 2.0],
        "looks": looks, "learnable": 1, "stepped": 1.0, "moved": 1, "multiply_adds": 1.0, "seconds": 1.0,
    }))
    .unwrap()
}

/// By hand: a forgets 1.5 − 1.0 (its best was 1.0, behind itself), b 2.5 − 2.0; b was 5.0 before and 4.5 when its turn came, c 6.0 and 6.5.
#[test]
fn figures_are_those_of_a_case_by_hand() {
    let losses = vec![vec![4.0, 5.0, 6.0], vec![1.0, 4.5, 6.0], vec![1.25, 2.0, 6.5], vec![1.5, 2.5, 3.0]];
    let found = record(&losses, &[2.5, 3.5, 2.25, 3.25], &[]);
    assert_eq!(found.forgetting(), Some(0.5));
    assert_eq!(found.old_forgetting(), Some(1.0));
    assert_eq!(found.forward_transfer(), Some(0.0));
    // Each document of two tokens rises by 2 nats.
    let rise = found.old_rise(0, 0).unwrap();
    assert_eq!((rise.mean, rise.low, rise.high), (1.0, 1.0, 1.0));
    assert_eq!(found.old_rise(1, 0).unwrap().low, 0.0);
    assert!(found.old_rise(2, 0).unwrap().low < 0.0);
    let cut = record(&losses[..3], &[2.5, 3.5, 2.25], &[]);
    assert_eq!((cut.forgetting(), cut.old_forgetting(), cut.forward_transfer()), (None, None, None));
}

#[test]
fn places_between_looks_are_linear() {
    let look = |task, step, new, old, distance| Look { task, step, new, old, distance };
    let looks = vec![
        look(0, 0, 5.0, 2.0, 0.0),
        look(0, 10, 3.0, 2.5, 1.0),
        look(0, 20, 1.0, 3.5, 3.0),
        look(1, 0, 0.5, 9.0, 9.0),
    ];
    let found = record(&vec![vec![0.0; 2]; 3], &[0.0; 3], &looks);
    let at = found.at_loss(0, 2.5).unwrap();
    assert_eq!((at.step, at.new, at.old, at.distance), (12.5, 2.5, 2.75, 1.5));
    assert_eq!(found.at_loss(0, 5.0).unwrap().step, 0.0);
    assert_eq!(found.at_loss(0, 0.9), None);
    let at = found.at_distance(0, 2.0).unwrap();
    assert_eq!((at.new, at.old), (2.0, 3.0));
    assert_eq!(found.at_loss(1, 2.5).unwrap().old, 9.0);
}

#[rstest]
#[case::twice(ForgettingConfig { order: vec![NovelTask::Ledger; 2], ..of(Method::DENSE) }, "`ledger` twice")]
#[case::one(ForgettingConfig { order: vec![NovelTask::Ledger], ..of(Method::DENSE) }, "`order`: has 1 tasks")]
#[case::rank(of(Method::Lora { rank: 0 }), "`method.lora.rank`")]
#[case::replay(of(Method::Replay { one_in: 1 }), "`method.replay.one_in`")]
#[case::decay(of(Method::Decay { strength: f64::NAN, fisher: false }), "`method.decay.strength`")]
#[case::fisher(
    ForgettingConfig { fisher_sequences: 0, ..of(Method::Decay { strength: 1.0, fisher: true }) },
    "`fisher_sequences`"
)]
#[case::load(of(experts(Select::MinLoad, false)), "`method.experts`: is min_load")]
fn what_cannot_be_is_refused_by_name(#[case] of: ForgettingConfig, #[case] problem: &str) {
    let place = place();
    let said = message(forgetting(&place.prepared, &place.config, &of, None));
    assert!(said.contains(problem), "{said}");
}

#[test]
fn a_setting_that_cannot_be_is_refused_by_name() {
    let place = place();
    let config = RunConfig { smk: SmkConfig { min_k: 0, ..place.config.smk }, ..place.config.clone() };
    let said = message(forgetting(&place.prepared, &config, &of(Method::LeastImportant), None));
    assert!(said.contains("`smk.min_k`"), "{said}");
}
