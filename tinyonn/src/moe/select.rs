//! From probabilities to a set of experts: the best `k₁` groups, in each the best `k₂` experts, and so on down.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use tinyonn::moe::select::{chosen, path_widths, paths};
//! use tinyonn::moe::{Selection, moe, select};
//!
//! /// Two groups of two experts; a token takes the better group, and one expert of it.
//! #[moe(groups = 2, experts = 2, top_k = [1, 1])]
//! struct Quarter;
//!
//! // log p of the groups, and of each expert given its group, for one token.
//! let scores = [[0.4f32, 0.6].as_slice(), &[0.9, 0.1, 0.3, 0.7]].map(|p| p.iter().map(|p| p.ln()).collect::<Vec<_>>());
//! let tensors = scores.each_ref().map(|row| Tensor::new(vec![row.clone()], &Device::Cpu)).into_iter().collect::<Result<Vec<_>, _>>()?;
//! let nothing_else = Selection { bias: None, surprisal: None };
//! assert_eq!(select(&Quarter::SPEC, &tensors, nothing_else)?.to_vec2::<f32>()?, [[0.0, 0.0, 0.0, 1.0]]);
//! assert_eq!(chosen(&Quarter::SPEC, |level| &scores[level]), [3]);
//! assert_eq!(paths(&Quarter::SPEC, &tensors)?, [[3]]);
//! assert_eq!(path_widths(&Quarter::SPEC), [vec![1], vec![1, 1]]); // of each router, by level
//! # Ok::<(), tinyonn::Error>(())
//! ```

use std::cmp::Ordering;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::{ExpertsAre, MoeSpec, Pfag, RouterSlot, select_on_device};
use crate::{Error, Result, ops};

/// Beside the probabilities, what a selection may depend on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Selection<'a> {
    /// By level, a number for each node, `[nodes]` f32, added to p before choices are compared (`balance = bias`).
    pub bias: Option<&'a [Tensor]>,
    /// The surprisal of each input in nats, `[t]` f32 (`pfag = surprisal`).
    pub surprisal: Option<&'a Tensor>,
}

/// Which experts are taken, `[t, N]` f32 of ones and zeros. Those that always take part are ones.
///
/// `scores[level]` is `[t, nodes]` f32: log p, or ℓ where only their order counts (neither bias nor `pfag`). Ties go to the lower index;
/// the outcome is deterministic.
///
/// # Errors
/// Shapes that do not belong to `spec`; `pfag = surprisal` without surprisals.
pub fn select(spec: &MoeSpec, scores: &[Tensor], with: Selection<'_>) -> Result<Tensor> {
    let tokens = check(spec, scores)?;
    if spec.pfag == Pfag::Surprisal && with.surprisal.is_none_or(|surprisal| surprisal.elem_count() != tokens) {
        let problem = format!("pfag = surprisal needs the surprisal of each of {tokens} inputs");
        return Err(Error::variant(spec.name.clone(), problem, "set Pass::surprisal, or run the whole model"));
    }
    let fits = |bias: &[Tensor]| {
        bias.len() == spec.levels.len()
            && bias.iter().zip(spec.levels.iter()).all(|(bias, level)| bias.dims() == [level.nodes()])
    };
    if with.surprisal.is_some_and(|surprisal| surprisal.elem_count() != tokens) || !with.bias.is_none_or(fits) {
        let problem = format!("biases or surprisals are not of its nodes, or not of {tokens} inputs");
        return Err(Error::variant(spec.name.clone(), problem, "give a number for each node, and for each input"));
    }
    if !scores.first().is_some_and(|scores| scores.device().is_cpu()) {
        return select_on_device::select(spec, scores, with.bias, with.surprisal);
    }
    let levels = values(scores)?;
    let bias = with.bias.map(values).transpose()?;
    let surprisal = with.surprisal.map(|surprisal| values(std::slice::from_ref(surprisal))).transpose()?;
    let (experts, chooser) = (spec.experts(), Chooser::new(spec));
    let mut taken = vec![0f32; tokens * experts];
    taken.par_chunks_mut(experts.max(1)).enumerate().for_each_init(Scratch::default, |scratch, (token, taken)| {
        let scores = |level: usize| chooser.row(&levels, level, token);
        let mass = spec.pfag.mass(surprisal.as_ref().map_or(0.0, |surprisal| surprisal[0][token]));
        chooser.choose(scores, bias.as_deref(), mass, scratch, |expert| taken[expert] = 1.0);
    });
    Ok(Tensor::from_vec(taken, (tokens, experts), &Device::Cpu)?)
}

