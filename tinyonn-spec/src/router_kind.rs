//! What a router computes, and the form of Gaussian ones.
//!
//! ```
//! use tinyonn::gallery::{CosinePaths, LinearPaths, TinyOnn};
//! use tinyonn::moe::{Covariance, GaussianSpec, Project, Reduce, RouterKind, RouterShape};
//!
//! let kinds = [TinyOnn::SPEC, LinearPaths::SPEC, CosinePaths::SPEC].map(|spec| spec.levels[0].routers[0].kind.clone());
//! assert_eq!(kinds, [RouterKind::Gaussian(GaussianSpec::PLAIN), RouterKind::Linear, RouterKind::Cosine]);
//!
//! let shared = GaussianSpec { reduce: Reduce::Sum, covariance: Covariance::Shared, ..GaussianSpec::new(16) };
//! assert_eq!(shared.variances(RouterShape { hidden: 64, parents: 2, choices: 3 }), (2, 1, 16)); // one for all choices of a router
//! assert_eq!(RouterKind::LowRank { dim: 16 }.projects_to(64), Some(16)); // `router = linear(dim = 16)`
//! assert_eq!((shared.width(8), GaussianSpec { project: Project::Identity, ..shared }.width(64)), (8, 64));
//! ```

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::RouterShape;
use crate::words::words;

/// What a router computes from its input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RouterKind {
    /// Log-densities of Gaussians (`GaussianMoeRouter`).
    Gaussian(GaussianSpec),
    /// ℓ = W x + b (`LinearRouter`).
    Linear,
    /// ℓ = W P x + b (`LinearRouter`), P `[r, d]` one for all levels of a layer.
    LowRank {
        /// r, capped at the hidden size.
        dim: usize,
    },
    /// ℓ = s · cos(x, e) (`CosineRouter`).
    Cosine,
    /// Fixed random scores of the input (`RandomRouter`): the control that knows nothing.
    Random,
    /// A type of the user's with the trait `Router`, as it was written.
    Custom(Cow<'static, str>),
}

/// The form of Gaussian routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GaussianSpec {
    /// Width of the projection; capped at the hidden size, which it is under [`Project::Identity`].
    pub dim: usize,
    /// How the dimensions' log-densities become one.
    pub reduce: Reduce,
    /// What the variances are shared by.
    pub covariance: Covariance,
    /// Where z comes from.
    pub project: Project,
}

words! {
    /// How the dimensions' log-densities become one.
    pub enum Reduce {
        /// Their mean; the scale s starts at r, the true density.
        Mean = "mean",
        /// Their sum; s starts at 1.
        Sum = "sum",
    }

    /// What the variances of Gaussians are shared by.
    pub enum Covariance {
        /// One for each choice and dimension.
        Diag = "diag",
        /// One for each dimension, shared by a router's choices: its decisions are linear in z.
        Shared = "shared",
        /// One full Σ, shared by a router's choices: its decisions are linear in z, and see how dimensions vary together.
        SharedFull = "shared_full",
        /// One for each choice, shared by its dimensions.
        Isotropic = "isotropic",
    }

    /// Where the z of a Gaussian router comes from.
    pub enum Project {
        /// z = P x, P fitted.
        Learned = "learned",
        /// z = x.
        Identity = "identity",
        /// z = P x, P drawn at random once and never fitted.
        Random = "random",
    }
}

impl RouterKind {
    /// r of a projection that is shared by all levels of a layer, if it reads one.
    #[must_use]
    pub fn projects_to(&self, hidden: usize) -> Option<usize> {
        if let Self::LowRank { dim } = self { Some((*dim).min(hidden)) } else { None }
    }
}

impl GaussianSpec {
    /// What `gaussian` alone declares.
    pub const PLAIN: Self = Self::new(64);

    /// Of `dim` dimensions and otherwise as declared by `gaussian` alone.
    #[must_use]
    pub const fn new(dim: usize) -> Self {
        Self { dim, reduce: Reduce::Mean, covariance: Covariance::Diag, project: Project::Learned }
    }

    /// r, the width of z.
    #[must_use]
    pub fn width(&self, hidden: usize) -> usize {
        if self.project == Project::Identity { hidden } else { self.dim.min(hidden) }
    }

    /// The shape in which a full Σ keeps what decorrelates z, if there is one: D of (I + D) Σ (I + D)ᵀ = diag σ², strictly lower triangular.
    ///
    /// ```
    /// use tinyonn_spec::{Covariance, GaussianSpec, RouterShape};
    ///
    /// let full = GaussianSpec { covariance: Covariance::SharedFull, ..GaussianSpec::new(16) };
    /// let shape = RouterShape { hidden: 64, parents: 2, choices: 3 };
    /// assert_eq!((full.decorrelations(shape), full.variances(shape)), (Some((2, 16, 16)), (2, 1, 16)));
    /// assert_eq!(GaussianSpec::new(16).decorrelations(shape), None);
    /// ```
    #[must_use]
    pub fn decorrelations(&self, shape: RouterShape) -> Option<(usize, usize, usize)> {
        let r = self.width(shape.hidden);
        (self.covariance == Covariance::SharedFull).then_some((shape.parents, r, r))
    }

    /// The shape in which log σ² is kept.
    #[must_use]
    pub fn variances(&self, shape: RouterShape) -> (usize, usize, usize) {
        let r = self.width(shape.hidden);
        match self.covariance {
            Covariance::Diag => (shape.parents, shape.choices, r),
            Covariance::Shared | Covariance::SharedFull => (shape.parents, 1, r),
            Covariance::Isotropic => (shape.parents, shape.choices, 1),
        }
    }
}
