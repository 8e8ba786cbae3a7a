//! What a run reads, opened and checked before time is spent on it: variant, device, text, dense model, tokens.

use candle_core::Device;

use super::row_passes::Passed;
use super::run::Run;
use super::text::Tokens;
use super::{Dense, RunConfig, Text};
use crate::imaging::{Partition, partition};
use crate::metrics::Stopwatch;
use crate::moe::{Variant, variant};
use crate::train::Checkpoints;
use crate::{Error, Result};

/// Refuses a variant that has no routers, which phases fit.
///
/// # Errors
/// As above.
pub(super) fn check_routers(variant: &Variant) -> Result<()> {
    if variant.spec.levels.is_empty() {
        let problem = "it has no hierarchy: there are no routers to fit, and no paths to label";
        return Err(Error::variant(variant.spec.name.clone(), problem, "make a model of it with exp_sparsify"));
    }
    Ok(())
}

/// Everything that a [`Run`] borrows.
///
/// ```
/// use tinyonn::metrics::Stopwatch;
/// use tinyonn::phases::{DenseShape, Prepared, RunConfig};
///
/// # let dir = tempfile::tempdir()?;
/// # let tasks = [tinyonn::data::sorting(0, 12_000), tinyonn::data::arithmetic(0, 12_000)].map(|task| {
/// #     let path = dir.path().join(&task.name).with_extension("jsonl");
/// #     let lines = task.documents.iter().map(|d| serde_json::json!({ "text": d.text }).to_string());
/// #     std::fs::write(&path, lines.collect::<Vec<_>>().join("\n"))?;
/// #     Ok(format!("{}={}", task.name, path.display()))
/// # });
/// # let data = tasks.into_iter().collect::<Result<Vec<_>, std::io::Error>>()?;
/// # let (out, cache) = (dir.path().join("run"), dir.path().join("cache"));
/// let mut config = RunConfig { variant: "Mixtral".into(), data, out, cache, ..RunConfig::quick() };
/// config.dense = DenseShape { vocab_size: 300, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, ..config.dense };
/// (config.length, config.scan_tokens, config.test_tokens) = (32, 512, 256);
/// (config.pretrain.steps, config.router.steps, config.smk.steps) = (4, 4, 2);
/// let prepared = Prepared::new(&config, &mut Stopwatch::new(), None)?;
/// assert_eq!((prepared.variant.spec.experts(), prepared.dense.cfg.hidden_size), (8, 32));
/// assert!(prepared.tokens.train.tokens() > prepared.tokens.test.tokens());
/// assert!(config.out.is_dir() && prepared.run(&config).config == &config);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Prepared {
    /// The declared variant.
    pub variant: &'static Variant,
    /// How neurons are given to experts.
    pub partition: Partition,
    /// Where it computes.
    pub device: Device,
    /// Its text.
    pub text: Text,
    /// The dense model, or the routed one that phase 2 goes on with.
    pub dense: Dense,
    /// The tokens of its text.
    pub tokens: Tokens,
}

impl Prepared {
    /// Checks `config`, reads its text and obtains its dense model; makes its folder.
    ///
    /// # Errors
    /// What cannot be used, before time is spent on it.
    pub fn new(config: &RunConfig, watch: &mut Stopwatch, checkpoints: Option<&Checkpoints>) -> Result<Self> {
        check_routers(variant(&config.variant)?)?;
        if let Some(dir) = &config.model {
            // What keeps a model from being read is said before all text is.
            Dense::open_model(dir, config)?;
        }
        Self::with(config, watch, |text, device| Dense::obtain(config, text, device, checkpoints))
    }

    /// The same, with a model that is there already.
    pub(super) fn with(
        config: &RunConfig,
        watch: &mut Stopwatch,
        dense: impl FnOnce(&Text, &Device) -> Result<Dense>,
    ) -> Result<Self> {
        let variant = variant(&config.variant)?;
        config.validate(variant)?;
        let partition = partition::choose(config.partition, &variant.spec, Partition::Sps)?;
        let device = config.device.open()?;
        std::fs::create_dir_all(&config.out).map_err(|e| Error::io(&config.out, e))?;
        watch.stage("text");
        let text = Text::new(&config.data, config.seed)?;
        watch.stage("dense");
        let dense = dense(&text, &device)?;
        let mut tokens = text.encode(&dense.tokenizer)?;
        tokens.test.beginnings(config.test_tokens);
        let prepared = Self { variant, partition, device, text, dense, tokens };
        prepared.run(config).check_lengths()?;
        Ok(prepared)
    }

    /// The stages under `config`.
    pub fn run<'a>(&'a self, config: &'a RunConfig) -> Run<'a> {
        Run {
            config,
            variant: self.variant,
            partition: self.partition,
            device: self.device.clone(),
            text: &self.text,
            dense: &self.dense,
            tokens: &self.tokens,
            ranks: None,
            passed: Passed::default(),
        }
    }
}
