//! The sparse model: the dense decoder's own code with a mixture of experts in every feed-forward slot.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use tinyonn::checkpoint::{ParamStore, upcycle};
//! use tinyonn::decoder::{CausalLm, Continuation, Generation, Pass, Prompt, Sampling};
//! use tinyonn::model::TinyOnnForCausalLm;
//! use tinyonn::moe::{self, Pfag};
//! use tinyonn::phases::RunConfig;
//!
//! let cfg = RunConfig::default().dense.arch(64, "silu");
//! let variant = moe::variant("TinyOnn")?;
//! let dense = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
//! // Neuron i goes to expert 100 i / I.
//! let owners: Vec<u32> = (0..cfg.intermediate_size).map(|i| (i * 100 / cfg.intermediate_size) as u32).collect();
//! let store = upcycle(dense, &cfg, variant, &vec![owners.clone(); cfg.num_hidden_layers], 0)?;
//! let model = TinyOnnForCausalLm::new(&cfg, variant, &store.builder(DType::F32, |_| false))?;
//! assert_eq!((model.spec().active_experts(), model.moe(0).routers().len()), (64, 2));
//! assert_eq!(model.neuron_experts()?.map(|layers| layers[0].clone()), Some(owners));
//!
//! let (ids, targets) = (Tensor::new(&[[3u32, 1, 4]], &Device::Cpu)?, Tensor::new(&[[1u32, 4, 1]], &Device::Cpu)?);
//! let (logits, traces) = model.forward(&ids, &Pass::routed(), None)?;
//! assert_eq!((logits.dims(), traces.len()), (&[1, 3, 64][..], 4));
//! assert_eq!(model.traced_logits(&ids, &Pass::routed())?.0.to_vec3::<f32>()?, logits.to_vec3::<f32>()?);
//! let all_active = model.logits(&ids, &Pass::all(), None)?;
//! assert_ne!(all_active.to_vec3::<f32>()?, logits.to_vec3::<f32>()?);
//! let (losses, _) = model.losses(&ids, &targets, &Pass::all())?;
//! assert!((losses.mean_all()?.to_scalar::<f32>()? - 64f32.ln()).abs() < 0.2); // it knows nothing yet
//!
//! let how = Generation { tokens: 4, stop_ids: vec![], sampling: Sampling::GREEDY };
//! let texts = model.generate(vec![Prompt::new(vec![3, 1, 4], 0, 0)], &how, &Pass::routed(), &mut |_| Ok(()))?;
//! assert_eq!(texts[0].len(), 4);
//! let asked = [Continuation { tokens: vec![3, 1, 4], from: 2 }];
//! assert!(model.likelihoods(&asked, &Pass::all(), false)?[0].log_likelihood < 0.0);
//!
//! // Two groups, and one expert of each, in place of the eight and eight that are declared.
//! let few = TinyOnnForCausalLm::taking(&cfg, variant, &store.builder(DType::F32, |_| false), |_| &[2, 1], Pfag::Off)?;
//! assert_eq!(few.spec().active_experts(), 2);
//! # Ok::<(), tinyonn::Error>(())
//! ```

use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::decoder::{
    Active, Arch, Block, CausalLm, Continuation, Decoder, Generation, Keep, KvCache, Likelihood, Pass, PathTable,
    Prompt, Step, Trace,
};
use crate::moe::{AttentionSpec, MoeLayer, MoeSpec, Pfag, RoutePer, Variant};
use crate::{Error, Result};

/// A decoder layer over routed experts: attention unchanged, `mlp` replaced.
///
/// ```
/// use tinyonn::model::{TinyOnnForCausalLm, TinyOnnLayer};
/// fn first(model: &TinyOnnForCausalLm) -> &TinyOnnLayer {
///     &model.lm().model().layers()[0]
/// }
/// ```
pub type TinyOnnLayer = Block<MoeLayer>;

/// The decoder over routed experts, without its head.
///
/// ```
/// use tinyonn::model::{TinyOnnForCausalLm, TinyOnnModel};
/// fn decoder(model: &TinyOnnForCausalLm) -> &TinyOnnModel {
///     model.lm().model()
/// }
/// ```
pub type TinyOnnModel = Decoder<MoeLayer>;

/// Which experts a checkpoint runs unless it is told otherwise: a part of its config.json.
///
/// ```
/// use tinyonn::decoder::Active;
/// use tinyonn::model::ActiveMode;
///
/// assert!(matches!(ActiveMode::All.pass().active, Active::All));
/// assert!(matches!(ActiveMode::Routed.pass().active, Active::Routed));
/// assert_eq!(serde_json::to_string(&ActiveMode::Routed)?, "\"routed\"");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActiveMode {
    /// All of them: what upcycling writes, since the routers know nothing yet.
    All,
    /// Those the routers choose: what phase 1 writes.
    Routed,
}

