//! Calibrates what chooses single neurons (`neurons = gate | pruned`, DESIGN §1) to a [`Cut`] of a layer, from rows that its feed-forward sees.
//!
//! `gate`: ū_i = E|u_i| over the rows; candidates, where not all neurons are, by E|h_i| · v_i; then either the same number for every token, or one
//! threshold a layer, the score that as many (row, neuron) pairs reach as the share asks for: a token takes more where more of its scores are large; and of what
//! is taken, by another threshold, what goes on to W_d once h is known ([`least_hidden`]).
//! `pruned`: the candidates themselves. What a unit of h_i is worth, v_i, is the norm of row i of W_d unless it is given.
//!
//! Legend: n rows, b rows of a block, d hidden, i neurons.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use tinyonn::checkpoint::{ParamStore, upcycle};
//! use tinyonn::decoder::CausalLm;
//! use tinyonn::gallery::{OwnGate, Pruned};
//! use tinyonn::imaging::neuron_calibration::{Choose, GateCalibration, calibrate_gate, calibrate_pruned, gate_parameters, kept_parameters, least_hidden, least_input, threshold};
//! use tinyonn::imaging::Cut;
//! use tinyonn::moe::{MoeLayer, variant};
//! use tinyonn::phases::RunConfig;
//!
//! let cfg = RunConfig::default().dense.arch(64, "silu");
//! let dense = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
//! let one_expert = vec![vec![0; cfg.intermediate_size]; cfg.num_hidden_layers];
//! let store = upcycle(dense.share(), &cfg, variant("OwnGate")?, &one_expert, 0)?;
//! let vb = store.builder(DType::F32, |_| false).pp("model.layers.0.mlp");
//! let gated = MoeLayer::new(OwnGate::SPEC, &[], &cfg, 0, &vb)?;
//! let x_nd = Tensor::rand(-1f32, 1.0, (32, cfg.hidden_size), &Device::Cpu)?;
//!
//! // A quarter of the neurons, chosen among all of them by each token's own gate: half of the operations.
//! let cut = Cut::of(1.0, 0.25);
//! let found: GateCalibration = calibrate_gate(&gated, &x_nd, cut, Choose::Threshold, None)?;
//! assert_eq!((found.mean_up.len(), found.candidates.is_some()), (cfg.intermediate_size, false));
//! assert!(gate_parameters(&found, &Device::Cpu)?.iter().any(|(name, _)| *name == tinyonn::moe::MEAN_UP));
//! assert!(threshold(&gated, &x_nd, 0.25)? > 0.0);
//! // Of these three quarters, by what they turn out to be; and two thirds of the channels of x.
//! assert!(least_hidden(&gated, &x_nd, 0.25 * 0.75)? > 0.0 && least_input(&gated, &x_nd, 2.0 / 3.0)? > 0.0);
//!
//! // The same quarter for every token.
//! let store = upcycle(dense, &cfg, variant("Pruned")?, &one_expert, 0)?;
//! let vb = store.builder(DType::F32, |_| false).pp("model.layers.0.mlp");
//! let fixed = MoeLayer::new(Pruned::SPEC, &[], &cfg, 0, &vb)?;
//! let kept = calibrate_pruned(&fixed, &x_nd, Cut::of(0.25, 0.25), None)?;
//! assert_eq!(kept.iter().filter(|kept| **kept).count(), cfg.intermediate_size / 4);
//! assert!(!kept_parameters(&kept, &Device::Cpu)?.is_empty());
//! # Ok::<(), tinyonn::Error>(())
//! ```

use candle_core::{D, DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::Cut;
use crate::moe::MoeLayer;
use crate::ops::{MlpWeights, NeuronChoice, Take, chosen_neurons, host};
use crate::{Error, Result};

/// How the gate's choice is bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
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
    /// v `[I]`, where it was given.
    pub worth: Option<Vec<f32>>,
    /// The neurons that may be taken; `None` is all.
    pub candidates: Option<Vec<bool>>,
    /// What a token takes.
    pub take: Take,
}

/// Rows whose values are formed at once.
const BLOCK: usize = 1024;

