//! The log-density of diagonal Gaussians, averaged over dimensions:
//! ℓ[t, c] = −½ · mean_j [ (z_tj − μ_cj)² / σ²_cj + log σ²_cj ] (DESIGN §2).
//!
//! Shapes: z `[t, r]`, μ and log σ² `[c, r]`, ℓ `[t, c]`; any float dtype. The square is expanded, so that all is products of
//! matrices and nothing of size t·c·r is formed. Expanded, it is a small difference of large numbers where z and μ lie far from
//! zero, so both are taken relative to the mean of the μ first, which changes neither ℓ nor a derivative. With a = σ⁻²,
//! G = ∂L/∂ℓ, g = Σ_t G and k = −1/(2r):
//! dz = 2k (z ⊙ (G a) − G (μ ⊙ a)), dμ = −2k a ⊙ (Gᵀz − μ ⊙ g), d log σ² = k (g − a ⊙ (Gᵀz² − 2 μ ⊙ Gᵀz + μ² ⊙ g)).
//!
//! On a GPU, where some dozen small operations take longer than their arithmetic, f32 has kernels that sum (z − μ)² as it stands.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use tinyonn::ops::gaussian_density::{Saved, backward, forward, scores};
//!
//! // Two choices of unit variance in one dimension, at 0 and at 2; an input at 2 and none nearer to the second.
//! let column = |values: &[f32]| Tensor::new(values, &Device::Cpu)?.reshape((values.len(), 1));
//! let (z, mean, log_variance) = (column(&[2.0])?, column(&[0.0, 2.0])?, column(&[0.0, 0.0])?);
//! let (density_tc, saved): (Tensor, Saved) = forward(&z, &mean, &log_variance)?;
//! let log_prior = Tensor::zeros(2, DType::F32, &Device::Cpu)?;
//! let compared = scores(&density_tc, &Tensor::new(1f32, &Device::Cpu)?, &log_prior)?.to_vec2::<f32>()?;
//! assert!((compared[0][1] - compared[0][0] - 2.0).abs() < 1e-6); // ½ (2 − 0)²
//! assert!(matches!(saved, Saved::Plain(_))); // on a GPU kernels keep something else
//! let [dz, ..] = backward(&saved, &density_tc.ones_like()?)?;
//! assert_eq!(dz.dims(), [1, 1]);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{D, Result, Tensor};

use super::{elementwise, lanes};

/// ℓ, and what its derivative needs.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn forward(z: &Tensor, mean: &Tensor, log_variance: &Tensor) -> Result<(Tensor, Saved)> {
    #[cfg(feature = "cuda")]
    if let Some((density_tc, on_a_card)) = on_a_card::forward(z, mean, log_variance)? {
        return Ok((density_tc, Saved::OnACard(on_a_card)));
    }
    let (density_tc, plain) = plain_forward(z, mean, log_variance)?;
    Ok((density_tc, Saved::Plain(plain)))
}

