//! What phase 2 goes on from: the folder of a run of phase 1, whose settings, text and labels are decided.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::summary::Phase1Summary;
use super::{Dense, Prepared, RunConfig};
use crate::checkpoint::ParamStore;
use crate::decoder::PathTable;
use crate::imaging::Labels;
use crate::metrics::Stopwatch;
use crate::{Error, Result, files};

/// The file `phase1.json`, beside the checkpoint.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Continuation {
    /// The version of this library that wrote it; the first ones did not say.
    #[serde(default)]
    version: String,
    /// The settings of phase 1.
    settings: RunConfig,
    /// The labels, `[task][layer]`.
    paths: PathTable,
}

const CONTINUATION: &str = "phase1.json";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What a file of any version may say.
#[derive(Default, Deserialize)]
struct Version {
    #[serde(default)]
    version: String,
}

impl Continuation {
    pub(super) fn new(settings: &RunConfig, labels: &Labels) -> Self {
        Self { version: VERSION.into(), settings: settings.clone().with_absolute_paths(), paths: labels.paths.clone() }
    }

    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(CONTINUATION);
        let json = serde_json::to_string(self).map_err(|e| Error::file(&path, e.to_string(), "report this"))?;
        files::write(path, json + "\n")
    }

    /// Reads what phase 1 left in `dir`.
    ///
    /// # Errors
    /// A folder that phase 1 did not write, or that was changed.
    fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(CONTINUATION);
        let text = std::fs::read(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::file(dir, format!("has no {CONTINUATION}"), "give the folder of a run of exp_phase1")
            }
            _ => Error::io(&path, e),
        })?;
        serde_json::from_slice(&text).map_err(|e| {
            let Version { version } = serde_json::from_slice(&text).unwrap_or_default();
            let whose = match version.as_str() {
                "" | VERSION => String::new(),
                other => format!("is of version {other}, and this program of {VERSION}: "),
            };
            Error::file(&path, format!("{whose}{e}"), "go on with the program that wrote it, or run exp_phase1 again")
        })
    }
}

impl RunConfig {
    /// The settings of the run of [`super::phase1()`] in the folder `dir`.
    ///
    /// # Errors
    /// A folder that phase 1 did not write.
    pub fn of_phase1(dir: &Path) -> Result<Self> {
        Ok(Continuation::read(dir)?.settings)
    }
}

/// What a run that goes on from phase 1 takes from its folder, beside the checkpoint.
///
/// ```
/// use std::path::Path;
/// use tinyonn::metrics::Stopwatch;
/// use tinyonn::phases::{LeftByPhase1, RunConfig};
///
/// /// Phase 2 of the run in the folder `from`, by its stages.
/// fn go_on(from: &Path, out: &Path) -> tinyonn::Result<f64> {
///     let (config, mut watch) = (RunConfig { out: out.into(), ..RunConfig::of_phase1(from)? }, Stopwatch::new());
///     let left = LeftByPhase1::read(from, &config)?;
///     let (prepared, mut store) = left.prepare(from, &config, &mut watch)?;
///     let run = prepared.run(&config);
///     let after = run.phase2(&mut store, &left.labels, &mut watch, None)?;
///     Ok(left.summary_with(&watch).loss.dense - after.figures(&run).routed)
/// }
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub struct LeftByPhase1 {
    /// Each task's path.
    pub labels: Labels,
    /// What phase 1 measured.
    pub summary: Phase1Summary,
}

impl LeftByPhase1 {
    /// Reads the folder `from`.
    ///
    /// # Errors
    /// Phase 1 did not write it; `config` has other settings than it had, where phase 2 may not.
    pub fn read(from: &Path, config: &RunConfig) -> Result<Self> {
        let Continuation { settings, paths, .. } = Continuation::read(from)?;
        // Text may have been moved: that it is the same is known by its SHA-256.
        let (out, data) = (config.out.clone(), config.data.clone());
        let continued = RunConfig { smk: config.smk, out, data, device: config.device, ..settings };
        if let Some(key) = config.clone().with_absolute_paths().differs_from(&continued.with_absolute_paths()) {
            let problem = "is not what phase 1 had, which was not run again";
            return Err(Error::setting(key, problem, "leave it out, or run exp_phase1 again with it"));
        }
        let path = from.join("summary.json");
        let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let summary =
            serde_json::from_slice(&text).map_err(|e| Error::file(&path, e.to_string(), "run exp_phase1 again"))?;
        Ok(Self { labels: Labels { paths }, summary })
    }

    /// Everything that the run goes on with, of which the routed checkpoint in `from` is the model, and its parameters.
    ///
    /// # Errors
    /// Text that is not what phase 1 read; a checkpoint that cannot be used.
    pub fn prepare(&self, from: &Path, config: &RunConfig, watch: &mut Stopwatch) -> Result<(Prepared, ParamStore)> {
        let prepared = Prepared::with(config, watch, |_, device| Dense::routed(from, device, config.dtype))?;
        same_text(&self.summary.corpus.sha256, &prepared.text.sha256, "run exp_phase1 again")?;
        let (tasks, layers) = (prepared.text.tasks.len(), prepared.dense.cfg.num_hidden_layers);
        self.labels.check(&prepared.variant.spec, tasks, layers)?;
        let store = prepared.dense.store.share();
        Ok((prepared, store))
    }

    /// What phase 1 measured, and the seconds of phase 2 beside its own.
    #[must_use]
    pub fn summary_with(&self, watch: &Stopwatch) -> Phase1Summary {
        let mut summary = self.summary.clone();
        let seconds = watch.seconds().into_iter();
        summary.seconds.extend(seconds.map(|(stage, seconds)| (format!("{stage}, phase 2"), seconds.into())));
        summary
    }
}

/// Refuses text that is not what an earlier run read; what else than to restore it can be done is for the caller to say.
pub(super) fn same_text(then: &str, now: &str, or_else: &str) -> Result<()> {
    if then != now {
        let problem = format!("the text is not what it was: SHA-256 {then} then, {now} now");
        return Err(Error::setting("data", problem, format!("restore it, or {or_else}")));
    }
    Ok(())
}
