//! The gradient of a language model's loss over the batch of a step: the mean cross-entropy of its scored tokens, in as many parts as
//! memory asks for, one forward and one backward pass each.
//!
//! Gradients of the parts add up, and so does load; which experts learn is joined over them (DESIGN §4). `surprise = exact` decides behind
//! the last part, by the sums, or behind each, by its own.

use candle_core::Tensor;

use super::{Gradient, Memory, TrainState};
use crate::Result;
use crate::data::Sampler;
use crate::decoder::smk_rule::Surprise;
use crate::decoder::{Answers, Ask, CausalLm, Experts, FeedForward, InTraining, Keep, Learn, Pass, Smk, Trace};
use crate::interrupt::Interrupt;
use crate::ops::Grads;

/// What a step reads, and how.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::{ParamStore, Role, dense_params};
/// use tinyonn::data::{Sampler, TaskTokens, TokenSet};
/// use tinyonn::decoder::{CausalLm, Learn, Pass};
/// use tinyonn::phases::RunConfig;
/// use tinyonn::train::{Memory, OptimizerConfig, TextGradient, TrainState, fisher, state};
///
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let work = store.work_weights(DType::F32, |_| Some(DType::F32))?;
/// let model = CausalLm::dense(&cfg, work.builder())?;
/// let task = TaskTokens { name: "t".into(), tokens: (0..64).collect(), documents: vec![0; 64] };
/// let set = TokenSet { tasks: vec![task], documents: vec!["t/a".into()], eos: 0 };
/// let sampler = Sampler::new(&set, 16, 2, 0, &Device::Cpu)?;
/// let slots = state::slots(&work, dense_params(&cfg).into_iter().filter(|param| param.role == Role::Expert));
/// let mut state = TrainState::new(slots, &Memory::DEFAULT)?;
/// let text = TextGradient {
///     model: &model, sampler: &sampler, pass: Pass::all(), learn: Learn::default(), open: 0, memory: Memory::DEFAULT, interrupt: None,
/// };
/// assert_eq!(text.tokens(), 2 * 16);
///
/// // A step by hand: the gradient, and the update that it asks for.
/// let found = text.descend(&mut state)?.expect("nobody asked it to stop");
/// assert!(found.loss.to_dtype(DType::F64)?.to_scalar::<f64>()? > 0.0);
/// let norm = state.update(&OptimizerConfig::DEFAULT, 1e-3)?;
/// assert!(norm.to_vec1::<f64>()?[0] > 0.0 && state.step == 1);
/// // How much each weight matters to the text.
/// assert_eq!(fisher(&text, &mut state, 2)?.len(), state.slots().len());
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub struct TextGradient<'a, F> {
    /// What reads.
    pub model: &'a CausalLm<F>,
    /// What is read.
    pub sampler: &'a Sampler<'a>,
    /// How; the tasks of a batch are added.
    pub pass: Pass,
    /// Who learns; the seed of a choice of experts is that of each part.
    pub learn: Learn,
    /// The first positions of every row, which are read and not scored: what a shared decision reads.
    pub open: usize,
    /// In how many parts, and what is kept between the passes.
    pub memory: Memory,
    /// What may ask to stop between two parts: the step is then not taken.
    pub interrupt: Option<&'a Interrupt>,
}

