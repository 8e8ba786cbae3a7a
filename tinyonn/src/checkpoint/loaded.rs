//! A model of either kind, read from its folder and ready to run.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::folder::ModelFolder;
use super::key_directions::KeyDirections;
use super::params::{EMBEDDING, expected_tensors};
use super::tinyonn_folder::{TinyOnnFolder, is_tinyonn};
use crate::decoder::{Arch, CausalLm, Continuation, Generation, Keep, Likelihood, Mlp, Pass, Prompt, Step, Trace};
use crate::model::{ActiveMode, TinyOnnForCausalLm};
use crate::moe::{AttentionSpec, LoadMeter, MoeSpec, Pfag, RoutePer};
use crate::{Error, Result};

/// A dense model or one of routed experts, frozen.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::{LoadedModel, load_model};
/// use tinyonn::decoder::{Continuation, Generation, Pass, Prompt, Sampling};
/// use tinyonn::model::ActiveMode;
///
/// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/decoders/llama3_tied_bf16");
/// let model = load_model(dir, &Device::Cpu, Some(DType::F32))?;
/// assert!(matches!(model, LoadedModel::Dense(_)));
/// assert_eq!((model.active(), model.variant(), model.spec(), model.experts()), (ActiveMode::All, None, None, 0));
/// assert!(!model.needs_tasks(ActiveMode::Routed));
///
/// let (ids, targets) = (Tensor::new(&[[1u32, 2, 3]], &Device::Cpu)?, Tensor::new(&[[2u32, 3, u32::MAX]], &Device::Cpu)?);
/// assert_eq!(model.logits(&ids, &Pass::all())?.dims(), [1, 3, model.config().vocab_size]);
/// let (_, traces) = model.traced_logits(&ids, &Pass::all())?;
/// let (losses, _) = model.losses(&ids, &targets, &Pass::all())?;
/// assert_eq!((traces.len(), losses.dims()), (model.config().num_hidden_layers, &[1, 3][..]));
/// let said = model.likelihoods(&[Continuation { tokens: vec![1, 2, 3], from: 1 }], &Pass::all(), false)?;
/// let by_hand = -losses.sum_all()?.to_scalar::<f32>()?;
/// assert!((said[0].log_likelihood - f64::from(by_hand)).abs() < 1e-3);
/// let how = Generation { tokens: 3, stop_ids: vec![], sampling: Sampling::GREEDY };
/// let texts = model.generate(vec![Prompt::new(vec![1, 2], 0, 0)], &how, &Pass::all(), &mut |_| Ok(()))?;
/// assert_eq!(texts[0].len(), 3);
/// # Ok::<(), tinyonn::Error>(())
/// ```
// A program holds one or two.
#[allow(clippy::large_enum_variant)]
#[non_exhaustive]
pub enum LoadedModel {
    /// A plain decoder.
    Dense(CausalLm<Mlp>),
    /// A Tiny-ONN, and the mode it runs in unless told otherwise.
    TinyOnn(TinyOnnForCausalLm, ActiveMode),
}

/// Reads the folder `dir`, of either kind, to compute in `dtype`, or in the type of its embedding where `None`.
///
/// # Errors
/// Whatever keeps the folder from being a whole model.
pub fn load_model(dir: impl AsRef<Path>, device: &Device, dtype: Option<DType>) -> Result<LoadedModel> {
    let folder = ModelFolder::open(dir)?;
    let dtype = dtype.or_else(|| stored_type(&folder)).unwrap_or(DType::F32);
    if is_tinyonn(folder.config()) {
        let folder = TinyOnnFolder::from_folder(folder)?;
        let store = folder.load(device, Some(dtype))?;
        return Ok(LoadedModel::TinyOnn(folder.model(&store, dtype)?, folder.config().active));
    }
    let cfg = folder.arch()?;
    folder.check_depth(&cfg)?;
    folder.check_names(&expected_tensors(&cfg))?;
    folder.announce(Some(dtype));
    let store = folder.load(device, Some(dtype))?;
    Ok(LoadedModel::Dense(CausalLm::dense(&cfg, &store.builder(dtype, |_| false))?))
}

