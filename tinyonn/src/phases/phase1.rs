//! Phase 1 on one dense model: image it, decompose it, label tasks, fit routers, everything else frozen; then ask what the image
//! knew (DESIGN §3, §4).
//!
//! ```
//! use tinyonn::metrics::Stopwatch;
//! use tinyonn::phases::{DenseShape, Fits, HeldInputs, LeftByPhase1, LossesNow, Phase1, Phase1Summary, Phase2, Prepared, RunConfig, SplitInputs, phase1, phase2_from};
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
//! // By one call: figures, and a folder to go on from.
//! let summary: Phase1Summary = phase1(&config, None)?;
//! assert!(summary.lossless.bit_equal && config.out.join("phase1.json").is_file());
//! let later = RunConfig { out: dir.path().join("later"), ..RunConfig::of_phase1(&config.out)? };
//! assert_eq!(phase2_from(&config.out, &later, None)?.phase1.loss.dense, summary.loss.dense);
//!
//! // By its stages, for who asks more of it.
//! config.out = dir.path().join("staged");
//! let mut watch = Stopwatch::new();
//! let prepared = Prepared::new(&config, &mut watch, None)?;
//! let run = prepared.run(&config);
//! let mut found: Phase1 = run.phase1(&mut watch)?;
//! let (fits, held, now): (&Fits, &HeldInputs, &LossesNow) = (&found.fits, &found.held, &found.before);
//! assert_eq!((fits.random.len(), now.routed.mean), (3, summary.loss.routed_before));
//! let seen: &SplitInputs = &held.test;
//! assert!(seen.bytes() > 0);
//! assert_eq!(found.image(&run)[0][0].len(), 8); // ∫SPS of each expert
//! assert!(found.own_accuracy(&run.variant.spec).mean(0) >= 0.0);
//! assert_eq!(found.summary(&run, &watch).loss.dense, summary.loss.dense);
//! run.write_phase1(&found)?;
//! found.free_inputs();
//! assert!(found.inputs.tokens.is_empty());
//!
//! // And the second phase behind it.
//! let after: Phase2 = run.phase2(&mut found.store, &found.labels, &mut watch, None)?;
//! assert!(after.figures(&run).routed > 0.0);
//!
//! // What another program takes from the folder of a first phase.
//! let from = dir.path().join("run");
//! let left = LeftByPhase1::read(&from, &later)?;
//! let (again, store) = left.prepare(&from, &later, &mut watch)?;
//! assert_eq!((again.tokens.test.tokens(), store.is_empty()), (prepared.tokens.test.tokens(), false));
//! assert_eq!(left.summary_with(&watch).loss.dense, summary.loss.dense);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use super::RunConfig;
use super::continuation::Continuation;
use super::dense::CHECKPOINT;
use super::fitting::{Fits, ToFit};
use super::inputs::{HeldInputs, SplitInputs};
use super::loss_passes::Measured;
use super::lossless::LosslessFigures;
use super::plan::Stages;
use super::prepared::Prepared;
use super::room::check_room;
use super::run::{LossesNow, Run};
use super::summary::{self, Phase1Summary};
use crate::Result;
use crate::checkpoint::ParamStore;
use crate::imaging::{Integral, Labels, NeuronScan, Score};
use crate::metrics::Stopwatch;
use crate::model::ActiveMode;
use crate::moe::{MoeSpec, RoutePer};
use crate::train::{Checkpoints, Losses, RouterAccuracy};

/// Runs phase 1 and writes `summary.json`, `phase1.json` and the routed checkpoint `tiny-onn/` into `config.out`: what
/// [`super::phase2_from`] continues.
///
/// With `checkpoints` a pretraining that was cut off goes on.
///
/// # Errors
/// As of [`super::phase2()`].
pub fn phase1(config: &RunConfig, checkpoints: Option<&Checkpoints>) -> Result<Phase1Summary> {
    check_room(config, Stages::Phase1)?;
    let mut watch = Stopwatch::new();
    let prepared = Prepared::new(config, &mut watch, checkpoints)?;
    let run = prepared.run(config);
    let found = run.phase1(&mut watch)?;
    watch.stage("write");
    run.write_phase1(&found)?;
    watch.stop();
    let figures = found.summary(&run, &watch);
    summary::write(&figures, &config.out.join("summary.json"))?;
    Ok(figures)
}

