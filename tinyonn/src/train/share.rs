//! What one of several ranks steps of a training (ZeRO, Rajbhandari et al. 2020, stage 1): of every bucket of gradients an equal range, with the masters and
//! moments that lie in it. All ranks hold all work weights.
//!
//! A step sums each bucket over the ranks and leaves a rank its range, steps the pieces of weights in it, and gathers the work weights of one bucket while it steps the next; where
//! few rows of a bucket learn, it sums and gathers these alone. Nothing of it depends on how many ranks there are but the order of the sums, and a state on disk is that of one rank.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};

use super::checkpoints::{StateTensors, optimizer_names};
use super::state::{OptimizerMoments, Slot, apply};
use super::{OptimizerConfig, UpdateRule};
use crate::Result;
use crate::ops::grads::Bucket;
use crate::ops::packed_rows::{LearningRows, pack, unpack};
use crate::ops::{self, Descriptor, Grads, UpdateTable, copies};
use crate::ranks::pieces::{Piece, pieces};
use crate::ranks::{Collective, Underway};

/// What this rank steps.
#[derive(Debug)]
pub(super) struct Share {
    ranks: Arc<dyn Collective>,
    buckets: Vec<OwnBucket>,
    /// By slot, the step counts that it has since its first step: one, or one a row.
    marks: Vec<Option<usize>>,
    /// What moments are held in, and whether there are second ones.
    moments: (DType, bool),
}

/// This rank's range of a bucket.
#[derive(Debug)]
struct OwnBucket {
    /// Slots, and where in the bucket each begins.
    slots: Vec<(usize, usize)>,
    /// Which of the bucket's values it is.
    range: Range<usize>,
    /// Of what passes compute with.
    dtype: DType,
    device: Device,
    pieces: Vec<OwnPiece>,
    /// What the other ranks step.
    theirs: Vec<Theirs>,
}

/// A run of values that another rank steps.
#[derive(Debug)]
struct Theirs {
    slot: usize,
    /// In the flattened weight.
    values: Range<usize>,
    /// Where in the bucket they begin.
    at: usize,
}

/// A piece of a weight.
#[derive(Debug)]
struct OwnPiece {
    slot: usize,
    piece: Piece,
    /// `[rows, width]`.
    master: Tensor,
    moments: Option<OptimizerMoments>,
}

/// The sum of the gradients of all ranks.
pub(super) struct Reduced {
    /// By bucket, this rank's range; `None` where nothing was written in this step, which no rank sums.
    shards: Vec<Option<Tensor>>,
    /// By bucket, whether so few rows learn that these alone are sent.
    few: Vec<bool>,
    /// √Σ ‖g‖² over all ranges, `[1]` f64.
    pub(super) norm: Tensor,
}

/// What an update of a piece reads and writes, beside what belongs to it.
struct Views<'a> {
    own: &'a OwnPiece,
    gradient: Tensor,
    learn: Tensor,
    work: Tensor,
}

/// What all pieces of a step are stepped by.
struct Step<'a> {
    slots: &'a [Slot],
    /// By slot, its rows that learn; nothing of those that are not stepped.
    learn: Vec<Option<&'a Tensor>>,
    config: &'a OptimizerConfig,
    rate: f64,
    scale: &'a Tensor,
    finite: &'a Tensor,
}

impl Share {
    /// Of `slots`, whose gradients lie in the buckets of `grads`; weights of one bucket are computed with in one type.
    pub(super) fn new(slots: &[Slot], grads: &Grads, ranks: Arc<dyn Collective>, moments: DType) -> Result<Self> {
        let mut buckets = Vec::new();
        for bucket in grads.buckets() {
            let (whole, device) = (bucket.values.dim(0)?, bucket.values.device());
            let length = whole / ranks.ranks();
            let range = ranks.rank() * length..(ranks.rank() + 1) * length;
            let places = bucket.weights.iter().map(|(slot, start)| (slots[*slot].var.dims().to_vec(), *start));
            let places: Vec<_> = places.collect();
            let own = pieces(&places, range.clone()).into_iter().map(|piece| {
                let slot = bucket.weights[piece.weight].0;
                Ok(OwnPiece { slot, master: cut(slots[slot].stepped(), &piece, device)?, piece, moments: None })
            });
            let own = own.collect::<Result<Vec<_>>>()?;
            let theirs = [0..range.start, range.end..whole].into_iter().flat_map(|range| {
                let run = |(slot, start): &(usize, usize)| {
                    let from = range.start.max(*start);
                    let to = range.end.min(start + slots[*slot].var.elem_count());
                    (from < to).then(|| Theirs { slot: *slot, values: from - start..to - start, at: from })
                };
                bucket.weights.iter().filter_map(run).collect::<Vec<_>>()
            });
            let theirs = theirs.collect();
            let first = bucket.weights.first().map_or(0, |(slot, _)| *slot);
            let (dtype, device) = (slots[first].var.dtype(), device.clone());
            buckets.push(OwnBucket { slots: bucket.weights.clone(), range, dtype, device, pieces: own, theirs });
        }
        Ok(Self { ranks, buckets, marks: vec![None; slots.len()], moments: (moments, false) })
    }

