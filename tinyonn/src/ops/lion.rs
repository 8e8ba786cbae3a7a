//! One Lion update (Chen et al., 2023, algorithm 2), in place: c = β₁ m + (1 − β₁) g, θ ← (1 − η λ) θ − η sign(c), m ← β₂ m + (1 − β₂) g.
//! sign(0) = 0.

use candle_core::{Result, Tensor};

use super::row_update::RowUpdate;

/// The constants of an update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LionStep {
    /// η.
    pub rate: f64,
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// λ.
    pub decay: f64,
}

/// Updates θ and m where they lie; rows that do not learn are skipped ([`RowUpdate`]).
///
/// # Errors
/// Shapes or devices that do not go together.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::{LionStep, RowUpdate, lion};
///
/// let list = |values: &[f32]| Tensor::new(values, &Device::Cpu);
/// let (p, g, m) = (list(&[1.0, 1.0, 1.0])?, list(&[9.0, -0.1, 0.0])?, list(&[0.0, 0.0, 0.0])?);
/// let (learn, scale) = (Tensor::new(&[1u8], &Device::Cpu)?, Tensor::new(&[1f64], &Device::Cpu)?);
/// let of = RowUpdate { weight: &p, gradient: &g, learn: &learn, scale: &scale };
/// lion(&LionStep { rate: 0.25, beta1: 0.9, beta2: 0.99, decay: 0.0 }, &of, &m)?;
/// assert_eq!(p.to_vec1::<f32>()?, [0.75, 1.25, 1.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn lion(step: &LionStep, of: &RowUpdate<'_>, m: &Tensor) -> Result<()> {
    of.check("lion", &[m])?;
    if !of.is_fused(&[m]) {
        return of.plain([m], |p, g, held| {
            let c = ((&held[0] * step.beta1)? + (g * (1.0 - step.beta1))?)?;
            let m = ((&held[0] * step.beta2)? + (g * (1.0 - step.beta2))?)?;
            let p = ((p * (1.0 - step.rate * step.decay))? - (c.sign()? * step.rate)?)?;
            Ok((p, [m]))
        });
    }
    let (b1, b2) = (step.beta1 as f32, step.beta2 as f32);
    let (rate, keep) = (step.rate as f32, (1.0 - step.rate * step.decay) as f32);
    of.fused((m, None), |_, scale, (p, m, _, g)| {
        for ((p, m), g) in p.iter_mut().zip(m).zip(g) {
            let g = g * scale;
            let c = b1 * *m + (1.0 - b1) * g;
            let sign = f32::from(u8::from(c > 0.0)) - f32::from(u8::from(c < 0.0));
            *p = keep * *p - rate * sign;
            *m = b2 * *m + (1.0 - b2) * g;
        }
    })
}
