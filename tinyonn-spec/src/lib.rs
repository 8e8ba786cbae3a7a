//! What a mixture of experts declares: a [`MoeSpec`] and its parts, how it is counted, the rules it must keep and what it is called in
//! words. `#[moe(..)]` and the library both stand on this crate, so that a rule or a number stands once.
//!
//! A hierarchy is a list of levels from the root. A level holds the routers that decide it, one for each choice of the level before
//! ([`LevelSpec::routers`]: runs of equal routers, so that an even hierarchy is one run a level and a named, uneven one has a run
//! for each group). The choices of all routers of a level, numbered in that order, are its *nodes*; the nodes of the last level are
//! the routed experts, by running index: expert e of group g of an even G × E hierarchy is g·E + e (DESIGN §1). Experts that
//! always take part come after them.

mod attention;
mod attention_words;
mod behaviour;
mod count;
mod describe;
mod hierarchy;
mod moe_spec;
mod outline;
mod pair_cost;
mod pfag;
mod router_kind;
mod taking;
mod validate;
mod words;

pub use attention::{AttentionSpec, KeptPairs, PairIndex, PairsBy, PairsChosen, PairsSpec, Prefill};
pub use behaviour::{AlwaysBy, Balance, Combine, ExpertsAre, Gate, Neurons, PartitionStrategy, RoutePer};
pub use hierarchy::{AlwaysSpec, LevelSpec, RouterShape, RouterSlot, RouterSpec};
pub use moe_spec::MoeSpec;
pub use pfag::Pfag;
pub use router_kind::{Covariance, GaussianSpec, Project, Reduce, RouterKind};
pub use validate::{At, MOST, Part, Violation};
pub use words::Word;
