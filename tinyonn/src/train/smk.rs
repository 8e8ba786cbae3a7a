//! Phase 2, Surprise Min-K: of the experts a batch was routed to, only the `min_k` with the smallest surprise learn.
//!
//! The surprise of expert n over a batch is known before any weight gradient:
//! S_n = √( Σ over its tokens t and neurons i of S²(t, i) / (tokens × width) ), S²(t, i) = ‖δ_y‖² (c h)² + (δ_g² + δ_u²) ‖x‖².
//! (`surprise_norm = rms`: without the division load alone would decide.) Losers' weight gradients are never formed, and losers
//! *skip* their step: no momentum, no decay, no step count (DESIGN §4). Experts without a token do not compete. The rate is constant.
//! Replicas learn by their deltas, and their surprise is known only behind the backward pass (`smk_replicas`).

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::DType;
use candle_core::backprop::GradStore;
use serde::{Deserialize, Serialize};

use super::optimizer::Lines;
use super::router_training::RouterTraining;
use super::smk_replicas::ReplicaSmk;
use super::{AdamW, AdamwConfig, Model};
use crate::checkpoint::{ParamStore, is_delta};
use crate::data::Sampler;
use crate::metrics::{MetricsLog, Progress, Stage};
use crate::model::TinyOnnForCausalLm;
use crate::moe::ExpertsAre;
use crate::ops::{self, MlpBackward, MlpProbe, WeightGrads};
use crate::qwen3::RouteCtx;
use crate::{Error, Result};

/// How experts differentiate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SmkConfig {
    /// Optimizer steps.
    pub steps: u64,
    /// Sequences a step.
    pub batch: usize,
    /// Experts of a layer that learn in a step; as many as are active or more is `all`.
    pub min_k: usize,
    /// Whether routers learn too: by the gates' gradients (`gate = scaled` or `straight_through`) and their auxiliary losses.
    pub routers: bool,
    /// The optimizer; its rate is constant.
    pub adamw: AdamwConfig,
}

impl Default for SmkConfig {
    fn default() -> Self {
        let adamw = AdamwConfig { rate: 5e-4, decay: 0.0, ..AdamwConfig::default() };
        Self { steps: 300, batch: 8, min_k: 25, routers: false, adamw }
    }
}

/// The remedy for units of another model.
const UNITS: &str = "take them from this model (`neuron_experts`)";

/// Picks the learners of every layer, from inside the backward pass.
pub struct Smk {
    min_k: usize,
    experts: usize,
    /// `units[layer][i]`: the expert of neuron i.
    units: Vec<Vec<u32>>,
    choices: Mutex<Vec<Choice>>,
}

/// What one layer's last backward decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Experts routed at least one token, ascending.
    pub active: Vec<u32>,
    /// Those that learn, ascending.
    pub learners: Vec<u32>,
}

impl Smk {
    /// For experts given by `units[layer][i]`, of `experts` a layer.
    ///
    /// # Errors
    /// `min_k` of zero: nothing would ever learn; a unit that is none of `experts`.
    pub fn new(min_k: usize, experts: usize, units: Vec<Vec<u32>>) -> Result<Self> {
        if min_k == 0 {
            return Err(Error::setting("min_k", "no expert would learn", "use 1 or more"));
        }
        if let Some(unit) = units.iter().flatten().find(|unit| **unit as usize >= experts) {
            let problem = format!("a neuron belongs to expert {unit}, and there are {experts}");
            return Err(Error::setting("units", problem, UNITS));
        }
        let choices = Mutex::new(vec![Choice::default(); units.len()]);
        Ok(Self { min_k, experts, units, choices })
    }

