//! Phase 2, Surprise Min-K: of the experts a batch was routed to, only the `min_k` with the smallest surprise learn.
//!
//! The surprise of expert n over a batch is known before any weight gradient:
//! S_n = √( Σ over its tokens t and neurons i of S²(t, i) / (tokens × width) ), S²(t, i) = ‖δ_y‖² (c h)² + (δ_g² + δ_u²) ‖x‖².
//! (`surprise_norm = rms`: without the division load alone would decide.) Losers' weight gradients are never formed, and losers
//! *skip* their step: no momentum, no decay, no step count (DESIGN §4). Experts without a token do not compete. The rate is constant.
//! The log has a line every ten steps: the loss, and the load of the steps since the last one (`load_max_over_mean` of the worst layer;
//! `load_evenness` and `load_dead`, means over layers: [`crate::moe::load_figures`]).
//! Replicas learn by their deltas, and their surprise is known only behind the backward pass (`smk/replicas.rs`).

mod choice;
mod replicas;
mod slices;

pub use choice::Choice;
pub use slices::Smk;

use std::sync::Arc;

use candle_core::DType;
use candle_core::backprop::GradStore;
use serde::{Deserialize, Serialize};

use replicas::ReplicaSmk;

use super::optimizer::Lines;
use super::router_training::{self, RouterTraining};
use super::{AdamW, AdamwConfig, Model};
use crate::Result;
use crate::checkpoint::{ParamStore, is_delta};
use crate::data::Sampler;
use crate::metrics::{MetricsLog, Progress, Stage};
use crate::model::TinyOnnForCausalLm;
use crate::moe::{ExpertsAre, LoadFigures};
use crate::ops::{self, MlpProbe};
use crate::qwen3::RouteCtx;

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

    fn keep_learners(&mut self, store: &ParamStore, grads: &mut GradStore, load: &[Vec<f64>]) -> Result<()> {
        match self {
            Self::Slices(_) => Ok(()),
            Self::Replicas(smk) => smk.keep_learners(store, grads, load),
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
/// use tinyonn::imaging::{Partition, PartitionSources, partition};
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
/// let units = partition::assign(Partition::Random, &Learners::SPEC, (1, 24), PartitionSources::default(), 0)?;
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
    let routing = Arc::new(RouterTraining::beside(routed.observer.clone()));
    let mut selection = if let Some(units) = model.neuron_experts()? {
        let smk = Smk::new(config.min_k, variant.spec.experts(), units)?;
        Selection::Slices(Arc::new(smk.behind(variant.spec.open_positions(), sampler.length())))
    } else {
        Selection::Replicas(ReplicaSmk::new(config.min_k, store, cfg.num_hidden_layers, variant.spec.experts())?)
    };
    let ctx = RouteCtx { probe: selection.probe(), observer: Some(routing.clone()), ..routed.clone() };
    let vars = store.trainable(learns);
    let mut optimizer = AdamW::new(config.adamw);
    let progress = Progress::new(config.steps, "smk");
    let (mut shares, mut count) = (0.0, 0u64);
    // Tokens by layer and expert since the last line of the log.
    let mut logged: Vec<Vec<f64>> = Vec::new();
    for step in 0..config.steps {
        let batch = sampler.batch_at(step)?;
        let training = routers.then(|| sampler.seed_at(step));
        let ctx = RouteCtx { tasks: Some(Arc::from(batch.tasks.as_slice())), training, ..ctx.clone() };
        let losses = model.lm().token_losses(&batch.inputs, &batch.targets, &ctx)?.reshape(batch.targets.shape())?;
        // What a shared decision reads runs all active, and is left out of routed losses.
        let length = losses.dim(1)?;
        let open = variant.spec.open_positions().min(length - 1);
        let loss = losses.narrow(1, open, length - open)?.mean_all()?;
        let stage = Stage { name: "Surprise Min-K", rate_key: "smk.adamw.rate", rate: config.adamw.rate };
        // Frozen routers report no loss.
        let total = routing.add_to(loss.clone())?;
        let mut grads = ops::backward(&total)?;
        let load = routing.take_load();
        selection.keep_learners(store, &mut grads, &load)?;
        let norm = optimizer.step(&vars, &grads, |name| selection.lines(name))?;
        stage.check("gradient's norm", norm, step)?;
        if routers {
            router_training::balance(store, &variant.spec, &load)?;
        }
        for choice in selection.choices() {
            shares += choice.learners.len() as f64 / choice.active.len().max(1) as f64;
            count += 1;
        }
        add(&mut logged, load);
        if step % 10 == 0 || step + 1 == config.steps {
            let loss = f64::from(loss.to_scalar::<f32>()?);
            stage.check("loss", loss, step)?;
            let load = LoadFigures::new(&variant.spec, &std::mem::take(&mut logged));
            let [peak, evenness, dead] = [load.max_over_mean(), load.evenness(), load.dead()];
            let load = [("load_max_over_mean", peak), ("load_evenness", evenness), ("load_dead", dead)];
            log.log(step, "smk", &[&[("loss", loss)], &load[..]].concat())?;
            progress.message(format!("loss {loss:.3}"));
        }
        progress.set(step + 1);
    }
    progress.finish();
    Ok(SmkOutcome { updated_share: shares / count.max(1) as f64 })
}

/// Adds what a step gave each expert of each layer.
fn add(sums: &mut Vec<Vec<f64>>, load: Vec<Vec<f64>>) {
    if sums.is_empty() {
        *sums = load;
    } else {
        sums.iter_mut().flatten().zip(load.into_iter().flatten()).for_each(|(sum, load)| *sum += load);
    }
}
