//! What is made sparse, and how.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{DeviceName, RunConfig};
use crate::imaging::partition::profile;
use crate::imaging::{Choose, Cut};
use crate::moe::{AttentionSpec, MoeSpec, Neurons, RouterKind, RouterSpec};
use crate::train::{DistilConfig, Precision, RouterTarget};
use crate::{Error, Result};

/// What all layers together take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shares {
    /// The share on average over layers, each as much as its neurons are worth on held-out text.
    #[default]
    ByLayer,
    /// The share in every layer.
    Uniform,
}

/// What a unit of a neuron's h is taken to be worth where neurons are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Worth {
    /// The norm of its row of W_d: how far it moves the stream.
    Norm,
    /// √E (∂L/∂h)² on held-out text: how far it moves the loss.
    #[default]
    Sensitivity,
}

/// What is made sparse, and how. As TOML, every key is optional and unknown keys are refused.
///
/// ```
/// use tinyonn::phases::{Shares, SparsifyConfig, Worth};
///
/// let config = SparsifyConfig { active_share: 0.5, shares: Shares::Uniform, worth: Worth::Norm, ..SparsifyConfig::default() };
/// assert_eq!((config.variant.as_str(), config.distil.steps), ("OwnGate", 0));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SparsifyConfig {
    /// A dense decoder: a Hugging Face folder or a GGUF file.
    pub model: Option<PathBuf>,
    /// A declared variant whose tokens choose neurons, or slices of weight 1 behind linear routers, or both.
    pub variant: String,
    /// The share of the MLP's counted operations that a token takes.
    pub active_share: f64,
    /// Whether layers differ in what they take.
    pub shares: Shares,
    /// Of a gate, the share of each layer's neurons that may be taken at all; not given: by layer what costs least, uniformly all; behind routers what leaves
    /// out least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub candidates: Option<f64>,
    /// Of a gate without routers, the share of x's channels that W_g reads; not given: by layer what costs least, uniformly (operations / candidates)^0.6; where a
    /// number of neurons is taken, all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inputs: Option<f64>,
    /// What a unit of h is worth.
    pub worth: Worth,
    /// How the choices of routers and gates are bounded; not given: by threshold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choose: Option<Choose>,
    /// What routers are fitted to, where there are any.
    #[serde(skip_serializing_if = "RouterTarget::is_sqrt")]
    pub router_target: RouterTarget,
    /// λ of the repair in closed form; 0 leaves layers as they are.
    pub ridge: f64,
    /// Whether a repair has a bias, b.
    pub bias: bool,
    /// What attention computes in routed passes, in place of what the variant declares: kept in the checkpoint. Calibration and repair attend to all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention: Option<AttentionSpec>,
    /// Kinds of text as `NAME=PATH`; without any, the default text.
    pub data: Vec<String>,
    /// Decides everything random.
    pub seed: u64,
    /// Where it computes.
    pub device: DeviceName,
    /// What passes compute in, distillation's too, whatever its `memory.weights` say. Scores, repairs and what learns are f32.
    #[serde(skip_serializing_if = "Precision::is_f32")]
    pub dtype: Precision,
    /// The folder of the results.
    pub out: PathBuf,
    /// Tokens a sequence.
    pub length: usize,
    /// Sequences a batch.
    pub batch: usize,
    /// Training tokens of each kind that it is calibrated and repaired on, at most.
    pub calibration_tokens: usize,
    /// Validation tokens of each kind that shares by layer are found on, at most.
    pub validation_tokens: usize,
    /// Test tokens of each kind that losses are taken over, at most.
    pub test_tokens: usize,
    /// How it learns from the dense model behind all that.
    pub distil: DistilConfig,
}

impl Default for SparsifyConfig {
    fn default() -> Self {
        let run = RunConfig::default();
        Self {
            model: None,
            variant: "OwnGate".into(),
            active_share: 0.5,
            shares: Shares::ByLayer,
            candidates: None,
            inputs: None,
            worth: Worth::Sensitivity,
            choose: None,
            router_target: RouterTarget::Sqrt,
            ridge: 0.01,
            bias: true,
            attention: None,
            data: Vec::new(),
            seed: 0,
            device: run.device,
            dtype: run.dtype,
            out: "runs/sparsify".into(),
            length: run.length,
            batch: run.batch,
            calibration_tokens: 16_384,
            validation_tokens: 1024,
            test_tokens: run.test_tokens,
            distil: DistilConfig::DEFAULT,
        }
    }
}