impl ActiveMode {
    /// A pass in this mode.
    #[must_use]
    pub fn pass(self) -> Pass {
        match self {
            Self::All => Pass::all(),
            Self::Routed => Pass::routed(),
        }
    }
}

/// A causal language model of routed experts.
pub struct TinyOnnForCausalLm {
    lm: CausalLm<MoeLayer>,
    spec: MoeSpec,
    /// What a pass without paths is given.
    paths: Option<Arc<PathTable>>,
}

impl TinyOnnForCausalLm {
    /// Reads or initialises the weights of `variant` for the dense shape `cfg`.
    ///
    /// # Errors
    /// A variant that does not fit the model; a missing or misshapen weight.
    pub fn new(cfg: &Arch, variant: &'static Variant, vb: &VarBuilder<'_>) -> Result<Self> {
        let lm = CausalLm::new(cfg, vb, |layer, vb| (variant.build)(cfg, layer, vb))?;
        Ok(Self { lm, spec: variant.spec.clone(), paths: None })
    }

    /// Of a declaration that no type stands behind, whose routers are the library's.
    pub(crate) fn of_spec(cfg: &Arch, spec: &MoeSpec, vb: &VarBuilder<'_>) -> Result<Self> {
        let lm = CausalLm::new(cfg, vb, |layer, vb| MoeLayer::new(spec.clone(), &[], cfg, layer, &vb))?;
        Ok(Self { lm, spec: spec.clone(), paths: None })
    }

