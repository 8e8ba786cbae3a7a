//! What taking neurons away from an MLP does to the loss, token by token and to first order: removing the set R changes the output of token t by
//! −Σ_{i ∈ R} c h_i w_i, and the loss by −Σ_{i ∈ R} c h_i δ_h,i. Its square, summed over tokens, is twice the second-order change under the empirical Fisher
//! information of y (Martens, 2014): D(R) = Σ_t (Σ_{i ∈ R} c h_i δ_h,i)². An observation, not a function to differentiate.
//!
//! Sets are those that a gate leaves ([`chosen_neurons`](super::chosen_neurons)): of the first so many neurons in a given order, the candidates, those are
//! kept whose score is at least τ, and whose |h| · v is at least τ_h. Where W_g reads a part of x, those that are kept have another h', and the loss changes by
//! Σ c (h'_i m_i − h_i) δ_h,i: D = Σ_t (Σ_i c (h_i − m_i h'_i) δ_h,i)².
//!
//! Legend: t tokens, d hidden, i neurons, c candidates, s sets.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::activation::Activation;
use super::chosen_neurons::{NeuronChoice, ReadInputs, Take, scores};
use super::mlp_values::MlpBackward;
use super::{MlpWeights, lanes};

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KeptSet {
    /// τ_x, the least |x_j| · n_j of a channel that W_g reads; 0 reads all of them.
    pub least_input: f32,
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
/// let sets = [6, 3].map(|candidates| KeptSet { candidates, least_input: 0.0, least_score: 0.0, least_hidden: 0.0 }).to_vec();
/// let column_norm_d = Tensor::ones(4, DType::F32, &Device::Cpu)?;
/// let order_i = Tensor::arange(0u32, 6, &Device::Cpu)?;
/// let asked = Removal { order_i, mean_up_i: ones.clone(), worth_i: ones, column_norm_d, activation: &Silu, sets };
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
    /// n, the norms of W_g's columns, `[d]` f32.
    pub column_norm_d: Tensor,
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
    let [gate_id, up_id] = [gate_id, up_id].map(|w_id| w_id.index_select(&asked.order_i, 0));
    let (gate_id, up_id) = (gate_id?, up_id?);
    let f32 = |x: &Tensor| ordered(x)?.to_dtype(DType::F32);
    let (whole_ti, mut delta_ti) = (f32(pass.h_ti)?, f32(pass.delta_h_ti)?);
    if let Some(gate_ti) = pass.gate_ti {
        delta_ti = (delta_ti * f32(gate_ti)?)?;
    }
    // In the order in which what is kept is added up: where all is, nothing is removed, to the last bit.
    let all = KeptSet { least_input: 0.0, candidates: whole_ti.dim(1)?, least_score: 0.0, least_hidden: 0.0 };
    let size = whole_ti.abs()?;
    let all_t = Pairs { score: size.clone(), size, change: (&whole_ti * &delta_ti)? }.kept(&all)?;
    let counted_t = counted_t.to_dtype(DType::F64)?;
    let reads_a_part = asked.sets.iter().any(|set| set.least_input > 0.0);
    let u_ti = if reads_a_part { Some(pass.x_td.matmul(&up_id.t()?)?) } else { None };
    let mut sums = Vec::with_capacity(asked.sets.len());
    // What W_g reads is computed once for all sets that ask the same of it.
    for sets in asked.sets.chunk_by(|a, b| a.least_input.to_bits() == b.least_input.to_bits()) {
        let least = sets.first().map_or(0.0, |set| set.least_input);
        let (g_ti, h_ti) = match &u_ti {
            Some(u_ti) if least > 0.0 => {
                let read_td = ReadInputs { size_d: &asked.column_norm_d, least, by_channel: None }.of(pass.x_td)?;
                let g_ti = read_td.matmul(&gate_id.t()?)?;
                let h_ti = asked.activation.forward(&g_ti, u_ti)?.to_dtype(DType::F32)?;
                (g_ti, h_ti)
            }
            _ => (pass.x_td.matmul(&gate_id.t()?)?, whole_ti.clone()),
        };
        // Scores ask nothing of the matrices but the activation between them.
        let weights = MlpWeights { gate: &gate_id, up: &up_id, down: &up_id, activation: asked.activation };
        let choice = NeuronChoice::Gate {
            mean_up_i: &asked.mean_up_i,
            worth_i: &asked.worth_i,
            candidates_i: None,
            take: Take { most: usize::MAX, least_score: 0.0 },
            least_hidden: 0.0,
            inputs: None,
        };
        let pairs = Pairs {
            score: scores(&g_ti, weights, choice)?,
            size: h_ti.abs()?.broadcast_mul(&asked.worth_i.unsqueeze(0)?)?,
            change: (&h_ti * &delta_ti)?,
        };
        for set in sets {
            let removed_t = (&all_t - pairs.kept(set)?)?.to_dtype(DType::F64)?;
            sums.push((removed_t.sqr()? * &counted_t)?.sum_all()?);
        }
    }
    Tensor::stack(&sums, 0)
}

