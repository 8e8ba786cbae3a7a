//! Calibrates what chooses single neurons (`neurons = gate | pruned`, DESIGN §1) to a share of a layer's neurons, from rows that its feed-forward sees.
//!
//! `gate`: ū_i = E|u_i| over the rows; then either the same number for every token, or one threshold a layer, the score that as many
//! (row, neuron) pairs reach as the share asks for: a token takes more where more of its scores are large. `pruned`: the neurons whose
//! |h|·‖w_down‖ is largest on average.

use candle_core::{D, DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::moe::MoeLayer;
use crate::ops::{NeuronChoice, Take, chosen_neurons, host};
use crate::{Error, Result};

/// How the gate's choice is bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choose {
    /// By one threshold a layer, which meets the share on average over calibration text.
    #[default]
    Threshold,
    /// As many neurons for each token.
    TopK,
}

/// What the gate of one layer was calibrated to.
#[derive(Clone, Debug, PartialEq)]
pub struct GateCalibration {
    /// ū `[I]`.
    pub mean_up: Vec<f32>,
    /// What a token takes.
    pub take: Take,
}

/// Rows whose values are formed at once.
const BLOCK: usize = 1024;

/// Calibrates the gate of `layer`, so that of the rows x `[n, d]`, f32, `share` of the neurons are taken.
///
/// # Errors
/// A share that is not within (0, 1]; no rows; whatever the device reports.
pub fn calibrate_gate(layer: &MoeLayer, x_nd: &Tensor, share: f64, choose: Choose) -> Result<GateCalibration> {
    let width = check(layer, x_nd, share)?;
    let weights = layer.experts().weights();
    let mut sum = vec![0f64; width];
    for x_bd in blocks(x_nd)? {
        let up_bi = x_bd.matmul(&weights.up.detach().to_dtype(DType::F32)?.t()?)?;
        let of_block = host::in_memory(&up_bi.abs()?.sum(0)?)?;
        sum.iter_mut().zip(of_block).for_each(|(sum, up)| *sum += f64::from(up));
    }
    let rows = x_nd.dim(0)?;
    let mean_up: Vec<f32> = sum.iter().map(|sum| (sum / rows as f64) as f32).collect();
    let count = (share * width as f64).round().max(1.0) as usize;
    if choose == Choose::TopK || count >= width {
        return Ok(GateCalibration { mean_up, take: Take { most: count, least_score: 0.0 } });
    }
    let mean_up_i = Tensor::new(mean_up.as_slice(), x_nd.device())?;
    let down_norm_i = weights.down.detach().to_dtype(DType::F32)?.sqr()?.sum(D::Minus1)?.sqrt()?;
    let all = Take { most: width, least_score: 0.0 };
    let choice = NeuronChoice::Gate { mean_up_i: &mean_up_i, down_norm_i: &down_norm_i, take: all };
    let mut scores = Vec::with_capacity(rows * width);
    for x_bd in blocks(x_nd)? {
        let g_bi = x_bd.matmul(&weights.gate.detach().to_dtype(DType::F32)?.t()?)?;
        let scores_bi = chosen_neurons::scores(&g_bi, weights, choice)?;
        let candidates_bi = layer.candidates(&x_bd)?;
        let scores_bi = match candidates_bi {
            Some(candidates_bi) => (scores_bi * candidates_bi)?,
            None => scores_bi,
        };
        scores.extend(host::in_memory(&scores_bi)?);
    }
    let pairs = ((share * (rows * width) as f64).round() as usize).clamp(1, scores.len());
    let (_, least_score, _) = scores.select_nth_unstable_by(pairs - 1, |a, b| b.total_cmp(a));
    Ok(GateCalibration { mean_up, take: Take { most: width, least_score: *least_score } })
}

/// Which `share` of the neurons of `layer` are kept: those that add most to its output over the rows x `[n, d]`, f32; ties to the lower index.
///
/// # Errors
/// As of [`calibrate_gate`].
pub fn calibrate_pruned(layer: &MoeLayer, x_nd: &Tensor, share: f64) -> Result<Vec<bool>> {
    let width = check(layer, x_nd, share)?;
    let weights = layer.experts().weights();
    let matrix = |weight: &Tensor| Ok::<_, Error>(weight.detach().to_dtype(DType::F32)?);
    let mut sum = vec![0f64; width];
    for x_bd in blocks(x_nd)? {
        let (g_bi, u_bi) = (x_bd.matmul(&matrix(weights.gate)?.t()?)?, x_bd.matmul(&matrix(weights.up)?.t()?)?);
        let h_bi = weights.activation.forward(&g_bi, &u_bi)?.abs()?;
        sum.iter_mut().zip(host::in_memory(&h_bi.sum(0)?)?).for_each(|(sum, h)| *sum += f64::from(h));
    }
    let norms = host::in_memory(&matrix(weights.down)?.sqr()?.sum(D::Minus1)?.sqrt()?)?;
    let scores: Vec<f64> = sum.iter().zip(norms).map(|(sum, norm)| sum * f64::from(norm)).collect();
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let mut kept = vec![false; width];
    let count = (share * width as f64).round().max(1.0) as usize;
    order.into_iter().take(count).for_each(|at| kept[at] = true);
    Ok(kept)
}

/// The number of neurons.
fn check(layer: &MoeLayer, x_nd: &Tensor, share: f64) -> Result<usize> {
    if !(share > 0.0 && share <= 1.0) {
        let problem = format!("of {share} of a layer's neurons is none that can be taken");
        return Err(Error::setting("share", problem, "use more than 0, and at most 1"));
    }
    if x_nd.dim(0)? == 0 {
        return Err(Error::setting("inputs", "none were collected", "calibrate on at least one sequence"));
    }
    Ok(layer.experts().weights().gate.dim(0)?)
}

fn blocks(x_nd: &Tensor) -> Result<Vec<Tensor>> {
    let rows = x_nd.dim(0)?;
    let block = |from: usize| Ok(x_nd.narrow(0, from, BLOCK.min(rows - from))?.to_dtype(DType::F32)?);
    (0..rows).step_by(BLOCK).map(block).collect()
}

/// The parameters of a layer's gate, as a checkpoint holds them, by their names under its `mlp`.
///
/// # Errors
/// What the device reports.
pub fn gate_parameters(found: &GateCalibration, device: &Device) -> Result<[(&'static str, Tensor); 3]> {
    use crate::moe::{LEAST_SCORE, MEAN_UP, MOST};
    Ok([
        (MEAN_UP, Tensor::new(found.mean_up.as_slice(), device)?),
        (MOST, Tensor::new(&[found.take.most as f32], device)?),
        (LEAST_SCORE, Tensor::new(&[found.take.least_score], device)?),
    ])
}

/// The parameters of a layer's fixed set, likewise.
///
/// # Errors
/// What the device reports.
pub fn pruned_parameters(kept: &[bool], device: &Device) -> Result<[(&'static str, Tensor); 1]> {
    let kept: Vec<f32> = kept.iter().map(|kept| f32::from(u8::from(*kept))).collect();
    Ok([(crate::moe::KEPT, Tensor::new(kept.as_slice(), device)?)])
}
