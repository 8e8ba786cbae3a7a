//! The table of an optimizer's step: a descriptor a weight, one call for all of them.
//!
//! Rows that do not learn are *skipped* (neither moments nor values change by a bit), the gradient is multiplied by a scale (clipping), values
//! change where they lie, and where passes compute with a rounded copy of a weight, that copy follows. A matrix has a row a neuron; everything
//! else learns as a whole. Which rows learn, and whether anything does, lies on the device, like everything that decides.
//!
//! What is f32 in main memory takes one parallel loop over the blocks of all weights; all else the plain form, computed in f32 (f64 of f64
//! weights) and rounded to the type that each is held in: gradients and moments may be bf16. On a GPU, AdamW has a kernel.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use tinyonn::ops::{Descriptor, SgdStep, UpdateTable, sgd};
//!
//! let list = |values: &[f32]| Tensor::new(values, &Device::Cpu);
//! let (p, g, m) = (list(&[1.0, 1.0])?, list(&[0.5, 0.5])?, list(&[0.0, 0.0])?);
//! let scale = Tensor::new(&[1f64], &Device::Cpu)?;
//! // The loss was no finite number: nothing changes.
//! let (finite, learn) = (Tensor::new(&[0u8], &Device::Cpu)?, Tensor::new(&[1u8], &Device::Cpu)?);
//! let of = Descriptor { weight: &p, work: None, gradient: &g, m: &m, second: None, learn: &learn, decay: 0.0 };
//! sgd(&SgdStep { rate: 0.1, momentum: 0.0 }, &UpdateTable { descriptors: &[of], scale: &scale, finite: &finite })?;
//! assert_eq!(p.to_vec1::<f32>()?, [1.0, 1.0]);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::grad_site::wide;
use super::lanes;

/// Values a task of the pool updates at once, of weights that learn as a whole.
const BLOCK: usize = 1 << 14;

/// What an update changes of one weight, and by what.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor<'a> {
    /// θ.
    pub weight: &'a Tensor,
    /// What passes compute with, where that is not θ itself: θ rounded.
    pub work: Option<&'a Tensor>,
    /// g.
    pub gradient: &'a Tensor,
    /// The first moment.
    pub m: &'a Tensor,
    /// The second moment and the steps taken, f64, a number for each mark of `learn`: AdamW's, which counts there.
    pub second: Option<(&'a Tensor, &'a Tensor)>,
    /// 1 for each row that learns, u8; of a single entry, all or none.
    pub learn: &'a Tensor,
    /// λ.
    pub decay: f64,
}

/// The weights of a step, and what holds for all of them.
#[derive(Clone, Copy, Debug)]
pub struct UpdateTable<'a> {
    /// No tensor that changes stands in it twice.
    pub descriptors: &'a [Descriptor<'a>],
    /// What gradients are multiplied by first, `[1]` f64.
    pub scale: &'a Tensor,
    /// Where it is 0, nothing changes, `[1]` u8.
    pub finite: &'a Tensor,
}

/// The values of some rows: θ, the first moment, the second (empty, where there is none), g.
pub(super) type Rows<'a> = (&'a mut [f32], &'a mut [f32], &'a mut [f32], &'a [f32]);

impl UpdateTable<'_> {
    /// `update(descriptor, learn, scale)` of each weight; `learn` is 0 where nothing changes. In parallel where a loop in main memory takes it.
    pub(super) fn each(
        &self,
        name: &str,
        update: impl Fn(&Descriptor<'_>, &Tensor, &Tensor) -> Result<()> + Sync,
    ) -> Result<()> {
        self.check(name)?;
        let one = |of: &Descriptor<'_>| {
            update(of, &of.learn.broadcast_mul(self.finite)?, self.scale)?;
            of.work.map_or(Ok(()), |work| put(work, of.weight))
        };
        // A weight's blocks are tasks too: threads that have no weight left take part in another's.
        let (fused, plain): (Vec<_>, Vec<_>) = self.descriptors.iter().partition(|of| of.is_fused());
        fused.into_par_iter().try_for_each(one)?;
        plain.into_iter().try_for_each(one)
    }

    /// Refuses a tensor that stands in the table twice (it would wait for itself), and descriptors whose parts do not go together.
    pub(super) fn check(&self, name: &str) -> Result<()> {
        let changing = self.descriptors.iter().flat_map(Descriptor::changing);
        let mut seen = std::collections::HashSet::new();
        if let Some(twice) = changing.into_iter().find(|tensor| !seen.insert(tensor.id())) {
            candle_core::bail!("{name}: a tensor {:?} stands in the table twice", twice.shape());
        }
        self.descriptors.iter().try_for_each(|of| of.check(name))
    }
}

