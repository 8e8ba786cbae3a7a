//! Grouped-query attention with normalised queries and keys.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

use super::{KvCache, Qwen3Config, RmsNorm, Rotary};
use crate::{Result, ops};

/// Weights of one attention, named as in the checkpoint (`self_attn`).
#[derive(Clone, Debug)]
pub struct Attention {
    q_proj: Projection,
    k_proj: Projection,
    v_proj: Projection,
    o_proj: Projection,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    head_dim: usize,
}

#[derive(Clone, Debug)]
struct Projection {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Projection {
    fn new(shape: (usize, usize), bias: bool, stdev: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            weight: vb.get_with_hints(shape, "weight", Init::Randn { mean: 0.0, stdev })?,
            bias: bias.then(|| vb.get_with_hints(shape.0, "bias", Init::Const(0.0))).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(x, &self.weight, self.bias.as_ref())?)
    }
}

impl Attention {
    /// Reads or initialises the weights.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn new(cfg: &Qwen3Config, vb: &VarBuilder<'_>) -> Result<Self> {
        let (d, head_dim) = (cfg.hidden_size, cfg.head_dim);
        let (q, kv) = (cfg.num_attention_heads * head_dim, cfg.num_key_value_heads * head_dim);
        let projection = |name: &str, shape, stdev| Projection::new(shape, cfg.attention_bias, stdev, &vb.pp(name));
        Ok(Self {
            q_proj: projection("q_proj", (q, d), 0.02)?,
            k_proj: projection("k_proj", (kv, d), 0.02)?,
            v_proj: projection("v_proj", (kv, d), 0.02)?,
            o_proj: projection("o_proj", (d, q), super::block::residual_stdev(cfg))?,
            q_norm: RmsNorm::new(head_dim, cfg.rms_norm_eps, &vb.pp("q_norm"))?,
            k_norm: RmsNorm::new(head_dim, cfg.rms_norm_eps, &vb.pp("k_norm"))?,
            head_dim,
        })
    }

    /// x `[B, T, d]` to `[B, T, d]`; with a cache, T new positions after those it holds.
    pub(super) fn forward(&self, x: &Tensor, rotary: &Rotary, cache: Option<(&mut KvCache, usize)>) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        let heads = |y: Tensor| y.reshape((b, t, (), self.head_dim));
        let q = self.q_norm.forward(&heads(self.q_proj.forward(x)?)?)?;
        let k = self.k_norm.forward(&heads(self.k_proj.forward(x)?)?)?;
        let q = ops::rope(&q, &rotary.cos, &rotary.sin)?;
        let mut k = ops::rope(&k, &rotary.cos, &rotary.sin)?;
        let mut v = heads(self.v_proj.forward(x)?)?;
        if let Some((cache, layer)) = cache {
            (k, v) = cache.extend(layer, &k, &v)?;
        }
        self.o_proj.forward(&ops::causal_attention(&q, &k, &v)?.reshape((b, t, ()))?)
    }
}
