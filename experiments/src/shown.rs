//! `figures.json`: the numbers that a run's page shows and its summary and logs do not hold. With it a page is drawn from its folder alone.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tinyonn::decoder::PathTable;
use tinyonn::imaging::{ExpertForm, Form, Shard};
use tinyonn::metrics::{self, series};
use tinyonn::moe::MoeSpec;
use tinyonn::ops::GradSite;
use tinyonn::phases::{Image, LossesNow, METRICS, Phase1, Run};
use tinyonn::train::{LevelAccuracy, RouterAccuracy};
use tinyonn::{Error, Result, files};

use crate::densities::{LayerDensity, densities};

/// What a page shows, by the kind of the run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shown {
    /// Of a run of phases.
    Phases(Box<PhasesShown>),
    /// Of a scan.
    Scan(Box<ScanShown>),
}

/// What the page of a run of phases shows beside its summary.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PhasesShown {
    /// SHA-256 of the `summary.json` that it was written with.
    pub summary_sha256: String,
    /// The tasks in their order.
    pub tasks: Vec<String>,
    /// The hierarchy.
    pub spec: MoeSpec,
    /// Of phase 1, where it ran in this very run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imaged: Option<Imaged>,
    /// The load after SMK, `[layer][expert]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_after: Option<Vec<Vec<f64>>>,
    /// The losses of the dense model's pretraining, by step, where it was pretrained here.
    pub pretrain: Vec<(f64, f64)>,
    /// The losses of SMK, by step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub smk: Vec<(f64, f64)>,
}

/// What phase 1 saw.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Imaged {
    /// ∫SPS a token, `[task][layer][expert]`.
    pub experts: Vec<Vec<Vec<f64>>>,
    /// Each task's label.
    pub labels: PathTable,
    /// The routers' accuracy for the unit that the variant decides for, on the test split.
    pub accuracy: RouterAccuracy,
    /// What routers see of some layers.
    pub densities: Vec<LayerDensity>,
}

impl Imaged {
    /// What `found` shows.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn new(run: &Run<'_>, found: &Phase1) -> Result<Self> {
        Ok(Self {
            experts: found.image(run),
            labels: found.labels.paths.clone(),
            accuracy: found.own_accuracy(&run.variant.spec).clone(),
            densities: densities(run, found)?,
        })
    }
}

impl PhasesShown {
    /// Of a run that did what is given.
    ///
    /// # Errors
    /// A log that cannot be read.
    pub fn new(
        run: &Run<'_>,
        summary_sha256: String,
        imaged: Option<Imaged>,
        after: Option<&LossesNow>,
    ) -> Result<Self> {
        let smk = after.map(|_| metrics::read(run.config.out.join(METRICS))).transpose()?.unwrap_or_default();
        Ok(Self {
            summary_sha256,
            tasks: run.text.tasks.clone(),
            spec: run.variant.spec.clone(),
            imaged,
            load_after: after.map(|losses| losses.load.load()),
            pretrain: series(&run.dense.losses()?, "pretrain", "loss"),
            smk: series(&smk, "smk", "loss"),
        })
    }
}

/// What the page of a scan shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScanShown {
    /// What was scanned.
    pub title: String,
    /// The hierarchy that neurons are seen as.
    pub spec: MoeSpec,
    /// How they were given to experts.
    pub partition: String,
    /// How ∫SPS is formed.
    pub form: Form,
    /// Which gradient's norm surprise is.
    pub grad_site: GradSite,
    /// The tasks in their order.
    pub tasks: Vec<String>,
    /// ∫SPS a token, `[task][layer][expert]`.
    pub experts: Vec<Vec<Vec<f64>>>,
    /// Tokens that counted.
    pub tokens: u64,
    /// Nats a token.
    pub loss: f64,
    /// The share of (layer, token, neuron) with a surprise above zero.
    pub gradient_nonzero_share: f64,
    /// SHA-256 of the model.
    pub model: String,
    /// SHA-256 of each text.
    pub corpora: Vec<String>,
    /// The shards that were read.
    #[serde(rename = "shares")]
    pub shards: Vec<String>,
    /// The shards that were not.
    pub missing: Vec<String>,
}

impl ScanShown {
    /// Of `image`.
    #[must_use]
    pub fn new(title: String, image: &Image) -> Self {
        let (stored, scan) = (&image.stored, &image.stored.scan);
        let mut corpora: Vec<String> = stored.parts.iter().map(|part| part.corpus.clone()).collect();
        corpora.sort_unstable();
        corpora.dedup();
        let tokens: u64 = scan.tokens.iter().sum();
        Self {
            title,
            spec: image.spec.clone(),
            partition: image.strategy.clone(),
            form: image.form,
            grad_site: scan.grad_site,
            tasks: scan.tasks.clone(),
            experts: image.experts.clone(),
            tokens,
            loss: scan.loss.iter().sum::<f64>() / tokens.max(1) as f64,
            gradient_nonzero_share: scan.gradient_nonzero_share(),
            model: stored.model.clone(),
            corpora,
            shards: stored.parts.iter().map(|part| part.shard.to_string()).collect(),
            missing: stored.missing().iter().map(Shard::to_string).collect(),
        }
    }