    /// As [`new`](Self::new), but `top_k(layer)[level]` choices of every router of a level of a layer are taken, under `pfag`, in place of
    /// those declared. [`spec`](Self::spec) is then the first layer's; each [`moe`](Self::moe) has its own.
    ///
    /// # Errors
    /// As above; an adaptive form where nothing is routed by it.
    pub fn taking<'k>(
        cfg: &Arch,
        variant: &'static Variant,
        vb: &VarBuilder<'_>,
        top_k: impl Fn(usize) -> &'k [usize],
        pfag: Pfag,
    ) -> Result<Self> {
        let lm = CausalLm::new(cfg, vb, |layer, vb| (variant.build)(cfg, layer, vb)?.taking(top_k(layer), pfag))?;
        Ok(Self { lm, spec: variant.spec.taking(top_k(0), pfag), paths: None })
    }

    /// With the paths of its tasks, which `logits` and `generate` of a variant that is routed by its task follow where the pass gives
    /// none; [`lm`](Self::lm) follows its pass alone.
    ///
    /// ```
    /// use tinyonn::decoder::PathTable;
    /// use tinyonn::model::TinyOnnForCausalLm;
    ///
    /// /// A model routed by its task, whose two tasks take the experts 0 and 3 of each layer.
    /// fn with_its_tasks(model: TinyOnnForCausalLm) -> TinyOnnForCausalLm {
    ///     let layers = model.lm().config().num_hidden_layers;
    ///     model.with_paths(Some(PathTable { experts: vec![vec![vec![0]; layers], vec![vec![3]; layers]] }))
    /// }
    /// ```
    #[must_use]
    pub fn with_paths(self, paths: Option<PathTable>) -> Self {
        Self { paths: paths.map(Arc::new), ..self }
    }

    /// With the main directions of each layer's keys, which attention by `index = directions(r)` reads: [`CausalLm::with_key_directions`].
    ///
    /// ```
    /// use tinyonn::checkpoint::KeyDirections;
    /// use tinyonn::model::TinyOnnForCausalLm;
    ///
    /// fn with(model: TinyOnnForCausalLm, directions: &KeyDirections) -> tinyonn::Result<TinyOnnForCausalLm> {
    ///     model.with_key_directions(directions.layers())
    /// }
    /// ```
    ///
    /// # Errors
    /// Directions of other layers or heads, or fewer than the index reads.
    pub fn with_key_directions(self, directions: &[Tensor]) -> Result<Self> {
        Ok(Self { lm: self.lm.with_key_directions(directions)?, ..self })
    }

    /// With attention to these pairs in routed passes, in place of those declared: [`CausalLm::with_attention`].
    ///
    /// ```
    /// use tinyonn::model::TinyOnnForCausalLm;
    ///
    /// fn at_an_eighth(model: TinyOnnForCausalLm) -> tinyonn::Result<TinyOnnForCausalLm> {
    ///     let eighth = "pairs(keep = 0.125, index = components(8))".parse();
    ///     model.with_attention(&eighth.map_err(|problem: String| tinyonn::Error::setting("attention", problem, "see DESIGN §8"))?)
    /// }
    /// ```
    ///
    /// # Errors
    /// What a model of this shape cannot compute.
    pub fn with_attention(self, spec: &AttentionSpec) -> Result<Self> {
        let lm = self.lm.with_attention(spec)?;
        Ok(Self { lm, spec: MoeSpec { attention: *spec, ..self.spec }, ..self })
    }

    fn with_own_paths(&self, pass: &Pass) -> Pass {
        Pass { paths: pass.paths.clone().or_else(|| self.paths.clone()), ..pass.clone() }
    }

    /// The language model, generic code shared with the dense one.
    #[must_use]
    pub fn lm(&self) -> &CausalLm<MoeLayer> {
        &self.lm
    }

    /// The declaration it runs by.
    #[must_use]
    pub fn spec(&self) -> &MoeSpec {
        &self.spec
    }

    /// The mixture of a layer.
    #[must_use]
    pub fn moe(&self, layer: usize) -> &MoeLayer {
        self.lm.model().layers()[layer].mlp()
    }

    /// The experts of each layer's neurons, `[layer][i]`; replicas have no neurons of their own.
    ///
    /// # Errors
    /// What the device reports.
    pub fn neuron_experts(&self) -> Result<Option<Vec<Vec<u32>>>> {
        let layers = self.lm.model().layers().iter();
        let slices: Option<Vec<&Tensor>> = layers.map(|layer| layer.mlp().experts().neuron_expert()).collect();
        slices.map(|layers| layers.into_iter().map(|experts| Ok(experts.to_vec1()?)).collect()).transpose()
    }

    /// Logits `[B, T, V]` of token ids `[B, T]`, in the model's dtype, and what was asked of each layer; with a cache, of the T positions behind those it holds.
    ///
    /// # Errors
    /// Ids beyond the vocabulary; shapes or devices that do not go together; a cache where a decision reads tokens that it
    /// would hide (`segment`, `sequence`, `pfag = surprisal`, routed).
    pub fn forward(&self, ids: &Tensor, pass: &Pass, cache: Option<&mut KvCache>) -> Result<(Tensor, Vec<Trace>)> {
        if cache.is_some() && !self.decides_alone(pass) {
            let problem = format!("it hides tokens that `{}` decides by", self.spec().name);
            return Err(Error::setting("cache", problem, "read the whole text without one, or call `generate`"));
        }
        self.lm.traced_logits(ids, &self.with_own_paths(pass), cache)
    }

    /// The logits of [`forward`](Self::forward).
    ///
    /// # Errors
    /// As above.
    pub fn logits(&self, ids: &Tensor, pass: &Pass, cache: Option<&mut KvCache>) -> Result<Tensor> {
        Ok(self.forward(ids, pass, cache)?.0)
    }

    /// As [`forward`](Self::forward) without a cache.
    ///
    /// # Errors
    /// As above.
    pub fn traced_logits(&self, ids: &Tensor, pass: &Pass) -> Result<(Tensor, Vec<Trace>)> {
        self.forward(ids, pass, None)
    }

    /// The cross-entropies of targets: [`CausalLm::forward`].
    ///
    /// # Errors
    /// As of [`CausalLm::forward`].
    pub fn losses(&self, ids: &Tensor, targets: &Tensor, pass: &Pass) -> Result<(Tensor, Vec<Trace>)> {
        let pass = Pass { keep: Keep::Nothing, ..self.with_own_paths(pass) };
        let found = self.lm.forward(ids, targets, &pass)?;
        Ok((found.losses, found.traces))
    }

    /// Whether the newest token needs no earlier one to be routed.
    fn decides_alone(&self, pass: &Pass) -> bool {
        let spec = self.spec();
        let alone = matches!(spec.route_per, RoutePer::Token | RoutePer::Task) && spec.pfag != Pfag::Surprisal;
        alone || !matches!(pass.active, Active::Routed)
    }

    /// The tokens behind each of `prompts`: [`CausalLm::generate`]. A variant that decides by more than the newest
    /// token (`segment`, `sequence`, `pfag = surprisal`) reads the whole text again for each token.
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
        self.lm.generate(prompts, how, &self.with_own_paths(pass), self.decides_alone(pass), hear)
    }

    /// How probable it finds each continuation: [`CausalLm::likelihoods`]. A variant that decides by more than the newest token reads
    /// each text alone and whole.
    ///
    /// # Errors
    /// As of [`CausalLm::likelihoods`].
    pub fn likelihoods(&self, asked: &[Continuation], pass: &Pass, greedy: bool) -> Result<Vec<Likelihood>> {
        self.lm.likelihoods(asked, &self.with_own_paths(pass), greedy, self.decides_alone(pass))
    }
}
