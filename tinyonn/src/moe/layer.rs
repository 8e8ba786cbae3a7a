//! One layer of a mixture of experts, of whatever variant: what a declaration says, the routers and the experts that it asks for.

use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, VarBuilder};

use super::choice_rule::ChoiceRule;
#[cfg(feature = "cuda")]
use super::decode;
use super::expert;
use super::router::new_router;
use super::routing::{self, Routed, Routing, route};
use super::{
    AttentionSpec, Balance, CosineRouter, Gate, GaussianMoeRouter, LinearRouter, MoeSpec, NewRouter, Pfag,
    RandomRouter, Router, RouterKind, RouterSpec, TinyOnnExpert, check,
};
#[cfg(feature = "cuda")]
use crate::decoder::feed_forward::NewTokens;
use crate::decoder::{Active, Answers, Arch, FeedForward, Keep, Learn, Load, Pass, Smk, Trace};
use crate::ops::{GaussianRouting, Grads, Hierarchy, MinK};
use crate::{Error, Result};

/// A feed-forward of routed experts: what fills a decoder layer's second half past `model`.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::{ParamStore, upcycle};
/// use tinyonn::decoder::{CausalLm, FeedForward as _, Pass};
/// use tinyonn::gallery::TinyOnn;
/// use tinyonn::moe::{MoeLayer, Pfag, Scores, variant};
/// use tinyonn::phases::RunConfig;
///
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let dense = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let owners = vec![(0..cfg.intermediate_size).map(|i| i as u32 % 100).collect(); cfg.num_hidden_layers];
/// let store = upcycle(dense, &cfg, variant("TinyOnn")?, &owners, 0)?;
/// let vb = store.builder(DType::F32, |_| false).pp("model.layers.0.mlp");
/// let layer = MoeLayer::new(TinyOnn::SPEC, &[], &cfg, 0, &vb)?;
/// assert_eq!((layer.layer(), layer.spec().name.as_ref(), layer.experts().layer()), (0, "TinyOnn", 0));
/// assert_eq!(layer.routers().iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]); // a run of routers a level
///
/// let x_nd = Tensor::rand(-1f32, 1.0, (3, cfg.hidden_size), &Device::Cpu)?;
/// assert_eq!(Scores::new(&layer, &x_nd)?.by_level()?[1].dims(), [3, 100]);
/// // 64 of 100 experts, each with all of its neurons.
/// let of_chosen = layer.candidates(&x_nd)?.expect("it is routed").sum(1)?.to_vec1::<f32>()?;
/// assert!(of_chosen.iter().all(|neurons| *neurons < cfg.intermediate_size as f32));
/// let (y, ..) = layer.forward(&x_nd.unsqueeze(0)?, &Pass::routed())?;
/// assert_eq!(y.dims(), [1, 3, cfg.hidden_size]);
///
/// let few = layer.taking(&[1, 1], Pfag::Off)?;
/// assert_eq!(few.spec().active_experts(), 1);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug)]
pub struct MoeLayer {
    spec: MoeSpec,
    /// By level and run as in [`MoeSpec::levels`].
    routers: Vec<Vec<Box<dyn Router>>>,
    experts: TinyOnnExpert,
    /// What bounds the routers' choices, where text has said it.
    choices: Option<ChoiceRule>,
    /// From logits to gates in one launch, where a kernel does what is declared.
    hierarchy: Option<Hierarchy>,
    /// From x to logits, where a kernel asks all routers at once.
    gaussians: Option<GaussianRouting>,
}

