//! From a dense model to one whose routed pass takes single neurons (`neurons = gate | pruned`, DESIGN §1) at a share of the MLPs' operations: shares by
//! layer from what each layer's neurons are worth ([`neuron_damage()`]), choices calibrated layer by layer on the sparse stream, what is left missing repaired
//! in closed form ([`RepairSums`](crate::train::RepairSums)), and, if asked, distilled from the dense model ([`distil()`]).
//!
//! Operations are counted in products of an MLP's three matrices, 3·I·d multiply-adds a token: a [`Cut`] of candidates c and neurons s costs (c + 2 s)/3, and
//! routers come on top.
//!
//! ```
//! use tinyonn::phases::sparsify::SparsifyLosses;
//! use tinyonn::decoder::Pass;
//! use tinyonn::metrics::Stopwatch;
//! use tinyonn::phases::{
//!     Dense, DenseShape, Prepared, RunConfig, Shares, SparseModel, SparsifyConfig, SparsifySummary, Text, Worth, sparsify, sparsify_from,
//! };
//!
//! # let dir = tempfile::tempdir()?;
//! # let tasks = [tinyonn::data::sorting(0, 12_000), tinyonn::data::arithmetic(0, 12_000)].map(|task| {
//! #     let path = dir.path().join(&task.name).with_extension("jsonl");
//! #     let lines = task.documents.iter().map(|d| serde_json::json!({ "text": d.text }).to_string());
//! #     std::fs::write(&path, lines.collect::<Vec<_>>().join("\n"))?;
//! #     Ok(format!("{}={}", task.name, path.display()))
//! # });
//! # let data = tasks.into_iter().collect::<Result<Vec<_>, std::io::Error>>()?;
//! # let (out, cache) = (dir.path().join("run"), dir.path().join("cache"));
//! let mut config = RunConfig { variant: "Mixtral".into(), data, out, cache, ..RunConfig::quick() };
//! config.dense = DenseShape { vocab_size: 300, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, ..config.dense };
//! (config.length, config.scan_tokens, config.test_tokens) = (32, 512, 256);
//! (config.pretrain.steps, config.router.steps, config.smk.steps) = (4, 4, 2);
//! let dense = Dense::obtain(&config, &Text::new(&config.data, config.seed)?, &candle_core::Device::Cpu, None)?;
//! let half = SparsifyConfig {
//!     model: Some(dense.dir.clone()), active_share: 0.5, shares: Shares::Uniform, worth: Worth::Norm, data: config.data.clone(),
//!     out: dir.path().join("half"), length: 32, batch: 4, calibration_tokens: 256, validation_tokens: 256, test_tokens: 256,
//!     ..SparsifyConfig::default()
//! };
//! let SparsifySummary { lossless, operations, loss: SparsifyLosses { sparse, .. }, .. } = sparsify(&half, None)?;
//! assert!(lossless.bit_equal && (operations - 0.5).abs() < 0.15 && sparse > 0.0);
//!
//! // Stage by stage, for programs that ask more of it: here nothing is written.
//! let (mut watch, of_run) = (Stopwatch::new(), half.run());
//! let prepared = Prepared::of_sparsify(&half, &mut watch)?;
//! let run = prepared.run(&of_run);
//! let mut made: SparseModel = run.sparse_model(&half, &mut watch)?;
//! assert!(run.distil_sparse(&mut made, &half, None)?.is_none()); // no step was asked for
//! let (losses, load) = run.evaluate_load(&run.model(&made.store)?, &prepared.tokens.test, &Pass::routed())?;
//! assert_eq!(losses.mean, sparse);
//! assert_eq!(run.operations(&run.taken(&made, &load)?), operations);
//!
//! // The same layers, which learn from the dense model for two steps.
//! let mut longer = SparsifyConfig { out: dir.path().join("longer"), ..SparsifyConfig::of_run(&half.out)? };
//! (longer.distil.steps, longer.distil.batch) = (2, 2);
//! assert!(sparsify_from(&half.out, &longer, None)?.distilled_to.is_some());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::dense::CHECKPOINT;
use super::lossless::LosslessFigures;
use super::prepared::Prepared;
use super::run::{METRICS, Run};
use super::sparse_layers::{Making, SparseModel};
use super::sparsify_from::LeftBySparsify;
use super::text::CorpusFigures;
use super::{Dense, RunConfig, Shares, SparsifyConfig, Worth, summary};
use crate::checkpoint::{KeyDirections, ModelFolder, ParamStore, mixture_prefix};
use crate::data::Sampler;
use crate::decoder::Pass;
use crate::decoder::attention::check_attention;
use crate::imaging::neuron_damage::{cuts_of_a_fixed_set, cuts_of_a_gate};
use crate::imaging::{Choose, Cut, DamageOptions, Partition, cuts_by_layer, neuron_damage, partition, sensitivity};
use crate::metrics::{Interval, MetricsLog, Progress, Stopwatch, interval};
use crate::model::{ActiveMode, TinyOnnForCausalLm};
use crate::moe::{LoadMeter, Neurons};
use crate::ops::host;
use crate::train::{Checkpoints, DistilConfig, Losses, distil, grow_repairs};
use crate::{Error, Result};

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SparsifySummary {
    /// The settings.
    pub settings: SparsifyConfig,
    /// The text.
    pub corpus: CorpusFigures,
    /// Parameters of the dense model.
    pub parameters: usize,
    /// Parameters that repair and distillation added.
    pub added: usize,
    /// All active, against the dense model.
    pub lossless: LosslessFigures,
    /// Tokens that the choice of each layer was calibrated by.
    pub calibrated_on: usize,
    /// Tokens that each layer was repaired on; 0: there is no repair.
    pub repaired_on: usize,
    /// λ of each layer's repair, which is raised where its sums are no positive definite matrix.
    pub ridge: Vec<f64>,
    /// The divergence from the dense model that distillation came to, nats a token of training text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distilled_to: Option<f64>,
    /// By layer, what was asked for.
    pub asked: Vec<Cut>,
    /// By layer, what tokens of the test split take.
    pub taken: Vec<Cut>,
    /// The share of the MLPs' operations on the test split, routers counted in.
    pub operations: f64,
    /// That of the routers alone.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub routers: f64,
    /// Where routers choose, by layer ([`SparseModel::router_kept`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub router_kept: Vec<f64>,
    /// Documents of the test split.
    pub documents: usize,
    /// Nats a token on the test split: dense, and sparse.
    pub loss: SparsifyLosses<f64>,
    /// The same by kind.
    pub loss_by_task: BTreeMap<String, SparsifyLosses<f64>>,
    /// How much the loss rises, with a 95 % interval over documents.
    pub rise: Interval,
    /// The same by kind.
    pub rise_by_task: BTreeMap<String, Interval>,
    /// exp of the mean over kinds of the rise.
    pub perplexity_ratio: f64,
    /// Wall-clock by stage.
    pub seconds: serde_json::Map<String, serde_json::Value>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// Of the dense model and of the sparse one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SparsifyLosses<T> {
    /// All active.
    pub dense: T,
    /// At the share.
    pub sparse: T,
}