    pub(super) fn ranks(&self) -> &Arc<dyn Collective> {
        &self.ranks
    }

    /// Sums what all ranks have in their buckets, where that is not done.
    pub(super) fn reduce(&self, slots: &[Slot], grads: &mut Grads, device: &Device) -> Result<Reduced> {
        grads.clear_unwritten()?;
        let few: Vec<bool> = grads.buckets().iter().map(|bucket| few_learn(bucket, (slots, grads))).collect();
        let packed = grads.buckets().iter().zip(&few).filter(|(_, few)| **few).flat_map(|(bucket, _)| {
            let held = 0..bucket.values.elem_count();
            learning_rows(&bucket.weights, (slots, grads)).map(move |rows| rows.of(&bucket.values, held.clone()))
        });
        let packed: Vec<LearningRows<'_>> = packed.collect();
        if !grads.are_summed() {
            send(&*self.ranks, &packed, &packed)?;
        }
        drop(packed);
        let written = |bucket: &Bucket| bucket.weights.iter().any(|(slot, _)| grads.is_written(*slot));
        let shard = |(bucket, few): (&Bucket, &bool)| -> Result<Option<Tensor>> {
            let length = bucket.values.dim(0)? / self.ranks.ranks();
            Ok(match *few || (grads.are_summed() && written(bucket)) {
                true => Some(bucket.values.narrow(0, self.ranks.rank() * length, length)?),
                false if written(bucket) => Some(self.ranks.reduce_scatter(&bucket.values)?),
                false => None,
            })
        };
        let shards = grads.buckets().iter().zip(&few).map(shard).collect::<Result<Vec<_>>>()?;
        let own = ops::grad_norm(&shards.iter().flatten().collect::<Vec<_>>(), device)?;
        let norm = self.ranks.all_reduce(&own.sqr()?)?.sqrt()?;
        Ok(Reduced { shards, few, norm })
    }

    /// Steps the pieces, and gathers the work weights. `all` marks what learns as a whole.
    pub(super) fn step(
        &mut self,
        (slots, grads): (&[Slot], &Grads),
        reduced: &Reduced,
        (config, rate): (&OptimizerConfig, f64),
        [scale, finite, all]: [&Tensor; 3],
    ) -> Result<()> {
        self.moments.1 = config.rule == UpdateRule::Adamw;
        let learn = slots.iter().map(|slot| {
            grads.get(&slot.var)?;
            Some(grads.learning_rows(&slot.var).unwrap_or(all))
        });
        let step = Step { slots, learn: learn.collect(), config, rate, scale, finite };
        for (marks, learn) in self.marks.iter_mut().zip(&step.learn) {
            *marks = marks.or(learn.map(Tensor::elem_count));
        }
        let (mut few, mut underway): (Vec<_>, Option<(&OwnBucket, Underway)>) = (Vec::new(), None);
        for ((bucket, shard), is_few) in self.buckets.iter_mut().zip(&reduced.shards).zip(&reduced.few) {
            let Some(shard) = shard else { continue };
            bucket.step(shard, &step, self.moments)?;
            let bucket = &*bucket;
            if *is_few {
                few.push(bucket);
                continue;
            }
            // It travels while the next bucket is stepped.
            let gathered = self.ranks.begin_gather(&bucket.own_work(slots)?)?;
            if let Some((before, gathered)) = underway.replace((bucket, gathered)) {
                before.take_work(&gathered.values()?, slots)?;
            }
        }
        if let Some((last, gathered)) = underway {
            last.take_work(&gathered.values()?, slots)?;
        }
        gather_rows(&*self.ranks, &few, (slots, grads))
    }

