//! From a dense model to one whose routed pass takes single neurons (`neurons = gate | pruned`, DESIGN §1) at a share of the MLPs' operations: shares by
//! layer from what each layer's neurons are worth ([`neuron_damage()`]), choices calibrated layer by layer on the sparse stream, what is left missing repaired
//! in closed form ([`RepairSums`](crate::train::RepairSums)), and, if asked, distilled from the dense model ([`distil()`]).
//!
//! Operations are counted in products of an MLP's three matrices, 3·I·d multiply-adds a token: a [`Cut`] of candidates c and neurons s costs (c + 2 s)/3.
//!
//! ```
//! use tinyonn::phases::sparsify::SparsifyLosses;
//! use tinyonn::phases::{Dense, DenseShape, RunConfig, Shares, SparsifyConfig, SparsifySummary, Text, Worth, sparsify, sparsify_from};
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
use super::prepared::Prepared;
use super::run::{LosslessFigures, METRICS, Run};
use super::sparse_layers::{Making, SparseLayers};
use super::sparsify_from::LeftBySparsify;
use super::text::CorpusFigures;
use super::{Dense, Shares, SparsifyConfig, Worth, summary};
use crate::checkpoint::ParamStore;
use crate::data::Sampler;
use crate::decoder::Pass;
use crate::imaging::neuron_damage::{cuts_of_a_fixed_set, cuts_of_a_gate};
use crate::imaging::{Choose, Cut, DamageOptions, cuts_by_layer, neuron_damage, sensitivity};
use crate::metrics::{Interval, MetricsLog, Stopwatch, interval};
use crate::model::ActiveMode;
use crate::moe::Neurons;
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
    /// The share of the MLPs' operations on the test split.
    pub operations: f64,
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
    config.check()?;
    let needed = || Error::setting("model", "is needed and was not given", "name a dense decoder");
    // What keeps a model from being read is said before all text is.
    Dense::open(config.model.as_ref().ok_or_else(needed)?)?;
    let of_run = config.run();
    let mut prepared = Prepared::with(&of_run, &mut watch, |text, device| Dense::obtain(&of_run, text, device, None))?;
    prepared.tokens.test.spread_documents(OF_A_DOCUMENT, config.test_tokens);
    prepared.tokens.test.beginnings(config.test_tokens);
    let run = prepared.run(&of_run);
    let (asked, made) = match left {
        Some(left) => left.layers(&run)?,
        None => run.made_sparse(config, &mut watch)?,
    };
    let SparseLayers { mut store, scored, repaired_on, ridge } = made;
    watch.stage("distil");
    let distilled_to = run.distilled(&mut store, config, &asked, checkpoints)?;
    watch.stage("verify");
    let lossless = run.lossless(&store)?;
    watch.stage("evaluate");
    let model = run.model(&store)?;
    let dense = run.evaluate(model.lm(), &Pass::all())?;
    let (sparse, load) = run.evaluate_load(&model, &prepared.tokens.test, &Pass::routed())?;
    watch.stage("write");
    run.write(&store, &of_run.out.join(CHECKPOINT), ActiveMode::Routed, None)?;
    watch.stop();
    let (cfg, neurons) = (&prepared.dense.cfg, load.neurons());
    let width = cfg.intermediate_size as f64;
    let rounded = |share: f64| (share * width).round().clamp(1.0, width) / width;
    let taken = asked.iter().zip(neurons).map(|(cut, taken)| match prepared.variant.spec.neurons {
        Neurons::Pruned => Cut { candidates: taken.unwrap_or(width) / width, neurons: taken.unwrap_or(width) / width },
        _ => Cut { candidates: rounded(cut.candidates), neurons: taken.unwrap_or(width) / width },
    });
    let taken: Vec<Cut> = taken.collect();
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
        calibrated_on: scored,
        repaired_on,
        ridge,
        operations: taken.iter().map(|cut| cut.operations()).sum::<f64>() / layers.max(1) as f64,
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

impl Run<'_> {
    /// What each layer is cut down to, and the layers so made.
    fn made_sparse(&self, config: &SparsifyConfig, watch: &mut Stopwatch) -> Result<(Vec<Cut>, SparseLayers)> {
        watch.stage("shares");
        let worth = self.worth(config)?;
        let cuts = self.cuts(config, worth.as_deref())?;
        watch.stage("calibrate");
        let layers = self.sparse_layers(&Making {
            cuts: &cuts,
            choose: config.choose.unwrap_or_default(),
            worth: worth.as_deref(),
            ridge: Some(config.ridge).filter(|ridge| *ridge > 0.0),
            bias: config.bias,
        })?;
        Ok((cuts, layers))
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
        if config.shares == Shares::Uniform {
            return Ok(vec![config.uniform(spec)?; layers]);
        }
        let cuts = match spec.neurons {
            Neurons::Pruned => cuts_of_a_fixed_set(),
            _ => cuts_of_a_gate(config.candidates),
        };
        let options = damage_options(config);
        let damage = neuron_damage(&self.dense_model()?, &self.tokens.validation, options, &cuts, worth)?;
        cuts_by_layer(&damage, config.active_share)
    }

    /// Distils the model in `store`, if any step was asked for.
    fn distilled(
        &self,
        store: &mut ParamStore,
        config: &SparsifyConfig,
        cuts: &[Cut],
        checkpoints: Option<&Checkpoints>,
    ) -> Result<Option<f64>> {
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
        if self.variant.spec.neurons == Neurons::Gate && config.choose.unwrap_or_default() == Choose::Threshold {
            self.set_thresholds(store, cuts)?;
        }
        Ok(Some(found))
    }
}

fn damage_options(config: &SparsifyConfig) -> DamageOptions {
    DamageOptions { length: config.length, batch: config.batch, tokens: config.validation_tokens }
}

/// How much the loss rises over the documents of a kind, or over all.
fn rise(dense: &Losses, sparse: &Losses, task: Option<usize>, seed: u64) -> Interval {
    let pairs = dense.by_document.iter().zip(&sparse.by_document);
    let own = pairs.filter(|(dense, _)| dense.tokens > 0.0 && task.is_none_or(|task| dense.task == task));
    let clusters: Vec<(f64, f64)> = own.map(|(dense, sparse)| (sparse.sum - dense.sum, dense.tokens)).collect();
    interval(&clusters, seed)
}
