//! The whole of Tiny-ONN on one dense model: decompose, image, route, differentiate, report.

use std::collections::BTreeMap;

use super::page::{self, Material};
use super::run::{Fits, LossesNow, Run};
use super::summary::{
    LossFigures, LosslessFigures, ModelFigures, RouterFigures, ScanFigures, SmkFigures, SourceFigures, Summary,
    UnitFigures,
};
use super::{Dense, Phase2Config, Text};
use crate::checkpoint::{self, ParamStore};
use crate::imaging::{Integral, Labels, NeuronScan, Partition, Score};
use crate::metrics::{self, MetricsLog, Stopwatch};
use crate::model::ActiveMode;
use crate::moe::{MoeSpec, RoutePer, variant};
use crate::train::smk::SmkOutcome;
use crate::train::{Losses, RouterAccuracy};
use crate::{Error, Result};

/// Runs everything and writes `summary.json`, `report.html` with its `figures/`, `metrics.jsonl` and the checkpoint `tiny-onn/` into
/// `config.out`.
///
/// It computes in f32. Checkpoints keep the types that the dense model is stored in; after SMK the weights are rounded to them
/// before they are measured, so that the figures are those of the checkpoint.
///
/// # Errors
/// A loss that is no finite number; a variant that is not known or does not fit; text, models and folders that cannot be used.
pub fn phase2(config: &Phase2Config) -> Result<Summary> {
    let variant = variant(&config.variant)?;
    config.validate(variant)?;
    let partition = Partition::choose(config.partition, &variant.spec, Partition::Sps)?;
    let device = config.device.open()?;
    std::fs::create_dir_all(&config.out).map_err(|e| Error::io(&config.out, e))?;
    let mut watch = Stopwatch::new();

    watch.stage("text");
    let text = Text::new(&config.data, config.seed)?;
    watch.stage("dense");
    let dense = Dense::obtain(config, &text, &device)?;
    let mut tokens = text.encode(&dense.tokenizer)?;
    tokens.test.truncate(config.test_tokens);
    let run = Run { config, variant, partition, device, text: &text, dense: &dense, tokens: &tokens };
    run.check_lengths()?;

    watch.stage("scan");
    let (scan, inputs) = run.scan()?;
    watch.stage("upcycle");
    let mut store = run.upcycle(&scan)?;
    let lossless = run.lossless(&store)?;
    let units = run.model(&store)?.neuron_experts()?;

    watch.stage("fit");
    let labels = run.labels(&scan, units.as_deref());
    let held = run.held_inputs()?;
    let fits = run.fit(&store, &labels, &inputs, &held)?;

    watch.stage("evaluate");
    let before = run.losses(&store, &labels)?;
    let sources = units.as_deref().map(|units| run.label_sources(&store, &scan, units)).transpose()?;
    watch.stage("smk");
    let metrics_path = config.out.join("metrics.jsonl");
    checkpoint::grow_deltas(&mut store, &dense.cfg, &variant.spec)?;
    let smk = run.smk(&store, &labels, &mut MetricsLog::create(&metrics_path)?)?;
    checkpoint::prune_deltas(&mut store)?;
    dense.round(&store)?;
    watch.stage("evaluate");
    let after = run.losses(&store, &labels)?;

    watch.stage("write");
    run.write(&store, &config.out.join("tiny-onn"), ActiveMode::Routed, Some(&labels))?;
    watch.stop();
    let experts = Integral::new(&scan, Score::Sps).by_unit(&run.pictured(units.as_ref()), variant.spec.experts());
    let label_sources = sources.unwrap_or_default();
    let results = Results { scan, store, units, lossless, labels, fits, before, label_sources, smk, after };
    let summary = results.summary(&run, &watch);
    summary.write(&config.out.join("summary.json"))?;
    let material = Material {
        summary: &summary,
        tasks: &text.tasks,
        spec: &variant.spec,
        experts,
        labels: &results.labels,
        accuracy: results.own_accuracy(&variant.spec),
        load_after: &results.after.load.load(),
        pretrain: dense.losses()?,
        smk: metrics::read(&metrics_path)?,
    };
    page::page(&material)?.write(&config.out)?;
    Ok(summary)
}

/// What a run found.
struct Results {
    scan: NeuronScan,
    store: ParamStore,
    /// The expert of each neuron by layer, if experts have neurons of their own.
    units: Option<Vec<Vec<u32>>>,
    lossless: LosslessFigures,
    labels: Labels,
    fits: Fits,
    before: LossesNow,
    label_sources: BTreeMap<String, SourceFigures>,
    smk: SmkOutcome,
    after: LossesNow,
}

impl Results {
    /// The routers' accuracy for the unit that the variant decides for.
    fn own_accuracy(&self, spec: &MoeSpec) -> &RouterAccuracy {
        match spec.route_per {
            RoutePer::Token | RoutePer::Task => &self.fits.token,
            RoutePer::Sequence { .. } | RoutePer::Segment { .. } => &self.fits.sequence,
        }
    }

    fn summary(&self, run: &Run<'_>, watch: &Stopwatch) -> Summary {
        let spec = &run.variant.spec;
        let own = UnitFigures::new(self.own_accuracy(spec));
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
            labels_by: run.labels_by(),
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
            label_sources: self.label_sources.clone(),
            active_share: match &self.units {
                Some(units) => self.before.load.active_share(units),
                None => self.before.load.expert_share(),
            },
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
            partition: self.units.is_some().then(|| run.partition.to_string()),
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
