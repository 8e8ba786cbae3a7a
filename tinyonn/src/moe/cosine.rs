//! Cosine routing: ℓ_c = s · ⟨x, e_c⟩ / (‖x‖ ‖e_c‖), which no choice can win by the length of its vector (Chi et al., 2022).

use candle_core::{D, DType, Tensor};
use candle_nn::{Init, VarBuilder};

use super::{Router, RouterShape};
use crate::Result;

/// s at the start, the reciprocal of the temperature 0.07 that CLIP starts from (Radford et al., 2021); it learns.
const SCALE: f64 = 1.0 / 0.07;
/// Keeps a vector of zeros from a division by none.
const EPS: f64 = 1e-12;

/// The cosine routers of one level. Parameters are f32 whatever the model's dtype.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::moe::{CosineRouter, Router, RouterShape};
///
/// let shape = RouterShape { parents: 1, choices: 3, hidden: 4 };
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CosineRouter::new(shape, &vb).map(drop))?;
/// let router = CosineRouter::new(shape, &store.builder(DType::F32, |_| false))?;
/// let x = Tensor::new(&[[1f32, 2.0, 3.0, 4.0]], &Device::Cpu)?;
/// // The length of x says nothing.
/// let [one, ten] = [&x, &(&x * 10.0)?].map(|x| router.logits(x).and_then(|l| Ok(l.flatten_all()?.to_vec1::<f32>()?)));
/// assert!(one?.iter().zip(ten?).all(|(a, b)| (a - b).abs() < 1e-5));
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct CosineRouter {
    /// e `[p·c, d]`.
    weight: Tensor,
    /// s, a scalar.
    scale: Tensor,
    shape: RouterShape,
}

impl Router for CosineRouter {
    fn new(shape: RouterShape, vb: &VarBuilder<'_>) -> Result<Self> {
        let vb = vb.clone().set_dtype(DType::F32);
        let nodes = shape.parents * shape.choices;
        Ok(Self {
            weight: vb.get_with_hints((nodes, shape.hidden), "weight", Init::Randn { mean: 0.0, stdev: 1.0 })?,
            scale: vb.get_with_hints((), "scale", Init::Const(SCALE))?,
            shape,
        })
    }

    fn logits(&self, x_td: &Tensor) -> Result<Tensor> {
        let x_td = x_td.to_dtype(DType::F32)?;
        let cosines_tc = unit(&x_td)?.matmul(&unit(&self.weight)?.t()?)?;
        let logits_tc = cosines_tc.broadcast_mul(&self.scale)?;
        Ok(logits_tc.reshape(((), self.shape.parents, self.shape.choices))?)
    }
}

/// Rows of length one.
fn unit(rows: &Tensor) -> Result<Tensor> {
    let length = (rows.sqr()?.sum_keepdim(D::Minus1)? + EPS)?.sqrt()?;
    Ok(rows.broadcast_div(&length)?)
}