impl MoeLayer {
    /// Reads or initialises layer `layer` from the parameters of its `mlp`: the routers of a run under `{name}_router`, the experts
    /// under the names of the dense MLP. `own` makes the routers whose types are the user's, by the name that the declaration
    /// has for them ([`RouterKind::Custom`]).
    ///
    /// # Errors
    /// A declaration that cannot be run, or that has a router of a type that `own` lacks; an MLP narrower than the number of slices;
    /// a missing or misshapen parameter.
    pub fn new(
        spec: MoeSpec,
        own: &[(&str, NewRouter)],
        cfg: &Arch,
        layer: usize,
        vb: &VarBuilder<'_>,
    ) -> Result<Self> {
        check(&spec)?;
        let mut gaussians = Vec::new();
        let projection =
            spec.shared_projection(cfg.hidden_size).map(|(run, r)| projection(run, (r, cfg.hidden_size), vb));
        let projection = projection.transpose()?;
        let mut router = |run: &RouterSpec| {
            let (shape, vb) = (run.shape(cfg.hidden_size), &vb.pp(format!("{}_router", run.name)));
            match &run.kind {
                RouterKind::Gaussian(form) => {
                    let router = GaussianMoeRouter::with_form(shape, form, vb)?;
                    gaussians.extend(router.parameters());
                    Ok(Box::new(router) as Box<dyn Router>)
                }
                RouterKind::LowRank { .. } => match &projection {
                    Some(p_rd) => Ok(Box::new(LinearRouter::projecting(shape, p_rd, vb)?) as Box<dyn Router>),
                    None => new_router::<LinearRouter>(shape, vb),
                },
                RouterKind::Linear => new_router::<LinearRouter>(shape, vb),
                RouterKind::Cosine => new_router::<CosineRouter>(shape, vb),
                RouterKind::Random => new_router::<RandomRouter>(shape, vb),
                RouterKind::Custom(path) => {
                    let (_, new) = own.iter().find(|(name, _)| name == path).ok_or_else(|| {
                        let problem = format!("nothing makes its `{}_router`, a `{path}`", run.name);
                        Error::variant(spec.name.clone(), problem, "build it by the type that declares it")
                    })?;
                    new(shape, vb)
                }
            }
        };
        let levels = spec.levels.iter();
        let routers: Vec<Vec<_>> =
            levels.map(|level| level.routers.iter().map(&mut router).collect()).collect::<Result<_>>()?;
        let experts = TinyOnnExpert::new(&spec, cfg, layer, vb)?;
        let all = gaussians.len() == routers.iter().map(Vec::len).sum::<usize>();
        let gaussians = if all { GaussianRouting::new(gaussians, experts.device())? } else { None };
        let choices = ChoiceRule::read(&spec, vb, experts.device())?;
        Ok(Self { hierarchy: hierarchy(&spec, experts.device())?, gaussians, spec, routers, experts, choices })
    }

    /// The same layer, of which `top_k[level]` choices of every router of a level are taken, under `pfag`, in place of those declared or calibrated.
    ///
    /// # Errors
    /// An adaptive form where nothing is routed by it.
    pub fn taking(self, top_k: &[usize], pfag: Pfag) -> Result<Self> {
        let spec = self.spec.taking(top_k, pfag);
        check(&spec)?;
        Ok(Self {
            hierarchy: hierarchy(&spec, self.experts.device())?,
            experts: self.experts.taking(&spec),
            spec,
            choices: None,
            ..self
        })
    }

    /// The declaration.
    pub fn spec(&self) -> &MoeSpec {
        &self.spec
    }

    /// The routers, by level and run as in [`MoeSpec::levels`].
    pub fn routers(&self) -> &[Vec<Box<dyn Router>>] {
        &self.routers
    }

    /// What bounds the routers' choices, where text has said it.
    pub(super) fn choices(&self) -> Option<&ChoiceRule> {
        self.choices.as_ref()
    }

    /// From logits to gates in one launch, where a kernel does what is declared.
    pub(super) fn hierarchy(&self) -> Option<&Hierarchy> {
        self.hierarchy.as_ref()
    }

    /// From x to logits, where a kernel asks all routers at once.
    pub(super) fn gaussians(&self) -> Option<&GaussianRouting> {
        self.gaussians.as_ref()
    }

    /// The experts.
    pub fn experts(&self) -> &TinyOnnExpert {
        &self.experts
    }

    /// Of rows x `[n, d]` that each decide for themselves: 1 for the neurons of the experts that routers choose, 0 for others, `[n, I]` f32; `None` where
    /// nothing is routed.
    ///
    /// # Errors
    /// What a router reports.
    pub fn candidates(&self, x_nd: &Tensor) -> Result<Option<Tensor>> {
        let Some(neuron_expert) = self.experts.neuron_expert() else { return Ok(None) };
        let taken_nn = self.taken(x_nd)?;
        Ok(taken_nn.map(|taken_nn| taken_nn.index_select(neuron_expert, 1)).transpose()?)
    }

    /// Of rows x `[n, d]` that each decide for themselves: 1 for the experts that routers choose, and for those that always take part, 0 for others, `[n, N]`
    /// f32; `None` where nothing is routed.
    pub(crate) fn taken(&self, x_nd: &Tensor) -> Result<Option<Tensor>> {
        if self.spec.levels.is_empty() {
            return Ok(None);
        }
        let routed = route(self, &x_nd.unsqueeze(1)?, &Pass::routed())?;
        Ok(routed.routing.by_token()?.map(|gate_tn| gate_tn.ne(0f64)?.to_dtype(DType::F32)).transpose()?)
    }

