//! All ways to go on with the model of one seed. Each begins with a state of the one that it leaves: growth maps weights and moments
//! ([`expand_state`]), a new fit of routers leaves both ([`refit_state`]), and the training goes on from there as one that was stopped does.

use std::path::{Path, PathBuf};
use std::time::Instant;

use tinyonn::checkpoint::{Expansion, MappedSafetensors, ParamStore};
use tinyonn::data::Sampler;
use tinyonn::decoder::{Arch, Pass};
use tinyonn::metrics::{MetricsLog, Stopwatch};
use tinyonn::model::TinyOnnForCausalLm;
use tinyonn::moe::Variant;
use tinyonn::phases::{Dense, Prepared, Run, RunConfig};
use tinyonn::train::{Checkpoints, checkpoints, expand_state, refit_state, train_smk};
use tinyonn::{Error, Result};

use super::{Arm, GrowthConfig, Record};
use crate::interrupt;

/// Runs what is missing of `seed`, and hears of each way as it is done; the states of its trainings lie in the study's folder until all are.
///
/// # Errors
/// Whatever a training reports; [`Error::Interrupted`]: the same call goes on.
pub fn run_subject(config: &GrowthConfig, seed: u64, mut hear: impl FnMut(&Arm, &Record)) -> Result<()> {
    let arms = config.arms()?;
    let mut missing = Vec::new();
    for arm in &arms {
        if Record::read(&config.out, arm, seed)?.is_none() {
            missing.push(arm);
        }
    }
    let dir = config.out.join(format!("states-{seed}"));
    if !missing.is_empty() {
        let settings = RunConfig { seed, out: dir.clone(), device: config.device, ..config.run.clone() };
        let prepared = Prepared::new(&settings, &mut Stopwatch::new(), None)?;
        let run = prepared.run(&settings);
        let (scan, _) = run.scan()?;
        let young = run.upcycle(&scan)?;
        fit(&run, &young)?;
        let subject = Subject { config, run, young, variants: config.variants()?, dir: dir.clone() };
        for arm in missing {
            let record = subject.record(arm)?;
            record.write(&config.out, arm, seed)?;
            hear(arm, &record);
        }
    }
    match std::fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&dir, e)),
        _ => Ok(()),
    }
}

/// Labels of what is in the run's dense model, and routers fitted to them in `store`.
fn fit(run: &Run<'_>, store: &ParamStore) -> Result<()> {
    let (scan, inputs) = run.scan()?;
    let units = run.model(store)?.neuron_experts()?;
    let (labels, held) = (run.labels(&scan, units.as_deref()), run.held_inputs()?);
    let mut fitter = run.fitter(inputs.own(run.variant), held.validation.own(run.variant))?;
    run.fit_own(store, &mut fitter, (&labels, None), || run.model(store))
}

/// The model of a seed, with its routers fitted.
struct Subject<'a> {
    config: &'a GrowthConfig,
    run: Run<'a>,
    young: ParamStore,
    variants: [&'static Variant; 2],
    dir: PathBuf,
}

/// A model before it learns.
struct Begun {
    cfg: Arch,
    variant: &'static Variant,
    store: ParamStore,
}

