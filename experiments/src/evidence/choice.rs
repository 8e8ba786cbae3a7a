//! What a layer takes of its neurons by a method that is no declared variant.
//!
//! Legend: B sequences of T tokens, t = B·T; d hidden, I neurons, e experts.

use candle_core::{D, DType, Tensor};
use tinyonn::Result;
use tinyonn::ops::MlpWeights;

/// What is taken of a layer.
#[derive(Clone, Debug)]
pub(crate) enum Choice {
    /// The same for every token: 1 or 0, `[I]`.
    Fixed(Tensor),
    /// The neurons whose score reaches a threshold.
    Scored { score: Score, least: f64 },
    /// Another token's scores: that which stands half a batch away.
    OfAnother { score: Score, least: f64 },
    /// For each run of tokens what the run before it would have needed: (h v)², its mean over the run; for a first run that over calibration text.
    Runs { tokens: usize, worth_i: Tensor, mean_i: Tensor, least: f64 },
    /// Inputs and hidden values of a size that reaches thresholds.
    Sizes { input: f64, hidden: f64 },
    /// Those of the `most` experts whose representatives have the largest |h|, beside those that are always taken.
    Experts { always_i: Tensor, representatives_e: Tensor, owned_ei: Tensor, most: usize },
}

/// How neurons are compared.
#[derive(Clone, Debug)]
pub(crate) enum Score {
    /// |h(g, ū)| · v.
    Gate { mean_up_i: Tensor, worth_i: Tensor },
    /// |silu(g)|.
    Activation,
    /// |h(g, u)| · v.
    Hidden { worth_i: Tensor },
}

/// The matrices' products with some tokens.
pub(crate) struct Seen<'a> {
    weights: MlpWeights<'a>,
    pub(crate) gate_ti: Tensor,
    pub(crate) up_ti: Tensor,
    pub(crate) hidden_ti: Tensor,
}

impl<'a> Seen<'a> {
    /// Of x `[t, d]`.
    pub(crate) fn new(x_td: &Tensor, weights: MlpWeights<'a>) -> Result<Self> {
        let gate_ti = x_td.matmul(&weights.gate.t()?)?;
        let up_ti = x_td.matmul(&weights.up.t()?)?;
        let hidden_ti = weights.activation.forward(&gate_ti, &up_ti)?;
        Ok(Self { weights, gate_ti, up_ti, hidden_ti })
    }
}

impl Score {
    /// `[t, I]`.
    pub(crate) fn of(&self, seen: &Seen<'_>) -> Result<Tensor> {
        let with = |up_i: &Tensor| {
            let up_ti = up_i.to_dtype(seen.gate_ti.dtype())?.broadcast_as(seen.gate_ti.shape())?.contiguous()?;
            seen.weights.activation.forward(&seen.gate_ti, &up_ti)
        };
        let size = |h_ti: &Tensor| h_ti.to_dtype(DType::F32)?.abs();
        Ok(match self {
            Self::Gate { mean_up_i, worth_i } => size(&with(mean_up_i)?)?.broadcast_mul(worth_i)?,
            Self::Activation => size(&with(&Tensor::ones(seen.gate_ti.dim(1)?, DType::F32, seen.gate_ti.device())?)?)?,
            Self::Hidden { worth_i } => size(&seen.hidden_ti)?.broadcast_mul(worth_i)?,
        })
    }
}

/// Hidden values of what is taken, zero elsewhere, and the share of the MLP's operations.
pub(crate) struct Taken {
    pub(crate) hidden_ti: Tensor,
    /// A scalar, f32.
    pub(crate) operations: Tensor,
}

impl Choice {
    /// Of x `[B, T, d]` that a layer of these matrices sees.
    pub(crate) fn take(&self, x: &Tensor, weights: MlpWeights<'_>) -> Result<Taken> {
        let (x_td, length) = (x.flatten_to(1)?, x.dim(1)?);
        if let Self::Sizes { input, hidden } = self {
            let open_td = x_td.to_dtype(DType::F32)?.abs()?.ge(*input)?;
            let seen = Seen::new(&(&x_td * open_td.to_dtype(x_td.dtype())?)?, weights)?;
            let open_ti = seen.hidden_ti.to_dtype(DType::F32)?.abs()?.ge(*hidden)?;
            let share = |open: &Tensor| open.to_dtype(DType::F32)?.mean_all();
            let operations = (((share(&open_td)? * 2.0)? + share(&open_ti)?)? / 3.0)?;
            let hidden_ti = (&seen.hidden_ti * open_ti.to_dtype(seen.hidden_ti.dtype())?)?;
            return Ok(Taken { hidden_ti, operations });
        }
        let seen = Seen::new(&x_td, weights)?;
        let open_ti = self.open(&seen, length)?;
        let hidden_ti = seen.hidden_ti.broadcast_mul(&open_ti.to_dtype(seen.hidden_ti.dtype())?)?;
        let share = open_ti.mean_all()?;
        let operations = match self {
            // All gate rows are computed.
            Self::Scored { score: Score::Gate { .. } | Score::Activation, .. } | Self::OfAnother { .. } => {
                (((share * 2.0)? + 1.0)? / 3.0)?
            }
            // Rows of W_g and W_u of the representatives.
            Self::Experts { representatives_e, owned_ei, .. } => {
                (share + 2.0 / 3.0 * representatives_e.elem_count() as f64 / owned_ei.dim(1)? as f64)?
            }
            _ => share,
        };
        Ok(Taken { hidden_ti, operations })
    }