    /// The masters of all ranges, into the slots.
    pub(super) fn gather_masters(&self, slots: &[Slot]) -> Result<()> {
        // What has no other master than its work weight is gathered in every step.
        let has_master = |(slot, _): &&(usize, usize)| slots[*slot].master.is_some();
        for bucket in self.buckets.iter().filter(|bucket| bucket.slots.iter().any(|of| has_master(&of))) {
            let dtype = bucket.slots.first().map_or(DType::F32, |(slot, _)| slots[*slot].stepped().dtype());
            let parts = bucket.pieces.iter().map(|own| (own.piece.from, own.master.clone())).collect::<Vec<_>>();
            let all = self.ranks.all_gather(&copies::row(&parts, bucket.range.len(), dtype, &bucket.device)?)?;
            for (slot, start) in bucket.slots.iter().filter(has_master) {
                let master = slots[*slot].stepped();
                let values = all.narrow(0, *start, master.elem_count())?.reshape(master.shape())?;
                master.set(&values.to_device(master.device())?)?;
            }
        }
        Ok(())
    }

    /// Takes the masters that lie in the slots.
    pub(super) fn take_masters(&mut self, slots: &[Slot]) -> Result<()> {
        for bucket in &mut self.buckets {
            for own in &mut bucket.pieces {
                own.master = cut(slots[own.slot].stepped(), &own.piece, &bucket.device)?;
            }
        }
        Ok(())
    }

    /// What a state on disk holds: of every slot the master and, once it was stepped, the moments and counts. All ranks take part.
    pub(super) fn tensors(&self, slots: &[Slot]) -> Result<StateTensors> {
        let mut found = StateTensors::default();
        for bucket in &self.buckets {
            let dtype = if bucket.dtype == DType::F64 { DType::F64 } else { self.moments.0 };
            let counts = self.moments.1.then(|| self.counts(bucket)).transpose()?;
            let counts = counts.map(|counts| counts.to_device(&Device::Cpu)).transpose()?;
            let mut counted = 0;
            for (slot, _) in &bucket.slots {
                let [m, v, steps] = optimizer_names(&slots[*slot].name);
                let (name, shape) = (slots[*slot].name.clone(), slots[*slot].var.shape());
                found.shared.push((name, of_shape(slots[*slot].stepped().dtype(), shape)?));
                let Some(marks) = self.marks[*slot] else { continue };
                found.shared.push((m, of_shape(dtype, shape)?));
                if let Some(counts) = &counts {
                    found.shared.push((v, of_shape(dtype, shape)?));
                    found.whole.push((steps, counts.narrow(0, counted, marks)?.to_dtype(DType::U32)?));
                }
                counted += marks;
            }
            for own in &bucket.pieces {
                let [m, v, _] = optimizer_names(&slots[own.slot].name);
                let from = own.piece.values.start;
                found.owned.push((slots[own.slot].name.clone(), from, own.master.clone()));
                let moments = own
                    .moments
                    .iter()
                    .flat_map(|moments| [(m.clone(), Some(&moments.m)), (v.clone(), moments.v.as_ref())]);
                found.owned.extend(moments.filter_map(|(name, values)| Some((name, from, values?.clone()))));
            }
        }
        Ok(found)
    }

    /// Step counts of the slots of a bucket that have some, in a row, f64. A row that is cut is counted by the owner of its beginning.
    fn counts(&self, bucket: &OwnBucket) -> Result<Tensor> {
        let mut all = Vec::with_capacity(bucket.slots.len());
        for (slot, _) in &bucket.slots {
            let Some(marks) = self.marks[*slot] else { continue };
            let counts = Tensor::zeros(marks, DType::F64, &bucket.device)?;
            for own in bucket.pieces.iter().filter(|own| own.slot == *slot) {
                let held = own.moments.as_ref().and_then(|moments| moments.counts.as_ref());
                let counts_for_all = if marks == 1 { own.piece.values.start == 0 } else { own.piece.begins };
                if let Some(held) = held.filter(|_| counts_for_all) {
                    counts.slice_set(held, 0, if marks == 1 { 0 } else { own.piece.rows.start })?;
                }
            }
            all.push(counts);
        }
        if all.is_empty() {
            return Ok(Tensor::zeros(0, DType::F64, &bucket.device)?);
        }
        self.ranks.all_reduce(&Tensor::cat(&all, 0)?)
    }

    /// Takes its part of the moments that lie in the slots.
    pub(super) fn take_moments(&mut self, slots: &mut [Slot]) -> Result<()> {
        for (marks, slot) in self.marks.iter_mut().zip(&*slots) {
            let counted = |moments: &OptimizerMoments| moments.counts.as_ref().map_or(1, Tensor::elem_count);
            *marks = slot.moments.as_ref().map(counted);
            self.moments.1 |= slot.moments.as_ref().is_some_and(|moments| moments.v.is_some());
        }
        for own in self.buckets.iter_mut().flat_map(|bucket| &mut bucket.pieces) {
            own.moments = slots[own.slot].moments.as_ref().map(|whole| own.part_of(whole)).transpose()?;
        }
        slots.iter_mut().for_each(|slot| slot.moments = None);
        Ok(())
    }
}