impl<F: FeedForward> TextGradient<'_, F> {
    /// The tokens of a step.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        (self.sampler.batch() * self.sampler.length()) as u64
    }

    /// Puts the gradient of the step that `state` is at into its place; `None` if it was asked to stop before that was whole.
    ///
    /// # Errors
    /// A batch that is not cut into equal parts for each rank; a choice of experts that cannot be made over them; what the model reports.
    pub fn descend(&self, state: &mut TrainState) -> Result<Option<Gradient>> {
        let asked = || self.interrupt.is_some_and(|interrupt| interrupt.requested().is_some());
        // Who asked before it began has this step still; several ranks stop behind a step, all the same one.
        let asked_before = asked() || self.sampler.ranks().is_some();
        let batch = self.sampler.batch_at(state.step)?;
        let (b, t) = batch.targets.dims2()?;
        self.memory.check("memory", b)?;
        let (open, parts) = (self.open.min(t - 1), self.memory.micro_batches);
        let (ranks, rows) = (self.sampler.ranks(), self.sampler.own_rows(parts, 0)?.len());
        let counted = batch.counted.chunks_exact(t).map(|row| row[open..].iter().filter(|counted| **counted).count());
        let share = 1.0 / counted.sum::<usize>().max(1) as f64;
        let keep = if self.memory.recompute { Keep::Inputs } else { Keep::All };
        let smk = match &self.learn.experts {
            Experts::Smk(smk) => Some(smk),
            Experts::All | Experts::Mask(_) => None,
        };
        smk.map_or(Ok(()), |smk| smk.rule.check("smk.rule", parts))?;
        let exact = smk.filter(|smk| smk.rule.surprise == Surprise::Exact);
        let apart = exact.filter(|smk| smk.rule.keeps_parts_apart(parts));
        let mut own = apart.map(|_| state.grads.like()).transpose()?;
        let mut sum: Option<Gradient> = None;
        for part in 0..parts {
            if part > 0 && asked() && !asked_before {
                return Ok(None);
            }
            let own_rows = self.sampler.own_rows(parts, part)?;
            let cut =
                |tensor: &Tensor| if rows == b { Ok(tensor.clone()) } else { tensor.narrow(0, own_rows.start, rows) };
            let (inputs, targets) = (cut(&batch.inputs)?.contiguous()?, cut(&batch.targets)?.contiguous()?);
            let seed = || self.sampler.seed_at(state.step, part);
            let in_training = || InTraining {
                seed: seed(),
                share: rows as f64 / b as f64,
                before: ranks.map_or(0, |ranks| ranks.rank()),
                ranks: ranks.cloned(),
            };
            let pass = Pass {
                training: self.learn.routers.then(in_training),
                ask: Ask { load: true, ..Ask::default() },
                keep,
                ..self.pass.of_tasks(&batch.tasks[own_rows.clone()])
            };
            let forward = self.model.forward(&inputs, &targets, &pass)?;
            let loss = (forward.losses.narrow(1, open, t - open)?.sum_all()? * share)?;
            let scored = Tensor::full(share as f32, (rows, t - open), forward.losses.device())?;
            let dlosses = if open == 0 { scored } else { scored.pad_with_zeros(1, open, 0)? };
            let learn = match smk {
                Some(smk) => Learn {
                    experts: Experts::Smk(Smk { seed: seed(), ..*smk }),
                    ranks: ranks.cloned(),
                    ..self.learn.clone()
                },
                None => self.learn.clone(),
            };
            let grads = own.as_mut().unwrap_or(&mut state.grads);
            let answers = self.model.backward(forward.saved, &dlosses, &learn, grads)?;
            let mut part = gradient(loss, &forward.traces, answers);
            if let (Some(smk), Some(own)) = (apart, &mut own) {
                self.keep_winners(&Smk { seed: seed(), ..*smk }, &mut part, own)?;
                state.grads.add(own)?;
                own.begin();
            }
            sum = Some(match &sum {
                Some(sum) => joined(sum, &part)?,
                None => part,
            });
        }
        let Some(mut sum) = sum else { return Ok(None) };
        if let Some(smk) = exact.filter(|_| apart.is_none()) {
            let seed = self.sampler.seed_at(state.step, 0);
            self.keep_winners(&Smk { seed, ..*smk }, &mut sum, &mut state.grads)?;
        }
        Ok(Some(sum))
    }

    /// Of gradients that are all formed, those of the winners; among several ranks of their sums, by the load of all of them.
    fn keep_winners(&self, smk: &Smk, gradient: &mut Gradient, grads: &mut Grads) -> Result<()> {
        let ranks = self.sampler.ranks();
        if let Some(ranks) = ranks {
            grads.sum_by(|gradient| ranks.all_reduce(gradient))?;
        }
        for (at, layer) in self.model.model().layers().iter().enumerate() {
            // Where all are active there is no load.
            let load = gradient.load.get(at).map(|load| ranks.map_or(Ok(load.clone()), |ranks| ranks.all_reduce(load)));
            let min_k = layer.mlp().keep_winners(smk, load.transpose()?.as_ref(), grads)?;
            gradient.learners.extend(min_k.map(|min_k| [min_k.learn_n, min_k.active_n]));
        }
        Ok(())
    }
}

/// What one part said.
fn gradient(loss: Tensor, traces: &[Trace], answers: Vec<Answers>) -> Gradient {
    let load = traces.iter().filter_map(|trace| Some(trace.load.as_ref()?.tokens_n.clone())).collect();
    let learners = answers.into_iter().filter_map(|answers| answers.min_k);
    Gradient { loss, load, learners: learners.map(|min_k| [min_k.learn_n, min_k.active_n]).collect() }
}

/// Two parts of one step.
fn joined(a: &Gradient, b: &Gradient) -> Result<Gradient> {
    let load = a.load.iter().zip(&b.load).map(|(a, b)| a + b);
    let either = |(a, b): (&[Tensor; 2], &[Tensor; 2])| Ok([a[0].maximum(&b[0])?, a[1].maximum(&b[1])?]);
    Ok(Gradient {
        loss: (&a.loss + &b.loss)?,
        load: load.collect::<candle_core::Result<_>>()?,
        learners: a.learners.iter().zip(&b.learners).map(either).collect::<Result<_>>()?,
    })
}
