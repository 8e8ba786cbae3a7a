//! The gated MLP of [`glu_mlp`](super::glu_mlp) where runs of rows share their gates: a small dense MLP for each decision.
//!
//! The neurons of a decision's chosen experts (gate ≠ 0) are gathered once, in ascending order, and all rows under it go
//! through that MLP of width i′ ≤ i at the full efficiency of matrix products: y = W_d′ (h′ ⊙ c′). Rows without a decision take
//! the whole MLP without gates. With the gates spread over rows, values and gradients equal `glu_mlp`'s but for the order of
//! sums (about 1e-6 of their norm in f32), except that a gate of zero gets no gradient (0). A decision that chooses every
//! expert at gate 1 is the dense MLP over its rows, on the same matrices.
//!
//! A form for main memory: the experts of each decision are read to gather them, which on a GPU would wait for it.

use candle_core::{Result, Tensor};

use super::glu_mlp::{MlpGate, MlpWeights, SlicedMlp};
use super::lanes;
use super::linear::rows;
use super::mlp_values::MlpBackward;
use super::mlp_values::{Deltas as PartDeltas, MlpValues, multiply_adds};
use super::runs::{Group, RowRun, Runs};
use super::sum_of_rows::{NOTHING, sum_of_rows};
use super::{Grads, Learners};

/// What the backward needs.
///
/// ```
/// use candle_core::Tensor;
/// use tinyonn::ops::shared_mlp::{Deltas, Saved};
/// use tinyonn::ops::{SlicedMlp as _};
///
/// fn gate_gradient(saved: &Saved, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
///     let deltas: Deltas = saved.deltas(dy)?;
///     saved.gate_gradient(&deltas) // of each decision
/// }
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug)]
pub struct Saved {
    x_td: Tensor,
    gate_dn: Tensor,
    /// The expert of each neuron.
    owners: Vec<u32>,
    runs: Runs,
    /// One a group of runs.
    parts: Vec<DecisionMlp>,
}

/// What the backward pass sends to the inner values of each decision's MLP.
#[derive(Debug)]
pub struct Deltas {
    y_td: Tensor,
    parts: Vec<Option<PartDeltas>>,
}

/// y = W_d (h ⊙ c), c by `runs` from `gate`, whose `gate_tn` is `[decisions, n]`.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together; runs that are not all rows one after the other; a decision or an
/// expert without gates.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::{MlpGate, MlpWeights, RowRun, Silu, shared_mlp};
///
/// let matrix = |rows, columns| Tensor::randn(0f32, 1f32, (rows, columns), &Device::Cpu);
/// let (x, gate, up, down) = (matrix(5, 4)?, matrix(6, 4)?, matrix(6, 4)?, matrix(6, 4)?);
/// let weights = MlpWeights { gate: &gate, up: &up, down: &down, activation: &Silu };
/// let gate_tn = Tensor::new(&[[1f32, 0.0, 0.0], [0.0, 0.5, 0.5]], &Device::Cpu)?; // two decisions over three experts
/// let neuron_expert = Tensor::new(&[0u32, 1, 2, 0, 1, 2], &Device::Cpu)?;
/// let gate = MlpGate { gate_tn: &gate_tn, neuron_expert: &neuron_expert };
/// let run = |rows, decision| RowRun { rows, decision };
/// let runs = [run(0..1, None), run(1..4, Some(1)), run(4..5, Some(0))];
/// let (y, _) = shared_mlp::forward(&x, weights, gate, &runs)?;
/// assert_eq!(y.dims(), [5, 4]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn forward(x: &Tensor, weights: MlpWeights<'_>, gate: MlpGate<'_>, runs: &[RowRun]) -> Result<(Tensor, Saved)> {
    let x_td = rows(x)?;
    let gate_dn = gate.gate_tn.detach().contiguous()?;
    let (decisions, experts) = gate_dn.dims2()?;
    let runs = Runs::new("shared_mlp", runs, x_td.dim(0)?, decisions)?;
    let owners = lanes::with_ids(&gate.neuron_expert.contiguous()?, <[u32]>::to_vec)?;
    if let Some(owner) = owners.iter().find(|owner| **owner as usize >= experts) {
        candle_core::bail!("shared_mlp: a neuron is of expert {owner} of {experts}");
    }
    let mut saved = Saved { x_td, gate_dn, owners, runs, parts: vec![] };
    let parts = saved.runs.each(saved.x_td.device(), |_, group| {
        let part = saved.part(weights, group)?;
        let output = match &part.values {
            Some(values) => values.output(&part.matrices)?,
            None => Tensor::zeros((group.len(), saved.x_td.dim(1)?), saved.x_td.dtype(), saved.x_td.device())?,
        };
        Ok((part, output))
    })?;
    let (parts, outputs): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    saved.parts = parts;
    Ok((saved.runs.in_order(&outputs)?.reshape(x.shape())?, saved))
}

