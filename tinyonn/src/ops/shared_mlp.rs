//! The gated MLP of [`glu_mlp`](super::glu_mlp()) where runs of rows share their gates: a small dense MLP for each decision.
//!
//! The neurons of a decision's chosen experts (gate ≠ 0) are gathered once, in ascending order, and all rows under it go
//! through that MLP of width i′ ≤ i at the full efficiency of matrix products: y = W_d′ (h′ ⊙ c′). Rows without a decision take
//! the whole MLP without gates. With the gates spread over rows, values and gradients equal `glu_mlp`'s but for the order of
//! sums (about 1e-6 of their norm in f32), except that a gate of zero gets no gradient (0). A decision that chooses every
//! expert at gate 1 is the dense MLP over its rows, on the same matrices.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::glu_mlp::{MlpBackward, MlpGate, MlpProbe, MlpWeights, WeightGrads};
use super::linear::rows;
use super::mlp_pass::{Deltas, MlpPass};
use super::runs::{Group, Run, Runs};
use super::sum_of_rows::{NOTHING, sum_of_rows};
use super::tape::{self, Backward};

/// y = W_d (h ⊙ c), c by `runs` from `gate`, whose `gate_tn` is `[decisions, n]`. Differentiable in x, the chosen gates and
/// the three matrices; `probe` watches `(observer, layer)` and sees zeros for what was not computed.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together; runs that are not all rows one after the other; a decision or an
/// expert without gates.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::{self, MlpGate, MlpWeights, Run, Silu};
///
/// let matrix = |rows, columns| Tensor::randn(0f32, 1f32, (rows, columns), &Device::Cpu);
/// let (x, gate, up, down) = (matrix(5, 4)?, matrix(6, 4)?, matrix(6, 4)?, matrix(4, 6)?);
/// let weights = MlpWeights { gate: &gate, up: &up, down: &down, activation: &Silu };
/// let gate_tn = Tensor::new(&[[1f32, 0.0, 0.0], [0.0, 0.5, 0.5]], &Device::Cpu)?; // two decisions over three experts
/// let neuron_expert = Tensor::new(&[0u32, 1, 2, 0, 1, 2], &Device::Cpu)?;
/// let gate = MlpGate { gate_tn: &gate_tn, neuron_expert: &neuron_expert };
/// let run = |rows, decision| Run { rows, decision };
/// let y = ops::shared_mlp(&x, weights, gate, &[run(0..1, None), run(1..4, Some(1)), run(4..5, Some(0))], None)?;
/// assert_eq!(y.dims(), [5, 4]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn shared_mlp(
    x: &Tensor,
    weights: MlpWeights<'_>,
    gate: MlpGate<'_>,
    runs: &[Run],
    probe: Option<(Arc<dyn MlpProbe>, usize)>,
) -> Result<Tensor> {
    let x_td = rows(&x.detach())?;
    let gate_dn = gate.gate_tn.detach().contiguous()?;
    let (decisions, experts) = gate_dn.dims2()?;
    let runs = Runs::new("shared_mlp", runs, x_td.dim(0)?, decisions)?;
    let owners = gate.neuron_expert.to_vec1::<u32>()?;
    if let Some(owner) = owners.iter().find(|owner| **owner as usize >= experts) {
        candle_core::bail!("shared_mlp: a neuron is of expert {owner} of {experts}");
    }
    let mut op = SharedMlp { x_td, gate_dn, owners, runs, parts: vec![], probe };
    let parts = op.runs.each(op.x_td.device(), |_, group| {
        let part = op.part(weights, group)?;
        let output = match &part.pass {
            Some(pass) => pass.output(&part.matrices)?,
            None => Tensor::zeros((group.len(), op.x_td.dim(1)?), op.x_td.dtype(), op.x_td.device())?,
        };
        Ok((part, output))
    })?;
    let (parts, outputs): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    op.parts = parts;
    let y = op.runs.in_order(&outputs)?.reshape(x.shape())?;
    tape::record(&[x, weights.gate, weights.up, weights.down, gate.gate_tn], y, op)
}

struct SharedMlp {
    x_td: Tensor,
    gate_dn: Tensor,
    /// The expert of each neuron.
    owners: Vec<u32>,
    runs: Runs,
    /// One a group of runs.
    parts: Vec<Part>,
    probe: Option<(Arc<dyn MlpProbe>, usize)>,
}

/// A decision's own MLP.
struct Part {
    /// Its neurons, ascending.
    neurons: Vec<u32>,
    /// Their rows and columns.
    matrices: [Tensor; 3],
    /// `None`: it has no neuron.
    pass: Option<MlpPass>,
}

