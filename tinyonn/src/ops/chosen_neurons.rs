//! The gated MLP of [`glu_mlp`](super::glu_mlp) of which each token takes single neurons: y = W_d (h ⊙ c ⊙ m), m[t, i] ∈ {0, 1} (DESIGN §1).
//!
//! By gate, the score of neuron i for token t is what it is expected to add to the output, known before W_u x is:
//! s[t, i] = |h(g[t, i], ū_i)| · v_i, g = W_g (x ⊙ r), ū_i = E|u_i| over calibration text, v_i what a unit of h_i is worth, such as the norm of row i of W_d. Of the neurons whose gate c is not zero those are
//! taken whose score is at least τ, the `most` best of them; ties go to the lower index; where there are candidates, none but these. Of these, once W_u x of them is
//! known, those go on to W_d whose |h_i| · v_i is at least τ_h: m. Fixed, the same neurons are taken whatever the token.
//!
//! r[t, j] ∈ {0, 1} are the channels of x that W_g reads: all, or those whose |x_j| · n_j is at least τ_x, n_j the norm of column j of W_g.
//!
//! Legend: t tokens, d hidden, i neurons, n experts. The choice has no derivative; values that were not computed are zeros, for imaging too.
//! A few tokens in main memory (decoding) compute W_u and W_d of their own neurons alone: a neuron is a row of both; and W_g of the channels that they read, which are
//! rows of its transpose. More are computed by whole products, h masked.

use std::cmp::Ordering;

use candle_core::{D, DType, Device, Result, Tensor};
use rayon::prelude::*;

use super::columns::columns;
use super::glu_mlp::{MlpGate, MlpWeights, Saved};
use super::linear::rows;
use super::mlp_values::MlpValues;
use super::{chosen_rows, elementwise, lanes};

/// Tokens whose neurons are computed one by one, at most: of more, whole products are faster.
const FEW: usize = 4;
/// Halvings of the interval that the least score taken lies in, where scores are not in main memory: neighbours among the f32 below the largest score, which
/// it then ends at, lie no further apart than 2⁻²⁴ of it, and those near zero than 2⁻⁶⁴.
const HALVINGS: usize = 64;

/// How many of the best neurons a token takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Take {
    /// At most.
    pub most: usize,
    /// τ, the least score; 0 asks nothing.
    pub least_score: f32,
}

/// Which channels of x W_g reads.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::ReadInputs;
///
/// let size_d = Tensor::new(&[1f32, 10.0, 1.0], &Device::Cpu)?;
/// let read = ReadInputs { size_d: &size_d, least: 2.0, by_channel: None };
/// let x_td = Tensor::new(&[[1f32, -1.0, 3.0]], &Device::Cpu)?;
/// assert_eq!(read.of(&x_td)?.to_vec2::<f32>()?, [[0.0, -1.0, 3.0]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ReadInputs<'a> {
    /// n `[d]`, f32: the norms of W_g's columns.
    pub size_d: &'a Tensor,
    /// τ_x, the least |x_j| · n_j of a channel that is read.
    pub least: f32,
    /// W_g by channels, where it is at hand: of a few tokens, those that are not read then need not be fetched.
    pub by_channel: Option<ByChannel<'a>>,
}

/// W_gᵀ, a row a channel: what is read of W_g where x is read in part. It is kept beside W_g, a third more of the MLP in memory.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::{ByChannel, ReadInputs};
///
/// let gate_id = Tensor::rand(-1f32, 1.0, (6, 4), &Device::Cpu)?;
/// let (size_d, gate_di) = (gate_id.sqr()?.sum(0)?.sqrt()?, gate_id.t()?.contiguous()?);
/// let by_channel = ByChannel { gate_dc: &gate_di, place_i: None };
/// let read = ReadInputs { size_d: &size_d, least: 0.5, by_channel: Some(by_channel) };
/// assert_eq!(read.of(&gate_id)?.dims(), [6, 4]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ByChannel<'a> {
    /// Of the candidates in their order `[d, c]`, in the type of W_g.
    pub gate_dc: &'a Tensor,
    /// On a GPU, each neuron's column there `[i]`, u32, or `u32::MAX`; `None` on a processor, and where all neurons are candidates.
    pub place_i: Option<&'a Tensor>,
}

