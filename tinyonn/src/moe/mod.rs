//! Experts, routers, and what a declaration of `#[moe(..)]` becomes.
//!
//! A [`MoeSpec`] says what the hierarchy is; a [`MoeModule`] is one layer of it: a bank of experts ([`TinyOnnExpert`]) and a
//! [`Router`] for each level. Variants are declared with `#[moe(..)]` and found by name in the [`registry`].

pub mod expert;
pub mod gaussian;
pub mod load;
pub mod module;
pub mod registry;
pub mod router;
pub mod select;
pub mod spec;

pub use expert::TinyOnnExpert;
pub use gaussian::GaussianMoeRouter;
pub use load::LoadMeter;
pub use module::{MoeLayer, MoeModule, route};
pub use registry::{Variant, variant, variants};
pub use router::Router;
pub use select::select;
pub use spec::{LevelSpec, MoeSpec, RoutePer, RouterSpec};

/// Declares a mixture of experts; see the macro's own page for its grammar.
pub use tinyonn_macros::moe;
