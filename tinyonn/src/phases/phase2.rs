//! The whole of Tiny-ONN on one dense model: decompose, image, route, differentiate, report.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};

use super::page::{self, Material};
use super::summary::{
    CorpusFigures, LossFigures, LosslessFigures, ModelFigures, RouterFigures, ScanFigures, SmkFigures, Summary,
    UnitFigures,
};
use super::text::Tokens;
use super::{Dense, Phase2Config, Text};
use crate::checkpoint::{self, ModelFolder, ParamStore, TinyOnnConfig, TinyOnnFolder};
use crate::data::{Sampler, TokenSet};
use crate::files::StagedFolder;
use crate::imaging::inputs::Samples;
use crate::imaging::{Integral, Labels, NeuronScan, Partition, RouterInputs, ScanOptions, Score, scan};
use crate::metrics::{self, MetricsLog, Stopwatch};
use crate::model::{ActiveMode, TinyOnnForCausalLm};
use crate::moe::{LoadMeter, RoutePer, Variant, variant};
use crate::qwen3::{Active, FeedForward, Qwen3ForCausalLm, RouteCtx};
use crate::train::evaluate::EvaluateOptions;
use crate::train::smk::SmkOutcome;
use crate::train::{Losses, RouterAccuracy, RouterFitter, evaluate, router_accuracy, train_smk};
use crate::{Error, Result};

/// Tokens a shared decision reads, where the variant does not say.
const FIRST: usize = 64;
/// Router inputs kept of each layer, about.
const SAMPLES: usize = 32_768;
/// Draws of random labels.
const DRAWS: u64 = 3;

/// Runs everything and writes `summary.json`, `report.html`, `metrics.jsonl` and the checkpoint `tiny-onn/` into `config.out`.
///
/// It computes in f32. Checkpoints keep the types that the dense model is stored in; after SMK the weights are rounded to them
/// before they are measured, so that the figures are those of the checkpoint.
///
/// # Errors
/// A loss that is no finite number; a variant that is not known or does not fit; text, models and folders that cannot be used.
pub fn phase2(config: &Phase2Config) -> Result<Summary> {
    let variant = variant(&config.variant)?;
    config.validate(variant)?;
    let device = config.device.open()?;
    std::fs::create_dir_all(&config.out).map_err(|e| Error::io(&config.out, e))?;
    let mut watch = Stopwatch::new();

    watch.stage("text");
    let text = Text::new(&config.data, config.seed)?;
    watch.stage("dense");
    let dense = Dense::obtain(config, &text, &device)?;
    let mut tokens = text.encode(&dense.tokenizer)?;
    tokens.test.truncate(config.test_tokens);
    let run = Run { config, variant, device, text: &text, dense: &dense, tokens: &tokens };
    run.check_lengths()?;

    watch.stage("scan");
    let (scan, inputs) = run.scan()?;
    watch.stage("upcycle");
    let store = run.upcycle(&scan)?;
    let lossless = run.lossless(&store)?;
    let units = run.model(&store)?.neuron_experts()?;

    watch.stage("fit");
    let labels = run.labels(&scan, &units);
    let held = run.held_inputs()?;
    let fits = run.fit(&store, &labels, &inputs, &held)?;

    watch.stage("evaluate");
    let before = run.losses(&store, &labels)?;
    watch.stage("smk");
    let metrics_path = config.out.join("metrics.jsonl");
    let smk = run.smk(&store, &labels, &mut MetricsLog::create(&metrics_path)?)?;
    dense.round(&store)?;
    watch.stage("evaluate");
    let after = run.losses(&store, &labels)?;

    watch.stage("write");
    run.write(&store, &config.out.join("tiny-onn"), ActiveMode::Routed)?;
    watch.stop();
    let experts = Integral::new(&scan, Score::Sps).by_unit(&units, variant.spec.experts());
    let results = Results { scan, store, units, lossless, labels, fits, before, smk, after };
    let summary = results.summary(&run, &watch);
    summary.write(&config.out.join("summary.json"))?;
    let material = Material {
        summary: &summary,
        tasks: &text.tasks,
        spec: &variant.spec,
        experts,
        labels: &results.labels,
        accuracy: &results.fits.token,
        load_after: &results.after.load.load(),
        pretrain: dense.losses()?,
        smk: metrics::read(&metrics_path)?,
    };
    page::page(&material)?.write(config.out.join("report.html"))?;
    Ok(summary)
}

