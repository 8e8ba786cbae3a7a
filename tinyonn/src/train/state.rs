//! Everything that a training changes: the weights that learn, their moments and step counts, the number of the step. With the data, which
//! is a function of seed and step, it is the whole of what resumes.
//!
//! All of it lies on the device. A step whose gradient is no finite number changes nothing, and once that has happened no later step does
//! either, until somebody has looked: what is saved is the state before the bad step.

use candle_core::{DType, Device, Tensor, Var};

use super::AdamwConfig;
use super::checkpoints::optimizer_names;
use crate::checkpoint::{MappedSafetensors, Param, ParamStore};
use crate::ops::{self, Grads, Lines};
use crate::{Error, Result};

/// A weight that learns.
#[derive(Debug)]
pub struct Slot {
    /// Its name in a checkpoint: state is kept by it.
    pub name: String,
    /// The bucket that its gradient lies in: the layer, of those that belong to one.
    pub bucket: usize,
    /// The weight itself.
    pub var: Var,
    moments: Option<Moments>,
}

#[derive(Debug)]
struct Moments {
    m: Tensor,
    v: Tensor,
    /// Steps taken, f64: one count, or one a line.
    counts: Tensor,
}

impl Slot {
    /// Without moments yet.
    #[must_use]
    pub fn new(name: impl Into<String>, bucket: usize, var: Var) -> Self {
        Self { name: name.into(), bucket, var, moments: None }
    }
}

/// The state of a training.
#[derive(Debug)]
pub struct TrainState {
    /// Steps taken, or tried behind one that failed.
    pub step: u64,
    /// What the training changes by other rules than the optimizer's, by name: biases of a selection.
    pub beside: Vec<(String, Var)>,
    slots: Vec<Slot>,
    /// The gradients of the step at hand.
    pub grads: Grads,
    /// 1 while every gradient was a finite number, `[1]` u8.
    finite: Tensor,
}

impl TrainState {
    /// At step 0, with these weights to learn.
    ///
    /// # Errors
    /// What the device reports.
    pub fn new(slots: Vec<Slot>) -> Result<Self> {
        let device = slots.first().map_or(Device::Cpu, |slot| slot.var.device().clone());
        let grads = Grads::new(slots.iter().map(|slot| (slot.var.as_tensor(), slot.bucket)))?;
        Ok(Self { step: 0, beside: Vec::new(), slots, grads, finite: Tensor::ones(1, DType::U8, &device)? })
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

    /// All that a state on disk holds, by the names it has there ([`super::checkpoints`]); step counts as u32.
    ///
    /// # Errors
    /// What the device reports.
    pub(super) fn tensors(&self) -> Result<Vec<(String, Tensor)>> {
        let mut tensors: Vec<(String, Tensor)> = Vec::new();
        for slot in &self.slots {
            tensors.push((slot.name.clone(), slot.var.as_detached_tensor()));
            if let Some(Moments { m, v, counts }) = &slot.moments {
                let values = [m.clone(), v.clone(), counts.to_dtype(DType::U32)?];
                tensors.extend(optimizer_names(&slot.name).into_iter().zip(values));
            }
        }
        tensors.extend(self.beside.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())));
        Ok(tensors)
    }

    /// Takes up the state that `saved` holds, of `step`.
    ///
    /// # Errors
    /// A weight that is missing, of another shape, or that does not learn here.
    pub(super) fn restore(&mut self, step: u64, saved: &MappedSafetensors) -> Result<()> {
        let unfit = |name: &str, problem: &str| {
            Error::tensor(
                name,
                format!("{problem} in {}", saved.path().display()),
                "remove the file: the state before it serves, if there is one",
            )
        };
        let mut expected = 0;
        for slot in &mut self.slots {
            let device = slot.var.device().clone();
            put(&slot.var, &saved.load(&slot.name, &device)?).map_err(|_| unfit(&slot.name, "has another shape"))?;
            let names = optimizer_names(&slot.name);
            expected += 1;
            slot.moments = None;
            if saved.info(&names[0]).is_some() {
                expected += names.len();
                let [m, v, counts] = [0, 1, 2].map(|i| saved.load(&names[i], &device));
                let (m, v, counts) = (m?, v?, counts?.to_dtype(DType::F64)?);
                if m.shape() != slot.var.shape() || v.shape() != slot.var.shape() {
                    return Err(unfit(&slot.name, "has moments of another shape"));
                }
                slot.moments = Some(Moments { m, v, counts });
            }
        }
        for (name, var) in &self.beside {
            put(var, &saved.load(name, var.device())?).map_err(|_| unfit(name, "has another shape"))?;
            expected += 1;
        }
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
    pub fn update(&mut self, config: &AdamwConfig, rate: f64) -> Result<Tensor> {
        let norm = self.grads.norm(self.slots.iter().map(|slot| slot.var.as_tensor()), self.finite.device())?;
        self.require_finite(&norm)?;
        let scale = (norm.recip()? * config.clip)?.minimum(1f64)?;
        for slot in &mut self.slots {
            let Some(gradient) = self.grads.get(&slot.var) else { continue };
            let lines = self.grads.lines(&slot.var);
            let lines = match lines {
                Some(lines) => Lines { axis: lines.axis, learn: lines.learn.broadcast_mul(&self.finite)? },
                None => Lines { axis: 0, learn: self.finite.clone() },
            };
            slot.step(config, rate, gradient, &lines, &scale)?;
        }
        self.grads.begin();
        self.step += 1;
        Ok(norm)
    }
}

impl Slot {
    fn step(
        &mut self,
        config: &AdamwConfig,
        rate: f64,
        gradient: &Tensor,
        lines: &Lines,
        scale: &Tensor,
    ) -> Result<()> {
        let count = lines.learn.dim(0)?;
        let moments = match &mut self.moments {
            Some(moments) => moments,
            none => {
                let zeros = || Tensor::zeros(self.var.shape(), wide(self.var.dtype()), self.var.device());
                let counts = Tensor::zeros(count, DType::F64, self.var.device())?;
                none.insert(Moments { m: zeros()?, v: zeros()?, counts })
            }
        };
        moments.counts = (&moments.counts + lines.learn.to_dtype(DType::F64)?)?;
        let step = ops::AdamwStep {
            rate,
            beta1: config.beta1,
            beta2: config.beta2,
            eps: config.eps,
            decay: if self.var.rank() >= 2 { config.decay } else { 0.0 },
        };
        let values = [self.var.as_tensor(), gradient, &moments.m, &moments.v];
        Ok(ops::adamw(&step, values, &moments.counts, Some(lines), scale)?)
    }
}

fn put(var: &Var, value: &Tensor) -> Result<()> {
    Ok(var.set(&value.to_dtype(var.dtype())?)?)
}

fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// The slots of the parameters of `store` that `params` lists.
#[must_use]
pub fn slots(store: &ParamStore, params: impl IntoIterator<Item = Param>) -> Vec<Slot> {
    let slot = |param: Param| {
        let var = store.get(&param.name)?.clone();
        // What belongs to no layer lies in a bucket behind those that do.
        Some(Slot::new(param.name, param.layer.unwrap_or(usize::MAX), var))
    };
    params.into_iter().filter_map(slot).collect()
}
