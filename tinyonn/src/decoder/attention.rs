//! Grouped-query attention; its queries and keys are normalised and turned by their positions, where the model's family says so.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

use tinyonn_spec::{At, AttentionSpec, MoeSpec, PairIndex, Prefill, Violation};

use super::cache::Held;
use super::{Arch, KvCache, RmsNorm, Rotary};
use crate::ops::norm_rope::{self, NormRope};
use crate::ops::sparse_attention::{self, Choosing};
use crate::ops::{Grads, attention, linear, rope};
#[cfg(feature = "cuda")]
use crate::ops::{
    Workspace,
    decode_attention::{self, Past, Turning},
    gemv::{self, Normed, Stored},
};
use crate::{Error, Result};

/// Refuses what no declaration may say, and what a model of this shape cannot compute: an index of more values than a head has, or the nearest keys where the family has a window of its own.
///
/// ```
/// use tinyonn::decoder::attention::check_attention;
/// use tinyonn::moe::{AttentionSpec, KeptPairs, PairIndex, PairsSpec};
/// use tinyonn::phases::RunConfig;
///
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let of = |index| AttentionSpec::Pairs(PairsSpec::new(KeptPairs::Share(0.5), index));
/// assert!(check_attention(&of(PairIndex::Components(8)), &cfg).is_ok());
/// assert!(check_attention(&of(PairIndex::Components(cfg.head_dim + 1)), &cfg).is_err());
/// ```
///
/// # Errors
/// As above.
pub fn check_attention(spec: &AttentionSpec, cfg: &Arch) -> Result<()> {
    let refuse = |problem: String, remedy: String| Err(Error::setting("attention", problem, remedy));
    let alone = MoeSpec { attention: *spec, ..MoeSpec::PLAIN };
    let of_attention = |wrong: &Violation| matches!(wrong.at, At::Argument("attention", _));
    if let Some(wrong) = alone.validate().into_iter().find(of_attention) {
        return refuse(wrong.problem, wrong.remedy);
    }
    match spec.pairs().map(|pairs| pairs.index) {
        Some(PairIndex::Components(r) | PairIndex::Directions(r)) if r > cfg.head_dim => {
            let problem = format!("its index reads {r} values of heads that have {}", cfg.head_dim);
            refuse(problem, format!("declare {} or fewer", cfg.head_dim))
        }
        Some(PairIndex::Window) if cfg.family.has_window() => {
            let family = cfg.family.model_type();
            let problem = format!("`index = window` is said of a model of the family {family}, which has a window");
            refuse(problem, "declare `index = components(8)`, or another index".into())
        }
        _ => Ok(()),
    }
}

/// Weights of one attention, named as in the checkpoint (`self_attn`).
///
/// ```
/// use candle_core::Device;
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::decoder::Attention;
/// use tinyonn::phases::RunConfig;
///
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| Attention::new(&cfg, 0, &vb.pp("self_attn")).map(drop))?;
/// assert!(store.names().any(|name| name == "self_attn.q_norm.weight")); // a Qwen3 normalises its queries
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    /// Whether this layer knows positions.
    rotates: bool,
    head_dim: usize,
    /// What chooses the pairs of a routed pass, where not all are computed.
    choosing: Option<Choosing>,
}

#[derive(Clone, Debug)]
struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    fn new(shape: (usize, usize), bias: bool, stdev: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            weight: vb.get_with_hints(shape, "weight", Init::Randn { mean: 0.0, stdev })?,
            bias: bias.then(|| vb.get_with_hints(shape.0, "bias", Init::Const(0.0))).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(linear::forward(x, &self.weight, self.bias.as_ref())?)
    }

    fn backward(&self, x: &Tensor, dy: &Tensor, input: bool, grads: &mut Grads) -> Result<Option<Tensor>> {
        Ok(linear::backward(x, &self.weight, self.bias.as_ref(), dy, input, grads)?)
    }

    fn learns(&self, grads: &Grads) -> bool {
        grads.learns(&self.weight) || self.bias.as_ref().is_some_and(|bias| grads.learns(bias))
    }
}

/// What the backward of an attention needs.
#[derive(Debug)]
pub(super) struct Saved {
    x: Tensor,
    /// Queries and keys before their normalisation, `[B, T, H, D]`.
    q: Tensor,
    k: Tensor,
    attended: Attended,
    /// `[B, T, H·D]`.
    y: Tensor,
    rotary: Rotary,
}

