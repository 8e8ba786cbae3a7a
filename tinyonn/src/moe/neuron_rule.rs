//! What chooses single neurons of a layer in a routed pass (`neurons = gate | pruned`, DESIGN §1), as a checkpoint has it: calibrated on text to a share
//! of the MLP. A model that was just upcycled takes all.
//!
//! Beside the rule may lie what was made for a routed pass of that rule alone: ΔW_g, ΔW_u, ΔW_d and b, by a repair in closed form or by distillation
//! (DESIGN §4). A routed pass then computes W + ΔW in place of W and adds b; all active, neither has any part.
//!
//! ```
//! use tinyonn::moe::{KEPT, LEAST_HIDDEN, LEAST_INPUT, LEAST_SCORE, MEAN_UP, MOST, NEURON_RULE, REPAIR, REPAIR_BIAS, REPAIR_DOWN, WORTH};
//!
//! let parts = [MEAN_UP, MOST, LEAST_SCORE, LEAST_HIDDEN, LEAST_INPUT, WORTH, KEPT, REPAIR[0], REPAIR[1], REPAIR_DOWN, REPAIR_BIAS];
//! assert!(parts.iter().all(|name| name.starts_with(NEURON_RULE)));
//! ```

use candle_core::{D, DType, Tensor};
use candle_nn::{Init, VarBuilder};

use super::{MoeSpec, Neurons};
use crate::ops::{ByChannel, MlpWeights, NeuronChoice, ReadInputs, Take, host};
use crate::{Error, Result};

/// Where the parts of a rule lie under its layer's `mlp`.
pub const NEURON_RULE: &str = "neurons";
/// ū `[I]`, f32: the mean |u| of each neuron.
pub const MEAN_UP: &str = "neurons.mean_up";
/// How many neurons a token takes at most, `[1]` f32: 2²⁴, the most there may be, is a whole number there.
pub const MOST: &str = "neurons.most";
/// The least score of a neuron that is taken, `[1]` f32.
pub const LEAST_SCORE: &str = "neurons.least_score";
/// The least |h| · v of a neuron whose row of W_d is read, `[1]` f32; 0, which asks nothing, where there is none.
pub const LEAST_HIDDEN: &str = "neurons.least_hidden";
/// The least |x_j| · n_j of a channel of x that W_g reads, n_j the norm of its column, `[1]` f32; 0, which asks nothing, where there is none.
pub const LEAST_INPUT: &str = "neurons.least_input";
/// v `[I]`, f32: what a unit of a neuron's h is worth; ‖w_i‖, the norm of its row of W_d, where there is none.
pub const WORTH: &str = "neurons.worth";
/// The neurons that are kept (a fixed set) or that a gate may choose (its candidates; all, where there is none): 1, and 0 for others, `[I]` f32.
pub const KEPT: &str = "neurons.kept";

/// ΔW_g, ΔW_u and ΔW_d, a row a neuron, `[I, d]` f32: the first two where they learnt, the third wherever there is one of the others or a bias.
pub const REPAIR: [&str; 3] = ["neurons.repair.gate", "neurons.repair.up", "neurons.repair.down"];
/// ΔW_d.
pub const REPAIR_DOWN: &str = REPAIR[2];
/// b `[d]`, f32.
pub const REPAIR_BIAS: &str = "neurons.repair.bias";

/// The rule of one layer.
#[derive(Clone, Debug)]
pub(super) struct NeuronRule {
    by: By,
    repair: Option<Repair>,
    /// What follows from weights that do not move; of weights that learn it is formed in each pass.
    still: Option<Used>,
}

#[derive(Clone, Debug)]
enum By {
    Gate {
        mean_up_i: Tensor,
        worth_i: Option<Tensor>,
        candidates_i: Option<Tensor>,
        take: Take,
        least_hidden: f32,
        least_input: f32,
    },
    Fixed(Tensor),
}