    /// What each layer's last backward decided.
    #[must_use]
    pub fn choices(&self) -> Vec<Choice> {
        self.choices.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Which lines of the parameter `name` learn, by the last backward; `None` for parameters that are no expert's.
    #[must_use]
    pub fn lines(&self, name: &str) -> Option<Lines> {
        let (layer, matrix) = name.strip_prefix("model.layers.")?.split_once(".mlp.")?;
        let axis = match matrix {
            "gate_proj.weight" | "up_proj.weight" => 0,
            "down_proj.weight" => 1,
            _ => return None,
        };
        let layer: usize = layer.parse().ok()?;
        let choices = self.choices.lock().unwrap_or_else(PoisonError::into_inner);
        let learners = &choices.get(layer)?.learners;
        let learn = self.units[layer].iter().map(|expert| learners.binary_search(expert).is_ok()).collect();
        Some(Lines { axis, learn })
    }
}

/// S_n of each expert, `None` if no token was routed to it.
fn surprises(pass: &MlpBackward<'_>, units: &[u32], experts: usize) -> candle_core::Result<Vec<Option<f64>>> {
    let tokens = pass.x_td.dim(0)?;
    let sums = ops::neuron_moments(pass, &vec![true; tokens])?;
    let (mut squares, mut widths) = (vec![0f64; experts], vec![0f64; experts]);
    for (unit, square) in units.iter().zip(&sums.surprise_squared) {
        squares[*unit as usize] += square;
        widths[*unit as usize] += 1.0;
    }
    // Every neuron of an expert carries its gate, so one neuron tells the expert's tokens.
    let routed: Vec<f64> = match pass.gate_ti {
        None => vec![tokens as f64; units.len()],
        Some(gate_ti) => gate_ti.ne(0f64)?.to_dtype(DType::F32)?.sum(0)?.to_dtype(DType::F64)?.to_vec1()?,
    };
    let mut tokens = vec![0f64; experts];
    units.iter().zip(&routed).for_each(|(unit, routed)| tokens[*unit as usize] = *routed);
    let rms = |n: usize| (tokens[n] > 0.0).then(|| (squares[n] / (tokens[n] * widths[n])).sqrt());
    Ok((0..experts).map(rms).collect())
}

impl MlpProbe for Smk {
    fn observe(&self, layer: usize, pass: &MlpBackward<'_>) -> candle_core::Result<WeightGrads> {
        let width = pass.h_ti.dim(1)?;
        let Some(units) = self.units.get(layer).filter(|units| units.len() == width) else {
            let problem = format!("they give no expert to each of the {width} neurons of layer {layer}");
            return Err(Error::setting("units", problem, UNITS).into());
        };
        let surprises = surprises(pass, units, self.experts)?;
        let mut order: Vec<(f64, u32)> =
            surprises.iter().enumerate().filter_map(|(n, s)| s.map(|s| (s, n as u32))).collect();
        let mut active: Vec<u32> = order.iter().map(|(_, n)| *n).collect();
        active.sort_unstable();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut learners: Vec<u32> = order.into_iter().take(self.min_k).map(|(_, n)| n).collect();
        learners.sort_unstable();
        let neurons = (0..units.len() as u32).filter(|i| learners.binary_search(&units[*i as usize]).is_ok()).collect();
        let all = learners.len() == self.experts;
        self.choices.lock().unwrap_or_else(PoisonError::into_inner)[layer] = Choice { active, learners };
        Ok(if all { WeightGrads::All } else { WeightGrads::Neurons(neurons) })
    }
}

/// How learners are picked: slices from inside the backward pass, replicas behind it.
enum Selection {
    Slices(Arc<Smk>),
    Replicas(ReplicaSmk),
}

impl Selection {
    fn probe(&self) -> Option<Arc<dyn MlpProbe>> {
        match self {
            Self::Slices(smk) => Some(smk.clone()),
            Self::Replicas(_) => None,
        }
    }

    fn keep_learners(&mut self, store: &ParamStore, grads: &mut GradStore) -> Result<()> {
        match self {
            Self::Slices(_) => Ok(()),
            Self::Replicas(smk) => smk.keep_learners(store, grads),
        }
    }

    fn lines(&self, name: &str) -> Option<Lines> {
        match self {
            Self::Slices(smk) => smk.lines(name),
            Self::Replicas(_) => None,
        }
    }

    fn choices(&self) -> Vec<Choice> {
        match self {
            Self::Slices(smk) => smk.choices(),
            Self::Replicas(smk) => smk.choices().to_vec(),
        }
    }
}

/// What the training did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SmkOutcome {
    /// Learners among active experts, mean over steps and layers.
    pub updated_share: f64,
}

