//! Surprise Min-K's decision, on the device: of the experts that compete, the k of least key (DESIGN §4). Ties go to the lower index.
//!
//! Two surprises make keys. S_n = √( Σ over its tokens t and neurons i of S²(t, i) / (tokens × width) ), S²(t, i) = ‖δ_y‖² (c h)² +
//! (δ_g² + δ_u²) ‖x‖², is known before any weight gradient, so those of the losers are never formed. The other is the norm of the whole gradient.
//! Nothing is read by the host.
//!
//! Legend: t tokens, i neurons, n experts.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::grad_site::{GradSite, gated, wide};
use super::lanes;
use super::mlp_values::MlpBackward;
#[cfg(feature = "cuda")]
use super::neuron_moments::Imaging;

/// Who competed, and who learns.
#[derive(Clone, Debug)]
pub struct MinK {
    /// 1 for experts that competed, `[n]` u8.
    pub active_n: Tensor,
    /// 1 for those that learn, `[n]` u8.
    pub learn_n: Tensor,
}

/// Tokens a task of the pool sums at once; a constant, so that sums do not depend on the number of threads.
const TOKENS: usize = 256;

/// Σ over the counted tokens (1 in `counted_t`, `[t]` u8; all where `None`) of S² of every neuron, `[i]` f64.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::min_k::surprise;
///
/// let of = |values: &[f64]| Tensor::new(values, &Device::Cpu);
/// // Σ S² = 8 over two tokens and four neurons, and an expert that was given nothing.
/// let s = surprise(&of(&[8.0, 0.0])?, &of(&[2.0, 0.0])?, &of(&[4.0, 4.0])?)?;
/// assert_eq!(s.to_vec1::<f64>()?, [1.0, 0.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// ```
/// use tinyonn::ops::{MlpWeights, Silu, SlicedMlp as _, glu_mlp, min_k::surprise_squares};
/// use candle_core::{DType, Device, Tensor};
///
/// let w = Tensor::ones((6, 4), DType::F32, &Device::Cpu)?;
/// let weights = MlpWeights { gate: &w, up: &w, down: &w, activation: &Silu };
/// let (y, saved) = glu_mlp::forward(&Tensor::ones((3, 4), DType::F32, &Device::Cpu)?, weights, None)?;
/// let deltas = saved.deltas(&y.ones_like()?)?;
/// let squares = saved.seen(&deltas, |pass| surprise_squares(pass, None))?.to_vec1::<f64>()?;
/// assert!(squares.iter().all(|square| *square > 0.0 && *square == squares[0])); // neurons that are alike
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// What the device reports.
pub fn surprise_squares(seen: &MlpBackward<'_>, counted_t: Option<&Tensor>) -> Result<Tensor> {
    let (t, width) = seen.h_ti.dims2()?;
    #[cfg(feature = "cuda")]
    {
        let h_ti = seen.gate_ti.map_or(Ok(seen.h_ti.clone()), |gate_ti| seen.h_ti * gate_ti)?;
        if super::image_kernel::takes(&h_ti, seen, &Imaging::default())? {
            return super::image_kernel::surprise_squares(&h_ti, seen, counted_t);
        }
    }
    if !lanes::fused(&[seen.h_ti, seen.delta_y_td, seen.x_td]) {
        let squares_ti = GradSite::Weight.neuron_squares(seen)?.to_dtype(DType::F64)?;
        let marks_1t = match counted_t {
            Some(counted_t) => counted_t.to_dtype(DType::F64)?.unsqueeze(0)?,
            None => Tensor::ones((1, t), DType::F64, squares_ti.device())?,
        };
        return marks_1t.matmul(&squares_ti)?.squeeze(0);
    }
    let counted = counted_t.map(|counted_t| lanes::with_values(counted_t, |counted: &[u8]| counted.to_vec()));
    let counted = counted.transpose()?;
    let h_ti = gated(seen)?;
    let (d, inputs) = (seen.x_td.dim(1)?, [&h_ti, seen.delta_g_ti, seen.delta_u_ti, seen.x_td, seen.delta_y_td]);
    let sums = lanes::with_slices(inputs, |[h, g, u, x, dy]| {
        let of_block = |block: usize| {
            let mut sums = vec![0f64; width];
            lanes::vectorised(|| {
                let counts = |t: &usize| counted.as_ref().is_none_or(|counted| counted[*t] != 0);
                for t in (block * TOKENS..t.min((block + 1) * TOKENS)).filter(counts) {
                    let row = |values: &'_ [f32], width: usize| -> f32 {
                        let row = &values[t * width..][..width];
                        lanes::dot(row, row)
                    };
                    let (x2, y2) = (row(x, d), row(dy, d));
                    let [h, g, u] = [h, g, u].map(|values| &values[t * width..][..width]);
                    for (i, sum) in sums.iter_mut().enumerate() {
                        *sum += f64::from(y2 * h[i] * h[i] + (g[i] * g[i] + u[i] * u[i]) * x2);
                    }
                }
            });
            sums
        };
        let parts: Vec<Vec<f64>> = (0..t.div_ceil(TOKENS)).into_par_iter().map(of_block).collect();
        let mut sums = vec![0f64; width];
        for part in parts {
            sums.iter_mut().zip(&part).for_each(|(sum, part)| *sum += part);
        }
        sums
    })?;
    Tensor::from_vec(sums, width, seen.h_ti.device())
}

