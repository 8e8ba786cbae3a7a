//! What a router is.

use std::fmt::Debug;

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::RouterShape;
use crate::Result;

/// Equal routers, evaluated together: P of them with C choices each. A type of yours with this trait is a router in `#[moe(..)]`.
///
/// ```
/// use candle_core::{DType, Tensor};
/// use candle_nn::{Init, VarBuilder};
/// use tinyonn::moe::{Router, RouterShape, moe};
///
/// /// Scores by a sum over the input: every choice alike, moved by an offset that is learnt.
/// #[derive(Debug)]
/// pub struct Offsets {
///     offset: Tensor,
/// }
///
/// impl Router for Offsets {
///     fn new(shape: RouterShape, vb: &VarBuilder<'_>) -> tinyonn::Result<Self> {
///         let vb = vb.clone().set_dtype(DType::F32); // whatever the model's type
///         Ok(Self { offset: vb.get_with_hints((shape.parents, shape.choices), "offset", Init::Const(0.0))? })
///     }
///
///     fn logits(&self, x_td: &Tensor) -> tinyonn::Result<Tensor> {
///         Ok(x_td.sum_keepdim(1)?.unsqueeze(2)?.broadcast_add(&self.offset)?)
///     }
/// }
///
/// #[moe(groups = 2, experts = 3, router = [Offsets, gaussian])]
/// pub struct Mixed;
///
/// assert_eq!(Mixed::SPEC.experts(), 6);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no router",
    label = "the trait `tinyonn::moe::Router` is not implemented for this type",
    note = "implement `tinyonn::moe::Router` for it, or name one of gaussian, linear, cosine, random"
)]
pub trait Router: Debug + Send + Sync {
    /// Reads or initialises the parameters of `shape.parents` routers. Scores are f32, so these are too.
    ///
    /// # Errors
    /// A missing or misshapen parameter.
    fn new(shape: RouterShape, vb: &VarBuilder<'_>) -> Result<Self>
    where
        Self: Sized;

    /// The unnormalised scores of every choice of every router, `[t, P, C]` f32, from inputs x `[t, d]` f32: log p(c | x) up to a
    /// constant. Differentiable in x and in the parameters.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not go together.
    fn logits(&self, x_td: &Tensor) -> Result<Tensor>;
}

/// Makes boxed routers of one type.
pub type NewRouter = fn(RouterShape, &VarBuilder<'_>) -> Result<Box<dyn Router>>;

/// The [`NewRouter`] of a type.
///
/// # Errors
/// What its constructor reports.
pub fn new_router<R: Router + 'static>(shape: RouterShape, vb: &VarBuilder<'_>) -> Result<Box<dyn Router>> {
    Ok(Box::new(R::new(shape, vb)?))
}
