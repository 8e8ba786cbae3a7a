//! `y_t = W[id_t]`: rows of a table.
//!
//! Shapes: ids `[..]` u32, W `[V, d]`, y `[.., d]`. Backward: row v of dW is the sum of dy_t over the t with id_t = v.

use candle_core::{Result, Tensor};

use super::lanes;
use super::linear::rows;
use super::tape::{self, Backward};

/// The rows of `weight` named by `ids`.
///
/// # Errors
/// An id that the table does not hold; devices that do not go together.
pub fn embedding(ids: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let flat = ids.flatten_all()?.contiguous()?;
    let mut shape = ids.dims().to_vec();
    shape.push(weight.dim(1)?);
    let y = weight.detach().index_select(&flat, 0)?.reshape(shape)?;
    tape::record(&[weight], y, Embedding { ids: flat, weight: weight.detach() })
}

struct Embedding {
    ids: Tensor,
    weight: Tensor,
}

impl Backward for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn backward(&self, _: &Tensor, grad: &Tensor, needs: &[bool]) -> Result<Vec<Option<Tensor>>> {
        if !needs[0] {
            return Ok(vec![None]);
        }
        let dy_td = rows(grad)?;
        if !lanes::fused(&[&dy_td]) {
            return Ok(vec![Some(self.weight.zeros_like()?.index_add(&self.ids, &dy_td, 0)?)]);
        }
        let (v, d) = self.weight.dims2()?;
        let ids = self.ids.to_vec1::<u32>()?;
        let mut dw = vec![0f32; v * d];
        lanes::with_slices([&dy_td], |[dy]| {
            for (id, dy) in ids.iter().zip(dy.chunks_exact(d)) {
                let row = &mut dw[*id as usize * d..][..d];
                row.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
            }
        })?;
        Ok(vec![Some(Tensor::from_vec(dw, (v, d), grad.device())?)])
    }
}
