//! Where weight gradients go: one slot a weight that learns, written by the backward of the operation that holds the weight.
//!
//! A weight has a slot iff it learns; what is frozen has none, and its gradient is never formed. The slots of a layer lie in one
//! contiguous *bucket*, each at a multiple of 256 bytes. The first gradient of a step overwrites a slot, later ones (a tied
//! embedding, a further micro-batch) are added. Products of a step are written where they belong, without a copy on the CPU.
//!
//! Which rows of a matrix learn from the step (one a neuron) is kept beside the gradient, joined over micro-batches: the gradient of a row
//! that does not learn is zero.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Result, Shape, Tensor, TensorId};

use super::grad_norm::grad_norm;
use super::lanes::{self, WIDTH};
use super::product::accumulate;

/// Gradients of the weights that learn.
///
/// ```
/// use candle_core::{DType, Device, Tensor, Var};
/// use tinyonn::ops::Grads;
///
/// let w = Var::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
/// let mut grads = Grads::new([(w.as_tensor(), 0)])?;
/// assert!(grads.learns(&w) && grads.get(&w).is_none() && !Grads::none().learns(&w));
///
/// // aᵀ b of two tokens, and as much again.
/// let a = Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu)?;
/// grads.add_product(&w, &a, &a)?;
/// grads.add_with(&w, || Ok(a.clone()))?;
/// assert_eq!(grads.get(&w).expect("written").to_vec2::<f32>()?, [[2.0, 0.0], [0.0, 2.0]]);
/// assert_eq!(grads.norm([w.as_tensor()], &Device::Cpu)?.to_vec1::<f64>()?, [8f64.sqrt()]);
///
/// // Only the second row learns; what the first would have learnt is cleared.
/// let second = Tensor::new(&[0u8, 1], &Device::Cpu)?;
/// grads.restrict(&w, &second, 1)?;
/// grads.clear_others(&w, &second)?;
/// assert_eq!(grads.learning_rows(&w).expect("restricted").to_vec1::<u8>()?, [0, 1]);
/// assert_eq!(grads.get(&w).expect("written").to_vec2::<f32>()?, [[0.0, 0.0], [0.0, 2.0]]);
///
/// // A micro-batch of its own, added; the next step begins anew.
/// let mut part = grads.like()?;
/// part.add_tape(&(w.as_tensor() * 1.0)?.sum_all()?.backward()?)?;
/// grads.add(&part)?;
/// assert_eq!(grads.get(&w).expect("written").to_vec2::<f32>()?[1], [1.0, 3.0]);
/// grads.begin();
/// assert!(grads.get(&w).is_none());
///
/// let mut narrow = Grads::in_dtype([(w.as_tensor(), 0)], DType::BF16)?;
/// narrow.add_product(&w, &a, &a)?;
/// assert_eq!(narrow.get(&w).map(|gradient| gradient.dtype()), Some(DType::BF16));
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Grads {
    slots: Vec<WeightGradient>,
    place: HashMap<TensorId, usize>,
    buckets: Vec<Bucket>,
    /// They are the sums of all ranks' already.
    summed: bool,
}

/// Gradients that lie in a row.
///
/// ```
/// use candle_core::{DType, Device, Tensor, Var};
/// use tinyonn::ops::Grads;
/// use tinyonn::ops::grads::Bucket;
///
/// let [a, b] = [1f32, 2.0].map(|value| Var::new(&[[value]], &Device::Cpu).unwrap());
/// // One bucket of both, cut into two ranges, one for each of two ranks.
/// let mut grads = Grads::in_ranges([(a.as_tensor(), 0), (b.as_tensor(), 0)], DType::F32, 2)?;
/// let one = Tensor::ones((1, 1), DType::F32, &Device::Cpu)?;
/// grads.add_product(&a, &one, &one)?;
/// assert_eq!([grads.is_written(0), grads.is_written(1)], [true, false]);
/// grads.clear_unwritten()?;
/// let bucket: &Bucket = &grads.buckets()[0];
/// assert_eq!((bucket.weights.len(), bucket.values.sum_all()?.to_scalar::<f32>()?), (2, 1.0));
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Bucket {
    /// All of them, `[n]`. What stands between them is zero.
    pub values: Tensor,
    /// Which of the weights lie in it, in the order in which they were given, and where each begins.
    pub weights: Vec<(usize, usize)>,
}

