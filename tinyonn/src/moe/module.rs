//! One layer of a mixture of experts.

use super::{MoeSpec, Router, TinyOnnExpert};
use crate::qwen3::FeedForward;

/// A feed-forward of routed experts: what `#[moe(..)]` implements.
pub trait MoeModule: FeedForward {
    /// The declaration.
    fn spec(&self) -> &MoeSpec;

    /// The experts.
    fn experts(&self) -> &TinyOnnExpert;

    /// The routers, by level and run as in [`MoeSpec::levels`].
    fn routers(&self) -> Vec<Vec<&dyn Router>>;
}

/// A layer of any declared variant: what fills a decoder layer's feed-forward slot past `model`.
pub type MoeLayer = Box<dyn MoeModule>;
