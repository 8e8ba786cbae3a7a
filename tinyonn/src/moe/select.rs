//! From probabilities to a set of experts: the best `k₁` groups, in each the best `k₂` experts, and so on down.

use candle_core::{DType, Tensor};

use super::{LevelSpec, MoeSpec};
use crate::{Error, Result};

/// Gates `[t, N]` in `dtype`: 1 for the experts that are taken, 0 for the others (`gate = unit`).
///
/// `log_probs[level]` is `[t, parents, choices]` f32. Ties go to the lower index; the outcome is deterministic.
///
/// # Errors
/// Shapes that do not belong to `spec`.
pub fn select(spec: &MoeSpec, log_probs: &[Tensor], dtype: DType) -> Result<Tensor> {
    let experts = spec.experts();
    let levels: Vec<Vec<f32>> =
        log_probs.iter().map(|level| level.flatten_all()?.to_vec1()).collect::<candle_core::Result<_>>()?;
    let tokens = log_probs.first().map_or(Ok(0), |level| level.dim(0))?;
    for (level, values) in levels.iter().enumerate() {
        let expected = tokens * spec.parents(level) * spec.levels[level].choices;
        if values.len() != expected {
            let problem = format!("level {level} has {} log-probabilities, not {expected}", values.len());
            return Err(Error::variant(spec.name.clone(), problem, "return [t, parents, choices] from the router"));
        }
    }
    let mut gates = vec![0f32; tokens * experts];
    for (token, gates) in gates.chunks_exact_mut(experts).enumerate() {
        for expert in chosen(spec, |level| {
            let width = spec.parents(level) * spec.levels[level].choices;
            &levels[level][token * width..][..width]
        }) {
            gates[expert as usize] = 1.0;
        }
    }
    let device = log_probs.first().map_or(&candle_core::Device::Cpu, Tensor::device);
    Ok(Tensor::from_vec(gates, (tokens, experts), device)?.to_dtype(dtype)?)
}

/// The experts on the best path, ascending; `scores(level)` are those of every (parent, choice) of a level.
pub fn chosen<'a>(spec: &MoeSpec, scores: impl Fn(usize) -> &'a [f32]) -> Vec<u32> {
    let mut nodes = vec![0usize];
    for (level, LevelSpec { choices, top_k, .. }) in spec.levels.iter().enumerate() {
        let scores = scores(level);
        nodes = nodes
            .iter()
            .flat_map(|parent| best(&scores[parent * choices..][..*choices], *top_k).map(move |c| parent * choices + c))
            .collect();
    }
    nodes.into_iter().map(|node| node as u32).collect()
}

/// The indices of the `k` largest scores, ascending; ties go to the lower index.
pub fn best(scores: &[f32], k: usize) -> impl Iterator<Item = usize> + use<> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order.truncate(k);
    order.sort_unstable();
    order.into_iter()
}