/// Tokens of a test document that are counted where documents are chosen: as many are as fit, evenly spread.
const OF_A_DOCUMENT: usize = 1024;
/// Tokens of a row that directions of keys are fitted on, at most.
const OF_DIRECTIONS: usize = 4096;

/// Makes the variant of `config` from its text, measures it, and writes `summary.json` and the checkpoint `tiny-onn/`, whose routed pass takes
/// the share, into `config.out`.
///
/// # Errors
/// Settings, variants, text, models and folders that cannot be used; a loss that is no finite number.
pub fn sparsify(config: &SparsifyConfig, checkpoints: Option<&Checkpoints>) -> Result<SparsifySummary> {
    sparsify_with(config, None, checkpoints)
}

/// The same with the layers that a run left in the folder `from`: what remains is to distil and to measure them. `config` is its own
/// ([`SparsifyConfig::of_run`]) with another `out` and, perhaps, other `distil`, `test_tokens` and `device`; the outcome is that of [`sparsify`] with the same
/// settings.
///
/// # Errors
/// As of [`sparsify`]; a folder that it did not write; settings or text that are not what they were.
pub fn sparsify_from(
    from: &Path,
    config: &SparsifyConfig,
    checkpoints: Option<&Checkpoints>,
) -> Result<SparsifySummary> {
    sparsify_with(config, Some(LeftBySparsify::read(from, config)?), checkpoints)
}