/// What every stage reads.
struct Run<'a> {
    config: &'a Phase2Config,
    variant: &'static Variant,
    device: Device,
    text: &'a Text,
    dense: &'a Dense,
    tokens: &'a Tokens,
}

/// Router inputs of one split.
struct Inputs {
    tokens: Vec<Samples>,
    sequences: Vec<Samples>,
}

/// Held-out inputs.
struct Held {
    validation: Inputs,
    test: Inputs,
}

/// Fitted routers: accuracies on the test split, and the routed losses of the controls.
struct Fits {
    token: RouterAccuracy,
    sequence: RouterAccuracy,
    random: Vec<Losses>,
    permuted: Vec<Losses>,
}

/// Losses on the test split, at one time.
struct LossesNow {
    all_active: Losses,
    routed: Losses,
    /// On the labels' own paths.
    label_paths: Losses,
    /// What routing took.
    load: Arc<LoadMeter>,
}

/// What a run found.
struct Results {
    scan: NeuronScan,
    store: ParamStore,
    units: Vec<Vec<u32>>,
    lossless: LosslessFigures,
    labels: Labels,
    fits: Fits,
    before: LossesNow,
    smk: SmkOutcome,
    after: LossesNow,
}

impl Run<'_> {
    /// Refuses what only a late stage would trip over.
    fn check_lengths(&self) -> Result<()> {
        let (length, most) = (self.config.length, self.dense.cfg.max_position_embeddings);
        if length > most {
            let problem =
                format!("sequences of {length} tokens are longer than the {most} that the model was made for");
            return Err(Error::setting("length", problem, format!("use {most} or less")));
        }
        self.smk_batches().map(drop)
    }

    fn smk_batches(&self) -> Result<Sampler<'_>> {
        let c = self.config;
        Sampler::new(&self.tokens.train, c.length, c.smk.batch, c.seed ^ 1, &self.device)
    }

    fn model(&self, store: &ParamStore) -> Result<TinyOnnForCausalLm> {
        TinyOnnForCausalLm::new(&self.dense.cfg, self.variant, &store.builder(DType::F32, |_| false))
    }

    fn partition(&self) -> Partition {
        self.config.partition.or(self.variant.spec.partition).unwrap_or(Partition::Sps)
    }

    /// Routed; a variant that takes its task's path is given those of `labels`.
    fn routed(labels: &Labels) -> RouteCtx {
        RouteCtx { paths: Some(Arc::new(labels.paths.clone())), ..RouteCtx::routed() }
    }

    fn first(&self) -> usize {
        match self.variant.spec.open_positions() {
            0 => FIRST,
            read => read,
        }
    }

    /// Every split is read at most this many rows a task.
    fn scan_options(&self) -> ScanOptions {
        let c = self.config;
        ScanOptions { length: c.length, batch: c.batch, tokens_per_task: c.scan_tokens }
    }

    fn stride(&self, set: &TokenSet) -> usize {
        set.tasks.iter().map(|task| task.targets().min(self.config.scan_tokens)).sum::<usize>().div_ceil(SAMPLES)
    }

    fn router_inputs(&self, set: &TokenSet) -> Arc<RouterInputs> {
        Arc::new(RouterInputs::new(self.dense.cfg.num_hidden_layers, self.stride(set), self.first()))
    }

    fn scan(&self) -> Result<(NeuronScan, Inputs)> {
        let model = Qwen3ForCausalLm::dense(&self.dense.cfg, &self.dense.store.builder(DType::F32, |_| false))?;
        let inputs = self.router_inputs(&self.tokens.train);
        let scan = scan(&model, &self.tokens.train, self.scan_options(), &self.device, Some(&inputs))?;
        Ok((scan, Inputs { tokens: inputs.tokens(), sequences: inputs.sequences() }))
    }

    fn upcycle(&self, scan: &NeuronScan) -> Result<ParamStore> {
        let cfg = &self.dense.cfg;
        let partition = self.partition();
        let integral = partition.profile().map(|score| Integral::new(scan, score));
        let shape = (cfg.num_hidden_layers, cfg.intermediate_size);
        let units = partition.assign(&self.variant.spec, shape, integral.as_ref(), self.config.seed)?;
        checkpoint::upcycle(&self.dense.store, cfg, self.variant, &units, self.config.seed)
    }

    /// Writes the upcycled model, reads it back and compares logits with the dense model's on test text.
    fn lossless(&self, store: &ParamStore) -> Result<LosslessFigures> {
        let dir = self.config.out.join("upcycled");
        self.write(store, &dir, ActiveMode::All)?;
        let read = TinyOnnFolder::open(&dir)?.folder().load(&self.device, Some(DType::F32))?;
        let dense = Qwen3ForCausalLm::dense(&self.dense.cfg, &self.dense.store.builder(DType::F32, |_| false))?;
        let sparse = self.model(&read)?;
        let mut figures = LosslessFigures { max_abs_diff: 0.0, bit_equal: true };
        for task in 0..self.text.tasks.len() {
            let batches =
                self.tokens.test.batches_of_task(task, self.config.length, self.config.batch, &self.device)?;
            for batch in batches.take(2) {
                let ids = batch?.inputs;
                let a = dense.logits(&ids, &RouteCtx::all(), None)?.flatten_all()?.to_vec1::<f32>()?;
                let b = sparse.logits(&ids, &RouteCtx::all(), None)?.flatten_all()?.to_vec1::<f32>()?;
                for (a, b) in a.iter().zip(&b) {
                    let equal = a.to_bits() == b.to_bits();
                    // Where one of the two is no number the difference has no size.
                    let apart = if equal { 0.0 } else { f64::from((a - b).abs()) };
                    figures.max_abs_diff = figures.max_abs_diff.max(if apart.is_nan() { f64::INFINITY } else { apart });
                    figures.bit_equal &= equal;
                }
            }
        }
        Ok(figures)
    }

    fn labels(&self, scan: &NeuronScan, units: &[Vec<u32>]) -> Labels {
        let integral = Integral::new(scan, Score::Sps);
        let integral = if self.config.contrast { integral.contrasted() } else { integral };
        let labels = Labels::from_integral(&integral, units, &self.variant.spec);
        if labels.statistics(&self.variant.spec).distinct_paths == 1 {
            tracing::warn!("all tasks share one path: routing cannot tell them apart; try `contrast = true`");
        }
        labels
    }

    /// Router inputs of the held-out splits: forward passes only.
    fn held_inputs(&self) -> Result<Held> {
        let model = Qwen3ForCausalLm::dense(&self.dense.cfg, &self.dense.store.builder(DType::F32, |_| false))?;
        let of = |set: &TokenSet| -> Result<Inputs> {
            let inputs = self.router_inputs(set);
            inputs.collect(&model, set, self.scan_options(), &self.device)?;
            Ok(Inputs { tokens: inputs.tokens(), sequences: inputs.sequences() })
        };
        Ok(Held { validation: of(&self.tokens.validation)?, test: of(&self.tokens.test)? })
    }

    /// Fits routers to the controls' labels, then, last, to `labels`; `store` keeps those.
    fn fit(&self, store: &ParamStore, labels: &Labels, inputs: &Inputs, held: &Held) -> Result<Fits> {
        let spec = &self.variant.spec;
        let (tasks, layers) = (self.text.tasks.len(), self.dense.cfg.num_hidden_layers);
        let dim = spec.projection_width(self.dense.cfg.hidden_size);
        let by_token = RouterFitter::new(&inputs.tokens, &held.validation.tokens, tasks, dim)?;
        let by_sequence = RouterFitter::new(&inputs.sequences, &held.validation.sequences, tasks, dim)?;
        let (own, other) = match spec.route_per {
            RoutePer::Token | RoutePer::Task => (&by_token, &by_sequence),
            RoutePer::Sequence { .. } | RoutePer::Segment { .. } => (&by_sequence, &by_token),
        };
        // Routers without a closed form start where they are: each time anew, or controls would leave their mark.
        let routers = store.trainable(|name| name.contains("_router."));
        let start =
            routers.iter().map(|(_, var)| var.as_detached_tensor().copy()).collect::<candle_core::Result<Vec<_>>>()?;
        let fit = |fitter: &RouterFitter, labels: &Labels| {
            routers.iter().zip(&start).try_for_each(|((_, var), value)| var.set(value))?;
            fitter.fit((store, &self.dense.cfg, self.variant), labels, &self.config.router, self.config.seed)
        };
        let routed_under = |labels: &Labels| -> Result<Losses> {
            fit(own, labels)?;
            self.evaluate(self.model(store)?.lm(), &Self::routed(labels))
        };
        let draws = |draw: &dyn Fn(u64) -> Labels| -> Result<Vec<Losses>> {
            let seeds = (0..DRAWS).map(|at| self.config.seed.wrapping_mul(DRAWS).wrapping_add(at));
            seeds.map(|seed| routed_under(&draw(seed))).collect()
        };
        let random = draws(&|seed| Labels::random(tasks, layers, spec, seed))?;
        let permuted = draws(&|seed| labels.permuted(seed))?;
        let accuracy = |inputs: &Inputs, sequence: bool| {
            let model = self.model(store)?;
            let modules: Vec<_> = (0..layers).map(|layer| model.moe(layer).as_ref()).collect();
            router_accuracy(&modules, if sequence { &inputs.sequences } else { &inputs.tokens }, labels)
        };
        let by_own_sequence = spec.open_positions() > 0;
        fit(other, labels)?;
        let of_other = accuracy(&held.test, !by_own_sequence)?;
        fit(own, labels)?;
        let of_own = accuracy(&held.test, by_own_sequence)?;
        let (token, sequence) = if by_own_sequence { (of_other, of_own) } else { (of_own, of_other) };
        Ok(Fits { token, sequence, random, permuted })
    }

    fn evaluate<F: FeedForward>(&self, model: &Qwen3ForCausalLm<F>, ctx: &RouteCtx) -> Result<Losses> {
        let skip = self.variant.spec.open_positions();
        let options = EvaluateOptions { length: self.config.length, batch: self.config.batch, skip };
        evaluate(model, &self.tokens.test, options, ctx, &self.device)
    }

    fn losses(&self, store: &ParamStore, labels: &Labels) -> Result<LossesNow> {
        let model = self.model(store)?;
        let load = Arc::new(LoadMeter::new(self.dense.cfg.num_hidden_layers, self.variant.spec.experts()));
        let metered = RouteCtx { observer: Some(load.clone()), ..Self::routed(labels) };
        let on_paths = RouteCtx { active: Active::Paths(Arc::new(labels.paths.clone())), ..RouteCtx::default() };
        Ok(LossesNow {
            all_active: self.evaluate(model.lm(), &RouteCtx::all())?,
            routed: self.evaluate(model.lm(), &metered)?,
            label_paths: self.evaluate(model.lm(), &on_paths)?,
            load,
        })
    }

    fn smk(&self, store: &ParamStore, labels: &Labels, log: &mut MetricsLog) -> Result<SmkOutcome> {
        let c = self.config;
        let model = (store, &self.dense.cfg, self.variant);
        train_smk(model, &Self::routed(labels), &self.smk_batches()?, &c.smk, log)
    }

    fn corpus_figures(&self) -> CorpusFigures {
        let tokens_of = |task: usize| {
            [&self.tokens.train, &self.tokens.validation, &self.tokens.test].map(|set| set.tasks[task].tokens.len())
        };
        let tokens = self.text.tasks.iter().enumerate().map(|(task, name)| (name.clone(), tokens_of(task)));
        CorpusFigures { sha256: self.text.sha256.clone(), tokens: tokens.collect() }
    }

    fn write(&self, store: &ParamStore, dir: &Path, active: ActiveMode) -> Result<()> {
        let config = TinyOnnConfig { active, ..TinyOnnConfig::new(self.variant, self.partition(), self.config.seed) };
        let source = ModelFolder::open(&self.dense.dir)?;
        let staged = StagedFolder::replacing(dir)?;
        let (config, store) = (config.write_to(source.config()), self.dense.as_stored(store)?);
        ModelFolder::write_into(&staged, &config, &store, Some(&self.dense.dir))?;
        staged.publish()
    }
}

