//! Surprise Min-K over replicas, whose experts learn by their deltas.
//!
//! A merge gives every delta the same gradient but for its weight, ∂L/∂ΔW_n = Σ_d w_dn ∂L/∂W̃_d, so the surprise of expert n is the
//! norm of that gradient over the batch (`surprise = exact`), known when the backward pass is done. Those that no decision of the batch
//! took do not compete, though what a shared decision reads, where all are active, gives them a gradient. The gradients of the losers
//! are dropped, and what has no gradient skips its step. What distinguishes replicas is their weights alone: the claims of SMK are
//! for slices (DESIGN §1).

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};

use super::Choice;
use crate::checkpoint::ParamStore;
use crate::moe::expert::{PROJECTIONS, delta_name};
use crate::{Error, Result};

/// Picks the learners of every layer behind a backward pass.
pub(super) struct ReplicaSmk {
    min_k: usize,
    experts: usize,
    choices: Vec<Choice>,
}

impl ReplicaSmk {
    /// # Errors
    /// A `min_k` of zero; a store without the deltas of every expert.
    pub(super) fn new(min_k: usize, store: &ParamStore, layers: usize, experts: usize) -> Result<Self> {
        if min_k == 0 {
            return Err(Error::setting("smk.min_k", "is 0, and nobody would learn", "use 1 or more"));
        }
        for layer in 0..layers {
            for name in (0..experts).flat_map(|expert| names(layer, expert)) {
                if store.get(&name).is_none() {
                    let remedy = "add the deltas that are to learn with `checkpoint::grow_deltas`";
                    return Err(Error::tensor(name, "is missing: this replica cannot learn", remedy));
                }
            }
        }
        Ok(Self { min_k, experts, choices: vec![Choice::default(); layers] })
    }

    /// Drops the gradients of all but the `min_k` replicas of each layer whose gradients are smallest.
    /// `load[layer][expert]` counts the tokens that the step's decisions gave it: without one it does not compete.
    pub(super) fn keep_learners(&mut self, store: &ParamStore, grads: &mut GradStore, load: &[Vec<f64>]) -> Result<()> {
        for (layer, choice) in self.choices.iter_mut().enumerate() {
            let mut order = Vec::new();
            let taken = |expert: &usize| load.get(layer).is_some_and(|tokens| tokens[*expert] > 0.0);
            for expert in (0..self.experts).filter(taken) {
                let norm = norm(store, grads, layer, expert)?;
                if !norm.is_finite() {
                    let problem = format!("the gradient's norm is {norm} for replica {expert} of layer {layer}");
                    return Err(Error::setting("smk.adamw.rate", problem, "lower the rate"));
                }
                if norm > 0.0 {
                    order.push((norm, expert as u32));
                }
            }
            *choice = Choice::least(order, self.min_k);
            let learners = &choice.learners;
            for loser in (0..self.experts).filter(|expert| learners.binary_search(&(*expert as u32)).is_err()) {
                for var in names(layer, loser).iter().filter_map(|name| store.get(name)) {
                    grads.remove(var);
                }
            }
        }
        Ok(())
    }

    /// What the last step decided, by layer.
    pub(super) fn choices(&self) -> &[Choice] {
        &self.choices
    }
}

/// The tensors of a replica's delta.
fn names(layer: usize, expert: usize) -> [String; 3] {
    PROJECTIONS.map(|projection| format!("model.layers.{layer}.mlp.{}", delta_name(expert, projection)))
}

/// The norm of a delta's gradient; 0 without one.
fn norm(store: &ParamStore, grads: &GradStore, layer: usize, expert: usize) -> Result<f64> {
    let mut squares = 0.0;
    for name in names(layer, expert) {
        if let Some(grad) = store.get(&name).and_then(|var| grads.get(var)) {
            let sum: Tensor = grad.to_dtype(DType::F32)?.sqr()?.sum_all()?;
            squares += f64::from(sum.to_scalar::<f32>()?);
        }
    }
    Ok(squares.sqrt())
}