/// The routed experts on the best path, ascending; `scores(level)` are those of every node of a level.
///
/// A path has a fixed width: `top_k`. Where that is only what `pfag` is capped at, or all replicas are merged, 1 at
/// each level and 2 experts, as a declaration without `top_k` takes: a path through all would say nothing.
pub fn chosen<'a>(spec: &MoeSpec, scores: impl Fn(usize) -> &'a [f32]) -> Vec<u32> {
    Chooser::of_paths(spec).path(scores, &mut Scratch::default())
}

/// How many choices a path takes of each router of each level.
#[must_use]
pub fn path_widths(spec: &MoeSpec) -> Vec<Vec<usize>> {
    let all = |slot: RouterSlot| slot.top_k == slot.nodes.len();
    let merges_all =
        spec.experts_are == ExpertsAre::Replicate && spec.levels.iter().all(|level| level.slots().all(all));
    let narrow = spec.pfag != Pfag::Off || merges_all;
    let last = spec.levels.len().saturating_sub(1);
    let most = |level| match (narrow, level == last) {
        (false, _) => usize::MAX,
        (true, true) => 2,
        (true, false) => 1,
    };
    let of_level = |(level, declared): (usize, &super::LevelSpec)| {
        declared.slots().map(|slot| slot.top_k.min(most(level))).collect()
    };
    spec.levels.iter().enumerate().map(of_level).collect()
}

/// The path of each input, as [`chosen`] takes it, from scores as [`select`] reads them.
///
/// # Errors
/// Shapes that do not belong to `spec`.
pub fn paths(spec: &MoeSpec, scores: &[Tensor]) -> Result<Vec<Vec<u32>>> {
    let (tokens, levels) = (check(spec, scores)?, values(scores)?);
    let chooser = Chooser::of_paths(spec);
    let path = |scratch: &mut Scratch, token| chooser.path(|level| chooser.row(&levels, level, token), scratch);
    Ok((0..tokens).into_par_iter().map_init(Scratch::default, path).collect())
}

/// The number of inputs.
fn check(spec: &MoeSpec, scores: &[Tensor]) -> Result<usize> {
    let Some(first) = scores.first().filter(|_| !spec.levels.is_empty()) else {
        return Err(Error::variant(spec.name.clone(), "it has no level to choose from", "declare groups and experts"));
    };
    let tokens = first.dim(0)?;
    if scores.len() != spec.levels.len() {
        let problem = format!("{} levels of scores for {}", scores.len(), spec.levels.len());
        return Err(Error::variant(spec.name.clone(), problem, "give one tensor for each level"));
    }
    for (level, scores) in scores.iter().enumerate() {
        let expected = [tokens, spec.levels[level].nodes()];
        if scores.dims() != expected {
            let problem = format!("the scores of level {level} are {:?}, not {expected:?}", scores.dims());
            return Err(Error::variant(spec.name.clone(), problem, "give a score for each input and node"));
        }
    }
    Ok(tokens)
}

/// The values of each tensor in a row. In main memory nothing waits for that.
fn values(tensors: &[Tensor]) -> Result<Vec<Vec<f32>>> {
    Ok(tensors.iter().map(ops::host::in_memory).collect::<candle_core::Result<_>>()?)
}

/// A hierarchy laid out for walking: nothing is counted twice for each token.
struct Chooser {
    levels: Vec<Level>,
    /// Routed experts, and all.
    experts: (usize, usize),
    pfag: Pfag,
}

struct Level {
    slots: Vec<RouterSlot>,
    width: usize,
}

