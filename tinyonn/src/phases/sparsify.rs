//! From a dense model to one whose routed pass takes single neurons (`neurons = gate | pruned`, DESIGN §1) at a share of the MLP's operations,
//! calibrated on text and, if asked, repaired in closed form ([`RepairSums`]), nothing trained.
//!
//! Operations are counted in products of an MLP's three matrices, 3·I·d multiply-adds a token. Under `gate` all rows of W_g are computed, and of W_u
//! and W_d those of the share s of neurons that are taken: (1 + 2s)/3. Under `pruned`: s.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::dense::CHECKPOINT;
use super::prepared::Prepared;
use super::run::{LosslessFigures, Run};
use super::text::CorpusFigures;
use super::{Dense, DeviceName, RunConfig, summary};
use crate::checkpoint::{self, ParamStore, mixture_prefix};
use crate::decoder::{Decoder, FeedForward as _, Mlp, Pass};
use crate::imaging::inputs::spread;
use crate::imaging::neuron_calibration::{gate_parameters, pruned_parameters};
use crate::imaging::partition;
use crate::imaging::{Choose, Partition, PartitionSources, calibrate_gate, calibrate_pruned};
use crate::metrics::{Interval, Stopwatch, interval};
use crate::model::ActiveMode;
use crate::moe::{MoeSpec, Neurons, REPAIR_BIAS, REPAIR_DOWN};
use crate::train::{Losses, RepairSums};
use crate::{Error, Result};

/// What is made sparse, and how. As TOML, every key is optional and unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SparsifyConfig {
    /// A dense decoder: a Hugging Face folder or a GGUF file.
    pub model: Option<PathBuf>,
    /// A declared variant that chooses neurons, without a hierarchy.
    pub variant: String,
    /// The share of the MLP's counted operations that a token takes.
    pub active_share: f64,
    /// How the gate's choice is bounded.
    pub choose: Choose,
    /// λ of the repair in closed form, which wants 100,000 tokens or more of calibration text (on 14,000 it made SmolLM2 worse); 0 leaves layers as they are.
    pub ridge: f64,
    /// Kinds of text as `NAME=PATH`; without any, the default text.
    pub data: Vec<String>,
    /// Decides everything random.
    pub seed: u64,
    /// Where it computes.
    pub device: DeviceName,
    /// The folder of the results.
    pub out: PathBuf,
    /// Tokens a sequence.
    pub length: usize,
    /// Sequences a batch.
    pub batch: usize,
    /// Training tokens of each kind that it is calibrated on, at most.
    pub calibration_tokens: usize,
    /// Test tokens of each kind that losses are taken over, at most.
    pub test_tokens: usize,
}

impl Default for SparsifyConfig {
    fn default() -> Self {
        let run = RunConfig::default();
        Self {
            model: None,
            variant: "OwnGate".into(),
            active_share: 0.5,
            choose: Choose::Threshold,
            ridge: 0.0,
            data: Vec::new(),
            seed: 0,
            device: run.device,
            out: "runs/sparsify".into(),
            length: run.length,
            batch: run.batch,
            calibration_tokens: 16_384,
            test_tokens: run.test_tokens,
        }
    }
}

