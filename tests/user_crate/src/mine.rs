//! A variant that the library does not know, with a router and an activation of its own.

use tinyonn::candle_core::{self, DType, Tensor};
use tinyonn::candle_nn::{Init, VarBuilder};
use tinyonn::moe::{Router, RouterShape, moe};
use tinyonn::ops::Activation;

/// Four groups of six experts: groups by directions of their own, experts by Gaussians.
#[moe(groups = 4, experts = 6, router = [Directions, gaussian(dim = 16)], top_k = [2, 3], activation = SquaredRelu)]
pub struct Mine;

/// ℓ_c = tanh⟨w_c, x⟩: a linear router whose scores are bounded.
#[derive(Debug)]
pub struct Directions {
    /// w `[P·C, d]`.
    weight: Tensor,
    shape: RouterShape,
}

impl Router for Directions {
    fn new(shape: RouterShape, vb: &VarBuilder<'_>) -> tinyonn::Result<Self> {
        // Scores are f32, whatever the model computes in.
        let vb = vb.clone().set_dtype(DType::F32);
        let spread = Init::Randn { mean: 0.0, stdev: 0.02 };
        let weight = vb.get_with_hints((shape.parents * shape.choices, shape.hidden), "weight", spread)?;
        Ok(Self { weight, shape })
    }

    fn logits(&self, x_td: &Tensor) -> tinyonn::Result<Tensor> {
        let logits_tc = x_td.matmul(&self.weight.t()?)?.tanh()?;
        Ok(logits_tc.reshape(((), self.shape.parents, self.shape.choices))?)
    }
}

/// h = relu(g)² ⊙ u (So et al., 2021). The models that have it call it so in their `config.json` (`hidden_act`).
#[derive(Debug)]
pub struct SquaredRelu;

impl Activation for SquaredRelu {
    fn name(&self) -> &str {
        "squared_relu"
    }

    fn forward(&self, g: &Tensor, u: &Tensor) -> candle_core::Result<Tensor> {
        g.relu()?.sqr()? * u
    }

    fn backward(&self, g: &Tensor, u: &Tensor, delta: &Tensor) -> candle_core::Result<(Tensor, Tensor)> {
        let on = g.relu()?;
        Ok(((((delta * u)? * &on)? * 2.0)?, (delta * on.sqr()?)?))
    }
}
