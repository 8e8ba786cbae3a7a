//! Everything that decides what a run of phase 1 or 2 does.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::DeviceName;
use crate::decoder::{Arch, AttentionBias, Family, RopeScaling};
use crate::imaging::{LabelBalance, Partition, Score};
use crate::moe::expert::check_width;
use crate::moe::{self, ExpertsAre, RoutePer, Variant};
use crate::train::{Precision, PretrainConfig, RouterFitConfig, SmkConfig};
use crate::{Error, Result};

/// The configuration of [`super::phase1()`] and [`super::phase2()`]: one file serves both. As TOML, every key is optional and unknown keys are refused.
///
/// ```
/// use std::path::Path;
/// use tinyonn::moe::variant;
/// use tinyonn::phases::config::{absolute, absolute_source};
/// use tinyonn::phases::{DenseShape, LabelUnit, RunConfig};
///
/// let config = RunConfig { label: LabelUnit::Token, data: vec!["law=/corpora/law".into()], ..RunConfig::quick() };
/// assert!(config.validate(variant("TinyOnn")?).is_ok());
/// assert!(config.reads().any(|path| path == Path::new("/corpora/law")));
/// let narrow = RunConfig { dense: DenseShape { intermediate_size: 96, ..config.dense }, ..config.clone() };
/// assert!(narrow.validate(variant("TinyOnn")?).unwrap_err().to_string().contains("100 experts"));
/// assert_eq!((absolute(Path::new("/a")).as_path(), absolute_source("law=/corpora/law").as_str()), (Path::new("/a"), "law=/corpora/law"));
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// A Hugging Face folder of a dense decoder; without it a small one is pretrained on the text.
    pub model: Option<PathBuf>,
    /// The declared variant to decompose it into.
    pub variant: String,
    /// Tasks as `NAME=PATH`; without any, the default text.
    pub data: Vec<String>,
    /// Decides everything random.
    pub seed: u64,
    /// Where it computes: `cpu`, `cuda` or `cuda:n`.
    pub device: DeviceName,
    /// What passes compute in: `f32` or `bf16`; `bf16` goes for trainings too, whatever their `memory.weights` say. Routers, what learns (masters, moments,
    /// gradients), the image's sums and losses are f32 or more either way.
    #[serde(skip_serializing_if = "Precision::is_f32")]
    pub dtype: Precision,
    /// The run's folder.
    pub out: PathBuf,
    /// Where pretrained dense models are kept.
    pub cache: PathBuf,
    /// The shape of the dense model, if it is pretrained.
    pub dense: DenseShape,
    /// How it is pretrained.
    pub pretrain: PretrainConfig,
    /// Tokens a sequence.
    pub length: usize,
    /// Sequences a batch, in scan and evaluation.
    pub batch: usize,
    /// Training tokens of each task that are scanned.
    pub scan_tokens: usize,
    /// Test tokens of each task that losses and accuracies are taken over, at most.
    pub test_tokens: usize,
    /// Test tokens of each task that phase 1's studies (frontier, causal validation) read, at most.
    pub study_tokens: usize,
    /// How neurons are given to experts; without it as the variant declares, or else by ∫SPS.
    pub partition: Option<Partition>,
    /// The score of the scan that labels are made by: `sps`, or one it is compared with. (Replicas' labels cluster its profiles.)
    pub labels: Score,
    /// Whose path routers learn: each task's, or each token's own.
    pub label: LabelUnit,
    /// Labels by what sets a task apart (minus the mean over tasks), or by the score itself.
    pub contrast: bool,
    /// Whether tasks share the experts out evenly (`none`, `sinkhorn`); replicas' labels are clusters of even sizes anyway.
    pub label_balance: LabelBalance,
    /// How routers are fitted.
    pub router: RouterFitConfig,
    /// How experts differentiate.
    pub smk: SmkConfig,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            model: None,
            variant: "TinyOnn".into(),
            data: Vec::new(),
            seed: 0,
            device: DeviceName::Cpu,
            dtype: Precision::F32,
            out: "runs/phase2".into(),
            cache: "runs/cache".into(),
            dense: DenseShape::default(),
            pretrain: PretrainConfig::DEFAULT,
            length: 128,
            batch: 8,
            scan_tokens: 32_768,
            test_tokens: 16_384,
            study_tokens: 1024,
            partition: None,
            labels: Score::Sps,
            label: LabelUnit::Task,
            contrast: false,
            label_balance: LabelBalance::None,
            router: RouterFitConfig::default(),
            smk: SmkConfig::DEFAULT,
        }
    }
}

