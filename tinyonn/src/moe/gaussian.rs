//! Gaussian routing: a choice is the more probable, the denser its own Gaussian is at the input (DESIGN §2).
//!
//! z = P x; ℓ_c(z) = s · mean_j [−½ (z_j − μ_cj)² / σ_cj² − ½ log σ_cj²] + log π_c; p(c | x) = softmax_c ℓ.
//! With s = r, the width of z, ℓ is the log-density itself (up to a constant); s is calibrated on validation text.
//!
//! Legend: t tokens, d hidden, r routing width, p parents (routers of the level), c choices. The square is expanded, so that
//! the density costs two products `[t, r] × [r, p·c]` and nothing of size t·p·c·r is formed.

use candle_core::{D, DType, Tensor};
use candle_nn::{Init, VarBuilder};

use super::Router;
use crate::{Result, ops};

/// The Gaussian routers of one level. Parameters are f32 whatever the model's dtype.
#[derive(Clone, Debug)]
pub struct GaussianMoeRouter {
    /// P `[r, d]`, shared by the level's routers.
    projection: Tensor,
    /// μ `[p, c, r]`.
    mean: Tensor,
    /// log σ² `[p, c, r]`.
    log_variance: Tensor,
    /// log π `[p, c]`.
    log_prior: Tensor,
    /// s, a scalar.
    scale: Tensor,
}

impl GaussianMoeRouter {
    /// Reads or initialises `parents` routers of `choices` each over inputs of width `hidden`, in at most `dim` dimensions.
    /// New routers have random means, unit variances and equal priors.
    ///
    /// # Errors
    /// A missing or misshapen parameter.
    pub fn new(hidden: usize, dim: usize, parents: usize, choices: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let vb = vb.clone().set_dtype(DType::F32);
        let r = dim.min(hidden);
        let unit = Init::Randn { mean: 0.0, stdev: 1.0 };
        let project = Init::Randn { mean: 0.0, stdev: 1.0 / (hidden as f64).sqrt() };
        Ok(Self {
            projection: vb.get_with_hints((r, hidden), "projection", project)?,
            mean: vb.get_with_hints((parents, choices, r), "mean", unit)?,
            log_variance: vb.get_with_hints((parents, choices, r), "log_variance", Init::Const(0.0))?,
            log_prior: vb.get_with_hints((parents, choices), "log_prior", Init::Const(-(choices as f64).ln()))?,
            scale: vb.get_with_hints((), "scale", Init::Const(r as f64))?,
        })
    }
}

impl Router for GaussianMoeRouter {
    fn log_probs(&self, x_td: &Tensor) -> Result<Tensor> {
        let (parents, choices, r) = self.mean.dims3()?;
        let z_tr = ops::linear(&x_td.to_dtype(DType::F32)?, &self.projection, None)?;
        let stacked = (parents * choices, r);
        let density_tc =
            ops::gaussian_density(&z_tr, &self.mean.reshape(stacked)?, &self.log_variance.reshape(stacked)?)?;
        let density_tc = density_tc.broadcast_mul(&self.scale)?;
        let logits_tc = density_tc.broadcast_add(&self.log_prior.flatten_all()?)?;
        let logits_tpc = logits_tc.reshape(((), parents, choices))?;
        Ok(candle_nn::ops::log_softmax(&logits_tpc, D::Minus1)?)
    }
}
