//! What a later run takes from the folder of an earlier one of [`sparsify()`](super::sparsify()): its layers, calibrated and repaired, so that steps of
//! distillation can be tried without doing that again.

use std::path::Path;

use super::config::first_difference;
use super::continuation::same_text;
use super::dense::CHECKPOINT;
use super::run::Run;
use super::sparse_layers::SparseModel;
use super::{SparsifyConfig, SparsifySummary, weights};
use crate::checkpoint::TinyOnnFolder;
use crate::{Error, Result};

/// A run's summary and checkpoint.
pub(super) struct LeftBySparsify {
    folder: TinyOnnFolder,
    summary: SparsifySummary,
}

impl SparsifyConfig {
    /// The settings of the run in the folder `dir`.
    ///
    /// ```no_run
    /// use tinyonn::phases::{SparsifyConfig, sparsify_from};
    ///
    /// fn main() -> tinyonn::Result<()> {
    ///     let from = "runs/half".as_ref();
    ///     let mut config = SparsifyConfig { out: "runs/distilled".into(), ..SparsifyConfig::of_run(from)? };
    ///     config.distil.steps = 240;
    ///     println!("perplexity × {:.3}", sparsify_from(from, &config, None)?.perplexity_ratio);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// A folder that [`sparsify()`](super::sparsify()) did not write.
    pub fn of_run(dir: &Path) -> Result<Self> {
        Ok(summary(dir)?.settings)
    }

    /// The first setting by which two runs have other layers; text is known by its digest.
    fn layers_differ(&self, other: &Self) -> Option<String> {
        let layers = |config: &Self| {
            let Self { test_tokens, device, distil, .. } = Self::default();
            let config = Self { out: "".into(), data: Vec::new(), test_tokens, device, distil, ..config.clone() };
            let model = config.model.as_deref().map(|path| std::path::absolute(path).unwrap_or(path.to_path_buf()));
            Self { model, ..config }
        };
        first_difference(&layers(self), &layers(other))
    }
}

impl LeftBySparsify {
    /// Reads the folder `dir`.
    ///
    /// # Errors
    /// No run wrote it, or one that distilled; `config` has other settings than it had, where its layers depend on them.
    pub(super) fn read(dir: &Path, config: &SparsifyConfig) -> Result<Self> {
        let summary = summary(dir)?;
        if let Some(key) = config.layers_differ(&summary.settings) {
            let problem = "is not what the run had, whose layers are not made again";
            return Err(Error::setting(key, problem, "leave it out, or begin without --from"));
        }
        if summary.distilled_to.is_some() {
            let remedy = "go on from one without, or begin without --from";
            return Err(Error::file(dir, "is a run that was distilled already", remedy));
        }
        Ok(Self { folder: TinyOnnFolder::open(dir.join(CHECKPOINT))?, summary })
    }

    /// The layers.
    pub(super) fn layers(self, run: &Run<'_>) -> Result<SparseModel> {
        let Self { folder, summary } = self;
        same_text(&summary.corpus.sha256, &run.text.sha256, "begin without --from")?;
        let store = weights::load(folder.folder(), run.config.dtype, &run.device)?;
        let SparsifySummary { asked, calibrated_on, repaired_on, ridge, router_kept, .. } = summary;
        Ok(SparseModel { store, asked, calibrated_on, repaired_on, ridge, router_kept })
    }
}

fn summary(dir: &Path) -> Result<SparsifySummary> {
    let path = dir.join("summary.json");
    let read = std::fs::read(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::file(dir, "has no summary.json", "give the folder of a run of exp_sparsify")
        }
        _ => Error::io(&path, e),
    })?;
    let remedy = "give the folder of a run of exp_sparsify of this version";
    serde_json::from_slice(&read).map_err(|e| Error::file(&path, e.to_string(), remedy))
}
