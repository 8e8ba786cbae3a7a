//! What chooses single neurons of a layer in a routed pass (`neurons = gate | pruned`, DESIGN §1), as a checkpoint has it: calibrated on text to a share
//! of the MLP. A model that was just upcycled takes all.

use candle_core::{D, DType, Tensor};
use candle_nn::{Init, VarBuilder};

use super::{MoeSpec, Neurons};
use crate::Result;
use crate::ops::{NeuronChoice, Take, host};

/// Where the parts of a rule lie under its layer's `mlp`.
pub const NEURON_RULE: &str = "neurons";
/// ū `[I]`, f32: the mean |u| of each neuron.
pub const MEAN_UP: &str = "neurons.mean_up";
/// How many neurons a token takes at most, `[1]` f32: 2²⁴, the most there may be, is a whole number there.
pub const MOST: &str = "neurons.most";
/// The least score of a neuron that is taken, `[1]` f32.
pub const LEAST_SCORE: &str = "neurons.least_score";
/// Of a fixed set: 1 for the neurons that are kept, 0 for others, `[I]` f32.
pub const KEPT: &str = "neurons.kept";

/// ΔW `[I, d]`, f32, of a repair (DESIGN §4), where there is one: what W_d of the neurons that are taken becomes, a row a neuron.
pub const REPAIR_DOWN: &str = "neurons.repair.down";
/// b `[d]`, f32, of a repair.
pub const REPAIR_BIAS: &str = "neurons.repair.bias";

/// The rule of one layer.
#[derive(Clone, Debug)]
pub(super) struct NeuronRule {
    by: By,
    /// W_d + ΔW and b, where the layer was repaired.
    repaired: Option<[Tensor; 2]>,
}

#[derive(Clone, Debug)]
enum By {
    Gate { mean_up_i: Tensor, down_norm_i: Tensor, take: Take },
    Fixed(Tensor),
}

impl NeuronRule {
    /// Reads or initialises the rule that `spec` asks for; `down_id` is W_d, a row a neuron.
    pub(super) fn new(spec: &MoeSpec, down_id: &Tensor, vb: &VarBuilder<'_>) -> Result<Option<Self>> {
        let (width, d) = down_id.dims2()?;
        let ones = |name| vb.get_with_hints_dtype(width, name, Init::Const(1.0), DType::F32);
        let by = match spec.neurons {
            Neurons::All => return Ok(None),
            Neurons::Pruned => By::Fixed(ones(KEPT)?),
            Neurons::Gate => {
                let most = vb.get_with_hints_dtype(1, MOST, Init::Const(width as f64), DType::F32)?;
                let least = vb.get_with_hints_dtype(1, LEAST_SCORE, Init::Const(0.0), DType::F32)?;
                let first =
                    |tensor: &Tensor| Ok::<_, crate::Error>(host::in_memory(tensor)?.first().copied().unwrap_or(0.0));
                let take = Take { most: first(&most)? as usize, least_score: first(&least)? };
                let down_norm_i = down_id.detach().to_dtype(DType::F32)?.sqr()?.sum(D::Minus1)?.sqrt()?;
                By::Gate { mean_up_i: ones(MEAN_UP)?.detach(), down_norm_i, take }
            }
        };
        let repaired = if vb.contains_tensor(REPAIR_DOWN) {
            let delta_id = vb.get_with_hints_dtype((width, d), REPAIR_DOWN, Init::Const(0.0), DType::F32)?;
            let bias_d = vb.get_with_hints_dtype(d, REPAIR_BIAS, Init::Const(0.0), DType::F32)?;
            let sum_id = (down_id.detach().to_dtype(DType::F32)? + delta_id.detach())?;
            Some([sum_id.to_dtype(down_id.dtype())?, bias_d.detach().to_dtype(down_id.dtype())?])
        } else {
            None
        };
        Ok(Some(Self { by, repaired }))
    }

    /// W_d + ΔW `[I, d]` and b `[d]`, where the layer was repaired.
    pub(super) fn repaired(&self) -> Option<&[Tensor; 2]> {
        self.repaired.as_ref()
    }

    pub(super) fn choice(&self) -> NeuronChoice<'_> {
        match &self.by {
            By::Gate { mean_up_i, down_norm_i, take } => NeuronChoice::Gate { mean_up_i, down_norm_i, take: *take },
            By::Fixed(kept_i) => NeuronChoice::Fixed(kept_i),
        }
    }
}
