//! [`select`](super::select::select) in plain operations, for scores that do not lie in main memory: nothing is read by the host.
//!
//! A choice is taken if its rank among its router's ([`ranks`]) is below `top_k`, or below what PFAG counts.

use candle_core::{D, DType, Tensor};

use super::{MoeSpec, Pfag, RouterSpec};
use crate::Result;
use crate::ops::ranks;

/// Which experts are taken, `[t, N]` f32 of ones and zeros; arguments as [`select`](super::select::select) has checked them.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::moe::{moe, select_on_device};
///
/// #[moe(levels = [3], top_k = 2)]
/// struct BestTwo;
///
/// let scores = [Tensor::new(&[[0.1f32, 0.7, 0.2]], &Device::Cpu)?.log()?];
/// assert_eq!(select_on_device::select(&BestTwo::SPEC, &scores, None, None)?.to_vec2::<f32>()?, [[0.0, 1.0, 1.0]]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// What the device reports.
pub fn select(
    spec: &MoeSpec,
    scores: &[Tensor],
    bias: Option<&[Tensor]>,
    surprisal: Option<&Tensor>,
) -> Result<Tensor> {
    let tokens = scores[0].dim(0)?;
    let mut taken_tn = Tensor::ones((tokens, 1), DType::F32, scores[0].device())?;
    for (level, declared) in spec.levels.iter().enumerate() {
        let (mut parent, mut node, mut taken) = (0, 0, Vec::with_capacity(declared.routers.len()));
        for run in declared.routers.iter() {
            let nodes = run.parents * run.choices;
            let own_tpc = scores[level].narrow(1, node, nodes)?.reshape((tokens, run.parents, run.choices))?;
            let key_tpc = match bias {
                Some(bias) => {
                    let bias_1pc = bias[level].narrow(0, node, nodes)?.reshape((1, run.parents, run.choices))?;
                    own_tpc.exp()?.broadcast_add(&bias_1pc)?
                }
                None => own_tpc.clone(),
            };
            let rank_tpc = ranks(&key_tpc)?;
            // PFAG counts along ranks by probability: those of the keys unless a bias moved them.
            let by_probability_tpc = if bias.is_some() { ranks(&own_tpc)? } else { rank_tpc.clone() };
            let count_tp1 = count(spec.pfag, run, &own_tpc, &by_probability_tpc, surprisal)?;
            let below_tpc = rank_tpc.broadcast_lt(&count_tp1)?;
            let parents_tp1 = taken_tn.narrow(1, parent, run.parents)?.unsqueeze(2)?;
            taken.push(below_tpc.to_dtype(DType::F32)?.broadcast_mul(&parents_tp1)?.flatten_from(1)?);
            parent += run.parents;
            node += nodes;
        }
        taken_tn = Tensor::cat(&taken, 1)?;
    }
    let always = spec.always_experts();
    if always == 0 {
        return Ok(taken_tn);
    }
    Ok(Tensor::cat(&[&taken_tn, &Tensor::ones((tokens, always), DType::F32, taken_tn.device())?], 1)?)
}

/// How many choices each router takes, `[t, P, 1]` or `[1, 1, 1]` f32.
fn count(
    pfag: Pfag,
    run: &RouterSpec,
    log_p_tpc: &Tensor,
    rank_tpc: &Tensor,
    surprisal: Option<&Tensor>,
) -> Result<Tensor> {
    let most = run.top_k.min(run.choices) as f64;
    let device = log_p_tpc.device();
    if pfag == Pfag::Off || most <= 1.0 {
        return Ok(Tensor::full(most as f32, (1, 1, 1), device)?);
    }
    let p_tpc = log_p_tpc.exp()?;
    let count = match pfag {
        Pfag::Off | Pfag::Entropy => {
            // 0 log 0 is 0.
            let finite = log_p_tpc.gt(f64::from(f32::MIN))?.where_cond(log_p_tpc, &log_p_tpc.zeros_like()?)?;
            let entropy = (&p_tpc * finite)?.sum_keepdim(D::Minus1)?.neg()?;
            (entropy.exp()? + 0.5)?.floor()?
        }
        Pfag::Nucleus { .. } | Pfag::Surprisal => {
            let mass = match (pfag, surprisal) {
                (Pfag::Surprisal, Some(surprisal)) => {
                    candle_nn::ops::sigmoid(&surprisal.clamp(0.1f32, 5f32)?)?.reshape(((), 1, 1))?
                }
                _ => Tensor::full(pfag.mass(0.0), (1, 1, 1), device)?,
            };
            // The probability gathered down to each choice's rank; those that leave it below the mass are not enough.
            let within = rank_tpc.unsqueeze(2)?.broadcast_le(&rank_tpc.unsqueeze(3)?)?.to_dtype(DType::F32)?;
            let gathered = within.broadcast_mul(&p_tpc.unsqueeze(2)?)?.sum(D::Minus1)?;
            (gathered.broadcast_lt(&mass)?.to_dtype(DType::F32)?.sum_keepdim(D::Minus1)? + 1.0)?
        }
    };
    Ok(count.clamp(1f32, most as f32)?)
}
