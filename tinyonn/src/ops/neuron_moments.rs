//! What imaging keeps of one backward pass: for each neuron the sums over tokens of a, a², S, S², the Taylor score and the
//! number of tokens with S > 0.
//!
//! a = |c h|, S² = ‖δ_y‖² (c h)² + (δ_g² + δ_u²) ‖x‖², taylor = −c h δ_h (DESIGN §3): S is the norm of the token's
//! contribution to the gradient of the neuron's weights, an outer product in each of the three matrices. Sums are f64.
//! An observation, not a function to differentiate.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::glu_mlp::MlpBackward;
use super::lanes;

/// Σ over tokens, by neuron.
#[derive(Clone, Debug, PartialEq)]
pub struct NeuronSums {
    /// Σ a.
    pub activation: Vec<f64>,
    /// Σ a².
    pub activation_squared: Vec<f64>,
    /// Σ S.
    pub surprise: Vec<f64>,
    /// Σ S².
    pub surprise_squared: Vec<f64>,
    /// Σ taylor.
    pub taylor: Vec<f64>,
    /// Tokens with S > 0.
    pub surprised: Vec<f64>,
}

impl NeuronSums {
    /// Nothing seen, for `width` neurons.
    #[must_use]
    pub fn zero(width: usize) -> Self {
        let zeros = || vec![0.0; width];
        Self {
            activation: zeros(),
            activation_squared: zeros(),
            surprise: zeros(),
            surprise_squared: zeros(),
            taylor: zeros(),
            surprised: zeros(),
        }
    }

    /// The six sums, in the order of the fields.
    #[must_use]
    pub fn each(&self) -> [&Vec<f64>; 6] {
        [
            &self.activation,
            &self.activation_squared,
            &self.surprise,
            &self.surprise_squared,
            &self.taylor,
            &self.surprised,
        ]
    }

    /// As [`each`](Self::each), to change.
    pub fn each_mut(&mut self) -> [&mut Vec<f64>; 6] {
        [
            &mut self.activation,
            &mut self.activation_squared,
            &mut self.surprise,
            &mut self.surprise_squared,
            &mut self.taylor,
            &mut self.surprised,
        ]
    }

    /// Adds what another pass over other tokens saw.
    pub fn add(&mut self, other: &Self) {
        for (sum, other) in self.each_mut().into_iter().zip(other.each()) {
            sum.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
        }
    }
}

/// Tokens a task of the pool sums at once; a constant, so that sums do not depend on the number of threads.
const TOKENS: usize = 256;

/// The sums over the tokens t of a pass for which `counted[t]`: padding and positions without a target count nowhere.
///
/// # Errors
/// A `counted` of another length than the pass; whatever candle reports.
pub fn neuron_moments(pass: &MlpBackward<'_>, counted: &[bool]) -> Result<NeuronSums> {
    let (t, _) = pass.h_ti.dims2()?;
    if counted.len() != t {
        candle_core::bail!("neuron_moments: {} marks for {t} tokens", counted.len());
    }
    let gated = pass.gate_ti.map(|gate_ti| pass.h_ti * gate_ti).transpose()?;
    let h_ti = gated.as_ref().unwrap_or(pass.h_ti);
    if lanes::fused(&[h_ti, pass.delta_y_td, pass.x_td]) {
        let inputs = [h_ti, pass.delta_h_ti, pass.delta_g_ti, pass.delta_u_ti];
        return fused(inputs, &squared_norms(pass.delta_y_td)?, &squared_norms(pass.x_td)?, counted);
    }
    let marks: Vec<f64> = counted.iter().map(|counted| f64::from(u8::from(*counted))).collect();
    let marks_1t = Tensor::from_vec(marks, (1, t), h_ti.device())?;
    let [a_ti, s_ti] = activation_and_surprise(pass)?;
    let [a_ti, s_ti, taylor_ti] = [a_ti, s_ti, (h_ti * pass.delta_h_ti)?.neg()?].map(|x| x.to_dtype(DType::F64));
    let (a_ti, s_ti) = (a_ti?, s_ti?);
    let sum = |x: &Tensor| marks_1t.matmul(x)?.squeeze(0)?.to_vec1::<f64>();
    Ok(NeuronSums {
        activation: sum(&a_ti)?,
        activation_squared: sum(&a_ti.sqr()?)?,
        surprise: sum(&s_ti)?,
        surprise_squared: sum(&s_ti.sqr()?)?,
        taylor: sum(&taylor_ti?)?,
        surprised: sum(&s_ti.gt(0f64)?.to_dtype(DType::F64)?)?,
    })
}

