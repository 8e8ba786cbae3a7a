//! Decay towards the weights that a training began with, so that it forgets less.
//!
//! Behind each step θ ← θ − p ⊙ (θ − θ₀), p = min(η λ F, 1), apart from the optimizer's moments, as AdamW's own decay is. F = 1 everywhere is plain L2
//! towards the start (Li et al., 2018); F the diagonal of the empirical Fisher information of old text is elastic weight consolidation (Kirkpatrick et
//! al., 2017), divided by its mean so that λ means the same in both.

use candle_core::{Tensor, Var};

use super::{Slot, TextGradient, TrainState};
use crate::Result;
use crate::checkpoint::refresh;
use crate::decoder::FeedForward;

/// Where weights are pulled to, and how much.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use tinyonn::checkpoint::Role;
/// use tinyonn::train::{Anchor, Slot};
///
/// let w = Var::new(&[1f32], &Device::Cpu)?;
/// let anchor = Anchor::new(&[Slot::new("w", Role::Expert, 0, w.clone())], 0.5, None)?;
/// w.set(&Tensor::new(&[3f32], &Device::Cpu)?)?;
/// // η λ = 0.1 · 0.5 of the way back to 1.
/// anchor.pull(0.1, &Tensor::new(&[1u8], &Device::Cpu)?)?;
/// assert!((w.to_vec1::<f32>()?[0] - 2.9).abs() < 1e-6);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug)]
pub struct Anchor {
    /// By slot: what is pulled, what passes read where that is another, θ₀ and F; without F it is 1.
    weights: Vec<(Var, Option<Var>, Tensor, Option<Tensor>)>,
    strength: f64,
}

impl Anchor {
    /// To what `slots` hold now, with strength λ and F by slot (one for each, or none at all).
    ///
    /// # Errors
    /// What the device reports.
    pub fn new(slots: &[Slot], strength: f64, fisher: Option<Vec<Tensor>>) -> Result<Self> {
        let mut fisher = fisher.into_iter().flatten();
        let of = |slot: &Slot| {
            let var = slot.stepped().clone();
            let start = var.as_detached_tensor().copy()?;
            // Passes read another, where the stepped one is a master.
            let work = slot.master.is_some().then(|| slot.var.clone());
            Ok((var, work, start, fisher.next()))
        };
        Ok(Self { weights: slots.iter().map(of).collect::<Result<_>>()?, strength })
    }

    /// The step back at the rate η, nothing where `finite` `[1]` u8 is 0.
    ///
    /// # Errors
    /// What the device reports.
    pub fn pull(&self, rate: f64, finite: &Tensor) -> Result<()> {
        let share = rate * self.strength;
        for (var, work, start, fisher) in &self.weights {
            let now = var.as_detached_tensor();
            let away = (&now - start)?;
            let back = match fisher {
                Some(fisher) => ((fisher * share)?.minimum(1.0)? * away)?,
                None => (away * share.min(1.0))?,
            };
            let pulled = (&now - back)?;
            let kept = finite.reshape(vec![1; now.rank()])?.broadcast_as(now.shape())?;
            var.set(&kept.where_cond(&pulled, &now)?)?;
            work.iter().try_for_each(|work| refresh(work, var))?;
        }
        Ok(())
    }
}

/// The diagonal of the empirical Fisher information of the text that `text` reads, E\[g²\] over `steps` batches (one sequence each, for the gradient of
/// a mean hides what cancels), by slot, divided by its mean over all weights.
///
/// ```
/// use tinyonn::decoder::FeedForward;
/// use tinyonn::train::{Anchor, TextGradient, TrainState, fisher};
///
/// /// An anchor that holds what matters to a text: 64 of its sequences say what does.
/// fn held<F: FeedForward>(text: &TextGradient<'_, F>, state: &mut TrainState) -> tinyonn::Result<Anchor> {
///     let matters = fisher(text, state, 64)?;
///     Anchor::new(state.slots(), 0.1, Some(matters))
/// }
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// What the model reports.
pub fn fisher<F: FeedForward>(text: &TextGradient<'_, F>, state: &mut TrainState, steps: u64) -> Result<Vec<Tensor>> {
    let first = state.step;
    let zeros = |slot: &Slot| Ok(slot.stepped().zeros_like()?.detach());
    let mut sums: Vec<Tensor> = state.slots().iter().map(zeros).collect::<Result<_>>()?;
    for step in first..first + steps {
        state.step = step;
        text.descend(state)?;
        for (sum, slot) in sums.iter_mut().zip(state.slots()) {
            if let Some(gradient) = state.grads.get(&slot.var) {
                *sum = (&*sum + gradient.sqr()?)?;
            }
        }
        state.grads.begin();
    }
    state.step = first;
    let count = sums.iter().map(Tensor::elem_count).sum::<usize>().max(1) as f64;
    let mut total: Option<Tensor> = None;
    for sum in &sums {
        let own = sum.sum_all()?;
        total = Some(match total {
            Some(total) => (total + own)?,
            None => own,
        });
    }
    let Some(total) = total else { return Ok(sums) };
    // Of text without any gradient it stays zero.
    let mean = (total / count)?.maximum(f64::from(f32::MIN_POSITIVE))?;
    sums.iter().map(|sum| Ok(sum.broadcast_div(&mean)?)).collect()
}
