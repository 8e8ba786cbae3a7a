//! Calibrates what bounds the choices of a layer's routers to a share of its neurons, from rows that its feed-forward sees (DESIGN §1): one threshold a level,
//! which meets the share on average, so that a token takes more where more of its scores are large; or as many choices for each token. Of L levels each takes
//! the share^(1/L) of what the level above has taken.
//!
//! Where each token's own gate chooses within what was taken, candidates c and neurons s share the operations: c/3 + 2 s/3. They are what leaves out least of
//! Σ (h_i v_i)², on some of the rows: v_i what a unit of h_i is worth, signs taken as independent.
//!
//! Legend: n rows, d hidden, i neurons.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use tinyonn::checkpoint::{ParamStore, upcycle};
//! use tinyonn::decoder::CausalLm;
//! use tinyonn::gallery::GroupedGate;
//! use tinyonn::imaging::choice_calibration::{ChoiceCalibration, calibrate_choices, choice_parameters, routed_cut};
//! use tinyonn::imaging::Choose;
//! use tinyonn::moe::{MoeLayer, variant};
//! use tinyonn::phases::RunConfig;
//!
//! let cfg = tinyonn::decoder::Arch { intermediate_size: 256, ..RunConfig::default().dense.arch(64, "silu") };
//! let dense = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
//! let owners = vec![(0..256).map(|i| i % 128).collect(); cfg.num_hidden_layers];
//! let store = upcycle(dense, &cfg, variant("GroupedGate")?, &owners, 0)?;
//! let vb = store.builder(DType::F32, |_| false).pp("model.layers.0.mlp");
//! let layer = MoeLayer::new(GroupedGate::SPEC, &[], &cfg, 0, &vb)?;
//! let x_nd = Tensor::rand(-1f32, 1.0, (64, cfg.hidden_size), &Device::Cpu)?;
//!
//! let found: ChoiceCalibration = calibrate_choices(&layer, &x_nd, 0.25, Choose::TopK)?;
//! assert_eq!(found.most, [32]); // a quarter of 128 groups
//! assert_eq!(choice_parameters(&found, &Device::Cpu)?.len(), 2);
//! let cut = routed_cut(&layer, &x_nd, 0.4, None)?;
//! assert!((cut.operations() - 0.4).abs() < 1e-9 && cut.neurons <= cut.candidates);
//! # Ok::<(), tinyonn::Error>(())
//! ```

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::inputs::spread;
use super::neuron_calibration::{mean_up, scores, worth_or_norm};
use super::{Choose, Cut};
use crate::moe::choice_rule::ChoiceRule;
use crate::moe::{
    CHOICES_LEAST_SCORE, CHOICES_MOST, LevelSpec, MoeLayer, MoeSpec, RouterSpec, Scores, Selection, select,
};
use crate::ops::host;
use crate::{Error, Result};

/// What the choices of one layer's routers are bounded by, a number a level.
#[derive(Clone, Debug, PartialEq)]
pub struct ChoiceCalibration {
    /// The choices of a router that are taken at most.
    pub most: Vec<usize>,
    /// The least score of one that is taken.
    pub least_score: Vec<f32>,
}

/// Rows that a cut is chosen by, at most: every one of them has a score of every neuron, again for every cut.
const ROWS: usize = 1024;
/// Shares of candidates that are tried, at most.
const TRIED: usize = 12;

/// Bounds the choices of `layer` so that of the rows x `[n, d]` the share of its neurons is taken, those that always take part among them, experts being equally
/// wide.
///
/// # Errors
/// A share that is not within (0, 1]; no rows; a layer without routers; what the device reports.
pub fn calibrate_choices(layer: &MoeLayer, x_nd: &Tensor, share: f64, choose: Choose) -> Result<ChoiceCalibration> {
    bounds(layer.spec(), &Scores::new(layer, x_nd)?.by_level()?, share, choose)
}

fn bounds(spec: &MoeSpec, scores: &[Tensor], share: f64, choose: Choose) -> Result<ChoiceCalibration> {
    let rows = scores.first().map_or(Ok(0), |scores| scores.dim(0))?;
    if rows == 0 {
        return Err(Error::setting("inputs", "none were collected", "calibrate on at least one sequence"));
    }
    if !(share > 0.0 && share <= 1.0) {
        let problem = format!("of {share} of a layer's groups is none that can be taken");
        return Err(Error::setting("share", problem, "use more than 0, and at most 1"));
    }
    let always = spec.always_experts() as f64 / spec.experts().max(1) as f64;
    let routed = (share - always) / (1.0 - always);
    // All that always take part leave 0 of nothing, which is no number.
    if routed.is_nan() || routed <= 0.0 {
        let problem = format!("is {share:.3} of a layer's neurons, and {always:.3} always take part");
        return Err(Error::setting("share", problem, "use more, or declare fewer experts that always take part"));
    }
    let part = routed.powf(1.0 / spec.levels.len() as f64);
    let choices = |level: &LevelSpec| level.routers.iter().map(|run: &RouterSpec| run.choices).max().unwrap_or(1);
    let all: Vec<usize> = spec.levels.iter().map(choices).collect();
    if choose == Choose::TopK {
        let most = |choices: &usize| ((part * *choices as f64).round() as usize).max(1);
        return Ok(ChoiceCalibration { most: all.iter().map(most).collect(), least_score: vec![f32::MIN; all.len()] });
    }
    let mut least_score = Vec::with_capacity(all.len());
    // Of each row, the nodes that were taken of the level above: the root.
    let mut above = vec![vec![true]; rows];
    for (level, scores) in spec.levels.iter().zip(scores) {
        let values = host::in_memory(scores)?;
        let parents: Vec<usize> =
            level.slots().enumerate().flat_map(|(parent, slot)| slot.nodes.map(move |_| parent)).collect();
        let row = |(row, above): (&[f32], &Vec<bool>)| {
            row.iter().zip(&parents).filter(|(_, parent)| above[**parent]).map(|(score, _)| *score).collect::<Vec<_>>()
        };
        let mut open: Vec<f32> = values.chunks_exact(parents.len()).zip(&above).flat_map(row).collect();
        let pairs = ((part * open.len() as f64).round() as usize).clamp(1, open.len());
        let least = if pairs == open.len() {
            f32::MIN
        } else {
            *open.select_nth_unstable_by(pairs - 1, |a, b| b.total_cmp(a)).1
        };
        let taken = |(row, above): (&[f32], &Vec<bool>)| {
            row.iter().zip(&parents).map(|(score, parent)| above[*parent] && *score >= least).collect::<Vec<bool>>()
        };
        above = values.chunks_exact(parents.len()).zip(&above).map(taken).collect();
        least_score.push(least);
    }
    Ok(ChoiceCalibration { most: all, least_score })
}

