//! Linear routing: ℓ = W x + b, the softmax gate of most mixtures of experts (Shazeer et al., 2017); or ℓ = W P x + b, P `[r, d]` one for all levels of a
//! layer: of N choices r·(d + N) products in place of d·N.
//!
//! Legend: t tokens, d hidden, r the width of the projection, p parents (routers of the level), c choices.

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
    /// P `[r, d]`, the layer's.
    projection: Option<Tensor>,
    /// W `[p·c, d]`, or `[p·c, r]`.
    weight: Tensor,
    /// b `[p·c]`.
    bias: Tensor,
    shape: RouterShape,
}

impl LinearRouter {
    /// Reads or initialises routers of z = P x, P `[r, d]` being `projection`.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use tinyonn::checkpoint::ParamStore;
    /// use tinyonn::moe::{LinearRouter, Router, RouterShape};
    ///
    /// // Of four channels the second alone is read.
    /// let p_rd = Tensor::new(&[[0f32, 1.0, 0.0, 0.0]], &Device::Cpu)?;
    /// let shape = RouterShape { parents: 1, choices: 3, hidden: 4 };
    /// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| LinearRouter::projecting(shape, &p_rd, &vb).map(drop))?;
    /// let router = LinearRouter::projecting(shape, &p_rd, &store.builder(DType::F32, |_| false))?;
    /// let logits = |x: [f32; 4]| router.logits(&Tensor::new(&[x], &Device::Cpu)?)?.flatten_all()?.to_vec1::<f32>();
    /// assert_eq!(logits([1.0, 2.0, 3.0, 4.0])?, logits([9.0, 2.0, -3.0, 0.0])?);
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// A missing or misshapen parameter.
    pub fn projecting(shape: RouterShape, projection: &Tensor, vb: &VarBuilder<'_>) -> Result<Self> {
        let narrow = Self::new(RouterShape { hidden: projection.dim(0)?, ..shape }, vb)?;
        Ok(Self { projection: Some(projection.clone()), ..narrow })
    }
}

impl Router for LinearRouter {
    fn new(shape: RouterShape, vb: &VarBuilder<'_>) -> Result<Self> {
        let vb = vb.clone().set_dtype(DType::F32);
        let nodes = shape.parents * shape.choices;
        let spread = Init::Randn { mean: 0.0, stdev: 1.0 / (shape.hidden as f64).sqrt() };
        Ok(Self {
            projection: None,
            weight: vb.get_with_hints((nodes, shape.hidden), "weight", spread)?,
            bias: vb.get_with_hints(nodes, "bias", Init::Const(0.0))?,
            shape,
        })
    }

    fn logits(&self, x_td: &Tensor) -> Result<Tensor> {
        let z_tr = self.projection.as_ref().map(|p_rd| linear::forward(x_td, p_rd, None)).transpose()?;
        let logits_tc = linear::forward(z_tr.as_ref().unwrap_or(x_td), &self.weight, Some(&self.bias))?;
        Ok(logits_tc.reshape(((), self.shape.parents, self.shape.choices))?)
    }

    fn backward(&self, x_td: &Tensor, dlogits_tpc: &Tensor, input: bool, grads: &mut Grads) -> Result<Option<Tensor>> {
        let dlogits_tc = dlogits_tpc.flatten_from(1)?;
        let of = (&self.weight, Some(&self.bias));
        let Some(p_rd) = &self.projection else {
            return Ok(linear::backward(x_td, of.0, of.1, &dlogits_tc, input, grads)?);
        };
        let z_tr = linear::forward(x_td, p_rd, None)?;
        let through = input || grads.learns(p_rd);
        match linear::backward(&z_tr, of.0, of.1, &dlogits_tc, through, grads)? {
            Some(dz_tr) => Ok(linear::backward(x_td, p_rd, None, &dz_tr, input, grads)?),
            None => Ok(None),
        }
    }

    fn narrow(&self) -> bool {
        true
    }
}
