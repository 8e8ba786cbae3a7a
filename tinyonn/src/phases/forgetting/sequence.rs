//! A run: the tasks, one after another.

use std::collections::BTreeSet;
use std::time::Instant;

use candle_core::{DType, Tensor, Var};

use super::operations::{multiply_adds, multiply_adds_of_knowledge};
use super::subject::Subject;
use super::{Asked, ForgettingConfig, ForgettingRecord, KnowledgeRecord, Look, Method, OldKnowledge};
use crate::checkpoint::{Param, ParamStore, Role, WorkWeights, dense_params, grow_lora, lora_params, variant_params};
use crate::data::{Sampler, TokenSet};
use crate::decoder::smk_rule::{Select, Smk, SmkRule};
use crate::decoder::{Active, CausalLm, Experts, FeedForward, Learn, LowRankMlp, NeuronMask, Pass};
use crate::model::TinyOnnForCausalLm;
use crate::moe::RoutePer;
use crate::ops::host;
use crate::phases::{Prepared, RunConfig};
use crate::train::evaluate::EvaluateOptions;
use crate::train::state::slots;
use crate::train::{Anchor, FineTune, Losses, TextGradient, TrainState, divergence, evaluate, fine_tune, fisher};
use crate::{Error, Result};

/// Teaches the model of `prepared` the tasks of `of` in their order; `config` decides the rest. `prepared` stays as it is.
///
/// A rate at which a loss or gradient is no finite number ends the run there, and the record says so.
///
/// With `knowledge` that of the model is measured in place of the old text's loss.
///
/// # Errors
/// What [`ForgettingConfig::check`] refuses; whatever training, scan or fit report.
pub fn forgetting(
    prepared: &Prepared,
    config: &RunConfig,
    of: &ForgettingConfig,
    knowledge: Option<&OldKnowledge>,
) -> Result<ForgettingRecord> {
    let started = Instant::now();
    let spec = &prepared.variant.spec;
    of.check(config, spec)?;
    if of.method.is_routed() && spec.route_per == RoutePer::Task {
        let problem = "it is routed by a task that is named, and a new one has no path yet";
        return Err(Error::variant(spec.name.clone(), problem, "use a variant that routes tokens or sequences"));
    }
    let subject = Subject::new(prepared, config, of)?;
    let mut course = Course::new(&subject, of, knowledge);
    match of.method {
        Method::Lora { rank } => course.with_low_rank(rank)?,
        _ => course.with_experts()?,
    }
    let mut record = course.record;
    let held_out = [prepared.tokens.test.tokens(), config.test_tokens];
    let old_tasks = prepared.text.tasks.len();
    record.multiply_adds = multiply_adds(&prepared.dense.cfg, (config, of), spec.experts(), (old_tasks, held_out));
    if let Some(knowledge) = knowledge {
        let rounds = (of.order.len(), knowledge.every());
        let tokens = (held_out[0], knowledge.tokens()?);
        record.multiply_adds += multiply_adds_of_knowledge(&prepared.dense.cfg, config, rounds, tokens);
    }
    record.seconds = started.elapsed().as_secs_f64();
    Ok(record)
}

/// A run under way.
struct Course<'a> {
    subject: &'a Subject<'a>,
    of: &'a ForgettingConfig,
    knowledge: Option<&'a OldKnowledge>,
    held_out: TokenSet,
    record: ForgettingRecord,
}

/// What learns, and how far it has come from where it began.
struct Weights {
    work: WorkWeights,
    params: Vec<Param>,
    /// What learns, and what it was.
    start: Vec<(Var, Tensor)>,
}

impl Weights {
    fn new(store: &ParamStore, params: Vec<Param>) -> Result<Self> {
        let names: BTreeSet<&str> = params.iter().map(|param| param.name.as_str()).collect();
        let dtype = store.passes();
        let work = store.work_weights(dtype, |name| names.contains(name).then_some(dtype))?;
        let copies = params.iter().filter_map(|param| work.get(&param.name)).map(|(var, master)| {
            let stepped = master.unwrap_or(var);
            Ok::<_, Error>((stepped.clone(), stepped.as_detached_tensor().copy()?))
        });
        let start = copies.collect::<Result<_>>()?;
        Ok(Self { work, params, start })
    }

