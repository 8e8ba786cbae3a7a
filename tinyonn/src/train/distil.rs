//! Distillation of a model whose tokens take single neurons: the mean Kullback-Leibler divergence of its next token from the dense model's falls, over
//! training text (DESIGN §4). What learns lies beside the weights, ΔW_g, ΔW_u, ΔW_d and b of each layer ([`REPAIR`]), and is used in routed
//! passes of that choice alone: all active, the model stays the dense one. Which neurons are taken follows W_g + ΔW_g, without a derivative of its own.

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::checkpoints::digest;
use super::state::slots;
use super::{Checkpoints, Gradient, Memory, OptimizerConfig, Rule, Said, Saving, Schedule, TrainState, Watch, train};
use crate::checkpoint::{ParamStore, Role, mixture_prefix, variant_params};
use crate::data::Sampler;
use crate::decoder::{Arch, CausalLm, Keep, Learn, Mlp, Pass};
use crate::metrics::MetricsLog;
use crate::model::TinyOnnForCausalLm;
use crate::moe::{REPAIR, REPAIR_BIAS, Variant};
use crate::ops::distillation::divergence;
use crate::{Error, Result};

/// How a sparse model learns from the dense one.
///
/// ```
/// use tinyonn::train::DistilConfig;
///
/// assert_eq!(DistilConfig::DEFAULT.steps, 0); // none unless they are asked for
/// let some = DistilConfig { steps: 240, ..DistilConfig::DEFAULT };
/// assert!(some.check().is_ok());
/// assert!(DistilConfig { batch: 0, ..some }.check().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistilConfig {
    /// Optimizer steps; 0: none.
    pub steps: u64,
    /// Sequences a step.
    pub batch: usize,
    /// Steps over which the rate rises from zero.
    pub warmup: u64,
    /// How it goes on.
    pub schedule: Schedule,
    /// The optimizer; `rate` is the highest.
    pub optimizer: OptimizerConfig,
    /// Whether b learns, too.
    pub bias: bool,
    /// What a step holds in memory.
    pub memory: Memory,
}

impl DistilConfig {
    /// No step; of those that are asked for, each of 16 sequences.
    pub const DEFAULT: Self = Self {
        steps: 0,
        batch: 16,
        warmup: 20,
        schedule: Schedule::Cosine,
        optimizer: OptimizerConfig { rate: 2e-4, decay: 0.0, ..OptimizerConfig::DEFAULT },
        bias: true,
        memory: Memory::DEFAULT,
    };

    /// Refuses what cannot be trained by, before time is spent on anything.
    ///
    /// # Errors
    /// The setting, by its name in a file of settings, and the remedy.
    pub fn check(&self) -> Result<()> {
        if self.batch == 0 {
            return Err(Error::setting("distil.batch", "is 0", "use 1 or more"));
        }
        self.memory.check("distil.memory", self.batch)?;
        self.optimizer.check("distil.optimizer")
    }
}

impl Default for DistilConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Adds what learns and is not there yet, of zeros: a model's outputs stay what they are.
///
/// # Errors
/// What the device reports.
pub fn grow_repairs(store: &mut ParamStore, cfg: &Arch) -> Result<()> {
    let matrix = [cfg.intermediate_size, cfg.hidden_size];
    for layer in 0..cfg.num_hidden_layers {
        let shapes = REPAIR.map(|name| (name, matrix.as_slice())).into_iter().chain([(REPAIR_BIAS, &matrix[1..])]);
        for (name, shape) in shapes {
            let name = format!("{}.{name}", mixture_prefix(layer));
            if store.get(&name).is_none() {
                let zeros = Tensor::zeros(shape, DType::F32, store.device())?;
                store.insert(name, zeros)?;
            }
        }
    }
    Ok(())
}

