//! Stochastic gradient descent with momentum, in place: m ← μ m + g, θ ← (1 − η λ) θ − η m, as `torch.optim.SGD` has it at a weight decay of
//! zero. (There decay is added to the gradient and passes through the momentum; here it is decoupled, as in AdamW.)

use candle_core::{Result, Tensor};

use super::row_update::RowUpdate;

/// The constants of an update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    /// η.
    pub rate: f64,
    /// μ.
    pub momentum: f64,
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
/// use tinyonn::ops::{RowUpdate, SgdStep, sgd};
///
/// let list = |values: &[f32]| Tensor::new(values, &Device::Cpu);
/// let (p, g, m) = (list(&[1.0])?, list(&[0.5])?, list(&[2.0])?);
/// let (learn, scale) = (Tensor::new(&[1u8], &Device::Cpu)?, Tensor::new(&[1f64], &Device::Cpu)?);
/// let of = RowUpdate { weight: &p, gradient: &g, learn: &learn, scale: &scale };
/// sgd(&SgdStep { rate: 0.1, momentum: 0.5, decay: 0.0 }, &of, &m)?;
/// assert_eq!((m.to_vec1::<f32>()?, p.to_vec1::<f32>()?), (vec![1.5], vec![0.85])); // 1 − 0.1 · 1.5
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn sgd(step: &SgdStep, of: &RowUpdate<'_>, m: &Tensor) -> Result<()> {
    of.check("sgd", &[m])?;
    if !of.is_fused(&[m]) {
        return of.plain([m], |p, g, held| {
            let m = ((&held[0] * step.momentum)? + g)?;
            let p = ((p * (1.0 - step.rate * step.decay))? - (&m * step.rate)?)?;
            Ok((p, [m]))
        });
    }
    let (momentum, rate, keep) = (step.momentum as f32, step.rate as f32, (1.0 - step.rate * step.decay) as f32);
    of.fused((m, None), |_, scale, (p, m, _, g)| {
        for ((p, m), g) in p.iter_mut().zip(m).zip(g) {
            *m = momentum * *m + g * scale;
            *p = keep * *p - rate * *m;
        }
    })
}