/// Σ of the squares of each neuron's rows of ∂L/∂W_g, ∂L/∂W_u and ∂L/∂W_d, `[i]` f64. Each matrix is formed and dropped again.
///
/// # Errors
/// What the device reports.
pub(crate) fn gradient_squares(seen: &MlpBackward<'_>) -> Result<Tensor> {
    let h_ti = gated(seen)?;
    let factors = [(seen.delta_g_ti, seen.x_td), (seen.delta_u_ti, seen.x_td), (&h_ti, seen.delta_y_td)];
    let squares_i =
        |(v_ti, a_td): (&Tensor, &Tensor)| wide(v_ti)?.t()?.matmul(&wide(a_td)?)?.sqr()?.sum(1)?.to_dtype(DType::F64);
    let [gate, up, down] = factors.map(squares_i);
    (gate? + up?)? + down?
}

/// S_n of experts by Σ S² (`squares_n`), the tokens that each was given and its width, `[n]` f64 each; 0 of one without a token.
///
/// # Errors
/// Shapes or devices that do not go together.
pub fn surprise(squares_n: &Tensor, tokens_n: &Tensor, width_n: &Tensor) -> Result<Tensor> {
    (squares_n / (tokens_n.maximum(1f64)? * width_n)?)?.sqrt()
}

impl MinK {
    /// The `k` active experts of least `key_n` `[n]`, or so many of each group where `group_n` `[n]` u32 says of each which it is in; the others do
    /// not compete, whatever their key. A key that is no finite number goes before all others: its gradient is then there to be seen, and the step
    /// is refused as a whole.
    ///
    /// # Errors
    /// Shapes or devices that do not go together.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use tinyonn::ops::MinK;
    ///
    /// let keys = Tensor::new(&[1f64, 2.0, 2.0, 0.0], &Device::Cpu)?;
    /// let active = Tensor::new(&[1u8, 1, 1, 0], &Device::Cpu)?; // the last does not compete
    /// let choice = MinK::by(&keys, active.clone(), 2, None)?;
    /// assert_eq!(choice.learn_n.to_vec1::<u8>()?, [1, 1, 0, 0]);
    /// let groups = Tensor::new(&[0u32, 0, 1, 1], &Device::Cpu)?;
    /// let choice = MinK::by(&keys, active, 1, Some(&groups))?;
    /// assert_eq!(choice.learn_n.to_vec1::<u8>()?, [1, 0, 1, 0]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn by(key_n: &Tensor, active_n: Tensor, k: usize, group_n: Option<&Tensor>) -> Result<Self> {
        let n = key_n.dims1()?;
        let first_n = Tensor::full(f64::NEG_INFINITY, n, key_n.device())?.to_dtype(key_n.dtype())?;
        let key_n = key_n.lt(f64::INFINITY)?.where_cond(key_n, &first_n)?;
        let (own, other) = (key_n.unsqueeze(1)?, key_n.unsqueeze(0)?);
        let at = Tensor::arange(0, n as u32, key_n.device())?;
        let before = at.unsqueeze(0)?.broadcast_lt(&at.unsqueeze(1)?)?;
        let mut ahead = (other.broadcast_lt(&own)? + (other.broadcast_eq(&own)? * before)?)?;
        if let Some(group_n) = group_n {
            ahead = (ahead * group_n.unsqueeze(0)?.broadcast_eq(&group_n.unsqueeze(1)?)?)?;
        }
        let rank_n = ahead.broadcast_mul(&active_n.unsqueeze(0)?)?.to_dtype(DType::F32)?.sum(1)?;
        let learn_n = (rank_n.lt(k.min(n) as f64)? * &active_n)?;
        Ok(Self { active_n, learn_n })
    }
}
