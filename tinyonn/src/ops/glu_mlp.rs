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
    let [gate_id, up_id, down_di] = [weights.gate, weights.up, weights.down].map(Tensor::detach);
    let g_ti = x_td.matmul(&gate_id.t()?)?;
    let u_ti = x_td.matmul(&up_id.t()?)?;
    let h_ti = weights.activation.forward(&g_ti, &u_ti)?;
    let spread = gate.map(|gate| Spread::new(gate, &h_ti)).transpose()?;
    let gated_ti = spread.as_ref().map(|spread| &h_ti * &spread.gate_ti).transpose()?;
    let y_td = gated_ti.as_ref().unwrap_or(&h_ti).matmul(&down_di.t()?)?;
    let y = y_td.reshape(x.shape())?;
    let activation = weights.activation;
    let derivative = GluMlp { activation, x_td, gate_id, up_id, down_di, g_ti, u_ti, h_ti, gated_ti, spread, probe };
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
    fn new(gate: MlpGate<'_>, h_ti: &Tensor) -> Result<Self> {
        let (gate_tn, neuron_expert) = (gate.gate_tn.detach(), gate.neuron_expert.detach());
        let gate_ti = gate_tn.to_dtype(h_ti.dtype())?.index_select(&neuron_expert, 1)?;
        Ok(Self { gate_tn, neuron_expert, gate_ti })
    }
}

struct GluMlp {
    activation: &'static dyn Activation,
    x_td: Tensor,
    gate_id: Tensor,
    up_id: Tensor,
    down_di: Tensor,
    g_ti: Tensor,
    u_ti: Tensor,
    h_ti: Tensor,
    gated_ti: Option<Tensor>,
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
        let delta_y_td = rows(grad)?;
        let delta_h_ti = delta_y_td.matmul(&self.down_di)?;
        let gate_ti = self.spread.as_ref().map(|spread| &spread.gate_ti);
        let gated_ti = gate_ti.map(|c_ti| &delta_h_ti * c_ti).transpose()?;
        let (delta_g_ti, delta_u_ti) =
            self.activation.backward(&self.g_ti, &self.u_ti, gated_ti.as_ref().unwrap_or(&delta_h_ti))?;
        let learners = match &self.probe {
            Some((probe, layer)) => probe.observe(
                *layer,
                &MlpBackward {
                    x_td: &self.x_td,
                    h_ti: &self.h_ti,
                    gate_ti,
                    delta_y_td: &delta_y_td,
                    delta_h_ti: &delta_h_ti,
                    delta_g_ti: &delta_g_ti,
                    delta_u_ti: &delta_u_ti,
                },
            )?,
            None => WeightGrads::All,
        };
        let need = |i: usize| needs.get(i).copied().unwrap_or(false);
        let dx = || (delta_g_ti.matmul(&self.gate_id)? + delta_u_ti.matmul(&self.up_id)?)?.reshape(output.shape());
        let hidden_ti = self.gated_ti.as_ref().unwrap_or(&self.h_ti);
        Ok(vec![
            need(0).then(dx).transpose()?,
            need(1).then(|| product_of_rows(&delta_g_ti, &self.x_td, &learners)).transpose()?,
            need(2).then(|| product_of_rows(&delta_u_ti, &self.x_td, &learners)).transpose()?,
            need(3).then(|| product_of_columns(&delta_y_td, hidden_ti, &learners)).transpose()?,
            need(4).then(|| self.gate_gradient(&delta_h_ti)).transpose()?,
        ])
    }
}

impl GluMlp {
    /// ∂L/∂w[t, n] = Σ over the neurons of n of δ_h ⊙ h.
    fn gate_gradient(&self, delta_h_ti: &Tensor) -> Result<Tensor> {
        let Some(spread) = &self.spread else { candle_core::bail!("glu_mlp: no gate to differentiate") };
        let product = (delta_h_ti * &self.h_ti)?.to_dtype(spread.gate_tn.dtype())?;
        spread.gate_tn.zeros_like()?.index_add(&spread.neuron_expert, &product, 1)
    }
}

/// δᵀ x `[i, d]`, only the learners' rows.
fn product_of_rows(delta_ti: &Tensor, x_td: &Tensor, learners: &WeightGrads) -> Result<Tensor> {
    match learners {
        WeightGrads::All => delta_ti.t()?.matmul(x_td),
        WeightGrads::Neurons(neurons) => {
            let zeros = Tensor::zeros((delta_ti.dim(1)?, x_td.dim(1)?), x_td.dtype(), x_td.device())?;
            if neurons.is_empty() {
                return Ok(zeros);
            }
            let index = Tensor::new(neurons.as_slice(), x_td.device())?;
            zeros.index_add(&index, &delta_ti.index_select(&index, 1)?.t()?.matmul(x_td)?, 0)
        }
    }
}

/// δ_yᵀ h `[d, i]`, only the learners' columns.
fn product_of_columns(delta_td: &Tensor, h_ti: &Tensor, learners: &WeightGrads) -> Result<Tensor> {
    match learners {
        WeightGrads::All => delta_td.t()?.matmul(h_ti),
        WeightGrads::Neurons(neurons) => {
            let zeros = Tensor::zeros((delta_td.dim(1)?, h_ti.dim(1)?), h_ti.dtype(), h_ti.device())?;
            if neurons.is_empty() {
                return Ok(zeros);
            }
            let index = Tensor::new(neurons.as_slice(), h_ti.device())?;
            zeros.index_add(&index, &delta_td.t()?.matmul(&h_ti.index_select(&index, 1)?)?, 1)
        }
    }
}
