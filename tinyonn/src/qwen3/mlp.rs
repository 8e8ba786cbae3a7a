//! The dense feed-forward of gated linear units.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

use super::{FeedForward, Qwen3Config, RouteCtx};
use crate::Result;
use crate::ops::{self, Activation, MlpWeights};

/// y = W_d h(W_g x, W_u x), named as in the checkpoint (`mlp`); h(g, u) = silu(g) ⊙ u unless the configuration says otherwise.
#[derive(Clone, Debug)]
pub struct Mlp {
    gate_proj: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
    activation: &'static dyn Activation,
    layer: usize,
}

impl Mlp {
    /// Reads or initialises the weights of layer `layer`.
    ///
    /// # Errors
    /// A missing or misshapen weight; an unknown activation.
    pub fn new(cfg: &Qwen3Config, layer: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let [gate_proj, up_proj, down_proj] = projections(cfg, vb)?;
        Ok(Self { gate_proj, up_proj, down_proj, activation: cfg.activation()?, layer })
    }

    /// h(W_g x, W_u x) `[t, I]` of x `[t, d]`, detached: what an observer of x sees of the neurons.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not go together.
    pub fn hidden(&self, x_td: &Tensor) -> Result<Tensor> {
        let [g_ti, u_ti] = [&self.gate_proj, &self.up_proj].map(|w_id| x_td.detach().matmul(&w_id.detach().t()?));
        Ok(self.activation.forward(&g_ti?, &u_ti?)?)
    }
}

/// W_g and W_u `[I, d]` and W_d `[d, I]` under their checkpoint names.
///
/// # Errors
/// A missing or misshapen weight.
pub fn projections(cfg: &Qwen3Config, vb: &VarBuilder<'_>) -> Result<[Tensor; 3]> {
    let (d, i) = (cfg.hidden_size, cfg.intermediate_size);
    let get = |name: &str, shape: (usize, usize), stdev| {
        vb.pp(name).get_with_hints(shape, "weight", Init::Randn { mean: 0.0, stdev })
    };
    Ok([
        get("gate_proj", (i, d), 0.02)?,
        get("up_proj", (i, d), 0.02)?,
        get("down_proj", (d, i), super::block::residual_stdev(cfg))?,
    ])
}

impl FeedForward for Mlp {
    fn forward(&self, x: &Tensor, ctx: &RouteCtx) -> Result<Tensor> {
        let (gate, up, down) = (&self.gate_proj, &self.up_proj, &self.down_proj);
        let weights = MlpWeights { gate, up, down, activation: self.activation };
        Ok(ops::glu_mlp(x, weights, None, ctx.probe.clone().map(|probe| (probe, self.layer)))?)
    }
}