/// The gradient of one weight.
#[derive(Debug)]
struct WeightGradient {
    /// A part of its bucket, in the weight's shape.
    gradient: Tensor,
    /// Nothing was written in this step.
    fresh: bool,
    /// `[rows]` u8, 1 for each row that learns, or one entry for all rows, and how many learn at most. Without it all learn.
    learn: Option<(Tensor, usize)>,
}

/// Slots begin at multiples of so many bytes.
const ALIGNMENT: usize = 256;

impl Grads {
    /// For `weights`, given with the buckets they lie in; gradients are f32, or f64 of f64 weights.
    ///
    /// # Errors
    /// What the device reports.
    ///
    /// ```
    /// use candle_core::{Device, Var};
    /// use tinyonn::ops::{Grads, linear};
    ///
    /// let (w, x) = (Var::new(&[[1f32, 2.0]], &Device::Cpu)?, Var::new(&[[3f32, 4.0], [5.0, 6.0]], &Device::Cpu)?);
    /// let mut grads = Grads::new([(w.as_tensor(), 0)])?;
    /// let y = linear::forward(&x, &w, None)?;
    /// let dx = linear::backward(&x, &w, None, &y.ones_like()?, true, &mut grads)?;
    /// assert_eq!(grads.get(&w).unwrap().to_vec2::<f32>()?, [[8.0, 10.0]]); // Σ x
    /// assert_eq!(dx.unwrap().to_vec2::<f32>()?, [[1.0, 2.0], [1.0, 2.0]]);
    /// assert!(grads.get(&x).is_none());
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn new<'a>(weights: impl IntoIterator<Item = (&'a Tensor, usize)>) -> Result<Self> {
        Self::in_dtype(weights, DType::F32)
    }

    /// As [`new`](Self::new), with gradients in `narrow` of weights that are not f64: bf16 takes half the memory and rounds every sum.
    ///
    /// # Errors
    /// What the device reports.
    pub fn in_dtype<'a>(weights: impl IntoIterator<Item = (&'a Tensor, usize)>, narrow: DType) -> Result<Self> {
        Self::in_ranges(weights, narrow, 1)
    }

    /// As [`in_dtype`](Self::in_dtype), in buckets that are cut into `ranges` equal ranges, each at a multiple of 256 bytes.
    ///
    /// # Errors
    /// What the device reports.
    pub fn in_ranges<'a>(
        weights: impl IntoIterator<Item = (&'a Tensor, usize)>,
        narrow: DType,
        ranges: usize,
    ) -> Result<Self> {
        let dtype = |weight: &Tensor| if weight.dtype() == DType::F64 { DType::F64 } else { narrow };
        let weights: Vec<(&Tensor, usize)> = weights.into_iter().collect();
        let mut rows: BTreeMap<usize, (usize, Vec<(usize, usize)>)> = BTreeMap::new();
        for (at, (weight, bucket)) in weights.iter().enumerate() {
            let (end, row) = rows.entry(*bucket).or_default();
            row.push((at, *end));
            let step = ALIGNMENT / dtype(weight).size_in_bytes();
            *end = (*end + weight.elem_count()).next_multiple_of(step);
        }
        let mut buckets = Vec::with_capacity(rows.len());
        let mut gradients = vec![None; weights.len()];
        for (end, row) in rows.into_values() {
            let Some((first, _)) = row.first().map(|(at, _)| weights[*at]) else { continue };
            let step = ranges * (ALIGNMENT / dtype(first).size_in_bytes());
            let values = Tensor::zeros(end.next_multiple_of(step), dtype(first), first.device())?;
            for (at, start) in &row {
                let weight = weights[*at].0;
                gradients[*at] = Some(values.narrow(0, *start, weight.elem_count())?.reshape(weight.shape())?);
            }
            buckets.push(Bucket { values, weights: row });
        }
        let place = weights.iter().enumerate().map(|(at, (weight, _))| (weight.id(), at)).collect();
        let fresh = |gradient: Tensor| WeightGradient { gradient, fresh: true, learn: None };
        Ok(Self { slots: gradients.into_iter().flatten().map(fresh).collect(), place, buckets, summed: false })
    }

    /// Where gradients lie.
    #[must_use]
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// Whether something was written in this step for the weight that was given as number `at`.
    #[must_use]
    pub fn is_written(&self, at: usize) -> bool {
        self.slots.get(at).is_some_and(|slot| !slot.fresh)
    }

    /// Writes zeros where nothing was written in this step, in buckets where something was: all of these is then of this step.
    ///
    /// # Errors
    /// What the device reports.
    pub fn clear_unwritten(&mut self) -> Result<()> {
        for bucket in &self.buckets {
            let fresh: Vec<usize> =
                bucket.weights.iter().map(|(at, _)| *at).filter(|at| !self.is_written(*at)).collect();
            if fresh.len() == bucket.weights.len() {
                continue;
            }
            for at in fresh {
                let gradient = &self.slots[at].gradient;
                write(gradient, &gradient.zeros_like()?)?;
            }
        }
        Ok(())
    }

    /// Of no weight, for a backward pass that is only to be observed.
    #[must_use]
    pub fn none() -> Self {
        Self { slots: Vec::new(), place: HashMap::new(), buckets: Vec::new(), summed: false }
    }

    /// Begins a step: what was written before is overwritten.
    pub fn begin(&mut self) {
        self.summed = false;
        for slot in &mut self.slots {
            slot.fresh = true;
            slot.learn = None;
        }
    }

    /// Puts `sum` of each gradient that was written, over all ranks, in its place: what decides by whole gradients reads it.
    pub(crate) fn sum_by(&mut self, sum: impl Fn(&Tensor) -> crate::Result<Tensor>) -> crate::Result<()> {
        for slot in self.slots.iter().filter(|slot| !slot.fresh) {
            write(&slot.gradient, &sum(&slot.gradient)?)?;
        }
        self.summed = true;
        Ok(())
    }

    /// Whether [`sum_by`](Self::sum_by) was called in this step.
    pub(crate) fn are_summed(&self) -> bool {
        self.summed
    }

    /// Whether `weight` learns.
    #[must_use]
    pub fn learns(&self, weight: &Tensor) -> bool {
        self.place.contains_key(&weight.id())
    }

    /// The gradient of `weight`, if it learns and something was written in this step. It is a part of its bucket: read it by
    /// operations, or copy it first (`copy()`).
    #[must_use]
    pub fn get(&self, weight: &Tensor) -> Option<&Tensor> {
        let slot = self.slots.get(*self.place.get(&weight.id())?)?;
        (!slot.fresh).then_some(&slot.gradient)
    }

    /// `[rows]` u8, 1 for each row of `weight` that learns from this step, or one entry for all rows; `None` if all learn.
    #[must_use]
    pub fn learning_rows(&self, weight: &Tensor) -> Option<&Tensor> {
        self.slots.get(*self.place.get(&weight.id())?)?.learn.as_ref().map(|(learn, _)| learn)
    }

    /// The same of rows of a matrix, with how many learn at most.
    pub(crate) fn few_rows(&self, weight: &Tensor) -> Option<(&Tensor, usize)> {
        let (learn, most) = self.slots.get(*self.place.get(&weight.id())?)?.learn.as_ref()?;
        (learn.elem_count() > 1).then_some((learn, *most))
    }

    /// √Σ ‖g‖² over those of `weights` that something was written for in this step, `[1]` f64.
    ///
    /// # Errors
    /// What the device reports.
    pub fn norm<'a>(&self, weights: impl IntoIterator<Item = &'a Tensor>, device: &Device) -> Result<Tensor> {
        let gradients: Vec<&Tensor> = weights.into_iter().filter_map(|weight| self.get(weight)).collect();
        grad_norm(&gradients, device)
    }

    fn slot(&mut self, weight: &Tensor) -> Option<&mut WeightGradient> {
        let place = *self.place.get(&weight.id())?;
        self.slots.get_mut(place)
    }

    /// dW += aᵀ b, for a `[t, m]`, b `[t, n]` and W `[m, n]`.
    ///
    /// # Errors
    /// Shapes or devices that do not go together.
    pub fn add_product(&mut self, weight: &Tensor, a_tm: &Tensor, b_tn: &Tensor) -> Result<()> {
        let Some(slot) = self.slot(weight) else { return Ok(()) };
        accumulate(&slot.gradient, &a_tm.t()?, b_tn, !slot.fresh)?;
        slot.fresh = false;
        Ok(())
    }

    /// dW += `gradient`, which is formed only if W learns.
    ///
    /// # Errors
    /// Whatever `gradient` reports; another shape than the weight's.
    pub fn add_with(&mut self, weight: &Tensor, gradient: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        let Some(slot) = self.slot(weight) else { return Ok(()) };
        slot.add(&gradient()?)
    }

    /// dW += w · `gradient`, for w `[1]`.
    ///
    /// # Errors
    /// As above.
    pub(super) fn add_scaled(&mut self, weight: &Tensor, gradient: &Tensor, w: &Tensor) -> Result<()> {
        let Some(slot) = self.slot(weight) else { return Ok(()) };
        if !slot.takes_sums_of(gradient) {
            return slot.add(&gradient.broadcast_mul(&w.to_dtype(gradient.dtype())?)?);
        }
        let w = lanes::with_values(&w.to_dtype(DType::F32)?, |w: &[f32]| w[0])?;
        slot.sum(gradient, |x| x * w)
    }

    /// Changes the gradient of `weight` where it lies, an f32 tensor in main memory: `f(values, fresh)`; fresh ones hold nothing yet.
    pub(super) fn change(&mut self, weight: &Tensor, f: impl FnOnce(&mut [f32], bool) -> Result<()>) -> Result<()> {
        let Some(slot) = self.slot(weight) else { return Ok(()) };
        let fresh = std::mem::replace(&mut slot.fresh, false);
        lanes::change(&slot.gradient, |values| f(values, fresh))?
    }

    /// Whether a kernel can add to the gradient of `weight` where it lies; true as well of one that does not learn.
    #[cfg(feature = "cuda")]
    pub(super) fn takes_on_a_card(&self, weight: &Tensor) -> bool {
        let slot = self.place.get(&weight.id()).and_then(|place| self.slots.get(*place));
        slot.is_none_or(|slot| super::kernel::is_read(&slot.gradient))
    }

    /// Adds to the gradient of `weight` where it lies: `f(dW)`, which is zero where nothing was written in this step.
    #[cfg(feature = "cuda")]
    pub(super) fn add_on_a_card(&mut self, weight: &Tensor, f: impl FnOnce(&Tensor) -> Result<()>) -> Result<()> {
        let Some(slot) = self.slot(weight) else { return Ok(()) };
        if std::mem::replace(&mut slot.fresh, false) {
            write(&slot.gradient, &slot.gradient.zeros_like()?)?;
        }
        f(&slot.gradient)
    }

    /// The gradient of `weight`, for a kernel that writes all of it, and whether it must add to what is there; `None` of a weight that does not learn.
    #[cfg(feature = "cuda")]
    pub(super) fn target(&mut self, weight: &Tensor) -> Option<(Tensor, bool)> {
        let slot = self.slot(weight)?;
        let add = !std::mem::replace(&mut slot.fresh, false);
        Some((slot.gradient.clone(), add))
    }

    /// Whether both learn, and one kernel can write the gradients of both.
    #[cfg(feature = "cuda")]
    pub(super) fn alike(&self, a: &Tensor, b: &Tensor) -> bool {
        let slot = |weight: &Tensor| self.place.get(&weight.id()).and_then(|place| self.slots.get(*place));
        let of = |slot: &WeightGradient| (slot.fresh, slot.gradient.dtype());
        slot(a).is_some() && slot(a).map(of) == slot(b).map(of)
    }

    /// From this step only the rows of `weight` learn that `learn` marks (`[rows]` u8, or one entry for all rows), `most` of them or fewer, and those that earlier
    /// micro-batches have marked. Where several ranks train, rows beyond `most` would not be sent.
    ///
    /// # Errors
    /// What the device reports.
    pub fn restrict(&mut self, weight: &Tensor, learn: &Tensor, most: usize) -> Result<()> {
        let Some(slot) = self.slot(weight) else { return Ok(()) };
        slot.join(learn, most)
    }

    /// Clears the gradient of the rows of `weight` that `learn` does not mark (`surprise = exact`: all were formed).
    ///
    /// # Errors
    /// What the device reports.
    pub fn clear_others(&mut self, weight: &Tensor, learn: &Tensor) -> Result<()> {
        let Some(slot) = self.slot(weight).filter(|slot| !slot.fresh) else { return Ok(()) };
        let mut shape = vec![1; slot.gradient.rank()];
        shape[0] = learn.dim(0)?;
        let learn = learn.reshape(shape)?.broadcast_as(slot.gradient.shape())?;
        write(&slot.gradient, &learn.where_cond(&slot.gradient, &slot.gradient.zeros_like()?)?)
    }

    /// Places for the gradients of the same weights, nothing written yet.
    ///
    /// # Errors
    /// What the device reports.
    pub fn like(&self) -> Result<Self> {
        let slot = |slot: &WeightGradient| -> Result<WeightGradient> {
            Ok(WeightGradient { gradient: slot.gradient.zeros_like()?, fresh: true, learn: None })
        };
        let slots = self.slots.iter().map(slot).collect::<Result<_>>()?;
        Ok(Self { slots, place: self.place.clone(), buckets: Vec::new(), summed: false })
    }

    /// Adds the gradients of `part`, which has the same places ([`like`](Self::like)); who learns from either learns.
    ///
    /// # Errors
    /// What the device reports.
    pub fn add(&mut self, part: &Self) -> Result<()> {
        self.summed |= part.summed;
        for (slot, part) in self.slots.iter_mut().zip(&part.slots).filter(|(_, part)| !part.fresh) {
            slot.add(&part.gradient)?;
            if let Some((learn, most)) = &part.learn {
                slot.join(learn, *most)?;
            }
        }
        Ok(())
    }

    /// Adds what candle's own tape found for weights that learn here.
    ///
    /// # Errors
    /// What the device reports.
    pub fn add_tape(&mut self, store: &candle_core::backprop::GradStore) -> Result<()> {
        for (id, place) in &self.place {
            if let (Some(gradient), Some(slot)) = (store.get_id(*id), self.slots.get_mut(*place)) {
                slot.add(&gradient.detach())?;
            }
        }
        Ok(())
    }
}

