//! Which expert of a larger hierarchy comes from which of a smaller one.

use serde_json::json;

use super::tinyonn_folder::differing;
use crate::moe::{ExpertsAre, LevelSpec, MoeSpec, Neurons, RouterKind};
use crate::{Error, Result};

/// Refuses a declaration that `from` cannot grow into.
///
/// # Errors
/// Another hierarchy but for the choices and `top_k` of its last level, with the first difference; fewer choices, or as many everywhere; no
/// level at all, neurons that are chosen, or routers of the user's, whose parameters nobody here knows.
pub(super) fn check(from: &MoeSpec, to: &MoeSpec) -> Result<()> {
    let refuse = |problem: String, remedy: &str| Err(Error::variant(to.name.clone(), problem, remedy));
    let Some(last) = from.levels.last() else {
        return refuse(format!("`{}` has no experts behind routers", from.name), "grow a variant with levels");
    };
    if from.neurons != Neurons::All {
        let problem = format!("`{}` chooses neurons, by a calibration of those that there were", from.name);
        return refuse(problem, "grow the model before exp_sparsify");
    }
    let mut differences = Vec::new();
    differing("spec", &json!(from), &json!(apart_from_growth(to, from)), &mut differences);
    if let Some(first) = differences.first() {
        let first = first.replace("in the file", &format!("of `{}`", from.name)).replace("as declared", "of this one");
        let remedy = "declare a variant that differs in the choices and top_k of its last level alone";
        return refuse(format!("its hierarchy is not that of `{}`, grown: {first}", from.name), remedy);
    }
    let runs = || last.routers.iter().zip(to.levels.last().into_iter().flat_map(|level| level.routers.iter()));
    if let Some((own, grown)) = runs().find(|(own, grown)| grown.choices < own.choices) {
        let problem = format!("its `{}_router` has {} choices, and had {}", own.name, grown.choices, own.choices);
        return refuse(problem, "declare as many choices or more: nothing is merged");
    }
    if runs().all(|(own, grown)| grown.choices == own.choices) {
        let problem = format!("it has as many experts as `{}`", from.name);
        return refuse(problem, "name a variant of more experts");
    }
    match last.routers.iter().find(|run| matches!(run.kind, RouterKind::Custom(_))) {
        Some(run) => {
            let problem = format!("its `{}_router` is of a type whose parameters are not known here", run.name);
            refuse(problem, "grow a variant of gaussian, linear, cosine or random routers")
        }
        None => Ok(()),
    }
}

/// `of` with everything that growth may change as `like` has it.
fn apart_from_growth(of: &MoeSpec, like: &MoeSpec) -> MoeSpec {
    let mut spec = MoeSpec { name: like.name.clone(), partition: like.partition, ..of.clone() };
    if let (Some(own), Some(other)) = (spec.levels.to_mut().last_mut(), like.levels.last()) {
        for (own, other) in own.routers.to_mut().iter_mut().zip(other.routers.iter()) {
            (own.choices, own.top_k) = (other.choices, other.top_k);
        }
    }
    spec
}

/// The expert of `from` that each expert of `to` comes from: the children of one stand side by side, the first of them in its place. Each
/// router deals its new choices one by one, each to the expert that has most of `load` for each of its children so far; ties go to
/// whoever has fewer children, then to the lower index. An even load makes even families.
///
/// # Errors
/// Replicas of uneven families: all active each weighs 1/N, so that a parent of more children would weigh more than before.
pub(super) fn parents(from: &MoeSpec, to: &MoeSpec, load: &[f64]) -> Result<Vec<u32>> {
    let slots = |spec: &MoeSpec| spec.levels.last().map(LevelSpec::slots).into_iter().flatten().collect::<Vec<_>>();
    let mut parents = Vec::with_capacity(to.experts());
    for (own, grown) in slots(from).into_iter().zip(slots(to)) {
        let children = families(&load[own.nodes.clone()], grown.nodes.len());
        let of = |(expert, children): (usize, usize)| std::iter::repeat_n(expert as u32, children);
        parents.extend(own.nodes.zip(children).flat_map(of));
    }
    parents.extend(from.routed_experts() as u32..from.experts() as u32);
    if from.experts_are == ExpertsAre::Replicate && family_size(&parents).is_none() {
        let problem = format!("{} replicas become {} in families of uneven size", from.experts(), to.experts());
        let remedy = "declare a multiple of the experts behind each router: all active, every replica weighs the same";
        return Err(Error::variant(to.name.clone(), problem, remedy));
    }
    Ok(parents)
}

/// How many children each of `load.len()` experts has, `choices` in all.
fn families(load: &[f64], choices: usize) -> Vec<usize> {
    let mut children = vec![1; load.len()];
    for _ in load.len()..choices {
        let share = |expert: usize| load[expert] / children[expert] as f64;
        let before =
            |a: &usize, b: &usize| share(*a).total_cmp(&share(*b)).then(children[*b].cmp(&children[*a])).then(b.cmp(a));
        if let Some(next) = (0..load.len()).max_by(before) {
            children[next] += 1;
        }
    }
    children
}

/// How many children every expert has; `None` where they differ.
pub(super) fn family_size(parents: &[u32]) -> Option<usize> {
    let mut sizes = parents.chunk_by(|a, b| a == b).map(<[u32]>::len);
    let first = sizes.next()?;
    sizes.all(|size| size == first).then_some(first)
}
