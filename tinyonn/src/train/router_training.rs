//! Routers that learn with the language model: the observer that gathers their auxiliary losses and their load, and the step of the
//! bias that keeps the load even. Formulas: [`crate::moe::balance`].

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;

use crate::checkpoint::ParamStore;
use crate::moe::load::taken;
use crate::moe::{Balance, MoeSpec, balance};
use crate::qwen3::Observer;
use crate::{Error, Result};

/// Gathers what one training step says about routing.
#[derive(Default)]
pub struct RouterTraining {
    state: Mutex<State>,
    /// Told everything as well.
    beside: Option<Arc<dyn Observer>>,
}

#[derive(Debug, Default)]
struct State {
    losses: Vec<Tensor>,
    /// By layer: tokens by expert.
    load: Vec<Vec<f64>>,
}

impl RouterTraining {
    /// Beside another observer, which is told everything as well.
    #[must_use]
    pub fn beside(other: Option<Arc<dyn Observer>>) -> Self {
        Self { beside: other, ..Self::default() }
    }

    /// `loss` and the auxiliary losses reported since the last call.
    ///
    /// # Errors
    /// What the device reports.
    pub fn add_to(&self, loss: Tensor) -> Result<Tensor> {
        let losses = std::mem::take(&mut self.lock().losses);
        losses.into_iter().try_fold(loss, |sum, loss| Ok((sum + loss)?))
    }

    /// The tokens that each expert of each layer was given since the last call, `[layer][expert]`.
    pub fn take_load(&self) -> Vec<Vec<f64>> {
        std::mem::take(&mut self.lock().load)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Moves the biases of every layer against a step's load, `[layer][expert]` (`balance = bias`).
///
/// # Errors
/// A store without the biases.
pub(super) fn balance(store: &ParamStore, spec: &MoeSpec, load: &[Vec<f64>]) -> Result<()> {
    if !matches!(spec.balance, Balance::Bias { .. }) {
        return Ok(());
    }
    for (layer, load) in load.iter().enumerate() {
        let name = format!("model.layers.{layer}.mlp.balance_bias");
        let missing = || Error::tensor(&name, "is missing", "upcycle the dense model again");
        let mut bias = store.get(&name).ok_or_else(missing)?.to_vec1::<f32>()?;
        balance::step(spec, &mut bias, load);
        store.set(&name, &Tensor::new(bias.as_slice(), store.device())?)?;
    }
    Ok(())
}

impl Observer for RouterTraining {
    fn feed_forward_input(&self, layer: usize, x: &Tensor) -> Result<()> {
        self.beside.as_ref().map_or(Ok(()), |other| other.feed_forward_input(layer, x))
    }

    fn block_output(&self, layer: usize, x: &Tensor) -> Result<()> {
        self.beside.as_ref().map_or(Ok(()), |other| other.block_output(layer, x))
    }

    fn gates(&self, layer: usize, gate_tn: &Tensor, routed: &[bool]) -> Result<()> {
        self.beside.as_ref().map_or(Ok(()), |other| other.gates(layer, gate_tn, routed))?;
        let taken = taken(gate_tn, routed)?;
        let mut state = self.lock();
        if state.load.len() <= layer {
            state.load.resize(layer + 1, vec![0.0; taken.len()]);
        }
        state.load[layer].iter_mut().zip(&taken).for_each(|(sum, taken)| *sum += taken);
        Ok(())
    }

    fn auxiliary_loss(&self, layer: usize, loss: &Tensor) -> Result<()> {
        self.beside.as_ref().map_or(Ok(()), |other| other.auxiliary_loss(layer, loss))?;
        self.lock().losses.push(loss.clone());
        Ok(())
    }
}
