//! The log-density of diagonal Gaussians, averaged over dimensions:
//! ℓ[t, c] = −½ · mean_j [ (z_tj − μ_cj)² / σ²_cj + log σ²_cj ] (DESIGN §2).
//!
//! Shapes: z `[t, r]`, μ and log σ² `[c, r]`, ℓ `[t, c]`; any float dtype. The square is expanded, so that all is products of
//! matrices and nothing of size t·c·r is formed. Expanded, it is a small difference of large numbers where z and μ lie far from
//! zero, so both are taken relative to the mean of the μ first, which changes neither ℓ nor a derivative. With a = σ⁻²,
//! G = ∂L/∂ℓ, g = Σ_t G and k = −1/(2r):
//! dz = 2k (z ⊙ (G a) − G (μ ⊙ a)), dμ = −2k a ⊙ (Gᵀz − μ ⊙ g), d log σ² = k (g − a ⊙ (Gᵀz² − 2 μ ⊙ Gᵀz + μ² ⊙ g)).

use candle_core::{D, Result, Tensor};

use super::{elementwise, lanes};

/// ℓ, and what its derivative needs.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn forward(z: &Tensor, mean: &Tensor, log_variance: &Tensor) -> Result<(Tensor, Saved)> {
    let (z, middle_1r) = (z.detach(), mean.detach().mean_keepdim(0)?);
    let fused = lanes::fused(&[&z, mean, log_variance]) && z.rank() == 2 && z.is_contiguous();
    let op = Saved {
        z_tr: if fused {
            elementwise::each_by_column([&z], &middle_1r, |[z], middle| z - middle)?
        } else {
            z.broadcast_sub(&middle_1r)?
        },
        mean_cr: mean.detach().broadcast_sub(&middle_1r)?,
        precision_cr: log_variance.detach().neg()?.exp()?,
        factor: -0.5 / z.dim(D::Minus1)? as f64,
    };
    let weighted_cr = (&op.mean_cr * &op.precision_cr)?;
    let constant_c = ((&op.mean_cr * &weighted_cr)? + log_variance.detach())?.sum(D::Minus1)?;
    let square_tc = elementwise::multiply(&op.z_tr, &op.z_tr)?.matmul(&op.precision_cr.t()?)?;
    let cross_tc = op.z_tr.matmul(&weighted_cr.t()?)?;
    let density_tc = if fused {
        let factor = op.factor as f32;
        let density = |[square, cross]: [f32; 2], constant: f32| (square - cross * 2.0 + constant) * factor;
        elementwise::each_by_column([&square_tc, &cross_tc], &constant_c, density)?
    } else {
        ((square_tc - (cross_tc * 2.0)?)?.broadcast_add(&constant_c)? * op.factor)?
    };
    Ok((density_tc, op))
}

/// What routers compare: s ℓ + log π, for s `[]` and log π `[c]`.
///
/// # Errors
/// As above.
pub fn scores(density_tc: &Tensor, scale: &Tensor, log_prior_c: &Tensor) -> Result<Tensor> {
    let (scale, log_prior_c) = (scale.detach(), log_prior_c.detach());
    if lanes::fused(&[density_tc, &scale, &log_prior_c]) && density_tc.is_contiguous() {
        let scale = lanes::with_values(&scale.flatten_all()?, |scale: &[f32]| scale[0])?;
        return elementwise::each_by_column([density_tc], &log_prior_c, |[density], prior| density * scale + prior);
    }
    density_tc.broadcast_mul(&scale)?.broadcast_add(&log_prior_c)
}

/// dz, dμ and d log σ².
///
/// # Errors
/// As above.
pub fn backward(saved: &Saved, grad: &Tensor) -> Result<[Tensor; 3]> {
    let Saved { factor: k, z_tr, mean_cr, precision_cr } = saved;
    let own_tr = (z_tr * grad.matmul(precision_cr)?)?;
    let pulled_tr = grad.matmul(&(mean_cr * precision_cr)?)?;
    let dz = ((own_tr - pulled_tr)? * (2.0 * k))?;
    let total_c1 = grad.sum(0)?.unsqueeze(1)?;
    let first_cr = grad.t()?.matmul(z_tr)?;
    let pull_cr = (&first_cr - mean_cr.broadcast_mul(&total_c1)?)?;
    let dmean = ((precision_cr * pull_cr)? * (-2.0 * k))?;
    let second_cr = grad.t()?.matmul(&z_tr.sqr()?)?;
    let spread_cr = ((second_cr - ((mean_cr * &first_cr)? * 2.0)?)? + mean_cr.sqr()?.broadcast_mul(&total_c1)?)?;
    let dlog_variance = ((precision_cr * spread_cr)?.neg()?.broadcast_add(&total_c1)? * *k)?;
    Ok([dz, dmean, dlog_variance])
}

/// What the derivative needs.
#[derive(Debug)]
pub struct Saved {
    /// z, relative to the mean of the μ.
    z_tr: Tensor,
    /// μ, relative to their mean.
    mean_cr: Tensor,
    /// σ⁻².
    precision_cr: Tensor,
    factor: f64,
}
