//! Surprise Min-K over replicas, whose experts learn by their deltas.
//!
//! A merge gives every delta the same gradient but for its weight, ∂L/∂ΔW_n = Σ_d w_dn ∂L/∂W̃_d, so the surprise of expert n is the
//! norm of that gradient over the batch (`surprise = exact`), known when the backward pass is done. Those that no decision of the batch
//! took do not compete, though what a shared decision reads, where all are active, gives them a gradient. The gradients of the losers
//! are dropped, and what has no gradient skips its step. What distinguishes replicas is their weights alone: the claims of SMK are
//! for slices (DESIGN §1).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};

use super::Choice;
use crate::checkpoint::ParamStore;
use crate::moe::expert::{PROJECTIONS, delta_name};
use crate::moe::load::taken;
use crate::qwen3::Observer;
use crate::{Error, Result};

/// Picks the learners of every layer behind a backward pass.
pub(super) struct ReplicaSmk {
    min_k: usize,
    experts: usize,
    choices: Vec<Choice>,
    routed: Arc<Routed>,
}

/// Which replicas the decisions of a step took; whoever else watches the pass is told as well.
#[derive(Default)]
pub(super) struct Routed {
    /// By layer: tokens by expert.
    tokens: Mutex<Vec<Vec<f64>>>,
    also: Option<Arc<dyn Observer>>,
}

impl Routed {
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<f64>>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Routed {
    fn gates(&self, layer: usize, gate_tn: &Tensor, routed: &[bool]) -> Result<()> {
        let taken = taken(gate_tn, routed)?;
        let mut layers = self.lock();
        if layers.len() <= layer {
            layers.resize(layer + 1, vec![0.0; taken.len()]);
        }
        layers[layer].iter_mut().zip(&taken).for_each(|(sum, taken)| *sum += taken);
        drop(layers);
        self.also.as_ref().map_or(Ok(()), |also| also.gates(layer, gate_tn, routed))
    }

    fn auxiliary_loss(&self, layer: usize, loss: &Tensor) -> Result<()> {
        self.also.as_ref().map_or(Ok(()), |also| also.auxiliary_loss(layer, loss))
    }
}

impl ReplicaSmk {
    /// # Errors
    /// A `min_k` of zero; a store without the deltas of every expert.
    pub(super) fn new(
        min_k: usize,
        store: &ParamStore,
        (layers, experts): (usize, usize),
        also: Option<Arc<dyn Observer>>,
    ) -> Result<Self> {
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
        let routed = Arc::new(Routed { tokens: Mutex::default(), also });
        Ok(Self { min_k, experts, choices: vec![Choice::default(); layers], routed })
    }

    /// What must watch the forward pass.
    pub(super) fn observer(&self) -> Arc<dyn Observer> {
        self.routed.clone()
    }

    /// Drops the gradients of all but the `min_k` replicas of each layer whose gradients are smallest.
    pub(super) fn keep_learners(&mut self, store: &ParamStore, grads: &mut GradStore) -> Result<()> {
        let routed = std::mem::take(&mut *self.routed.lock());
        for (layer, choice) in self.choices.iter_mut().enumerate() {
            let mut order = Vec::new();
            let taken = |expert: &usize| routed.get(layer).is_some_and(|tokens| tokens[*expert] > 0.0);
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