    /// Of a layer whose gate chooses neurons, for rows x `[n, d]` that each decide for themselves: the scores that are compared with its least one, `[n, I]`
    /// f32, and −1 for neurons that may not be taken.
    ///
    /// # Errors
    /// A layer without such a gate; what the device reports.
    pub fn scores(&self, x_nd: &Tensor) -> Result<Tensor> {
        let scores_ni = self.experts.neuron_scores(x_nd)?.ok_or_else(|| self.no_scores())?;
        match self.candidates(x_nd)? {
            Some(open_ni) => Ok(open_ni.ne(0f64)?.where_cond(&scores_ni, &(scores_ni.zeros_like()? - 1.0)?)?),
            None => Ok(scores_ni),
        }
    }

    /// Of a layer whose gate chooses neurons, for rows x `[n, d]`: |h| · v of those that are taken, which is compared with the least one, 0 for others, `[n, I]` f32.
    ///
    /// # Errors
    /// As of [`scores`](Self::scores).
    pub(crate) fn moved(&self, x_nd: &Tensor) -> Result<Tensor> {
        let worth_i = self.experts.neuron_worth()?.ok_or_else(|| self.no_scores())?;
        let [_, h_ni] = self.chosen(&x_nd.unsqueeze(0)?)?;
        Ok(h_ni.to_dtype(DType::F32)?.abs()?.broadcast_mul(&worth_i)?)
    }

    fn no_scores(&self) -> Error {
        Error::variant(self.spec.name.clone(), "its neurons have no scores", "declare `neurons = gate`")
    }

    /// Of a layer whose tokens choose for themselves neurons or slices of weight 1, in a routed pass over x `[B, T, d]`: y `[B, T, d]`, and h of the neurons that
    /// each token takes, zero for others, `[B·T, I]`.
    ///
    /// ```
    /// use candle_core::Tensor;
    /// use tinyonn::moe::MoeLayer;
    ///
    /// /// How many of a layer's neurons have a score above zero, and how many of the values of those that were taken are not zero.
    /// fn counts(layer: &MoeLayer, x: &Tensor) -> tinyonn::Result<[f32; 2]> {
    ///     let scored = layer.scores(&x.flatten_to(1)?)?.gt(0f64)?.to_dtype(candle_core::DType::F32)?;
    ///     let [_, h_ti] = layer.chosen(x)?;
    ///     let taken = h_ti.ne(0f64)?.to_dtype(candle_core::DType::F32)?;
    ///     Ok([scored.sum_all()?.to_scalar()?, taken.sum_all()?.to_scalar()?])
    /// }
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// A layer that chooses none; what the device reports.
    pub fn chosen(&self, x: &Tensor) -> Result<[Tensor; 2]> {
        if self.spec.can_be_calibrated() {
            let routed = route(self, x, &Pass::routed())?;
            if let Some(chosen) = self.experts.chosen(x, &routed.routing)? {
                return Ok(chosen);
            }
        }
        let problem = "it chooses neither neurons nor slices of weight 1, a token by itself";
        Err(Error::variant(self.spec.name.clone(), problem, "declare `neurons = gate`"))
    }

    /// Which layer of its model it is.
    pub fn layer(&self) -> usize {
        self.experts.layer()
    }
}

/// P `[r, d]` of all levels, which lies with the routers of `run`; f32 whatever the model's type.
fn projection(run: &str, (r, d): (usize, usize), vb: &VarBuilder<'_>) -> Result<Tensor> {
    let spread = Init::Randn { mean: 0.0, stdev: 1.0 / (d as f64).sqrt() };
    Ok(vb.pp(format!("{run}_router")).get_with_hints_dtype((r, d), "projection", spread, DType::F32)?)
}

/// Where a kernel does what is declared: fixed `top_k` by logits alone, gates that are shares of what was taken, and no auxiliary loss.
fn hierarchy(spec: &MoeSpec, device: &Device) -> Result<Option<Hierarchy>> {
    let normalised = spec.gate == Gate::Normalised;
    let plain = spec.pfag == Pfag::Off && spec.balance == Balance::None && spec.z_loss == 0.0;
    if !plain || !(normalised || spec.gate == Gate::Scaled) {
        return Ok(None);
    }
    let routers = |level: &super::LevelSpec| level.slots().map(|slot| (slot.nodes, slot.top_k)).collect();
    let levels: Vec<Vec<_>> = spec.levels.iter().map(routers).collect();
    Ok(Hierarchy::new(&levels, spec.always_experts(), normalised, device)?)
}

