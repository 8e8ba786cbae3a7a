//! The MLP of gated linear units (Shazeer, 2020) whose neurons carry gates: y = W_d (h ⊙ c), h = h(W_g x, W_u x).
//!
//! The [`Activation`] h(g, u) makes it SwiGLU (silu(g) ⊙ u), GEGLU (gelu(g) ⊙ u) or whatever else is elementwise.
//!
//! Legend: t tokens, d hidden, i intermediate width (neurons), n experts. x, y `[.., d]`; W_g, W_u `[i, d]`; W_d `[d, i]`;
//! gate w `[t, n]` and the neurons' experts `[i]` give c[t, i] = w[t, expert(i)]. Without a gate c ≡ 1 and nothing is
//! multiplied: the dense MLP, bit for bit.
//!
//! One operation holds the whole MLP because what imaging and Surprise Min-K need exists only inside its backward
//! (DESIGN §3, §4): with δ_y = ∂L/∂y, δ_h = W_dᵀ δ_y, δ_u = c δ_h ⊙ ∂h/∂u, δ_g = c δ_h ⊙ ∂h/∂g, a [`MlpProbe`] sees
//! all of them before any weight gradient is formed, and decides whose are.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::activation::Activation;
use super::linear::rows;
use super::mlp_pass::MlpPass;
use super::tape::{self, Backward};

/// The three matrices of an MLP, each a variable (it learns) or not (it is frozen), and what stands between them.
#[derive(Clone, Copy, Debug)]
pub struct MlpWeights<'a> {
    /// W_g `[i, d]`.
    pub gate: &'a Tensor,
    /// W_u `[i, d]`.
    pub up: &'a Tensor,
    /// W_d `[d, i]`.
    pub down: &'a Tensor,
    /// h(g, u).
    pub activation: &'static dyn Activation,
}

/// Gates of experts, spread over their neurons.
#[derive(Clone, Copy, Debug)]
pub struct MlpGate<'a> {
    /// w `[t, n]`, in the dtype of x.
    pub gate_tn: &'a Tensor,
    /// The expert of each neuron, `[i]` u32.
    pub neuron_expert: &'a Tensor,
}

/// What the backward knows before it forms weight gradients. All tensors are detached.
#[derive(Debug)]
pub struct MlpBackward<'a> {
    /// The input, `[t, d]`.
    pub x_td: &'a Tensor,
    /// h before its gate, `[t, i]`.
    pub h_ti: &'a Tensor,
    /// c, or `None` for all ones, `[t, i]`.
    pub gate_ti: Option<&'a Tensor>,
    /// δ_y, `[t, d]`.
    pub delta_y_td: &'a Tensor,
    /// δ_h = W_dᵀ δ_y, the gradient of the gated h, `[t, i]`.
    pub delta_h_ti: &'a Tensor,
    /// δ_g, `[t, i]`.
    pub delta_g_ti: &'a Tensor,
    /// δ_u, `[t, i]`.
    pub delta_u_ti: &'a Tensor,
    /// W_g and W_u, `[i, d]` each; `None` where not all tokens share them.
    pub input_matrices: Option<[&'a Tensor; 2]>,
}

/// Whose weight gradients are formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightGrads {
    /// Every neuron's.
    All,
    /// These neurons' (ascending); the others' rows and columns are zero.
    Neurons(Vec<u32>),
}

/// An observer of an MLP's backward.
pub trait MlpProbe: Send + Sync {
    /// Sees one backward pass of `layer`'s MLP and says whose weights learn from it.
    ///
    /// # Errors
    /// Whatever the observer reports; the backward stops with it.
    fn observe(&self, layer: usize, pass: &MlpBackward<'_>) -> Result<WeightGrads>;
}

/// y = W_d (h ⊙ c). Differentiable in x, the gate and the three matrices; `probe` watches `(observer, layer)`.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn glu_mlp(
    x: &Tensor,
    weights: MlpWeights<'_>,
    gate: Option<MlpGate<'_>>,
    probe: Option<(Arc<dyn MlpProbe>, usize)>,
) -> Result<Tensor> {
    let x_td = rows(&x.detach())?;
    let matrices = [weights.gate, weights.up, weights.down].map(Tensor::detach);
    let spread = gate.map(|gate| Spread::new(gate, &x_td)).transpose()?;
    let gate_ti = spread.as_ref().map(|spread| spread.gate_ti.clone());
    let pass = MlpPass::new(x_td, &matrices, weights.activation, gate_ti)?;
    let y = pass.output(&matrices)?.reshape(x.shape())?;
    let derivative = GluMlp { matrices, pass, spread, probe };
    match gate {
        Some(MlpGate { gate_tn, .. }) => {
            tape::record(&[x, weights.gate, weights.up, weights.down, gate_tn], y, derivative)
        }
        None => tape::record(&[x, weights.gate, weights.up, weights.down], y, derivative),
    }
}

/// A gate and its value at each neuron.
struct Spread {
    gate_tn: Tensor,
    neuron_expert: Tensor,
    gate_ti: Tensor,
}

impl Spread {
    fn new(gate: MlpGate<'_>, x_td: &Tensor) -> Result<Self> {
        let (gate_tn, neuron_expert) = (gate.gate_tn.detach().contiguous()?, gate.neuron_expert.detach());
        let gate_ti = gate_tn.to_dtype(x_td.dtype())?.index_select(&neuron_expert, 1)?;
        Ok(Self { gate_tn, neuron_expert, gate_ti })
    }

    /// ∂L/∂w[t, n] = Σ over the neurons of n of δ_h ⊙ h.
    fn gradient(&self, product_ti: &Tensor) -> Result<Tensor> {
        let product_ti = product_ti.to_dtype(self.gate_tn.dtype())?;
        self.gate_tn.zeros_like()?.index_add(&self.neuron_expert, &product_ti, 1)
    }
}

struct GluMlp {
    matrices: [Tensor; 3],
    pass: MlpPass,
    spread: Option<Spread>,
    probe: Option<(Arc<dyn MlpProbe>, usize)>,
}

impl Backward for GluMlp {
    fn name(&self) -> &'static str {
        "glu_mlp"
    }

    fn observed(&self) -> bool {
        self.probe.is_some()
    }

    fn backward(&self, output: &Tensor, grad: &Tensor, needs: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let pass = &self.pass;
        let deltas = pass.deltas(&self.matrices, rows(grad)?)?;
        let learners = match &self.probe {
            Some((probe, layer)) => probe.observe(*layer, &pass.seen(&self.matrices, &deltas))?,
            None => WeightGrads::All,
        };
        let need = |i: usize| needs.get(i).copied().unwrap_or(false);
        let weight = |which| need(1 + which).then(|| pass.weight_gradient(which, &deltas, &learners)).transpose();
        let mut grads = vec![
            need(0).then(|| MlpPass::input_gradient(&self.matrices, &deltas)?.reshape(output.shape())).transpose()?,
            weight(0)?,
            weight(1)?,
            weight(2)?,
        ];
        if let Some(spread) = &self.spread {
            grads.push(need(4).then(|| spread.gradient(&pass.gate_products(&deltas)?)).transpose()?);
        }
        Ok(grads)
    }
}
