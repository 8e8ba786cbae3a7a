//! Replicas merged into one MLP for each decision: W̃ = W_base + Σ_n w_n ΔW_n, y = MLP_W̃(x) (SMEAR: Muqeeth et al., 2023; by
//! segment, Lory: Zhong et al., 2024).
//!
//! Σ_n w_n = 1, so that replicas without differences are the base, bit for bit, whatever the weights. Backward:
//! ∂L/∂W_base = ∂L/∂W̃, ∂L/∂ΔW_n = w_n ∂L/∂W̃, ∂L/∂w_n = ⟨∂L/∂W̃, ΔW_n⟩ over the three matrices. An expert with w_n = 0 does
//! not take part: its weight has no gradient there (it is 0), and a difference that no decision chose gets none at all.
//!
//! Each decision makes W̃ anew, forward and backward: 3·d·i values for each expert that takes part. That pays when many rows share it.
//! Some decisions are computed side by side, each with its own W̃ (`ops::runs` bounds how many).

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::glu_mlp::{MlpBackward, MlpProbe, WeightGrads};
use super::linear::rows;
use super::mlp_pass::{Deltas, MlpPass};
use super::replicas::{Detached, MergedPass, Mixture, Replicas};
use super::runs::{Run, Runs};
use super::sum_of_rows::sum_of_rows;
use super::tape::{self, Backward};

/// y = MLP_W̃(x), W̃ by `runs` from the weights w `[decisions, n]`; a run without a decision merges all experts alike, w = 1/n.
/// Differentiable in x, the chosen weights, the base and the differences; `probe` watches `(observer, layer)`.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together; runs that are not all rows one after the other; a decision without
/// weights.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::{self, MlpWeights, Replicas, Run, Silu};
///
/// let matrix = |rows, columns| Tensor::randn(0f32, 1f32, (rows, columns), &Device::Cpu);
/// let (x, gate, up, down) = (matrix(5, 4)?, matrix(6, 4)?, matrix(6, 4)?, matrix(4, 6)?);
/// let base = MlpWeights { gate: &gate, up: &up, down: &down, activation: &Silu };
/// let w = Tensor::new(&[[0.25f32, 0.75]], &Device::Cpu)?;
/// let runs = [Run { rows: 0..5, decision: Some(0) }];
/// let same = ops::merged_mlp(&x, Replicas { base, deltas: &[None, None] }, &w, &runs, None)?;
/// assert_eq!(same.to_vec2::<f32>()?, ops::glu_mlp(&x, base, None, None)?.to_vec2::<f32>()?);
///
/// let learnt = [Some([&gate, &up, &down]), None];
/// let other = ops::merged_mlp(&x, Replicas { base, deltas: &learnt }, &w, &runs, None)?;
/// assert_ne!(same.to_vec2::<f32>()?, other.to_vec2::<f32>()?);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn merged_mlp(
    x: &Tensor,
    replicas: Replicas<'_>,
    w_dn: &Tensor,
    runs: &[Run],
    probe: Option<(Arc<dyn MlpProbe>, usize)>,
) -> Result<Tensor> {
    let x_td = rows(&x.detach())?;
    let weights = w_dn.detach();
    let (decisions, experts) = weights.dims2()?;
    if experts != replicas.deltas.len() {
        candle_core::bail!("merged_mlp: weights of {experts} experts for {}", replicas.deltas.len());
    }
    let t = x_td.dim(0)?;
    let mut grouped = Runs::new("merged_mlp", runs, t, decisions)?;
    let values = replicas.detach()?;
    if values.deltas.iter().all(Option::is_none) {
        // One MLP, whatever the weights.
        grouped = Runs::new("merged_mlp", &[Run { rows: 0..t, decision: None }], t, decisions)?;
    }
    let mut op = MergedMlp { x_td, w_dn: weights, values, runs: grouped, parts: vec![], probe };
    let y = op.forward()?.reshape(x.shape())?;
    let inputs: Vec<&Tensor> = [x, w_dn].into_iter().chain(replicas.inputs()).collect();
    tape::record(&inputs, y, op)
}

struct MergedMlp {
    x_td: Tensor,
    w_dn: Tensor,
    values: Detached,
    runs: Runs,
    /// One a group of runs.
    parts: Vec<(Mixture, MlpPass)>,
    probe: Option<(Arc<dyn MlpProbe>, usize)>,
}

