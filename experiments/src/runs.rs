//! What a program runs: a phase of the library, the studies of it, and what is left in its folder: `summary.json`, `figures.json` and the page.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
#[cfg(feature = "pictures")]
use tinyonn::Error;
use tinyonn::Result;
use tinyonn::imaging::StoredScan;
use tinyonn::metrics::Stopwatch;
use tinyonn::phases::{
    self, Imaging, LeftByPhase1, MergeConfig, Passed, Phase1Summary, Prepared, Run, RunConfig, Stages, check_room,
    summary,
};
use tinyonn::ranks::Collective;
use tinyonn::ranks::launcher::of_environment;
use tinyonn::train::Checkpoints;

#[cfg(feature = "pictures")]
use crate::pages;
use crate::shown::{Imaged, PhasesShown, ScanShown, Shown};
use crate::studies::{self, RunSummary, SUMMARY, Studies, summary_sha256};

/// Phase 1 and its studies: the loss along every source of labels, the loss against active share, what ablating and amplifying does. What passes over
/// its text have made before, in shards, may lie in files, `passed`.
///
/// # Errors
/// As of [`tinyonn::phases::phase1()`]; a file that holds what was made of another run.
pub fn phase1(config: &RunConfig, checkpoints: Option<&Checkpoints>, passed: Passed<'_>) -> Result<RunSummary> {
    check_room(config, Stages::Phase1)?;
    let mut watch = Stopwatch::new();
    let prepared = Prepared::new(config, &mut watch, checkpoints)?;
    let run = Run { passed, ..prepared.run(config) };
    let found = run.phase1(&mut watch)?;
    let studies = Studies::all(&run, &found, &mut watch)?;
    let imaged = Imaged::new(&run, &found)?;
    watch.stage("write");
    run.write_phase1(&found)?;
    watch.stop();
    let figures = RunSummary { phase1: found.summary(&run, &watch), studies, smk: None };
    finish(&config.out, &figures, |summary| PhasesShown::new(&run, summary, Some(imaged), None))?;
    Ok(figures)
}

/// Both phases, and the loss along every source of labels in between.
///
/// # Errors
/// As of [`tinyonn::phases::phase2()`].
pub fn phase2(config: &RunConfig, checkpoints: Option<&Checkpoints>) -> Result<RunSummary> {
    check_room(config, Stages::Both)?;
    let mut watch = Stopwatch::new();
    let prepared = Prepared::new(config, &mut watch, checkpoints)?;
    let run = prepared.run(config);
    let mut found = run.phase1(&mut watch)?;
    let studies = Studies::of_labels(&run, &found, &mut watch)?;
    let imaged = Imaged::new(&run, &found)?;
    found.free_inputs();
    let after = run.phase2(&mut found.store, &found.labels, &mut watch, checkpoints)?;
    watch.stop();
    let figures = RunSummary { phase1: found.summary(&run, &watch), studies, smk: Some(after.figures(&run)) };
    finish(&config.out, &figures, |summary| PhasesShown::new(&run, summary, Some(imaged), Some(&after.losses)))?;
    Ok(figures)
}

/// Finds the other ranks, where there are several, from the device that a run computes on.
pub type Among<'a> = dyn FnMut(&Device) -> Result<Option<Arc<dyn Collective>>> + 'a;

/// Surprise Min-K behind the run of phase 1 in the folder `from`, whose studies are told again.
///
/// # Errors
/// As of [`tinyonn::phases::phase2_from()`].
pub fn phase2_from(
    from: &Path,
    config: &RunConfig,
    checkpoints: Option<&Checkpoints>,
    among: &mut Among<'_>,
) -> Result<RunSummary> {
    let left = LeftByPhase1::read(from, config)?;
    // Of several ranks each has a part of what is counted.
    if of_environment()?.is_none() {
        check_room(config, Stages::From(from))?;
    }
    let studies: Studies = studies::read(from, "run exp_phase1 again")?;
    let mut watch = Stopwatch::new();
    let (prepared, mut store) = left.prepare(from, config, &mut watch)?;
    let ranks = among(&prepared.device)?;
    let run = Run { ranks: ranks.as_ref(), ..prepared.run(config) };
    let after = run.phase2(&mut store, &left.labels, &mut watch, checkpoints)?;
    watch.stop();
    let phase1: Phase1Summary = left.summary_with(&watch);
    let figures = RunSummary { phase1, studies, smk: Some(after.figures(&run)) };
    finish(&config.out, &figures, |summary| PhasesShown::new(&run, summary, None, Some(&after.losses)))?;
    Ok(figures)
}

/// The image of a model by what was scanned of its text.
///
/// # Errors
/// As of [`Imaging::image`].
pub fn image(imaging: Imaging<'_>, stored: StoredScan) -> Result<StoredScan> {
    let (text, title) = (imaging.text, format!("∫SPS of {}", imaging.config.model.display()));
    let image = imaging.image(stored)?;
    Shown::Scan(Box::new(ScanShown::new(title, &image))).write(&text.out)?;
    draw(&text.out)?;
    Ok(image.stored)
}

/// The image that stored scans make together.
///
/// # Errors
/// As of [`tinyonn::phases::merge_scans()`].
pub fn merge_scans(config: &MergeConfig) -> Result<StoredScan> {
    let image = phases::merge_scans(config)?;
    let title = format!("∫SPS of {} stored scans", config.files.len());
    Shown::Scan(Box::new(ScanShown::new(title, &image))).write(&config.out)?;
    draw(&config.out)?;
    Ok(image.stored)
}

/// Writes what a run of phases leaves, and draws its page of that alone.
fn finish(out: &Path, figures: &RunSummary, shown: impl FnOnce(String) -> Result<PhasesShown>) -> Result<()> {
    summary::write(figures, &out.join(SUMMARY))?;
    Shown::Phases(Box::new(shown(summary_sha256(out)?)?)).write(out)?;
    draw(out)
}

/// The page of what lies in `dir`, in a build that draws pages. What cannot be drawn costs the page and not the run, whose numbers are written.
#[cfg(feature = "pictures")]
fn draw(dir: &Path) -> Result<()> {
    match pages::draw(dir) {
        // Nor could anything else be written there.
        Err(e @ Error::Io { .. }) => Err(e),
        Err(e) => {
            tracing::warn!("the page was not drawn: {e}; exp_report draws it when that is mended");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// A build without pictures leaves the page to `exp_report` of one with them.
#[cfg(not(feature = "pictures"))]
#[expect(clippy::unnecessary_wraps, reason = "its twin draws")]
fn draw(_: &Path) -> Result<()> {
    Ok(())
}
