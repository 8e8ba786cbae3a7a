//! The stages of both phases, each a method over what all of them read.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use super::inputs::{HeldInputs, Keeping, Split, SplitInputs};
use super::row_passes::Passed;
use super::text::{CorpusFigures, Tokens};
use super::{Dense, LabelUnit, RunConfig, Text};
use crate::checkpoint::{self, ModelFolder, ParamStore, TaskPath, TinyOnnConfig, TinyOnnFolder, is_tinyonn};
use crate::data::{Sampler, TokenSet};
use crate::decoder::{Active, CausalLm, FeedForward, Pass};
use crate::files::StagedFolder;
use crate::imaging::partition::{self, gate_rows};
use crate::imaging::{
    Integral, LabelBalance, Labels, NeuronScan, Partition, PartitionSources, RouterInputs, ScanOptions, coactivation,
    neuron_marks,
};
use crate::metrics::MetricsLog;
use crate::model::{ActiveMode, TinyOnnForCausalLm};
use crate::moe::{AttentionSpec, ExpertsAre, LoadFigures, LoadMeter, RoutePer, Variant};
use crate::ranks::Collective;
use crate::train::evaluate::EvaluateOptions;
use crate::train::evaluate::evaluate_load;
use crate::train::smk::SmkOutcome;
use crate::train::{Checkpoints, Losses, evaluate, rank_correlations, train_smk};
use crate::{Error, Result};

/// In the folder of a run, what SMK logged.
pub const METRICS: &str = "metrics.jsonl";
/// Draws of random labels, and dealings of labels to other tasks.
const DRAWS: u64 = 3;

/// What every stage reads.
///
/// ```
/// use tinyonn::decoder::Pass;
/// use tinyonn::metrics::Stopwatch;
/// use tinyonn::phases::{DenseShape, LosslessFigures, METRICS, Prepared, Run, RunConfig, active_share};
///
/// // So small that all of it takes a second.
/// # let dir = tempfile::tempdir()?;
/// # let tasks = [tinyonn::data::sorting(0, 12_000), tinyonn::data::arithmetic(0, 12_000)].map(|task| {
/// #     let path = dir.path().join(&task.name).with_extension("jsonl");
/// #     let lines = task.documents.iter().map(|d| serde_json::json!({ "text": d.text }).to_string());
/// #     std::fs::write(&path, lines.collect::<Vec<_>>().join("\n"))?;
/// #     Ok(format!("{}={}", task.name, path.display()))
/// # });
/// # let data = tasks.into_iter().collect::<Result<Vec<_>, std::io::Error>>()?;
/// # let (out, cache) = (dir.path().join("run"), dir.path().join("cache"));
/// let mut config = RunConfig { variant: "Mixtral".into(), data, out, cache, ..RunConfig::quick() };
/// config.dense = DenseShape { vocab_size: 300, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, ..config.dense };
/// (config.length, config.scan_tokens, config.test_tokens) = (32, 512, 256);
/// (config.pretrain.steps, config.router.steps, config.smk.steps) = (4, 4, 2);
/// let mut watch = Stopwatch::new();
/// let prepared = Prepared::new(&config, &mut watch, None)?;
/// let run: Run<'_> = prepared.run(&config);
///
/// // Stage by stage: the image, experts, the proof.
/// let (scan, inputs) = run.scan()?;
/// let owners = run.units(&scan)?;
/// assert_eq!((owners[0].len(), inputs.tokens.len(), run.scan_options().length), (48, 1, 32));
/// let store = run.upcycle(&scan)?;
/// let proof: LosslessFigures = run.lossless(&store)?;
/// assert!(proof.bit_equal);
///
/// // Labels, and routers fitted to them.
/// let labels = run.labels(&scan, Some(&owners));
/// let held = run.held_inputs()?;
/// let mut fitter = run.fitter(inputs.own(run.variant), held.validation.own(run.variant))?;
/// run.fit_own(&store, &mut fitter, (&labels, None), || run.model(&store))?;
///
/// // Losses on text that nothing was fitted to.
/// let losses = run.losses(&store, &labels)?;
/// let (model, routed) = (run.model(&store)?, Run::routed(&labels));
/// assert_eq!(run.evaluate(model.lm(), &routed)?.mean, losses.routed.mean);
/// assert_eq!(run.evaluate_on(&run.dense_model()?, &run.tokens.test, &Pass::all())?.mean, losses.all_active.mean);
/// let (_, load) = run.evaluate_load(&model, &run.tokens.test, &routed)?;
/// assert_eq!(active_share(&load, Some(&owners)), active_share(&losses.load, Some(&owners)));
/// assert!(run.along_labels(&store, &labels)?.mean > 0.0);
/// assert!(run.asked_load(&labels).max_over_mean() >= 1.0);
/// assert_eq!((run.draws().count(), METRICS), (3, "metrics.jsonl"));
/// // What routers see of more text, and of the training text with its scatter.
/// assert_eq!(run.inputs(model.lm(), &run.tokens.test, &Pass::all())?.tokens.len(), 1);
/// assert_eq!(run.own_inputs(model.lm(), &routed)?.tokens.len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Run<'a> {
    /// The settings.
    pub config: &'a RunConfig,
    /// The declared variant.
    pub variant: &'static Variant,
    /// How neurons are given to experts.
    pub partition: Partition,
    /// Where it computes.
    pub device: Device,
    /// The text.
    pub text: &'a Text,
    /// The dense model.
    pub dense: &'a Dense,
    /// The tokens of the text.
    pub tokens: &'a Tokens,
    /// Who trains with it, where there are several ranks: Surprise Min-K is shared, everything else each of them computes for itself.
    pub ranks: Option<&'a Arc<dyn Collective>>,
    /// What passes over its text have made before.
    pub passed: Passed<'a>,
}

