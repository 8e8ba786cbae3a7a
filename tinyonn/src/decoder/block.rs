//! One decoder layer: attention, then the feed-forward, each normalised before and added to its input.

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use tinyonn_spec::AttentionSpec;

use super::attention::{self, Attention};
#[cfg(feature = "cuda")]
use super::feed_forward::NewTokens;
use super::{Active, Answers, Arch, Ask, FeedForward, InputRows, Keep, KvCache, Learn, Pass, RmsNorm, Rotary, Trace};
use crate::Result;
use crate::ops::{Grads, elementwise};
#[cfg(feature = "cuda")]
use crate::ops::{Workspace, decode_attention::Past};

/// A decoder layer over any feed-forward.
#[derive(Clone, Debug)]
pub struct Block<F> {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: F,
    layer: usize,
}

impl<F: FeedForward> Block<F> {
    /// Layer `layer` around the feed-forward `mlp`.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn new(cfg: &Arch, layer: usize, mlp: F, vb: &VarBuilder<'_>) -> Result<Self> {
        let norm = |name: &str| RmsNorm::new(cfg.hidden_size, cfg.rms_norm_eps, &vb.pp(name));
        let mut self_attn = Attention::new(cfg, layer, &vb.pp("self_attn"))?;
        self_attn.set_pairs(&mlp.attention(), cfg)?;
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp,
            layer,
        })
    }

    /// With attention to these pairs in a routed pass, in place of what the feed-forward declares.
    ///
    /// # Errors
    /// What a model of this shape cannot compute.
    pub(super) fn set_pairs(&mut self, spec: &AttentionSpec, cfg: &Arch) -> Result<()> {
        self.self_attn.set_pairs(spec, cfg)
    }

    /// Which pairs its attention computes in a routed pass.
    pub(super) fn pairs(&self) -> AttentionSpec {
        self.self_attn.pairs()
    }

    /// With the main directions of its keys, `[K, r or more, D]`.
    ///
    /// # Errors
    /// Directions of other heads, or fewer than the index reads.
    pub(super) fn set_key_directions(&mut self, directions_krd: &Tensor) -> Result<()> {
        self.self_attn.set_key_directions(directions_krd, self.layer)
    }

    /// The keys of x `[B, T, d]` as queries meet them, `[B, T, K, D]`.
    pub(super) fn keys(&self, x: &Tensor, rotary: &Rotary) -> Result<Tensor> {
        self.self_attn.keys(&self.input_layernorm.forward(x)?, rotary)
    }

    /// The feed-forward.
    pub fn mlp(&self) -> &F {
        &self.mlp
    }

    /// x `[B, T, d]` to `[B, T, d]`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        rotary: &Rotary,
        pass: &Pass,
        cache: Option<&mut KvCache>,
    ) -> Result<Passed<F>> {
        let (middle, normed, attention) = self.attend(x, rotary, chooses(pass), cache)?;
        let (y, mut trace, mlp) = self.mlp.forward(&normed, pass)?;
        let out = elementwise::add(&middle, &y)?;
        if let Some(rows) = &pass.ask.inputs {
            (trace.inputs, trace.means) = sampled(&normed, rows)?;
        }
        trace.output = pass.ask.outputs.then(|| out.clone());
        let saved = match (pass.keep, mlp) {
            (Keep::All, Some(mlp)) => Some(Saved::Values { x: x.clone(), attention, middle, mlp }),
            (Keep::Inputs, _) => Some(Saved::Input { x: x.clone(), rotary: rotary.clone(), pass: again(pass) }),
            _ => None,
        };
        Ok((out, trace, saved))
    }

    /// The first half: x behind the attention, and the same normalised, which the feed-forward sees; `chooses` where the pass computes no pairs but those that are
    /// declared.
    pub(super) fn attend(
        &self,
        x: &Tensor,
        rotary: &Rotary,
        chooses: bool,
        cache: Option<&mut KvCache>,
    ) -> Result<(Tensor, Tensor, attention::Saved)> {
        let cache = cache.map(|cache| (cache, self.layer));
        let (attended, attention) =
            self.self_attn.forward(&self.input_layernorm.forward(x)?, rotary, chooses, cache)?;
        let [middle, normed] = self.post_attention_layernorm.forward_sum(x, &attended)?;
        Ok((middle, normed, attention))
    }

    /// The first half of whole sequences, where `f` is the attention over queries, keys and values.
    pub(super) fn attend_by(
        &self,
        x: &Tensor,
        rotary: &Rotary,
        f: impl FnOnce([&Tensor; 3]) -> Result<Tensor>,
    ) -> Result<[Tensor; 2]> {
        let attended = self.self_attn.forward_by(&self.input_layernorm.forward(x)?, rotary, f)?;
        self.post_attention_layernorm.forward_sum(x, &attended)
    }

    /// ∂L/∂x, if `input`, from ∂L/∂out.
    pub(super) fn backward(
        &self,
        saved: Saved<F::Saved>,
        dout: &Tensor,
        learn: &Learn,
        input: bool,
        grads: &mut Grads,
    ) -> Result<(Option<Tensor>, Answers)> {
        let (x, attention, middle, mlp) = match saved {
            Saved::Values { x, attention, middle, mlp } => (x, attention, middle, mlp),
            Saved::Input { x, rotary, pass } => match self.forward(&x, &rotary, &pass, None)?.2 {
                Some(Saved::Values { x, attention, middle, mlp }) => (x, attention, middle, mlp),
                _ => return Err(crate::Error::setting("keep", "nothing was kept of a pass", "keep its inputs")),
            },
        };
        let attention_learns = self.self_attn.learns(grads) || self.input_layernorm.learns(grads);
        let above = input || attention_learns || self.post_attention_layernorm.learns(grads);
        let (dnormed, answers) = self.mlp.backward(mlp, dout, learn, above, grads)?;
        let Some(dnormed) = dnormed else { return Ok((None, answers)) };
        let dmiddle = self.post_attention_layernorm.backward_sum(&middle, &dnormed, dout, grads)?;
        if !(input || attention_learns) {
            return Ok((None, answers));
        }
        let below = input || self.input_layernorm.learns(grads);
        let Some(dattended) = self.self_attn.backward(attention, &dmiddle, below, grads)? else {
            return Ok((None, answers));
        };
        let dx = self.input_layernorm.backward_sum(&x, &dattended, &dmiddle, grads)?;
        Ok((input.then_some(dx), answers))
    }

    /// The stream `[B, d]` behind the layer, of a new position of each row whose stream is x; `None` where there are no launches for it.
    ///
    /// # Errors
    /// What the device reports.
    #[cfg(feature = "cuda")]
    pub(super) fn decode(
        &self,
        x_bd: &Tensor,
        rotary: &Rotary,
        past: Past<'_>,
        pass: &Pass,
        workspace: &mut Workspace,
    ) -> Result<Option<Tensor>> {
        if chooses(pass) && self.self_attn.is_sparse() {
            return Ok(None);
        }
        let attended = self.self_attn.decode(x_bd, &self.input_layernorm, rotary, past, workspace)?;
        let Some(middle_bd) = attended else { return Ok(None) };
        let norm = &self.post_attention_layernorm;
        let mut new = NewTokens { x_bd: &middle_bd, norm: (&norm.weight, norm.eps), workspace };
        if let Some(out_bd) = self.mlp.decode(&mut new, pass)? {
            return Ok(Some(out_bd));
        }
        let (y, ..) = self.mlp.forward(&norm.forward(&middle_bd)?.unsqueeze(1)?, pass)?;
        Ok(Some(elementwise::add(&middle_bd, &y.squeeze(1)?)?))
    }

    /// Whether any of its weights learns.
    pub(super) fn learns(&self, learn: &Learn, grads: &Grads) -> bool {
        let norms = [&self.input_layernorm, &self.post_attention_layernorm];
        self.mlp.learns(learn, grads)
            || self.self_attn.learns(grads)
            || norms.into_iter().any(|norm| norm.learns(grads))
    }
}