    fn slots(&self) -> Vec<crate::train::Slot> {
        slots(&self.work, self.params.clone())
    }

    fn count(&self) -> usize {
        self.start.iter().map(|(var, _)| var.elem_count()).sum()
    }

    /// ‖θ − θ₀‖, and how many weights differ.
    fn moved(&self) -> Result<(f64, usize)> {
        let of = |(var, start): &(Var, Tensor)| -> Result<[Tensor; 2]> {
            let now = var.as_detached_tensor();
            Ok([(&now - start)?.sqr()?.sum_all()?, now.ne(start)?.to_dtype(DType::F32)?.sum_all()?])
        };
        let sums = self.start.iter().map(of).collect::<Result<Vec<_>>>()?;
        let read = host::read(&sums.iter().flatten().collect::<Vec<_>>())?;
        let over = |which: usize| read.iter().skip(which).step_by(2).flatten().sum::<f64>();
        Ok((over(0).sqrt(), over(1) as usize))
    }
}

impl<'a> Course<'a> {
    fn new(subject: &'a Subject<'a>, of: &'a ForgettingConfig, knowledge: Option<&'a OldKnowledge>) -> Self {
        let asked = |knowledge: &OldKnowledge| KnowledgeRecord {
            benchmarks: knowledge.figures().to_vec(),
            asked: Vec::new(),
            old_sums_by_look: Vec::new(),
        };
        let record = ForgettingRecord {
            tasks: of.order.iter().map(|task| task.name().to_owned()).collect(),
            losses: Vec::new(),
            old: Vec::new(),
            old_tasks: subject.prepared.text.tasks.clone(),
            old_by_task: Vec::new(),
            old_sums: Vec::new(),
            old_tokens: Vec::new(),
            looks: Vec::new(),
            learnable: 0,
            stepped: 0.0,
            moved: 0,
            diverged: None,
            knowledge: knowledge.map(asked),
            multiply_adds: 0.0,
            seconds: 0.0,
        };
        Self { subject, of, knowledge, held_out: subject.held_out(), record }
    }

    /// All methods but low-rank differences: parts of the MLPs themselves learn.
    fn with_experts(&mut self) -> Result<()> {
        let (subject, of) = (self.subject, self.of);
        let (cfg, variant, config) = (&subject.dense.cfg, subject.prepared.variant, subject.config);
        let old = subject.so_far(0)?;
        let run = subject.run(&old);
        let (scan, _) = run.scan()?;
        let (units, store) = (run.units(&scan)?, run.upcycle(&scan)?);
        let params = variant_params(cfg, variant)?.into_iter().filter(|param| param.role == Role::Expert);
        let weights = Weights::new(&store, params.collect())?;
        let all = Smk { rule: SmkRule { select: Select::All, ..config.smk.rule }, ..config.smk.choice(&variant.spec) };
        let experts = match of.method {
            Method::Experts { select, .. } => Experts::Smk(Smk { rule: SmkRule { select, ..all.rule }, ..all }),
            Method::LeastImportant => {
                let marks = subject.least_important(&scan, &units, config.smk.min_k)?;
                let masks = marks.iter().map(|marks| NeuronMask::new(marks, &run.device));
                Experts::Mask(masks.collect::<Result<_>>()?)
            }
            _ => Experts::Smk(all),
        };
        let learn = Learn { experts, ..Learn::default() };
        let pass = if of.method.is_routed() { Pass::routed() } else { Pass::all() };
        let anchor = match of.method {
            Method::Decay { strength, fisher } => Some(self.anchor(&weights, strength, fisher)?),
            _ => None,
        };
        self.record.learnable = weights.count();
        for task in 0..of.order.len() {
            if of.method.is_routed() {
                subject.fit_routers(&store, &units, task)?;
            }
            let model = TinyOnnForCausalLm::new(cfg, variant, weights.work.builder())?;
            let what = FineTune {
                model: model.lm(),
                slots: weights.slots(),
                learn: learn.clone(),
                pass: pass.clone(),
                open: self.options().skip,
                anchor: anchor.as_ref(),
            };
            if !self.teach(task, what, &|| Ok(weights.moved()?.0))? {
                break;
            }
        }
        self.record.moved = weights.moved()?.1;
        Ok(())
    }

