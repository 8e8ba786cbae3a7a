//! One decoder layer: attention, then the feed-forward, each normalised before and added to its input.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::{Attention, FeedForward, KvCache, Qwen3Config, RmsNorm, Rotary, RouteCtx};
use crate::Result;

/// A decoder layer over any feed-forward.
#[derive(Clone, Debug)]
pub struct Block<F> {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: F,
    layer: usize,
}

/// New weights that write to the residual stream are smaller by √(2 layers) (Radford et al., 2019).
pub(super) fn residual_stdev(cfg: &Qwen3Config) -> f64 {
    0.02 / ((2 * cfg.num_hidden_layers) as f64).sqrt()
}

impl<F: FeedForward> Block<F> {
    /// Layer `layer` around the feed-forward `mlp`.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn new(cfg: &Qwen3Config, layer: usize, mlp: F, vb: &VarBuilder<'_>) -> Result<Self> {
        let norm = |name: &str| RmsNorm::new(cfg.hidden_size, cfg.rms_norm_eps, &vb.pp(name));
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::new(cfg, &vb.pp("self_attn"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp,
            layer,
        })
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
        ctx: &RouteCtx,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let cache = cache.map(|cache| (cache, self.layer));
        let x = (x + self.self_attn.forward(&self.input_layernorm.forward(x)?, rotary, cache)?)?;
        let normed = self.post_attention_layernorm.forward(&x)?;
        if let Some(observer) = &ctx.observer {
            observer.feed_forward_input(self.layer, &normed)?;
        }
        let x = (x + self.mlp.forward(&normed, ctx)?)?;
        if let Some(observer) = &ctx.observer {
            observer.block_output(self.layer, &x)?;
        }
        Ok(x)
    }
}