/// Calibrates the gate of `layer`, so that of the rows x `[n, d]`, f32, `cut` is what is taken. A score of 0 is never taken by threshold: such a neuron adds
/// nothing.
///
/// # Errors
/// A share that is not within (0, 1]; no rows; whatever the device reports.
pub fn calibrate_gate(
    layer: &MoeLayer,
    x_nd: &Tensor,
    cut: Cut,
    choose: Choose,
    worth_i: Option<&Tensor>,
) -> Result<GateCalibration> {
    let weights = layer.experts().weights();
    let [within, count] = check(weights, x_nd, cut)?;
    let (rows, width) = (x_nd.dim(0)?, weights.gate.dim(0)?);
    let mean_up = mean_up(weights, x_nd)?;
    let candidates = if within < width { Some(first(&candidate_order(weights, x_nd, worth_i)?, within)) } else { None };
    let worth = worth_i.map(host::in_memory).transpose()?;
    let found = |take| {
        Ok(GateCalibration { mean_up: mean_up.clone(), worth: worth.clone(), candidates: candidates.clone(), take })
    };
    if count >= within {
        return found(Take { most: width, least_score: 0.0 });
    }
    if choose == Choose::TopK {
        return found(Take { most: count, least_score: 0.0 });
    }
    let mean_up_i = Tensor::new(mean_up.as_slice(), x_nd.device())?;
    let mut kept = Vec::with_capacity(rows * within);
    for x_bd in blocks(x_nd)? {
        let scores_bi = scores(weights, &x_bd, &mean_up_i, worth_i)?;
        let scores_bi = match layer.candidates(&x_bd)? {
            Some(open_bi) => (scores_bi * open_bi)?,
            None => scores_bi,
        };
        let values = host::in_memory(&scores_bi)?;
        match &candidates {
            None => kept.extend_from_slice(&values),
            Some(open) => {
                let row =
                    |row: &[f32]| row.iter().zip(open).filter(|(_, open)| **open).map(|(x, _)| *x).collect::<Vec<_>>();
                kept.extend(values.chunks_exact(width).flat_map(row));
            }
        }
    }
    found(Take { most: width, least_score: least_of(kept, cut.neurons * (rows * width) as f64) })
}

/// Which neurons of `layer` are kept: the share s of `cut`, those that add most to its output over the rows x `[n, d]`, f32; ties to the lower index.
///
/// # Errors
/// As of [`calibrate_gate`].
pub fn calibrate_pruned(layer: &MoeLayer, x_nd: &Tensor, cut: Cut, worth_i: Option<&Tensor>) -> Result<Vec<bool>> {
    let weights = layer.experts().weights();
    let [_, count] = check(weights, x_nd, cut)?;
    Ok(first(&candidate_order(weights, x_nd, worth_i)?, count))
}

/// The neurons by E|h_i| · v_i over the rows, the largest first; ties to the lower index.
pub(super) fn candidate_order(weights: MlpWeights<'_>, x_nd: &Tensor, worth_i: Option<&Tensor>) -> Result<Vec<u32>> {
    let mut sum = vec![0f64; weights.gate.dim(0)?];
    for x_bd in blocks(x_nd)? {
        let [g_bi, u_bi] = [weights.gate, weights.up].map(|w_id| times(&x_bd, w_id));
        let h_bi = weights.activation.forward(&g_bi?, &u_bi?)?.abs()?;
        sum.iter_mut().zip(host::in_memory(&h_bi.sum(0)?)?).for_each(|(sum, h)| *sum += f64::from(h));
    }
    let worth = host::in_memory(&worth_or_norm(weights, worth_i)?)?;
    let scores: Vec<f64> = sum.iter().zip(worth).map(|(sum, worth)| sum * f64::from(worth)).collect();
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]));
    Ok(order)
}