/// A decision's own MLP.
#[derive(Debug)]
struct DecisionMlp {
    /// Its neurons, ascending.
    neurons: Vec<u32>,
    /// Their rows.
    matrices: [Tensor; 3],
    /// `None`: it has no neuron.
    values: Option<MlpValues>,
}

impl Saved {
    fn part(&self, weights: MlpWeights<'_>, group: &Group) -> Result<DecisionMlp> {
        let matrices = weights.matrices();
        let x_td = group.rows(&self.x_td)?;
        let Some(decision) = group.decision else {
            let values = Some(MlpValues::new(x_td, &matrices, weights.activation, None)?);
            return Ok(DecisionMlp { neurons: (0..self.owners.len() as u32).collect(), matrices, values });
        };
        let gate_n = self.gate_dn.get(decision)?;
        let neurons: Vec<u32> = lanes::with_values(&gate_n.ne(0f64)?, |chosen: &[u8]| {
            let taken = (0..).zip(&self.owners).filter(|(_, owner)| chosen[**owner as usize] != 0);
            taken.map(|(neuron, _)| neuron).collect()
        })?;
        if neurons.is_empty() {
            return Ok(DecisionMlp { neurons, matrices, values: None });
        }
        let device = x_td.device();
        let owners: Vec<u32> = neurons.iter().map(|i| self.owners[*i as usize]).collect();
        let gate_i = gate_n.to_dtype(x_td.dtype())?.index_select(&Tensor::new(owners, device)?, 0)?;
        let matrices = if neurons.len() == self.owners.len() {
            matrices
        } else {
            let index = Tensor::new(neurons.as_slice(), device)?;
            let [gate_id, up_id, down_id] = matrices.map(|matrix_id| matrix_id.index_select(&index, 0));
            [gate_id?, up_id?, down_id?]
        };
        let values = Some(MlpValues::new(x_td, &matrices, weights.activation, Some(gate_i.unsqueeze(0)?))?);
        Ok(DecisionMlp { neurons, matrices, values })
    }

    /// The parts that have neurons, with their deltas.
    fn computed<'a>(
        &'a self,
        deltas: &'a Deltas,
    ) -> impl Iterator<Item = (&'a DecisionMlp, &'a MlpValues, &'a PartDeltas, &'a Group)> {
        let parts = self.parts.iter().zip(&deltas.parts).zip(self.runs.groups());
        parts.filter_map(|((part, deltas), group)| Some((part, part.values.as_ref()?, deltas.as_ref()?, group)))
    }

    /// The gradient of a matrix, a row a neuron: the sum over the decisions that chose it; and the multiply-adds.
    fn weight_gradient(&self, which: usize, deltas: &Deltas, learns: &[bool]) -> Result<(Tensor, u64)> {
        let (mut lists, mut products, mut count) = (vec![Vec::new(); self.owners.len()], Vec::new(), 0u32);
        let mut done = 0;
        for (part, values, deltas, _) in self.computed(deltas) {
            let own = (0..).zip(&part.neurons).filter(|(_, neuron)| learns[**neuron as usize]);
            let columns: Vec<u32> = own.map(|(at, _)| at).collect();
            if columns.is_empty() {
                continue;
            }
            for at in &columns {
                lists[part.neurons[*at as usize] as usize].push(count);
                count += 1;
            }
            let (v_ti, a_td) = values.factors(which, deltas);
            let v_tm = if columns.len() == part.neurons.len() {
                v_ti.clone()
            } else {
                v_ti.index_select(&Tensor::new(columns, self.x_td.device())?, 1)?
            };
            products.push(v_tm.t()?.matmul(a_td)?);
            done += multiply_adds(&v_tm, a_td)?;
        }
        let gradient = match products.as_slice() {
            [] => Tensor::zeros((lists.len(), self.x_td.dim(1)?), self.x_td.dtype(), self.x_td.device())?,
            [all] if all.dim(0)? == lists.len() => all.clone(),
            _ => sum_of_rows(&Tensor::cat(&products, 0)?, &lists)?,
        };
        Ok((gradient, done))
    }

    /// A value of every part in its neurons' columns `[t, i]`; zero elsewhere.
    fn wide(&self, deltas: &Deltas, value: impl Fn(&PartDeltas) -> Tensor) -> Result<Tensor> {
        let width = self.owners.len();
        let parts = self.parts.iter().zip(&deltas.parts).zip(self.runs.groups()).map(|((part, deltas), group)| {
            let Some(deltas) = deltas else {
                return Tensor::zeros((group.len(), width), self.x_td.dtype(), self.x_td.device());
            };
            let mut column_of = vec![NOTHING; width];
            (0..).zip(&part.neurons).for_each(|(at, neuron)| column_of[*neuron as usize] = at);
            value(deltas).index_select(&Tensor::new(column_of, self.x_td.device())?, 1)
        });
        self.runs.in_order(&parts.collect::<Result<Vec<_>>>()?)
    }
}

