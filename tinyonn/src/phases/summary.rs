//! `summary.json`: the figures of a run. Programs that study a run add the figures of their studies to it. The same seed on the same machine gives the same file but for `seconds`.
//!
//! Phase 1 writes a [`Phase1Summary`], phase 2 a [`Summary`]: the same keys, and `smk`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::lossless::LosslessFigures;
use super::text::CorpusFigures;
use crate::imaging::LabelStatistics;
use crate::moe::LoadFigures;
use crate::train::RouterAccuracy;
use crate::{Error, Result, files};

/// All figures of [`super::phase2()`].
///
/// ```
/// use tinyonn::phases::summary::{DecisionAccuracy, LoadStages, LossFigures, ModelFigures, RankCorrelation, RouterFigures, ScanFigures, SmkFigures};
/// use tinyonn::phases::text::CorpusFigures;
/// use tinyonn::phases::{Phase1Summary, Summary};
///
/// /// What a run says, in a few lines.
/// fn lines(summary: &Summary) -> Vec<String> {
///     let (phase1, smk): (&Phase1Summary, &SmkFigures) = (&summary.phase1, &summary.smk);
///     let (model, scan, corpus): (&ModelFigures, &ScanFigures, &CorpusFigures) = (&phase1.model, &phase1.scan, &phase1.corpus);
///     let (router, loss, load): (&RouterFigures, &LossFigures, &LoadStages) = (&phase1.router, &phase1.loss, &phase1.load);
///     let token: &DecisionAccuracy = &router.token;
///     let ranks: Option<&RankCorrelation> = smk.surprise_rank_correlation.as_ref();
///     vec![
///         format!("{} parameters, {} tokens of {}", model.parameters, scan.tokens, corpus.sha256),
///         format!("routers {:.3} of the groups, chance {:.3}", token.group_accuracy, token.chance),
///         format!("dense {:.3}, routed {:.3}, after SMK {:.3}", loss.dense, loss.routed_before, smk.routed),
///         format!("busiest {:.1} times the mean; ρ {:?}", load.before.max_over_mean(), ranks.map(|ranks| ranks.after)),
///     ]
/// }
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Summary {
    /// Up to routers that are fitted, experts frozen.
    #[serde(flatten)]
    pub phase1: Phase1Summary,
    /// Surprise Min-K.
    pub smk: SmkFigures,
}

/// All figures of [`super::phase1()`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Phase1Summary {
    /// The declared variant.
    pub variant: String,
    /// The run's seed.
    pub seed: u64,
    /// The text.
    pub corpus: CorpusFigures,
    /// The dense model.
    pub model: ModelFigures,
    /// The sparse model against the dense one, all active.
    pub lossless: LosslessFigures,
    /// The scan.
    pub scan: ScanFigures,
    /// The score that labels were made by, `_contrasted` where its mean over tasks was taken away, `_sinkhorn` where the
    /// experts were shared out evenly.
    pub labels_by: String,
    /// The labels.
    pub labels: LabelStatistics,
    /// The routers on the test split, in the pseudo-dense pass.
    pub router: RouterFigures,
    /// Nats a token on the test split.
    pub loss: LossFigures,
    /// The same by task.
    pub loss_by_task: BTreeMap<String, BTreeMap<String, f64>>,
    /// Routed loss under each set of random labels; `loss.routed_random_labels` is their mean.
    pub random_labels: Vec<f64>,
    /// Routed loss under each dealing of the labels to other tasks; `loss.routed_permuted_labels` is their mean.
    pub permuted_labels: Vec<f64>,
    /// The share of an MLP's neurons that a routed token uses (of replicas, the share of the experts), mean over layers.
    pub active_share: f64,
    /// How much work each expert was given on the test split.
    pub load: LoadStages,
    /// Wall-clock seconds by stage.
    pub seconds: serde_json::Map<String, serde_json::Value>,
}

/// The dense model of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelFigures {
    /// Parameters of the dense model.
    pub parameters: usize,
    /// Parameters of the routers beside it.
    pub router_parameters: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Experts a layer.
    pub experts: usize,
    /// How neurons were given to experts; replicas have none of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
}

/// What the scan read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScanFigures {
    /// The share of (layer, token, neuron) with a surprise above zero.
    pub gradient_nonzero_share: f64,
    /// Tokens that counted.
    pub tokens: u64,
}