/// ū `[I]`: the mean of |u| over the rows.
pub(super) fn mean_up(weights: MlpWeights<'_>, x_nd: &Tensor) -> Result<Vec<f32>> {
    let mut sum = vec![0f64; weights.up.dim(0)?];
    for x_bd in blocks(x_nd)? {
        let of_block = host::in_memory(&times(&x_bd, weights.up)?.abs()?.sum(0)?)?;
        sum.iter_mut().zip(of_block).for_each(|(sum, up)| *sum += f64::from(up));
    }
    let rows = x_nd.dim(0)? as f64;
    Ok(sum.into_iter().map(|sum| (sum / rows) as f32).collect())
}

/// The scores of all neurons for rows x `[b, d]`: `[b, I]` f32.
pub(super) fn scores(
    weights: MlpWeights<'_>,
    x_bd: &Tensor,
    mean_up_i: &Tensor,
    worth_i: Option<&Tensor>,
) -> Result<Tensor> {
    let (worth_i, take) = (worth_or_norm(weights, worth_i)?, Take { most: usize::MAX, least_score: 0.0 });
    let choice =
        NeuronChoice::Gate { mean_up_i, worth_i: &worth_i, candidates_i: None, take, least_hidden: 0.0, inputs: None };
    Ok(chosen_neurons::scores(&times(x_bd, weights.gate)?, weights, choice)?)
}

/// |h| · v of all neurons for rows x `[b, d]`, of which W_g reads `gate_x_bd`: `[b, I]` f32.
pub(super) fn sizes(
    weights: MlpWeights<'_>,
    [gate_x_bd, x_bd]: [&Tensor; 2],
    worth_i: Option<&Tensor>,
) -> Result<Tensor> {
    let h_bi = weights.activation.forward(&times(gate_x_bd, weights.gate)?, &times(x_bd, weights.up)?)?;
    Ok(h_bi.abs()?.broadcast_mul(&worth_or_norm(weights, worth_i)?)?)
}

/// The norms of W_g's columns, `[d]` f32.
pub(super) fn column_norms(weights: MlpWeights<'_>) -> Result<Tensor> {
    Ok(weights.gate.detach().to_dtype(DType::F32)?.sqr()?.sum(0)?.sqrt()?)
}

fn times(x_bd: &Tensor, w_id: &Tensor) -> Result<Tensor> {
    Ok(x_bd.to_dtype(DType::F32)?.matmul(&w_id.detach().to_dtype(DType::F32)?.t()?)?)
}

/// v, or ‖w_i‖.
pub(super) fn worth_or_norm(weights: MlpWeights<'_>, worth_i: Option<&Tensor>) -> Result<Tensor> {
    if let Some(worth_i) = worth_i {
        return Ok(worth_i.clone());
    }
    Ok(weights.down.detach().to_dtype(DType::F32)?.sqr()?.sum(D::Minus1)?.sqrt()?)
}

/// The first `count` of an order, as marks.
fn first(order: &[u32], count: usize) -> Vec<bool> {
    let mut marks = vec![false; order.len()];
    order.iter().take(count).for_each(|at| marks[*at as usize] = true);
    marks
}

/// How many neurons may be taken, and how many are.
fn check(weights: MlpWeights<'_>, x_nd: &Tensor, cut: Cut) -> Result<[usize; 2]> {
    let width = weights.gate.dim(0)?;
    for share in [cut.candidates, cut.neurons] {
        if !(share > 0.0 && share <= 1.0) {
            let problem = format!("of {share} of a layer's neurons is none that can be taken");
            return Err(Error::setting("share", problem, "use more than 0, and at most 1"));
        }
    }
    if x_nd.dim(0)? == 0 {
        return Err(Error::setting("inputs", "none were collected", "calibrate on at least one sequence"));
    }
    Ok([cut.candidates, cut.neurons].map(|share| ((share * width as f64).round() as usize).max(1)))
}

fn blocks(x_nd: &Tensor) -> Result<Vec<Tensor>> {
    let rows = x_nd.dim(0)?;
    (0..rows).step_by(BLOCK).map(|from| Ok(x_nd.narrow(0, from, BLOCK.min(rows - from))?)).collect()
}

/// The least score at which the rows x `[n, d]`, f32, take the share of `layer`'s neurons on average, as its rule has scores now.
///
/// # Errors
/// As of [`calibrate_gate`]; a layer that scores no neurons.
pub fn threshold(layer: &MoeLayer, x_nd: &Tensor, neurons: f64) -> Result<f32> {
    least_reached(layer, x_nd, neurons, MoeLayer::scores)
}

