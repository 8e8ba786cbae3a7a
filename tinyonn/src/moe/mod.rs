//! Experts, routers, and what a declaration of `#[moe(..)]` becomes.
//!
//! A [`MoeSpec`] says what the hierarchy is; a [`MoeLayer`] is one layer of it, of any variant: a bank of experts ([`TinyOnnExpert`])
//! and the [`Router`]s of each level. Variants are declared with `#[moe(..)]` and found by name in the [`registry`].

pub mod balance;
pub(crate) mod choice_rule;
pub mod cosine;
#[cfg(feature = "cuda")]
mod decode;
pub mod expert;
pub mod gate;
pub mod gaussian;
pub mod layer;
mod learning;
pub mod linear;
pub mod load;
pub mod load_figures;
mod neuron_rule;
pub mod random_router;
pub mod registry;
pub mod router;
pub mod routing;
pub mod select;
pub mod select_on_device;

pub use choice_rule::{CHOICE_RULE, CHOICES_LEAST_SCORE, CHOICES_MOST};
pub use cosine::CosineRouter;
pub use expert::TinyOnnExpert;
pub use gate::Scores;
pub use gaussian::GaussianMoeRouter;
pub use layer::MoeLayer;
pub use linear::LinearRouter;
pub use load::LoadMeter;
pub use load_figures::{LayerLoad, LoadFigures, Taken};
pub use neuron_rule::{
    KEPT, LEAST_HIDDEN, LEAST_INPUT, LEAST_SCORE, MEAN_UP, MOST, NEURON_RULE, REPAIR, REPAIR_BIAS, REPAIR_DOWN, WORTH,
};
pub use random_router::RandomRouter;
pub use registry::{Variant, variant, variants};
pub use router::{NewRouter, Router, new_router};
pub use routing::Routing;
pub use select::{Selection, select};
#[doc(inline)]
pub use tinyonn_spec::{
    AlwaysBy, AlwaysSpec, At, AttentionSpec, Balance, Combine, Covariance, ExpertsAre, Gate, GaussianSpec, KeptPairs,
    LevelSpec, MoeSpec, Neurons, PairIndex, PairsBy, PairsChosen, PairsSpec, Part, PartitionStrategy, Pfag, Prefill,
    Project, Reduce, RoutePer, RouterKind, RouterShape, RouterSlot, RouterSpec, Violation,
};

use crate::{Error, Result};

/// Whether a declaration can be run: what the compiler refuses where it is written, of one that a program or a file made.
///
/// ```
/// use tinyonn::gallery::TinyOnn;
/// use tinyonn::moe::{MoeSpec, check};
///
/// assert!(check(&TinyOnn::SPEC).is_ok());
/// let shaken = MoeSpec { jitter: 2.0, ..TinyOnn::SPEC };
/// assert!(check(&shaken).is_err()); // as a factor between −1 and 3
/// ```
///
/// # Errors
/// The variant, the first of what [`MoeSpec::validate`] finds, and the remedy.
pub fn check(spec: &MoeSpec) -> Result<()> {
    match spec.validate().into_iter().next() {
        Some(Violation { problem, remedy, .. }) => Err(Error::variant(spec.name.clone(), problem, remedy)),
        None => Ok(()),
    }
}

/// Declares a mixture of experts: a unit struct or an enum gains a constant, `SPEC`, a constructor of its layers, `layer`, and its place in
/// the [`registry`].
///
/// ```
/// use tinyonn::moe::{RoutePer, moe, variant};
///
/// /// Seven groups of three experts; two groups take part in a sequence, with one expert each.
/// #[moe(groups = 7, experts = 3, router = gaussian(dim = 16), top_k = [2, 1], route_per = sequence(8))]
/// pub struct Few;
///
/// assert_eq!((Few::SPEC.experts(), Few::SPEC.active_experts()), (21, 2));
/// assert_eq!(Few::SPEC.route_per, RoutePer::Sequence { first: 8 });
/// assert_eq!(variant("Few")?.spec, Few::SPEC);
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// What is wrong with a declaration is said at compile time, where it stands:
///
/// ```compile_fail
/// #[tinyonn::moe::moe(groups = 10, experts = 10, top_k = [1, 12])] // top_k = 12 exceeds the 10 experts of a group
/// pub struct TooMany;
/// ```
///
/// The grammar:
pub use tinyonn_macros::moe;
