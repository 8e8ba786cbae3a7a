//! What taking neurons away from an MLP does to the loss, token by token and to first order: removing the set R changes the output of token t by
//! −Σ_{i ∈ R} c h_i w_i, and the loss by −Σ_{i ∈ R} c h_i δ_h,i. Its square, summed over tokens, is twice the second-order change under the empirical Fisher
//! information of y (Martens, 2014): D(R) = Σ_t (Σ_{i ∈ R} c h_i δ_h,i)². An observation, not a function to differentiate.
//!
//! Sets are those that a gate leaves ([`chosen_neurons`](super::chosen_neurons)): of the first so many neurons in a given order, the candidates, those are
//! kept whose score is at least τ, and whose |h| · v is at least τ_h.
//!
//! Legend: t tokens, i neurons, s sets.

use candle_core::{DType, Result, Tensor};

use super::MlpWeights;
use super::activation::Activation;
use super::chosen_neurons::{NeuronChoice, Take, scores};
use super::mlp_values::MlpBackward;

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KeptSet {
    /// So many neurons of the order are candidates.
    pub candidates: usize,
    /// τ; 0 keeps all of them.
    pub least_score: f32,
    /// τ_h, the least |h| · v; 0 keeps all of these.
    pub least_hidden: f32,
}

/// What is asked of one layer.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::ops::removal::{KeptSet, Removal, squared_removal, squared_sensitivity};
/// use tinyonn::ops::{MlpWeights, Silu, SlicedMlp as _, glu_mlp};
///
/// let w = Tensor::ones((6, 4), DType::F32, &Device::Cpu)?;
/// let weights = MlpWeights { gate: &w, up: &w, down: &w, activation: &Silu };
/// let (y, saved) = glu_mlp::forward(&Tensor::ones((3, 4), DType::F32, &Device::Cpu)?, weights, None)?;
/// let (deltas, counted_t) = (saved.deltas(&y.ones_like()?)?, Tensor::ones(3, DType::U8, &Device::Cpu)?);
/// let ones = Tensor::ones(6, DType::F32, &Device::Cpu)?;
/// let sets = [6, 3].map(|candidates| KeptSet { candidates, least_score: 0.0, least_hidden: 0.0 }).to_vec();
/// let asked = Removal { order_i: Tensor::arange(0u32, 6, &Device::Cpu)?, mean_up_i: ones.clone(), worth_i: ones, activation: &Silu, sets };
/// let [damage, moved] = saved.seen(&deltas, |pass| Ok([squared_removal(pass, &counted_t, &asked)?, squared_sensitivity(pass, &counted_t)?]))?;
/// let damage = damage.to_vec1::<f64>()?;
/// assert!(damage[0] < 1e-6 && damage[1] > 1.0 && moved.dims() == [6]); // nothing is removed, half is
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Removal {
    /// The neurons, the first candidate first, `[i]` u32.
    pub order_i: Tensor,
    /// ū in that order, `[i]` f32.
    pub mean_up_i: Tensor,
    /// v in that order, `[i]` f32: what a unit of h is worth.
    pub worth_i: Tensor,
    /// h(g, u).
    pub activation: &'static dyn Activation,
    /// What is kept, each apart.
    pub sets: Vec<KeptSet>,
}

/// Σ_t δ_h,i² over the tokens that are marked in `counted_t` `[t]` u8: `[i]` f64. How much the loss moves with each h.
///
/// # Errors
/// What the device reports.
pub fn squared_sensitivity(pass: &MlpBackward<'_>, counted_t: &Tensor) -> Result<Tensor> {
    let squares_ti = pass.delta_h_ti.to_dtype(DType::F32)?.sqr()?;
    squares_ti.broadcast_mul(&counted_t.to_dtype(DType::F32)?.unsqueeze(1)?)?.sum(0)?.to_dtype(DType::F64)
}

/// D of each set's complement over the tokens that are marked in `counted_t` `[t]` u8: `[s]` f64.
///
/// # Errors
/// A pass whose tokens do not share their matrices; what the device reports.
pub fn squared_removal(pass: &MlpBackward<'_>, counted_t: &Tensor, asked: &Removal) -> Result<Tensor> {
    let Some([gate_id, up_id]) = pass.input_matrices else {
        candle_core::bail!("removal: tokens of merged experts share no neurons to be taken away")
    };
    let ordered = |x: &Tensor| x.index_select(&asked.order_i, 1);
    let g_ti = pass.x_td.matmul(&gate_id.index_select(&asked.order_i, 0)?.t()?)?;
    // Scores ask nothing of the matrices but the activation between them.
    let weights = MlpWeights { gate: gate_id, up: up_id, down: up_id, activation: asked.activation };
    let take = Take { most: usize::MAX, least_score: 0.0 };
    let choice = NeuronChoice::Gate {
        mean_up_i: &asked.mean_up_i,
        worth_i: &asked.worth_i,
        candidates_i: None,
        take,
        least_hidden: 0.0,
        inputs: None,
    };
    let scores_ti = scores(&g_ti, weights, choice)?;
    let product_ti = (pass.h_ti * pass.delta_h_ti)?;
    let product_ti = match pass.gate_ti {
        Some(gate_ti) => product_ti.broadcast_mul(gate_ti)?,
        None => product_ti,
    };
    let product_ti = ordered(&product_ti.to_dtype(DType::F32)?)?;
    let all_t = product_ti.sum(1)?;
    let moved_ti = ordered(&pass.h_ti.to_dtype(DType::F32)?.abs()?)?.broadcast_mul(&asked.worth_i.unsqueeze(0)?)?;
    let counted_t = counted_t.to_dtype(DType::F64)?;
    let of_set = |set: &KeptSet| {
        let first = |x: &Tensor| x.narrow(1, 0, set.candidates);
        let mut kept_tc = first(&product_ti)?;
        for (by_ti, least) in [(&scores_ti, set.least_score), (&moved_ti, set.least_hidden)] {
            if least > 0.0 {
                kept_tc = (kept_tc * first(by_ti)?.ge(f64::from(least))?.to_dtype(DType::F32)?)?;
            }
        }
        let removed_t = (&all_t - kept_tc.sum(1)?)?.to_dtype(DType::F64)?;
        (removed_t.sqr()? * &counted_t)?.sum_all()
    };
    Tensor::stack(&asked.sets.iter().map(of_set).collect::<Result<Vec<_>>>()?, 0)
}