/// Router accuracy for the unit that the variant decides for, and for both units by layer and level.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RouterFigures {
    /// |predicted ∩ label| / k₁, mean over layers.
    pub group_accuracy: f64,
    /// The same over the experts of the whole path.
    pub expert_accuracy: f64,
    /// Group accuracy of the commonest path.
    pub chance: f64,
    /// Expert accuracy of the commonest path.
    pub expert_chance: f64,
    /// Each token by its own hidden state.
    pub token: DecisionAccuracy,
    /// What shares a decision by the mean over the tokens that it reads, with routers fitted to such means: segments or beginnings of sequences as the
    /// variant declares them, the first 64 tokens where it decides otherwise.
    pub sequence: DecisionAccuracy,
    /// Each token against its own label, where tokens have one, by layer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own_labels: Vec<crate::train::LevelAccuracy>,
}

/// Router accuracy, decision by decision: of tokens, or of what shares one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DecisionAccuracy {
    /// Mean over layers.
    pub group_accuracy: f64,
    /// Mean over layers.
    pub expert_accuracy: f64,
    /// Mean over layers.
    pub chance: f64,
    /// Mean over layers.
    pub expert_chance: f64,
    /// By layer: accuracy and chance by level.
    pub layers: Vec<crate::train::LevelAccuracy>,
}

impl DecisionAccuracy {
    /// From the accuracy of all layers.
    #[must_use]
    pub fn new(accuracy: &RouterAccuracy) -> Self {
        let last = accuracy.layers.first().map_or(0, |layer| layer.accuracy.len().saturating_sub(1));
        Self {
            group_accuracy: accuracy.mean(0),
            expert_accuracy: accuracy.mean(last),
            chance: accuracy.chance(0),
            expert_chance: accuracy.chance(last),
            layers: accuracy.layers.clone(),
        }
    }
}

/// Losses on the test split.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct LossFigures {
    /// The dense model; the sparse one all active is the same.
    pub dense: f64,
    /// Routed by fitted routers, before SMK.
    pub routed_before: f64,
    /// On the labels' own paths, the task known: the routers' ceiling.
    pub label_paths: f64,
    /// Routers fitted to random paths, mean over three draws.
    pub routed_random_labels: f64,
    /// Routers fitted to the same paths dealt to other tasks, mean over three dealings.
    pub routed_permuted_labels: f64,
}

/// The load of the experts on the test split.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoadStages {
    /// If every token took its task's path.
    pub asked: LoadFigures,
    /// Routed, before SMK.
    pub before: LoadFigures,
}

/// What SMK did; losses on the test split, in nats a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SmkFigures {
    /// Learners among active experts, mean over steps and layers.
    pub updated_share: f64,
    /// Routed, after SMK.
    pub routed: f64,
    /// All active, after SMK: what differentiation did to the dense function.
    pub all_active: f64,
    /// Both by task.
    pub by_task: BTreeMap<String, BTreeMap<String, f64>>,
    /// How much work each expert was given, routed, after SMK.
    pub load: LoadFigures,
    /// How nearly the two forms of surprise rank the experts of slices alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub surprise_rank_correlation: Option<RankCorrelation>,
}

/// Spearman's ρ of the surprises `token` and `exact` over the active experts, on the first micro-batch of the training text; mean over layers.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct RankCorrelation {
    /// Of the experts before SMK.
    pub before: f64,
    /// Of the same, after.
    pub after: f64,
}

/// Writes figures as pretty JSON, whole or not at all.
///
/// ```
/// use tinyonn::phases::summary::write;
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("summary.json");
/// write(&serde_json::json!({ "loss": 2.25 }), &path)?;
/// assert_eq!(std::fs::read_to_string(&path)?, "{\n  \"loss\": 2.25\n}\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A figure that is not finite; what the system reports.
pub fn write(figures: &impl Serialize, path: &Path) -> Result<()> {
    let remedy = "look for the first figure of metrics.jsonl that is out of line; lower the learning rate";
    let json =
        serde_json::to_value(figures).map_err(|e| Error::file(path, e.to_string(), "report this as a defect"))?;
    if let Some(name) = not_finite(&json) {
        return Err(Error::file(path, format!("the figure `{name}` is not finite"), remedy));
    }
    files::write(path, format!("{json:#}\n"))
}

/// The dotted name of the first figure that JSON cannot hold: serde writes it as null, and nothing else here is null.
fn not_finite(json: &Value) -> Option<String> {
    let below = |name: &str, value: &Value| {
        let inner = not_finite(value)?;
        Some(if inner.is_empty() { name.to_owned() } else { format!("{name}.{inner}") })
    };
    match json {
        Value::Null => Some(String::new()),
        Value::Object(object) => object.iter().find_map(|(name, value)| below(name, value)),
        Value::Array(values) => values.iter().enumerate().find_map(|(at, value)| below(&at.to_string(), value)),
        _ => None,
    }
}
