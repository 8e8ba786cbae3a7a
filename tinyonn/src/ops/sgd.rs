//! Stochastic gradient descent with momentum, in place, of every weight of an [`UpdateTable`]: m ← μ m + g, θ ← (1 − η λ) θ − η m, as `torch.optim.SGD` has it at a weight decay of
//! zero. (There decay is added to the gradient and passes through the momentum; here it is decoupled, as in AdamW.)

use candle_core::Result;

use super::update_table::UpdateTable;

/// The constants of an update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    /// η.
    pub rate: f64,
    /// μ.
    pub momentum: f64,
}

/// Updates θ and m where they lie.
///
/// # Errors
/// Shapes or devices that do not go together.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::{Descriptor, SgdStep, UpdateTable, sgd};
///
/// let list = |values: &[f32]| Tensor::new(values, &Device::Cpu);
/// let (p, g, m) = (list(&[1.0])?, list(&[0.5])?, list(&[2.0])?);
/// let (yes, scale) = (Tensor::new(&[1u8], &Device::Cpu)?, Tensor::new(&[1f64], &Device::Cpu)?);
/// let of = Descriptor { weight: &p, work: None, gradient: &g, m: &m, second: None, learn: &yes, decay: 0.0 };
/// sgd(&SgdStep { rate: 0.1, momentum: 0.5 }, &UpdateTable { descriptors: &[of], scale: &scale, finite: &yes })?;
/// assert_eq!((m.to_vec1::<f32>()?, p.to_vec1::<f32>()?), (vec![1.5], vec![0.85])); // 1 − 0.1 · 1.5
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn sgd(step: &SgdStep, table: &UpdateTable<'_>) -> Result<()> {
    table.each("sgd", |of, learn, scale| {
        if !of.is_fused() {
            return of.plain(learn, scale, [of.m], |p, g, held| {
                let m = ((&held[0] * step.momentum)? + g)?;
                let p = ((p * (1.0 - step.rate * of.decay))? - (&m * step.rate)?)?;
                Ok((p, [m]))
            });
        }
        let (momentum, rate, keep) = (step.momentum as f32, step.rate as f32, (1.0 - step.rate * of.decay) as f32);
        of.fused(learn, scale, |_, scale, (p, m, _, g)| {
            for ((p, m), g) in p.iter_mut().zip(m).zip(g) {
                *m = momentum * *m + g * scale;
                *p = keep * *p - rate * *m;
            }
        })
    })
}
