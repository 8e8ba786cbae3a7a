//! Gaussian routing: a choice is the more probable, the denser its own Gaussian is at the input (DESIGN §2).
//!
//! z = P x; ℓ_c(z) = s · mean_j [−½ (z_j − μ_cj)² / σ_cj² − ½ log σ_cj²] + log π_c; p(c | x) = softmax_c ℓ.
//! With s = r, the width of z, ℓ is the log-density itself (up to a constant); s is calibrated on validation text. `reduce = sum` is the
//! same with the sum in place of the mean, where s starts at 1.
//!
//! Legend: t tokens, d hidden, r routing width, p parents (routers of the level), c choices. The square is expanded, so that
//! the density costs two products `[t, r] × [r, p·c]` and nothing of size t·p·c·r is formed.

use candle_core::{DType, Tensor};
use candle_nn::{Init, VarBuilder};

use super::{GaussianSpec, Project, Reduce, Router, RouterShape};
use crate::Result;
use crate::ops::{Grads, gaussian_density, gaussian_routing, linear};

/// The Gaussian routers of one level. Parameters are f32 whatever the model's dtype.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::moe::{GaussianMoeRouter, GaussianSpec, Router, RouterShape};
///
/// let (shape, form) = (RouterShape { parents: 1, choices: 3, hidden: 8 }, GaussianSpec::new(4));
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| GaussianMoeRouter::with_form(shape, &form, &vb).map(drop))?;
/// let names: Vec<&str> = store.iter().map(|(name, _)| name).collect();
/// assert!(["mean", "projection"].iter().all(|part| names.iter().any(|name| name.contains(part))), "{names:?}");
/// let router = GaussianMoeRouter::with_form(shape, &form, &store.builder(DType::F32, |_| false))?;
/// assert_eq!(router.logits(&Tensor::ones((2, 8), DType::F32, &Device::Cpu)?)?.dims(), [2, 1, 3]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GaussianMoeRouter {
    /// P `[r, d]`, shared by the routers; `None` is the identity.
    projection: Option<Tensor>,
    /// μ `[p, c, r]`.
    mean: Tensor,
    /// log σ², in any shape that spreads to `[p, c, r]`.
    log_variance: Tensor,
    /// log π `[p, c]`.
    log_prior: Tensor,
    /// s, a scalar.
    scale: Tensor,
    reduce: Reduce,
}

impl GaussianMoeRouter {
    /// Reads or initialises routers of a declared form. New ones have random means, unit variances and equal priors.
    ///
    /// # Errors
    /// A missing or misshapen parameter.
    pub fn with_form(shape: RouterShape, form: &GaussianSpec, vb: &VarBuilder<'_>) -> Result<Self> {
        let vb = vb.clone().set_dtype(DType::F32);
        let RouterShape { hidden, parents, choices } = shape;
        let r = form.width(hidden);
        let spread = Init::Randn { mean: 0.0, stdev: 1.0 / (hidden as f64).sqrt() };
        let projection = match form.project {
            Project::Identity => None,
            Project::Learned => Some(vb.get_with_hints((r, hidden), "projection", spread)?),
            Project::Random => Some(vb.get_with_hints((r, hidden), "projection", spread)?.detach()),
        };
        let scale = match form.reduce {
            Reduce::Mean => r as f64,
            Reduce::Sum => 1.0,
        };
        Ok(Self {
            projection,
            mean: vb.get_with_hints((parents, choices, r), "mean", Init::Randn { mean: 0.0, stdev: 1.0 })?,
            log_variance: vb.get_with_hints(form.variances(shape), "log_variance", Init::Const(0.0))?,
            log_prior: vb.get_with_hints((parents, choices), "log_prior", Init::Const(-(choices as f64).ln()))?,
            scale: vb.get_with_hints((), "scale", Init::Const(scale))?,
            reduce: form.reduce,
        })
    }
}

