//! The weights of the experts that were taken, and the scores they come from.
//!
//! p(n | x) is the product of the probabilities on the way from the root to expert n. `unit`: 1. `scaled`: K p_n / Σ p over the K taken.
//! `normalised`: p_n / Σ p. `straight_through`: 1 forward, p_n backward. What is not taken weighs 0; an expert that always takes part
//! weighs 1.

use candle_core::{D, DType, Tensor};

use super::{Gate, MoeModule, MoeSpec, Router};
use crate::Result;

/// What the routers of a layer say of `t` inputs.
#[derive(Clone, Debug)]
pub struct Scores {
    /// By level and run of routers: ℓ `[t, P, C]` f32.
    pub logits: Vec<Vec<Tensor>>,
}

impl Scores {
    /// Asks every router of `module`.
    ///
    /// # Errors
    /// What a router reports.
    pub fn new<M: MoeModule + ?Sized>(module: &M, x_td: &Tensor) -> Result<Self> {
        let of_level = |level: Vec<&dyn Router>| level.iter().map(|router| router.logits(x_td)).collect();
        Ok(Self { logits: module.routers().into_iter().map(of_level).collect::<Result<_>>()? })
    }

    /// By level: ℓ of every node, `[t, nodes]`.
    ///
    /// # Errors
    /// What the device reports.
    pub fn by_level(&self) -> Result<Vec<Tensor>> {
        self.logits.iter().map(|runs| side_by_side(runs, |run| Ok(run.clone()))).collect()
    }

    /// By level: log p of every node given the node above it, `[t, nodes]`.
    ///
    /// # Errors
    /// What the device reports.
    pub fn log_probs(&self) -> Result<Vec<Tensor>> {
        self.logits.iter().map(|runs| side_by_side(runs, |run| candle_nn::ops::log_softmax(run, D::Minus1))).collect()
    }

    /// log p(n | x) of the routed experts, `[t, routed]`.
    ///
    /// # Errors
    /// What the device reports.
    pub fn experts(&self, spec: &MoeSpec) -> Result<Tensor> {
        let mut joint: Option<Tensor> = None;
        let levels = self.log_probs()?;
        for (level, log_probs) in levels.iter().enumerate() {
            let of_expert: Vec<u32> = spec.node_of_experts(level).into_iter().map(|node| node as u32).collect();
            let last = level + 1 == levels.len();
            let spread = if last {
                log_probs.clone()
            } else {
                log_probs.index_select(&Tensor::new(of_expert.as_slice(), log_probs.device())?, 1)?
            };
            joint = Some(match joint {
                Some(above) => (above + spread)?,
                None => spread,
            });
        }
        joint.ok_or_else(|| crate::Error::variant(spec.name.clone(), "it has no level", "declare groups and experts"))
    }
}

/// The runs of a level `[t, P, C]`, each through `f`, as one `[t, nodes]`.
fn side_by_side(runs: &[Tensor], f: impl Fn(&Tensor) -> candle_core::Result<Tensor>) -> Result<Tensor> {
    let flat = runs.iter().map(|run| f(run)?.flatten_from(1)).collect::<candle_core::Result<Vec<_>>>()?;
    if let [run] = flat.as_slice() { Ok(run.clone()) } else { Ok(Tensor::cat(&flat, 1)?) }
}

/// The gates `[t, N]` in `dtype` of experts that were taken (`[t, N]` f32 of ones and zeros).
///
/// # Errors
/// What the device reports.
pub fn gates(spec: &MoeSpec, scores: &Scores, taken_tn: &Tensor, dtype: DType) -> Result<Tensor> {
    if spec.gate == Gate::Unit {
        return Ok(taken_tn.to_dtype(dtype)?);
    }
    let routed = spec.routed_experts();
    let taken_tr = taken_tn.narrow(1, 0, routed)?;
    let p_tr = (scores.experts(spec)?.exp()? * &taken_tr)?;
    let share = |p_tr: &Tensor| -> Result<Tensor> { Ok(p_tr.broadcast_div(&p_tr.sum_keepdim(1)?)?) };
    let gate_tr = match spec.gate {
        Gate::Unit | Gate::Normalised => share(&p_tr)?,
        Gate::Scaled => share(&p_tr)?.broadcast_mul(&taken_tr.sum_keepdim(1)?)?,
        Gate::StraightThrough => (&taken_tr + (&p_tr - p_tr.detach())?)?,
    };
    let gate_tn = if routed == spec.experts() {
        gate_tr
    } else {
        Tensor::cat(&[&gate_tr, &taken_tn.narrow(1, routed, spec.experts() - routed)?], 1)?
    };
    Ok(gate_tn.to_dtype(dtype)?)
}