impl ReadInputs<'_> {
    /// x `[t, d]` with zeros for channels that are not read; what is no number is, so that it shows.
    ///
    /// # Errors
    /// Shapes that do not go together.
    pub fn of(&self, x_td: &Tensor) -> Result<Tensor> {
        let size_td = x_td.to_dtype(DType::F32)?.abs()?.broadcast_mul(&self.size_d.unsqueeze(0)?)?;
        size_td.lt(f64::from(self.least))?.where_cond(&x_td.zeros_like()?, x_td)
    }
}

/// What chooses a layer's neurons.
#[derive(Clone, Copy, Debug)]
pub enum NeuronChoice<'a> {
    /// The token's own gate values.
    Gate {
        /// ū `[i]`, f32.
        mean_up_i: &'a Tensor,
        /// v `[i]`, f32.
        worth_i: &'a Tensor,
        /// Of a fixed set alone: ones and zeros `[i]` f32; `None` is all.
        candidates_i: Option<&'a Tensor>,
        /// How many.
        take: Take,
        /// τ_h, the least |h| · v of a neuron whose row of W_d is read; 0 asks nothing.
        least_hidden: f32,
        /// Which channels of x W_g reads; `None` is all.
        inputs: Option<ReadInputs<'a>>,
    },
    /// Nobody: these, ones and zeros `[i]` f32.
    Fixed(&'a Tensor),
}

/// y = W_d (h ⊙ c ⊙ m); what its backward needs, in which h and c are zero where m is; and how many neurons each token took, `[t]` f32, of which one whose row of
/// W_u alone was needed counts half.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::{MlpWeights, NeuronChoice, Silu, Take, chosen_neurons, glu_mlp};
///
/// let matrix = |rows, columns| Tensor::randn(0f32, 1f32, (rows, columns), &Device::Cpu);
/// let (x, gate, up, down) = (matrix(3, 4)?, matrix(6, 4)?, matrix(6, 4)?, matrix(6, 4)?);
/// let weights = MlpWeights { gate: &gate, up: &up, down: &down, activation: &Silu };
/// let ones = Tensor::ones(6, candle_core::DType::F32, &Device::Cpu)?;
/// let choice = |most| NeuronChoice::Gate { mean_up_i: &ones, worth_i: &ones, candidates_i: None,
///     take: Take { most, least_score: 0.0 }, least_hidden: 0.0, inputs: None };
///
/// let (few, _, taken_t) = chosen_neurons::forward(&x, weights, None, choice(2))?;
/// assert_eq!(few.dims(), [3, 4]);
/// assert_eq!(taken_t.to_vec1::<f32>()?, [2.0, 2.0, 2.0]);
/// let (all, dense) = (chosen_neurons::forward(&x, weights, None, choice(6))?.0, glu_mlp::forward(&x, weights, None)?.0);
/// assert!((all - dense)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn forward(
    x: &Tensor,
    weights: MlpWeights<'_>,
    gate: Option<MlpGate<'_>>,
    choice: NeuronChoice<'_>,
) -> Result<(Tensor, Saved, Tensor)> {
    let (x_td, matrices) = (rows(x)?.contiguous()?, weights.matrices());
    let gate = match gate {
        Some(gate) => Some((gate.gate_tn.detach().contiguous()?, gate.neuron_expert.detach())),
        None => None,
    };
    let spread = |(gate_tn, owners): &(Tensor, Tensor)| columns(&gate_tn.to_dtype(x_td.dtype())?, owners);
    let gate_ti = gate.as_ref().map(spread).transpose()?;
    // Who takes all computes what the dense MLP computes, bit for bit.
    let all = match choice {
        NeuronChoice::Gate { take, candidates_i: None, least_hidden, inputs: None, .. } => {
            take.most >= matrices[0].dim(0)? && take.least_score <= 0.0 && least_hidden <= 0.0
        }
        _ => false,
    };
    let gate_x_td = match choice {
        NeuronChoice::Gate { inputs: Some(inputs), .. } => Some(inputs.of(&x_td)?),
        _ => None,
    };
    let few = !all && x_td.dim(0)? <= FEW && lanes::fused(&[&x_td, &matrices[0], &matrices[1], &matrices[2]]);
    if few && matrices.iter().all(Tensor::is_contiguous) {
        let (values, y_td, taken_t) = chosen_rows::forward(
            [&x_td, gate_x_td.as_ref().unwrap_or(&x_td)],
            &matrices,
            weights,
            gate_ti.as_ref(),
            choice,
        )?;
        let values = values.reading(gate_x_td);
        return Ok((y_td.reshape(x.shape())?, Saved::of(matrices, values, gate), taken_t));
    }
    let g_ti = gate_x_td.as_ref().unwrap_or(&x_td).matmul(&matrices[0].t()?)?;
    let mask_ti = match choice {
        NeuronChoice::Gate { take, candidates_i, .. } => {
            let scores_ti = scores(&g_ti, weights, choice)?;
            let open_ti = match (&gate_ti, candidates_i) {
                (gate_ti, None) => gate_ti.clone(),
                (None, Some(candidates_i)) => {
                    Some(candidates_i.unsqueeze(0)?.broadcast_as(g_ti.shape())?.contiguous()?)
                }
                (Some(gate_ti), Some(candidates_i)) => {
                    Some(gate_ti.ne(0f64)?.to_dtype(DType::F32)?.broadcast_mul(&candidates_i.unsqueeze(0)?)?)
                }
            };
            chosen(&scores_ti, open_ti.as_ref(), take)?
        }
        NeuronChoice::Fixed(kept_i) => {
            let kept_ti = kept_i.unsqueeze(0)?.broadcast_as(g_ti.shape())?.contiguous()?;
            match &gate_ti {
                Some(gate_ti) => (kept_ti * gate_ti.ne(0f64)?.to_dtype(DType::F32)?)?,
                None => kept_ti,
            }
        }
    };
    let taken_t = mask_ti.sum(D::Minus1)?;
    let u_ti = x_td.matmul(&matrices[1].t()?)?;
    let dtype = x_td.dtype();
    let h_ti = weights.activation.forward(&g_ti, &u_ti)?;
    let (mask_ti, taken_t) = match choice {
        NeuronChoice::Gate { worth_i, least_hidden, .. } if least_hidden > 0.0 => {
            let mask_ti = (mask_ti * reaching(&h_ti, worth_i, least_hidden)?)?;
            let taken_t = ((taken_t + mask_ti.sum(D::Minus1)?)? * 0.5)?;
            (mask_ti, taken_t)
        }
        _ => (mask_ti, taken_t),
    };
    let mask_ti = mask_ti.to_dtype(dtype)?;
    let h_ti = elementwise::multiply(&h_ti, &mask_ti)?;
    let gate_ti = match gate_ti {
        Some(gate_ti) => elementwise::multiply(&gate_ti, &mask_ti)?,
        None => mask_ti,
    };
    let values = MlpValues::of(weights.activation, x_td, [g_ti, u_ti, h_ti], gate_ti)?.reading(gate_x_td);
    let y = values.output(&matrices)?.reshape(x.shape())?;
    Ok((y, Saved::of(matrices, values, gate), taken_t))
}