impl Descriptor<'_> {
    fn moments(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(self.m).chain(self.second.map(|(v, _)| v))
    }

    fn changing(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(self.weight).chain(self.work).chain(self.moments()).chain(self.second.map(|(_, counts)| counts))
    }

    /// Refuses marks that are not of the weight's rows and tensors of another shape, by the name of the operation.
    fn check(&self, name: &str) -> Result<()> {
        for (what, other) in self.moments().map(|m| ("moment", m)).chain([("gradient", self.gradient)]) {
            if other.shape() != self.weight.shape() {
                candle_core::bail!("{name}: a {what} {:?} of a weight {:?}", other.shape(), self.weight.shape());
            }
        }
        let marks = self.learn.elem_count();
        if marks != 1 && (self.weight.rank() != 2 || self.weight.dim(0)? != marks) {
            candle_core::bail!("{name}: {marks} marks for the rows of {:?}", self.weight.shape());
        }
        if let Some((_, counts)) = self.second.filter(|(_, counts)| counts.elem_count() != marks) {
            candle_core::bail!("{name}: {} step counts for {marks} marks", counts.elem_count());
        }
        Ok(())
    }

    /// Whether the fused loop can be taken.
    pub(super) fn is_fused(&self) -> bool {
        let moments: Vec<&Tensor> = self.moments().collect();
        lanes::fused(&[self.weight, self.gradient]) && lanes::fused(&moments) && self.gradient.is_contiguous()
    }

    /// `update(row, scale, values)` of every row that learns.
    pub(super) fn fused(
        &self,
        learn: &Tensor,
        scale: &Tensor,
        update: impl Fn(usize, f32, Rows<'_>) + Sync,
    ) -> Result<()> {
        let scale = lanes::with_values(scale, |scale: &[f64]| scale[0] as f32)?;
        let learn = lanes::with_values(learn, |learn: &[u8]| learn.to_vec())?;
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
            lanes::change(self.m, |m| {
                lanes::with_slices([self.gradient], |[gradient]| {
                    if let Some((v, _)) = self.second {
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
        learn: &Tensor,
        scale: &Tensor,
        moments: [&Tensor; M],
        update: impl FnOnce(&Tensor, &Tensor, &[Tensor]) -> Result<(Tensor, [Tensor; M])>,
    ) -> Result<()> {
        let weight = wide(self.weight)?;
        let like_weight = |x: &Tensor| x.to_dtype(weight.dtype());
        // In the weight's rank: a router's scale has none.
        let gradient = like_weight(self.gradient)?.broadcast_mul(&self.along_rows(&like_weight(scale)?)?)?;
        let held = moments.iter().map(|moment| like_weight(moment)).collect::<Result<Vec<_>>>()?;
        let (weight, new) = update(&weight, &gradient, &held)?;
        let learn = self.along_rows(&learn.ne(0u8)?)?.broadcast_as(self.weight.shape())?;
        for (old, new) in std::iter::once((self.weight, weight)).chain(moments.into_iter().zip(new)) {
            put(old, &learn.where_cond(&new.to_dtype(old.dtype())?, &old.detach())?)?;
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

/// `value`, rounded, in the place of what `target` holds.
pub(super) fn put(target: &Tensor, value: &Tensor) -> Result<()> {
    let flat = |tensor: &Tensor| tensor.detach().flatten_all();
    flat(target)?.slice_set(&flat(&value.to_dtype(target.dtype())?.contiguous()?)?, 0, 0)
}

/// Steps taken by each mark, f64, counted on where `learn` says that it takes part in this one.
pub(super) fn counted(counts: &Tensor, learn: &Tensor) -> Result<Tensor> {
    let counted = (counts.detach() + learn.to_dtype(DType::F64)?.reshape(counts.shape())?)?;
    put(counts, &counted)?;
    Ok(counted)
}