impl By {
    /// Whether W_g reads a part of x.
    const fn reads_a_part(&self) -> bool {
        matches!(self, Self::Gate { least_input, .. } if *least_input > 0.0)
    }
}

/// ΔW and b.
#[derive(Clone, Debug)]
pub(super) struct Repair {
    pub(super) deltas: [Option<Tensor>; 3],
    pub(super) bias_d: Tensor,
}

/// What a routed pass computes with.
#[derive(Clone, Debug)]
pub(super) struct Used {
    /// W_g, W_u, W_d, or W + ΔW, `[I, d]`.
    matrices: [Tensor; 3],
    /// ‖w_i‖ `[I]`, f32, of W_d itself.
    down_norm_i: Tensor,
    /// ‖column j of W_g‖ `[d]`, f32, of W_g itself, where a part of x is read.
    column_norm_d: Option<Tensor>,
    /// b, in the type of W.
    bias_d: Option<Tensor>,
    /// W_g by channels and each neuron's place there ([`ByChannel`]), where a part of x is read and no weight moves.
    by_channel: Option<(Tensor, Option<Tensor>)>,
}

impl NeuronRule {
    /// Reads or initialises the rule that `spec` asks for, of an MLP of `matrices`.
    ///
    /// # Errors
    /// A tensor that is no rule: the number of neurons, the least score or the mean values are no such numbers; a part of a repair.
    pub(super) fn new(spec: &MoeSpec, matrices: [&Tensor; 3], vb: &VarBuilder<'_>) -> Result<Option<Self>> {
        let width = matrices[0].dim(0)?;
        let ones = |name| Ok::<_, Error>(vb.get_with_hints_dtype(width, name, Init::Const(1.0), DType::F32)?.detach());
        let by = match spec.neurons {
            // Whole slices, whose W_d may have a repair all the same.
            Neurons::All if !spec.can_be_calibrated() || !Repair::is_there(vb) => return Ok(None),
            Neurons::All => By::Fixed(every(matrices[0])?),
            Neurons::Pruned => By::Fixed(marks(vb, width)?),
            Neurons::Gate => {
                let one = |name, value: f64| {
                    let tensor = vb.get_with_hints_dtype(1, name, Init::Const(value), DType::F32)?;
                    Ok::<_, Error>(host::in_memory(&tensor)?.first().copied().unwrap_or(f32::NAN))
                };
                let bad = |name, problem: String| {
                    Error::tensor(
                        format!("{}.{name}", vb.prefix()),
                        problem,
                        "calibrate the model again with exp_sparsify",
                    )
                };
                let (most, least_score) = (one(MOST, width as f64)?, one(LEAST_SCORE, 0.0)?);
                if !(least_score >= 0.0 && least_score.is_finite()) {
                    return Err(bad(LEAST_SCORE, format!("is {least_score}, no least score of a neuron")));
                }
                let least = |name, of: &str| {
                    let least = if vb.contains_tensor(name) { one(name, 0.0)? } else { 0.0 };
                    let is_one = least >= 0.0 && least.is_finite();
                    if is_one { Ok(least) } else { Err(bad(name, format!("is {least}, no least size of {of}"))) }
                };
                let (least_hidden, least_input) =
                    (least(LEAST_HIDDEN, "a hidden value")?, least(LEAST_INPUT, "an input")?);
                if !(most >= 1.0 && most.fract() == 0.0 && most.is_finite()) {
                    return Err(bad(MOST, format!("is {most}, no number of neurons")));
                }
                let if_there = |name| vb.contains_tensor(name).then(|| ones(name)).transpose();
                let candidates_i = vb.contains_tensor(KEPT).then(|| marks(vb, width)).transpose()?;
                let worth_i = if_there(WORTH)?;
                let take = Take { most: most as usize, least_score };
                By::Gate { mean_up_i: ones(MEAN_UP)?, worth_i, candidates_i, take, least_hidden, least_input }
            }
        };
        let repair = Repair::read(matrices[0].dims2()?, vb)?;
        let own = repair.iter().flat_map(Repair::parts);
        let moves = matrices.into_iter().chain(own).any(Tensor::is_variable);
        let mut still = (!moves).then(|| Used::new(matrices, repair.as_ref(), by.reads_a_part())).transpose()?;
        if let (By::Gate { candidates_i, .. }, Some(used)) = (&by, &mut still)
            && by.reads_a_part()
        {
            used.keep_channels(candidates_i.as_ref())?;
        }
        Ok(Some(Self { by, repair, still }))
    }