/// The sum over ranks of the rows `from`, to `to`; all of one type in one sum.
fn send(ranks: &dyn Collective, from: &[LearningRows<'_>], to: &[LearningRows<'_>]) -> Result<()> {
    let dtypes: BTreeSet<&str> = from.iter().map(|rows| rows.values.dtype().as_str()).collect();
    for dtype in dtypes {
        let [from, to] = [from, to].map(|rows| {
            rows.iter().filter(|rows| rows.values.dtype().as_str() == dtype).cloned().collect::<Vec<LearningRows<'_>>>()
        });
        unpack(&ranks.all_reduce(&pack(&from)?)?, &to)?;
    }
    Ok(())
}

/// The work weights of rows that learn, into the slots: every value is one rank's, and nothing of the others'.
fn gather_rows(ranks: &dyn Collective, buckets: &[&OwnBucket], of: (&[Slot], &Grads)) -> Result<()> {
    let rows = buckets.iter().flat_map(|bucket| learning_rows(&bucket.slots, of).map(move |rows| (*bucket, rows)));
    let rows: Vec<_> = rows.collect();
    let flat = |(_, rows): &(&OwnBucket, Rows<'_>)| Ok(of.0[rows.slot].var.as_tensor().detach().flatten_all()?);
    let whole = rows.iter().map(flat).collect::<Result<Vec<Tensor>>>()?;
    let all = |rows: &Rows<'_>, whole: &Tensor| rows.begin..rows.begin + whole.elem_count();
    let own = rows.iter().zip(&whole).map(|((bucket, rows), whole)| {
        let all = all(rows, whole);
        let [from, to] = [bucket.range.start, bucket.range.end].map(|end| end.clamp(all.start, all.end));
        Ok((whole.narrow(0, from - all.start, to - from)?, from..to))
    });
    let own = own.collect::<Result<Vec<_>>>()?;
    let from: Vec<_> = rows.iter().zip(&own).map(|((_, rows), (own, held))| rows.of(own, held.clone())).collect();
    let to: Vec<_> = rows.iter().zip(&whole).map(|((_, rows), whole)| rows.of(whole, all(rows, whole))).collect();
    send(ranks, &from, &to)
}

/// The rows of a weight that learn, of which nothing is held yet.
struct Rows<'a> {
    slot: usize,
    begin: usize,
    shape: (usize, usize),
    learn: &'a Tensor,
    most: usize,
}

impl<'a> Rows<'a> {
    fn of(&self, values: &'a Tensor, held: Range<usize>) -> LearningRows<'a> {
        let Self { begin, shape, learn, most, .. } = *self;
        LearningRows { values, held, begin, shape, learn, most }
    }
}

/// Of the weights of a bucket, each with its slot and where it begins, those of which some rows learn.
fn learning_rows<'a>(
    weights: &'a [(usize, usize)],
    (slots, grads): (&'a [Slot], &'a Grads),
) -> impl Iterator<Item = Rows<'a>> {
    weights.iter().filter_map(move |(slot, begin)| {
        let var = &slots[*slot].var;
        grads.get(var)?;
        let (learn, most) = grads.few_rows(var)?;
        let rows = learn.elem_count();
        Some(Rows { slot: *slot, begin: *begin, shape: (rows, var.elem_count() / rows), learn, most })
    })
}

/// Whether, of every weight of a bucket that was written, so few rows may learn that summing these alone on all ranks (twice their bytes) moves less than to sum the bucket and
/// leave each rank its range.
fn few_learn(bucket: &Bucket, (slots, grads): (&[Slot], &Grads)) -> bool {
    let written = bucket.weights.iter().filter(|(slot, _)| grads.is_written(*slot)).count();
    let rows: Vec<Rows<'_>> = learning_rows(&bucket.weights, (slots, grads)).collect();
    let values: usize = rows.iter().map(|rows| rows.most * rows.shape.1).sum();
    written > 0 && rows.len() == written && 2 * values < bucket.values.elem_count()
}