/// Differentiates the experts of a model, routed as `routed` says; everything but the experts is frozen, and the routers unless asked.
///
/// # Errors
/// A `min_k` of zero; a loss or gradient that is no finite number; whatever the model or the log reports.
///
/// ```
/// use candle_core::Device;
/// use tinyonn::checkpoint::{ParamStore, upcycle};
/// use tinyonn::data::{Sampler, TaskTokens, TokenSet};
/// use tinyonn::imaging::Partition;
/// use tinyonn::metrics::MetricsLog;
/// use tinyonn::moe::{self, moe};
/// use tinyonn::qwen3::{Qwen3Config, Qwen3ForCausalLm, RouteCtx};
/// use tinyonn::train::{SmkConfig, train_smk};
///
/// #[moe(groups = 2, experts = 3)]
/// struct Learners;
///
/// let variant = moe::variant("Learners")?;
/// let cfg = Qwen3Config::from_json(&serde_json::json!({
///     "model_type": "qwen3", "vocab_size": 280, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
///     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
/// }), "config.json")?;
/// let dense = ParamStore::initialise(&Device::Cpu, 0, |vb| Qwen3ForCausalLm::dense(&cfg, &vb).map(drop))?;
/// let units = Partition::Random.assign(&Learners::SPEC, (1, 24), None, 0)?;
/// let store = upcycle(&dense, &cfg, variant, &units, 0)?;
///
/// let task = TaskTokens { name: "count".into(), tokens: (0..200).collect(), documents: vec![0; 200] };
/// let set = TokenSet { tasks: vec![task], documents: vec!["count/a".into()], eos: 0 };
/// let config = SmkConfig { steps: 3, batch: 4, min_k: 1, ..SmkConfig::default() };
/// let sampler = Sampler::new(&set, 32, config.batch, 0, &Device::Cpu)?;
/// let dir = tempfile::tempdir()?;
/// let mut log = MetricsLog::create(dir.path().join("smk.jsonl"))?;
/// let outcome = train_smk((&store, &cfg, variant), &RouteCtx::routed(), &sampler, &config, &mut log)?;
/// assert!(outcome.updated_share < 1.0); // one of several active experts
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn train_smk(
    (store, cfg, variant): Model<'_>,
    routed: &RouteCtx,
    sampler: &Sampler<'_>,
    config: &SmkConfig,
    log: &mut MetricsLog,
) -> Result<SmkOutcome> {
    let (routers, replicas) = (config.routers, variant.spec.experts_are == ExpertsAre::Replicate);
    let learns = move |name: &str| {
        let expert = name.contains(".mlp.") && name.ends_with("_proj.weight") && is_delta(name) == replicas;
        expert || (routers && name.contains("_router."))
    };
    let model = TinyOnnForCausalLm::new(cfg, variant, &store.builder(DType::F32, learns))?;
    let mut selection = match model.neuron_experts()? {
        Some(units) => Selection::Slices(Arc::new(Smk::new(config.min_k, variant.spec.experts(), units)?)),
        None => {
            Selection::Replicas(ReplicaSmk::new(config.min_k, store, cfg.num_hidden_layers, variant.spec.experts())?)
        }
    };
    let routing = Arc::new(RouterTraining::default());
    let ctx = RouteCtx { probe: selection.probe(), observer: Some(routing.clone()), ..routed.clone() };
    let vars = store.trainable(learns);
    let mut optimizer = AdamW::new(config.adamw);
    let progress = Progress::new(config.steps, "smk");
    let (mut shares, mut count) = (0.0, 0u64);
    for step in 0..config.steps {
        let batch = sampler.batch_at(step)?;
        let training = routers.then_some(step);
        let ctx = RouteCtx { tasks: Some(Arc::from(batch.tasks.as_slice())), training, ..ctx.clone() };
        let loss = model.lm().token_losses(&batch.inputs, &batch.targets, &ctx)?.mean_all()?;
        let stage = Stage { name: "Surprise Min-K", rate_key: "smk.adamw.rate", rate: config.adamw.rate };
        let total = routing.add_to(loss.clone())?;
        let mut grads = ops::backward(&total)?;
        selection.keep_learners(store, &mut grads)?;
        let norm = optimizer.step(&vars, &grads, |name| selection.lines(name))?;
        stage.check("gradient's norm", norm, step)?;
        routing.balance(store, &variant.spec)?;
        for choice in selection.choices() {
            shares += choice.learners.len() as f64 / choice.active.len().max(1) as f64;
            count += 1;
        }
        if step % 10 == 0 || step + 1 == config.steps {
            let loss = f64::from(loss.to_scalar::<f32>()?);
            stage.check("loss", loss, step)?;
            log.log(step, "smk", &[("loss", loss)])?;
            progress.message(format!("loss {loss:.3}"));
        }
        progress.set(step + 1);
    }
    progress.finish();
    Ok(SmkOutcome { updated_share: shares / count.max(1) as f64 })
}