fn plain_forward(z: &Tensor, mean: &Tensor, log_variance: &Tensor) -> Result<(Tensor, Plain)> {
    let (z, middle_1r) = (z.detach(), mean.detach().mean_keepdim(0)?);
    let fused = lanes::fused(&[&z, mean, log_variance]) && z.rank() == 2 && z.is_contiguous();
    let op = Plain {
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
    #[cfg(feature = "cuda")]
    let plain = match saved {
        Saved::Plain(plain) => plain,
        Saved::OnACard(on_a_card) => return on_a_card.backward(grad),
    };
    #[cfg(not(feature = "cuda"))]
    let Saved::Plain(plain) = saved;
    let Plain { factor: k, z_tr, mean_cr, precision_cr } = plain;
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
pub enum Saved {
    /// In plain operations.
    Plain(Plain),
    /// By kernels.
    #[cfg(feature = "cuda")]
    OnACard(on_a_card::Saved),
}

/// Of the expanded square.
#[derive(Debug)]
pub struct Plain {
    /// z, relative to the mean of the μ.
    z_tr: Tensor,
    /// μ, relative to their mean.
    mean_cr: Tensor,
    /// σ⁻².
    precision_cr: Tensor,
    factor: f64,
}

#[cfg(feature = "cuda")]
mod on_a_card {
    use candle_core::{DType, Result, Tensor};

    use super::super::kernel::{Argument, Grid, Kernel, card, is_read, room, room_like};

    static KERNELS: Kernel =
        Kernel::new("gaussian", concat!(include_str!("numbers.cu"), include_str!("gaussian_density.cu")));

    /// Sizes by the names that they have in the kernels' text, and of its blocks.
    const TOKENS: usize = 16;
    const GAUSSIANS: usize = 128;
    const VALUES: usize = 64;
    const PARAMETERS: usize = 256;
    /// Parts that tokens are summed in, at most.
    const PARTS: usize = 32;

    /// z, μ and log σ² as they came.
    #[derive(Debug)]
    pub struct Saved {
        z_tr: Tensor,
        mean_cr: Tensor,
        log_variance_cr: Tensor,
    }

    fn grid(blocks: (usize, usize), threads: usize) -> Grid {
        Grid { blocks, threads: threads as u32, shared_bytes: 0 }
    }

    /// Of matrices in f32 on a card.
    #[allow(unsafe_code)]
    pub(super) fn forward(z: &Tensor, mean: &Tensor, log_variance: &Tensor) -> Result<Option<(Tensor, Saved)>> {
        let [z_tr, mean_cr, log_variance_cr] = [z, mean, log_variance].map(|x| x.detach().contiguous());
        let (z_tr, mean_cr, log_variance_cr) = (z_tr?, mean_cr?, log_variance_cr?);
        let all = [&z_tr, &mean_cr, &log_variance_cr];
        if !all.iter().all(|x| is_read(x) && x.dtype() == DType::F32 && x.rank() == 2 && x.elem_count() > 0) {
            return Ok(None);
        }
        let ((t, r), (c, width)) = (z_tr.dims2()?, mean_cr.dims2()?);
        if width != r || log_variance_cr.dims() != [c, r] {
            candle_core::bail!("gaussian_density: z {:?}, μ {:?}, log σ² {:?}", z, mean, log_variance);
        }
        let density_tc = room((t, c), DType::F32, z_tr.device())?;
        let [of_z, of_mean, of_log] = all.map(Argument::of);
        let arguments = [
            of_z?,
            of_mean?,
            of_log?,
            Argument::of(&density_tc)?,
            Argument::count(t),
            Argument::count(r),
            Argument::count(c),
        ];
        let grid = grid((t.div_ceil(TOKENS), c.div_ceil(GAUSSIANS)), GAUSSIANS);
        // SAFETY: the signature of gaussian_forward: z [t, r], μ and log σ² [c, r] in f32, as compared above, and densities [t, c], which are new.
        unsafe { KERNELS.launch_function("gaussian_forward", card(&z_tr)?, &grid, &arguments)? };
        Ok(Some((density_tc, Saved { z_tr, mean_cr, log_variance_cr })))
    }

    #[allow(unsafe_code)]
    impl Saved {
        /// dz, dμ and d log σ².
        pub(super) fn backward(&self, grad_tc: &Tensor) -> Result<[Tensor; 3]> {
            let ((t, r), c, grad_tc) = (self.z_tr.dims2()?, self.mean_cr.dim(0)?, grad_tc.contiguous()?);
            if grad_tc.dims() != [t, c] || grad_tc.dtype() != DType::F32 || !is_read(&grad_tc) {
                candle_core::bail!("gaussian_density: a gradient {:?} of densities [{t}, {c}] in f32", grad_tc.shape());
            }
            let device = card(&self.z_tr)?;
            let [dz, dmean, dlog] = [&self.z_tr, &self.mean_cr, &self.log_variance_cr].map(room_like);
            let (dz, dmean, dlog) = (dz?, dmean?, dlog?);
            let inputs = [&self.z_tr, &self.mean_cr, &self.log_variance_cr, &grad_tc].map(Argument::of);
            let inputs = inputs.into_iter().collect::<Result<Vec<_>>>()?;
            let sizes = [t, r, c].map(Argument::count);
            let all = [&inputs[..], &[Argument::of(&dz)?], &sizes].concat();
            let of_input = grid((t.div_ceil(TOKENS), r.div_ceil(VALUES)), VALUES);
            // SAFETY: the signature of gaussian_input: what `forward` has seen, a gradient [t, c] in f32, and dz, which is new.
            unsafe { KERNELS.launch_function("gaussian_input", device, &of_input, &all)? };
            let tokens = t.div_ceil(PARTS);
            let count = t.div_ceil(tokens);
            let parts = room((count, 2, c * r), DType::F32, self.z_tr.device())?;
            let of_parts = Argument::of(&parts)?;
            let all = [&inputs[..], &[of_parts], &sizes, &[Argument::count(tokens)]].concat();
            let of_values = (c * r).div_ceil(PARAMETERS);
            // SAFETY: the signature of gaussian_parts: as above, and room for two sums of every parameter and part, which is new.
            unsafe { KERNELS.launch_function("gaussian_parts", device, &grid((of_values, count), PARAMETERS), &all)? };
            let [log, dmean_of, dlog_of] = [&self.log_variance_cr, &dmean, &dlog].map(Argument::of);
            let all = [
                of_parts,
                log?,
                dmean_of?,
                dlog_of?,
                Argument::count(c * r),
                Argument::count(count),
                Argument::count(r),
            ];
            // SAFETY: the signature of gaussian_parameters: the parts just written, log σ² and gradients of c·r values each, which are new.
            unsafe { KERNELS.launch_function("gaussian_parameters", device, &grid((of_values, 1), PARAMETERS), &all)? };
            Ok([dz, dmean, dlog])
        }
    }
}
