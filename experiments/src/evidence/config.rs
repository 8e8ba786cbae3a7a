//! What decides the study.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tinyonn::benchmark::TASKS;
use tinyonn::phases::{DeviceName, Shares, SparsifyConfig, Worth};
use tinyonn::train::{DistilConfig, Memory, Precision};
use tinyonn::{Error, Result};

use super::{Cell, Change, Items};

/// The settings; as TOML, every key is optional and unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvidenceConfig {
    /// The dense decoder.
    pub model: PathBuf,
    /// What scripts/fetch_material.sh has written: text, held_out_text, benchmarks.
    pub material: PathBuf,
    /// Where it computes.
    pub device: DeviceName,
    /// What passes compute in.
    pub dtype: Precision,
    /// The seed of all cells ..
    pub seed: u64,
    /// .. but those that are repeated with these.
    pub seeds: Vec<u64>,
    /// The study's folder.
    pub out: PathBuf,
    /// Where the results are written; RESULTS.md in the study's folder, unless it is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub results: Option<PathBuf>,
    /// Tokens a sequence.
    pub length: usize,
    /// Sequences a batch.
    pub batch: usize,
    /// Training tokens of each kind that choices are calibrated and layers repaired on.
    pub calibration_tokens: usize,
    /// Validation tokens of each kind that shares by layer are found on.
    pub share_tokens: usize,
    /// Validation tokens of each kind that losses are taken over.
    pub validation_tokens: usize,
    /// Test tokens of each kind, and tokens of each kind that nothing is calibrated on.
    pub test_tokens: usize,
    /// Benchmarks.
    pub tasks: Vec<String>,
    /// Which items of each: all, unless it is said how many. Answers to others are made anew; losses stay.
    pub items: Items,
    /// Items that are read together.
    pub together: usize,
    /// How some cells are distilled.
    pub distil: DistilConfig,
}

impl Default for EvidenceConfig {
    fn default() -> Self {
        // For a GPU's sake (0.1 s a step on an H200); masters, the thresholds behind it and all that is measured stay f32.
        let memory = Memory { weights: Precision::Bf16, ..Memory::DEFAULT };
        Self {
            model: "models/SmolLM2-135M-Instruct.Q4_1.gguf".into(),
            material: "material".into(),
            device: DeviceName::Cpu,
            dtype: Precision::default(),
            seed: 1,
            seeds: vec![2, 3],
            out: "runs/evidence".into(),
            results: None,
            length: 512,
            batch: 16,
            calibration_tokens: 65_536,
            share_tokens: 2048,
            validation_tokens: 16_384,
            test_tokens: 102_400,
            tasks: TASKS.iter().map(|(name, _)| (*name).to_owned()).collect(),
            items: Items::All,
            together: 64,
            distil: DistilConfig { steps: 1000, memory, ..DistilConfig::DEFAULT },
        }
    }
}

impl EvidenceConfig {
    /// Refuses what cannot be run.
    ///
    /// # Errors
    /// The setting and the remedy.
    pub fn check(&self) -> Result<()> {
        if self.items == Items::First(0) || self.together == 0 {
            return Err(Error::setting("items", "leaves nothing to answer", "use 1 or more, read 1 or more together"));
        }
        if self.seeds.contains(&self.seed) {
            let problem = format!("has {}, which is the seed of all cells", self.seed);
            return Err(Error::setting("seeds", problem, "name others"));
        }
        self.distil.check()
    }

    /// Where the results are written.
    #[must_use]
    pub fn results_file(&self) -> PathBuf {
        self.results.clone().unwrap_or_else(|| self.out.join("RESULTS.md"))
    }

    /// The kinds of text in a folder of the material, `NAME=PATH` each.
    ///
    /// # Errors
    /// A folder that cannot be read, or holds none.
    pub(crate) fn kinds(&self, folder: &str) -> Result<Vec<String>> {
        let path = self.material.join(folder);
        let mut kinds = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(|e| Error::io(&path, e))? {
            let entry = entry.map_err(|e| Error::io(&path, e))?;
            if entry.path().is_dir() {
                kinds.push(format!("{}={}", entry.file_name().to_string_lossy(), entry.path().display()));
            }
        }
        kinds.sort();
        if kinds.is_empty() {
            return Err(Error::file(&path, "holds no kind of text", "let scripts/fetch_material.sh write it"));
        }
        Ok(kinds)
    }

    /// The settings by which the library makes `cell`, or prepares what cells share.
    pub(crate) fn sparsify(&self, cell: &Cell) -> Result<SparsifyConfig> {
        let mut config = SparsifyConfig {
            model: Some(self.model.clone()),
            variant: cell.method.variant().unwrap_or("OwnGate").into(),
            active_share: cell.share(),
            data: self.kinds("text")?,
            seed: cell.seed,
            device: self.device,
            dtype: self.dtype,
            // One for what is made of one model: its training goes on in whatever order its cells are asked for.
            out: self.out.join("work").join(cell.closed().id()),
            length: self.length,
            batch: self.batch,
            calibration_tokens: self.calibration_tokens,
            validation_tokens: self.share_tokens,
            test_tokens: self.test_tokens,
            distil: DistilConfig { steps: cell.steps, ..self.distil },
            ..SparsifyConfig::default()
        };
        match cell.change {
            None => {}
            Some(Change::UniformShares) => config.shares = Shares::Uniform,
            Some(Change::ByNorm) => config.worth = Worth::Norm,
            Some(Change::TopK) => config.choose = Some(tinyonn::imaging::Choose::TopK),
            Some(Change::NoRepair) => config.ridge = 0.0,
            Some(Change::NoBias) => config.bias = false,
            Some(Change::Ridge(ridge)) => config.ridge = ridge,
            Some(Change::Candidates(share)) => config.candidates = Some(share),
            Some(Change::Inputs(share)) => config.inputs = Some(share),
            Some(Change::Calibration(times)) => {
                config.calibration_tokens = (config.calibration_tokens as f64 * times) as usize;
            }
        }
        Ok(config)
    }
}