/// Trains the repairs of the model in `store` (a variant that chooses neurons, with [`grow_repairs`] done) on the sampler's batches, `teacher` being the
/// dense model; divergences go to `log`. Returns the divergence of the last ten steps, in nats a token.
///
/// With `checkpoints` it goes on behind the last state of the same training, the log as well ([`Checkpoints`]).
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::{ParamStore, upcycle};
/// use tinyonn::data::{Sampler, TaskTokens, TokenSet};
/// use tinyonn::decoder::CausalLm;
/// use tinyonn::metrics::MetricsLog;
/// use tinyonn::moe::{KEPT, variant};
/// use tinyonn::phases::RunConfig;
/// use tinyonn::train::{DistilConfig, distil, grow_repairs};
///
/// # let dir = tempfile::tempdir().map_err(|e| tinyonn::Error::io("temporary folder", e))?;
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let dense = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let teacher = CausalLm::dense(&cfg, &dense.builder(DType::F32, |_| false))?;
/// // Half of the neurons, the same for every token.
/// let mut store = upcycle(dense.share(), &cfg, variant("Pruned")?, &vec![vec![0; cfg.intermediate_size]; 4], 0)?;
/// let kept: Vec<f32> = (0..cfg.intermediate_size).map(|i| f32::from(u8::from(i % 2 == 0))).collect();
/// for layer in 0..cfg.num_hidden_layers {
///     let name = format!("model.layers.{layer}.mlp.{KEPT}");
///     store.set(&name, &candle_core::Tensor::new(kept.as_slice(), &Device::Cpu)?)?;
/// }
/// grow_repairs(&mut store, &cfg)?;
///
/// let task = TaskTokens { name: "t".into(), tokens: (0..64).collect(), documents: vec![0; 64] };
/// let set = TokenSet { tasks: vec![task], documents: vec!["t/a".into()], eos: 0 };
/// let config = DistilConfig { steps: 3, batch: 2, ..DistilConfig::DEFAULT };
/// let sampler = Sampler::new(&set, 16, config.batch, 0, &Device::Cpu)?;
/// let mut log = MetricsLog::create(dir.path().join("distil.jsonl"))?;
/// let nats = distil((&store, &cfg, variant("Pruned")?), &teacher, &sampler, &config, &mut log, None)?;
/// assert!(nats >= 0.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// No step; a model without repairs; a state of other settings; [`Error::Interrupted`]; a loss or gradient that is no finite number; whatever the model or
/// the log reports.
pub fn distil(
    (store, cfg, variant): (&ParamStore, &Arch, &'static Variant),
    teacher: &CausalLm<Mlp>,
    sampler: &Sampler<'_>,
    config: &DistilConfig,
    log: &mut MetricsLog,
    checkpoints: Option<&Checkpoints>,
) -> Result<f64> {
    config.check()?;
    let mut params = variant_params(cfg, variant)?;
    params.retain(|param| param.role == Role::Repair && (config.bias || !param.name.ends_with(REPAIR_BIAS)));
    if let Some(param) = params.iter().find(|param| store.get(&param.name).is_none()) {
        return Err(Error::tensor(
            param.name.clone(),
            "is missing: it cannot learn",
            "add it with `train::grow_repairs`",
        ));
    }
    let dtype = config.memory.weights.dtype();
    let learns = |name: &str| params.iter().any(|param| param.name == name);
    let work = store.work_weights(dtype, |name| learns(name).then_some(DType::F32))?;
    let student = TinyOnnForCausalLm::new(cfg, variant, work.builder())?;
    let mut state = TrainState::new(slots(&work, params.clone()), &config.memory)?;
    let saving = match checkpoints {
        Some(checkpoints) => {
            let settings = json!({
                "code": crate::SOURCES_SHA256, "model": cfg.to_json(), "variant": variant.spec, "distil": config,
                "data": sampler.digest(), "weights": digest(store)?,
            });
            Some(Saving { checkpoints, settings })
        }
        None => None,
    };
    let mut watch = Logged { log, steps: config.steps, last: Vec::new() };
    if let Some(saving) = &saving {
        watch.last = saving.resume(&mut state)?.unwrap_or_default();
        watch.log.rewind("distil", state.step)?;
    }
    let rule = Rule {
        stage: ("distillation", "distil.optimizer"),
        steps: config.steps,
        tokens: Some((sampler.batch() * sampler.length()) as u64),
        optimizer: &config.optimizer,
        rate: &|step| config.schedule.rate(config.optimizer.rate, config.warmup, config.steps, step),
        batch: &|step| Some(sampler.describe(step)),
        adjust: None,
    };
    let lesson = Lesson { student: &student, teacher, sampler, memory: config.memory };
    train(&mut state, &rule, &mut |state| lesson.descend(state).map(Some), saving.as_ref(), &mut watch)?;
    Ok(watch.last.iter().sum::<f64>() / watch.last.len().max(1) as f64)
}

/// What a step reads, and how.
struct Lesson<'a> {
    student: &'a TinyOnnForCausalLm,
    teacher: &'a CausalLm<Mlp>,
    sampler: &'a Sampler<'a>,
    memory: Memory,
}

