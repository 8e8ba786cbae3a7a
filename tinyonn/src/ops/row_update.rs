//! What the updates of all optimizers share: rows that do not learn are *skipped* (neither moments nor values change by a bit), the
//! gradient is multiplied by a scale (clipping), values change where they lie.
//!
//! A matrix has a row a neuron; everything else learns as a whole. Which rows learn lies on the device, like everything that decides.
//! What is f32 in main memory takes a fused loop over blocks; all else the plain form, computed in f32 (f64 of f64 weights) and rounded to
//! the type that each is held in: gradients and moments may be bf16.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::grad_site::wide;
use super::lanes;

/// Values a task of the pool updates at once, of weights that learn as a whole.
const BLOCK: usize = 1 << 14;

/// What an update changes, and by what.
#[derive(Clone, Copy, Debug)]
pub struct RowUpdate<'a> {
    /// θ.
    pub weight: &'a Tensor,
    /// g.
    pub gradient: &'a Tensor,
    /// 1 for each row that learns, u8; of a single entry, all or none.
    pub learn: &'a Tensor,
    /// What g is multiplied by first, `[1]` f64.
    pub scale: &'a Tensor,
}

/// The values of some rows: θ, the first moment, the second (empty, where there is none), g.
pub(super) type Rows<'a> = (&'a mut [f32], &'a mut [f32], &'a mut [f32], &'a [f32]);

impl RowUpdate<'_> {
    /// Refuses marks that are not of the weight's rows and moments of another shape, by the name of the operation.
    pub(super) fn check(&self, name: &str, moments: &[&Tensor]) -> Result<()> {
        if let Some(other) = moments.iter().find(|moment| moment.shape() != self.weight.shape()) {
            candle_core::bail!("{name}: a moment {:?} of a weight {:?}", other.shape(), self.weight.shape());
        }
        if self.gradient.shape() != self.weight.shape() {
            candle_core::bail!("{name}: a gradient {:?} of a weight {:?}", self.gradient.shape(), self.weight.shape());
        }
        let marks = self.learn.elem_count();
        if marks != 1 && (self.weight.rank() != 2 || self.weight.dim(0)? != marks) {
            candle_core::bail!("{name}: {marks} marks for the rows of {:?}", self.weight.shape());
        }
        Ok(())
    }

    /// Whether the fused loop can be taken.
    pub(super) fn is_fused(&self, moments: &[&Tensor]) -> bool {
        let own = [self.weight, self.gradient];
        lanes::fused(&own) && lanes::fused(moments) && self.gradient.is_contiguous()
    }

    /// `update(row, scale, values)` of every row that learns.
    pub(super) fn fused(
        &self,
        (m, v): (&Tensor, Option<&Tensor>),
        update: impl Fn(usize, f32, Rows<'_>) + Sync,
    ) -> Result<()> {
        let scale = lanes::with_values(self.scale, |scale: &[f64]| scale[0] as f32)?;
        let learn = lanes::with_values(self.learn, |learn: &[u8]| learn.to_vec())?;
        // Whole tensors are cut into blocks, rows are tasks of their own.
        let task = if learn.len() == 1 { BLOCK } else { (self.weight.elem_count() / learn.len()).max(1) };
        let row = |at: usize| if learn.len() == 1 { 0 } else { at };
        let all = |weight: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32]| {
            let mut second: Vec<&mut [f32]> = v.chunks_mut(task).collect();
            second.resize_with(weight.len().div_ceil(task), Default::default);
            let values = weight.par_chunks_mut(task).zip(m.par_chunks_mut(task)).zip(second.par_iter_mut());
            values.zip(gradient.par_chunks(task)).enumerate().for_each(|(at, (((weight, m), v), gradient))| {
                if learn[row(at)] != 0 {
                    lanes::vectorised(|| update(row(at), scale, (weight, m, v, gradient)));
                }
            });
        };
        lanes::change(self.weight, |weight| {
            lanes::change(m, |m| {
                lanes::with_slices([self.gradient], |[gradient]| {
                    if let Some(v) = v {
                        return lanes::change(v, |v| all(weight, m, v, gradient));
                    }
                    all(weight, m, &mut [], gradient);
                    Ok(())
                })
            })
        })???
    }

    /// θ and the moments from `update(θ, g, moments)`, which are in the type that is computed in; rows that do not learn stay.
    pub(super) fn plain<const M: usize>(
        &self,
        moments: [&Tensor; M],
        update: impl FnOnce(&Tensor, &Tensor, &[Tensor]) -> Result<(Tensor, [Tensor; M])>,
    ) -> Result<()> {
        let weight = wide(self.weight)?;
        let like_weight = |x: &Tensor| x.to_dtype(weight.dtype());
        // In the weight's rank: a router's scale has none.
        let gradient = like_weight(self.gradient)?.broadcast_mul(&self.along_rows(&like_weight(self.scale)?)?)?;
        let held = moments.iter().map(|moment| like_weight(moment)).collect::<Result<Vec<_>>>()?;
        let (weight, new) = update(&weight, &gradient, &held)?;
        let learn = self.along_rows(&self.learn.ne(0u8)?)?.broadcast_as(self.weight.shape())?;
        for (old, new) in std::iter::once((self.weight, weight)).chain(moments.into_iter().zip(new)) {
            let new = learn.where_cond(&new.to_dtype(old.dtype())?, &old.detach())?;
            let flat = |tensor: &Tensor| tensor.detach().flatten_all();
            flat(old)?.slice_set(&flat(&new.contiguous()?)?, 0, 0)?;
        }
        Ok(())
    }

    /// A number a row, or one for all, in a shape that broadcasts over the weight.
    pub(super) fn along_rows(&self, values: &Tensor) -> Result<Tensor> {
        let mut shape = vec![1; self.weight.rank()];
        if values.elem_count() > 1 {
            shape[0] = values.elem_count();
        }
        values.reshape(shape)
    }
}