/// As [`load_model`], of a Tiny-ONN whose routers choose: as many of them as come nearest to `percent` % of the experts ([`MoeSpec::top_k_at`]), in place of
/// what it declares. It runs routed.
///
/// ```
/// use candle_core::Device;
/// use tinyonn::checkpoint::load_model_at_share;
/// use tinyonn::moe::LoadMeter;
///
/// /// Half of the experts of the checkpoint in `dir`, whatever it declares.
/// fn at_half(dir: &str) -> tinyonn::Result<f64> {
///     let model = load_model_at_share(dir, &Device::Cpu, None, 50)?;
///     let nothing_yet = LoadMeter::new(model.config().num_hidden_layers, model.experts());
///     model.active_share(&nothing_yet)
/// }
/// # let _ = at_half;
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// A share that is none; a dense model, one without a hierarchy, or one that is routed by the task; as of [`load_model`].
pub fn load_model_at_share(
    dir: impl AsRef<Path>,
    device: &Device,
    dtype: Option<DType>,
    percent: usize,
) -> Result<LoadedModel> {
    if percent == 0 || percent > 100 {
        return Err(Error::setting("active_share", format!("is {percent} %"), "use 1 to 100 %"));
    }
    let folder = TinyOnnFolder::from_folder(ModelFolder::open(dir)?)?;
    let (cfg, variant) = (folder.arch(), folder.variant());
    if !takes_shares(&variant.spec) {
        let problem = "it has no routers that choose by what they read, so that it takes one share alone";
        return Err(Error::variant(variant.spec.name.clone(), problem, "name a variant of routed experts"));
    }
    let dtype = dtype.or_else(|| stored_type(folder.folder())).unwrap_or(DType::F32);
    let store = folder.load(device, Some(dtype))?;
    let top_k = variant.spec.top_k_at(percent, cfg.num_hidden_layers);
    let taken = |layer: usize| top_k.get(layer).map_or(&[][..], Vec::as_slice);
    let model = TinyOnnForCausalLm::taking(cfg, variant, &store.builder(dtype, |_| false), taken, Pfag::Off)?;
    Ok(LoadedModel::TinyOnn(folder.attending(model)?, ActiveMode::Routed))
}

/// Whether a variant can take other shares of its experts than it declares: [`load_model_at_share`].
///
/// ```
/// use tinyonn::checkpoint::takes_shares;
/// use tinyonn::gallery::{DeMix, OwnGate, TinyOnn};
///
/// assert!(takes_shares(&TinyOnn::SPEC));
/// assert!(!takes_shares(&DeMix::SPEC)); // routed by the task
/// assert!(!takes_shares(&OwnGate::SPEC)); // no hierarchy
/// ```
#[must_use]
pub fn takes_shares(spec: &MoeSpec) -> bool {
    !spec.levels.is_empty() && spec.route_per != RoutePer::Task
}

/// The type of the embedding, which stands for that of all.
pub(crate) fn stored_type(folder: &ModelFolder) -> Option<DType> {
    let embedding = folder.tensors().find(|(name, _)| *name == EMBEDDING);
    embedding.and_then(|(_, info)| info.computed()).filter(DType::is_float)
}

impl LoadedModel {
    /// The shape of the dense model.
    #[must_use]
    pub fn config(&self) -> &Arch {
        match self {
            Self::Dense(model) => model.config(),
            Self::TinyOnn(model, _) => model.lm().config(),
        }
    }

    /// With attention to these pairs in routed passes, in place of those that the model of `folder` declares, which a dense model runs by then; main directions of keys are read from beside it.
    ///
    /// ```
    /// use candle_core::Device;
    /// use tinyonn::checkpoint::{ModelFolder, load_model};
    /// use tinyonn::model::ActiveMode;
    ///
    /// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/decoders/llama3_tied_bf16");
    /// let (model, folder) = (load_model(dir, &Device::Cpu, None)?, ModelFolder::open(dir)?);
    /// let few = "pairs(keep = 0.125, index = components(4))".parse().unwrap();
    /// assert_eq!(model.with_attention(&few, &folder)?.active(), ActiveMode::Routed);
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// What a model of this shape cannot compute; directions that are not there, or are another model's.
    pub fn with_attention(self, spec: &AttentionSpec, folder: &ModelFolder) -> Result<Self> {
        let directions = spec.reads_directions().then(|| KeyDirections::needed(folder)).transpose()?;
        Ok(match self {
            Self::Dense(lm) => {
                let lm = lm.with_attention(spec)?;
                Self::Dense(match directions {
                    Some(own) => lm.with_key_directions(own.layers())?,
                    None => lm,
                })
            }
            Self::TinyOnn(model, active) => {
                let model = model.with_attention(spec)?;
                let model = match directions {
                    Some(own) => model.with_key_directions(own.layers())?,
                    None => model,
                };
                Self::TinyOnn(model, active)
            }
        })
    }