/// s `[t, i]`, f32; a score that is no number is the largest, so that it shows.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::chosen_neurons::scores;
/// use tinyonn::ops::{MlpWeights, NeuronChoice, Silu, Take};
///
/// let matrix = Tensor::ones((2, 3), candle_core::DType::F32, &Device::Cpu)?;
/// let weights = MlpWeights { gate: &matrix, up: &matrix, down: &matrix, activation: &Silu };
/// let (mean_up_i, worth_i) = (Tensor::new(&[1f32, 1.0], &Device::Cpu)?, Tensor::new(&[1f32, 4.0], &Device::Cpu)?);
/// let choice = NeuronChoice::Gate { mean_up_i: &mean_up_i, worth_i: &worth_i, candidates_i: None,
///     take: Take { most: 1, least_score: 0.0 }, least_hidden: 0.0, inputs: None };
/// // Equal gate values: the neuron that is worth four times as much scores four times as much.
/// let s = scores(&Tensor::new(&[[2f32, 2.0]], &Device::Cpu)?, weights, choice)?.to_vec2::<f32>()?;
/// assert!((s[0][1] / s[0][0] - 4.0).abs() < 1e-5);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Shapes that do not go together.
pub fn scores(g_ti: &Tensor, weights: MlpWeights<'_>, choice: NeuronChoice<'_>) -> Result<Tensor> {
    let NeuronChoice::Gate { mean_up_i, worth_i, .. } = choice else {
        candle_core::bail!("chosen_neurons: neurons that are fixed have no scores")
    };
    let g_ti = g_ti.to_dtype(DType::F32)?;
    let mean_up_ti = mean_up_i.unsqueeze(0)?.broadcast_as(g_ti.shape())?.contiguous()?;
    let expected = weights.activation.forward(&g_ti, &mean_up_ti)?;
    if lanes::fused(&[&expected, worth_i]) && expected.is_contiguous() && worth_i.is_contiguous() {
        return elementwise::each_by_column([&expected], worth_i, |[hidden], worth| {
            let score = hidden.abs() * worth;
            if score.is_nan() { f32::INFINITY } else { score }
        });
    }
    let expected = expected.abs()?.broadcast_mul(&worth_i.unsqueeze(0)?)?;
    expected.eq(&expected)?.where_cond(&expected, &Tensor::full(f32::INFINITY, expected.shape(), expected.device())?)
}

