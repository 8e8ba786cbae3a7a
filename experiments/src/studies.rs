//! `summary.json` of a run: the phases' own figures, and those of the studies that the programs make of them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use tinyonn::metrics::Stopwatch;
use tinyonn::phases::summary::SmkFigures;
use tinyonn::phases::{Phase1, Phase1Summary, Run};
use tinyonn::{Error, Result};

use crate::causal::{Intervention, causal};
use crate::fragments::sha256;
use crate::frontier::{Frontier, frontier};
use crate::label_sources::{SourceFigures, label_sources};
use crate::specific_experts::{SpecificExpert, specific_experts};

/// All figures of a run: what the library measures, the keys of the studies, and `smk` where phase 2 ran.
#[derive(Clone, Debug, Serialize)]
pub struct RunSummary {
    /// Up to routers that are fitted, experts frozen.
    #[serde(flatten)]
    pub phase1: Phase1Summary,
    /// What was asked besides.
    #[serde(flatten)]
    pub studies: Studies,
    /// Surprise Min-K.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smk: Option<SmkFigures>,
}

impl<'de> Deserialize<'de> for RunSummary {
    /// Part by part from the whole: what is flattened is read from a copy whose keys are no numbers any more, and loads have such keys.
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Phase2 {
            #[serde(default)]
            smk: Option<SmkFigures>,
        }
        fn part<R: DeserializeOwned, E: serde::de::Error>(all: &Value) -> std::result::Result<R, E> {
            R::deserialize(all).map_err(E::custom)
        }
        let all = Value::deserialize(from)?;
        Ok(Self { phase1: part(&all)?, studies: part(&all)?, smk: part::<Phase2, _>(&all)?.smk })
    }
}

/// The figures of the studies of a run, each where it was made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Studies {
    /// Each way to label and the loss along its paths, before SMK and on a part of the test split; none for replicas, whose
    /// labels are clusters of a score's profiles.
    #[serde(default)]
    pub label_sources: BTreeMap<String, SourceFigures>,
    /// Loss against active share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frontier: Option<Frontier>,
    /// What ablating and amplifying does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causal: Vec<Intervention>,
    /// What the most specific experts are for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub specific_experts: Vec<SpecificExpert>,
}

impl Studies {
    /// The short one, which every run makes: what each way to label is worth.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn of_labels(run: &Run<'_>, found: &Phase1, watch: &mut Stopwatch) -> Result<Self> {
        watch.stage("label sources");
        let of = |units: &Vec<Vec<u32>>| label_sources(run, &found.store, &found.scan, units);
        Ok(Self { label_sources: found.units.as_ref().map(of).transpose()?.unwrap_or_default(), ..Self::default() })
    }

    /// All of them, which a run of phase 1 makes.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn all(run: &Run<'_>, found: &Phase1, watch: &mut Stopwatch) -> Result<Self> {
        let studies = Self::of_labels(run, found, watch)?;
        watch.stage("frontier");
        let frontier = Some(frontier(run, &found.store, &found.labels)?);
        watch.stage("causal");
        let causal = found.units.as_ref().map(|units| causal(run, &found.scan, units)).transpose()?;
        watch.stage("specific experts");
        let of = |units: &Vec<Vec<u32>>| specific_experts(run, &found.scan, units);
        let specific_experts = found.units.as_ref().map(of).transpose()?.unwrap_or_default();
        Ok(Self { frontier, causal: causal.unwrap_or_default(), specific_experts, ..studies })
    }
}

/// The file in a run's folder.
pub(crate) const SUMMARY: &str = "summary.json";

/// SHA-256 of the summary in the folder `dir`.
///
/// # Errors
/// It is not there.
pub(crate) fn summary_sha256(dir: &Path) -> Result<String> {
    let path = dir.join(SUMMARY);
    Ok(sha256(&std::fs::read(&path).map_err(|e| Error::io(&path, e))?))
}

/// What a summary of any version holds of `R`.
///
/// # Errors
/// It is not there, or says something else.
pub(crate) fn read<R: DeserializeOwned>(dir: &Path, remedy: &str) -> Result<R> {
    let path = dir.join(SUMMARY);
    let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    serde_json::from_slice(&text).map_err(|e| Error::file(&path, e.to_string(), remedy))
}
