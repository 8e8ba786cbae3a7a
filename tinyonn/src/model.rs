//! The sparse model: the dense decoder's own code with a mixture of experts in every feed-forward slot.

use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::decoder::{
    Active, Arch, Block, CausalLm, Continuation, Decoder, Generation, Keep, KvCache, Likelihood, Pass, PathTable,
    Prompt, Step, Trace,
};
use crate::moe::{MoeLayer, MoeSpec, Pfag, RoutePer, Variant};
use crate::{Error, Result};

/// A decoder layer over routed experts: attention unchanged, `mlp` replaced.
pub type TinyOnnLayer = Block<MoeLayer>;

/// The decoder over routed experts, without its head.
pub type TinyOnnModel = Decoder<MoeLayer>;

/// Which experts a checkpoint runs unless it is told otherwise: a part of its config.json.
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
    #[must_use]
    pub fn with_paths(self, paths: Option<PathTable>) -> Self {
        Self { paths: paths.map(Arc::new), ..self }
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
