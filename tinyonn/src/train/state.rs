//! Everything that a training changes: the weights that learn, their moments and step counts, the number of the step. With the data, which
//! is a function of seed and step, it is the whole of what resumes.
//!
//! What the optimizer steps are masters in f32; where passes compute in another type, the work weight is its master rounded, anew after every
//! step. All of it lies on the device. A step whose gradient is no finite number changes nothing, and once that has happened no later step does
//! either, until somebody has looked: what is saved is the state before the bad step.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use super::checkpoints::{StateTensors, optimizer_names};
use super::share::Share;
use super::{Memory, OptimizerConfig, UpdateRule};
use crate::checkpoint::{MappedSafetensors, Param, Role, WorkWeights, refresh};
use crate::ops::{self, Descriptor, Grads, UpdateTable};
use crate::ranks::Collective;
use crate::{Error, Result};

/// A weight that learns.
#[derive(Debug)]
pub struct Slot {
    /// Its name in a checkpoint: state is kept by it.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// The bucket that its gradient lies in: the layer, of those that belong to one.
    pub bucket: usize,
    /// What passes compute with, and what its gradient is known by.
    pub var: Var,
    /// What the optimizer steps, where that is not `var` itself: the same in f32.
    pub master: Option<Var>,
    pub(super) moments: Option<OptimizerMoments>,
}

/// What an optimizer remembers of a weight.
#[derive(Debug)]
pub(super) struct OptimizerMoments {
    pub(super) m: Tensor,
    /// AdamW's alone, like the counts.
    pub(super) v: Option<Tensor>,
    /// Steps taken, f64: one count, or one a row.
    pub(super) counts: Option<Tensor>,
}

/// What a training had moved when a measure of held-out text was least.
#[derive(Debug)]
struct BestLook {
    value: f64,
    /// Of every slot, then of what is moved beside them.
    values: Vec<Tensor>,
}

impl Slot {
    /// Its own master, without moments yet.
    #[must_use]
    pub fn new(name: impl Into<String>, role: Role, bucket: usize, var: Var) -> Self {
        Self { name: name.into(), role, bucket, var, master: None, moments: None }
    }

    /// What the optimizer steps.
    #[must_use]
    pub fn stepped(&self) -> &Var {
        self.master.as_ref().unwrap_or(&self.var)
    }
}

/// The state of a training.
///
/// ```
/// use candle_core::{DType, Device, Tensor, Var};
/// use tinyonn::checkpoint::Role;
/// use tinyonn::train::{Memory, OptimizerConfig, Slot, TrainState};
///
/// let w = Var::new(&[[1f32, 2.0]], &Device::Cpu)?;
/// let slot = Slot::new("w", Role::Expert, 0, w.clone());
/// assert_eq!(slot.stepped().dims(), w.dims()); // it is its own master
/// let mut state = TrainState::new(vec![slot], &Memory::DEFAULT)?;
/// assert!(state.keep_if_best(2.5)?);
///
/// // dW += aᵀ b, and a step of AdamW.
/// let one = Tensor::ones((1, 1), DType::F32, &Device::Cpu)?;
/// state.grads.add_product(&w, &one, &Tensor::new(&[[3f32, 4.0]], &Device::Cpu)?)?;
/// state.require_finite(&one)?;
/// assert_eq!(state.finite().to_vec1::<u8>()?, [1]);
/// let norm = state.update(&OptimizerConfig::DEFAULT, 0.1)?;
/// assert_eq!((norm.to_vec1::<f64>()?, state.step, state.slots().len()), (vec![5.0], 1, 1));
/// assert_ne!(w.to_vec2::<f32>()?, [[1.0, 2.0]]);
///
/// // It was better before.
/// assert!(!state.keep_if_best(2.75)? && state.best() == Some(2.5));
/// state.return_to_best()?;
/// assert_eq!(w.to_vec2::<f32>()?, [[1.0, 2.0]]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug)]
pub struct TrainState {
    /// Steps taken, or tried behind one that failed.
    pub step: u64,
    /// What the training changes by other rules than the optimizer's, by name: biases of a selection.
    pub beside: Vec<(String, Var)>,
    slots: Vec<Slot>,
    moments: DType,
    best: Option<BestLook>,
    /// The gradients of the step at hand.
    pub grads: Grads,
    /// 1 while every gradient was a finite number, `[1]` u8.
    finite: Tensor,
    /// What this rank steps of it, where there are several.
    share: Option<Share>,
}

