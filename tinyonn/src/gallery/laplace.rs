//! A router that the library does not know, declared the way a user's is: the Laplace gate of FuseMoE (Han et al., 2024).

use candle_core::{D, DType, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::Result;
use crate::moe::{Router, RouterShape, moe};

/// Two of sixteen experts by a [`LaplaceRouter`].
#[moe(levels = [16], top_k = 2, router = LaplaceRouter, gate = scaled)]
pub struct Laplace;

/// ℓ_c = −‖x − w_c‖₂: unlike a linear router's, a choice's score is bounded, and far from all of them none wins by much.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::gallery::LaplaceRouter;
/// use tinyonn::moe::{Router, RouterShape};
///
/// let shape = RouterShape { parents: 1, choices: 2, hidden: 4 };
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| LaplaceRouter::new(shape, &vb).map(drop))?;
/// let router = LaplaceRouter::new(shape, &store.builder(DType::F32, |_| false))?;
/// let logits_tpc = router.logits(&Tensor::ones((3, 4), DType::F32, &Device::Cpu)?)?;
/// assert_eq!(logits_tpc.dims(), [3, 1, 2]);
/// assert!(logits_tpc.flatten_all()?.to_vec1::<f32>()?.iter().all(|logit| *logit < 0.0)); // minus a distance
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug)]
pub struct LaplaceRouter {
    /// w `[p·c, d]`.
    centre: Tensor,
    shape: RouterShape,
}

impl Router for LaplaceRouter {
    fn new(shape: RouterShape, vb: &VarBuilder<'_>) -> Result<Self> {
        let vb = vb.clone().set_dtype(DType::F32);
        let nodes = shape.parents * shape.choices;
        let centre = vb.get_with_hints((nodes, shape.hidden), "centre", Init::Randn { mean: 0.0, stdev: 1.0 })?;
        Ok(Self { centre, shape })
    }

    fn logits(&self, x_td: &Tensor) -> Result<Tensor> {
        let x_td = x_td.to_dtype(DType::F32)?;
        let cross_tc = (x_td.matmul(&self.centre.t()?)? * 2.0)?;
        let lengths_tc = x_td.sqr()?.sum_keepdim(D::Minus1)?.broadcast_add(&self.centre.sqr()?.sum(D::Minus1)?)?;
        // Rounding may leave less than nothing where x is a centre, and the root has no slope at zero.
        let distance_tc = (lengths_tc - cross_tc)?.maximum(1e-6)?.sqrt()?;
        Ok(distance_tc.neg()?.reshape(((), self.shape.parents, self.shape.choices))?)
    }
}