    /// Low-rank differences of the MLPs learn.
    fn with_low_rank(&mut self, rank: usize) -> Result<()> {
        let cfg = &self.subject.dense.cfg;
        let mut store = self.subject.dense.store.share();
        grow_lora(&mut store, cfg, rank, self.subject.config.seed)?;
        let weights = Weights::new(&store, lora_params(cfg, rank))?;
        let model = CausalLm::new(cfg, weights.work.builder(), |layer, vb| LowRankMlp::new(cfg, layer, rank, &vb))?;
        self.record.learnable = weights.count();
        let distance = || -> Result<f64> {
            let products = model.model().layers().iter().flat_map(|layer| layer.mlp().low_rank());
            let squares = products.map(|low_rank| Ok(low_rank.product()?.to_dtype(DType::F32)?.sqr()?.sum_all()?));
            let squares = squares.collect::<Result<Vec<Tensor>>>()?;
            Ok(host::read(&squares.iter().collect::<Vec<_>>())?.iter().flatten().sum::<f64>().sqrt())
        };
        for task in 0..self.of.order.len() {
            let what = FineTune {
                model: &model,
                slots: weights.slots(),
                learn: Learn::default(),
                pass: Pass::all(),
                open: self.options().skip,
                anchor: None,
            };
            if !self.teach(task, what, &distance)? {
                break;
            }
        }
        // A product of full columns moves every weight.
        let mlps = dense_params(cfg).into_iter().filter(|param| param.role == Role::Expert);
        self.record.moved = mlps.map(|param| param.stored.iter().product::<usize>()).sum();
        Ok(())
    }

    /// Towards the dense weights.
    fn anchor(&self, weights: &Weights, strength: f64, by_fisher: bool) -> Result<Anchor> {
        let (subject, config) = (self.subject, self.subject.config);
        if !by_fisher {
            return Anchor::new(&weights.slots(), strength, None);
        }
        let (cfg, variant) = (&subject.dense.cfg, subject.prepared.variant);
        let model = TinyOnnForCausalLm::new(cfg, variant, weights.work.builder())?;
        let old = &subject.prepared.tokens.train;
        let sampler = Sampler::new(old, config.length, 1, config.seed ^ 2, &subject.prepared.device)?;
        let text = TextGradient {
            model: model.lm(),
            sampler: &sampler,
            pass: Pass::all(),
            learn: Learn::default(),
            open: 0,
            memory: crate::train::Memory::DEFAULT,
            interrupt: None,
        };
        let mut state = TrainState::new(weights.slots(), &text.memory)?;
        let fisher = fisher(&text, &mut state, self.of.fisher_sequences)?;
        Anchor::new(&weights.slots(), strength, Some(fisher))
    }

    fn options(&self) -> EvaluateOptions {
        let (config, spec) = (self.subject.config, &self.subject.prepared.variant.spec);
        EvaluateOptions { length: config.length, batch: config.batch, skip: spec.open_positions() }
    }