/// Losses on the test split, at one time.
///
/// ```
/// use tinyonn::phases::LossesNow;
///
/// let price = |now: &LossesNow| now.routed.mean - now.all_active.mean; // of taking part of the experts
/// ```
#[non_exhaustive]
pub struct LossesNow {
    /// Every expert takes part.
    pub all_active: Losses,
    /// Routed.
    pub routed: Losses,
    /// What routing took.
    pub load: LoadMeter,
}

impl Run<'_> {
    /// Refuses what only a late stage would trip over.
    pub(super) fn check_lengths(&self) -> Result<()> {
        self.config.check_length(&self.dense.cfg)?;
        self.smk_batches().map(drop)
    }

    fn smk_batches(&self) -> Result<Sampler<'_>> {
        let c = self.config;
        Sampler::new(&self.tokens.train, c.length, c.smk.batch, c.seed ^ 1, &self.device)
    }

    /// The dense model, frozen.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn dense_model(&self) -> Result<CausalLm<crate::decoder::Mlp>> {
        CausalLm::dense(&self.dense.cfg, &self.dense.store.frozen())
    }

    /// The variant with the parameters in `store`, frozen.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn model(&self, store: &ParamStore) -> Result<TinyOnnForCausalLm> {
        TinyOnnForCausalLm::new(&self.dense.cfg, self.variant, &store.frozen())
    }

    /// Routed; a variant that takes its task's path is given those of `labels`.
    #[must_use]
    pub fn routed(labels: &Labels) -> Pass {
        Pass { paths: Some(Arc::new(labels.paths.clone())), ..Pass::routed() }
    }

    /// Every split is read at most this many rows a task.
    #[must_use]
    pub fn scan_options(&self) -> ScanOptions {
        let c = self.config;
        ScanOptions { length: c.length, batch: c.batch, tokens_per_task: c.scan_tokens }
    }

    fn targets(&self, set: &TokenSet) -> Vec<usize> {
        set.tasks.iter().map(|task| task.targets().min(self.config.scan_tokens)).collect()
    }

    fn keeping(&self) -> Keeping<'_> {
        Keeping { config: self.config, spec: &self.variant.spec, cfg: &self.dense.cfg }
    }

    /// One token in so many is kept for routers.
    pub(super) fn stride(&self, set: &TokenSet) -> usize {
        self.keeping().of(&self.targets(set), Split::HeldOut).tokens
    }

    /// One token in so many makes about `count` of those that are read.
    pub(super) fn stride_to(&self, set: &TokenSet, count: usize) -> usize {
        self.targets(set).iter().sum::<usize>().div_ceil(count)
    }

    /// Which rows of each split routers are given, in words.
    pub(super) fn thinnings(&self) -> String {
        let of = |set: &TokenSet, split| self.keeping().of(&self.targets(set), split);
        let (train, held) = (of(&self.tokens.train, Split::Fitted), [&self.tokens.validation, &self.tokens.test]);
        format!("{train:?} {:?}", held.map(|set| of(set, Split::HeldOut)))
    }

    /// Nothing seen yet of `set`.
    pub(super) fn router_inputs(&self, set: &TokenSet, split: Split) -> RouterInputs {
        RouterInputs::new(self.dense.cfg.num_hidden_layers, self.keeping().of(&self.targets(set), split))
    }

    /// The expert of each neuron by layer, as the run's partition has it, or the checkpoint that it began with.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn units(&self, scan: &NeuronScan) -> Result<Vec<Vec<u32>>> {
        if let Some(units) = self.dense.units()? {
            return Ok(units);
        }
        let integral = partition::profile(self.partition).map(|score| Integral::new(scan, score));
        self.assigned(integral.as_ref())
    }

    /// The same of a partition that needs no scan, whatever else it reads of the model and of text; `integral` is the scan's.
    pub(super) fn assigned(&self, integral: Option<&Integral>) -> Result<Vec<Vec<u32>>> {
        let (cfg, spec, partition) = (&self.dense.cfg, &self.variant.spec, self.partition);
        let shape = (cfg.num_hidden_layers, cfg.intermediate_size);
        let gate_rows = |layer| gate_rows(&self.dense.store, layer);
        let (set, options) = (&self.tokens.train, self.scan_options());
        let hidden = (partition == Partition::Coactivation)
            .then(|| coactivation(&self.dense_model()?, set, options, &self.device))
            .transpose()?;
        let marks = partition::reads_marks(partition, spec)
            .then(|| neuron_marks(&self.dense_model()?, set, options, &self.device))
            .transpose()?;
        let (coactivation, marks) = (hidden.as_deref(), marks.as_deref());
        let sources = PartitionSources { integral, gate_rows: Some(&gate_rows), coactivation, marks };
        partition::assign(partition, spec, shape, sources, self.config.seed)
    }

    /// The parameters of the variant, made of the dense model's, or those of the checkpoint that the run began with.
    ///
    /// # Errors
    /// A variant of more experts than the model has neurons; whatever the device reports.
    pub fn upcycle(&self, scan: &NeuronScan) -> Result<ParamStore> {
        if self.dense.units()?.is_some() {
            return Ok(self.dense.store.share());
        }
        checkpoint::upcycle(
            self.dense.store.share(),
            &self.dense.cfg,
            self.variant,
            &self.units(scan)?,
            self.config.seed,
        )
    }

    /// What pictures take for experts: the neurons of slices; of replicas, which all have the same, runs of neurons.
    pub(super) fn pictured(&self, units: Option<&Vec<Vec<u32>>>) -> Vec<Vec<u32>> {
        let (width, experts) = (self.dense.cfg.intermediate_size, self.variant.spec.experts());
        let runs = || (0..width).map(|i| (i * experts / width.max(experts)) as u32).collect();
        units.cloned().unwrap_or_else(|| vec![runs(); self.dense.cfg.num_hidden_layers])
    }

    /// Each task's path, as the run's score has it; `units[layer][i]` is the expert of neuron i, none of replicas.
    pub fn labels(&self, scan: &NeuronScan, units: Option<&[Vec<u32>]>) -> Labels {
        let integral = Integral::new(scan, self.config.labels);
        let integral = if self.config.contrast { integral.contrasted() } else { integral };
        let labels = match units {
            Some(units) => Labels::balanced(&integral, units, &self.variant.spec, self.config.label_balance),
            None => Labels::from_profiles(&integral, &self.variant.spec, self.config.seed),
        };
        if let Some(warning) = labels.statistics(&self.variant.spec).warning() {
            tracing::warn!("{warning}");
        }
        labels
    }

    /// What labels are made by, in a word.
    pub(super) fn labels_by(&self) -> String {
        let contrasted = if self.config.contrast { "_contrasted" } else { "" };
        let balanced = if self.config.label_balance == LabelBalance::Sinkhorn { "_sinkhorn" } else { "" };
        let of_tokens = if self.config.label == LabelUnit::Token { "_by_token" } else { "" };
        format!("{}{contrasted}{balanced}{of_tokens}", self.config.labels.name())
    }

    /// Router inputs of the held-out splits: forward passes only, unless they were made before.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn held_inputs(&self) -> Result<HeldInputs> {
        if let Some(made) = self.passed_held_inputs()? {
            return Ok(made);
        }
        let model = self.dense_model()?;
        let of = |set: &TokenSet| self.inputs(&model, set, &Pass::all());
        Ok(HeldInputs { validation: of(&self.tokens.validation)?, test: of(&self.tokens.test)? })
    }

    /// What routers see of `set`: in the pseudo-dense pass, or in a routed one.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn inputs<F: FeedForward>(&self, model: &CausalLm<F>, set: &TokenSet, pass: &Pass) -> Result<SplitInputs> {
        self.collect(model, set, pass, self.router_inputs(set, Split::HeldOut))
    }

    /// The same of the training split, with its scatter.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn own_inputs<F: FeedForward>(&self, model: &CausalLm<F>, pass: &Pass) -> Result<SplitInputs> {
        self.collect(model, &self.tokens.train, pass, self.router_inputs(&self.tokens.train, Split::Fitted))
    }

    fn collect<F: FeedForward>(
        &self,
        model: &CausalLm<F>,
        set: &TokenSet,
        pass: &Pass,
        mut inputs: RouterInputs,
    ) -> Result<SplitInputs> {
        inputs.collect(model, set, self.scan_options(), pass, &self.device)?;
        Ok(SplitInputs::of(inputs))
    }

    /// The seeds of what is drawn several times.
    pub fn draws(&self) -> impl Iterator<Item = u64> {
        let seed = self.config.seed;
        (0..DRAWS).map(move |at| seed.wrapping_mul(DRAWS).wrapping_add(at))
    }

    /// Losses on the test split.
    ///
    /// # Errors
    /// A loss that is no finite number; whatever the device reports.
    pub fn evaluate<F: FeedForward>(&self, model: &CausalLm<F>, pass: &Pass) -> Result<Losses> {
        self.evaluate_on(model, &self.tokens.test, pass)
    }

    /// Losses on `set`.
    ///
    /// # Errors
    /// As of [`evaluate`](Self::evaluate).
    pub fn evaluate_on<F: FeedForward>(&self, model: &CausalLm<F>, set: &TokenSet, pass: &Pass) -> Result<Losses> {
        evaluate(model, set, self.evaluate_options(), pass, &self.device)
    }

    pub(super) fn evaluate_options(&self) -> EvaluateOptions {
        let skip = self.variant.spec.open_positions();
        EvaluateOptions { length: self.config.length, batch: self.config.batch, skip }
    }

    /// As [`evaluate_on`](Self::evaluate_on), of a routed model, with what each expert was given to do.
    ///
    /// # Errors
    /// As of [`evaluate`](Self::evaluate).
    pub fn evaluate_load(
        &self,
        model: &TinyOnnForCausalLm,
        set: &TokenSet,
        pass: &Pass,
    ) -> Result<(Losses, LoadMeter)> {
        evaluate_load(model.lm(), set, self.evaluate_options(), pass, &self.device, self.variant.spec.experts())
    }

    /// Losses on the test split, and a warning of every layer whose load has collapsed.
    ///
    /// # Errors
    /// As of [`evaluate`](Self::evaluate).
    pub fn losses(&self, store: &ParamStore, labels: &Labels) -> Result<LossesNow> {
        let model = self.model(store)?;
        let (routed, load) = self.evaluate_load(&model, &self.tokens.test, &Self::routed(labels))?;
        let now = LossesNow { all_active: self.evaluate(model.lm(), &Pass::all())?, routed, load };
        self.warn_of(&now.load, labels);
        Ok(now)
    }

    /// Warns of every layer whose load has collapsed.
    pub(super) fn warn_of(&self, load: &LoadMeter, labels: &Labels) {
        let spec = &self.variant.spec;
        load.figures(spec).warnings(spec, &self.asked_load(labels)).iter().for_each(|w| tracing::warn!("{w}"));
    }

    /// Losses on the test split along the labels' own paths, the task known, no router between.
    ///
    /// # Errors
    /// As of [`evaluate`](Self::evaluate).
    pub fn along_labels(&self, store: &ParamStore, labels: &Labels) -> Result<Losses> {
        self.evaluate(self.model(store)?.lm(), &Self::on_paths(labels))
    }

    /// Along the paths that the labels name.
    pub(super) fn on_paths(labels: &Labels) -> Pass {
        Pass { active: Active::Paths(Arc::new(labels.paths.clone())), ..Pass::all() }
    }

    /// The load on the test split if every token took its task's path.
    #[must_use]
    pub fn asked_load(&self, labels: &Labels) -> LoadFigures {
        let tokens: Vec<f64> = self.tokens.test.tasks.iter().map(|task| task.targets() as f64).collect();
        LoadFigures::of_paths(&self.variant.spec, &labels.paths, &tokens)
    }

    /// Surprise Min-K. Its log lies beside its states, as the run's folder is begun anew after a kill, and is taken into that folder at the end.
    pub(super) fn smk(
        &self,
        store: &ParamStore,
        labels: &Labels,
        checkpoints: Option<&Checkpoints>,
    ) -> Result<SmkOutcome> {
        let c = self.config;
        let model = (store, &self.dense.cfg, self.variant);
        // Of several ranks the first alone writes where all read.
        let first = self.ranks.is_none_or(|ranks| ranks.rank() == 0);
        let dir = checkpoints.filter(|_| first).map_or(&c.out, |checkpoints| &checkpoints.dir);
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let (path, place) = (dir.join(METRICS), c.out.join(METRICS));
        let mut log = if checkpoints.is_some() { MetricsLog::open(&path) } else { MetricsLog::create(&path) }?;
        let (batches, held) = (self.smk_batches()?.among(self.ranks.cloned()), &self.tokens.validation);
        let text = (&batches, Some(held));
        let outcome = train_smk(model, &Self::routed(labels), text, &c.smk_in_dtype(), &mut log, checkpoints)?;
        if path != place {
            MetricsLog::copy(&path, &place)?;
        }
        Ok(outcome)
    }

    /// How nearly both forms of surprise rank the experts that a micro-batch of Surprise Min-K is routed to alike, mean over the layers where several
    /// are active; `None` without such a layer, and of replicas.
    pub(super) fn rank_correlation(&self, store: &ParamStore, labels: &Labels) -> Result<Option<f64>> {
        if self.variant.spec.experts_are == ExpertsAre::Replicate {
            return Ok(None);
        }
        let (batches, smk) = (self.smk_batches()?, &self.config.smk);
        let text = (&batches, smk.batch / smk.memory.micro_batches);
        let layers = rank_correlations((store, &self.dense.cfg, self.variant), &Self::routed(labels), text)?;
        let known: Vec<f64> = layers.into_iter().flatten().collect();
        Ok((!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64))
    }

    pub(super) fn corpus_figures(&self) -> CorpusFigures {
        let tokens_of = |task: usize| {
            [&self.tokens.train, &self.tokens.validation, &self.tokens.test].map(|set| set.tasks[task].tokens.len())
        };
        let tokens = self.text.tasks.iter().enumerate().map(|(task, name)| (name.clone(), tokens_of(task)));
        CorpusFigures { sha256: self.text.sha256.clone(), tokens: tokens.collect() }
    }

    /// Writes the checkpoint `dir`; `labels` are the paths of a variant that is routed by its task, `attention` what computes other pairs than it declares: of a
    /// checkpoint that it was made from, unless given.
    pub(super) fn write(
        &self,
        store: &ParamStore,
        dir: &Path,
        active: ActiveMode,
        labels: Option<&Labels>,
        attention: Option<AttentionSpec>,
    ) -> Result<()> {
        let path =
            |(task, experts): (&String, &Vec<Vec<u32>>)| TaskPath { task: task.clone(), experts: experts.clone() };
        let by_task = labels.filter(|_| self.variant.spec.route_per == RoutePer::Task);
        let paths = by_task.map(|labels| self.text.tasks.iter().zip(&labels.paths.experts).map(path).collect());
        let source = ModelFolder::open(&self.dense.dir)?;
        let own = TinyOnnConfig::new(self.variant, self.partition, self.config.seed);
        let from = is_tinyonn(source.config()).then(|| TinyOnnFolder::open(&self.dense.dir)).transpose()?;
        let from = from.as_ref().map(TinyOnnFolder::config);
        let partition = from.map_or(&own.partition, |from| &from.partition).clone();
        let attention = attention.or(from.and_then(|from| from.attention));
        let config = TinyOnnConfig { active, paths: paths.unwrap_or_default(), partition, attention, ..own };
        let staged = StagedFolder::replacing(dir)?;
        let (config, store) = (config.write_to(source.config()), self.dense.as_stored(store)?);
        ModelFolder::write_into(&staged, &config, &store, Some(&self.dense.dir))?;
        staged.publish()
    }
}

/// The share of a layer's neurons that a routed token uses; of replicas, the share of the experts.
#[must_use]
pub fn active_share(load: &LoadMeter, units: Option<&[Vec<u32>]>) -> f64 {
    units.map_or_else(|| load.expert_share(), |units| load.active_share(units))
}
