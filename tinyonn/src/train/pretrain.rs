//! Dense pretraining: cross-entropy under AdamW, the rate warmed up linearly and decayed by a cosine to a tenth.

use candle_core::DType;
use serde::{Deserialize, Serialize};

use super::{AdamW, AdamwConfig};
use crate::checkpoint::ParamStore;
use crate::data::Sampler;
use crate::metrics::{MetricsLog, Progress, Stage};
use crate::qwen3::{Qwen3Config, Qwen3ForCausalLm, RouteCtx};
use crate::{Result, ops};

/// How a dense model is pretrained.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainConfig {
    /// Optimizer steps.
    pub steps: u64,
    /// Sequences a step.
    pub batch: usize,
    /// Steps over which the rate rises from zero.
    pub warmup: u64,
    /// The optimizer; `rate` is the highest.
    pub adamw: AdamwConfig,
}

impl Default for PretrainConfig {
    fn default() -> Self {
        Self { steps: 2400, batch: 8, warmup: 100, adamw: AdamwConfig { rate: 4e-3, ..AdamwConfig::default() } }
    }
}

/// The rate of a step.
fn rate(config: &PretrainConfig, step: u64) -> f64 {
    let rise = ((step + 1) as f64 / config.warmup.max(1) as f64).min(1.0);
    let done = step as f64 / config.steps.max(1) as f64;
    config.adamw.rate * rise * (0.55 + 0.45 * (std::f64::consts::PI * done).cos())
}

/// A dense model of shape `cfg`, initialised from `seed` and trained on the sampler's batches; losses go to `log`.
///
/// # Errors
/// A loss or gradient that is no finite number; whatever the model or the log reports.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::data::{Corpus, Sampler, TextTokenizer, TokenSet, arithmetic};
/// use tinyonn::metrics::{self, MetricsLog};
/// use tinyonn::qwen3::Qwen3Config;
/// use tinyonn::train::{PretrainConfig, pretrain};
///
/// let corpus = Corpus { tasks: vec![arithmetic(0, 10_000)] };
/// let set = TokenSet::encode(&corpus, &TextTokenizer::train(&corpus, 280)?)?;
/// let cfg = Qwen3Config::from_json(&serde_json::json!({
///     "model_type": "qwen3", "vocab_size": 280, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
///     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
/// }), "config.json")?;
/// let config = PretrainConfig { steps: 20, batch: 4, warmup: 2, ..PretrainConfig::default() };
/// let sampler = Sampler::new(&set, 32, config.batch, 0, &Device::Cpu)?;
///
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("pretrain.jsonl");
/// let store = pretrain(&cfg, &config, &sampler, &Device::Cpu, 0, &mut MetricsLog::create(&path)?)?;
/// assert_eq!(store.parameters(), cfg.parameters());
/// let records = metrics::read(&path)?;
/// assert!(records[2].values[0].1 < records[0].values[0].1); // the loss
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn pretrain(
    cfg: &Qwen3Config,
    config: &PretrainConfig,
    sampler: &Sampler<'_>,
    device: &candle_core::Device,
    seed: u64,
    log: &mut MetricsLog,
) -> Result<ParamStore> {
    let store = ParamStore::initialise(device, seed, |vb| Qwen3ForCausalLm::dense(cfg, &vb).map(|_| ()))?;
    let model = Qwen3ForCausalLm::dense(cfg, &store.builder(DType::F32, |_| true))?;
    let vars = store.trainable(|_| true);
    let mut optimizer = AdamW::new(config.adamw);
    let progress = Progress::new(config.steps, "pretrain");
    for step in 0..config.steps {
        let batch = sampler.batch_at(step)?;
        let loss = model.token_losses(&batch.inputs, &batch.targets, &RouteCtx::all())?.mean_all()?;
        optimizer.config.rate = rate(config, step);
        let stage = Stage { name: "pretraining", rate_key: "pretrain.adamw.rate", rate: config.adamw.rate };
        let norm = optimizer.step(&vars, &ops::backward(&loss)?, |_| None)?;
        stage.check("gradient's norm", norm, step)?;
        if step % 10 == 0 || step + 1 == config.steps {
            let loss = f64::from(loss.to_scalar::<f32>()?);
            stage.check("loss", loss, step)?;
            log.log(step, "pretrain", &[("loss", loss), ("rate", optimizer.config.rate), ("gradient_norm", norm)])?;
            progress.message(format!("loss {loss:.3}"));
        }
        progress.set(step + 1);
    }
    progress.finish();
    Ok(store)
}