    /// 1 for what is taken and 0 for others: `[t, I]`, or `[1, I]` where all take the same, f32.
    fn open(&self, seen: &Seen<'_>, length: usize) -> Result<Tensor> {
        let marks = |open: Tensor| open.to_dtype(DType::F32);
        Ok(match self {
            Self::Fixed(mask_i) => mask_i.unsqueeze(0)?,
            Self::Scored { score, least } => marks(score.of(seen)?.ge(*least)?)?,
            Self::OfAnother { score, least } => {
                let open_ti = marks(score.of(seen)?.ge(*least)?)?;
                let away = (open_ti.dim(0)? / 2) as i32;
                open_ti.roll(away, 0)?
            }
            Self::Runs { tokens, worth_i, mean_i, least } => {
                let scores_ti = Score::Hidden { worth_i: worth_i.clone() }.of(seen)?.sqr()?;
                marks(by_run(&scores_ti, (length, *tokens), mean_i)?.ge(*least)?)?
            }
            Self::Sizes { hidden, .. } => marks(seen.hidden_ti.to_dtype(DType::F32)?.abs()?.ge(*hidden)?)?,
            Self::Experts { always_i, representatives_e, owned_ei, most } => {
                let sizes_te = seen.hidden_ti.to_dtype(DType::F32)?.abs()?.index_select(representatives_e, 1)?;
                best(&sizes_te, *most)?.matmul(owned_ei)?.broadcast_add(always_i)?
            }
        })
    }
}

/// Scores `[t, I]` of sequences of `length` tokens: of each token the mean over the run of `tokens` before its own, `mean_i` in the first.
pub(crate) fn by_run(scores_ti: &Tensor, (length, tokens): (usize, usize), mean_i: &Tensor) -> Result<Tensor> {
    let (t, i) = scores_ti.dims2()?;
    let sequences = t / length;
    let runs = length.div_ceil(tokens);
    let scores = scores_ti.reshape((sequences, length, i))?.pad_with_zeros(1, 0, runs * tokens - length)?;
    let first = mean_i.broadcast_as((sequences, 1, i))?.contiguous()?;
    let before = scores.reshape((sequences, runs, tokens, i))?.mean(2)?.narrow(1, 0, runs - 1)?;
    let of_runs = Tensor::cat(&[first, before], 1)?.unsqueeze(2)?.broadcast_as((sequences, runs, tokens, i))?;
    let all = of_runs.contiguous()?.reshape((sequences, runs * tokens, i))?;
    Ok(all.narrow(1, 0, length)?.contiguous()?.reshape((t, i))?)
}

/// 1 for the `most` largest of each row of `[t, e]`, ties to the lower index, 0 for others.
fn best(sizes_te: &Tensor, most: usize) -> Result<Tensor> {
    let e = sizes_te.dim(D::Minus1)?;
    let mut ranks = Vec::with_capacity(e);
    for at in 0..e {
        let own = sizes_te.narrow(1, at, 1)?;
        let mut above = sizes_te.broadcast_gt(&own)?.to_dtype(DType::F32)?.sum_keepdim(1)?;
        if at > 0 {
            let equal = sizes_te.narrow(1, 0, at)?.broadcast_eq(&own)?.to_dtype(DType::F32)?;
            above = (above + equal.sum_keepdim(1)?)?;
        }
        ranks.push(above);
    }
    Ok(Tensor::cat(&ranks, 1)?.lt(most as f64)?.to_dtype(DType::F32)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use tinyonn::ops::Silu;

    /// Whoever takes all has the dense layer's values, at the cost of all.
    #[test]
    fn to_take_all_is_the_dense_layer() -> Result<()> {
        let device = &Device::Cpu;
        let drawn = |shape: (usize, usize)| Tensor::rand(-1f32, 1.0, shape, device);
        let [gate, up, down] = [drawn((6, 4))?, drawn((6, 4))?, drawn((6, 4))?];
        let weights = MlpWeights { gate: &gate, up: &up, down: &down, activation: &Silu };
        let x = drawn((6, 4))?.reshape((2, 3, 4))?;
        let dense = Seen::new(&x.flatten_to(1)?, weights)?.hidden_ti.to_vec2::<f32>()?;
        let ones = Tensor::ones(6, DType::F32, device)?;
        let by_hidden = Score::Hidden { worth_i: ones.clone() };
        for choice in [
            Choice::Fixed(ones.clone()),
            Choice::Scored { score: by_hidden, least: 0.0 },
            Choice::Scored { score: Score::Activation, least: 0.0 },
            Choice::Sizes { input: 0.0, hidden: 0.0 },
            Choice::Runs { tokens: 2, worth_i: ones.clone(), mean_i: ones, least: 0.0 },
        ] {
            let taken = choice.take(&x, weights)?;
            assert_eq!(taken.hidden_ti.to_vec2::<f32>()?, dense, "{choice:?}");
            // A mean of ones in f32, by thirds.
            assert!((taken.operations.to_scalar::<f32>()? - 1.0).abs() < 1e-6, "{choice:?}");
        }
        Ok(())
    }

    #[test]
    fn the_best_are_as_many_as_asked_for_ties_to_the_lower_index() -> Result<()> {
        let sizes = Tensor::new(&[[1f32, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]], &Device::Cpu)?;
        assert_eq!(best(&sizes, 2)?.to_vec2::<f32>()?, [[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]);
        Ok(())
    }

    #[test]
    fn a_run_is_scored_by_the_run_before_it() -> Result<()> {
        // Two sequences of five tokens in runs of two.
        let scores = Tensor::arange(0f32, 10.0, &Device::Cpu)?.reshape((10, 1))?;
        let found = by_run(&scores, (5, 2), &Tensor::new(&[9f32], &Device::Cpu)?)?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(found, [9.0, 9.0, 0.5, 0.5, 2.5, 9.0, 9.0, 5.5, 5.5, 7.5]);
        Ok(())
    }
}