impl SharedMlp {
    fn part(&self, weights: MlpWeights<'_>, group: &Group) -> Result<Part> {
        let matrices = [weights.gate, weights.up, weights.down].map(Tensor::detach);
        let x_td = group.rows(&self.x_td)?;
        let Some(decision) = group.decision else {
            let pass = Some(MlpPass::new(x_td, &matrices, weights.activation, None)?);
            return Ok(Part { neurons: (0..self.owners.len() as u32).collect(), matrices, pass });
        };
        let gate_n = self.gate_dn.get(decision)?;
        let chosen = gate_n.ne(0f64)?.to_vec1::<u8>()?;
        let neurons: Vec<u32> =
            (0..).zip(&self.owners).filter(|(_, owner)| chosen[**owner as usize] != 0).map(|(i, _)| i).collect();
        if neurons.is_empty() {
            return Ok(Part { neurons, matrices, pass: None });
        }
        let device = x_td.device();
        let owners: Vec<u32> = neurons.iter().map(|i| self.owners[*i as usize]).collect();
        let gate_i = gate_n.to_dtype(x_td.dtype())?.index_select(&Tensor::new(owners, device)?, 0)?;
        let matrices = if neurons.len() == self.owners.len() {
            matrices
        } else {
            let index = Tensor::new(neurons.as_slice(), device)?;
            let [gate_id, up_id, down_di] = matrices;
            [gate_id.index_select(&index, 0)?, up_id.index_select(&index, 0)?, down_di.index_select(&index, 1)?]
        };
        let pass = Some(MlpPass::new(x_td, &matrices, weights.activation, Some(gate_i.unsqueeze(0)?))?);
        Ok(Part { neurons, matrices, pass })
    }
}

impl Backward for SharedMlp {
    fn name(&self) -> &'static str {
        "shared_mlp"
    }

    fn observed(&self) -> bool {
        self.probe.is_some()
    }

    fn backward(&self, output: &Tensor, grad: &Tensor, needs: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let delta_y_td = rows(grad)?;
        let device = self.x_td.device();
        let deltas = self.runs.each(device, |at, group| {
            let part = &self.parts[at];
            part.pass.as_ref().map(|pass| pass.deltas(&part.matrices, group.rows(&delta_y_td)?)).transpose()
        })?;
        let learners = self.observe(&deltas, &delta_y_td)?;
        let need = |i: usize| needs.get(i).copied().unwrap_or(false);
        let dx = || {
            let parts = self.runs.each(device, |at, group| match &deltas[at] {
                Some(deltas) => MlpPass::input_gradient(&self.parts[at].matrices, deltas),
                None => group.rows(&delta_y_td)?.zeros_like(),
            })?;
            self.runs.in_order(&parts)?.reshape(output.shape())
        };
        let weight = |which| need(1 + which).then(|| self.weight_gradient(which, &deltas, &learners)).transpose();
        Ok(vec![
            need(0).then(dx).transpose()?,
            weight(0)?,
            weight(1)?,
            weight(2)?.map(|grad_id| grad_id.t()?.contiguous()).transpose()?,
            need(4).then(|| self.gate_gradient(&deltas)).transpose()?,
        ])
    }
}