impl MergedMlp {
    fn forward(&mut self) -> Result<Tensor> {
        let weights = self.w_dn.to_dtype(candle_core::DType::F64)?.to_vec2::<f64>()?;
        let experts = self.values.deltas.len();
        let parts = self.runs.each(self.x_td.device(), |_, group| {
            let mixture = match group.decision {
                Some(decision) => self.values.mixture(weights[decision].iter().copied()),
                None => self.values.mixture(vec![1.0 / experts as f64; experts]),
            };
            let matrices = self.values.merged(&mixture)?;
            let pass = MlpPass::new(group.rows(&self.x_td)?, &matrices, self.values.activation, None)?;
            let output = pass.output(&matrices)?;
            Ok(((mixture, pass), output))
        })?;
        let (parts, outputs): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        self.parts = parts;
        self.runs.in_order(&outputs)
    }

    /// Shows all groups' passes to the probe as one.
    fn observe(&self, deltas: &[Deltas]) -> Result<WeightGrads> {
        let Some((probe, layer)) = &self.probe else { return Ok(WeightGrads::All) };
        let whole = |value: fn(&Deltas) -> &Tensor| {
            self.runs.in_order(&deltas.iter().map(|deltas| value(deltas).clone()).collect::<Vec<_>>())
        };
        let h_ti = self.runs.in_order(&self.parts.iter().map(|(_, pass)| pass.h_ti.clone()).collect::<Vec<_>>())?;
        let pass = MlpBackward {
            x_td: &self.x_td,
            h_ti: &h_ti,
            gate_ti: None,
            delta_y_td: &whole(|deltas| &deltas.y_td)?,
            delta_h_ti: &whole(|deltas| &deltas.h_ti)?,
            delta_g_ti: &whole(|deltas| &deltas.g_ti)?,
            delta_u_ti: &whole(|deltas| &deltas.u_ti)?,
            input_matrices: None,
        };
        probe.observe(*layer, &pass)
    }

    /// The inner products ⟨∂L/∂W̃, ΔW_n⟩ at their places in `[decisions, n]`.
    fn weights_gradient(&self, inner: &[Vec<Tensor>]) -> Result<Tensor> {
        let (decisions, experts) = self.w_dn.dims2()?;
        let (mut lists, mut count) = (vec![Vec::new(); decisions * experts], 0u32);
        let mut products = Vec::new();
        for ((group, (mixture, _)), inner) in self.runs.groups().iter().zip(&self.parts).zip(inner) {
            let Some(decision) = group.decision else { continue };
            for ((n, _), product) in mixture.iter().zip(inner) {
                lists[decision * experts + n].push(count);
                products.push(product.clone());
                count += 1;
            }
        }
        if products.is_empty() {
            return self.w_dn.zeros_like();
        }
        let products = Tensor::cat(&products, 0)?.to_dtype(self.w_dn.dtype())?.unsqueeze(1)?;
        sum_of_rows(&products, &lists)?.reshape((decisions, experts))
    }
}

impl Backward for MergedMlp {
    fn name(&self) -> &'static str {
        "merged_mlp"
    }

    fn observed(&self) -> bool {
        self.probe.is_some()
    }

    fn backward(&self, output: &Tensor, grad: &Tensor, needs: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let delta_y_td = rows(grad)?;
        let need = |i: usize| needs.get(i).copied().unwrap_or(false);
        let parts = self.runs.each(self.x_td.device(), |at, group| {
            let (mixture, pass) = &self.parts[at];
            let matrices = self.values.merged(mixture)?;
            let own = pass.deltas(&matrices, group.rows(&delta_y_td)?)?;
            let input = need(0).then(|| MlpPass::input_gradient(&matrices, &own)).transpose()?;
            Ok((own, input))
        })?;
        let (deltas, inputs): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let learners = self.observe(&deltas)?;
        let inputs: Option<Vec<Tensor>> = inputs.into_iter().collect();
        let dx = inputs
            .filter(|_| need(0))
            .map(|inputs| self.runs.in_order(&inputs)?.reshape(output.shape()))
            .transpose()?;
        let passes: Vec<MergedPass<'_>> = self
            .parts
            .iter()
            .zip(&deltas)
            .map(|((mixture, pass), deltas)| MergedPass { mixture, pass, deltas })
            .collect();
        let grads = self.values.gradients(&passes, needs.get(2..).unwrap_or(&[]), &learners, need(1))?;
        let dw = need(1).then(|| self.weights_gradient(&grads.weights)).transpose()?;
        Ok([dx, dw].into_iter().chain(grads.inputs).collect())
    }
}