impl SparsifyConfig {
    /// The settings of the stages that phases have, too.
    fn run(&self) -> RunConfig {
        let Self { model, variant, data, seed, device, out, length, batch, .. } = self.clone();
        RunConfig {
            model,
            variant,
            data,
            seed,
            device,
            out,
            length,
            batch,
            scan_tokens: self.calibration_tokens,
            test_tokens: self.test_tokens,
            partition: Some(Partition::Contiguous),
            ..RunConfig::default()
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SparsifySummary {
    /// The declared variant.
    pub variant: String,
    /// How the gate's choice is bounded; a fixed set has no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choose: Option<Choose>,
    /// The seed.
    pub seed: u64,
    /// The text.
    pub corpus: CorpusFigures,
    /// Parameters of the dense model.
    pub parameters: usize,
    /// All active, against the dense model.
    pub lossless: LosslessFigures,
    /// Tokens that the choice of each layer was calibrated by.
    pub calibrated_on: usize,
    /// Tokens that each layer was repaired on; 0: there is no repair.
    pub repaired_on: usize,
    /// The share of the neurons that was asked for.
    pub neurons_asked: f64,
    /// The share that tokens of the test split take, mean over layers.
    pub neurons: f64,
    /// The same by layer.
    pub neurons_by_layer: Vec<f64>,
    /// The share of the MLP's operations that was asked for.
    pub operations_asked: f64,
    /// The share on the test split.
    pub operations: f64,
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

/// The share of the MLP's operations at a share of its neurons.
///
/// ```
/// use tinyonn::gallery::{OwnGate, Pruned};
/// use tinyonn::phases::sparsify::operations;
///
/// assert_eq!(operations(&OwnGate::SPEC, 0.25), 0.5);
/// assert_eq!(operations(&Pruned::SPEC, 0.25), 0.25);
/// ```
#[must_use]
pub fn operations(spec: &MoeSpec, neurons: f64) -> f64 {
    match spec.neurons {
        Neurons::Gate => (1.0 + 2.0 * neurons) / 3.0,
        Neurons::Pruned | Neurons::All => neurons,
    }
}

/// The share of the neurons that takes so large a share of the operations.
///
/// # Errors
/// A variant that chooses no neurons, or only within experts that routers choose; a share that it cannot take.
pub fn neurons_at(spec: &MoeSpec, operations: f64) -> Result<f64> {
    let variant = |problem: &str, remedy: &str| Err(Error::variant(spec.name.clone(), problem, remedy));
    if spec.neurons == Neurons::All {
        return variant("it chooses no neurons", "declare `neurons = gate` or `neurons = pruned`, such as OwnGate");
    }
    if !spec.levels.is_empty() {
        let problem = "it has a hierarchy, whose routers are not fitted here";
        return variant(problem, "declare `neurons = gate` without groups, experts or levels");
    }
    let neurons = if spec.neurons == Neurons::Gate { (3.0 * operations - 1.0) / 2.0 } else { operations };
    if neurons > 0.0 && neurons <= 1.0 {
        return Ok(neurons);
    }
    let remedy = match spec.neurons {
        Neurons::Gate => "use more than 0.334, the gate rows of all neurons, and at most 1",
        _ => "use more than 0, and at most 1",
    };
    Err(Error::setting("active_share", format!("is {operations}, which leaves no share of the neurons"), remedy))
}

/// Calibrates the variant of `config` on its text, measures it, and writes `summary.json` and the checkpoint `tiny-onn/`, whose routed pass takes
/// the share, into `config.out`.
///
/// # Errors
/// As of [`neurons_at`]; text, models and folders that cannot be used; a loss that is no finite number.
pub fn sparsify(config: &SparsifyConfig) -> Result<SparsifySummary> {
    let mut watch = Stopwatch::new();
    let share = neurons_at(&crate::moe::variant(&config.variant)?.spec, config.active_share)?;
    if !(config.ridge >= 0.0 && config.ridge.is_finite()) {
        return Err(Error::setting("ridge", format!("is {}", config.ridge), "use 0, which repairs nothing, or more"));
    }
    let needed = || Error::setting("model", "is needed and was not given", "name a dense decoder");
    // What keeps a model from being read is said before all text is.
    Dense::open(config.model.as_ref().ok_or_else(needed)?)?;
    let of_run = config.run();
    let prepared = Prepared::with(&of_run, &mut watch, |text, device| Dense::obtain(&of_run, text, device, None))?;
    let run = prepared.run(&of_run);
    watch.stage("calibrate");
    let ridge = Some(config.ridge).filter(|ridge| *ridge > 0.0);
    let Calibrated { store, scored, repaired_on } = run.calibrated(share, config.choose, ridge)?;
    watch.stage("verify");
    let lossless = run.lossless(&store)?;
    watch.stage("evaluate");
    let model = run.model(&store)?;
    let dense = run.evaluate(model.lm(), &Pass::all())?;
    let (sparse, load) = run.evaluate_load(&model, &prepared.tokens.test, &Pass::routed())?;
    watch.stage("write");
    run.write(&store, &of_run.out.join(CHECKPOINT), ActiveMode::Routed, None)?;
    watch.stop();
    let width = prepared.dense.cfg.intermediate_size as f64;
    let by_layer: Vec<f64> = load.neurons().iter().map(|taken| taken.unwrap_or(width) / width).collect();
    let neurons = by_layer.iter().sum::<f64>() / by_layer.len().max(1) as f64;
    let spec = &prepared.variant.spec;
    let tasks = prepared.text.tasks.iter().cloned().enumerate();
    let rise_by_task: BTreeMap<String, Interval> =
        tasks.clone().map(|(task, name)| (name, rise(&dense, &sparse, Some(task), config.seed))).collect();
    let mean_rise = sparse.by_task.iter().zip(&dense.by_task).map(|(sparse, dense)| sparse - dense).sum::<f64>()
        / dense.by_task.len().max(1) as f64;
    let summary = SparsifySummary {
        variant: spec.name.to_string(),
        choose: (spec.neurons == Neurons::Gate).then_some(config.choose),
        seed: config.seed,
        corpus: run.corpus_figures(),
        parameters: prepared.dense.cfg.parameters(),
        lossless,
        calibrated_on: scored,
        repaired_on,
        neurons_asked: share,
        neurons,
        neurons_by_layer: by_layer,
        operations_asked: config.active_share,
        operations: operations(spec, neurons),
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

/// Tokens of each layer that a choice is calibrated by, at most: every one of them has a score of every neuron.
const SCORED: usize = 16_384;

/// What was calibrated.
struct Calibrated {
    store: ParamStore,
    /// Tokens that the choice of each layer was calibrated by.
    scored: usize,
    /// Tokens that each layer was repaired on.
    repaired_on: usize,
}

/// A text between two layers: a batch of whole sequences each, `[B, T, d]`.
struct Streams {
    /// As the dense model has it; none without a repair, which alone asks for it.
    dense: Vec<Tensor>,
    /// As the sparse layers so far have it.
    sparse: Vec<Tensor>,
    /// Of each batch, the rows of `[B·T]` that have a target, u32.
    rows: Vec<Tensor>,
}

impl Run<'_> {
    /// The upcycled model, layer by layer with its choice of neurons calibrated to `share` and then repaired (λ = `ridge`, if any), each on what the
    /// layers below it, sparse, make of the training text.
    fn calibrated(&self, share: f64, choose: Choose, ridge: Option<f64>) -> Result<Calibrated> {
        let (cfg, spec) = (&self.dense.cfg, &self.variant.spec);
        let shape = (cfg.num_hidden_layers, cfg.intermediate_size);
        let owners = partition::assign(self.partition, spec, shape, PartitionSources::default(), self.config.seed)?;
        let mut store = checkpoint::upcycle(self.dense.store.share(), cfg, self.variant, &owners, self.config.seed)?;
        let dense = self.dense_model()?;
        let mut streams = self.streams(dense.model(), ridge.is_some())?;
        let (mut scored, mut repaired_on) = (0, 0);
        for layer in 0..cfg.num_hidden_layers {
            let prefix = mixture_prefix(layer);
            let moe =
                |store: &ParamStore| (self.variant.build)(cfg, layer, store.builder(DType::F32, |_| false).pp(&prefix));
            let behind = |streams: &[Tensor]| -> Result<Vec<[Tensor; 2]>> {
                streams.iter().map(|x| dense.model().attend(layer, x)).collect()
            };
            let (from_dense, from_sparse) = (behind(&streams.dense)?, behind(&std::mem::take(&mut streams.sparse))?);
            let x_nd = scored_rows(&from_sparse, &streams.rows)?;
            scored = x_nd.dim(0)?;
            let layer_now = moe(&store)?;
            let parameters = match spec.neurons {
                Neurons::Pruned => {
                    pruned_parameters(&calibrate_pruned(&layer_now, &x_nd, share)?, &self.device)?.to_vec()
                }
                _ => gate_parameters(&calibrate_gate(&layer_now, &x_nd, share, choose)?, &self.device)?.to_vec(),
            };
            for (name, value) in parameters {
                store.set(&format!("{prefix}.{name}"), &value)?;
            }
            let chooses = moe(&store)?;
            let mlp = dense.model().layers()[layer].mlp();
            let mut sums = RepairSums::new(cfg.intermediate_size);
            let mut hidden = Vec::new();
            for (at, [s, normed_s]) in from_sparse.iter().enumerate() {
                let [y, h_ti] = chooses.chosen(normed_s)?;
                let sparse = (s + y)?;
                if let Some([r, normed_r]) = from_dense.get(at) {
                    let whole = (r + mlp.forward(normed_r, &Pass::all())?.0)?;
                    let (missing_td, rows) = ((&whole - &sparse)?.flatten_to(1)?, &streams.rows[at]);
                    sums.push(&h_ti.index_select(rows, 0)?, &missing_td.index_select(rows, 0)?)?;
                    hidden.push(h_ti);
                    streams.dense[at] = whole;
                }
                streams.sparse.push(sparse);
            }
            if let Some(ridge) = ridge {
                repaired_on = streams.rows.iter().map(Tensor::elem_count).sum();
                let repair = sums.solve(ridge, &self.device)?;
                for (sparse, h_ti) in streams.sparse.iter_mut().zip(hidden) {
                    let more = h_ti.matmul(&repair.down_id)?.broadcast_add(&repair.bias_d)?;
                    *sparse = (&*sparse + more.reshape(sparse.shape())?)?;
                }
                store.insert(format!("{prefix}.{REPAIR_DOWN}"), repair.down_id)?;
                store.insert(format!("{prefix}.{REPAIR_BIAS}"), repair.bias_d)?;
            }
        }
        Ok(Calibrated { store, scored, repaired_on })
    }

    /// The training text, as far as it is read, before the first layer.
    fn streams(&self, decoder: &Decoder<Mlp>, both: bool) -> Result<Streams> {
        let set = &self.scan_options().part(&self.tokens.train);
        let (mut sparse, mut rows) = (Vec::new(), Vec::new());
        for task in 0..set.tasks.len() {
            for batch in set.batches_of_task(task, self.config.length, self.config.batch, &self.device)? {
                let batch = batch?;
                let own: Vec<u32> =
                    batch.counted.iter().zip(0..).filter(|(counted, _)| **counted).map(|(_, at)| at).collect();
                let count = own.len();
                rows.push(Tensor::from_vec(own, count, &self.device)?);
                sparse.push(decoder.embed(&batch.inputs)?);
            }
        }
        Ok(Streams { dense: if both { sparse.clone() } else { Vec::new() }, sparse, rows })
    }
}

/// What a feed-forward sees of the tokens that have a target, at most [`SCORED`] of them, evenly spread: `[n, d]`.
fn scored_rows(behind: &[[Tensor; 2]], rows: &[Tensor]) -> Result<Tensor> {
    let own = behind.iter().zip(rows).map(|([_, normed], rows)| normed.flatten_to(1)?.index_select(rows, 0));
    let all_nd = Tensor::cat(&own.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
    let count = all_nd.dim(0)?;
    let kept: Vec<u32> = spread(count, SCORED).map(|at| at as u32).collect();
    if kept.len() == count { Ok(all_nd) } else { Ok(all_nd.index_select(&Tensor::new(kept, all_nd.device())?, 0)?) }
}

/// How much the loss rises over the documents of a kind, or over all.
fn rise(dense: &Losses, sparse: &Losses, task: Option<usize>, seed: u64) -> Interval {
    let pairs = dense.by_document.iter().zip(&sparse.by_document);
    let own = pairs.filter(|(dense, _)| dense.tokens > 0.0 && task.is_none_or(|task| dense.task == task));
    let clusters: Vec<(f64, f64)> = own.map(|(dense, sparse)| (sparse.sum - dense.sum, dense.tokens)).collect();
    interval(&clusters, seed)
}
