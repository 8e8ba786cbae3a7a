//! Scores of single tokens, on the device: for each kept token and node of a hierarchy the mean of its neurons' scores (DESIGN §3, labels).
//!
//! A neuron's score is w_a z(a) + w_S z(S), standardised by given moments, or its Taylor score −c h δ_h, or the magnitude of that; minus a
//! baseline, where contrasted. An observation, not a function to differentiate.
//!
//! Legend: t tokens, k of them kept, i neurons.

use candle_core::{DType, Result, Tensor};

use super::ExpertNeurons;
use super::mlp_values::MlpBackward;
use super::neuron_moments::activation_and_surprise;

/// z(x) = (x − mean) / deviation, or 0 where there is no deviation, times a weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ZTerm {
    /// The weight.
    pub weight: f64,
    /// The mean.
    pub mean: f64,
    /// The deviation; `None` where nothing varies.
    pub deviation: Option<f64>,
}

impl ZTerm {
    fn of(self, x: &Tensor) -> Result<Tensor> {
        match self.deviation {
            Some(deviation) => (((x - self.mean)? / deviation)? * self.weight)?.to_dtype(DType::F64),
            None => x.zeros_like(),
        }
    }
}

/// What a neuron's score is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScoreTerms {
    /// Of a and S.
    Standardised([ZTerm; 2]),
    /// −c h δ_h, or its magnitude.
    Taylor {
        /// Its magnitude.
        magnitude: bool,
    },
}

/// How the tokens of one layer are scored.
///
/// ```
/// use tinyonn::ops::{ExpertNeurons, ScoreTerms, TokenScores, ZTerm};
///
/// // z(a) − z(S) of each neuron, and its mean over the neurons of two experts.
/// let z = |weight| ZTerm { weight, mean: 0.0, deviation: Some(1.0) };
/// let by = TokenScores {
///     terms: ScoreTerms::Standardised([z(1.0), z(-1.0)]),
///     baseline: None,
///     nodes: vec![ExpertNeurons::new(&[0, 0, 1, 1], 2)?],
/// };
/// assert_eq!(by.nodes[0].count(), 2);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct TokenScores {
    /// A neuron's score.
    pub terms: ScoreTerms,
    /// Taken from each neuron's score, `[1, i]` f64.
    pub baseline: Option<Tensor>,
    /// The neurons of each node, by level.
    pub nodes: Vec<ExpertNeurons>,
}

/// The scores of the tokens `kept_k` `[k]` u32 of a pass: `[k, Σ nodes]` f64, the levels side by side.
///
/// # Errors
/// What the device reports.
pub(crate) fn token_scores(pass: &MlpBackward<'_>, kept_k: &Tensor, by: &TokenScores) -> Result<Tensor> {
    let kept = |x_td: &Tensor| x_td.index_select(kept_k, 0);
    let own = [pass.x_td, pass.h_ti, pass.delta_y_td, pass.delta_h_ti, pass.delta_g_ti, pass.delta_u_ti].map(kept);
    let [x_td, h_ti, delta_y_td, delta_h_ti, delta_g_ti, delta_u_ti] = own;
    let gate_ti = pass.gate_ti.map(kept).transpose()?;
    let pass = MlpBackward {
        x_td: &x_td?,
        h_ti: &h_ti?,
        gate_ti: gate_ti.as_ref(),
        delta_y_td: &delta_y_td?,
        delta_h_ti: &delta_h_ti?,
        delta_g_ti: &delta_g_ti?,
        delta_u_ti: &delta_u_ti?,
        input_matrices: pass.input_matrices,
        reads_a_part: pass.reads_a_part,
    };
    let mut scores_ki = match by.terms {
        ScoreTerms::Taylor { magnitude } => {
            let gated = pass.gate_ti.map(|gate_ti| pass.h_ti * gate_ti).transpose()?;
            let taylor_ki = (gated.as_ref().unwrap_or(pass.h_ti) * pass.delta_h_ti)?.neg()?;
            (if magnitude { taylor_ki.abs()? } else { taylor_ki }).to_dtype(DType::F64)?
        }
        ScoreTerms::Standardised([za, zs]) => {
            let [a_ki, s_ki] = activation_and_surprise(&pass)?.map(|values_ki| values_ki.to_dtype(DType::F64));
            (za.of(&a_ki?)? + zs.of(&s_ki?)?)?
        }
    };
    if let Some(baseline) = &by.baseline {
        scores_ki = scores_ki.broadcast_sub(baseline)?;
    }
    let means = by.nodes.iter().map(|nodes| nodes.means(&scores_ki)).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&means, 1)
}
