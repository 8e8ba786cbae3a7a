//! Phase 1 on one dense model: image it, decompose it, label tasks, fit routers, everything else frozen; then ask what the image
//! knew (DESIGN §3, §4).

use std::collections::BTreeMap;

use super::RunConfig;
use super::continuation::Continuation;
use super::dense::CHECKPOINT;
use super::fitting::Fits;
use super::page::{self, Imaged, Material};
use super::pictures::LayerDensity;
use super::prepared::Prepared;
use super::run::{LossesNow, LosslessFigures, Run};
use super::summary::{self, Phase1Summary, SourceFigures};
use crate::Result;
use crate::checkpoint::ParamStore;
use crate::imaging::{Integral, Labels, NeuronScan, Score};
use crate::metrics::Stopwatch;
use crate::model::ActiveMode;
use crate::moe::{MoeSpec, RoutePer};
use crate::train::{Checkpoints, Losses, RouterAccuracy};

/// Runs phase 1 and its studies, and writes `summary.json`, `report.html` with its figures, `phase1.json` and the routed checkpoint
/// `tiny-onn/` into `config.out`: what [`super::phase2_from`] continues.
///
/// With `checkpoints` a pretraining that was cut off goes on.
///
/// # Errors
/// As of [`super::phase2()`].
pub fn phase1(config: &RunConfig, checkpoints: Option<&Checkpoints>) -> Result<Phase1Summary> {
    let mut watch = Stopwatch::new();
    let prepared = Prepared::new(config, &mut watch, checkpoints)?;
    let run = prepared.run(config);
    let done = run.phase1(&mut watch)?;
    watch.stage("frontier");
    let frontier = run.frontier(&done.store, &done.labels)?;
    watch.stage("causal");
    let causal = done.units.as_ref().map(|units| run.causal(&done.scan, units)).transpose()?.unwrap_or_default();
    watch.stage("write");
    run.write(&done.store, &config.out.join(CHECKPOINT), ActiveMode::Routed, Some(&done.labels))?;
    Continuation::new(config, &done.labels).write(&config.out)?;
    watch.stop();
    let mut figures = done.summary(&run, &watch);
    (figures.frontier, figures.causal) = (Some(frontier), causal);
    summary::write(&figures, &config.out.join("summary.json"))?;
    let material = Material {
        summary: &figures,
        smk: None,
        tasks: &prepared.text.tasks,
        spec: &prepared.variant.spec,
        imaged: Some(done.imaged(&run)),
        load_after: None,
        pretrain: prepared.dense.losses()?,
        smk_log: Vec::new(),
    };
    page::page(&material)?.write(&config.out)?;
    Ok(figures)
}

/// What phase 1 has found.
pub(super) struct Phase1 {
    pub(super) scan: NeuronScan,
    pub(super) store: ParamStore,
    /// The expert of each neuron by layer, if experts have neurons of their own.
    pub(super) units: Option<Vec<Vec<u32>>>,
    pub(super) lossless: LosslessFigures,
    pub(super) labels: Labels,
    pub(super) fits: Fits,
    pub(super) before: LossesNow,
    /// On the labels' own paths.
    pub(super) label_paths: Losses,
    pub(super) sources: BTreeMap<String, SourceFigures>,
    /// What routers see of some layers.
    pub(super) densities: Vec<LayerDensity>,
}

impl Run<'_> {
    /// Scan, partition, labels, fit, losses; `store` of the result holds the fitted routers.
    pub(super) fn phase1(&self, watch: &mut Stopwatch) -> Result<Phase1> {
        watch.stage("scan");
        let (scan, inputs) = self.scan()?;
        watch.stage("upcycle");
        let store = self.upcycle(&scan)?;
        let lossless = self.lossless(&store)?;
        let units = self.model(&store)?.neuron_experts()?;
        watch.stage("fit");
        let labels = self.labels(&scan, units.as_deref());
        let held = self.held_inputs()?;
        let rows = units.as_deref().map(|units| self.token_rows(&scan, units)).transpose()?.flatten();
        let fits = self.fit(&store, (&labels, rows.as_ref()), &inputs, &held)?;
        watch.stage("evaluate");
        let before = self.losses(&store, &labels)?;
        let label_paths = self.along_labels(&store, &labels)?;
        let sources = units.as_deref().map(|units| self.label_sources(&store, &scan, units)).transpose()?;
        Ok(Phase1 {
            densities: self.densities(&store, &inputs, &held)?,
            scan,
            store,
            units,
            lossless,
            labels,
            fits,
            before,
            label_paths,
            sources: sources.unwrap_or_default(),
        })
    }
}

impl Phase1 {
    /// The routers' accuracy for the unit that the variant decides for.
    pub(super) fn own_accuracy(&self, spec: &MoeSpec) -> &RouterAccuracy {
        match spec.route_per {
            RoutePer::Token | RoutePer::Task => &self.fits.token,
            RoutePer::Sequence { .. } | RoutePer::Segment { .. } => &self.fits.sequence,
        }
    }

    /// What the page shows of it.
    pub(super) fn imaged(&self, run: &Run<'_>) -> Imaged<'_> {
        let spec = &run.variant.spec;
        let units = run.pictured(self.units.as_ref());
        Imaged {
            experts: Integral::new(&self.scan, Score::Sps).by_unit(&units, spec.experts()),
            labels: &self.labels,
            accuracy: self.own_accuracy(spec),
            densities: &self.densities,
        }
    }
}