/// What the backward of a layer needs.
///
/// ```
/// use candle_core::Tensor;
/// use tinyonn::Result;
/// use tinyonn::decoder::{FeedForward as _, Learn, Pass};
/// use tinyonn::moe::MoeLayer;
/// use tinyonn::moe::layer::Saved;
/// use tinyonn::ops::Grads;
///
/// /// ∂L/∂x of a routed layer, given ∂L/∂y of ones.
/// fn input_gradient(layer: &MoeLayer, x: &Tensor) -> Result<Option<Tensor>> {
///     let (y, _, saved) = layer.forward(x, &Pass::routed().kept())?;
///     let saved: Saved = saved.expect("the pass keeps it");
///     Ok(layer.backward(saved, &y.ones_like()?, &Learn::default(), true, &mut Grads::none())?.0)
/// }
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug)]
pub struct Saved {
    routing: Routing,
    decisions: Option<routing::Saved>,
    experts: expert::Saved,
}

impl FeedForward for MoeLayer {
    type Saved = Saved;

    /// Route, gate, combine.
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<(Tensor, Trace, Option<Saved>)> {
        let Routed { routing, auxiliary, saved: decisions } = route(self, x, pass)?;
        let all = matches!(pass.active, Active::All);
        let (y, experts) = self.experts.forward(x, &routing, all)?;
        let load = match (&routing, &pass.active) {
            _ if !pass.ask.load => None,
            (_, Active::All) => None,
            (Routing::All, _) if self.spec.levels.is_empty() => {
                Some(routing.load(self.spec.experts(), &x.flatten_to(1)?)?)
            }
            // Sequences too short for a decision: all experts run, and none was given anything.
            (Routing::All, _) => Some(Load::none(self.spec.experts(), x.device())?),
            _ => Some(routing.load(self.spec.experts(), x)?),
        };
        let asked = pass.ask.gates && !all;
        let gates = asked.then(|| routing.gates(self.spec.experts(), x)).transpose()?;
        let load = match (load, &experts) {
            (Some(load), expert::Saved::Chosen(saved, taken_t)) => {
                Some(Load { neurons_t: Some(taken_t.clone()), inputs_t: saved.inputs_t()?, ..load })
            }
            (load, _) => load,
        };
        let trace = Trace { load, gates, auxiliary, ..Trace::default() };
        Ok((y, trace, (pass.keep != Keep::Nothing).then_some(Saved { routing, decisions, experts })))
    }

    fn backward(
        &self,
        saved: Saved,
        dy: &Tensor,
        learn: &Learn,
        input: bool,
        grads: &mut Grads,
    ) -> Result<(Option<Tensor>, Answers)> {
        let Saved { routing, decisions, experts } = saved;
        let through = decisions.is_some() && (input || learn.routers);
        let wanted = (input, through && self.spec.gate != Gate::Unit);
        let back = self.experts.backward(&experts, dy, &routing, learn, wanted, grads)?;
        let mut dx = back.dx.map(|dx_td| dx_td.reshape(dy.shape())).transpose()?;
        if let Some(decisions) = decisions.filter(|_| input || learn.routers) {
            dx = decisions.backward(self, back.dgate.as_ref(), dx, dy.dims(), input, grads)?;
        }
        Ok((dx, back.answers))
    }

    #[cfg(feature = "cuda")]
    fn decode(&self, new: &mut NewTokens<'_>, pass: &Pass) -> Result<Option<Tensor>> {
        decode::decode(self, new, pass)
    }

    fn keep_winners(&self, smk: &Smk, tokens_n: Option<&Tensor>, grads: &mut Grads) -> Result<Option<MinK>> {
        self.experts.keep_winners(smk, tokens_n, grads).map(Some)
    }

    fn learns(&self, learn: &Learn, grads: &Grads) -> bool {
        self.experts.learns(grads) || learn.routers
    }

    fn attention(&self) -> AttentionSpec {
        self.spec.attention
    }

    fn reads_surprisal(&self) -> bool {
        self.spec.pfag == Pfag::Surprisal
    }
}