/// The parameters of a layer's bounds, as a checkpoint holds them, by their names under its `mlp`.
///
/// # Errors
/// What the device reports.
pub fn choice_parameters(found: &ChoiceCalibration, device: &Device) -> Result<Vec<(&'static str, Tensor)>> {
    let most: Vec<f32> = found.most.iter().map(|most| *most as f32).collect();
    let least_score = Tensor::new(found.least_score.as_slice(), device)?;
    Ok(vec![(CHOICES_MOST, Tensor::new(most.as_slice(), device)?), (CHOICES_LEAST_SCORE, least_score)])
}

/// The cut of `layer` that costs `operations` of the MLP, routers not counted, and leaves out least of Σ (h v)² over some of the rows x `[n, d]`: of the
/// candidates that its routers choose, as they are fitted now, those neurons whose own gates promise most. v is ‖w_i‖ unless it is given.
///
/// # Errors
/// As of [`calibrate_choices`].
pub fn routed_cut(layer: &MoeLayer, x_nd: &Tensor, operations: f64, worth_i: Option<&Tensor>) -> Result<Cut> {
    if operations >= 1.0 {
        return Ok(Cut::WHOLE);
    }
    let (spec, weights) = (layer.spec(), layer.experts().weights());
    let own: Vec<u32> = spread(x_nd.dim(0)?, ROWS).map(|row| row as u32).collect();
    let x_nd = x_nd.index_select(&Tensor::new(own.as_slice(), x_nd.device())?, 0)?.to_dtype(DType::F32)?;
    let of_routers = Scores::new(layer, &x_nd)?.by_level()?;
    let owners = layer.experts().neuron_expert().map(host::ids).transpose()?.unwrap_or_default();
    let times = |w_id: &Tensor| x_nd.matmul(&w_id.detach().to_dtype(DType::F32)?.t()?);
    let h_ni = weights.activation.forward(&times(weights.gate)?, &times(weights.up)?)?;
    let worth = h_ni.broadcast_mul(&worth_or_norm(weights, worth_i)?)?.sqr()?;
    let mean_up_i = Tensor::new(mean_up(weights, &x_nd)?.as_slice(), x_nd.device())?;
    let (worth, gates) = (host::in_memory(&worth)?, host::in_memory(&scores(weights, &x_nd, &mean_up_i, worth_i)?)?);
    let most = (3.0 * operations).min(1.0);
    let mut best: Option<(f64, Cut)> = None;
    for at in 0..TRIED {
        let candidates = operations + (most - operations) * at as f64 / TRIED as f64;
        let cut = Cut::of(candidates, (3.0 * operations - candidates) / 2.0);
        let found = bounds(spec, &of_routers, candidates, Choose::Threshold)?;
        let rule = ChoiceRule::new(spec, &found.most, &found.least_score, x_nd.device())?;
        let taken = rule.within(&of_routers, &select(rule.spec(), &of_routers, Selection::default())?)?;
        let left = left_out(&host::in_memory(&taken)?, &owners, [&gates, &worth], cut.neurons);
        if best.is_none_or(|(least, _)| left < least) {
            best = Some((left, cut));
        }
    }
    let whole = Cut::of(operations, operations);
    Ok(best.map_or(whole, |(_, cut)| cut))
}

/// Σ of what is worth something over the pairs (row, neuron) that are not among the share of all pairs of largest gate score within the experts taken, `[n, N]` ones and
/// zeros.
fn left_out(taken: &[f32], owners: &[u32], [gates, worth]: [&[f32]; 2], neurons: f64) -> f64 {
    let (width, experts) = (owners.len().max(1), taken.len() * owners.len().max(1) / gates.len().max(1));
    let is_open = |at: usize| taken[at / width * experts + owners[at % width] as usize] > 0.0;
    let mut open: Vec<f32> = (0..gates.len()).into_par_iter().filter(|at| is_open(*at)).map(|at| gates[at]).collect();
    let pairs = ((neurons * gates.len() as f64).round() as usize).min(open.len());
    let least = match pairs.checked_sub(1) {
        Some(at) => *open.select_nth_unstable_by(at, |a, b| b.total_cmp(a)).1,
        None => f32::INFINITY,
    };
    let left = |at: &usize| !(is_open(*at) && gates[*at] >= least);
    // Parts are added in their order, whoever formed them.
    let part = |row: usize| (row * width..(row + 1) * width).filter(left).map(|at| f64::from(worth[at])).sum::<f64>();
    (0..gates.len() / width).into_par_iter().map(part).collect::<Vec<f64>>().into_iter().sum()
}
