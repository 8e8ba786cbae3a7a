//! The decoder without its head: embedding, blocks, final normalisation.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

use super::{Block, FeedForward, KvCache, Qwen3Config, RmsNorm, Rotary, RouteCtx};
use crate::{Result, ops};

/// The decoder, over any feed-forward; named as in the checkpoint (`model`).
#[derive(Clone, Debug)]
pub struct Qwen3<F> {
    embed_tokens: Tensor,
    layers: Vec<Block<F>>,
    norm: RmsNorm,
    cfg: Qwen3Config,
}

impl<F: FeedForward> Qwen3<F> {
    /// Reads or initialises the weights; `feed_forward(layer, vb)` builds each layer's `mlp`.
    ///
    /// # Errors
    /// A configuration that cannot work; a missing or misshapen weight.
    pub fn new(
        cfg: &Qwen3Config,
        vb: &VarBuilder<'_>,
        mut feed_forward: impl FnMut(usize, VarBuilder<'_>) -> Result<F>,
    ) -> Result<Self> {
        cfg.validate()?;
        let shape = (cfg.vocab_size, cfg.hidden_size);
        let embed_tokens =
            vb.pp("embed_tokens").get_with_hints(shape, "weight", Init::Randn { mean: 0.0, stdev: 0.02 })?;
        let mut layers = Vec::with_capacity(cfg.num_hidden_layers);
        for layer in 0..cfg.num_hidden_layers {
            let vb = vb.pp("layers").pp(layer);
            layers.push(Block::new(cfg, layer, feed_forward(layer, vb.pp("mlp"))?, &vb)?);
        }
        let norm = RmsNorm::new(cfg.hidden_size, cfg.rms_norm_eps, &vb.pp("norm"))?;
        Ok(Self { embed_tokens, layers, norm, cfg: cfg.clone() })
    }

    /// Final hidden states `[B, T, d]` of token ids `[B, T]`; with a cache, of the T positions after those it holds.
    ///
    /// # Errors
    /// Ids beyond the vocabulary; shapes or devices that do not go together.
    pub fn forward(&self, ids: &Tensor, ctx: &RouteCtx, mut cache: Option<&mut KvCache>) -> Result<Tensor> {
        let (_, t) = ids.dims2()?;
        let past = cache.as_ref().map_or(0, |cache| cache.positions());
        let mut x = ops::embedding(ids, &self.embed_tokens)?;
        let rotary = Rotary::new(&self.cfg, past, t, x.dtype(), x.device())?;
        for layer in &self.layers {
            x = layer.forward(&x, &rotary, ctx, cache.as_deref_mut())?;
        }
        self.norm.forward(&x)
    }

    /// The decoder layers.
    pub fn layers(&self) -> &[Block<F>] {
        &self.layers
    }

    /// The configuration.
    pub fn config(&self) -> &Qwen3Config {
        &self.cfg
    }

    pub(super) fn embed_tokens(&self) -> &Tensor {
        &self.embed_tokens
    }
}
