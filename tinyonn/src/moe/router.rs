//! What a router is.

use candle_core::Tensor;

use crate::Result;

/// The routers of one level of a hierarchy, evaluated together.
pub trait Router: Send + Sync {
    /// log p(choice | x) of every router of the level, `[t, parents, choices]` f32, from inputs x `[t, d]`.
    /// Each row of choices is normalised. Differentiable in x and in the router's parameters.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not go together.
    fn log_probs(&self, x_td: &Tensor) -> Result<Tensor>;
}
