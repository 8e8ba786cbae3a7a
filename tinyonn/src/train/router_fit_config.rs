//! What decides how routers are fitted.

use serde::{Deserialize, Serialize};

use super::optimizer::OptimizerConfig;
use super::output_norms::RouterTarget;
use super::projection::Projection;
use crate::moe::{MoeSpec, RouterKind};
use crate::{Error, Result};

/// How routers are fitted.
///
/// ```
/// use tinyonn::train::{FitBy, Projection, RouterFitConfig};
///
/// let closed = RouterFitConfig { fit: FitBy::Gda, projection: Projection::Pca, ..RouterFitConfig::default() };
/// assert_ne!(closed.id(), RouterFitConfig::default().id());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouterFitConfig {
    /// Where routers look that learn it.
    pub projection: Projection,
    /// In closed form, by gradient, or both.
    pub fit: FitBy,
    /// Gradient steps, at most: validation text stops them earlier. 0 behind the closed form keeps it.
    pub steps: u64,
    /// Rows a step.
    pub batch: usize,
    /// The constant learning rate.
    pub rate: f64,
    /// How often the fit is repeated on what routers see once they route ([`super::refit()`]).
    pub refit_rounds: usize,
    /// Of `fit = ridge`, the power of a choice's norm that its score is fitted to.
    #[serde(skip_serializing_if = "RouterTarget::is_sqrt")]
    pub target: RouterTarget,
}

/// What finds the parameters of routers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FitBy {
    /// The closed form of Gaussian routers; the others have none.
    #[serde(rename = "gda")]
    Gda,
    /// The cross-entropy's gradient, from the parameters that the store holds (of a new model drawn at random) and the projection.
    #[serde(rename = "sgd")]
    Sgd,
    /// The gradient from the closed form.
    #[default]
    #[serde(rename = "gda+sgd")]
    GdaSgd,
    /// Of linear routers: the ridge regression of what each choice would add ([`OutputNorms`](super::OutputNorms)), without labels and without a gradient.
    #[serde(rename = "ridge")]
    Ridge,
    /// Of linear routers: the log-odds of rows in a choice against those out of it ([`Discriminants`](super::Discriminants)), without a gradient.
    #[serde(rename = "discriminant")]
    Discriminant,
}

impl Default for RouterFitConfig {
    fn default() -> Self {
        let (projection, fit) = (Projection::default(), FitBy::default());
        Self { projection, fit, steps: 120, batch: 256, rate: 5e-3, refit_rounds: 0, target: RouterTarget::Sqrt }
    }
}

impl RouterFitConfig {
    /// In short, for names of files and tables: no two configurations share one.
    #[must_use]
    pub fn id(&self) -> String {
        let Self { projection, fit, steps, batch, rate, refit_rounds, target } = self;
        let fit = match fit {
            FitBy::Gda => "gda",
            FitBy::Sgd => "sgd",
            FitBy::GdaSgd => "gda+sgd",
            FitBy::Ridge if *target == RouterTarget::Log => "ridge-log",
            FitBy::Ridge => "ridge",
            FitBy::Discriminant => "discriminant",
        };
        let learns = if self.learns() { format!("-{steps}x{batch}@{rate}") } else { String::new() };
        let refits = if *refit_rounds > 0 { format!("-refit{refit_rounds}") } else { String::new() };
        format!("{}-{fit}{learns}{refits}", projection.name())
    }

    /// Whether routers take gradient steps.
    pub(super) fn learns(&self) -> bool {
        !matches!(self.fit, FitBy::Gda | FitBy::Ridge | FitBy::Discriminant) && self.steps > 0
    }

    /// Refuses what cannot fit the routers of `spec`.
    pub(crate) fn check(&self, spec: &MoeSpec) -> Result<()> {
        OptimizerConfig { rate: self.rate, ..OptimizerConfig::DEFAULT }.check("router")?;
        let mut runs = spec.levels.iter().flat_map(|level| level.routers.iter());
        runs.try_for_each(|run| self.check_kind(&run.name, &run.kind))
    }

    /// Refuses to fit a router of this kind by nothing.
    fn check_kind(&self, name: &str, kind: &RouterKind) -> Result<()> {
        let linear = match self.fit {
            FitBy::Ridge => Some("ridge"),
            FitBy::Discriminant => Some("discriminant"),
            _ => None,
        };
        if let Some(fit) = linear {
            let fits = matches!(kind, RouterKind::Linear | RouterKind::LowRank { .. });
            if fits || (self.fit == FitBy::Discriminant && *kind == RouterKind::Random) {
                return Ok(());
            }
            let problem = format!("is {fit}, and `{name}_router` is no linear router");
            return Err(Error::setting("router.fit", problem, "declare `router = linear`, or use gda+sgd"));
        }
        let closed = matches!(kind, RouterKind::Gaussian(_)) && self.fit != FitBy::Sgd;
        if closed || self.learns() || matches!(kind, RouterKind::Random) {
            return Ok(());
        }
        if self.fit == FitBy::Gda {
            let problem = format!("is gda, and `{name}_router` has no closed form");
            return Err(Error::setting("router.fit", problem, "use gda+sgd, which takes what there is"));
        }
        if matches!(kind, RouterKind::Gaussian(_)) {
            return Err(Error::setting("router.steps", "is 0, and fit = sgd is steps alone", "use 1 or more"));
        }
        let problem = format!("is 0, and `{name}_router` has no closed form");
        Err(Error::setting("router.steps", problem, "use 1 or more"))
    }
}