/// What phase 1 has found.
pub struct Phase1 {
    /// The image of the dense model's neurons.
    pub scan: NeuronScan,
    /// The upcycled model with its fitted routers.
    pub store: ParamStore,
    /// The expert of each neuron by layer, if experts have neurons of their own.
    pub units: Option<Vec<Vec<u32>>>,
    /// The upcycled model against the dense one.
    pub lossless: LosslessFigures,
    /// Each task's path.
    pub labels: Labels,
    /// What routers see of the training text.
    pub inputs: SplitInputs,
    /// What they see of held-out text.
    pub held: HeldInputs,
    /// The fits of routers to the labels and to the controls'.
    pub fits: Fits,
    /// Before SMK.
    pub before: LossesNow,
    /// On the labels' own paths.
    pub label_paths: Losses,
}

impl Run<'_> {
    /// Scan, partition, labels, fit, losses; `store` of the result holds the fitted routers.
    ///
    /// # Errors
    /// As of [`super::phase1()`].
    pub fn phase1(&self, watch: &mut Stopwatch) -> Result<Phase1> {
        self.refuse_unasked()?;
        watch.stage("scan");
        let (scan, inputs) = self.scan()?;
        watch.stage("upcycle");
        let store = self.upcycle(&scan)?;
        let lossless = self.lossless(&store)?;
        watch.stage("fit");
        let ToFit { units, labels, held, rows } = self.to_fit(&scan, &store)?;
        let measured = self.passed_losses(&store, (&labels, rows.as_ref()))?;
        let controls = measured.as_ref().map(|measured| [measured.random.clone(), measured.permuted.clone()]);
        let fits = self.fit(&store, (&labels, rows.as_ref()), (&inputs, &held), controls)?;
        watch.stage("evaluate");
        let (before, label_paths) = match measured {
            Some(Measured { now, label_paths, .. }) => {
                self.warn_of(&now.load, &labels);
                (now, label_paths)
            }
            None => (self.losses(&store, &labels)?, self.along_labels(&store, &labels)?),
        };
        Ok(Phase1 { scan, store, units, lossless, labels, inputs, held, fits, before, label_paths })
    }

    /// Writes what phase 2 goes on from, the routed checkpoint `tiny-onn/` and `phase1.json`, into the run's folder.
    ///
    /// # Errors
    /// What the system reports.
    pub fn write_phase1(&self, found: &Phase1) -> Result<()> {
        let dir = &self.config.out;
        self.write(&found.store, &dir.join(CHECKPOINT), ActiveMode::Routed, Some(&found.labels), None)?;
        Continuation::new(self.config, &found.labels).write(dir)
    }
}

impl Phase1 {
    /// Frees what routers see, the largest part of it, which studies alone have a use for.
    pub fn free_inputs(&mut self) {
        (self.inputs, self.held) = (SplitInputs::default(), HeldInputs::default());
    }

    /// The routers' accuracy for the unit that the variant decides for.
    #[must_use]
    pub fn own_accuracy(&self, spec: &MoeSpec) -> &RouterAccuracy {
        match spec.route_per {
            RoutePer::Token | RoutePer::Task => &self.fits.token,
            RoutePer::Sequence { .. } | RoutePer::Segment { .. } => &self.fits.sequence,
        }
    }

    /// ∫SPS a token, `[task][layer][expert]`; of replicas, which all have the same neurons, by runs of these.
    #[must_use]
    pub fn image(&self, run: &Run<'_>) -> Vec<Vec<Vec<f64>>> {
        let units = run.pictured(self.units.as_ref());
        Integral::new(&self.scan, Score::Sps).by_unit(&units, run.variant.spec.experts())
    }
}
