//! Gaussian routing: a choice is the more probable, the denser its own Gaussian is at the input (DESIGN §2).
//!
//! z = P x; ℓ_c(z) = s · mean_j [−½ (z_j − μ_cj)² / σ_cj² − ½ log σ_cj²] + log π_c; p(c | x) = softmax_c ℓ.
//! With s = r, the width of z, ℓ is the log-density itself (up to a constant); s is calibrated on validation text. `reduce = sum` is the
//! same with the sum in place of the mean, where s starts at 1. `covariance = shared_full` is one full Σ a router, kept as what decorrelates z: with D strictly lower triangular
//! and (I + D) Σ (I + D)ᵀ = diag σ², ℓ is the above of (I + D) z and (I + D) μ, log |Σ| included.
//!
//! Legend: t tokens, d hidden, r routing width, p parents (routers of the level), c choices. The square is expanded, so that
//! the density costs two products `[t, r] × [r, p·c]` and nothing of size t·p·c·r is formed.

use candle_core::{DType, Device, Tensor};
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
    /// D `[p, r, r]` of one full Σ a router, of which what lies below the diagonal counts.
    decorrelation: Option<Decorrelation>,
    /// log π `[p, c]`.
    log_prior: Tensor,
    /// s, a scalar.
    scale: Tensor,
    reduce: Reduce,
}

/// What decorrelates z.
#[derive(Clone, Debug)]
struct Decorrelation {
    /// D `[p, r, r]`.
    weight: Tensor,
    /// 1 below the diagonal, `[r, r]`.
    below: Tensor,
}