    /// What ∫SPS is standardised over.
    #[must_use]
    pub fn units(&self) -> &'static str {
        match self.form.expert {
            ExpertForm::Mean => "neurons",
            ExpertForm::Norm => "experts",
        }
    }
}

/// The file in a run's folder.
const FIGURES: &str = "figures.json";

impl Shown {
    /// Writes `figures.json` into the folder `dir`.
    ///
    /// # Errors
    /// What the system reports.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(FIGURES);
        let json =
            serde_json::to_string(self).map_err(|e| Error::file(&path, e.to_string(), "report this as a defect"))?;
        files::write(path, json + "\n")
    }

    /// What the run in the folder `dir` shows.
    ///
    /// # Errors
    /// A folder that is no run, or one of a program that wrote no such file.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FIGURES);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(not_there(dir)),
            Err(e) => return Err(Error::io(&path, e)),
        };
        let remedy = "give the folder as its run left it, draw it with the version that wrote it, or run it again";
        let read: Self = serde_json::from_slice(&text).map_err(|e| Error::file(&path, e.to_string(), remedy))?;
        match read.contradiction() {
            Some(problem) => Err(Error::file(&path, problem, remedy)),
            None => Ok(read),
        }
    }

    /// Numbers that are not as many as the tasks, layers and experts beside them.
    fn contradiction(&self) -> Option<String> {
        let (tasks, spec, experts) = match self {
            Self::Phases(shown) => (&shown.tasks, &shown.spec, shown.imaged.as_ref().map(|imaged| &imaged.experts)),
            Self::Scan(shown) => (&shown.tasks, &shown.spec, Some(&shown.experts)),
        };
        if let Some(wrong) = spec.validate().first() {
            return Some(format!("`spec`: {}", wrong.problem));
        }
        let layers = experts.and_then(|by_task| by_task.first()).map_or(0, Vec::len);
        let is_map = |by_layer: &Vec<Vec<f64>>| {
            by_layer.len() == layers && by_layer.iter().all(|row| row.len() == spec.experts())
        };
        if experts.is_some_and(|by_task| by_task.len() != tasks.len() || !by_task.iter().all(is_map)) {
            let (tasks, experts) = (tasks.len(), spec.experts());
            return Some(format!("`experts` is not of {tasks} tasks × {layers} layers × {experts} experts"));
        }
        let Self::Phases(shown) = self else { return None };
        let is_even = |rows: &Vec<Vec<f64>>| rows.iter().all(|row| row.len() == spec.experts());
        if !shown.load_after.as_ref().is_none_or(is_even) {
            return Some(format!("`load_after` is not of {} experts a layer", spec.experts()));
        }
        let imaged = shown.imaged.as_ref()?;
        if layers == 0 || imaged.accuracy.layers.len() != layers {
            return Some(format!("`accuracy.layers` is not of {layers} layers, of which there must be one"));
        }
        let is_load = |by_task: &Vec<Vec<f64>>| by_task.len() == tasks.len() && is_even(by_task);
        let load = &imaged.accuracy.load;
        if load.len() != layers || !load.iter().all(is_load) {
            let (tasks, experts) = (tasks.len(), spec.experts());
            return Some(format!("`accuracy.load` is not of {layers} layers × {tasks} tasks × {experts} experts"));
        }
        let confusion = &imaged.accuracy.confusion;
        if confusion.len() != tasks.len() || confusion.iter().any(|row| row.len() != tasks.len()) {
            return Some(format!("`accuracy.confusion` is not of {0} × {0} tasks", tasks.len()));
        }
        let by_level = |of: &LevelAccuracy| [of.accuracy.len(), of.chance.len(), of.intervals.len()];
        let levels = spec.levels.len();
        if imaged.accuracy.layers.iter().any(|layer| by_level(layer) != [levels; 3]) {
            return Some(format!("`accuracy.layers` is not of {levels} levels each"));
        }
        let paths = &imaged.labels.experts;
        let is_known = |path: &Vec<u32>| path.iter().all(|expert| (*expert as usize) < spec.experts());
        if paths.len() != tasks.len() || paths.iter().any(|path| path.len() != layers || !path.iter().all(is_known)) {
            return Some(format!(
                "`labels` is not of {} tasks × {layers} layers, or names an unknown expert",
                tasks.len()
            ));
        }
        None
    }
}

/// Why a folder has no `figures.json`.
fn not_there(dir: &Path) -> Error {
    let has = |name: &str| dir.join(name).exists();
    if !dir.is_dir() {
        return Error::file(dir, "there is no such folder", "give the folder of a run");
    }
    if has("summary.json") || has("integral.safetensors") {
        let problem = format!("has no {FIGURES}: the program that ran it was of a version that wrote none");
        return Error::file(dir, problem, "keep its report.html, or run it again for a page of this version");
    }
    let problem = format!("is no run of exp_phase1, exp_phase2 or exp_scan: it has no {FIGURES}");
    Error::file(dir, problem, "give the folder of one")
}
