//! What imaging keeps of one backward pass: for each neuron the sums over tokens of a, a², S, S² and the Taylor score.
//!
//! a = |c h|, S² = ‖δ_y‖² (c h)² + (δ_g² + δ_u²) ‖x‖², taylor = −c h δ_h (DESIGN §3): S is the norm of the token's
//! contribution to the gradient of the neuron's weights, an outer product in each of the three matrices. Sums are f64.
//! An observation, not a function to differentiate.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::lanes;
use super::swiglu_mlp::MlpBackward;

/// Σ over tokens, by neuron: `[Σa, Σa², ΣS, ΣS², Σtaylor]`, each of length i.
pub type NeuronSums = [Vec<f64>; 5];

/// Tokens a task of the pool sums at once; a constant, so that sums do not depend on the number of threads.
const TOKENS: usize = 256;

/// The five sums over the tokens of a pass.
///
/// # Errors
/// Whatever candle reports.
pub fn neuron_moments(pass: &MlpBackward<'_>) -> Result<NeuronSums> {
    let gated = pass.gate_ti.map(|gate_ti| pass.h_ti * gate_ti).transpose()?;
    let h_ti = gated.as_ref().unwrap_or(pass.h_ti);
    let inputs = [h_ti, pass.delta_h_ti, pass.delta_g_ti, pass.delta_u_ti];
    if lanes::fused(&[h_ti, pass.delta_y_td, pass.x_td]) {
        return fused(inputs, &squared_norms(pass.delta_y_td)?, &squared_norms(pass.x_td)?);
    }
    let [a_ti, s_ti] = activation_and_surprise(pass)?;
    let taylor_ti = (h_ti * pass.delta_h_ti)?.neg()?;
    let sum = |x: &Tensor| x.to_dtype(DType::F64)?.sum(0)?.to_vec1::<f64>();
    let squares = |x: &Tensor| x.to_dtype(DType::F64)?.sqr()?.sum(0)?.to_vec1::<f64>();
    Ok([sum(&a_ti)?, squares(&a_ti)?, sum(&s_ti)?, squares(&s_ti)?, sum(&taylor_ti)?])
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

fn fused(inputs: [&Tensor; 4], y2: &[f32], x2: &[f32]) -> Result<NeuronSums> {
    let (t, width) = inputs[0].dims2()?;
    lanes::with_slices(inputs, |slices| {
        let partial: Vec<NeuronSums> = (0..t.div_ceil(TOKENS))
            .into_par_iter()
            .map(|block| {
                let tokens = block * TOKENS..t.min((block + 1) * TOKENS);
                lanes::vectorised(|| sum_tokens(tokens, width, slices, y2, x2))
            })
            .collect();
        let mut total: NeuronSums = std::array::from_fn(|_| vec![0.0; width]);
        for part in partial {
            for (total, part) in total.iter_mut().zip(&part) {
                total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
            }
        }
        total
    })
}

#[inline(always)]
fn sum_tokens(
    tokens: std::ops::Range<usize>,
    width: usize,
    [h, delta_h, delta_g, delta_u]: [&[f32]; 4],
    y2: &[f32],
    x2: &[f32],
) -> NeuronSums {
    let mut sums: NeuronSums = std::array::from_fn(|_| vec![0.0; width]);
    let [a1, a2, s1, s2, t1] = sums.each_mut().map(|sum| &mut sum[..width]);
    for t in tokens {
        let at = t * width..(t + 1) * width;
        let (h, delta_h) = (&h[at.clone()], &delta_h[at.clone()]);
        let (delta_g, delta_u) = (&delta_g[at.clone()], &delta_u[at]);
        let (y2, x2) = (y2[t], x2[t]);
        for i in 0..width {
            let squared = y2 * h[i] * h[i] + (delta_g[i] * delta_g[i] + delta_u[i] * delta_u[i]) * x2;
            let (a, s) = (f64::from(h[i].abs()), f64::from(squared.sqrt()));
            a1[i] += a;
            a2[i] += a * a;
            s1[i] += s;
            s2[i] += s * s;
            t1[i] -= f64::from(h[i] * delta_h[i]);
        }
    }
    sums
}