/// Where |h| · v of h `[t, i]` reaches `least`: ones, zeros elsewhere, f32. What is no number does, so that it shows.
fn reaching(h_ti: &Tensor, worth_i: &Tensor, least: f32) -> Result<Tensor> {
    let h_ti = h_ti.to_dtype(DType::F32)?;
    if lanes::fused(&[&h_ti, worth_i]) && h_ti.is_contiguous() && worth_i.is_contiguous() {
        return elementwise::each_by_column([&h_ti], worth_i, |[hidden], worth| {
            f32::from(u8::from(reaches(hidden, worth, least)))
        });
    }
    let below_ti = h_ti.abs()?.broadcast_mul(&worth_i.unsqueeze(0)?)?.lt(f64::from(least))?;
    below_ti.eq(0f64)?.to_dtype(DType::F32)
}

/// Whether a neuron's row of W_d is read.
pub(super) fn reaches(hidden: f32, worth: f32, least: f32) -> bool {
    let moved = hidden.abs() * worth;
    moved >= least || moved.is_nan()
}

/// m `[t, i]`, ones and zeros, f32: of scores that are not negative, among the neurons whose gate (any numbers `[t, i]`) is not zero.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::Take;
/// use tinyonn::ops::chosen_neurons::chosen;
///
/// let scores_ti = Tensor::new(&[[0.5f32, 0.1, 0.9], [0.3, 0.2, 0.1]], &Device::Cpu)?;
/// // At most two, none below 0.25.
/// let taken = chosen(&scores_ti, None, Take { most: 2, least_score: 0.25 })?;
/// assert_eq!(taken.to_vec2::<f32>()?, [[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Shapes that do not go together.
pub fn chosen(scores_ti: &Tensor, gate_ti: Option<&Tensor>, take: Take) -> Result<Tensor> {
    let (t, i) = scores_ti.dims2()?;
    // Whoever stands for no choice has a score below all that are asked for.
    let scores_ti = match gate_ti {
        Some(gate_ti) => gate_ti.ne(0f64)?.where_cond(scores_ti, &Tensor::full(-1f32, (t, i), scores_ti.device())?)?,
        None => scores_ti.clone(),
    };
    let least = f64::from(take.least_score.max(0.0));
    if take.most >= i {
        return scores_ti.ge(least)?.to_dtype(DType::F32);
    }
    if !scores_ti.device().is_cpu() {
        return chosen_on_device(&scores_ti, take.most, least);
    }
    let scores_ti = scores_ti.contiguous()?;
    let mut mask = vec![0f32; t * i];
    lanes::with_slices([&scores_ti], |[scores]| {
        mask.par_chunks_mut(i.max(1)).zip(scores.par_chunks(i.max(1))).for_each(|(mask, scores)| {
            best_of(scores, take).iter().for_each(|at| mask[*at as usize] = 1.0);
        });
    })?;
    Tensor::from_vec(mask, (t, i), &Device::Cpu)
}