/// Whether attention computes the declared pairs alone: of all active, and along given paths, it is dense.
fn chooses(pass: &Pass) -> bool {
    matches!(pass.active, Active::Routed)
}

/// A pass once more, for its values alone.
fn again(pass: &Pass) -> Pass {
    Pass { ask: Ask::default(), ..pass.kept() }
}

/// What a forward pass returns: y, what the layer said, and what its backward needs.
type Passed<F> = (Tensor, Trace, Option<Saved<<F as FeedForward>::Saved>>);

/// What the backward of a block needs.
#[derive(Debug)]
// Few of them exist at once, one a layer.
#[allow(clippy::large_enum_variant)]
pub(super) enum Saved<M> {
    /// Every value.
    Values {
        x: Tensor,
        attention: attention::Saved,
        /// Between attention and feed-forward.
        middle: Tensor,
        mlp: M,
    },
    /// What computes them once more.
    Input { x: Tensor, rotary: Rotary, pass: Pass },
}

/// Rows `[k, d]` and means of windows `[B, windows, d]` of a feed-forward's input, f32.
fn sampled(
    x: &Tensor,
    InputRows { rows, windows: (count, length) }: &InputRows,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (b, _, d) = x.dims3()?;
    let x = x.detach().to_dtype(DType::F32)?;
    let kept = (rows.elem_count() > 0).then(|| x.flatten_to(1)?.index_select(rows, 0)).transpose()?;
    let means = || {
        let means = (0..*count).map(|window| x.narrow(1, window * length, *length)?.mean(1)?.unsqueeze(1));
        Tensor::cat(&means.collect::<candle_core::Result<Vec<_>>>()?, 1)?.reshape((b, *count, d))
    };
    Ok((kept, (*count > 0).then(means).transpose()?))
}
