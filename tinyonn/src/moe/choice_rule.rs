//! What bounds the choices of a layer's routers in a routed pass, as a checkpoint has it once text has said it (DESIGN §1): of each level the number that a
//! router takes at most, in place of the declared one, and the least score of a choice that is taken. A model that was just upcycled has none.
//!
//! ```
//! use tinyonn::moe::{CHOICE_RULE, CHOICES_LEAST_SCORE, CHOICES_MOST};
//!
//! assert!([CHOICES_MOST, CHOICES_LEAST_SCORE].iter().all(|name| name.starts_with(CHOICE_RULE)));
//! ```

use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, VarBuilder};

use super::{MoeSpec, Pfag};
use crate::ops::host;
use crate::{Error, Result};

/// Where the parts of a rule lie under its layer's `mlp`.
pub const CHOICE_RULE: &str = "choices";
/// How many choices a router takes at most, a number a level, f32.
pub const CHOICES_MOST: &str = "choices.most";
/// The least score ℓ of a choice that is taken, a number a level, f32.
pub const CHOICES_LEAST_SCORE: &str = "choices.least_score";

/// The rule of one layer.
#[derive(Clone, Debug)]
pub(crate) struct ChoiceRule {
    /// The declaration, of which so many are taken.
    spec: MoeSpec,
    /// By level the least score `[1, 1]`, and the node that each routed expert is under, u32; of the last level none.
    levels: Vec<(Tensor, Option<Tensor>)>,
}

impl ChoiceRule {
    /// Of `spec`, by level.
    pub(crate) fn new(spec: &MoeSpec, most: &[usize], least_score: &[f32], device: &Device) -> Result<Self> {
        let last = spec.levels.len().saturating_sub(1);
        let of_level = |(level, least): (usize, &f32)| {
            let nodes: Vec<u32> = spec.node_of_experts(level).into_iter().map(|node| node as u32).collect();
            let nodes_n = (level < last).then(|| Tensor::new(nodes.as_slice(), device)).transpose()?;
            Ok((Tensor::new(&[[*least]], device)?, nodes_n))
        };
        let levels = least_score.iter().enumerate().map(of_level).collect::<Result<_>>()?;
        Ok(Self { spec: spec.taking(most, Pfag::Off), levels })
    }

    /// Reads the rule of a layer, if there is one.
    ///
    /// # Errors
    /// A part without the other; numbers that are none; a declaration whose routers do more than choose.
    pub(super) fn read(spec: &MoeSpec, vb: &VarBuilder<'_>, device: &Device) -> Result<Option<Self>> {
        let there = [CHOICES_MOST, CHOICES_LEAST_SCORE].map(|name| vb.contains_tensor(name));
        if spec.levels.is_empty() || !there.contains(&true) {
            return Ok(None);
        }
        let bad = |name: &str, problem: String| {
            let name = format!("{}.{name}", vb.prefix());
            Err(Error::tensor(name, problem, "calibrate the model again with exp_sparsify"))
        };
        if !spec.can_be_calibrated() {
            return bad(CHOICES_MOST, "bounds choices that do not weigh 1, or that tokens share".into());
        }
        for (name, there) in [CHOICES_MOST, CHOICES_LEAST_SCORE].into_iter().zip(there) {
            if !there {
                return bad(name, "is missing, and the other part of the rule is there".into());
            }
        }
        let levels = spec.levels.len();
        let numbers = |name| host::in_memory(&vb.get_with_hints_dtype(levels, name, Init::Const(0.0), DType::F32)?);
        let (most, least_score) = (numbers(CHOICES_MOST)?, numbers(CHOICES_LEAST_SCORE)?);
        if let Some(number) = most.iter().find(|most| !(**most >= 1.0 && most.fract() == 0.0 && most.is_finite())) {
            return bad(CHOICES_MOST, format!("has {number}, no number of choices"));
        }
        if let Some(number) = least_score.iter().find(|least| !least.is_finite()) {
            return bad(CHOICES_LEAST_SCORE, format!("has {number}, no score"));
        }
        let most: Vec<usize> = most.into_iter().map(|most| most as usize).collect();
        Self::new(spec, &most, &least_score, device).map(Some)
    }

    /// The declaration of what is taken at most.
    pub(crate) fn spec(&self) -> &MoeSpec {
        &self.spec
    }

    /// Of the experts `[t, N]` that the numbers alone would take, those that lie under no choice below the least score; `scores` are ℓ of the nodes of each
    /// level, `[t, nodes]`.
    pub(crate) fn within(&self, scores: &[Tensor], taken_tn: &Tensor) -> Result<Tensor> {
        let routed = self.spec.routed_experts();
        let mut taken_tr = taken_tn.narrow(1, 0, routed)?.contiguous()?;
        for (scores_tn, (least_11, nodes_n)) in scores.iter().zip(&self.levels) {
            let open_tn = scores_tn.broadcast_ge(least_11)?.to_dtype(DType::F32)?;
            let open_tr = nodes_n.as_ref().map_or(Ok(open_tn.clone()), |nodes_n| open_tn.index_select(nodes_n, 1))?;
            taken_tr = (taken_tr * open_tr)?;
        }
        let always = self.spec.experts() - routed;
        if always == 0 {
            return Ok(taken_tr);
        }
        Ok(Tensor::cat(&[&taken_tr, &taken_tn.narrow(1, routed, always)?.contiguous()?], 1)?)
    }
}