impl OwnBucket {
    /// Steps its pieces by their gradients, the range of the sum; the work weights in the slots follow.
    fn step(&mut self, shard: &Tensor, step: &Step<'_>, moments: (DType, bool)) -> Result<()> {
        let mut views = Vec::with_capacity(self.pieces.len());
        for own in &mut self.pieces {
            let Some(learn) = step.learn[own.slot] else { continue };
            let learn = match learn.elem_count() {
                1 => learn.clone(),
                _ => learn.narrow(0, own.piece.rows.start, own.piece.rows.len())?,
            };
            own.begin(learn.elem_count(), moments)?;
            let own = &*own;
            let gradient = shard.narrow(0, own.piece.from, own.piece.values.len())?.reshape(own.piece.shape())?;
            let work = values_of(&step.slots[own.slot], &own.piece.values)?.reshape(own.piece.shape())?;
            views.push(Views { own, gradient, learn, work });
        }
        let mut descriptors = Vec::with_capacity(views.len());
        for Views { own, gradient, learn, work } in &views {
            let slot = &step.slots[own.slot];
            let Some(moments) = &own.moments else { continue };
            descriptors.push(Descriptor {
                weight: &own.master,
                // Where the types are one it is copied below.
                work: (self.dtype != own.master.dtype()).then_some(work),
                gradient,
                m: &moments.m,
                second: moments.second(&slot.name, step.config.rule)?,
                learn,
                decay: step.config.decay_of(slot.role, slot.var.rank()),
            });
        }
        let Step { config, rate, scale, finite, .. } = *step;
        apply(config, rate, &UpdateTable { descriptors: &descriptors, scale, finite })?;
        let same = views.iter().filter(|views| self.dtype == views.own.master.dtype());
        same.into_iter().try_for_each(|views| Ok(copies::copy(&views.own.master, &views.work)?))
    }

    /// The work weights of its range, in a row.
    fn own_work(&self, slots: &[Slot]) -> Result<Tensor> {
        let part = |own: &OwnPiece| Ok((own.piece.from, values_of(&slots[own.slot], &own.piece.values)?));
        let parts = self.pieces.iter().map(part).collect::<Result<Vec<_>>>()?;
        Ok(copies::row(&parts, self.range.len(), self.dtype, &self.device)?)
    }

    /// The work weights that the other ranks stepped, of `all` of the bucket, into the slots.
    fn take_work(&self, all: &Tensor, slots: &[Slot]) -> Result<()> {
        self.theirs.iter().try_for_each(|theirs| {
            let values = all.narrow(0, theirs.at, theirs.values.len())?;
            Ok(copies::copy(&values, &values_of(&slots[theirs.slot], &theirs.values)?)?)
        })
    }
}

/// A part of what passes compute with of a weight, where it lies.
fn values_of(slot: &Slot, values: &Range<usize>) -> Result<Tensor> {
    Ok(slot.var.as_tensor().detach().flatten_all()?.narrow(0, values.start, values.len())?)
}

impl OwnPiece {
    /// Moments of zero, where it has none yet.
    fn begin(&mut self, marks: usize, (moments, second): (DType, bool)) -> Result<()> {
        if self.moments.is_none() {
            self.moments = Some(OptimizerMoments::zeros(&self.master, marks, moments, second)?);
        }
        Ok(())
    }

    fn part_of(&self, whole: &OptimizerMoments) -> Result<OptimizerMoments> {
        let counts = match &whole.counts {
            Some(counts) if counts.elem_count() > 1 => {
                Some(counts.narrow(0, self.piece.rows.start, self.piece.rows.len())?.force_contiguous()?)
            }
            // Every piece counts for itself.
            counts => counts.as_ref().map(Tensor::force_contiguous).transpose()?,
        };
        let device = self.master.device();
        let counts = counts.map(|counts| counts.to_device(device)).transpose()?;
        let v = whole.v.as_ref().map(|v| cut(v, &self.piece, device)).transpose()?;
        Ok(OptimizerMoments { m: cut(&whole.m, &self.piece, device)?, v, counts })
    }
}

/// Of a type and a shape, and of no values worth reading: it takes the room of one.
fn of_shape(dtype: DType, shape: &Shape) -> Result<Tensor> {
    let ones = vec![1; shape.rank()];
    Ok(Tensor::zeros(ones, dtype, &Device::Cpu)?.broadcast_as(shape)?)
}

/// A copy of the values of a piece on `device`, `[rows, width]`.
fn cut(whole: &Tensor, piece: &Piece, device: &Device) -> Result<Tensor> {
    let values = whole.detach().flatten_all()?.narrow(0, piece.values.start, piece.values.len())?;
    let values = values.force_contiguous()?.to_device(device)?;
    Ok(values.reshape(piece.shape())?)
}
