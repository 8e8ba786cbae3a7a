//! The whole of Tiny-ONN on one dense model: decompose, image, route, differentiate.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use super::continuation::LeftByPhase1;
use super::dense::CHECKPOINT;
use super::plan::Stages;
use super::prepared::Prepared;
use super::room::check_room;
use super::run::{LossesNow, Run};
use super::summary::{self, RankCorrelation, SmkFigures, Summary};
use super::{RunConfig, weights};
use crate::Result;
use crate::checkpoint::{self, ParamStore};
use crate::imaging::Labels;
use crate::metrics::Stopwatch;
use crate::model::ActiveMode;
use crate::ranks::Collective;
use crate::train::Checkpoints;

/// Runs everything and writes `summary.json`, `metrics.jsonl` and the checkpoint `tiny-onn/` into `config.out`.
///
/// It computes in f32, or as [`RunConfig::dtype`] says; experts are stepped in f32 either way. Checkpoints keep the types that the dense model is stored in; after
/// SMK the weights are rounded to them before they are measured, so that the figures are those of the checkpoint.
///
/// With `checkpoints`, whose folder is this run's alone, pretraining and SMK that were cut off go on behind their last states; what lies
/// between is computed again, to the same bits.
///
/// # Errors
/// A loss that is no finite number; a variant that is not known or does not fit; text, models and folders that cannot be used;
/// [`Interrupted`](crate::Error::Interrupted).
pub fn phase2(config: &RunConfig, checkpoints: Option<&Checkpoints>) -> Result<Summary> {
    check_room(config, Stages::Both)?;
    let mut watch = Stopwatch::new();
    let prepared = Prepared::new(config, &mut watch, checkpoints)?;
    let run = prepared.run(config);
    let mut found = run.phase1(&mut watch)?;
    found.free_inputs();
    let after = run.phase2(&mut found.store, &found.labels, &mut watch, checkpoints)?;
    watch.stop();
    let figures = Summary { phase1: found.summary(&run, &watch), smk: after.figures(&run) };
    summary::write(&figures, &config.out.join("summary.json"))?;
    Ok(figures)
}

/// Continues the run of [`super::phase1()`] in the folder `from` with Surprise Min-K. `config` is its own ([`RunConfig::of_phase1`]) with another
/// `out` and, perhaps, other `smk` and `device`. What phase 1 measured is taken from its summary; the outcome is that of [`phase2`]
/// with the same settings.
///
/// ```no_run
/// use tinyonn::phases::{RunConfig, phase2_from};
///
/// fn main() -> tinyonn::Result<()> {
///     let from = "runs/phase1".as_ref();
///     // Other settings of Surprise Min-K behind the same first phase.
///     let mut config = RunConfig { out: "runs/wider".into(), ..RunConfig::of_phase1(from)? };
///     config.smk.min_k = 50;
///     println!("{:.3} nats a token", phase2_from(from, &config, None)?.smk.routed);
///     Ok(())
/// }
/// ```
///
/// # Errors
/// As of [`phase2`]; a folder that phase 1 did not write; settings or text that are not what they were.
pub fn phase2_from(from: &Path, config: &RunConfig, checkpoints: Option<&Checkpoints>) -> Result<Summary> {
    let left = LeftByPhase1::read(from, config)?;
    check_room(config, Stages::From(from))?;
    let mut watch = Stopwatch::new();
    let (prepared, mut store) = left.prepare(from, config, &mut watch)?;
    let run = prepared.run(config);
    let after = run.phase2(&mut store, &left.labels, &mut watch, checkpoints)?;
    watch.stop();
    let figures = Summary { phase1: left.summary_with(&watch), smk: after.figures(&run) };
    summary::write(&figures, &config.out.join("summary.json"))?;
    Ok(figures)
}

