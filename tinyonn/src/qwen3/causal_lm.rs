//! The decoder with its language-model head.

use std::borrow::Cow;

use candle_core::{DType, Tensor};
use candle_nn::{Init, VarBuilder};

use super::{Active, FeedForward, KvCache, Mlp, Qwen3, Qwen3Config, RouteCtx};
use crate::{Result, ops};

/// A causal language model over any feed-forward.
#[derive(Clone, Debug)]
pub struct Qwen3ForCausalLm<F> {
    model: Qwen3<F>,
    lm_head: Tensor,
}

impl Qwen3ForCausalLm<Mlp> {
    /// The dense model.
    ///
    /// # Errors
    /// A configuration that cannot work; a missing or misshapen weight.
    pub fn dense(cfg: &Qwen3Config, vb: &VarBuilder<'_>) -> Result<Self> {
        Self::new(cfg, vb, |layer, vb| Mlp::new(cfg, layer, &vb))
    }
}

impl<F: FeedForward> Qwen3ForCausalLm<F> {
    /// Reads or initialises the weights; `feed_forward(layer, vb)` builds each layer's `mlp`.
    ///
    /// # Errors
    /// A configuration that cannot work; a missing or misshapen weight.
    pub fn new(
        cfg: &Qwen3Config,
        vb: &VarBuilder<'_>,
        feed_forward: impl FnMut(usize, VarBuilder<'_>) -> Result<F>,
    ) -> Result<Self> {
        let model = Qwen3::new(cfg, &vb.pp("model"), feed_forward)?;
        let lm_head = if cfg.tie_word_embeddings {
            model.embed_tokens().clone()
        } else {
            let shape = (cfg.vocab_size, cfg.hidden_size);
            vb.pp("lm_head").get_with_hints(shape, "weight", Init::Randn { mean: 0.0, stdev: 0.02 })?
        };
        Ok(Self { model, lm_head })
    }

    /// The decoder's output `[B, T, d]`, what the head reads.
    ///
    /// # Errors
    /// Ids beyond the vocabulary; shapes or devices that do not go together.
    pub fn hidden(&self, ids: &Tensor, ctx: &RouteCtx) -> Result<Tensor> {
        self.model.forward(ids, &*self.with_surprisal(ids, ctx)?, None)
    }

    /// Logits `[B, T, V]` of token ids `[B, T]`, in the model's dtype.
    ///
    /// # Errors
    /// Ids beyond the vocabulary; shapes or devices that do not go together.
    pub fn logits(&self, ids: &Tensor, ctx: &RouteCtx, cache: Option<&mut KvCache>) -> Result<Tensor> {
        let ctx = &self.with_surprisal(ids, ctx)?;
        Ok(ops::linear(&self.model.forward(ids, ctx, cache)?, &self.lm_head, None)?)
    }

    /// The cross-entropy of each target `[B, T]` in nats, f32; 0 where the target is `u32::MAX` (none).
    /// The logits are never held whole.
    ///
    /// # Errors
    /// Ids beyond the vocabulary; shapes or devices that do not go together.
    pub fn token_losses(&self, ids: &Tensor, targets: &Tensor, ctx: &RouteCtx) -> Result<Tensor> {
        Ok(ops::head_cross_entropy(&self.hidden(ids, ctx)?, &self.lm_head, targets)?)
    }

    /// `ctx` with the surprisal of every token given those before it, where routing reads it: a first pass, all active. The first
    /// token of a sequence is as surprising as one of the vocabulary drawn at random.
    fn with_surprisal<'a>(&self, ids: &Tensor, ctx: &'a RouteCtx) -> Result<Cow<'a, RouteCtx>> {
        let reads = self.model.layers().iter().any(|layer| layer.mlp().reads_surprisal());
        if !reads || ctx.surprisal.is_some() || !matches!(ctx.active, Active::Routed) {
            return Ok(Cow::Borrowed(ctx));
        }
        let (b, t) = ids.dims2()?;
        let first = Tensor::full((self.config().vocab_size as f32).ln(), (b, 1), ids.device())?;
        let surprisal = if t == 1 {
            first
        } else {
            let hidden = self.model.forward(&ids.narrow(1, 0, t - 1)?, &RouteCtx::all(), None)?.detach();
            let next = ids.narrow(1, 1, t - 1)?.to_dtype(DType::U32)?.contiguous()?;
            let losses = ops::head_cross_entropy(&hidden, &self.lm_head.detach(), &next)?.reshape((b, t - 1))?;
            Tensor::cat(&[first, losses], 1)?
        };
        Ok(Cow::Owned(RouteCtx { surprisal: Some(surprisal), ..ctx.clone() }))
    }

    /// The decoder.
    pub fn model(&self) -> &Qwen3<F> {
        &self.model
    }

    /// The configuration.
    pub fn config(&self) -> &Qwen3Config {
        self.model.config()
    }
}
