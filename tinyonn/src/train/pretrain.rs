//! Dense pretraining: cross-entropy, under the rate and the rule that its settings say.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::evaluate::EvaluateOptions;
use super::held_out::HeldOut;
use super::language::TextGradient;
use super::state::slots;
use super::{Checkpoints, Memory, OptimizerConfig, Rule, Said, Saving, Schedule, TrainState, Verdict, Watch, train};
use crate::Result;
use crate::checkpoint::{ParamStore, dense_params};
use crate::data::{Sampler, TokenSet};
use crate::decoder::{Arch, CausalLm, Learn, Mlp, Pass};
use crate::metrics::MetricsLog;
use crate::ops::activation::fingerprint;

/// The version of what pretraining computes: models that are cached under one are alike, whatever the sources.
///
/// ```
/// // Part of the name of a cached model: one of another version is of other bits.
/// assert!(tinyonn::train::pretrain::ARITHMETIC >= 1);
/// ```
// To be raised with whatever moves its bits: whenever the golden figures of `pretraining` (tests/suite/golden) are stated anew, and when texts are
// split, cut into tokens or drawn in another way. What does not move them leaves cached models what they are.
pub const ARITHMETIC: u32 = 1;

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
    /// How it goes on.
    pub schedule: Schedule,
    /// Steps between looks at held-out text, whose loss is logged; the weights of the least one are the result. 0: never, the last ones are.
    pub look: u64,
    /// The optimizer; `rate` is the highest. (Earlier its key was `adamw`.)
    #[serde(alias = "adamw")]
    pub optimizer: OptimizerConfig,
    /// What a step holds in memory.
    pub memory: Memory,
}

impl PretrainConfig {
    /// The default job: 1000 steps of 8 sequences.
    pub const DEFAULT: Self = Self {
        steps: 1000,
        batch: 8,
        warmup: 50,
        schedule: Schedule::Cosine,
        look: 0,
        optimizer: OptimizerConfig { rate: 4e-3, ..OptimizerConfig::DEFAULT },
        memory: Memory::DEFAULT,
    };
}

impl Default for PretrainConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
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
/// use tinyonn::decoder::Arch;
/// use tinyonn::train::{PretrainConfig, pretrain};
///
/// let corpus = Corpus { tasks: vec![arithmetic(0, 10_000)] };
/// let set = TokenSet::encode(&corpus, &TextTokenizer::train(&corpus, 280)?)?;
/// let cfg = Arch::from_json(&serde_json::json!({
///     "model_type": "qwen3", "vocab_size": 280, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
///     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
/// }), "config.json")?;
/// let config = PretrainConfig { steps: 20, batch: 4, warmup: 2, ..PretrainConfig::DEFAULT };
/// let sampler = Sampler::new(&set, 32, config.batch, 0, &Device::Cpu)?;
///
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("pretrain.jsonl");
/// let store = pretrain(&cfg, &config, (&sampler, None), 0, &mut MetricsLog::create(&path)?, None)?;
/// assert_eq!(store.parameters(), cfg.parameters());
/// let records = metrics::read(&path)?;
/// assert!(records[2].values[0].1 < records[0].values[0].1); // the loss
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn pretrain(
    cfg: &Arch,
    config: &PretrainConfig,
    (sampler, held): (&Sampler<'_>, Option<&TokenSet>),
    seed: u64,
    log: &mut MetricsLog,
    checkpoints: Option<&Checkpoints>,
) -> Result<ParamStore> {
    config.memory.check("pretrain.memory", config.batch)?;
    let store = ParamStore::initialise(sampler.device(), seed, |vb| CausalLm::dense(cfg, &vb).map(|_| ()))?;
    let dtype = config.memory.weights.dtype();
    let work = store.work_weights(dtype, |_| Some(dtype))?;
    let model = CausalLm::dense(cfg, work.builder())?;
    let mut state = TrainState::among(slots(&work, dense_params(cfg)), &config.memory, sampler.ranks())?;
    let settings = json!({
        "code": crate::SOURCES_SHA256, "model": cfg.to_json(), "pretrain": config, "seed": seed, "data": sampler.digest(),
        "activation": fingerprint(cfg.activation()?)?,
        "held_out": held.filter(|_| config.look > 0).map(TokenSet::sha256),
    });
    let saving = checkpoints.map(|checkpoints| Saving { checkpoints, settings });
    if let Some(saving) = &saving {
        saving.resume::<()>(&mut state)?;
        log.rewind("pretrain", state.step)?;
    }
    let text = TextGradient {
        model: &model,
        sampler,
        pass: Pass::all(),
        learn: Learn::default(),
        open: 0,
        memory: config.memory,
        interrupt: checkpoints.map(|checkpoints| &checkpoints.interrupt),
    };
    let rule = Rule {
        stage: ("pretraining", "pretrain.optimizer"),
        steps: config.steps,
        tokens: Some(text.tokens()),
        optimizer: &config.optimizer,
        rate: &|step| config.schedule.rate(config.optimizer.rate, config.warmup, config.steps, step),
        batch: &|step| Some(sampler.describe(step)),
        adjust: None,
    };
    let options = EvaluateOptions { length: sampler.length(), batch: sampler.batch(), skip: 0 };
    let held = HeldOut::new("pretrain", &model, (held, config.look), (options, Pass::all()))?;
    let mut watch = Logged { log, steps: config.steps, held };
    train(&mut state, &rule, &mut |state| text.descend(state), saving.as_ref(), &mut watch)?;
    state.return_to_best()?;
    Ok(store)
}

/// A line of the log every ten steps, and one a look.
struct Logged<'a> {
    log: &'a mut MetricsLog,
    steps: u64,
    held: HeldOut<'a, Mlp>,
}

impl Watch for Logged<'_> {
    fn hear(&mut self, said: &Said) -> Result<()> {
        if said.step.is_multiple_of(10) || said.step + 1 == self.steps {
            let values = [("loss", said.loss), ("rate", said.rate), ("gradient_norm", said.norm)];
            self.log.log(said.step, "pretrain", &values)?;
        }
        Ok(())
    }

    fn look_every(&self) -> u64 {
        self.held.every()
    }

    fn look(&mut self, state: &mut TrainState) -> Result<Verdict> {
        self.held.look(self.log, state)
    }
}