impl WeightGradient {
    /// Rows that `learn` marks learn, `most` or fewer, with those that were marked before.
    fn join(&mut self, learn: &Tensor, most: usize) -> Result<()> {
        self.learn = Some(match &self.learn {
            Some((before, already)) => (before.maximum(learn)?, (already + most).min(learn.elem_count())),
            None => (learn.clone(), most.min(learn.elem_count())),
        });
        Ok(())
    }

    /// Whether a gradient can be added by one loop in main memory.
    fn takes_sums_of(&self, gradient: &Tensor) -> bool {
        let like = gradient.shape() == self.gradient.shape() && gradient.is_contiguous();
        like && lanes::fused(&[&self.gradient, gradient])
    }

    /// Adds `f` of each value.
    fn sum(&mut self, gradient: &Tensor, f: impl Fn(f32) -> f32 + Sync) -> Result<()> {
        let fresh = std::mem::replace(&mut self.fresh, false);
        lanes::with_slices([gradient], |[gradient]| {
            lanes::change(&self.gradient, |sums| {
                lanes::by_rows(sums, WIDTH, |row, sums| {
                    let values = &gradient[row * WIDTH..][..sums.len()];
                    if fresh {
                        sums.iter_mut().zip(values).for_each(|(sum, x)| *sum = f(*x));
                    } else {
                        sums.iter_mut().zip(values).for_each(|(sum, x)| *sum += f(*x));
                    }
                });
            })
        })?
    }

    fn add(&mut self, gradient: &Tensor) -> Result<()> {
        if self.takes_sums_of(gradient) {
            return self.sum(gradient, |x| x);
        }
        let mut sum = gradient.to_dtype(self.gradient.dtype())?.contiguous()?;
        if sum.shape() != self.gradient.shape() {
            candle_core::bail!("a gradient {:?} of a weight {:?}", sum.shape(), self.gradient.shape());
        }
        if !self.fresh {
            sum = (&self.gradient + sum)?;
        }
        self.fresh = false;
        write(&self.gradient, &sum)
    }
}

fn write(target: &Tensor, value: &Tensor) -> Result<()> {
    let flat = |tensor: &Tensor| tensor.reshape(Shape::from(tensor.elem_count()));
    flat(target)?.slice_set(&flat(&value.contiguous()?)?, 0, 0)
}
