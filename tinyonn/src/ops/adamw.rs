//! AdamW (Loshchilov and Hutter, 2019), in place: m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g²,
//! θ ← (1 − η λ) θ − η (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε).
//!
//! One call steps every weight of an [`UpdateTable`]. Each row of a matrix has its own step count t, on the device like everything else; rows
//! that do not learn are skipped, and bias correction is each neuron's own.

use candle_core::{Result, Tensor};

#[cfg(feature = "cuda")]
use super::adamw_kernel;
use super::lanes;
use super::update_table::{Descriptor, Rows, UpdateTable, counted};

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
}

/// Updates θ, m, v and t where they lie.
///
/// # Errors
/// Shapes or devices that do not go together; a descriptor without a second moment.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::{AdamwStep, Descriptor, UpdateTable, adamw};
///
/// let list = |values: &[f64]| Tensor::new(values, &Device::Cpu);
/// let (p, g, m, v, t) = (list(&[1.0])?, list(&[0.5])?, list(&[0.0])?, list(&[0.0])?, list(&[0.0])?);
/// let yes = Tensor::new(&[1u8], &Device::Cpu)?;
/// let of = Descriptor { weight: &p, work: None, gradient: &g, m: &m, second: Some((&v, &t)), learn: &yes, decay: 0.0 };
/// let step = AdamwStep { rate: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8 };
/// adamw(&step, &UpdateTable { descriptors: &[of], scale: &list(&[1.0])?, finite: &yes })?;
/// assert!((p.to_vec1::<f64>()?[0] - 0.9).abs() < 1e-6); // the first step is η whatever the gradient's size
/// assert_eq!(t.to_vec1::<f64>()?, [1.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn adamw(step: &AdamwStep, table: &UpdateTable<'_>) -> Result<()> {
    #[cfg(feature = "cuda")]
    {
        table.check("adamw")?;
        let (on_a_card, others): (Vec<_>, Vec<_>) = table.descriptors.iter().copied().partition(adamw_kernel::takes);
        adamw_kernel::step(step, &UpdateTable { descriptors: &on_a_card, ..*table })?;
        in_loops(step, &UpdateTable { descriptors: &others, ..*table })
    }
    #[cfg(not(feature = "cuda"))]
    in_loops(step, table)
}

fn in_loops(step: &AdamwStep, table: &UpdateTable<'_>) -> Result<()> {
    table.each("adamw", |of, learn, scale| {
        let Some((v, counts)) = of.second else { candle_core::bail!("adamw: a weight without a second moment") };
        let counts = counted(counts, learn)?;
        if !of.is_fused() {
            return plain(step, of, v, &counts, learn, scale);
        }
        let of_row = |t: &f64| Row {
            rate: (step.rate / correction(step.beta1, *t)) as f32,
            root: (1.0 / correction(step.beta2, *t)) as f32,
        };
        let each = lanes::with_values(&counts, |counts: &[f64]| counts.iter().map(of_row).collect::<Vec<_>>())?;
        of.fused(learn, scale, |row, scale, values| update(step, of.decay, each[row], scale, values))
    })
}

/// 1 − βᵗ.
fn correction(beta: f64, t: f64) -> f64 {
    1.0 - beta.powi(t.min(f64::from(i32::MAX)) as i32)
}

/// What differs from row to row.
#[derive(Clone, Copy)]
struct Row {
    /// η / (1 − β₁ᵗ).
    rate: f32,
    /// 1 / (1 − β₂ᵗ).
    root: f32,
}

#[inline(always)]
fn update(step: &AdamwStep, decay: f64, row: Row, scale: f32, (p, m, v, g): Rows<'_>) {
    let (b1, b2) = (step.beta1 as f32, step.beta2 as f32);
    let (keep, eps) = ((1.0 - step.rate * decay) as f32, step.eps as f32);
    for ((p, m), (v, g)) in p.iter_mut().zip(m).zip(v.iter_mut().zip(g)) {
        let g = g * scale;
        *m = b1 * *m + (1.0 - b1) * g;
        *v = b2 * *v + (1.0 - b2) * g * g;
        *p = keep * *p - row.rate * *m / ((*v * row.root).sqrt() + eps);
    }
}

fn plain(
    step: &AdamwStep,
    of: &Descriptor<'_>,
    v: &Tensor,
    counts: &Tensor,
    learn: &Tensor,
    scale: &Tensor,
) -> Result<()> {
    of.plain(learn, scale, [of.m, v], |p, g, held| {
        let m = ((&held[0] * step.beta1)? + (g * (1.0 - step.beta1))?)?;
        let v = ((&held[1] * step.beta2)? + (g.sqr()? * (1.0 - step.beta2))?)?;
        // 1 − βᵗ.
        let correction = |beta: f64| (counts * beta.ln())?.exp()?.affine(-1.0, 1.0);
        let rate = of.along_rows(&(correction(step.beta1)?.recip()? * step.rate)?.to_dtype(p.dtype())?)?;
        let root = of.along_rows(&correction(step.beta2)?.recip()?.to_dtype(p.dtype())?)?;
        let denominator = (v.broadcast_mul(&root)?.sqrt()? + step.eps)?;
        let p = ((p * (1.0 - step.rate * of.decay))? - (m.broadcast_mul(&rate)? / denominator)?)?;
        Ok((p, [m, v]))
    })
}