impl Router for GaussianMoeRouter {
    /// As `gaussian` alone declares.
    fn new(shape: RouterShape, vb: &VarBuilder<'_>) -> Result<Self> {
        Self::with_form(shape, &GaussianSpec::PLAIN, vb)
    }

    fn logits(&self, x_td: &Tensor) -> Result<Tensor> {
        let (density_tc, _) = self.density(&self.z(x_td)?)?;
        let logits_tc = gaussian_density::scores(&density_tc, &self.factor()?, &self.log_prior.flatten_all()?)?;
        let (parents, choices, _) = self.mean.dims3()?;
        Ok(logits_tc.reshape(((), parents, choices))?)
    }

    fn backward(&self, x_td: &Tensor, dlogits_tpc: &Tensor, input: bool, grads: &mut Grads) -> Result<Option<Tensor>> {
        let (parents, choices, r) = self.mean.dims3()?;
        let dlogits_tc = dlogits_tpc.flatten_from(1)?;
        let z_tr = self.z(x_td)?;
        let (density_tc, saved) = self.density(&z_tr)?;
        grads.add_with(&self.log_prior, || dlogits_tc.sum(0)?.reshape((parents, choices)))?;
        grads.add_with(&self.scale, || {
            let through = (&dlogits_tc * &density_tc)?.sum_all()?;
            if self.reduce == Reduce::Sum { through * r as f64 } else { Ok(through) }
        })?;
        let [dz_tr, dmean, dlog_variance] =
            gaussian_density::backward(&saved, &dlogits_tc.broadcast_mul(&self.factor()?)?.contiguous()?)?;
        grads.add_with(&self.mean, || dmean.reshape((parents, choices, r)))?;
        grads.add_with(&self.log_variance, || {
            let mut sum = dlog_variance.reshape((parents, choices, r))?;
            for dim in 0..3 {
                if self.log_variance.dim(dim)? == 1 {
                    sum = sum.sum_keepdim(dim)?;
                }
            }
            Ok(sum)
        })?;
        match &self.projection {
            Some(projection) => Ok(linear::backward(x_td, projection, None, &dz_tr, input, grads)?),
            None => Ok(input.then(|| dz_tr.to_dtype(x_td.dtype())).transpose()?),
        }
    }

    fn narrow(&self) -> bool {
        true
    }
}

impl GaussianMoeRouter {
    /// As the operation takes them that asks all routers of a layer at once; `None` of routers that project nothing.
    pub(super) fn parameters(&self) -> Option<gaussian_routing::Parameters> {
        Some(gaussian_routing::Parameters {
            projection: self.projection.clone()?,
            mean: self.mean.clone(),
            log_variance: self.log_variance.clone(),
            log_prior: self.log_prior.clone(),
            scale: self.scale.clone(),
            sum: self.reduce == Reduce::Sum,
        })
    }

    /// z = P x.
    fn z(&self, x_td: &Tensor) -> Result<Tensor> {
        match &self.projection {
            Some(projection) => Ok(linear::forward(x_td, projection, None)?),
            None => Ok(x_td.detach().to_dtype(DType::F32)?),
        }
    }

    /// The mean log-density of every choice, `[t, p·c]`.
    fn density(&self, z_tr: &Tensor) -> Result<(Tensor, gaussian_density::Saved)> {
        let (parents, choices, r) = self.mean.dims3()?;
        let stacked = (parents * choices, r);
        let log_variance = self.log_variance.detach().broadcast_as((parents, choices, r))?.reshape(stacked)?;
        Ok(gaussian_density::forward(z_tr, &self.mean.detach().reshape(stacked)?, &log_variance)?)
    }

    /// What the mean log-density is multiplied by.
    fn factor(&self) -> Result<Tensor> {
        let scale = self.scale.detach();
        match self.reduce {
            Reduce::Mean => Ok(scale),
            Reduce::Sum => Ok((scale * self.mean.dim(2)? as f64)?),
        }
    }
}