impl SparsifyConfig {
    /// Refuses what nothing can be made of, before anything is read.
    pub(super) fn check(&self) -> Result<()> {
        let spec = &crate::moe::variant(&self.variant)?.spec;
        check_variant(spec)?;
        let refuse = |name: &str, problem: String, remedy: &str| Err(Error::setting(name, problem, remedy));
        let share = |name: &str, value: f64| {
            if value > 0.0 && value <= 1.0 {
                return Ok(());
            }
            refuse(name, format!("is {value}"), "use more than 0, and at most 1")
        };
        share("active_share", self.active_share)?;
        for (name, value) in [("candidates", self.candidates), ("inputs", self.inputs)] {
            value.map_or(Ok(()), |value| share(name, value))?;
        }
        let (fixed, whole) = (spec.neurons == Neurons::Pruned, spec.neurons == Neurons::All);
        let given = [
            ("choose", self.choose.is_some() && fixed),
            ("candidates", self.candidates.is_some() && (fixed || whole)),
            ("inputs", self.inputs.is_some() && (fixed || whole)),
        ];
        if let Some((name, _)) = given.into_iter().find(|(_, given)| *given) {
            let takes = if fixed { "the same neurons for every token" } else { "whole experts" };
            let problem = format!("is for a gate, and {} takes {takes}", spec.name);
            return refuse(name, problem, "remove it, or take a variant with `neurons = gate`");
        }
        let reads_a_part = self.inputs.is_some_and(|inputs| inputs < 1.0);
        if reads_a_part && (self.choose == Some(Choose::TopK) || !spec.levels.is_empty()) {
            let why = if spec.levels.is_empty() {
                "`choose = top_k` bounds numbers of neurons alone"
            } else {
                "routers choose before gates do"
            };
            return refuse(
                "inputs",
                format!("is less than 1, and {why}"),
                "use 1, or a variant without levels and `choose = threshold`",
            );
        }
        for (name, tokens) in [
            ("calibration_tokens", self.calibration_tokens),
            ("validation_tokens", self.validation_tokens),
            ("test_tokens", self.test_tokens),
        ] {
            // Of one token there is none that it predicts.
            if tokens < 2 {
                return refuse(name, format!("is {tokens}"), "use 2 or more");
            }
        }
        let [candidates, inputs] = [self.candidates, self.inputs].map(|share| share.unwrap_or(1.0));
        let most = candidates * (inputs + 2.0) / 3.0;
        if self.active_share > most + 1e-9 {
            let problem = format!("is {}, more than the {most:.3} that all candidates cost", self.active_share);
            return refuse("active_share", problem, "use less, or more candidates or inputs");
        }
        if self.distil.steps > 0 {
            DistilConfig { memory: self.distil.memory.within(self.dtype), ..self.distil }.check()?;
        }
        if !(self.ridge >= 0.0 && self.ridge.is_finite()) {
            return refuse("ridge", format!("is {}", self.ridge), "use 0, which repairs nothing, or more");
        }
        if self.shares == Shares::Uniform {
            self.uniform(spec, self.active_share)?;
        }
        Ok(())
    }

    /// The share of x that W_g reads of every layer, where it is said; where a number of neurons is taken, all of it.
    pub(super) fn inputs_of_all(&self) -> Option<f64> {
        let by_number = self.choose.unwrap_or_default() == Choose::TopK;
        self.inputs.or_else(|| by_number.then_some(1.0))
    }

    /// The same for each layer, of so many operations beside those of routers.
    pub(super) fn uniform(&self, spec: &MoeSpec, operations: f64) -> Result<Cut> {
        // Where routers choose, candidates and neurons are found layer by layer.
        if spec.neurons == Neurons::Pruned || !spec.levels.is_empty() {
            return Ok(Cut::of(operations, operations));
        }
        let candidates = self.candidates.unwrap_or(1.0);
        let cut = match self.inputs_of_all() {
            Some(inputs) => {
                let neurons = ((3.0 * operations - inputs * candidates) / 2.0).min(candidates);
                (neurons > 0.0).then_some(Cut { inputs, candidates, neurons })
            }
            None => Cut::by_thresholds(operations, candidates),
        };
        if let Some(cut) = cut {
            return Ok(cut);
        }
        let problem = format!("is {operations}, which the gates of {candidates} of the neurons take up");
        Err(Error::setting("active_share", problem, "use more, or fewer candidates or inputs"))
    }
}

/// Refuses a variant that no text can say the share of, or whose routers no closed form fits.
fn check_variant(spec: &MoeSpec) -> Result<()> {
    let variant = |problem: String, remedy: &str| Err(Error::variant(spec.name.clone(), problem, remedy));
    if !spec.can_be_calibrated() {
        let problem = "its tokens choose neither neurons nor slices of weight 1, each for itself".to_owned();
        return variant(
            problem,
            "declare `neurons = gate`, such as OwnGate, or routers without `gate`, `pfag`, `balance`",
        );
    }
    if let Some(partition) = spec.partition.filter(|partition| profile(*partition).is_some()) {
        let problem = format!("`partition = {partition}` is made from a scan, and none is taken here");
        return variant(problem, "declare `partition = coactivation`");
    }
    let is_linear = |run: &&RouterSpec| matches!(run.kind, RouterKind::Linear | RouterKind::LowRank { .. });
    match spec.levels.iter().flat_map(|level| level.routers.iter()).find(|run| !is_linear(run)) {
        Some(run) => variant(
            format!("its `{}_router` is no linear router, and others have no ridge fit", run.name),
            "declare `router = linear(dim = 32)`, such as GroupedGate",
        ),
        None => Ok(()),
    }
}