impl TrainState {
    /// At step 0, with these weights to learn; `memory` says in which types gradients and moments are held (of f64 weights in f64).
    ///
    /// # Errors
    /// A master in the host's memory of a weight on a card; what the device reports.
    pub fn new(slots: Vec<Slot>, memory: &Memory) -> Result<Self> {
        if let Some(slot) = slots.iter().find(|slot| !slot.stepped().device().same_device(slot.var.device())) {
            let remedy = "leave it on the card: `keep_on_host` is for several ranks";
            return Err(Error::tensor(
                &slot.name,
                "has its master in the host's memory, where one rank steps it",
                remedy,
            ));
        }
        Self::unshared(slots, memory)
    }

    fn unshared(slots: Vec<Slot>, memory: &Memory) -> Result<Self> {
        let device = slots.first().map_or(Device::Cpu, |slot| slot.var.device().clone());
        let weights = slots.iter().map(|slot| (slot.var.as_tensor(), slot.bucket));
        let grads = Grads::in_dtype(weights, memory.gradients.dtype())?;
        let finite = Tensor::ones(1, DType::U8, &device)?;
        let moments = memory.moments.dtype();
        Ok(Self { step: 0, beside: Vec::new(), slots, moments, best: None, grads, finite, share: None })
    }

    /// The same among `ranks`, of which each steps a part of the weights ([`Collective`]): all have been given the same. A rank copies its part of the masters to its
    /// card, so that whole ones need not lie there ([`ParamStore::keep_on_host`](crate::checkpoint::ParamStore::keep_on_host)).
    ///
    /// ```
    /// use std::sync::Arc;
    /// use candle_core::{DType, Device, Tensor, Var};
    /// use tinyonn::checkpoint::Role;
    /// use tinyonn::ranks::{Collective, Threads};
    /// use tinyonn::train::{Memory, OptimizerConfig, Slot, TrainState};
    ///
    /// // Two ranks, each of which steps one half of the weight.
    /// let stepped = std::thread::scope(|scope| {
    ///     let each = Threads::new(2).into_iter().map(|rank| {
    ///         scope.spawn(move || -> tinyonn::Result<Vec<f32>> {
    ///             let (ranks, w): (Arc<dyn Collective>, _) = (Arc::new(rank), Var::new(&[[1f32, 2.0]], &Device::Cpu)?);
    ///             let mut state = TrainState::among(vec![Slot::new("w", Role::Expert, 0, w.clone())], &Memory::DEFAULT, Some(&ranks))?;
    ///             assert_eq!(state.ranks().map(|ranks| ranks.ranks()), Some(2));
    ///             let one = Tensor::ones((1, 1), DType::F32, &Device::Cpu)?;
    ///             state.grads.add_product(&w, &one, &Tensor::ones((1, 2), DType::F32, &Device::Cpu)?)?;
    ///             state.update(&OptimizerConfig::DEFAULT, 0.1)?;
    ///             state.gather()?;
    ///             Ok(w.flatten_all()?.to_vec1()?)
    ///         })
    ///     });
    ///     each.collect::<Vec<_>>().into_iter().map(|rank| rank.join().expect("it ends")).collect::<tinyonn::Result<Vec<_>>>()
    /// })?;
    /// assert_eq!(stepped[0], stepped[1]); // both have all of it
    /// assert!(stepped[0][0] < 1.0 && stepped[0][1] < 2.0);
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// A master in the host's memory where one rank steps all; what the device reports.
    pub fn among(slots: Vec<Slot>, memory: &Memory, ranks: Option<&Arc<dyn Collective>>) -> Result<Self> {
        let Some(ranks) = ranks.filter(|ranks| ranks.ranks() > 1) else { return Self::new(slots, memory) };
        let mut state = Self::unshared(slots, memory)?;
        // Work weights are gathered bucket by bucket: those of one bucket are of one type, and routers, all of whose rows learn, keep to themselves.
        let key = |slot: &Slot| (slot.bucket, slot.role == Role::Router, slot.var.dtype() != DType::BF16);
        let keys: BTreeSet<(usize, bool, bool)> = state.slots.iter().map(key).collect();
        let weights = state.slots.iter().map(|slot| (slot.var.as_tensor(), keys.range(..key(slot)).count()));
        state.grads = Grads::in_ranges(weights, memory.gradients.dtype(), ranks.ranks())?;
        state.share = Some(Share::new(&state.slots, &state.grads, ranks.clone(), state.moments)?);
        Ok(state)
    }

