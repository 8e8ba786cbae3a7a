//! Every parameter that may learn does, in a model of every kind: finite gradients, somewhere not zero; those that may not have none; and
//! what is frozen changes no bit of the others.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use rstest::rstest;
use tinyonn::checkpoint::{Param, ParamStore, Role, grow_deltas, variant_params};
use tinyonn::decoder::{Arch, Ask, InTraining, Learn, Pass};
use tinyonn::imaging::Labels;
use tinyonn::model::TinyOnnForCausalLm;
use tinyonn::moe::{Balance, Gate, MoeSpec, RoutePer, Variant};
use tinyonn::ops::Grads;

use crate::gradients::inputs;
use crate::models::{CPU, Learnt, bits, learnt};
use crate::routing::upcycled;

/// A model with everything that it may have, deltas of replicas included, and the parameters that may learn.
fn model(name: &str) -> (Arch, &'static Variant, ParamStore, TinyOnnForCausalLm, Vec<Param>) {
    let (cfg, variant, mut store) = upcycled(name);
    grow_deltas(&mut store, &cfg, &variant.spec).unwrap();
    let mut params = variant_params(&cfg, variant).unwrap();
    params.retain(|param| !matches!(param.role, Role::Partition | Role::Balance) && store.get(&param.name).is_some());
    for (seed, param) in params.iter().filter(|param| param.role == Role::Delta).enumerate() {
        let delta = (inputs(seed as u64, &[store.get(&param.name).unwrap().dims()]).remove(0) * 0.1).unwrap();
        store.set(&param.name, &delta.to_dtype(DType::F32).unwrap()).unwrap();
    }
    let model = TinyOnnForCausalLm::new(&cfg, variant, &store.builder(DType::F32, |_| true)).unwrap();
    (cfg, variant, store, model, params)
}

fn gradients(model: &TinyOnnForCausalLm, store: &ParamStore, picked: &dyn Fn(&str) -> bool) -> Learnt {
    let ids = tinyonn::checkpoint::tokens::random_tokens(40, (2, 12), 5, &CPU).unwrap();
    let paths = Some(Arc::new(Labels::random(2, 2, model.spec(), 3).paths));
    let ask = Ask { load: true, ..Ask::default() };
    let pass = Pass { training: Some(InTraining::whole(0)), ask, paths, ..Pass::routed().of_tasks(&[0, 1]) };
    learnt(model.lm(), (store, picked), (&ids, &ids), &pass, &Learn { routers: true, ..Learn::default() })
}

/// What the loss says nothing to though it may learn: `None` may or may not have a gradient, and then it is next to nothing.
fn expected(spec: &MoeSpec, param: &Param, found: &Learnt) -> Option<bool> {
    let name = param.name.as_str();
    match param.role {
        Role::Router => {
            let moves = spec.gate != Gate::Unit || matches!(spec.balance, Balance::Loss { .. }) || spec.z_loss > 0.0;
            let drawn = spec.name == "Random3x4" || (spec.name == "Drawn3x4" && name.ends_with("projection"));
            if !moves || drawn || spec.route_per == RoutePer::Task {
                return Some(false);
            }
            // One choice has p = 1; behind groups of which one is taken p_group cancels from every share.
            let shares = matches!(spec.gate, Gate::Scaled | Gate::Normalised);
            let one_group = spec.levels[0].routers.iter().all(|run| run.top_k == 1);
            let cancels = shares && one_group && spec.levels.len() > 1 && name.contains("group_router");
            (!cancels && !name.contains("lone_router")).then_some(true)
        }
        Role::Delta => {
            // An expert that no token took has none.
            let expert: usize = name.split(".delta.").nth(1).unwrap().split('.').next().unwrap().parse().unwrap();
            let load = found.traces[param.layer.unwrap()].load.as_ref().unwrap();
            // What a shared decision reads merges all of them.
            let taken = load.tokens_n.to_vec1::<f32>().unwrap()[expert] > 0.0;
            Some(taken || spec.open_positions() > 0)
        }
        _ => Some(true),
    }
}

fn values(grads: &Grads, var: &Tensor) -> Option<Vec<f32>> {
    Some(grads.get(var)?.flatten_all().unwrap().copy().unwrap().to_vec1().unwrap())
}

#[rstest]
fn what_may_learn_learns_and_the_frozen_changes_nothing(
    #[values(
        "Flat5",
        "Deep3",
        "Deep4",
        "Cortex",
        "Linear3x4",
        "Cosine3x4",
        "Random3x4",
        "Custom3x4",
        "Isotropic3x4",
        "Identity3x4",
        "Drawn3x4",
        "ByEntropy",
        "ByNucleus",
        "BySurprisal",
        "SegmentOf3",
        "SegmentOf1",
        "SequenceOf2",
        "ByTask",
        "Dispatch3x4",
        "EvenByBias",
        "EvenByLoss",
        "MergedByToken",
        "MergedBySegment",
        "MergedByTask",
        "DispatchedByToken",
        "DispatchedBySequence"
    )]
    name: &str,
) {
    let (_, variant, store, model, params) = model(name);
    let whole = gradients(&model, &store, &|name| params.iter().any(|param| param.name == name));
    for param in &params {
        let found = values(&whole.grads, store.get(&param.name).unwrap());
        let size = |values: &[f32]| values.iter().map(|x| x.abs()).sum::<f32>();
        assert!(found.iter().flatten().all(|x| x.is_finite()), "{}", param.name);
        match expected(&variant.spec, param, &whole) {
            Some(true) => assert!(found.is_some_and(|values| size(&values) > 0.0), "{} learns nothing", param.name),
            Some(false) => assert!(found.is_none(), "{} has a gradient", param.name),
            None => assert!(found.is_none_or(|values| size(&values) < 1e-2), "{}", param.name),
        }
    }
    let roles: std::collections::BTreeSet<Role> = params.iter().map(|param| param.role).collect();
    assert!(roles.len() >= 5);
    for role in roles {
        let own = |name: &str| params.iter().any(|param| param.name == name && param.role == role);
        let alone = gradients(&model, &store, &own);
        for param in &params {
            let var = store.get(&param.name).unwrap();
            let same = if param.role == role { whole.grads.get(var) } else { None };
            let of = |gradient: Option<&Tensor>| gradient.map(|gradient| bits(&gradient.copy().unwrap()));
            assert!(of(alone.grads.get(var)) == of(same), "{} where {role:?} learns", param.name);
        }
    }
}