impl Results {
    fn summary(&self, run: &Run<'_>, watch: &Stopwatch) -> Summary {
        let spec = &run.variant.spec;
        let own = match spec.route_per {
            RoutePer::Token | RoutePer::Task => &self.fits.token,
            RoutePer::Sequence { .. } | RoutePer::Segment { .. } => &self.fits.sequence,
        };
        let own = UnitFigures::new(own);
        Summary {
            variant: spec.name.to_string(),
            seed: run.config.seed,
            corpus: run.corpus_figures(),
            model: self.model_figures(run),
            lossless: self.lossless,
            scan: ScanFigures {
                gradient_nonzero_share: self.scan.gradient_nonzero_share(),
                tokens: self.scan.tokens.iter().sum(),
            },
            labels: self.labels.statistics(spec),
            router: RouterFigures {
                group_accuracy: own.group_accuracy,
                expert_accuracy: own.expert_accuracy,
                chance: own.chance,
                expert_chance: own.expert_chance,
                token: UnitFigures::new(&self.fits.token),
                sequence: UnitFigures::new(&self.fits.sequence),
            },
            loss: self.loss_figures(),
            loss_by_task: self.losses_by_task(&run.text.tasks),
            random_labels: self.fits.random.iter().map(|losses| losses.mean).collect(),
            permuted_labels: self.fits.permuted.iter().map(|losses| losses.mean).collect(),
            active_share: self.before.load.active_share(&self.units),
            smk: SmkFigures { updated_share: self.smk.updated_share },
            seconds: watch.seconds().into_iter().map(|(stage, seconds)| (stage, seconds.into())).collect(),
        }
    }