impl Lesson<'_> {
    /// Puts the gradient of the step that `state` is at into its place.
    fn descend(&self, state: &mut TrainState) -> Result<Gradient> {
        let batch = self.sampler.batch_at(state.step)?;
        let (rows, t) = batch.targets.dims2()?;
        let part = rows / self.memory.micro_batches;
        let device: &Device = batch.inputs.device();
        let counted = batch.counted.iter().filter(|counted| **counted).count().max(1);
        let pass = Pass { keep: if self.memory.recompute { Keep::Inputs } else { Keep::All }, ..Pass::routed() };
        let mut loss: Option<Tensor> = None;
        for first in (0..rows).step_by(part.max(1)) {
            let ids = batch.inputs.narrow(0, first, part)?.contiguous()?;
            let own = &batch.counted[first * t..(first + part) * t];
            let weights: Vec<f32> = own.iter().map(|is| if *is { 1.0 / counted as f32 } else { 0.0 }).collect();
            let weight_t = Tensor::from_vec(weights, part * t, device)?;
            let (teacher_btd, _) = self.teacher.hidden(&ids, &Pass::all())?;
            let (hidden, _, saved) = self.student.lm().model().forward(&ids, &pass, None)?;
            let (kl_t, dhidden_td) = divergence(
                &hidden.flatten_to(1)?,
                &teacher_btd.flatten_to(1)?.to_dtype(hidden.dtype())?,
                self.student.lm().head(),
                &weight_t,
            )?;
            let saved = saved.ok_or_else(|| Error::setting("keep", "nothing was kept of a pass", "keep its inputs"))?;
            self.student.lm().model().backward(
                saved,
                &dhidden_td.reshape(hidden.shape())?,
                &Learn::default(),
                &mut state.grads,
            )?;
            let own = (kl_t.to_dtype(DType::F32)? * weight_t)?.sum_all()?;
            loss = Some(loss.map_or(Ok(own.clone()), |loss| loss + own)?);
        }
        let none = || Error::setting("distil.batch", "is 0", "use 1 or more");
        Ok(Gradient::of(loss.ok_or_else(none)?))
    }
}

/// A line of the log every ten steps.
struct Logged<'a> {
    log: &'a mut MetricsLog,
    steps: u64,
    /// Of the last ten steps.
    last: Vec<f64>,
}

impl Watch for Logged<'_> {
    fn hear(&mut self, said: &Said) -> Result<()> {
        self.last.push(said.loss);
        if self.last.len() > 10 {
            self.last.remove(0);
        }
        if said.step.is_multiple_of(10) || said.step + 1 == self.steps {
            self.log.log(said.step, "distil", &[("kl", said.loss), ("norm", said.norm)])?;
        }
        Ok(())
    }

    fn tally(&self) -> serde_json::Value {
        json!(self.last)
    }
}
