//! What a gated linear unit makes of its two products: h = h(g, u), elementwise, with g = W_g x and u = W_u x.
//!
//! SwiGLU and GEGLU (Shazeer, 2020) are h = silu(g) ⊙ u and h = gelu(g) ⊙ u. An activation is found by the name that a
//! `config.json` gives it (`hidden_act`): `silu` and `gelu` are here, and a type of yours with the [`Activation`] trait
//! joins them when it is submitted. It may be any elementwise function of g and u: neurons stay independent, so
//! slicing, surprise and every way of combining experts hold for it too.
//!
//! ```
//! use candle_core::{Device, Result, Tensor};
//! use tinyonn::inventory;
//! use tinyonn::ops::{self, Activation, ActivationEntry};
//!
//! /// h = relu(g) ⊙ u, "ReGLU".
//! #[derive(Debug)]
//! struct Relu;
//!
//! impl Activation for Relu {
//!     fn name(&self) -> &str {
//!         "relu"
//!     }
//!
//!     fn forward(&self, g: &Tensor, u: &Tensor) -> Result<Tensor> {
//!         g.relu()? * u
//!     }
//!
//!     fn backward(&self, g: &Tensor, u: &Tensor, delta: &Tensor) -> Result<(Tensor, Tensor)> {
//!         let on = g.gt(0f64)?.to_dtype(g.dtype())?;
//!         Ok((((delta * u)? * on)?, (delta * g.relu()?)?))
//!     }
//! }
//!
//! inventory::submit! { ActivationEntry(&Relu) }
//!
//! assert!(ops::activation("relu").is_some() && ops::activation("silu").is_some());
//! assert!(ops::activation("swish").is_none());
//! # Ok::<(), candle_core::Error>(())
//! ```

use std::any::{Any, TypeId};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};
use std::fmt::Debug;

use candle_core::{Device, Result, Tensor};

use super::elementwise::{each, each_pair};
use super::host::in_memory;
use super::lanes::{self, erf, exp, sigmoid};
#[cfg(feature = "cuda")]
use super::silu_kernel;
use crate::files::Digest;

/// h(g, u) and its derivative.
pub trait Activation: Any + Send + Sync + Debug {
    /// Its name in `config.json`, as transformers writes it where transformers knows it.
    fn name(&self) -> &str;

    /// h(g, u), of the shape of g and u. Both are detached.
    ///
    /// # Errors
    /// Whatever candle reports.
    fn forward(&self, g: &Tensor, u: &Tensor) -> Result<Tensor>;

    /// (δ_g, δ_u) = (δ ⊙ ∂h/∂g, δ ⊙ ∂h/∂u), where δ is the gradient of h(g, u). All are detached.
    ///
    /// # Errors
    /// Whatever candle reports.
    fn backward(&self, g: &Tensor, u: &Tensor, delta: &Tensor) -> Result<(Tensor, Tensor)>;

    /// δ_g and δ_u, and h once more, for passes that did not keep it: two calls, unless one can do both.
    ///
    /// # Errors
    /// Whatever candle reports.
    fn backward_again(&self, g: &Tensor, u: &Tensor, delta: &Tensor) -> Result<[Tensor; 3]> {
        let (dg, du) = self.backward(g, u, delta)?;
        Ok([dg, du, self.forward(g, u)?])
    }
}

/// An activation that is known by its name: `inventory::submit! { ActivationEntry(&Mine) }`.
pub struct ActivationEntry(pub &'static dyn Activation);

inventory::collect!(ActivationEntry);

inventory::submit! { ActivationEntry(&Silu) }
inventory::submit! { ActivationEntry(&Gelu) }

/// Every activation that is linked in, by name.
#[must_use]
pub fn activations() -> Vec<&'static dyn Activation> {
    let mut all: Vec<_> = inventory::iter::<ActivationEntry>.into_iter().map(|entry| entry.0).collect();
    all.sort_by(|a, b| a.name().cmp(b.name()));
    all.dedup_by_key(|activation| type_of(*activation));
    all
}

/// The activation of that name. Of two types with one name neither is known: the order of linking must not decide. One type may be
/// submitted often: each variant that declares it does.
#[must_use]
pub fn activation(name: &str) -> Option<&'static dyn Activation> {
    let mut named = inventory::iter::<ActivationEntry>.into_iter().map(|entry| entry.0).filter(|a| a.name() == name);
    let first = named.next()?;
    named.all(|other| type_of(other) == type_of(first)).then_some(first)
}

/// SHA-256 of what `activation` and its derivative make of a grid of points, to four digits: what it is known by where a name is not enough, since
/// the formula of a user's type may change.
///
/// ```
/// use tinyonn::ops::activation::fingerprint;
/// use tinyonn::ops::{Activation as _, Gelu, Silu, activation, activations};
///
/// let names: Vec<&str> = activations().iter().map(|known| known.name()).collect();
/// assert!(names.contains(&"silu") && names.contains(&"gelu"));
/// assert_eq!(activation("silu").map(fingerprint).transpose()?, Some(fingerprint(&Silu)?));
/// assert_ne!(fingerprint(&Silu)?, fingerprint(&Gelu)?);
/// assert_eq!(Gelu.name(), "gelu");
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// What the activation reports.
pub fn fingerprint(activation: &'static dyn Activation) -> Result<String> {
    let near = (-6..=6).map(|at| 0.55 * at as f32);
    let points: Vec<f32> = near.chain([-30.0, -12.0, -7.5, -5.0, 5.0, 7.5, 12.0, 30.0]).collect();
    let grid = |of: fn((f32, f32)) -> f32| {
        let pairs = points.iter().flat_map(|g| points.iter().map(|u| (*g, *u)));
        Tensor::from_vec(pairs.map(of).collect::<Vec<_>>(), (points.len(), points.len()), &Device::Cpu)
    };
    let (g, u) = (grid(|(g, _)| g)?, grid(|(_, u)| u)?);
    let (by_g, by_u) = activation.backward(&g, &u, &g.ones_like()?)?;
    let mut digest = Digest::new();
    for values in [activation.forward(&g, &u)?, by_g, by_u] {
        in_memory(&values)?.iter().for_each(|value| digest.text(&format!("{value:.3e}")));
    }
    Ok(digest.hex())
}