/// Sums that are formed side by side.
const LANES: usize = 16;

/// Of each pair of a token and a neuron, `[t, i]` f32.
struct Pairs {
    score: Tensor,
    /// |h'| v.
    size: Tensor,
    /// h' c δ_h.
    change: Tensor,
}

impl Pairs {
    /// Σ h' c δ_h over what a set keeps, `[t]`.
    fn kept(&self, set: &KeptSet) -> Result<Tensor> {
        let all = [&self.score, &self.size, &self.change];
        if lanes::fused(&all) && all.iter().all(|x| x.is_contiguous()) {
            self.by_rows(set)
        } else {
            self.by_launches(set)
        }
    }

    fn by_launches(&self, set: &KeptSet) -> Result<Tensor> {
        let first = |x: &Tensor| x.narrow(1, 0, set.candidates);
        let mut kept_tc = first(&self.change)?;
        for (by_ti, least) in [(&self.score, set.least_score), (&self.size, set.least_hidden)] {
            if least > 0.0 {
                kept_tc = (kept_tc * first(by_ti)?.ge(f64::from(least))?.to_dtype(DType::F32)?)?;
            }
        }
        kept_tc.sum(1)
    }

    /// The same in main memory, where a launch for each step of each set would be most of the time.
    fn by_rows(&self, set: &KeptSet) -> Result<Tensor> {
        let (t, i) = self.change.dims2()?;
        let mut kept = vec![0f32; t];
        lanes::with_slices([&self.score, &self.size, &self.change], |[scores, sizes, changes]| {
            kept.par_iter_mut().enumerate().for_each(|(token, kept)| {
                let own = |of: &'_ [f32]| token * i..(token * i + set.candidates).min(of.len());
                // What is no number stays, so that it shows.
                let below = |score: f32, size: f32| score < set.least_score || size < set.least_hidden;
                let blocks = scores[own(scores)].chunks(LANES).zip(sizes[own(sizes)].chunks(LANES));
                // A sum a lane: one sum of all would wait for each addition.
                let mut lanes = [0f32; LANES];
                for ((scores, sizes), changes) in blocks.zip(changes[own(changes)].chunks(LANES)) {
                    for (((lane, score), size), change) in lanes.iter_mut().zip(scores).zip(sizes).zip(changes) {
                        *lane += if below(*score, *size) { 0.0 } else { *change };
                    }
                }
                *kept = lanes.iter().sum();
            });
        })?;
        Tensor::from_vec(kept, t, self.change.device())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// In main memory it is what the launches of a card give, to roundings of a sum of forty numbers.
    #[test]
    fn rows_are_the_launches() -> Result<()> {
        let drawn = || Tensor::randn(0f32, 1.0, (9, 40), &Device::Cpu);
        let pairs = Pairs { score: drawn()?.abs()?, size: drawn()?.abs()?, change: drawn()? };
        for (candidates, least_score, least_hidden) in [(40, 0.0, 0.0), (40, 0.5, 0.0), (31, 0.3, 0.6), (1, 0.0, 0.4)] {
            let set = KeptSet { least_input: 0.0, candidates, least_score, least_hidden };
            let apart = (pairs.by_rows(&set)? - pairs.by_launches(&set)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(apart < 1e-5, "{set:?}: {apart}");
        }
        Ok(())
    }
}