    /// The ranks that train it, where there are several.
    #[must_use]
    pub fn ranks(&self) -> Option<&Arc<dyn Collective>> {
        self.share.as_ref().map(Share::ranks)
    }

    /// Waits until every rank is here and has all that was gathered: whoever ends before that ends what the others wait for.
    pub(super) fn meet(&self) -> Result<()> {
        let Some(ranks) = self.ranks() else { return Ok(()) };
        let one = Tensor::ones(1, DType::F64, self.finite.device())?;
        ops::host::read(&[&ranks.all_reduce(&one)?])?;
        Ok(())
    }

    /// Puts what the other ranks stepped into the slots' masters too.
    ///
    /// # Errors
    /// What the device or a rank reports.
    pub fn gather(&self) -> Result<()> {
        self.share.as_ref().map_or(Ok(()), |share| share.gather_masters(&self.slots))
    }

    /// The weights that learn.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// 1 while every gradient was a finite number, `[1]` u8.
    #[must_use]
    pub fn finite(&self) -> &Tensor {
        &self.finite
    }

    /// From here on nothing changes unless `value`, of one element, is a finite number.
    ///
    /// # Errors
    /// What the device reports.
    pub fn require_finite(&mut self, value: &Tensor) -> Result<()> {
        self.finite = (&self.finite * value.abs()?.lt(f64::INFINITY)?.reshape(1)?)?;
        Ok(())
    }

    /// What a training moves, by name: masters, and what is beside them.
    fn moved(&self) -> impl Iterator<Item = (&str, &Var)> {
        let masters = self.slots.iter().map(|slot| (slot.name.as_str(), slot.stepped()));
        masters.chain(self.beside.iter().map(|(name, var)| (name.as_str(), var)))
    }