impl Subject<'_> {
    fn expansion(&self, new_neurons: usize) -> Result<Expansion<'_>> {
        Expansion::new(&self.run.dense.cfg, self.variants, None, new_neurons, self.run.config.seed)
    }

    /// What `arm` begins with, grown if it grows; its routers are as they were.
    fn begun(&self, arm: &Arm) -> Result<Begun> {
        let [young, grown] = self.variants;
        let Some(new_neurons) = arm.new_neurons else {
            let store = self.young.deep_copy()?;
            return Ok(Begun { cfg: self.run.dense.cfg.clone(), variant: young, store });
        };
        let expansion = self.expansion(new_neurons)?;
        Ok(Begun { cfg: expansion.arch(), variant: grown, store: expansion.store(&self.young)? })
    }

    /// Trains `arm` to the end, from the states that it leaves behind; returns the model.
    fn trained(&self, arm: &Arm) -> Result<Begun> {
        let (begun, states) = (self.begun(arm)?, self.dir.join(arm.key).join("states"));
        let quarter = self.config.quarter();
        if arm.fitted {
            // What learnt until then is the same model, whose routers were not fitted anew.
            let before = Arm { fitted: false, key: before_the_fit(arm), ..arm.clone() };
            let from = self.state(&before, 3 * quarter)?;
            take_up(&begun.store, &from)?;
            fit(&self.run_of(&begun, &self.dense_of(&begun)), &begun.store)?;
            if !checkpoints::are_in(&states)? {
                refit_state(from.parent().unwrap_or(&from), &states, &begun.store)?;
            }
        } else if let Some(new_neurons) = arm.new_neurons {
            let before = Arm { new_neurons: None, key: if arm.routed { "none" } else { "dense" }, ..arm.clone() };
            let from = self.state(&before, 2 * quarter)?;
            if !checkpoints::are_in(&states)? {
                let from = from.parent().unwrap_or(&from);
                expand_state(from, &states, &self.expansion(new_neurons)?, &begun.store)?;
            }
        }
        self.train(arm, &begun, states)?;
        Ok(begun)
    }

    fn train(&self, arm: &Arm, begun: &Begun, states: PathBuf) -> Result<()> {
        let c = self.run.config;
        let sampler = Sampler::new(&self.run.tokens.train, c.length, c.smk.batch, c.seed ^ 1, &self.run.device)?;
        std::fs::create_dir_all(&states).map_err(|e| Error::io(&states, e))?;
        let mut log = MetricsLog::open(states.join("log.jsonl"))?;
        let saved = Checkpoints { dir: states, every: self.config.quarter(), keep: 3, interrupt: interrupt() };
        let model = (&begun.store, &begun.cfg, begun.variant);
        train_smk(model, &pass(arm), (&sampler, None), &c.smk_in_dtype(), &mut log, Some(&saved)).map(drop)
    }

    /// A folder's only state: the one that `arm` leaves behind `step`. It is trained if it was not.
    fn state(&self, arm: &Arm, step: u64) -> Result<PathBuf> {
        let own = self.dir.join(arm.key);
        let name = format!("state-{step:08}.safetensors");
        let alone = own.join(format!("at-{step}")).join(&name);
        if !alone.exists() {
            self.trained(arm)?;
            let folder = own.join(format!("at-{step}"));
            std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
            std::fs::copy(own.join("states").join(&name), &alone).map_err(|e| Error::io(&alone, e))?;
        }
        Ok(alone)
    }

    fn record(&self, arm: &Arm) -> Result<Record> {
        let half = self.begun(arm)?;
        // Grown or not, what learnt until then is the model that did not grow.
        let trunk =
            Arm { new_neurons: None, fitted: false, key: if arm.routed { "none" } else { "dense" }, ..arm.clone() };
        let state = self.state(&trunk, 2 * self.config.quarter())?;
        let at_half = match arm.new_neurons {
            None => {
                take_up(&half.store, &state)?;
                self.measured(arm, &half)?.0
            }
            Some(new_neurons) => {
                let young = self.young.deep_copy()?;
                take_up(&young, &state)?;
                let store = self.expansion(new_neurons)?.store(&young)?;
                self.measured(arm, &Begun { store, ..half })?.0
            }
        };
        let started = Instant::now();
        let model = self.trained(arm)?;
        let seconds = started.elapsed().as_secs_f64();
        let (at_end, taken) = self.measured(arm, &model)?;
        let routers = if arm.routed { self.config.routers(model.variant)? } else { 0 };
        Ok(Record {
            neurons: model.cfg.intermediate_size,
            taken,
            operations: self.config.operations(taken, routers),
            at_half,
            at_end,
            corpus_sha256: self.run.text.sha256.clone(),
            seconds,
        })
    }

    /// Loss on the test split, and the neurons of a layer that a token takes.
    fn measured(&self, arm: &Arm, model: &Begun) -> Result<(f64, f64)> {
        let Begun { cfg, variant, store } = model;
        let sparse = TinyOnnForCausalLm::new(cfg, variant, &store.frozen())?;
        let width = cfg.intermediate_size as f64;
        if !arm.routed {
            return Ok((self.run.evaluate(sparse.lm(), &Pass::all())?.mean, width));
        }
        let dense = self.dense_of(model);
        let run = self.run_of(model, &dense);
        let (losses, load) = run.evaluate_load(&sparse, &run.tokens.test, &Pass::routed())?;
        let units = sparse.neuron_experts()?;
        Ok((losses.mean, width * tinyonn::phases::active_share(&load, units.as_deref())))
    }

    /// The bank of `model` as the dense model that it is all active.
    fn dense_of(&self, model: &Begun) -> Dense {
        let Dense { dir, stored, tokenizer, .. } = self.run.dense;
        Dense {
            dir: dir.clone(),
            cfg: model.cfg.clone(),
            store: model.store.share(),
            stored: stored.clone(),
            tokenizer: tokenizer.clone(),
        }
    }

    /// The stages of the run over `model`.
    fn run_of<'b>(&'b self, model: &Begun, dense: &'b Dense) -> Run<'b> {
        Run { variant: model.variant, dense, device: self.run.device.clone(), ..self.run }
    }
}

/// What `arm` is before its routers are fitted anew. Where children share and ride, they are the model that did not grow, to the bit.
fn before_the_fit(arm: &Arm) -> &'static str {
    match arm.new_neurons {
        None => "none",
        Some(0) => "shared",
        Some(_) => "wider",
    }
}

fn pass(arm: &Arm) -> Pass {
    if arm.routed { Pass::routed() } else { Pass::all() }
}

/// The weights of a state, into `store`.
fn take_up(store: &ParamStore, state: &Path) -> Result<()> {
    let saved = MappedSafetensors::open(state)?;
    for name in saved.names().filter(|name| !name.contains('/')) {
        store.set(name, &saved.load(name, store.device())?)?;
    }
    Ok(())
}
