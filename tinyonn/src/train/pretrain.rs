//! Dense pretraining: cross-entropy under AdamW, the rate warmed up linearly and decayed by a cosine to a tenth.

use candle_core::DType;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::state::slots;
use super::{AdamwConfig, Checkpoints, Rule, Saving, TrainState, train};
use crate::Result;
use crate::checkpoint::{ParamStore, dense_params};
use crate::data::Sampler;
use crate::metrics::MetricsLog;
use crate::qwen3::{Learn, Pass, Qwen3Config, Qwen3ForCausalLm};

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
/// With `checkpoints` it goes on behind the last state of the same training, the log as well ([`Checkpoints`]).
///
/// # Errors
/// A loss or gradient that is no finite number; a state of other settings; [`crate::Error::Interrupted`]; whatever the model, the log or the
/// disk reports.
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
/// let store = pretrain(&cfg, &config, &sampler, &Device::Cpu, 0, &mut MetricsLog::create(&path)?, None)?;
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
    checkpoints: Option<&Checkpoints>,
) -> Result<ParamStore> {
    let store = ParamStore::initialise(device, seed, |vb| Qwen3ForCausalLm::dense(cfg, &vb).map(|_| ()))?;
    let model = Qwen3ForCausalLm::dense(cfg, &store.builder(DType::F32, |_| true))?;
    let mut state = TrainState::new(slots(&store, dense_params(cfg)))?;
    let rule = Rule {
        stage: ("pretraining", "pretrain.adamw.rate"),
        steps: config.steps,
        pass: Pass::all(),
        learn: Learn::default(),
        exact: None,
        open: 0,
        adamw: config.adamw,
        rate: &|step| rate(config, step),
        adjust: None,
    };
    let settings = json!({
        "code": crate::SOURCES_SHA256, "model": cfg.to_json(), "pretrain": config, "seed": seed, "data": sampler.digest(),
    });
    let saving = checkpoints.map(|checkpoints| Saving { checkpoints, settings });
    if let Some(saving) = &saving {
        saving.resume::<()>(&mut state)?;
        log.rewind("pretrain", state.step)?;
    }
    train(&model, &mut state, (sampler, &rule), saving.as_ref(), &mut (), |(), said| {
        if said.step.is_multiple_of(10) || said.step + 1 == config.steps {
            let values = [("loss", said.loss), ("rate", said.rate), ("gradient_norm", said.norm)];
            log.log(said.step, "pretrain", &values)?;
        }
        Ok(())
    })?;
    Ok(store)
}
