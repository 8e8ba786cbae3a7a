//! Linear routing: ℓ = W x + b, the softmax gate of most mixtures of experts (Shazeer et al., 2017).

use candle_core::{DType, Tensor};
use candle_nn::{Init, VarBuilder};

use super::{Router, RouterShape};
use crate::Result;
use crate::ops::{Grads, linear};

/// The linear routers of one level. Parameters are f32 whatever the model's dtype.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::moe::{LinearRouter, Router, RouterShape};
///
/// // Two routers of three choices each: the second level of two groups.
/// let shape = RouterShape { parents: 2, choices: 3, hidden: 4 };
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| LinearRouter::new(shape, &vb).map(drop))?;
/// let router = LinearRouter::new(shape, &store.builder(DType::F32, |_| false))?;
/// let logits_tpc = router.logits(&Tensor::ones((5, 4), DType::F32, &Device::Cpu)?)?;
/// assert_eq!(logits_tpc.dims(), [5, 2, 3]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LinearRouter {
    /// W `[p·c, d]`.
    weight: Tensor,
    /// b `[p·c]`.
    bias: Tensor,
    shape: RouterShape,
}

impl Router for LinearRouter {
    fn new(shape: RouterShape, vb: &VarBuilder<'_>) -> Result<Self> {
        let vb = vb.clone().set_dtype(DType::F32);
        let nodes = shape.parents * shape.choices;
        let spread = Init::Randn { mean: 0.0, stdev: 1.0 / (shape.hidden as f64).sqrt() };
        Ok(Self {
            weight: vb.get_with_hints((nodes, shape.hidden), "weight", spread)?,
            bias: vb.get_with_hints(nodes, "bias", Init::Const(0.0))?,
            shape,
        })
    }

    fn logits(&self, x_td: &Tensor) -> Result<Tensor> {
        let logits_tc = linear::forward(x_td, &self.weight, Some(&self.bias))?;
        Ok(logits_tc.reshape(((), self.shape.parents, self.shape.choices))?)
    }

    fn backward(&self, x_td: &Tensor, dlogits_tpc: &Tensor, input: bool, grads: &mut Grads) -> Result<Option<Tensor>> {
        let dlogits_tc = dlogits_tpc.flatten_from(1)?;
        Ok(linear::backward(x_td, &self.weight, Some(&self.bias), &dlogits_tc, input, grads)?)
    }

    fn narrow(&self) -> bool {
        true
    }
}