fn sparsify_with(
    config: &SparsifyConfig,
    left: Option<LeftBySparsify>,
    checkpoints: Option<&Checkpoints>,
) -> Result<SparsifySummary> {
    let mut watch = Stopwatch::new();
    let of_run = config.run();
    let prepared = Prepared::of_sparsify(config, &mut watch)?;
    let run = prepared.run(&of_run);
    let mut made = match left {
        Some(left) => left.layers(&run)?,
        None => run.sparse_model(config, &mut watch)?,
    };
    watch.stage("distil");
    let distilled_to = run.distil_sparse(&mut made, config, checkpoints)?;
    let progress = Progress::new(3, "proof, dense loss, sparse loss");
    watch.stage("verify");
    let lossless = run.lossless(&made.store)?;
    progress.set(1);
    watch.stage("write");
    let model = run.write_attending(&made.store, config)?;
    watch.stage("evaluate");
    let dense = run.evaluate(model.lm(), &Pass::all())?;
    progress.set(2);
    let (sparse, load) = run.evaluate_load(&model, &prepared.tokens.test, &Pass::routed())?;
    progress.set(3);
    progress.finish();
    watch.stop();
    let cfg = &prepared.dense.cfg;
    let taken = run.taken(&made, &load)?;
    let SparseModel { asked, calibrated_on, repaired_on, ridge, router_kept, .. } = made;
    let tasks = prepared.text.tasks.iter().cloned().enumerate();
    let rise_by_task: BTreeMap<String, Interval> =
        tasks.clone().map(|(task, name)| (name, rise(&dense, &sparse, Some(task), config.seed))).collect();
    let mean_rise = sparse.by_task.iter().zip(&dense.by_task).map(|(sparse, dense)| sparse - dense).sum::<f64>()
        / dense.by_task.len().max(1) as f64;
    let (layers, d, i) = (cfg.num_hidden_layers, cfg.hidden_size, cfg.intermediate_size);
    let summary = SparsifySummary {
        settings: config.clone(),
        corpus: run.corpus_figures(),
        parameters: cfg.parameters(),
        added: match (&distilled_to, repaired_on) {
            (Some(_), _) => layers * (3 * i * d + d),
            (None, 0) => 0,
            (None, _) => layers * (i * d + d),
        },
        distilled_to,
        lossless,
        calibrated_on,
        repaired_on,
        ridge,
        operations: run.operations(&taken),
        routers: run.router_share(),
        router_kept,
        asked,
        taken,
        documents: dense.by_document.iter().filter(|document| document.tokens > 0.0).count(),
        loss: SparsifyLosses { dense: dense.mean, sparse: sparse.mean },
        loss_by_task: tasks
            .map(|(task, name)| (name, SparsifyLosses { dense: dense.by_task[task], sparse: sparse.by_task[task] }))
            .collect(),
        rise: rise(&dense, &sparse, None, config.seed),
        rise_by_task,
        perplexity_ratio: mean_rise.exp(),
        seconds: watch.seconds().into_iter().map(|(stage, seconds)| (stage, seconds.into())).collect(),
    };
    summary::write(&summary, &of_run.out.join("summary.json"))?;
    Ok(summary)
}

impl SparsifyConfig {
    /// The settings of the stages that phases have, too.
    #[must_use]
    pub fn run(&self) -> RunConfig {
        let Self { model, variant, data, seed, device, dtype, out, length, batch, .. } = self.clone();
        RunConfig {
            model,
            variant,
            data,
            seed,
            device,
            dtype,
            out,
            length,
            batch,
            scan_tokens: self.calibration_tokens,
            // Whole: its documents are chosen before they are cut.
            test_tokens: usize::MAX,
            ..RunConfig::default()
        }
    }
}

