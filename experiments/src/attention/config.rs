//! What decides the study.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tinyonn::phases::DeviceName;
use tinyonn::train::Precision;
use tinyonn::{Error, Result};

use crate::evidence::EvidenceConfig;

/// The settings; as TOML, every key is optional and unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttentionConfig {
    /// The dense decoder.
    pub model: PathBuf,
    /// What scripts/fetch_material.sh has written, whose kinds of text are read where `data` names none.
    pub material: PathBuf,
    /// Kinds of text as `NAME=PATH`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<String>,
    /// Where it computes.
    pub device: DeviceName,
    /// What passes compute in; scores, softmax and losses are f32.
    pub dtype: Precision,
    /// Decides which documents are read, and the facts.
    pub seed: u64,
    /// The study's folder.
    pub out: PathBuf,
    /// Where the results are written; RESULTS.md in the study's folder, unless it is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub results: Option<PathBuf>,
    /// What is read at each length.
    pub texts: Vec<Texts>,
    /// Shares of the keys.
    pub shares: Vec<f64>,
    /// The nearest keys that are kept anyway ..
    pub near: usize,
    /// .. and the first.
    pub first: usize,
    /// Tokens of each kind, of other documents, that directions of keys are fitted on.
    pub calibration_tokens: usize,
}

/// What is read at a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Texts {
    /// Tokens of a text.
    pub length: usize,
    /// Documents of each kind, at most.
    pub documents: usize,
    /// Facts that are asked again, at least, where there are any.
    pub facts: usize,
}

impl Default for AttentionConfig {
    fn default() -> Self {
        Self {
            model: "models/SmolLM2-135M-Instruct.Q4_1.gguf".into(),
            material: "material".into(),
            data: Vec::new(),
            device: DeviceName::Cpu,
            dtype: Precision::default(),
            seed: 1,
            out: "runs/attention".into(),
            results: None,
            texts: vec![
                Texts { length: 4096, documents: 24, facts: 2000 },
                Texts { length: 8192, documents: 12, facts: 2000 },
            ],
            shares: vec![0.25, 0.125, 0.0625],
            near: 32,
            first: 4,
            calibration_tokens: 16_384,
        }
    }
}

impl AttentionConfig {
    /// Refuses what cannot be run.
    ///
    /// # Errors
    /// The setting and the remedy.
    pub fn check(&self) -> Result<()> {
        let refuse = |name: &str, problem: String, remedy: &str| Err(Error::setting(name, problem, remedy));
        if let Some(share) = self.shares.iter().find(|share| !(**share > 0.0 && **share < 1.0)) {
            return refuse("shares", format!("has {share}"), "use shares between 0 and 1");
        }
        if let Some(texts) = self.texts.iter().find(|texts| texts.length < 64) {
            let problem = format!("has a length of {}, which leaves little to choose from", texts.length);
            return refuse("texts", problem, "use 64 tokens or more");
        }
        let lengths = self.texts.iter().map(|texts| texts.length).collect::<Vec<_>>();
        match (1..lengths.len()).find(|at| lengths[..*at].contains(&lengths[*at])) {
            Some(at) => refuse("texts", format!("has the length {} twice", lengths[at]), "name each length once"),
            None => Ok(()),
        }
    }

    /// Where the results are written.
    #[must_use]
    pub fn results_file(&self) -> PathBuf {
        self.results.clone().unwrap_or_else(|| self.out.join("RESULTS.md"))
    }

    /// The kinds of text, `NAME=PATH` each.
    ///
    /// # Errors
    /// A folder that cannot be read, or holds none.
    pub(crate) fn kinds(&self) -> Result<Vec<String>> {
        if !self.data.is_empty() {
            return Ok(self.data.clone());
        }
        EvidenceConfig { material: self.material.clone(), ..EvidenceConfig::default() }.kinds("text")
    }

    /// What is read at a length.
    pub(crate) fn texts_of(&self, length: usize) -> Option<Texts> {
        self.texts.iter().copied().find(|texts| texts.length == length)
    }
}