impl RunConfig {
    /// The same in under a minute: fewer steps, less text scanned. For CI, and for a first look.
    #[must_use]
    pub fn quick() -> Self {
        let config = Self::default();
        Self {
            out: "runs/quick".into(),
            pretrain: PretrainConfig { steps: 220, warmup: 30, ..config.pretrain },
            scan_tokens: 8_192,
            test_tokens: 4_096,
            study_tokens: 256,
            router: RouterFitConfig { steps: 40, ..config.router },
            smk: SmkConfig { steps: 40, ..config.smk },
            ..config
        }
    }
}

impl RunConfig {
    /// The files and folders that it reads.
    pub fn reads(&self) -> impl Iterator<Item = &Path> {
        let data = self.data.iter().filter_map(|source| source.split_once('=')).map(|(_, path)| Path::new(path));
        data.chain(self.model.as_deref()).chain([self.cache.as_path()])
    }

    /// How experts differentiate, in what the run computes in.
    ///
    /// ```
    /// use tinyonn::phases::RunConfig;
    /// use tinyonn::train::Precision;
    ///
    /// let config = RunConfig { dtype: Precision::Bf16, ..RunConfig::quick() };
    /// assert_eq!(config.smk_in_dtype().memory.weights, Precision::Bf16);
    /// assert_eq!(config.pretrain_in_dtype().memory.weights, Precision::Bf16);
    /// assert_eq!(RunConfig::quick().smk_in_dtype().memory.weights, Precision::F32);
    /// ```
    #[must_use]
    pub fn smk_in_dtype(&self) -> SmkConfig {
        SmkConfig { memory: self.smk.memory.within(self.dtype), ..self.smk }
    }

    /// How the dense model is pretrained, in what the run computes in.
    #[must_use]
    pub fn pretrain_in_dtype(&self) -> PretrainConfig {
        PretrainConfig { memory: self.pretrain.memory.within(self.dtype), ..self.pretrain }
    }

    /// The same, with what it reads named so that it is found from another folder.
    #[must_use]
    pub(super) fn with_absolute_paths(mut self) -> Self {
        self.model = self.model.map(|model| absolute(&model));
        self.cache = absolute(&self.cache);
        self.data.iter_mut().for_each(|source| *source = absolute_source(source));
        self
    }

    /// The first key in which the two differ.
    pub(super) fn differs_from(&self, other: &Self) -> Option<String> {
        first_difference(self, other)
    }

