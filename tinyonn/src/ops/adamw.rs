//! One AdamW update (Loshchilov and Hutter, 2019): m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g²,
//! θ ← (1 − η λ) θ − η (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε).
//!
//! A matrix may learn in part: lines (rows or columns, one a neuron) with step count t = 0 are *skipped*: neither moments nor
//! values change by a bit. Not a differentiable operation: it works on values, outside the tape.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::lanes;

/// The constants of an update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwStep {
    /// η.
    pub rate: f64,
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε.
    pub eps: f64,
    /// λ.
    pub decay: f64,
    /// The gradient is multiplied by this first (clipping, averaging).
    pub scale: f64,
}

/// The updated `[θ, m, v]`. `steps` holds t: one value for the whole tensor, or one a line of `axis` of a matrix.
///
/// # Errors
/// Shapes or devices that do not go together.
pub fn adamw(step: &AdamwStep, [p, g, m, v]: [&Tensor; 4], steps: &[u64], axis: usize) -> Result<[Tensor; 3]> {
    let whole = steps.len() == 1;
    if !whole && (p.rank() != 2 || steps.len() != p.dim(axis)?) {
        candle_core::bail!("adamw: {} step counts for axis {axis} of {:?}", steps.len(), p.shape());
    }
    if lanes::fused(&[p, g, m, v]) && (whole || axis == 0) {
        return fused(step, [p, g, m, v], steps);
    }
    plain(step, [p, g, m, v], steps, axis)
}

/// 1 − βᵗ.
fn correction(beta: f64, t: u64) -> f64 {
    1.0 - beta.powi(t.min(i32::MAX as u64) as i32)
}

fn fused(step: &AdamwStep, [p, g, m, v]: [&Tensor; 4], steps: &[u64]) -> Result<[Tensor; 3]> {
    /// Values a task of the pool updates when the whole tensor shares one step count.
    const BLOCK: usize = 1 << 14;
    let whole = steps.len() == 1;
    let line = if whole { BLOCK } else { (p.elem_count() / steps.len()).max(1) };
    let contiguous = [p.contiguous()?, g.contiguous()?, m.contiguous()?, v.contiguous()?];
    let [mut p_new, mut m_new, mut v_new] = [const { Vec::new() }; 3];
    lanes::with_slices(contiguous.each_ref(), |[p, g, m, v]| {
        (p_new, m_new, v_new) = (p.to_vec(), m.to_vec(), v.to_vec());
        let lines = p_new.par_chunks_mut(line).zip(m_new.par_chunks_mut(line)).zip(v_new.par_chunks_mut(line));
        lines.zip(g.par_chunks(line)).enumerate().for_each(|(i, (((p, m), v), g))| {
            let t = steps[if whole { 0 } else { i }];
            if t > 0 {
                lanes::vectorised(|| update(step, t, p, m, v, g));
            }
        });
    })?;
    let device = p.device();
    Ok([
        Tensor::from_vec(p_new, p.shape(), device)?,
        Tensor::from_vec(m_new, p.shape(), device)?,
        Tensor::from_vec(v_new, p.shape(), device)?,
    ])
}

#[inline(always)]
fn update(step: &AdamwStep, t: u64, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
    let (b1, b2, scale) = (step.beta1 as f32, step.beta2 as f32, step.scale as f32);
    let rate = (step.rate / correction(step.beta1, t)) as f32;
    let root = (1.0 / correction(step.beta2, t)) as f32;
    let (keep, eps) = ((1.0 - step.rate * step.decay) as f32, step.eps as f32);
    for ((p, m), (v, g)) in p.iter_mut().zip(m).zip(v.iter_mut().zip(g)) {
        let g = g * scale;
        *m = b1 * *m + (1.0 - b1) * g;
        *v = b2 * *v + (1.0 - b2) * g * g;
        *p = keep * *p - rate * *m / ((*v * root).sqrt() + eps);
    }
}

fn plain(step: &AdamwStep, [p, g, m, v]: [&Tensor; 4], steps: &[u64], axis: usize) -> Result<[Tensor; 3]> {
    let g = (g.to_dtype(m.dtype())? * step.scale)?;
    let m_new = ((m * step.beta1)? + (&g * (1.0 - step.beta1))?)?;
    let v_new = ((v * step.beta2)? + (g.sqr()? * (1.0 - step.beta2))?)?;
    // Per line: η / (1 − β₁ᵗ) and 1 / (1 − β₂ᵗ), shaped to broadcast along `axis`.
    let per_line = |f: &dyn Fn(u64) -> f64| -> Result<Tensor> {
        let values: Vec<f64> = steps.iter().map(|t| if *t == 0 { 0.0 } else { f(*t) }).collect();
        let values = Tensor::from_vec(values, steps.len(), p.device())?.to_dtype(m.dtype())?;
        match (steps.len(), axis) {
            (1, _) => values.reshape(vec![1; p.rank()]),
            (lines, 0) => values.reshape((lines, 1)),
            (lines, _) => values.reshape((1, lines)),
        }
    };
    let rate = per_line(&|t| step.rate / correction(step.beta1, t))?;
    let root = per_line(&|t| 1.0 / correction(step.beta2, t))?;
    let denominator = (v_new.broadcast_mul(&root)?.sqrt()? + step.eps)?;
    let p_new = ((p.to_dtype(m.dtype())? * (1.0 - step.rate * step.decay))?
        - (m_new.broadcast_mul(&rate)? / denominator)?)?
        .to_dtype(p.dtype())?;
    let learns = per_line(&|_| 1.0)?.to_dtype(DType::U8)?.broadcast_as(p.shape())?;
    Ok([learns.where_cond(&p_new, p)?, learns.where_cond(&m_new, m)?, learns.where_cond(&v_new, v)?])
}