/// What walking down needs, kept from one input to the next.
#[derive(Default)]
struct Scratch {
    nodes: Vec<usize>,
    below: Vec<usize>,
    biased: Vec<f32>,
    /// To sort probabilities in.
    p: Vec<f32>,
    /// To sort choices in.
    order: Vec<usize>,
}

impl Chooser {
    fn new(spec: &MoeSpec) -> Self {
        let level = |level: &super::LevelSpec| Level { slots: level.slots().collect(), width: level.nodes() };
        Self {
            levels: spec.levels.iter().map(level).collect(),
            experts: (spec.routed_experts(), spec.experts()),
            pfag: spec.pfag,
        }
    }

    /// Of the paths that [`chosen`] takes.
    fn of_paths(spec: &MoeSpec) -> Self {
        let mut chooser = Self { pfag: Pfag::Off, ..Self::new(spec) };
        let widths = path_widths(spec);
        for (Level { slots, .. }, widths) in chooser.levels.iter_mut().zip(widths) {
            slots.iter_mut().zip(widths).for_each(|(slot, width)| slot.top_k = width);
        }
        chooser
    }

    /// The scores of one input at a level.
    fn row<'a>(&self, levels: &'a [Vec<f32>], level: usize, token: usize) -> &'a [f32] {
        let width = self.levels[level].width;
        &levels[level][token * width..][..width]
    }

    /// The routed experts that are taken, ascending.
    fn path<'a>(&self, scores: impl Fn(usize) -> &'a [f32], scratch: &mut Scratch) -> Vec<u32> {
        let mut path = Vec::new();
        self.choose(scores, None, 1.0, scratch, |expert| {
            if expert < self.experts.0 {
                path.push(expert as u32);
            }
        });
        path
    }

    /// Calls `take` with every expert that is taken, ascending.
    fn choose<'a>(
        &self,
        scores: impl Fn(usize) -> &'a [f32],
        bias: Option<&[Vec<f32>]>,
        mass: f32,
        Scratch { nodes, below, biased, p, order }: &mut Scratch,
        mut take: impl FnMut(usize),
    ) {
        nodes.clear();
        nodes.push(0);
        for (level, Level { slots, .. }) in self.levels.iter().enumerate() {
            let scores = scores(level);
            below.clear();
            for slot in nodes.iter().map(|node| &slots[*node]) {
                let log_p = &scores[slot.nodes.clone()];
                let k = self.pfag.count_in(p, log_p, slot.top_k, mass);
                let first = slot.nodes.start;
                match bias {
                    None => best(log_p, k, order, |choice| below.push(first + choice)),
                    Some(bias) => {
                        biased.clear();
                        biased.extend(log_p.iter().zip(&bias[level][slot.nodes.clone()]).map(|(l, b)| l.exp() + b));
                        best(biased, k, order, |choice| below.push(first + choice));
                    }
                }
            }
            std::mem::swap(nodes, below);
        }
        let (routed, all) = self.experts;
        nodes.iter().copied().chain(routed..all).for_each(&mut take);
    }
}

/// Calls `take` with the indices of the `k` largest scores, ascending; ties go to the lower index.
fn best(scores: &[f32], k: usize, order: &mut Vec<usize>, take: impl FnMut(usize)) {
    /// Up to here counting whom a score beats is cheaper than sorting.
    const FEW: usize = 24;
    if scores.len() <= FEW {
        let ahead = |at: usize| {
            let own = scores[at];
            let before = scores[..at].iter().filter(|other| compare(**other, own).is_ge()).count();
            before + scores[at + 1..].iter().filter(|other| compare(**other, own).is_gt()).count()
        };
        (0..scores.len()).filter(|at| ahead(*at) < k).for_each(take);
        return;
    }
    order.clear();
    order.extend(0..scores.len());
    if k < order.len() {
        order.select_nth_unstable_by(k, |a, b| compare(scores[*b], scores[*a]).then(a.cmp(b)));
        order.truncate(k);
        order.sort_unstable();
    }
    order.iter().copied().for_each(take);
}

/// A total order, in which the two zeros tie as they should: −0 + 0 is 0.
fn compare(a: f32, b: f32) -> Ordering {
    (a + 0.0).total_cmp(&(b + 0.0))
}
