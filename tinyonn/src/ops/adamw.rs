//! One AdamW update (Loshchilov and Hutter, 2019), in place: m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g²,
//! θ ← (1 − η λ) θ − η (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε).
//!
//! A matrix may learn in part: lines (rows or columns, one a neuron) that do not learn are *skipped*: neither moments nor values change
//! by a bit. Each line has its own step count t, on the device like everything else: what decides is never read by the host.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::{Lines, lanes};

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
}

/// Updates θ, m and v where they lie. `counts` holds t after this step, `[1]` or one a line, f64; `lines` says which lines learn (`None`:
/// all; of a single entry, all or none). The gradient is multiplied by `scale` `[1]` f64 first (clipping).
///
/// # Errors
/// Shapes or devices that do not go together.
pub fn adamw(
    step: &AdamwStep,
    [p, g, m, v]: [&Tensor; 4],
    counts: &Tensor,
    lines: Option<&Lines>,
    scale: &Tensor,
) -> Result<()> {
    let count = counts.elem_count();
    let axis = lines.map_or(0, |lines| lines.axis);
    let learn_count = lines.map_or(1, |lines| lines.learn.elem_count());
    let fits = |count: usize| count == 1 || (p.rank() == 2 && p.dims()[axis] == count);
    if !fits(count) || !fits(learn_count) || (learn_count > 1 && learn_count != count) {
        candle_core::bail!("adamw: {count} step counts and {learn_count} marks for axis {axis} of {:?}", p.shape());
    }
    if lanes::fused(&[p, g, m, v]) && g.is_contiguous() {
        return fused(step, [p, g, m, v], counts, lines, scale);
    }
    let [p_new, m_new, v_new] = plain(step, [p, g, m, v], counts, lines, scale)?;
    for (old, new) in [(p, p_new), (m, m_new), (v, v_new)] {
        let flat = |tensor: &Tensor| tensor.detach().flatten_all();
        flat(old)?.slice_set(&flat(&new.contiguous()?)?, 0, 0)?;
    }
    Ok(())
}

/// 1 − βᵗ.
fn correction(beta: f64, t: f64) -> f64 {
    1.0 - beta.powi(t.min(f64::from(i32::MAX)) as i32)
}

/// What differs from line to line.
#[derive(Clone, Copy)]
struct Line {
    learns: bool,
    /// η / (1 − β₁ᵗ).
    rate: f32,
    /// 1 / (1 − β₂ᵗ).
    root: f32,
}

/// Values a task of the pool updates at once.
const BLOCK: usize = 1 << 14;

fn fused(
    step: &AdamwStep,
    [p, g, m, v]: [&Tensor; 4],
    counts: &Tensor,
    lines: Option<&Lines>,
    scale: &Tensor,
) -> Result<()> {
    let scale = lanes::with_values(scale, |scale: &[f64]| scale[0] as f32)?;
    let learn = lines.map(|lines| lanes::with_values(&lines.learn, |learn: &[u8]| learn.to_vec())).transpose()?;
    let of_line = |(at, t): (usize, &f64)| Line {
        learns: learn.as_ref().is_none_or(|learn| learn[if learn.len() == 1 { 0 } else { at }] != 0),
        rate: (step.rate / correction(step.beta1, *t)) as f32,
        root: (1.0 / correction(step.beta2, *t)) as f32,
    };
    let each = lanes::with_values(counts, |counts: &[f64]| counts.iter().enumerate().map(of_line).collect::<Vec<_>>())?;
    let columns = lines.is_some_and(|lines| lines.axis == 1) && each.len() > 1;
    let width = if columns { each.len() } else { (p.elem_count() / each.len()).max(1) };
    // Whole tensors are cut into blocks, lines are tasks of their own.
    let task = if each.len() == 1 { BLOCK } else { width };
    lanes::change(p, |p| {
        lanes::change(m, |m| {
            lanes::change(v, |v| {
                lanes::with_slices([g], |[g]| {
                    let values = p.par_chunks_mut(task).zip(m.par_chunks_mut(task)).zip(v.par_chunks_mut(task));
                    values.zip(g.par_chunks(task)).enumerate().for_each(|(at, (((p, m), v), g))| {
                        if columns {
                            lanes::vectorised(|| update_columns(step, &each, scale, [p, m, v], g));
                            return;
                        }
                        let line = each[if each.len() == 1 { 0 } else { at }];
                        if line.learns {
                            lanes::vectorised(|| update(step, line, scale, [p, m, v], g));
                        }
                    });
                })
            })
        })
    })????;
    Ok(())
}

#[inline(always)]
fn update(step: &AdamwStep, line: Line, scale: f32, [p, m, v]: [&mut [f32]; 3], g: &[f32]) {
    let (b1, b2) = (step.beta1 as f32, step.beta2 as f32);
    let (keep, eps) = ((1.0 - step.rate * step.decay) as f32, step.eps as f32);
    for ((p, m), (v, g)) in p.iter_mut().zip(m).zip(v.iter_mut().zip(g)) {
        let g = g * scale;
        *m = b1 * *m + (1.0 - b1) * g;
        *v = b2 * *v + (1.0 - b2) * g * g;
        *p = keep * *p - line.rate * *m / ((*v * line.root).sqrt() + eps);
    }
}

/// One row of a matrix whose columns are the lines.
#[inline(always)]
fn update_columns(step: &AdamwStep, each: &[Line], scale: f32, [p, m, v]: [&mut [f32]; 3], g: &[f32]) {
    for (at, line) in each.iter().enumerate().filter(|(_, line)| line.learns) {
        let at = at..at + 1;
        update(step, *line, scale, [&mut p[at.clone()], &mut m[at.clone()], &mut v[at.clone()]], &g[at]);
    }
}

fn plain(
    step: &AdamwStep,
    [p, g, m, v]: [&Tensor; 4],
    counts: &Tensor,
    lines: Option<&Lines>,
    scale: &Tensor,
) -> Result<[Tensor; 3]> {
    let wide = m.dtype();
    let g = g.to_dtype(wide)?.broadcast_mul(&scale.to_dtype(wide)?)?;
    let m_new = ((m * step.beta1)? + (&g * (1.0 - step.beta1))?)?;
    let v_new = ((v * step.beta2)? + (g.sqr()? * (1.0 - step.beta2))?)?;
    let axis = lines.map_or(0, |lines| lines.axis);
    // A number a line, shaped to broadcast along the axis.
    let along = |values: &Tensor| {
        let mut shape = vec![1; p.rank()];
        if values.elem_count() > 1 {
            shape[axis] = values.elem_count();
        }
        values.reshape(shape)
    };
    // 1 − βᵗ.
    let correction = |beta: f64| (counts * beta.ln())?.exp()?.affine(-1.0, 1.0);
    let rate = along(&(correction(step.beta1)?.recip()? * step.rate)?.to_dtype(wide)?)?;
    let root = along(&correction(step.beta2)?.recip()?.to_dtype(wide)?)?;
    let denominator = (v_new.broadcast_mul(&root)?.sqrt()? + step.eps)?;
    let p_new = ((p.to_dtype(wide)? * (1.0 - step.rate * step.decay))? - (m_new.broadcast_mul(&rate)? / denominator)?)?
        .to_dtype(p.dtype())?;
    let Some(lines) = lines else { return Ok([p_new, m_new, v_new]) };
    let learns = along(&lines.learn.ne(0u8)?.to_dtype(DType::U8)?)?.broadcast_as(p.shape())?;
    Ok([learns.where_cond(&p_new, p)?, learns.where_cond(&m_new, m)?, learns.where_cond(&v_new, v)?])
}