impl Prepared {
    /// What [`sparsify`] reads: of each kind's test split as many documents as fit, evenly spread, at most 1,024 tokens of each.
    ///
    /// # Errors
    /// As of [`sparsify`], before time is spent on it.
    pub fn of_sparsify(config: &SparsifyConfig, watch: &mut Stopwatch) -> Result<Self> {
        config.check()?;
        let needed = || Error::setting("model", "is needed and was not given", "name a dense decoder");
        // What keeps a model from being read is said before all text is.
        let (_, cfg, _) = Dense::open(config.model.as_ref().ok_or_else(needed)?)?;
        if let Some(attention) = &config.attention {
            check_attention(attention, &cfg)?;
        }
        let of_run = config.run();
        let mut prepared = Self::with(&of_run, watch, |text, device| Dense::obtain(&of_run, text, device, None))?;
        // What a declaration leaves open needs no scan here; single neurons have one expert.
        let spec = &prepared.variant.spec;
        let open = if spec.levels.is_empty() { Partition::Contiguous } else { Partition::Coactivation };
        prepared.partition = partition::choose(of_run.partition, spec, open)?;
        prepared.tokens.test.spread_documents(OF_A_DOCUMENT, config.test_tokens);
        prepared.tokens.test.beginnings(config.test_tokens);
        Ok(prepared)
    }
}

impl Run<'_> {
    /// The layers made sparse in closed form: shares, choices, repair.
    ///
    /// # Errors
    /// A share that layers cannot be cut down to; what the device reports.
    pub fn sparse_model(&self, config: &SparsifyConfig, watch: &mut Stopwatch) -> Result<SparseModel> {
        watch.stage("shares");
        let worth = self.worth(config)?;
        let asked = self.cuts(config, worth.as_deref())?;
        watch.stage("calibrate");
        self.sparse_layers(&Making {
            cuts: &asked,
            choose: config.choose.unwrap_or_default(),
            worth: worth.as_deref(),
            ridge: Some(config.ridge).filter(|ridge| *ridge > 0.0),
            bias: config.bias,
            target: config.router_target,
            candidates: config.candidates,
        })
    }

    /// By layer, what tokens took that `load` was measured on: of the neurons that `made` asked for, or that its routers chose.
    ///
    /// # Errors
    /// A model of other layers; what the device reports.
    pub fn taken(&self, made: &SparseModel, load: &LoadMeter) -> Result<Vec<Cut>> {
        let (spec, width) = (&self.variant.spec, self.dense.cfg.intermediate_size as f64);
        let rounded = |share: f64| (share * width).round().clamp(1.0, width) / width;
        let (experts, by_neuron, by_input) = (load.load(), load.neurons(), load.inputs());
        let of_layer = |(layer, cut): (usize, &Cut)| {
            let routed = if spec.levels.is_empty() {
                None
            } else {
                let name = format!("{}.neuron_expert", mixture_prefix(layer));
                let missing = || Error::tensor(&name, "is missing", "make the model again");
                let owners = host::ids(made.store.get(&name).ok_or_else(missing)?)?;
                let of_neuron = owners.iter().map(|owner| experts[layer].get(*owner as usize).copied().unwrap_or(0.0));
                Some(of_neuron.sum::<f64>() / width)
            };
            let neurons = by_neuron[layer].map(|taken| taken / width).or(routed).unwrap_or(1.0);
            let candidates = match (spec.neurons, routed) {
                (Neurons::Gate, Some(routed)) => routed,
                (Neurons::Gate, None) => rounded(cut.candidates),
                _ => neurons,
            };
            let inputs = by_input[layer].map_or(1.0, |read| read / self.dense.cfg.hidden_size as f64);
            Ok(Cut { inputs, ..Cut::of(candidates, neurons) })
        };
        made.asked.iter().enumerate().map(of_layer).collect()
    }

    /// The share of the MLPs' operations that layers of these cuts cost on average, their routers counted in.
    #[must_use]
    pub fn operations(&self, cuts: &[Cut]) -> f64 {
        let sum = cuts.iter().map(|cut| cut.operations()).sum::<f64>();
        self.router_share() + sum / cuts.len().max(1) as f64
    }

    /// v of each layer, where it is not the norm of W_d's rows.
    fn worth(&self, config: &SparsifyConfig) -> Result<Option<Vec<Tensor>>> {
        if config.worth == Worth::Norm {
            return Ok(None);
        }
        sensitivity(&self.dense_model()?, &self.tokens.validation, damage_options(config)).map(Some)
    }

    /// What each layer is cut down to.
    fn cuts(&self, config: &SparsifyConfig, worth: Option<&[Tensor]>) -> Result<Vec<Cut>> {
        let (spec, layers) = (&self.variant.spec, self.dense.cfg.num_hidden_layers);
        let left = config.active_share - self.router_share();
        if left <= 0.0 {
            let problem = format!("is {}, which the routers take up", config.active_share);
            return Err(Error::setting("active_share", problem, "use more, or declare cheaper routers"));
        }
        if config.shares == Shares::Uniform {
            return Ok(vec![config.uniform(spec, left)?; layers]);
        }
        let cuts = match spec.neurons {
            Neurons::Pruned => cuts_of_a_fixed_set(),
            // What routers choose is not known yet: a layer's share is that of a gate's own candidates.
            _ if !spec.levels.is_empty() => cuts_of_a_gate(None, Some(1.0)),
            _ => cuts_of_a_gate(config.candidates, config.inputs_of_all()),
        };
        let options = damage_options(config);
        let damage = neuron_damage(&self.dense_model()?, &self.tokens.validation, options, &cuts, worth)?;
        cuts_by_layer(&damage, left)
    }

    /// Distils `made` from the dense model, if any step was asked for; returns the divergence that it came to, nats a token of training text.
    ///
    /// # Errors
    /// What training reports.
    pub fn distil_sparse(
        &self,
        made: &mut SparseModel,
        config: &SparsifyConfig,
        checkpoints: Option<&Checkpoints>,
    ) -> Result<Option<f64>> {
        let SparseModel { store, asked, .. } = made;
        let memory = config.distil.memory.within(self.config.dtype);
        let distil_config = &DistilConfig { memory, ..config.distil };
        if distil_config.steps == 0 {
            return Ok(None);
        }
        grow_repairs(store, &self.dense.cfg)?;
        let sampler =
            Sampler::new(&self.tokens.train, config.length, distil_config.batch, config.seed ^ 2, &self.device)?;
        let dir = checkpoints.map_or(&self.config.out, |checkpoints| &checkpoints.dir);
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let (path, place) = (dir.join(METRICS), self.config.out.join(METRICS));
        let mut log = if checkpoints.is_some() { MetricsLog::open(&path) } else { MetricsLog::create(&path) }?;
        let model = (&*store, &self.dense.cfg, self.variant);
        let distil_config = DistilConfig { bias: distil_config.bias && config.bias, ..*distil_config };
        let found = distil(model, &self.dense_model()?, &sampler, &distil_config, &mut log, checkpoints)?;
        if path != place {
            MetricsLog::copy(&path, &place)?;
        }
        if self.variant.spec.neurons != Neurons::Pruned && config.choose.unwrap_or_default() == Choose::Threshold {
            self.set_thresholds(store, asked)?;
        }
        Ok(Some(found))
    }
}