    /// All neurons of an MLP of `matrices`, of whatever experts are taken.
    pub(super) fn all(matrices: [&Tensor; 3]) -> Result<Self> {
        Ok(Self { by: By::Fixed(every(matrices[0])?), repair: None, still: None })
    }

    /// ΔW and b, where there are.
    pub(super) fn repair(&self) -> Option<&Repair> {
        self.repair.as_ref()
    }

    /// What a routed pass over an MLP of `matrices` computes with.
    pub(super) fn used(&self, matrices: [&Tensor; 3]) -> Result<Used> {
        self.still.clone().map_or_else(|| Used::new(matrices, self.repair.as_ref(), self.by.reads_a_part()), Ok)
    }

    /// What it takes.
    pub(super) fn choice<'a>(&'a self, used: &'a Used) -> NeuronChoice<'a> {
        match &self.by {
            By::Gate { mean_up_i, worth_i, candidates_i, take, least_hidden, least_input } => NeuronChoice::Gate {
                mean_up_i,
                worth_i: worth_i.as_ref().unwrap_or(&used.down_norm_i),
                candidates_i: candidates_i.as_ref(),
                take: *take,
                least_hidden: *least_hidden,
                inputs: used.column_norm_d.as_ref().map(|size_d| ReadInputs {
                    size_d,
                    least: *least_input,
                    by_channel: used
                        .by_channel
                        .as_ref()
                        .map(|(gate_dc, place_i)| ByChannel { gate_dc, place_i: place_i.as_ref() }),
                }),
            },
            By::Fixed(kept_i) => NeuronChoice::Fixed(kept_i),
        }
    }
}

/// Which neurons are kept; anything but 0 and 1 is refused, of which prefill and decoding would make different things.
fn marks(vb: &VarBuilder<'_>, width: usize) -> Result<Tensor> {
    let marks_i = vb.get_with_hints_dtype(width, KEPT, Init::Const(1.0), DType::F32)?.detach();
    match host::in_memory(&marks_i)?.iter().find(|mark| **mark != 0.0 && **mark != 1.0) {
        None => Ok(marks_i),
        Some(mark) => {
            let name = format!("{}.{KEPT}", vb.prefix());
            Err(Error::tensor(
                name,
                format!("has {mark} beside 0 and 1"),
                "calibrate the model again with exp_sparsify",
            ))
        }
    }
}

/// Marks of all neurons.
fn every(gate_id: &Tensor) -> Result<Tensor> {
    Ok(Tensor::ones(gate_id.dim(0)?, DType::F32, gate_id.device())?)
}

impl Repair {
    /// Whether a layer has any part of one.
    fn is_there(vb: &VarBuilder<'_>) -> bool {
        REPAIR.iter().chain([&REPAIR_BIAS]).any(|name| vb.contains_tensor(name))
    }

    fn read((width, d): (usize, usize), vb: &VarBuilder<'_>) -> Result<Option<Self>> {
        if !Self::is_there(vb) {
            return Ok(None);
        }
        if let Some(missing) = [REPAIR_DOWN, REPAIR_BIAS].into_iter().find(|name| !vb.contains_tensor(name)) {
            let name = format!("{}.{missing}", vb.prefix());
            return Err(Error::tensor(
                name,
                "is missing, and other parts of the repair are there",
                "make the model again",
            ));
        }
        let get = |shape: &[usize], name: &str| vb.get_with_hints_dtype(shape, name, Init::Const(0.0), DType::F32);
        let delta = |name: &str| vb.contains_tensor(name).then(|| get(&[width, d], name)).transpose();
        let [gate, up, down] = REPAIR;
        Ok(Some(Self { deltas: [delta(gate)?, delta(up)?, delta(down)?], bias_d: get(&[d], REPAIR_BIAS)? }))
    }