/// Of which pairs.
#[derive(Debug)]
enum Attended {
    All(attention::Saved),
    Some(sparse_attention::Saved),
}

impl Attention {
    /// Reads or initialises the weights.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn new(cfg: &Arch, layer: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let (d, head_dim) = (cfg.hidden_size, cfg.head_dim);
        let (q, kv) = (cfg.num_attention_heads * head_dim, cfg.num_key_value_heads * head_dim);
        let projection = |name: &str, shape| Linear::new(shape, cfg.attention_bias.before(), 0.02, &vb.pp(name));
        let norm =
            |name: &str| cfg.qk_norm().then(|| RmsNorm::new(head_dim, cfg.rms_norm_eps, &vb.pp(name))).transpose();
        Ok(Self {
            q_proj: projection("q_proj", (q, d))?,
            k_proj: projection("k_proj", (kv, d))?,
            v_proj: projection("v_proj", (kv, d))?,
            o_proj: Linear::new((d, q), cfg.attention_bias.behind(), cfg.residual_stdev(), &vb.pp("o_proj"))?,
            q_norm: norm("q_norm")?,
            k_norm: norm("k_norm")?,
            rotates: !cfg.nope_layers.contains(&layer),
            head_dim,
            choosing: None,
        })
    }

    /// Computing, in a routed pass, these pairs alone.
    ///
    /// # Errors
    /// What [`check_attention`] refuses.
    pub(super) fn set_pairs(&mut self, spec: &AttentionSpec, cfg: &Arch) -> Result<()> {
        check_attention(spec, cfg)?;
        self.choosing = spec.pairs().map(|pairs| Choosing { pairs: *pairs, directions_krd: None });
        Ok(())
    }

    /// Which pairs it computes in a routed pass.
    pub(super) fn pairs(&self) -> AttentionSpec {
        self.choosing.as_ref().map_or(AttentionSpec::Dense, |by| AttentionSpec::Pairs(by.pairs))
    }

    /// Whether a routed pass computes some pairs alone.
    #[cfg(feature = "cuda")]
    pub(super) fn is_sparse(&self) -> bool {
        self.choosing.is_some()
    }

    /// With the main directions of its keys, `[K, r or more, D]`, if its index reads any.
    ///
    /// # Errors
    /// Directions of other heads, or fewer than the index reads.
    pub(super) fn set_key_directions(&mut self, directions_krd: &Tensor, layer: usize) -> Result<()> {
        let kv_heads = self.k_proj.weight.dim(0)? / self.head_dim;
        let Some(choosing) = &mut self.choosing else { return Ok(()) };
        let PairIndex::Directions(r) = choosing.pairs.index else { return Ok(()) };
        match *directions_krd.dims() {
            [heads, have, width] if (heads, width) == (kv_heads, self.head_dim) && have >= r => {
                choosing.directions_krd = Some(directions_krd.narrow(1, 0, r)?.contiguous()?);
                Ok(())
            }
            ref dims => {
                let problem =
                    format!("layer {layer} has {dims:?}, and reads {r} of [{kv_heads}, .., {}]", self.head_dim);
                Err(Error::setting("directions", problem, "fit them on this model with exp_directions"))
            }
        }
    }

    /// What chooses the pairs of these last `queries` of `positions`, if not all are computed.
    ///
    /// # Errors
    /// Directions that nobody gave.
    fn choosing(&self, queries: usize, positions: usize, cached: bool) -> Result<Option<&Choosing>> {
        let prefills = cached && queries == positions;
        let is_dense =
            |by: &Choosing| (prefills && by.pairs.prefill == Prefill::Dense) || by.pairs.keeps_all(queries, positions);
        let by = self.choosing.as_ref().filter(|&by| !is_dense(by));
        if let Some(Choosing { pairs, directions_krd: None }) = by
            && matches!(pairs.index, PairIndex::Directions(_))
        {
            let problem = "its index reads the main directions of the keys, and there are none";
            let remedy = "fit them with exp_directions, which writes them beside the checkpoint, or give them (`with_key_directions`)";
            return Err(Error::setting("attention", problem, remedy));
        }
        Ok(by)
    }

    /// The keys of x `[B, T, d]`, normalised and turned, `[B, T, K, D]`.
    pub(super) fn keys(&self, x: &Tensor, rotary: &Rotary) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        let k = self.k_proj.forward(x)?.reshape((b, t, (), self.head_dim))?;
        let k = self.k_norm.as_ref().map_or(Ok(k.clone()), |norm| norm.forward(&k))?;
        if self.rotates { Ok(rope::forward(&k, &rotary.cos, &rotary.sin)?) } else { Ok(k) }
    }

    /// x `[B, T, d]` of whole sequences to `[B, T, d]`, where `f` makes y `[B, T, H, D]` of queries `[B, T, H, D]`, keys and values `[B, T, K, D]`.
    pub(super) fn forward_by(
        &self,
        x: &Tensor,
        rotary: &Rotary,
        f: impl FnOnce([&Tensor; 3]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        let heads = |y: Tensor| y.reshape((b, t, (), self.head_dim));
        let q = heads(self.q_proj.forward(x)?)?;
        let q = self.q_norm.as_ref().map_or(Ok(q.clone()), |norm| norm.forward(&q))?;
        let q = if self.rotates { rope::forward(&q, &rotary.cos, &rotary.sin)? } else { q };
        let (k, v) = (self.keys(x, rotary)?, heads(self.v_proj.forward(x)?)?);
        self.o_proj.forward(&f([&q, &k, &v])?.reshape((b, t, ()))?)
    }

    /// x `[B, T, d]` to `[B, T, d]`, of the declared pairs alone where it `chooses`; with a cache, T new positions after those it holds, and no backward.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        rotary: &Rotary,
        chooses: bool,
        cache: Option<(&mut KvCache, usize)>,
    ) -> Result<(Tensor, Saved)> {
        let (b, t, _) = x.dims3()?;
        let heads = |y: Tensor| y.reshape((b, t, (), self.head_dim));
        let (q, k) = (heads(self.q_proj.forward(x)?)?, heads(self.k_proj.forward(x)?)?);
        let turned = |x: &Tensor, norm: &Option<RmsNorm>| -> Result<Tensor> {
            let x = norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(x))?;
            if self.rotates { Ok(rope::forward(&x, &rotary.cos, &rotary.sin)?) } else { Ok(x) }
        };
        let [turned_q, mut keys] = match self.norms_and_turns(rotary) {
            Some(by) => norm_rope::forward([&q, &k], by)?,
            None => [turned(&q, &self.q_norm)?, turned(&k, &self.k_norm)?],
        };
        let mut values = heads(self.v_proj.forward(x)?)?;
        let (mut positions, mut indexed, cached) = (t, None, cache.is_some());
        if let Some((cache, layer)) = cache {
            let read = self.choosing.as_ref().map_or(Ok(None), |by| by.indexed(&keys))?;
            let (held, taken) = cache.extend(layer, &Held { keys, values, indexed: read })?;
            (keys, values, indexed, positions) = (held.keys, held.values, held.indexed, taken);
        }
        let by = if chooses { self.choosing(t, positions, cached)? } else { None };
        let (y, attended) = if let Some(by) = by {
            let of = [&keys, &values];
            let (y, saved) = sparse_attention::forward_in_room(&turned_q, of, indexed.as_ref(), positions, by)?;
            (y, Attended::Some(saved))
        } else {
            let (y, saved) = attention::forward_in_room(&turned_q, &keys, &values, positions)?;
            (y, Attended::All(saved))
        };
        let y = y.reshape((b, t, ()))?;
        let out = self.o_proj.forward(&y)?;
        Ok((out, Saved { x: x.clone(), q, k, attended, y, rotary: rotary.clone() }))
    }

    /// dx, if `input`.
    pub(super) fn backward(
        &self,
        saved: Saved,
        dout: &Tensor,
        input: bool,
        grads: &mut Grads,
    ) -> Result<Option<Tensor>> {
        let Saved { x, q, k, attended, y, rotary } = saved;
        let (b, t, _) = x.dims3()?;
        let own = [&self.q_proj, &self.k_proj, &self.v_proj].into_iter().any(|projection| projection.learns(grads));
        let below = input || own || self.norms().any(|norm| norm.learns(grads));
        let Some(dy) = self.o_proj.backward(&y, dout, below, grads)? else { return Ok(None) };
        let dy = dy.reshape((b, t, (), self.head_dim))?;
        let [dq, dk, dv] = match &attended {
            Attended::All(saved) => attention::backward(saved, &dy)?,
            Attended::Some(saved) => sparse_attention::backward(saved, &dy)?,
        };
        let flat = |x: Tensor| x.reshape((b, t, ()));
        let mut turned_back = |dx: Tensor, x: &Tensor, norm: &Option<RmsNorm>| -> Result<Tensor> {
            let dx = if self.rotates { rope::backward(&dx, &rotary.cos, &rotary.sin)? } else { dx };
            norm.as_ref().map_or(Ok(dx.clone()), |norm| norm.backward(x, &dx, grads))
        };
        let [dq, dk] = match self.norms_and_turns(&rotary) {
            Some(by) => norm_rope::backward([&q, &k], by, [&dq, &dk], grads)?,
            None => [turned_back(dq, &q, &self.q_norm)?, turned_back(dk, &k, &self.k_norm)?],
        };
        let [dq, dk, dv] = [flat(dq)?, flat(dk)?, flat(dv)?];
        let projections = [(&self.v_proj, &dv), (&self.k_proj, &dk), (&self.q_proj, &dq)];
        for (projection, dy) in projections {
            projection.backward(&x, dy, false, grads)?;
        }
        if !input {
            return Ok(None);
        }
        let pairs = projections.map(|(projection, dy)| Ok((dy.flatten_to(1)?, projection.weight.detach())));
        let pairs = pairs.into_iter().collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Some(linear::sum_of_products(pairs.iter().map(|(dy, w)| (dy, w)))?.reshape(x.shape())?))
    }

    /// Whether any of its weights learns.
    pub(super) fn learns(&self, grads: &Grads) -> bool {
        let projections = [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj];
        projections.into_iter().any(|projection| projection.learns(grads))
            || self.norms().any(|norm| norm.learns(grads))
    }

    /// x + the attention's output of a new position of each row, x `[B, d]` before its norm, by launches that a captured graph can hold; `None` where there are none for it.
    ///
    /// # Errors
    /// What the device reports.
    #[cfg(feature = "cuda")]
    pub(super) fn decode(
        &self,
        x_bd: &Tensor,
        norm: &RmsNorm,
        rotary: &Rotary,
        past: Past<'_>,
        workspace: &mut Workspace,
    ) -> Result<Option<Tensor>> {
        let heads = self.q_proj.weight.dim(0)? / self.head_dim;
        let normed = [&self.q_norm, &self.k_norm].map(Option::is_some);
        let projections = [&self.q_proj, &self.k_proj, &self.v_proj];
        let matrices = [&projections[..], &[&self.o_proj]].concat();
        let read = gemv::takes(x_bd, &matrices.iter().map(|projection| &projection.weight).collect::<Vec<_>>())?;
        if !read || normed[0] != normed[1] || !decode_attention::takes(heads, past.keys_bskd)? {
            return Ok(None);
        }
        let parts = projections.map(|projection| (&projection.weight, projection.bias.as_ref()));
        let of = Normed { x_bd, norm: Some((&norm.weight, norm.eps)) };
        let qkv = gemv::project(of, &parts, None, Stored::Same, workspace)?;
        let norms = match (&self.q_norm, &self.k_norm) {
            (Some(of_q), Some(of_k)) => Some(([&of_q.weight, &of_k.weight], of_q.eps)),
            _ => None,
        };
        let turning = Turning { norms, angles: self.rotates.then_some([&rotary.cos, &rotary.sin]) };
        let y_bn = decode_attention::forward(&qkv, heads, turning, past, workspace)?;
        let of = Normed { x_bd: &y_bn, norm: None };
        let out = [(&self.o_proj.weight, self.o_proj.bias.as_ref())];
        Ok(Some(gemv::project(of, &out, Some(x_bd), Stored::Same, workspace)?))
    }

    /// How queries and keys are normalised and turned, if both are.
    fn norms_and_turns<'a>(&'a self, rotary: &'a Rotary) -> Option<NormRope<'a>> {
        let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) else { return None };
        let weights = [&q_norm.weight, &k_norm.weight];
        self.rotates.then_some(NormRope { weights, eps: q_norm.eps, cos: &rotary.cos, sin: &rotary.sin })
    }

    fn norms(&self) -> impl Iterator<Item = &RmsNorm> {
        self.q_norm.iter().chain(&self.k_norm)
    }
}