/// The neurons that are taken of one token's scores, ascending.
pub(super) fn best_of(scores: &[f32], take: Take) -> Vec<u32> {
    let least = take.least_score.max(0.0);
    let mut best: Vec<u32> = (0..scores.len() as u32).filter(|at| scores[*at as usize] >= least).collect();
    if take.most == 0 {
        best.clear();
    }
    if take.most < best.len() {
        let mut values: Vec<f32> = best.iter().map(|at| scores[*at as usize]).collect();
        let (_, last, _) = values.select_nth_unstable_by(take.most - 1, |a, b| b.total_cmp(a));
        let last = *last;
        // Of those that score as the last one taken does, the first so many as are left.
        let above = best.iter().filter(|at| scores[**at as usize].total_cmp(&last).is_gt()).count();
        let mut left = take.most - above;
        best.retain(|at| match scores[*at as usize].total_cmp(&last) {
            Ordering::Greater => true,
            Ordering::Equal if left > 0 => {
                left -= 1;
                true
            }
            _ => false,
        });
    }
    best
}

/// As [`best_of`] of all tokens, by comparisons and sums alone: the host reads nothing.
fn chosen_on_device(scores_ti: &Tensor, most: usize, least: f64) -> Result<Tensor> {
    let count = |mask_ti: &Tensor| mask_ti.to_dtype(DType::F32)?.sum_keepdim(1);
    let most = most as f64;
    // At least `most` lie above `low` (or it is below all), fewer than `most` above `high`, which ends at the score of the last one taken.
    let mut high = scores_ti.max_keepdim(1)?.clamp(0f32, f32::MAX)?;
    let mut low = (high.zeros_like()? - 1.0)?;
    for _ in 0..HALVINGS {
        let middle = ((&low + &high)? * 0.5)?;
        let few = count(&scores_ti.broadcast_gt(&middle)?)?.lt(most)?;
        (low, high) = (few.where_cond(&low, &middle)?, few.where_cond(&middle, &high)?);
    }
    let above_ti = scores_ti.broadcast_gt(&high)?;
    let level_ti = (scores_ti.broadcast_gt(&low)?.to_dtype(DType::F32)? - above_ti.to_dtype(DType::F32)?)?;
    let left = (count(&above_ti)?.neg()? + most)?;
    // Of equals those before an index, found by halving it: the first so many as are left.
    let i = scores_ti.dim(1)?;
    let at_1i = Tensor::arange(0f32, i as f32, scores_ti.device())?.unsqueeze(0)?;
    let (mut from, mut to) = (left.zeros_like()?, (left.zeros_like()? + i as f64)?);
    for _ in 0..=i.max(1).ilog2() {
        let middle = ((&from + &to)? * 0.5)?.floor()?;
        let within = level_ti.mul(&at_1i.broadcast_lt(&middle)?.to_dtype(DType::F32)?)?.sum_keepdim(1)?;
        let fits = within.le(&left)?;
        (from, to) = (fits.where_cond(&middle, &from)?, fits.where_cond(&to, &middle)?);
    }
    let within = level_ti.mul(&level_ti)?.sum_keepdim(1)?.le(&left)?;
    let bound = within.where_cond(&(from.zeros_like()? + i as f64)?, &from)?;
    let taken_ti =
        (level_ti.mul(&at_1i.broadcast_lt(&bound)?.to_dtype(DType::F32)?)? + above_ti.to_dtype(DType::F32)?)?;
    taken_ti.mul(&scores_ti.ge(least)?.to_dtype(DType::F32)?)
}

#[cfg(test)]
mod tests {
    use rand::Rng as _;

    use super::*;
    use crate::random;

    /// Comparisons and sums take what sorting takes, ties and all.
    #[test]
    fn on_a_device_it_is_the_same_choice() -> Result<()> {
        let mut rng = random::stream(3, "chosen");
        for (t, i) in [(1, 1), (3, 2), (40, 17), (9, 300)] {
            // Few values: many ties.
            let scores: Vec<f32> =
                (0..t * i).map(|_| [0.0, 0.25, 1.0, 1e-6, 3.0, -1.0][rng.random_range(0..6)]).collect();
            let scores_ti = Tensor::from_vec(scores, (t, i), &Device::Cpu)?;
            for (most, least_score) in [(1, 0.0), (i / 2, 0.0), (i / 2, 0.5), (i - 1, 0.0)] {
                let take = Take { most, least_score };
                let expected = chosen(&scores_ti, None, take)?.to_vec2::<f32>()?;
                let found = chosen_on_device(&scores_ti, most, f64::from(least_score))?.to_vec2::<f32>()?;
                assert_eq!(found, expected, "{t} {i} {take:?}");
            }
        }
        Ok(())
    }
}
