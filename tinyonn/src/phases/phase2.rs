//! The whole of Tiny-ONN on one dense model: decompose, image, route, differentiate, report.

use std::path::Path;

use super::continuation::{LeftByPhase1, same_text};
use super::dense::CHECKPOINT;
use super::page::{self, Material};
use super::phase1::Phase1;
use super::prepared::Prepared;
use super::run::{LossesNow, METRICS, Run};
use super::summary::{self, SmkFigures, Summary};
use super::{Dense, RunConfig};
use crate::Result;
use crate::checkpoint::{self, ParamStore};
use crate::imaging::Labels;
use crate::metrics::{self, Stopwatch};
use crate::model::ActiveMode;
use crate::train::Checkpoints;

/// Runs everything and writes `summary.json`, `report.html` with its figures, `metrics.jsonl` and the checkpoint `tiny-onn/` into `config.out`.
///
/// It computes in f32. Checkpoints keep the types that the dense model is stored in; after SMK the weights are rounded to them
/// before they are measured, so that the figures are those of the checkpoint.
///
/// With `checkpoints`, whose folder is this run's alone, pretraining and SMK that were cut off go on behind their last states; what lies
/// between is computed again, to the same bits.
///
/// # Errors
/// A loss that is no finite number; a variant that is not known or does not fit; text, models and folders that cannot be used;
/// [`Interrupted`](crate::Error::Interrupted).
pub fn phase2(config: &RunConfig, checkpoints: Option<&Checkpoints>) -> Result<Summary> {
    let mut watch = Stopwatch::new();
    let prepared = Prepared::new(config, &mut watch, checkpoints)?;
    let run = prepared.run(config);
    let mut done = run.phase1(&mut watch)?;
    let after = run.differentiate(&mut done.store, &done.labels, &mut watch, checkpoints)?;
    watch.stop();
    let figures = Summary { phase1: done.summary(&run, &watch), smk: after.figures(&run) };
    run.report(&figures, Some(&done), &after)?;
    Ok(figures)
}

/// Continues the run of [`super::phase1()`] in the folder `from` with Surprise Min-K. `config` is its own ([`RunConfig::of_phase1`]) with another
/// `out` and, perhaps, other `smk` and `device`. What phase 1 measured is taken from its summary; the outcome is that of [`phase2`]
/// with the same settings.
///
/// # Errors
/// As of [`phase2`]; a folder that phase 1 did not write; settings or text that are not what they were.
pub fn phase2_from(from: &Path, config: &RunConfig, checkpoints: Option<&Checkpoints>) -> Result<Summary> {
    let LeftByPhase1 { labels, summary: mut before } = LeftByPhase1::read(from, config)?;
    let mut watch = Stopwatch::new();
    let prepared = Prepared::with(config, &mut watch, |_, device| Dense::routed(from, device))?;
    same_text(&before, &prepared.text)?;
    let run = prepared.run(config);
    labels.check(&prepared.variant.spec, prepared.text.tasks.len(), prepared.dense.cfg.num_hidden_layers)?;
    let mut store = ParamStore::from_handles(&prepared.device, prepared.dense.store.handles());
    let after = run.differentiate(&mut store, &labels, &mut watch, checkpoints)?;
    watch.stop();
    for (stage, seconds) in watch.seconds() {
        before.seconds.insert(format!("{stage}, phase 2"), seconds.into());
    }
    let figures = Summary { phase1: before, smk: after.figures(&run) };
    run.report(&figures, None, &after)?;
    Ok(figures)
}

/// What differentiation left.
struct After {
    updated_share: f64,
    losses: LossesNow,
}

impl After {
    fn figures(&self, run: &Run<'_>) -> SmkFigures {
        let tasks = &run.text.tasks;
        let by_task = |losses: &crate::train::Losses| tasks.iter().cloned().zip(losses.by_task.clone()).collect();
        let LossesNow { routed, all_active, load, .. } = &self.losses;
        SmkFigures {
            updated_share: self.updated_share,
            load: load.figures(&run.variant.spec),
            routed: routed.mean,
            all_active: all_active.mean,
            by_task: [("routed", routed), ("all_active", all_active)].map(|(n, l)| (n.to_owned(), by_task(l))).into(),
        }
    }
}

impl Run<'_> {
    /// Surprise Min-K under the labels' routing, and what comes of it; writes the checkpoint.
    fn differentiate(
        &self,
        store: &mut ParamStore,
        labels: &Labels,
        watch: &mut Stopwatch,
        checkpoints: Option<&Checkpoints>,
    ) -> Result<After> {
        watch.stage("smk");
        checkpoint::grow_deltas(store, &self.dense.cfg, &self.variant.spec)?;
        let outcome = self.smk(store, labels, checkpoints)?;
        checkpoint::prune_deltas(store)?;
        self.dense.round(store)?;
        watch.stage("evaluate");
        let losses = self.losses(store, labels)?;
        watch.stage("write");
        self.write(store, &self.config.out.join(CHECKPOINT), ActiveMode::Routed, Some(labels))?;
        Ok(After { updated_share: outcome.updated_share, losses })
    }

    fn report(&self, figures: &Summary, done: Option<&Phase1>, after: &After) -> Result<()> {
        summary::write(figures, &self.config.out.join("summary.json"))?;
        let material = Material {
            summary: &figures.phase1,
            smk: Some(&figures.smk),
            tasks: &self.text.tasks,
            spec: &self.variant.spec,
            imaged: done.map(|done| done.imaged(self)),
            load_after: Some(after.losses.load.load()),
            pretrain: self.dense.losses()?,
            smk_log: metrics::read(self.config.out.join(METRICS))?,
        };
        page::page(&material)?.write(&self.config.out)
    }
}