/// The part of a rank of [`phase2_from`] that is not the first: it trains with the others, and writes nothing but its log, into `config.out`, which is its own.
/// `among` finds the other ranks, from the device that it computes on.
///
/// ```
/// use std::path::Path;
/// use std::sync::Arc;
/// use tinyonn::phases::{RunConfig, phase2_beside};
/// use tinyonn::ranks::Collective;
///
/// /// A rank that is not the first, whose folder is its own.
/// fn beside(from: &Path, config: &RunConfig, ranks: Arc<dyn Collective>) -> tinyonn::Result<()> {
///     phase2_beside(from, config, None, &mut |_| Ok(ranks.clone()))
/// }
/// ```
///
/// # Errors
/// As of [`phase2_from`].
pub fn phase2_beside(
    from: &Path,
    config: &RunConfig,
    checkpoints: Option<&Checkpoints>,
    among: &mut dyn FnMut(&Device) -> Result<Arc<dyn Collective>>,
) -> Result<()> {
    let left = LeftByPhase1::read(from, config)?;
    let (prepared, mut store) = left.prepare(from, config, &mut Stopwatch::new())?;
    let ranks = among(&prepared.device)?;
    let run = Run { ranks: Some(&ranks), ..prepared.run(config) };
    checkpoint::grow_deltas(&mut store, &run.dense.cfg, &run.variant.spec)?;
    weights::give_masters(&mut store, &run.dense.cfg, run.variant, run.shares_masters())?;
    run.smk(&store, &left.labels, checkpoints).map(drop)
}

/// What phase 2 has made of experts.
///
/// ```
/// use tinyonn::phases::{Phase2, Run};
///
/// fn line(run: &Run<'_>, after: &Phase2) -> String {
///     format!("{:.3} nats a token, {:.0} % of active experts learnt", after.figures(run).routed, 100.0 * after.updated_share)
/// }
/// ```
pub struct Phase2 {
    /// Learners among active experts, mean over steps and layers.
    pub updated_share: f64,
    /// After SMK.
    pub losses: LossesNow,
    /// Of slices.
    pub rank_correlation: Option<RankCorrelation>,
}

impl Phase2 {
    /// Its figures.
    #[must_use]
    pub fn figures(&self, run: &Run<'_>) -> SmkFigures {
        let tasks = &run.text.tasks;
        let by_task = |losses: &crate::train::Losses| tasks.iter().cloned().zip(losses.by_task.clone()).collect();
        let LossesNow { routed, all_active, load, .. } = &self.losses;
        SmkFigures {
            updated_share: self.updated_share,
            load: load.figures(&run.variant.spec),
            surprise_rank_correlation: self.rank_correlation,
            routed: routed.mean,
            all_active: all_active.mean,
            by_task: [("routed", routed), ("all_active", all_active)].map(|(n, l)| (n.to_owned(), by_task(l))).into(),
        }
    }
}

impl Run<'_> {
    /// Whether each of several ranks steps a share of masters that are others than the work weights.
    fn shares_masters(&self) -> bool {
        let several = self.ranks.is_some_and(|ranks| ranks.ranks() > 1);
        several && !self.config.smk_in_dtype().memory.weights.is_f32()
    }

    /// Surprise Min-K under the labels' routing, and what comes of it; writes `metrics.jsonl` and the checkpoint `tiny-onn/` into the run's
    /// folder.
    ///
    /// # Errors
    /// As of [`phase2()`].
    pub fn phase2(
        &self,
        store: &mut ParamStore,
        labels: &Labels,
        watch: &mut Stopwatch,
        checkpoints: Option<&Checkpoints>,
    ) -> Result<Phase2> {
        watch.stage("smk");
        checkpoint::grow_deltas(store, &self.dense.cfg, &self.variant.spec)?;
        let before = self.rank_correlation(store, labels)?;
        weights::give_masters(store, &self.dense.cfg, self.variant, self.shares_masters())?;
        let outcome = self.smk(store, labels, checkpoints)?;
        checkpoint::prune_deltas(store)?;
        self.dense.round(store)?;
        if !self.config.dtype.is_f32() {
            *store = self.dense.as_stored(store)?;
        }
        watch.stage("evaluate");
        let losses = self.losses(store, labels)?;
        let after = self.rank_correlation(store, labels)?;
        let rank_correlation = before.zip(after).map(|(before, after)| RankCorrelation { before, after });
        watch.stage("write");
        self.write(store, &self.config.out.join(CHECKPOINT), ActiveMode::Routed, Some(labels), None)?;
        Ok(Phase2 { updated_share: outcome.updated_share, losses, rank_correlation })
    }
}