    fn model_figures(&self, run: &Run<'_>) -> ModelFigures {
        let elements = |name: &str| self.store.get(name).map_or(0, |var| var.elem_count());
        ModelFigures {
            parameters: run.dense.cfg.parameters(),
            router_parameters: self.store.names().filter(|name| name.contains("_router.")).map(elements).sum(),
            layers: run.dense.cfg.num_hidden_layers,
            experts: run.variant.spec.experts(),
            partition: run.partition().to_string(),
        }
    }

    fn loss_figures(&self) -> LossFigures {
        LossFigures {
            dense: self.before.all_active.mean,
            routed_before: self.before.routed.mean,
            label_paths: self.before.label_paths.mean,
            routed_random_labels: mean(&self.fits.random),
            routed_permuted_labels: mean(&self.fits.permuted),
            routed_after: self.after.routed.mean,
            all_active_after: self.after.all_active.mean,
        }
    }

    fn losses_by_task(&self, tasks: &[String]) -> BTreeMap<String, BTreeMap<String, f64>> {
        let by_task = |losses: &Losses| tasks.iter().cloned().zip(losses.by_task.iter().copied()).collect();
        let named = [
            ("dense", &self.before.all_active),
            ("routed_before", &self.before.routed),
            ("label_paths", &self.before.label_paths),
            ("routed_after", &self.after.routed),
            ("all_active_after", &self.after.all_active),
        ];
        let drawn = |draws: &[Losses]| -> BTreeMap<String, f64> {
            let mean = |task: usize| draws.iter().map(|losses| losses.by_task[task]).sum::<f64>() / draws.len() as f64;
            tasks.iter().cloned().enumerate().map(|(task, name)| (name, mean(task))).collect()
        };
        let named = named.into_iter().map(|(name, losses)| (name.to_string(), by_task(losses)));
        let controls = [("routed_random_labels", &self.fits.random), ("routed_permuted_labels", &self.fits.permuted)];
        named.chain(controls.map(|(name, draws)| (name.to_string(), drawn(draws)))).collect()
    }
}

/// The mean over draws.
fn mean(draws: &[Losses]) -> f64 {
    draws.iter().map(|losses| losses.mean).sum::<f64>() / draws.len() as f64
}