    /// All that there is.
    pub(super) fn parts(&self) -> impl Iterator<Item = &Tensor> {
        self.deltas.iter().flatten().chain([&self.bias_d])
    }
}

impl Used {
    fn new(matrices: [&Tensor; 3], repair: Option<&Repair>, reads_a_part: bool) -> Result<Self> {
        let down_norm_i = matrices[2].detach().to_dtype(DType::F32)?.sqr()?.sum(D::Minus1)?.sqrt()?;
        let column_norm_d =
            if reads_a_part { Some(matrices[0].detach().to_dtype(DType::F32)?.sqr()?.sum(0)?.sqrt()?) } else { None };
        let [gate, up, down] = matrices.map(Tensor::detach);
        let Some(repair) = repair else {
            return Ok(Self { matrices: [gate, up, down], down_norm_i, column_norm_d, bias_d: None, by_channel: None });
        };
        let sum = |w_id: Tensor, delta_id: &Option<Tensor>| match delta_id {
            Some(delta_id) => Ok((w_id.to_dtype(DType::F32)? + delta_id.detach())?.to_dtype(w_id.dtype())?),
            None => Ok::<_, Error>(w_id),
        };
        let bias_d = Some(repair.bias_d.detach().to_dtype(gate.dtype())?);
        let [of_gate, of_up, of_down] = &repair.deltas;
        Ok(Self {
            matrices: [sum(gate, of_gate)?, sum(up, of_up)?, sum(down, of_down)?],
            down_norm_i,
            column_norm_d,
            bias_d,
            by_channel: None,
        })
    }

    /// Lays W_g out by channels, of which a few tokens then read those that they need.
    fn keep_channels(&mut self, candidates_i: Option<&Tensor>) -> Result<()> {
        let gate_id = &self.matrices[0];
        let (device, is_cpu) = (gate_id.device(), gate_id.device().is_cpu());
        if is_cpu && gate_id.dtype() != DType::F32 {
            return Ok(());
        }
        let (mut gate_cd, mut place_i) = (gate_id.clone(), None);
        if let Some(candidates_i) = candidates_i {
            let (mut own, mut places) = (Vec::new(), Vec::new());
            for (mark, at) in host::in_memory(candidates_i)?.iter().zip(0u32..) {
                places.push(if *mark == 0.0 { u32::MAX } else { own.len() as u32 });
                own.extend((*mark != 0.0).then_some(at));
            }
            if own.is_empty() {
                return Ok(());
            }
            gate_cd = gate_id.index_select(&Tensor::new(own, device)?, 0)?;
            place_i = (!is_cpu).then(|| Tensor::new(places, device)).transpose()?;
        }
        let mut gate_dc = gate_cd.t()?;
        if !is_cpu {
            // Launches read rows in pieces of sixteen bytes.
            let columns = gate_dc.dim(1)?;
            gate_dc = gate_dc.pad_with_zeros(1, 0, columns.next_multiple_of(8) - columns)?;
        }
        self.by_channel = Some((gate_dc.contiguous()?, place_i));
        Ok(())
    }

    /// The matrices, and what stands between them in `weights`.
    pub(super) fn weights(&self, weights: MlpWeights<'_>) -> MlpWeights<'_> {
        let [gate, up, down] = &self.matrices;
        MlpWeights { gate, up, down, activation: weights.activation }
    }

    /// b.
    pub(super) fn bias_d(&self) -> Option<&Tensor> {
        self.bias_d.as_ref()
    }
}