/// a and S of every token and neuron, `[t, i]` f32: the definition, in plain operations.
///
/// # Errors
/// Whatever candle reports.
pub fn activation_and_surprise(pass: &MlpBackward<'_>) -> Result<[Tensor; 2]> {
    let wide = |x: &Tensor| x.to_dtype(if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 });
    let mut h_ti = wide(pass.h_ti)?;
    if let Some(gate_ti) = pass.gate_ti {
        h_ti = (h_ti * wide(gate_ti)?)?;
    }
    let y_t1 = wide(pass.delta_y_td)?.sqr()?.sum_keepdim(1)?;
    let x_t1 = wide(pass.x_td)?.sqr()?.sum_keepdim(1)?;
    let input_ti = (wide(pass.delta_g_ti)?.sqr()? + wide(pass.delta_u_ti)?.sqr()?)?.broadcast_mul(&x_t1)?;
    let surprise_ti = (h_ti.sqr()?.broadcast_mul(&y_t1)? + input_ti)?.sqrt()?;
    Ok([h_ti.abs()?, surprise_ti])
}

/// ‖row‖² of each row.
fn squared_norms(x_td: &Tensor) -> Result<Vec<f32>> {
    let d = x_td.dim(1)?;
    let x_td = x_td.contiguous()?;
    lanes::with_slices([&x_td], |[x]| lanes::vectorised(|| x.chunks_exact(d).map(|row| lanes::dot(row, row)).collect()))
}

fn fused(inputs: [&Tensor; 4], y2: &[f32], x2: &[f32], counted: &[bool]) -> Result<NeuronSums> {
    let (t, width) = inputs[0].dims2()?;
    lanes::with_slices(inputs, |slices| {
        let partial: Vec<NeuronSums> = (0..t.div_ceil(TOKENS))
            .into_par_iter()
            .map(|block| {
                let mut sums = NeuronSums::zero(width);
                lanes::vectorised(|| {
                    for t in (block * TOKENS..t.min((block + 1) * TOKENS)).filter(|t| counted[*t]) {
                        add_token(&mut sums, slices.map(|slice| &slice[t * width..][..width]), y2[t], x2[t]);
                    }
                });
                sums
            })
            .collect();
        let mut total = NeuronSums::zero(width);
        partial.iter().for_each(|part| total.add(part));
        total
    })
}

#[inline(always)]
fn add_token(sums: &mut NeuronSums, [h, delta_h, delta_g, delta_u]: [&[f32]; 4], y2: f32, x2: f32) {
    let width = h.len();
    let [a1, a2, s1, s2, taylor, surprised] = sums.each_mut().map(|sum| &mut sum[..width]);
    let (delta_h, delta_g, delta_u) = (&delta_h[..width], &delta_g[..width], &delta_u[..width]);
    for i in 0..width {
        let squared = y2 * h[i] * h[i] + (delta_g[i] * delta_g[i] + delta_u[i] * delta_u[i]) * x2;
        let (a, s) = (f64::from(h[i].abs()), f64::from(squared.sqrt()));
        a1[i] += a;
        a2[i] += a * a;
        s1[i] += s;
        s2[i] += s * s;
        taylor[i] -= f64::from(h[i] * delta_h[i]);
        surprised[i] += f64::from(u8::from(squared > 0.0));
    }
}