impl SharedMlp {
    /// The parts that have neurons, with their deltas.
    fn computed<'a>(
        &'a self,
        deltas: &'a [Option<Deltas>],
    ) -> impl Iterator<Item = (&'a Part, &'a MlpPass, &'a Deltas, &'a Group)> {
        let parts = self.parts.iter().zip(deltas).zip(self.runs.groups());
        parts.filter_map(|((part, deltas), group)| Some((part, part.pass.as_ref()?, deltas.as_ref()?, group)))
    }

    /// The gradient of a matrix, a row a neuron: the sum over the decisions that chose it.
    fn weight_gradient(&self, which: usize, deltas: &[Option<Deltas>], learners: &WeightGrads) -> Result<Tensor> {
        let (mut lists, mut products, mut count) = (vec![Vec::new(); self.owners.len()], Vec::new(), 0u32);
        for (part, pass, deltas, _) in self.computed(deltas) {
            let learns = |neuron: &u32| match learners {
                WeightGrads::All => true,
                WeightGrads::Neurons(learners) => learners.binary_search(neuron).is_ok(),
            };
            let columns: Vec<u32> = (0..).zip(&part.neurons).filter(|(_, i)| learns(i)).map(|(at, _)| at).collect();
            if columns.is_empty() {
                continue;
            }
            for at in &columns {
                lists[part.neurons[*at as usize] as usize].push(count);
                count += 1;
            }
            let all = columns.len() == part.neurons.len();
            let columns = if all { None } else { Some(Tensor::new(columns, self.x_td.device())?) };
            products.push(pass.neuron_gradient(which, deltas, columns.as_ref())?);
        }
        match products.as_slice() {
            [] => Tensor::zeros((lists.len(), self.x_td.dim(1)?), self.x_td.dtype(), self.x_td.device()),
            [all] if all.dim(0)? == lists.len() => Ok(all.clone()),
            _ => sum_of_rows(&Tensor::cat(&products, 0)?, &lists),
        }
    }

    /// ∂L/∂w[d, n] = Σ over the decision's rows and the expert's neurons of δ_h ⊙ h.
    fn gate_gradient(&self, deltas: &[Option<Deltas>]) -> Result<Tensor> {
        let (decisions, experts) = self.gate_dn.dims2()?;
        let (mut lists, mut sums, mut count) = (vec![Vec::new(); decisions * experts], Vec::new(), 0u32);
        for (part, pass, deltas, group) in self.computed(deltas) {
            let Some(decision) = group.decision else { continue };
            sums.push(pass.gate_products(deltas)?.sum(0)?);
            for neuron in &part.neurons {
                lists[decision * experts + self.owners[*neuron as usize] as usize].push(count);
                count += 1;
            }
        }
        if sums.is_empty() {
            return self.gate_dn.zeros_like();
        }
        let sums = Tensor::cat(&sums, 0)?.to_dtype(self.gate_dn.dtype())?.unsqueeze(1)?;
        sum_of_rows(&sums, &lists)?.reshape((decisions, experts))
    }

    /// Shows the pass to the probe, at full width.
    fn observe(&self, deltas: &[Option<Deltas>], delta_y_td: &Tensor) -> Result<WeightGrads> {
        let Some((probe, layer)) = &self.probe else { return Ok(WeightGrads::All) };
        let h_ti = self.wide(deltas, |pass, _| pass.h_ti.clone())?;
        let delta_h_ti = self.wide(deltas, |_, deltas| deltas.h_ti.clone())?;
        let delta_g_ti = self.wide(deltas, |_, deltas| deltas.g_ti.clone())?;
        let delta_u_ti = self.wide(deltas, |_, deltas| deltas.u_ti.clone())?;
        let gate = |group: &Group| {
            let shape = (group.len(), self.owners.len());
            let (dtype, device) = (self.x_td.dtype(), self.x_td.device());
            match group.decision {
                Some(decision) => {
                    let owners = Tensor::new(self.owners.as_slice(), device)?;
                    let gate_i = self.gate_dn.get(decision)?.to_dtype(dtype)?.index_select(&owners, 0)?;
                    gate_i.unsqueeze(0)?.broadcast_as(shape)?.contiguous()
                }
                None => Tensor::ones(shape, dtype, device),
            }
        };
        let gate_ti = self.runs.in_order(&self.runs.groups().iter().map(gate).collect::<Result<Vec<_>>>()?)?;
        let pass = MlpBackward {
            x_td: &self.x_td,
            h_ti: &h_ti,
            gate_ti: Some(&gate_ti),
            delta_y_td,
            delta_h_ti: &delta_h_ti,
            delta_g_ti: &delta_g_ti,
            delta_u_ti: &delta_u_ti,
            input_matrices: None,
        };
        probe.observe(*layer, &pass)
    }

    /// A value of every part in its neurons' columns `[t, i]`; zero elsewhere.
    fn wide(&self, deltas: &[Option<Deltas>], value: impl Fn(&MlpPass, &Deltas) -> Tensor) -> Result<Tensor> {
        let width = self.owners.len();
        let parts = self.parts.iter().zip(deltas).zip(self.runs.groups()).map(|((part, deltas), group)| {
            let (Some(pass), Some(deltas)) = (&part.pass, deltas) else {
                return Tensor::zeros((group.len(), width), self.x_td.dtype(), self.x_td.device());
            };
            let mut column_of = vec![NOTHING; width];
            (0..).zip(&part.neurons).for_each(|(at, neuron)| column_of[*neuron as usize] = at);
            value(pass, deltas).index_select(&Tensor::new(column_of, self.x_td.device())?, 1)
        });
        self.runs.in_order(&parts.collect::<Result<Vec<_>>>()?)
    }
}
