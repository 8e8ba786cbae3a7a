//! What a router is.

use std::fmt::Debug;

use candle_core::{Tensor, Var};
use candle_nn::VarBuilder;

use super::RouterShape;
use crate::Result;
use crate::ops::Grads;

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
    /// constant. Written in candle's differentiable operations it is differentiable in x and in the parameters, and
    /// [`backward`](Self::backward) needs no word.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not go together.
    fn logits(&self, x_td: &Tensor) -> Result<Tensor>;

    /// ∂L/∂x `[t, d]`, if `input`, given ∂L/∂ℓ; the gradients of the parameters that learn go to `grads`. By default from
    /// [`logits`](Self::logits), on candle's tape: an island of one router, which is left when this returns.
    ///
    /// # Errors
    /// As above.
    fn backward(&self, x_td: &Tensor, dlogits_tpc: &Tensor, input: bool, grads: &mut Grads) -> Result<Option<Tensor>> {
        let x_td = Var::from_tensor(&x_td.detach())?;
        let loss = (self.logits(&x_td)? * dlogits_tpc)?.sum_all()?;
        let store = loss.backward()?;
        grads.add_tape(&store)?;
        let dx = || store.get(&x_td).map_or_else(|| x_td.zeros_like(), |dx| Ok(dx.detach()));
        Ok(input.then(dx).transpose()?)
    }

    /// Whether x may come in the model's own type, and ∂L/∂x go in it; both are f32 otherwise.
    fn narrow(&self) -> bool {
        false
    }
}

/// Makes boxed routers of one type.
pub type NewRouter = fn(RouterShape, &VarBuilder<'_>) -> Result<Box<dyn Router>>;

/// The [`NewRouter`] of a type.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::moe::{LinearRouter, NewRouter, RouterShape, new_router};
/// use tinyonn::ops::Grads;
///
/// let (new, shape): (NewRouter, _) = (new_router::<LinearRouter>, RouterShape { parents: 1, choices: 2, hidden: 4 });
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| new(shape, &vb).map(drop))?;
/// let router = new(shape, &store.builder(DType::F32, |_| true))?;
/// let x = Tensor::ones((3, 4), DType::F32, &Device::Cpu)?;
/// let mut grads = Grads::new(store.iter().map(|(_, var)| (var.as_tensor(), 0)))?;
/// let dx = router.backward(&x, &Tensor::ones((3, 1, 2), DType::F32, &Device::Cpu)?, true, &mut grads)?;
/// assert_eq!(dx.expect("asked for").dims(), [3, 4]);
/// assert!(store.iter().all(|(_, var)| grads.get(var).is_some()));
/// assert!(router.narrow()); // x may come in bf16 as well
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// What its constructor reports.
pub fn new_router<R: Router + 'static>(shape: RouterShape, vb: &VarBuilder<'_>) -> Result<Box<dyn Router>> {
    Ok(Box::new(R::new(shape, vb)?))
}