    /// All that a state on disk holds, by the names it has there ([`super::checkpoints`]); step counts as u32. Of several ranks all take part, and each has what it
    /// owns.
    ///
    /// # Errors
    /// What the device reports.
    pub(super) fn tensors(&self) -> Result<StateTensors> {
        let mut found = match &self.share {
            Some(share) => share.tensors(&self.slots)?,
            None => StateTensors::default(),
        };
        let whole = &mut found.whole;
        for slot in self.slots.iter().filter(|_| self.share.is_none()) {
            whole.push((slot.name.clone(), slot.stepped().as_detached_tensor()));
            if let Some(OptimizerMoments { m, v, counts }) = &slot.moments {
                let counts = counts.as_ref().map(|counts| counts.to_dtype(DType::U32)).transpose()?;
                let values = [Some(m.clone()), v.clone(), counts];
                let named = optimizer_names(&slot.name).into_iter().zip(values);
                whole.extend(named.filter_map(|(name, value)| Some((name, value?))));
            }
        }
        let kept = self.best.iter().flat_map(|best| &best.values);
        whole.extend(self.moved().map(|(name, _)| best_name(name)).zip(kept.cloned()));
        whole.extend(self.beside.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())));
        Ok(found)
    }

    /// The least that [`keep_if_best`](Self::keep_if_best) was given.
    #[must_use]
    pub fn best(&self) -> Option<f64> {
        self.best.as_ref().map(|best| best.value)
    }

    /// Keeps a copy of the weights if `value` is less than at all calls before; returns whether it is.
    ///
    /// # Errors
    /// What the device reports.
    pub fn keep_if_best(&mut self, value: f64) -> Result<bool> {
        if self.best().is_some_and(|best| value >= best) || value.is_nan() {
            return Ok(false);
        }
        self.gather()?;
        let values = self.moved().map(|(_, var)| var.as_detached_tensor().copy());
        self.best = Some(BestLook { value, values: values.collect::<candle_core::Result<_>>()? });
        Ok(true)
    }

    /// Puts the weights back that were kept last; moments stay. Nothing where none were.
    ///
    /// # Errors
    /// What the device reports.
    pub fn return_to_best(&mut self) -> Result<()> {
        let Some(best) = &self.best else { return Ok(()) };
        let (masters, beside) = best.values.split_at(self.slots.len());
        self.slots.iter().zip(masters).try_for_each(|(slot, value)| slot.put(value))?;
        if let Some(share) = &mut self.share {
            share.take_masters(&self.slots)?;
        }
        self.beside.iter().zip(beside).try_for_each(|((_, var), value)| put(var, value))
    }

    /// Takes up the state that `saved` holds, of `step` and of the best value so far.
    ///
    /// # Errors
    /// A weight that is missing, of another shape, or that does not learn here.
    pub(super) fn restore(&mut self, (step, best): (u64, Option<f64>), saved: &MappedSafetensors) -> Result<()> {
        let unfit = |name: &str, problem: &str| {
            Error::tensor(
                name,
                format!("{problem} in {}", saved.path().display()),
                "remove the file: the state before it serves, if there is one",
            )
        };
        let mut expected = 0;
        for slot in &mut self.slots {
            // Of several ranks each takes a part of it to its card, below.
            let device = if self.share.is_some() { Device::Cpu } else { slot.var.device().clone() };
            let shape = slot.var.shape().clone();
            slot.put(&saved.load(&slot.name, &device)?).map_err(|_| unfit(&slot.name, "has another shape"))?;
            expected += 1;
            let [m, v, counts] = optimizer_names(&slot.name);
            let mut moment = |name: &str| {
                let held = saved.info(name).is_some();
                expected += usize::from(held);
                held.then(|| saved.load(name, &device)).transpose()
            };
            let (m, v, counts) = (moment(&m)?, moment(&v)?, moment(&counts)?);
            if [&m, &v].into_iter().flatten().any(|moment| moment.shape() != &shape) {
                return Err(unfit(&slot.name, "has moments of another shape"));
            }
            let counts = counts.map(|counts| counts.to_dtype(DType::F64)).transpose()?;
            slot.moments = m.map(|m| OptimizerMoments { m, v, counts });
        }
        if let Some(share) = &mut self.share {
            share.take_masters(&self.slots)?;
            share.take_moments(&mut self.slots)?;
        }
        for (name, var) in &self.beside {
            put(var, &saved.load(name, var.device())?).map_err(|_| unfit(name, "has another shape"))?;
            expected += 1;
        }
        let kept = |value: f64| {
            let values = self.moved().map(|(name, var)| saved.load(&best_name(name), var.device()));
            Ok::<_, Error>(BestLook { value, values: values.collect::<Result<_>>()? })
        };
        let kept = best.map(kept).transpose()?;
        expected += kept.as_ref().map_or(0, |best| best.values.len());
        self.best = kept;
        if saved.names().count() != expected {
            return Err(Error::file(
                saved.path(),
                "holds weights that do not learn here",
                "remove the folder to begin anew",
            ));
        }
        self.grads.begin();
        self.step = step;
        Ok(())
    }

    /// Takes the step that the gradients ask for, and begins the next; returns their norm before clipping, `[1]` f64.
    ///
    /// # Errors
    /// What the device reports.
    pub fn update(&mut self, config: &OptimizerConfig, rate: f64) -> Result<Tensor> {
        let device = self.finite.device().clone();
        let reduced =
            self.share.as_ref().map(|share| share.reduce(&self.slots, &mut self.grads, &device)).transpose()?;
        let norm = match &reduced {
            Some(reduced) => reduced.norm.clone(),
            None => self.grads.norm(self.slots.iter().map(|slot| slot.var.as_tensor()), &device)?,
        };
        self.require_finite(&norm)?;
        let scale = (norm.recip()? * config.clip)?.minimum(1f64)?;
        let all = Tensor::ones(1, DType::U8, &device)?;
        if let Some((share, reduced)) = self.share.as_mut().zip(reduced) {
            let of = (self.slots.as_slice(), &self.grads);
            share.step(of, &reduced, (config, rate), [&scale, &self.finite, &all])?;
        } else {
            let mut descriptors = Vec::with_capacity(self.slots.len());
            for slot in &mut self.slots {
                let Some(gradient) = self.grads.get(&slot.var) else { continue };
                let learn = self.grads.learning_rows(&slot.var).unwrap_or(&all);
                descriptors.push(slot.descriptor(config, gradient, learn, self.moments)?);
            }
            apply(config, rate, &UpdateTable { descriptors: &descriptors, scale: &scale, finite: &self.finite })?;
        }
        self.grads.begin();
        self.step += 1;
        Ok(norm)
    }
}