impl Decorrelation {
    /// D of one router, `[r, r]`.
    fn of(&self, parent: usize) -> Result<Tensor> {
        Ok((self.weight.detach().get(parent)? * &self.below)?)
    }
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
        let decorrelation = match form.decorrelations(shape) {
            None => None,
            Some(of) => {
                let weight = vb.get_with_hints(of, "decorrelation", Init::Const(0.0))?;
                Some(Decorrelation { weight, below: below_diagonal(r, vb.device())? })
            }
        };
        Ok(Self {
            projection,
            decorrelation,
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
        let of_runs = self.densities(&self.z(x_td)?)?.into_iter().map(|run| run.density_tc).collect::<Vec<_>>();
        let density_tc = side_by_side(of_runs)?;
        let logits_tc = gaussian_density::scores(&density_tc, &self.factor()?, &self.log_prior.flatten_all()?)?;
        let (parents, choices, _) = self.mean.dims3()?;
        Ok(logits_tc.reshape(((), parents, choices))?)
    }

    fn backward(&self, x_td: &Tensor, dlogits_tpc: &Tensor, input: bool, grads: &mut Grads) -> Result<Option<Tensor>> {
        let (parents, choices, r) = self.mean.dims3()?;
        let dlogits_tc = dlogits_tpc.flatten_from(1)?;
        let z_tr = self.z(x_td)?;
        let runs = self.densities(&z_tr)?;
        let density_tc = side_by_side(runs.iter().map(|run| run.density_tc.clone()).collect())?;
        grads.add_with(&self.log_prior, || dlogits_tc.sum(0)?.reshape((parents, choices)))?;
        grads.add_with(&self.scale, || {
            let through = (&dlogits_tc * &density_tc)?.sum_all()?;
            if self.reduce == Reduce::Sum { through * r as f64 } else { Ok(through) }
        })?;
        let ddensity_tc = dlogits_tc.broadcast_mul(&self.factor()?)?;
        let (mut dz_tr, mut dmeans, mut dlog_variances, mut ddecorrelations) =
            (None, Vec::new(), Vec::new(), Vec::new());
        let mut from = 0;
        for run in &runs {
            let nodes = run.density_tc.dim(1)?;
            let own_tc = ddensity_tc.narrow(1, from, nodes)?.contiguous()?;
            let [mut own_tr, mut dmean, dlog_variance] = gaussian_density::backward(&run.saved, &own_tc)?;
            if let Some(below_rr) = &run.below_rr {
                let mean_cr = self.mean.detach().reshape((parents * choices, r))?.narrow(0, from, nodes)?;
                let through = (own_tr.t()?.matmul(&z_tr)? + dmean.t()?.matmul(&mean_cr)?)?;
                ddecorrelations.push(through);
                own_tr = (&own_tr + own_tr.matmul(below_rr)?)?;
                dmean = (&dmean + dmean.matmul(below_rr)?)?;
            }
            dz_tr = Some(match dz_tr {
                Some(sum) => (sum + own_tr)?,
                None => own_tr,
            });
            dmeans.push(dmean);
            dlog_variances.push(dlog_variance);
            from += nodes;
        }
        let dz_tr = dz_tr.map_or_else(|| z_tr.zeros_like(), Ok)?;
        grads.add_with(&self.mean, || Tensor::cat(&dmeans, 0)?.reshape((parents, choices, r)))?;
        grads.add_with(&self.log_variance, || {
            let mut sum = Tensor::cat(&dlog_variances, 0)?.reshape((parents, choices, r))?;
            for dim in 0..3 {
                if self.log_variance.dim(dim)? == 1 {
                    sum = sum.sum_keepdim(dim)?;
                }
            }
            Ok(sum)
        })?;
        if let Some(Decorrelation { weight, below }) = &self.decorrelation {
            grads.add_with(weight, || Tensor::stack(&ddecorrelations, 0)?.broadcast_mul(below))?;
        }
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
    /// As the operation takes them that asks all routers of a layer at once; `None` of routers that project nothing or have a full Σ.
    pub(super) fn parameters(&self) -> Option<gaussian_routing::Parameters> {
        if self.decorrelation.is_some() {
            return None;
        }
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

    /// The mean log-density of every choice, of routers that read the same z together.
    fn densities(&self, z_tr: &Tensor) -> Result<Vec<OfRun>> {
        let (parents, choices, r) = self.mean.dims3()?;
        let stacked = (parents * choices, r);
        let mean_nr = self.mean.detach().reshape(stacked)?;
        let log_variance = self.log_variance.detach().broadcast_as((parents, choices, r))?.reshape(stacked)?;
        let Some(decorrelation) = &self.decorrelation else {
            let (density_tc, saved) = gaussian_density::forward(z_tr, &mean_nr, &log_variance)?;
            return Ok(vec![OfRun { density_tc, saved, below_rr: None }]);
        };
        let of_router = |parent: usize| {
            let below_rr = decorrelation.of(parent)?;
            let apart = |x: &Tensor| x + x.matmul(&below_rr.t()?)?;
            let own = |of: &Tensor| of.narrow(0, parent * choices, choices)?.contiguous();
            let (density_tc, saved) =
                gaussian_density::forward(&apart(z_tr)?, &apart(&own(&mean_nr)?)?, &own(&log_variance)?)?;
            Ok(OfRun { density_tc, saved, below_rr: Some(below_rr) })
        };
        (0..parents).map(of_router).collect()
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

/// Densities of routers that read the same z.
struct OfRun {
    /// `[t, c]` of all their choices.
    density_tc: Tensor,
    saved: gaussian_density::Saved,
    /// D, where they read (I + D) z.
    below_rr: Option<Tensor>,
}

/// 1 below the diagonal of `[r, r]`, 0 elsewhere.
pub(crate) fn below_diagonal(r: usize, device: &Device) -> Result<Tensor> {
    Ok((Tensor::tril2(r, DType::F32, device)? - Tensor::eye(r, DType::F32, device)?)?)
}

/// All columns, in their order.
fn side_by_side(mut of_runs: Vec<Tensor>) -> Result<Tensor> {
    if of_runs.len() == 1 { Ok(of_runs.remove(0)) } else { Ok(Tensor::cat(&of_runs, 1)?) }
}