    /// Refuses what could only fail, before time is spent on it.
    ///
    /// # Errors
    /// A size of zero; an optimizer or a memory that cannot be; routers that would be fitted by nothing; a variant of more experts than the model to be pretrained has neurons.
    pub fn validate(&self, variant: &Variant) -> Result<()> {
        let sizes = [
            ("batch", self.batch),
            ("scan_tokens", self.scan_tokens),
            ("test_tokens", self.test_tokens),
            ("study_tokens", self.study_tokens),
            ("pretrain.batch", self.pretrain.batch),
            ("router.batch", self.router.batch),
            ("smk.batch", self.smk.batch),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(Error::setting(*name, "is 0", "use 1 or more"));
        }
        let first = variant.spec.open_positions().max(1);
        if self.length <= first {
            let problem = format!("sequences of {} tokens leave none to predict behind the first {first}", self.length);
            return Err(Error::setting("length", problem, format!("use {} or more", first + 1)));
        }
        self.smk_in_dtype().check("smk", &variant.spec)?;
        if self.model.is_none() {
            self.pretrain_in_dtype().memory.check("pretrain.memory", self.pretrain.batch)?;
            self.pretrain.optimizer.check("pretrain.optimizer")?;
        }
        moe::check(&variant.spec)?;
        self.router.check(&variant.spec)?;
        let own = variant.spec.route_per == RoutePer::Token && variant.spec.experts_are == ExpertsAre::Slice;
        if self.label == LabelUnit::Token && !own {
            let problem = format!("is token, and in `{}` no token takes a path of its own slices", variant.spec.name);
            return Err(Error::setting("label", problem, "use task, or a variant of slices with route_per = token"));
        }
        if self.model.is_none() {
            check_width(&variant.spec, self.dense.intermediate_size, 0)?;
            self.dense.arch(self.dense.vocab_size, hidden_act(variant)).validate()?;
        }
        Ok(())
    }

    /// Refuses sequences that are longer than `cfg` was made for.
    pub(super) fn check_length(&self, cfg: &Arch) -> Result<()> {
        let (length, most) = (self.length, cfg.max_position_embeddings);
        if length > most {
            let problem =
                format!("sequences of {length} tokens are longer than the {most} that the model was made for");
            return Err(Error::setting("length", problem, format!("use {most} or less")));
        }
        Ok(())
    }
}

/// `path` from the root; as it is, where the folder that the program was started in has no name to write down.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).ok().filter(|path| path.to_str().is_some()).unwrap_or_else(|| path.to_path_buf())
}

/// `NAME=PATH`, or a word that stands for tasks, with the path from the root.
pub fn absolute_source(source: &str) -> String {
    match source.split_once('=') {
        Some((name, path)) if !path.is_empty() => format!("{name}={}", absolute(Path::new(path)).display()),
        _ => source.to_owned(),
    }
}

/// The activation of a dense model that is pretrained to become `variant`: the declared one, or else Qwen3's.
#[must_use]
pub(super) fn hidden_act(variant: &Variant) -> &str {
    variant.spec.activation.as_deref().unwrap_or("silu")
}

/// Whose path a router learns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LabelUnit {
    /// Its task's.
    #[default]
    Task,
    /// The token's own ([`crate::imaging::token_labels()`]); of slices that each token routes for itself.
    Token,
}

/// The shape of a dense Qwen3 that is pretrained on the spot.
///
/// ```
/// use tinyonn::phases::DenseShape;
///
/// let wide = DenseShape { intermediate_size: 512, ..DenseShape::default() };
/// assert_eq!(wide.arch(1000, "silu").intermediate_size, 512);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DenseShape {
    /// Entries of the tokenizer.
    pub vocab_size: usize,
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl Default for DenseShape {
    fn default() -> Self {
        Self {
            vocab_size: 2048,
            hidden_size: 128,
            intermediate_size: 384,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 32,
        }
    }
}

impl DenseShape {
    /// The Qwen3 of this shape over a vocabulary of `vocab_size`, with the activation `hidden_act`, its head tied.
    #[must_use]
    pub fn arch(&self, vocab_size: usize, hidden_act: &str) -> Arch {
        Arch {
            vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            hidden_act: hidden_act.into(),
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            max_position_embeddings: 4096,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
            attention_bias: AttentionBias::None,
            family: Family::Qwen3,
            rope_scaling: RopeScaling::None,
            nope_layers: Vec::new(),
        }
    }
}

/// The first key in which two settings of one kind differ.
pub(super) fn first_difference<T: Serialize>(one: &T, other: &T) -> Option<String> {
    let keys = |settings: &T| match serde_json::to_value(settings) {
        Ok(serde_json::Value::Object(keys)) => keys,
        _ => serde_json::Map::new(),
    };
    let (own, others) = (keys(one), keys(other));
    own.keys().chain(others.keys()).find(|key| own.get(*key) != others.get(*key)).cloned()
}
