//! The weights of the experts that were taken, and the scores they come from.
//!
//! p(n | x) is the product of the probabilities on the way from the root to expert n. `unit`: 1. `scaled`: K p_n / Σ p over the K taken.
//! `normalised`: p_n / Σ p. `straight_through`: 1 forward, p_n backward. What is not taken weighs 0; an expert that always takes part
//! weighs 1.

use candle_core::{D, DType, Tensor};

use super::{Gate, MoeLayer, MoeSpec, Router};
use crate::ops::elementwise;
use crate::{Error, Result};

/// What the routers of a layer say of `t` inputs.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::moe::{Scores, gate, moe};
///
/// #[moe(levels = [2], top_k = 1, router = linear, gate = scaled)]
/// struct Two;
///
/// // ℓ = (ln 3, 0) is p = (¾, ¼).
/// let logits_tpc = Tensor::new(&[[[3f32.ln(), 0.0]]], &Device::Cpu)?;
/// let scores = Scores { logits: vec![vec![logits_tpc]] };
/// assert_eq!(scores.by_level()?[0].to_vec2::<f32>()?, [[3f32.ln(), 0.0]]);
/// let p = scores.log_probs()?[0].exp()?.to_vec2::<f32>()?;
/// assert!((p[0][0] - 0.75).abs() < 1e-6);
/// assert_eq!(scores.experts(&Two::SPEC)?.dims(), [1, 2]);
/// // One is taken: scaled by the number taken, it weighs 1 · p / p.
/// let taken_tn = Tensor::new(&[[1f32, 0.0]], &Device::Cpu)?;
/// let gates = gate::gates(&Two::SPEC, &scores, &taken_tn, DType::F32)?.to_vec2::<f32>()?;
/// assert!((gates[0][0] - 1.0).abs() < 1e-6 && gates[0][1] == 0.0);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Scores {
    /// By level and run of routers: ℓ `[t, P, C]` f32.
    pub logits: Vec<Vec<Tensor>>,
}

impl Scores {
    /// Asks every router of `module`, of x in any type.
    ///
    /// # Errors
    /// What a router reports; one whose scores are not `[t, P, C]` f32.
    pub fn new(module: &MoeLayer, x_td: &Tensor) -> Result<Self> {
        let (spec, tokens) = (module.spec(), x_td.dim(0)?);
        let mut wide_td = None;
        let mut logits = Vec::with_capacity(spec.levels.len());
        for (declared, routers) in spec.levels.iter().zip(module.routers()) {
            let mut of_level = Vec::with_capacity(routers.len());
            for (run, router) in declared.routers.iter().zip(routers) {
                let found = router.logits(as_read(router.as_ref(), x_td, &mut wide_td)?)?.detach();
                let expected = [tokens, run.parents, run.choices];
                if found.dims() != expected || found.dtype() != DType::F32 {
                    let (found, dtype) = (found.dims(), found.dtype());
                    let problem = format!("`{}_router` scores {found:?} {dtype:?}, not {expected:?} F32", run.name);
                    return Err(Error::variant(spec.name.clone(), problem, "return [t, parents, choices] from it"));
                }
                of_level.push(found);
            }
            logits.push(of_level);
        }
        Ok(Self { logits })
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
        joint.ok_or_else(|| Error::variant(spec.name.clone(), "it has no level", "declare groups and experts"))
    }
}

/// x as a router reads it: in f32, which is made once, unless it takes what there is.
pub(super) fn as_read<'a>(
    router: &dyn Router,
    x_td: &'a Tensor,
    wide_td: &'a mut Option<Tensor>,
) -> Result<&'a Tensor> {
    if router.narrow() || x_td.dtype() == DType::F32 {
        return Ok(x_td);
    }
    let wide = match wide_td.take() {
        Some(wide) => wide,
        None => elementwise::cast(x_td, DType::F32)?,
    };
    Ok(wide_td.insert(wide))
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
    let log_p_tr = scores.experts(spec)?;
    // Among logarithms: what a bias has chosen may have probabilities that are all 0 in f32.
    let share = || -> Result<Tensor> {
        let nothing = Tensor::full(f32::NEG_INFINITY, log_p_tr.shape(), log_p_tr.device())?;
        let taken_log_p = taken_tr.ne(0f64)?.where_cond(&log_p_tr, &nothing)?;
        Ok(candle_nn::ops::softmax(&taken_log_p, D::Minus1)?)
    };
    let gate_tr = match spec.gate {
        Gate::Unit | Gate::Normalised => share()?,
        Gate::Scaled => share()?.broadcast_mul(&taken_tr.sum_keepdim(1)?)?,
        Gate::StraightThrough => {
            let p_tr = (log_p_tr.exp()? * &taken_tr)?;
            (&taken_tr + (&p_tr - p_tr.detach())?)?
        }
    };
    let gate_tn = if routed == spec.experts() {
        gate_tr
    } else {
        Tensor::cat(&[&gate_tr, &taken_tn.narrow(1, routed, spec.experts() - routed)?], 1)?
    };
    Ok(gate_tn.to_dtype(dtype)?)
}
