//! Random routing: ℓ = W x with a W that is drawn once and never learns. The same input always takes the same path, and the path
//! knows nothing: the control beside every router that was fitted.

use candle_core::{DType, Tensor};
use candle_nn::{Init, VarBuilder};

use super::{Router, RouterShape};
use crate::Result;

/// The random routers of one level. W is f32 whatever the model's dtype, and part of the checkpoint.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::moe::{RandomRouter, Router, RouterShape};
///
/// let shape = RouterShape { parents: 1, choices: 4, hidden: 8 };
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| RandomRouter::new(shape, &vb).map(drop))?;
/// let router = RandomRouter::new(shape, &store.builder(DType::F32, |_| true))?;
/// let x = Tensor::ones((1, 8), DType::F32, &Device::Cpu)?;
/// assert_eq!(router.logits(&x)?.to_vec3::<f32>()?, router.logits(&x)?.to_vec3::<f32>()?);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RandomRouter {
    /// W `[p·c, d]`, detached: no gradient reaches it.
    weight: Tensor,
    shape: RouterShape,
}

impl Router for RandomRouter {
    fn new(shape: RouterShape, vb: &VarBuilder<'_>) -> Result<Self> {
        let vb = vb.clone().set_dtype(DType::F32);
        let spread = Init::Randn { mean: 0.0, stdev: 1.0 / (shape.hidden as f64).sqrt() };
        let weight = vb.get_with_hints((shape.parents * shape.choices, shape.hidden), "weight", spread)?;
        Ok(Self { weight: weight.detach(), shape })
    }

    fn logits(&self, x_td: &Tensor) -> Result<Tensor> {
        let logits_tc = x_td.to_dtype(DType::F32)?.matmul(&self.weight.t()?)?;
        Ok(logits_tc.reshape(((), self.shape.parents, self.shape.choices))?)
    }
}