/// Takes the step of the rule.
pub(super) fn apply(config: &OptimizerConfig, rate: f64, table: &UpdateTable<'_>) -> Result<()> {
    let OptimizerConfig { beta1, beta2, eps, .. } = *config;
    match config.rule {
        UpdateRule::Adamw => ops::adamw(&ops::AdamwStep { rate, beta1, beta2, eps }, table)?,
        UpdateRule::Sgd => ops::sgd(&ops::SgdStep { rate, momentum: beta1 }, table)?,
        UpdateRule::Lion => ops::lion(&ops::LionStep { rate, beta1, beta2 }, table)?,
    }
    Ok(())
}

impl OptimizerMoments {
    /// Of a weight whose step is counted by so many marks; a second moment and counts are AdamW's.
    pub(super) fn zeros(weight: &Tensor, marks: usize, moments: DType, second: bool) -> Result<Self> {
        let dtype = if weight.dtype() == DType::F64 { DType::F64 } else { moments };
        let zeros = || Tensor::zeros(weight.shape(), dtype, weight.device());
        let counts = || Tensor::zeros(marks, DType::F64, weight.device());
        let (v, counts) = (second.then(zeros).transpose()?, second.then(counts).transpose()?);
        Ok(Self { m: zeros()?, v, counts })
    }

    /// The second moment and the counts of the weight `name`, where the rule has them.
    pub(super) fn second(&self, name: &str, rule: UpdateRule) -> Result<Option<(&Tensor, &Tensor)>> {
        if rule != UpdateRule::Adamw {
            return Ok(None);
        }
        let second = self.v.as_ref().zip(self.counts.as_ref());
        let remedy = "go on with the rule that the training began with";
        second.map(Some).ok_or_else(|| Error::tensor(name, "has the moments of another rule than AdamW", remedy))
    }
}

impl Slot {
    /// What an update changes of it, and by what; its moments begin at zero.
    fn descriptor<'a>(
        &'a mut self,
        config: &OptimizerConfig,
        gradient: &'a Tensor,
        learn: &'a Tensor,
        moments: DType,
    ) -> Result<Descriptor<'a>> {
        let weight = self.master.as_ref().unwrap_or(&self.var).as_tensor();
        let held = match &mut self.moments {
            Some(moments) => moments,
            none => {
                let second = config.rule == UpdateRule::Adamw;
                none.insert(OptimizerMoments::zeros(weight, learn.dim(0)?, moments, second)?)
            }
        };
        Ok(Descriptor {
            weight,
            work: self.master.is_some().then(|| self.var.as_tensor()),
            gradient,
            m: &held.m,
            second: held.second(&self.name, config.rule)?,
            learn,
            decay: config.decay_of(self.role, weight.rank()),
        })
    }

    /// Another value of the weight.
    fn put(&self, value: &Tensor) -> Result<()> {
        put(self.stepped(), value)?;
        match &self.master {
            Some(master) => refresh(&self.var, master),
            None => Ok(()),
        }
    }
}

fn put(var: &Var, value: &Tensor) -> Result<()> {
    Ok(var.set(&value.to_dtype(var.dtype())?.to_device(var.device())?)?)
}

/// The name of a kept weight in a state on disk.
fn best_name(name: &str) -> String {
    format!("best/{name}")
}

/// The slots of those of `work` that `params` lists.
#[must_use]
pub fn slots(work: &WorkWeights, params: impl IntoIterator<Item = Param>) -> Vec<Slot> {
    let slot = |param: Param| {
        let (var, master) = work.get(&param.name)?;
        let (var, master) = (var.clone(), master.cloned());
        // What belongs to no layer lies in a bucket behind those that do.
        let bucket = param.layer.unwrap_or(usize::MAX);
        Some(Slot { master, ..Slot::new(param.name, param.role, bucket, var) })
    };
    params.into_iter().filter_map(slot).collect()
}