    /// Teaches the task at place `task`; false where that ended in no number.
    fn teach<F: FeedForward>(
        &mut self,
        task: usize,
        what: FineTune<'_, F>,
        distance: &dyn Fn() -> Result<f64>,
    ) -> Result<bool> {
        let (subject, config, options) = (self.subject, self.subject.config, self.options());
        let (model, pass, device) = (what.model, what.pass.clone(), &subject.prepared.device);
        if task == 0 {
            self.measure(model, &pass)?;
        }
        let replay = match self.of.method {
            Method::Replay { one_in } => Some(one_in),
            _ => None,
        };
        let taught = subject.taught(task, replay)?;
        let sampler = Sampler::new(&taught, config.length, config.smk.batch, config.seed ^ 1, device)?;
        let held_out = subject.held_out_of(task)?;
        let old = subject.prepared.text.tasks.len();
        let novel = subject.novel_of(task)?;
        let knowledge = self.knowledge;
        // All active, the first task begins with the answers of the original, and each other one with those that the one before it ended with.
        let known = self.record.knowledge.as_ref().filter(|_| matches!(pass.active, Active::All));
        let last = known.and_then(|known| known.asked.last()).map(|asked| asked.right.clone());
        let first = || knowledge.filter(|_| known.is_some()).map(|known| known.right_of_original().to_vec());
        let last = last.or_else(first);
        let (mut looks, mut asked, mut by_document) = (Vec::new(), Vec::new(), Vec::new());
        let mut look = |step: u64| -> Result<()> {
            let losses = match knowledge {
                Some(known) => self.known(known, model, &pass, &novel)?,
                None => evaluate(model, &held_out, options, &pass, device)?,
            };
            let new = losses.by_task[old];
            looks.push(Look { task, step, new, old: mean(&losses, |task| task < old), distance: distance()? });
            if let Some(known) = knowledge {
                by_document.push(self.sums_of_old(&losses));
                if known.is_due(step, config.smk.steps) {
                    let right = match &last {
                        Some(last) if step == 0 => last.clone(),
                        _ => known.right(model, &pass)?,
                    };
                    asked.push(Asked { task, step, right });
                }
            }
            Ok(())
        };
        look(0)?;
        let learnt = fine_tune(what, &sampler, &config.smk_in_dtype(), None, &mut look);
        self.record.looks.extend(looks);
        if let Some(record) = &mut self.record.knowledge {
            record.asked.extend(asked);
            record.old_sums_by_look.extend(by_document);
        }
        let learnt = match learnt {
            Err(Error::Setting { name, problem, .. }) if name == "fine_tune.optimizer.rate" || name == "evaluate" => {
                self.record.diverged = Some(problem);
                return Ok(false);
            }
            learnt => learnt?,
        };
        let experts = subject.prepared.variant.spec.experts() as f64;
        let share = match (self.of.method, learnt) {
            (Method::LeastImportant, _) => config.smk.min_k as f64 / experts,
            (_, Some(learners)) => learners.learnt / experts,
            (_, None) => 1.0,
        };
        self.record.stepped += share * self.record.learnable as f64 / self.of.order.len() as f64;
        self.measure(model, &pass)?;
        Ok(true)
    }

    /// All held-out text: a stage of the record.
    fn measure<F: FeedForward>(&mut self, model: &CausalLm<F>, pass: &Pass) -> Result<()> {
        let losses = match self.knowledge {
            Some(known) => self.known(known, model, pass, self.subject.novel_test())?,
            None => evaluate(model, &self.held_out, self.options(), pass, &self.subject.prepared.device)?,
        };
        let old = self.subject.prepared.text.tasks.len();
        let (of_old, of_new) = losses.by_task.split_at(old);
        self.record.old.push(mean(&losses, |task| task < old));
        self.record.losses.push(of_new.to_vec());
        self.record.old_by_task.push(of_old.to_vec());
        self.record.old_sums.push(self.sums_of_old(&losses));
        let documents = losses.by_document.iter().take(self.record.old_sums[0].len());
        self.record.old_tokens = documents.map(|document| document.tokens).collect();
        Ok(())
    }

    /// Of a pretrained model: its divergence on the old text, and behind it the losses of the tasks of `novel`.
    fn known<F: FeedForward>(
        &self,
        known: &OldKnowledge,
        model: &CausalLm<F>,
        pass: &Pass,
        novel: &TokenSet,
    ) -> Result<Losses> {
        let (options, prepared) = (self.options(), self.subject.prepared);
        let old = divergence((model, known.original()), &prepared.tokens.test, options, pass, &prepared.device)?;
        Ok(old.beside(evaluate(model, novel, options, pass, &prepared.device)?))
    }

    /// By document of the old text.
    fn sums_of_old(&self, losses: &Losses) -> Vec<f64> {
        let documents = self.subject.prepared.tokens.test.documents.len();
        losses.by_document.iter().take(documents).map(|document| document.sum).collect()
    }
}

/// The mean loss over the tokens of some tasks.
fn mean(losses: &Losses, of: impl Fn(usize) -> bool) -> f64 {
    let own = losses.by_document.iter().filter(|document| document.tokens > 0.0 && of(document.task));
    let (sum, tokens) = own.fold((0.0, 0.0), |(sum, tokens), document| (sum + document.sum, tokens + document.tokens));
    sum / f64::max(tokens, 1.0)
}