/// The least |x_j| · n_j at which W_g reads the share `inputs` of x's channels on average for the rows x `[n, d]`, f32; n_j is the norm of its column j.
///
/// # Errors
/// As of [`threshold`].
pub fn least_input(layer: &MoeLayer, x_nd: &Tensor, inputs: f64) -> Result<f32> {
    let weights = layer.experts().weights();
    check(weights, x_nd, Cut::of(1.0, inputs))?;
    least_read(&column_norms(weights)?, x_nd, inputs)
}

/// The same, of the norms `[d]` themselves.
pub(super) fn least_read(column_norm_d: &Tensor, x_nd: &Tensor, inputs: f64) -> Result<f32> {
    let sizes = host::in_memory(&x_nd.to_dtype(DType::F32)?.abs()?.broadcast_mul(column_norm_d)?)?;
    let pairs = inputs * sizes.len() as f64;
    Ok(least_of(sizes, pairs))
}

/// The least |h| · v at which rows of W_d of the share `neurons` of `layer`'s neurons are read on average for the rows x `[n, d]`, f32, among the neurons that its
/// rule takes now.
///
/// # Errors
/// As of [`threshold`].
pub fn least_hidden(layer: &MoeLayer, x_nd: &Tensor, neurons: f64) -> Result<f32> {
    least_reached(layer, x_nd, neurons, MoeLayer::moved)
}

/// The least of what `of` a layer says of each pair of a row and a neuron, `[b, I]`, that the share of all pairs reach.
fn least_reached(
    layer: &MoeLayer,
    x_nd: &Tensor,
    neurons: f64,
    of: impl Fn(&MoeLayer, &Tensor) -> Result<Tensor>,
) -> Result<f32> {
    let weights = layer.experts().weights();
    check(weights, x_nd, Cut::of(1.0, neurons))?;
    let mut values = Vec::with_capacity(x_nd.dim(0)? * weights.gate.dim(0)?);
    for x_bd in blocks(x_nd)? {
        values.extend(host::in_memory(&of(layer, &x_bd)?)?);
    }
    let pairs = neurons * values.len() as f64;
    Ok(least_of(values, pairs))
}

/// The least of the `pairs` largest scores, of which there is one at least; never 0.
fn least_of(mut scores: Vec<f32>, pairs: f64) -> f32 {
    let pairs = (pairs.round() as usize).clamp(1, scores.len());
    let (_, least, _) = scores.select_nth_unstable_by(pairs - 1, |a, b| b.total_cmp(a));
    least.max(f32::MIN_POSITIVE)
}

/// The parameters of a layer's gate, as a checkpoint holds them, by their names under its `mlp`.
///
/// # Errors
/// What the device reports.
pub fn gate_parameters(found: &GateCalibration, device: &Device) -> Result<Vec<(&'static str, Tensor)>> {
    use crate::moe::{LEAST_SCORE, MEAN_UP, MOST, WORTH};
    let mut parameters = vec![
        (MEAN_UP, Tensor::new(found.mean_up.as_slice(), device)?),
        (MOST, Tensor::new(&[found.take.most as f32], device)?),
        (LEAST_SCORE, Tensor::new(&[found.take.least_score], device)?),
    ];
    if let Some(worth) = &found.worth {
        parameters.push((WORTH, Tensor::new(worth.as_slice(), device)?));
    }
    if let Some(candidates) = &found.candidates {
        parameters.extend(kept_parameters(candidates, device)?);
    }
    Ok(parameters)
}

/// The parameters of a layer's fixed set, likewise.
///
/// # Errors
/// What the device reports.
pub fn kept_parameters(kept: &[bool], device: &Device) -> Result<Vec<(&'static str, Tensor)>> {
    let kept: Vec<f32> = kept.iter().map(|kept| f32::from(u8::from(*kept))).collect();
    Ok(vec![(crate::moe::KEPT, Tensor::new(kept.as_slice(), device)?)])
}