#[cfg(feature = "cuda")]
impl dyn Activation {
    /// Whether kernels know its formula.
    pub(super) fn is_silu(&self) -> bool {
        let any: &dyn Any = self;
        any.is::<Silu>()
    }

    /// Whether it is the gelu here.
    pub(super) fn is_gelu(&self) -> bool {
        let any: &dyn Any = self;
        any.is::<Gelu>()
    }
}

fn type_of(activation: &'static dyn Activation) -> TypeId {
    let any: &dyn Any = activation;
    any.type_id()
}

/// h = silu(g) ⊙ u, silu(g) = g σ(g), silu′(g) = σ(g) (1 + g (1 − σ(g))): SwiGLU, what nearly every dense decoder uses.
#[derive(Clone, Copy, Debug)]
pub struct Silu;

impl Activation for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn forward(&self, g: &Tensor, u: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if super::kernel::are_read(&[g, u]) && g.dims() == u.dims() {
            return silu_kernel::forward(g, u);
        }
        if !lanes::fused(&[g, u]) {
            return candle_nn::ops::silu(g)? * u;
        }
        each([g, u], |[g, u]| g * sigmoid(g) * u)
    }

    fn backward(&self, g: &Tensor, u: &Tensor, delta: &Tensor) -> Result<(Tensor, Tensor)> {
        #[cfg(feature = "cuda")]
        if super::kernel::are_read(&[g, u, delta]) && g.dims() == u.dims() && g.dims() == delta.dims() {
            let (dg, du, _) = silu_kernel::backward(g, u, delta, false)?;
            return Ok((dg, du));
        }
        if !lanes::fused(&[g, u, delta]) {
            let s = candle_nn::ops::sigmoid(g)?;
            let slope = (&s * ((g * (1.0 - &s)?)? + 1.0)?)?;
            return Ok((((delta * u)? * slope)?, (delta * (g * s)?)?));
        }
        each_pair([g, u, delta], |[g, u, delta]| {
            let s = sigmoid(g);
            (delta * u * s * (1.0 + g * (1.0 - s)), delta * g * s)
        })
    }

    #[cfg(feature = "cuda")]
    fn backward_again(&self, g: &Tensor, u: &Tensor, delta: &Tensor) -> Result<[Tensor; 3]> {
        if super::kernel::are_read(&[g, u, delta])
            && g.dims() == u.dims()
            && g.dims() == delta.dims()
            && let (dg, du, Some(h)) = silu_kernel::backward(g, u, delta, true)?
        {
            return Ok([dg, du, h]);
        }
        let (dg, du) = self.backward(g, u, delta)?;
        Ok([dg, du, self.forward(g, u)?])
    }
}

/// h = gelu(g) ⊙ u, gelu(g) = g Φ(g), gelu′(g) = Φ(g) + g φ(g), Φ(g) = ½ (1 + erf(g/√2)), φ(g) = e^(−g²/2)/√(2π): GEGLU
/// with the exact gelu of Hendrycks and Gimpel (2016), transformers' `gelu`, not its approximation by tanh.
///
/// The fused loop's gelu(g) is within 4e-7 · max(1, |g|) of the true one.
#[derive(Clone, Copy, Debug)]
pub struct Gelu;

impl Activation for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn forward(&self, g: &Tensor, u: &Tensor) -> Result<Tensor> {
        if !lanes::fused(&[g, u]) {
            return g.gelu_erf()? * u;
        }
        each([g, u], |[g, u]| g * normal_cdf(g) * u)
    }

    fn backward(&self, g: &Tensor, u: &Tensor, delta: &Tensor) -> Result<(Tensor, Tensor)> {
        if !lanes::fused(&[g, u, delta]) {
            let cdf = (((g * FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5)?;
            let density = ((g.sqr()? * -0.5)?.exp()? * NORMAL_DENSITY_AT_ZERO)?;
            let slope = (&cdf + (g * density)?)?;
            return Ok((((delta * u)? * slope)?, (delta * (g * cdf)?)?));
        }
        each_pair([g, u, delta], |[g, u, delta]| {
            let cdf = normal_cdf(g);
            let density = exp(-0.5 * g * g) * NORMAL_DENSITY_AT_ZERO as f32;
            (delta * u * (cdf + g * density), delta * g * cdf)
        })
    }
}

/// 1/√(2π).
const NORMAL_DENSITY_AT_ZERO: f64 = 0.5 * FRAC_1_SQRT_2 * FRAC_2_SQRT_PI;

/// Φ(x).
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    0.5 + 0.5 * erf(x * std::f32::consts::FRAC_1_SQRT_2)
}
