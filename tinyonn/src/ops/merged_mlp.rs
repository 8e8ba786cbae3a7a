//! Replicas merged into one MLP for each decision: W̃ = W_base + Σ_n w_n ΔW_n, y = MLP_W̃(x) (SMEAR: Muqeeth et al., 2023; by
//! segment, Lory: Zhong et al., 2024).
//!
//! Σ_n w_n = 1, so that replicas without differences are the base, bit for bit, whatever the weights. Backward:
//! ∂L/∂W_base = ∂L/∂W̃, ∂L/∂ΔW_n = w_n ∂L/∂W̃, ∂L/∂w_n = ⟨∂L/∂W̃, ΔW_n⟩ over the three matrices. An expert with w_n = 0 does
//! not take part: its weight has no gradient there (it is 0), and a difference that no decision chose gets none at all.
//!
//! Each decision makes W̃ anew, forward and backward: 3·d·i values for each expert that takes part. That pays when many rows share it.
//! Some decisions are computed side by side, each with its own W̃ (`ops::runs` bounds how many).

use candle_core::{Result, Tensor};

use super::Grads;
use super::linear::rows;
use super::mlp_values::{Deltas as PartDeltas, MlpValues};
use super::replicas::{Detached, Merged, Mixture, Replicas};
use super::runs::{RowRun, Runs};
use super::sum_of_rows::sum_of_rows;

/// What the backward needs.
///
/// ```
/// use candle_core::Tensor;
/// use tinyonn::ops::{Replicas, RowRun, merged_mlp};
///
/// /// What a backward pass takes to its replicas.
/// fn run(x: &Tensor, replicas: Replicas<'_>, w_dn: &Tensor, runs: &[RowRun]) -> candle_core::Result<merged_mlp::Saved> {
///     Ok(merged_mlp::forward(x, replicas, w_dn, runs)?.1)
/// }
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug)]
pub struct Saved {
    x_td: Tensor,
    w_dn: Tensor,
    values: Detached,
    runs: Runs,
    /// One a group of runs.
    parts: Vec<(Mixture, MlpValues)>,
}

/// y = MLP_W̃(x), W̃ by `runs` from the weights w `[decisions, n]`; a run without a decision merges all experts alike, w = 1/n.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together; runs that are not all rows one after the other; a decision without
/// weights.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::{MlpWeights, Replicas, RowRun, Silu, glu_mlp, merged_mlp};
///
/// let matrix = |rows, columns| Tensor::randn(0f32, 1f32, (rows, columns), &Device::Cpu);
/// let (x, gate, up, down) = (matrix(5, 4)?, matrix(6, 4)?, matrix(6, 4)?, matrix(6, 4)?);
/// let base = MlpWeights { gate: &gate, up: &up, down: &down, activation: &Silu };
/// let w = Tensor::new(&[[0.25f32, 0.75]], &Device::Cpu)?;
/// let runs = [RowRun { rows: 0..5, decision: Some(0) }];
/// let (same, _) = merged_mlp::forward(&x, Replicas { base, deltas: &[None, None] }, &w, &runs)?;
/// assert_eq!(same.to_vec2::<f32>()?, glu_mlp::forward(&x, base, None)?.0.to_vec2::<f32>()?);
///
/// let learnt = [Some([&gate, &up, &down]), None];
/// let (other, _) = merged_mlp::forward(&x, Replicas { base, deltas: &learnt }, &w, &runs)?;
/// assert_ne!(same.to_vec2::<f32>()?, other.to_vec2::<f32>()?);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn forward(x: &Tensor, replicas: Replicas<'_>, w_dn: &Tensor, runs: &[RowRun]) -> Result<(Tensor, Saved)> {
    let (x_td, w_dn) = (rows(x)?, w_dn.detach());
    let (decisions, experts) = w_dn.dims2()?;
    if experts != replicas.deltas.len() {
        candle_core::bail!("merged_mlp: weights of {experts} experts for {}", replicas.deltas.len());
    }
    let t = x_td.dim(0)?;
    let mut grouped = Runs::new("merged_mlp", runs, t, decisions)?;
    let values = replicas.detach()?;
    if values.deltas.iter().all(Option::is_none) {
        // One MLP, whatever the weights.
        grouped = Runs::new("merged_mlp", &[RowRun { rows: 0..t, decision: None }], t, decisions)?;
    }
    let even_n = Tensor::full(1.0 / experts as f64, experts, x_td.device())?;
    let parts = grouped.each(x_td.device(), |_, group| {
        let mixture = match group.decision {
            Some(decision) => values.mixture(&w_dn.get(decision)?)?,
            None => values.mixture(&even_n)?,
        };
        let matrices = values.merged(&mixture)?;
        let part = MlpValues::new(group.rows(&x_td)?, &matrices, values.activation, None)?;
        let output = part.output(&matrices)?;
        Ok(((mixture, part), output))
    })?;
    let (parts, outputs): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let y = grouped.in_order(&outputs)?.reshape(x.shape())?;
    Ok((y, Saved { x_td, w_dn, values, runs: grouped, parts }))
}

/// dx and dw, each if asked for; the gradients of the base and of the differences go to `grads`.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn backward(
    saved: &Saved,
    replicas: Replicas<'_>,
    dy: &Tensor,
    (input, weights): (bool, bool),
    grads: &mut Grads,
) -> Result<[Option<Tensor>; 2]> {
    let delta_y_td = rows(dy)?;
    let parts = saved.runs.each(saved.x_td.device(), |at, group| {
        let (mixture, part) = &saved.parts[at];
        let matrices = saved.values.merged(mixture)?;
        let own = part.deltas(&matrices, group.rows(&delta_y_td)?)?;
        let input = input.then(|| MlpValues::input_gradient(&matrices, &own)).transpose()?;
        Ok((own, input))
    })?;
    let (deltas, inputs): (Vec<PartDeltas>, Vec<_>) = parts.into_iter().unzip();
    let inputs: Option<Vec<Tensor>> = inputs.into_iter().collect();
    let dx = inputs.filter(|_| input).map(|inputs| saved.runs.in_order(&inputs)).transpose()?;
    let merged: Vec<Merged<'_>> =
        saved.parts.iter().zip(&deltas).map(|((mixture, values), deltas)| Merged { mixture, values, deltas }).collect();
    let inner = Detached::gradients(&merged, replicas, weights, grads)?;
    let dw = weights.then(|| saved.weights_gradient(&inner)).transpose()?;
    Ok([dx, dw])
}

impl Saved {
    /// The inner products ⟨∂L/∂W̃, ΔW_n⟩ at their places in `[decisions, n]`.
    fn weights_gradient(&self, inner: &[Vec<Tensor>]) -> Result<Tensor> {
        let (decisions, experts) = self.w_dn.dims2()?;
        let (mut lists, mut count) = (vec![Vec::new(); decisions * experts], 0u32);
        let mut products = Vec::new();
        for ((group, (mixture, _)), inner) in self.runs.groups().iter().zip(&self.parts).zip(inner) {
            let Some(decision) = group.decision else { continue };
            for (n, product) in mixture.experts.iter().zip(inner) {
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