impl Run<'_> {
    /// Writes the checkpoint of `store`, whose attention computes what `config` says, with the directions of its keys beside it, if these are read; returns the model.
    fn write_attending(&self, store: &ParamStore, config: &SparsifyConfig) -> Result<TinyOnnForCausalLm> {
        let (attention, dir) = (config.attention, self.config.out.join(CHECKPOINT));
        self.write(store, &dir, ActiveMode::Routed, None, attention)?;
        let model = self.model(store)?;
        let Some(attention) = attention else { return Ok(model) };
        let model = model.with_attention(&attention)?;
        if !attention.reads_directions() {
            return Ok(model);
        }
        let (folder, length) = (ModelFolder::open(&dir)?, self.dense.cfg.max_position_embeddings.min(OF_DIRECTIONS));
        let (train, tokens) = (&self.tokens.train, config.calibration_tokens);
        let directions = KeyDirections::fit_on(&folder, model.lm(), train, length, tokens)?;
        directions.save(&dir)?;
        model.with_key_directions(directions.layers())
    }
}

fn damage_options(config: &SparsifyConfig) -> DamageOptions {
    let choose = config.choose.unwrap_or_default();
    DamageOptions { length: config.length, batch: config.batch, tokens: config.validation_tokens, choose }
}

/// How much the loss rises over the documents of a kind, or over all.
fn rise(dense: &Losses, sparse: &Losses, task: Option<usize>, seed: u64) -> Interval {
    let pairs = dense.by_document.iter().zip(&sparse.by_document);
    let own = pairs.filter(|(dense, _)| dense.tokens > 0.0 && task.is_none_or(|task| dense.task == task));
    let clusters: Vec<(f64, f64)> = own.map(|(dense, sparse)| (sparse.sum - dense.sum, dense.tokens)).collect();
    interval(&clusters, seed)
}
