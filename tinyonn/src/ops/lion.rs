//! Lion (Chen et al., 2023, algorithm 2), in place, of every weight of an [`UpdateTable`]: c = β₁ m + (1 − β₁) g, θ ← (1 − η λ) θ − η sign(c), m ← β₂ m + (1 − β₂) g.
//! sign(0) = 0.

use candle_core::Result;

use super::update_table::UpdateTable;

/// The constants of an update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LionStep {
    /// η.
    pub rate: f64,
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
}

/// Updates θ and m where they lie.
///
/// # Errors
/// Shapes or devices that do not go together.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::{Descriptor, LionStep, UpdateTable, lion};
///
/// let list = |values: &[f32]| Tensor::new(values, &Device::Cpu);
/// let (p, g, m) = (list(&[1.0, 1.0, 1.0])?, list(&[9.0, -0.1, 0.0])?, list(&[0.0, 0.0, 0.0])?);
/// let (yes, scale) = (Tensor::new(&[1u8], &Device::Cpu)?, Tensor::new(&[1f64], &Device::Cpu)?);
/// let of = Descriptor { weight: &p, work: None, gradient: &g, m: &m, second: None, learn: &yes, decay: 0.0 };
/// let step = LionStep { rate: 0.25, beta1: 0.9, beta2: 0.99 };
/// lion(&step, &UpdateTable { descriptors: &[of], scale: &scale, finite: &yes })?;
/// assert_eq!(p.to_vec1::<f32>()?, [0.75, 1.25, 1.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn lion(step: &LionStep, table: &UpdateTable<'_>) -> Result<()> {
    table.each("lion", |of, learn, scale| {
        if !of.is_fused() {
            return of.plain(learn, scale, [of.m], |p, g, held| {
                let c = ((&held[0] * step.beta1)? + (g * (1.0 - step.beta1))?)?;
                let m = ((&held[0] * step.beta2)? + (g * (1.0 - step.beta2))?)?;
                let p = ((p * (1.0 - step.rate * of.decay))? - (c.sign()? * step.rate)?)?;
                Ok((p, [m]))
            });
        }
        let (b1, b2) = (step.beta1 as f32, step.beta2 as f32);
        let (rate, keep) = (step.rate as f32, (1.0 - step.rate * of.decay) as f32);
        of.fused(learn, scale, |_, scale, (p, m, _, g)| {
            for ((p, m), g) in p.iter_mut().zip(m).zip(g) {
                let g = g * scale;
                let c = b1 * *m + (1.0 - b1) * g;
                let sign = f32::from(u8::from(c > 0.0)) - f32::from(u8::from(c < 0.0));
                *p = keep * *p - rate * sign;
                *m = b2 * *m + (1.0 - b2) * g;
            }
        })
    })
}