impl SlicedMlp for Saved {
    type Deltas = Deltas;

    fn deltas(&self, dy: &Tensor) -> Result<Deltas> {
        let y_td = rows(dy)?;
        let parts = self.runs.each(self.x_td.device(), |at, group| {
            let part = &self.parts[at];
            part.values.as_ref().map(|values| values.deltas(&part.matrices, group.rows(&y_td)?)).transpose()
        })?;
        Ok(Deltas { y_td, parts })
    }

    fn input_gradient(&self, deltas: &Deltas) -> Result<Tensor> {
        let parts = self.runs.each(self.x_td.device(), |at, group| match &deltas.parts[at] {
            Some(deltas) => MlpValues::input_gradient(&self.parts[at].matrices, deltas),
            None => group.rows(&deltas.y_td)?.zeros_like(),
        })?;
        self.runs.in_order(&parts)
    }

    fn weight_gradients(
        &self,
        weights: MlpWeights<'_>,
        deltas: &Deltas,
        learners: &Learners,
        grads: &mut Grads,
    ) -> Result<u64> {
        let learns = match learners {
            Learners::All => vec![true; self.owners.len()],
            Learners::Neurons(neurons) => neurons.flags(self.owners.len())?,
        };
        let mut all = 0;
        for (which, weight) in [weights.gate, weights.up, weights.down].into_iter().enumerate() {
            grads.add_with(weight, || {
                let (gradient, done) = self.weight_gradient(which, deltas, &learns)?;
                all += done;
                Ok(gradient)
            })?;
        }
        Ok(all)
    }

    fn gate_gradient(&self, deltas: &Deltas) -> Result<Option<Tensor>> {
        let (decisions, experts) = self.gate_dn.dims2()?;
        let (mut lists, mut sums, mut count) = (vec![Vec::new(); decisions * experts], Vec::new(), 0u32);
        for (part, _, deltas, group) in self.computed(deltas) {
            let Some(decision) = group.decision else { continue };
            sums.push(MlpValues::gate_products(deltas)?.sum(0)?);
            for neuron in &part.neurons {
                lists[decision * experts + self.owners[*neuron as usize] as usize].push(count);
                count += 1;
            }
        }
        if sums.is_empty() {
            return self.gate_dn.zeros_like().map(Some);
        }
        let sums = Tensor::cat(&sums, 0)?.to_dtype(self.gate_dn.dtype())?.unsqueeze(1)?;
        sum_of_rows(&sums, &lists)?.reshape((decisions, experts)).map(Some)
    }

    fn seen<R>(&self, deltas: &Deltas, see: impl FnOnce(&MlpBackward<'_>) -> Result<R>) -> Result<R> {
        let h_ti = self.wide(deltas, |deltas| deltas.hidden_ti.clone())?;
        let delta_h_ti = self.wide(deltas, |deltas| deltas.h_ti.clone())?;
        let delta_g_ti = self.wide(deltas, |deltas| deltas.g_ti.clone())?;
        let delta_u_ti = self.wide(deltas, |deltas| deltas.u_ti.clone())?;
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
        see(&MlpBackward {
            x_td: &self.x_td,
            h_ti: &h_ti,
            gate_ti: Some(&gate_ti),
            delta_y_td: &deltas.y_td,
            delta_h_ti: &delta_h_ti,
            delta_g_ti: &delta_g_ti,
            delta_u_ti: &delta_u_ti,
            input_matrices: None,
            reads_a_part: false,
        })
    }
}