    /// The mode it runs in unless told otherwise; a dense model has all of itself active, but for what attention leaves out.
    #[must_use]
    pub fn active(&self) -> ActiveMode {
        match self {
            Self::Dense(model) if !model.attention().is_dense() => ActiveMode::Routed,
            Self::Dense(_) => ActiveMode::All,
            Self::TinyOnn(_, active) => *active,
        }
    }

    /// The declared variant's name; `None` of a dense model.
    #[must_use]
    pub fn variant(&self) -> Option<&str> {
        match self {
            Self::Dense(_) => None,
            Self::TinyOnn(model, _) => Some(&model.spec().name),
        }
    }

    /// The declaration it runs by; `None` of a dense model.
    #[must_use]
    pub fn spec(&self) -> Option<&MoeSpec> {
        match self {
            Self::Dense(_) => None,
            Self::TinyOnn(model, _) => Some(model.spec()),
        }
    }

    /// Experts of a layer; none of a dense model.
    #[must_use]
    pub fn experts(&self) -> usize {
        self.spec().map_or(0, MoeSpec::experts)
    }

    /// The share of itself that was active where `load` was measured in a routed pass: of its neurons, or of its experts where these are replicas.
    ///
    /// # Errors
    /// What the device reports.
    pub fn active_share(&self, load: &LoadMeter) -> Result<f64> {
        match self {
            Self::Dense(_) => Ok(1.0),
            Self::TinyOnn(model, _) => {
                let units = model.neuron_experts()?;
                Ok(units.map_or_else(|| load.expert_share(), |units| load.active_share(&units)))
            }
        }
    }

    /// Whether it is routed by the task of each sequence, which its tokens do not say.
    #[must_use]
    pub fn needs_tasks(&self, active: ActiveMode) -> bool {
        match self {
            Self::Dense(_) => false,
            Self::TinyOnn(model, _) => active == ActiveMode::Routed && model.spec().route_per == RoutePer::Task,
        }
    }

    /// Logits `[B, T, V]` of token ids `[B, T]`, in the model's dtype.
    ///
    /// # Errors
    /// Ids beyond the vocabulary; shapes or devices that do not go together.
    pub fn logits(&self, ids: &Tensor, pass: &Pass) -> Result<Tensor> {
        Ok(self.traced_logits(ids, pass)?.0)
    }

    /// As [`logits`](Self::logits); and what was asked of each layer.
    ///
    /// # Errors
    /// As above.
    pub fn traced_logits(&self, ids: &Tensor, pass: &Pass) -> Result<(Tensor, Vec<Trace>)> {
        match self {
            Self::Dense(model) => model.traced_logits(ids, pass, None),
            Self::TinyOnn(model, _) => model.traced_logits(ids, pass),
        }
    }

    /// How probable it finds each continuation: [`CausalLm::likelihoods`].
    ///
    /// # Errors
    /// As of [`CausalLm::likelihoods`].
    pub fn likelihoods(&self, asked: &[Continuation], pass: &Pass, greedy: bool) -> Result<Vec<Likelihood>> {
        match self {
            Self::Dense(model) => model.likelihoods(asked, pass, greedy, true),
            Self::TinyOnn(model, _) => model.likelihoods(asked, pass, greedy),
        }
    }

    /// The tokens behind each of `prompts`: [`CausalLm::generate`].
    ///
    /// # Errors
    /// As of [`CausalLm::generate`].
    pub fn generate(
        &self,
        prompts: Vec<Prompt>,
        how: &Generation,
        pass: &Pass,
        hear: &mut dyn FnMut(&mut Step<'_>) -> Result<()>,
    ) -> Result<Vec<Vec<u32>>> {
        match self {
            Self::Dense(model) => model.generate(prompts, how, pass, true, hear),
            Self::TinyOnn(model, _) => model.generate(prompts, how, pass, hear),
        }
    }

    /// The cross-entropy of each target `[B, T]` in nats, f32, 0 where the target is `u32::MAX` (none); and what was asked of each layer.
    ///
    /// # Errors
    /// Ids beyond the vocabulary; shapes or devices that do not go together.
    pub fn losses(&self, ids: &Tensor, targets: &Tensor, pass: &Pass) -> Result<(Tensor, Vec<Trace>)> {
        match self {
            Self::Dense(model) => {
                let found = model.forward(ids, targets, &Pass { keep: Keep::Nothing, ..pass.clone() })?;
                Ok((found.losses, found.traces))
            }
            Self::TinyOnn(model, _) => model.losses(ids, targets, pass),
        }
    }
}
