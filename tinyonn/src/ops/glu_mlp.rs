//! The MLP of gated linear units (Shazeer, 2020) whose neurons carry gates: y = W_d (h ⊙ c), h = h(W_g x, W_u x).
//!
//! The [`Activation`] h(g, u) makes it SwiGLU (silu(g) ⊙ u), GEGLU (gelu(g) ⊙ u) or whatever else is elementwise.
//!
//! Legend: t tokens, d hidden, i intermediate width (neurons), n experts. x, y `[.., d]`; W_g, W_u and, as it lies in memory, W_d `[i, d]`: a neuron
//! is a row of each;
//! gate w `[t, n]` and the neurons' experts `[i]` give c[t, i] = w[t, expert(i)]. Without a gate c ≡ 1 and nothing is
//! multiplied: the dense MLP, bit for bit.
//!
//! The backward has two steps, because what imaging and Surprise Min-K need is known between them (DESIGN §3, §4):
//! [`SlicedMlp::deltas`] gives δ_h = W_dᵀ δ_y, δ_u = c δ_h ⊙ ∂h/∂u, δ_g = c δ_h ⊙ ∂h/∂g, before any weight gradient is formed;
//! [`SlicedMlp::weight_gradients`] forms those of the neurons that learn.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use tinyonn::ops::glu_mlp::{Saved, forward};
//! use tinyonn::ops::{Grads, Learners, MlpBackward, MlpGate, MlpWeights, Silu, SlicedMlp};
//!
//! let matrix = |rows, columns| Tensor::randn(0f32, 1f32, (rows, columns), &Device::Cpu);
//! let [gate, up, down] = [matrix(6, 4)?, matrix(6, 4)?, matrix(6, 4)?].map(|w| Var::from_tensor(&w).unwrap());
//! let weights = MlpWeights { gate: &gate, up: &up, down: &down, activation: &Silu };
//! // Two tokens, two experts of three neurons: the first token takes the first, the second both.
//! let gate_tn = Tensor::new(&[[1f32, 0.0], [1.0, 1.0]], &Device::Cpu)?;
//! let neuron_expert = Tensor::new(&[0u32, 0, 0, 1, 1, 1], &Device::Cpu)?;
//! let experts = MlpGate { gate_tn: &gate_tn, neuron_expert: &neuron_expert };
//! let (y, saved): (Tensor, Saved) = forward(&matrix(2, 4)?, weights, Some(experts))?;
//!
//! /// What the backward of any sliced MLP is made of.
//! fn backward<S: SlicedMlp>(saved: &S, weights: MlpWeights<'_>, dy: &Tensor, grads: &mut Grads) -> candle_core::Result<[Tensor; 2]> {
//!     let deltas: S::Deltas = saved.deltas(dy)?;
//!     let width = saved.seen(&deltas, |pass: &MlpBackward<'_>| pass.h_ti.dim(1))?;
//!     let multiply_adds = saved.weight_gradients(weights, &deltas, &Learners::All, grads)?;
//!     assert!(multiply_adds >= 3 * 2 * 4 * width as u64);
//!     Ok([saved.input_gradient(&deltas)?, saved.gate_gradient(&deltas)?.expect("it has gates")])
//! }
//! let mut grads = Grads::new([&gate, &up, &down].map(|w| (w.as_tensor(), 0)))?;
//! let [dx, dgate] = backward(&saved, weights, &y.ones_like()?, &mut grads)?;
//! assert_eq!((dx.dims(), dgate.dims(), grads.get(&down).is_some()), (&[2, 4][..], &[2, 2][..], true));
//! let deltas = saved.deltas(&y.ones_like()?)?;
//! assert_eq!(saved.image(&deltas).delta_y_td.dims(), y.dims());
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{DType, Result, Tensor};

use super::activation::Activation;
use super::columns::columns;
use super::linear::rows;
use super::mlp_values::{Deltas, MlpBackward, MlpValues, multiply_adds};
use super::{Grads, Learners};

/// The three matrices of an MLP, and what stands between them.
#[derive(Clone, Copy, Debug)]
pub struct MlpWeights<'a> {
    /// W_g `[i, d]`.
    pub gate: &'a Tensor,
    /// W_u `[i, d]`.
    pub up: &'a Tensor,
    /// W_d as it lies in memory, a row a neuron: `[i, d]`.
    pub down: &'a Tensor,
    /// h(g, u).
    pub activation: &'static dyn Activation,
}

impl MlpWeights<'_> {
    /// W_g, W_u, W_d without a history.
    pub(super) fn matrices(&self) -> [Tensor; 3] {
        [self.gate, self.up, self.down].map(Tensor::detach)
    }
}

/// Gates of experts, spread over their neurons.
#[derive(Clone, Copy, Debug)]
pub struct MlpGate<'a> {
    /// w `[t, n]`, in the dtype of x.
    pub gate_tn: &'a Tensor,
    /// The expert of each neuron, `[i]` u32.
    pub neuron_expert: &'a Tensor,
}

/// What a forward pass through sliced experts kept, whatever it computed of them: what its backward is made of.
pub trait SlicedMlp {
    /// What the backward pass sends to the inner values.
    type Deltas;

    /// δ_h, δ_g, δ_u of what was computed, from δ_y.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not go together.
    fn deltas(&self, dy: &Tensor) -> Result<Self::Deltas>;

    /// `see` of the pass as imaging sees it, at full width: zeros for what was not computed.
    ///
    /// # Errors
    /// Whatever `see` reports.
    fn seen<R>(&self, deltas: &Self::Deltas, see: impl FnOnce(&MlpBackward<'_>) -> Result<R>) -> Result<R>;

    /// ∂L/∂x `[t, d]`.
    ///
    /// # Errors
    /// What the device reports.
    fn input_gradient(&self, deltas: &Self::Deltas) -> Result<Tensor>;

    /// ∂L/∂w, in the shape of the gates; `None` without any. A gate whose expert was not computed has 0.
    ///
    /// # Errors
    /// What the device reports.
    fn gate_gradient(&self, deltas: &Self::Deltas) -> Result<Option<Tensor>>;

    /// ∂L/∂W_g, ∂L/∂W_u, ∂L/∂W_d of the learners go to `grads`, those of others are not formed. Returns the multiply-adds that this took.
    ///
    /// # Errors
    /// What the device reports.
    fn weight_gradients(
        &self,
        weights: MlpWeights<'_>,
        deltas: &Self::Deltas,
        learners: &Learners,
        grads: &mut Grads,
    ) -> Result<u64>;
}

/// What the backward needs.
#[derive(Debug)]
pub struct Saved {
    matrices: [Tensor; 3],
    values: MlpValues,
    /// w and the neurons' experts.
    gate: Option<(Tensor, Tensor)>,
}

/// y = W_d (h ⊙ c).
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn forward(x: &Tensor, weights: MlpWeights<'_>, gate: Option<MlpGate<'_>>) -> Result<(Tensor, Saved)> {
    let (x_td, matrices) = (rows(x)?, weights.matrices());
    let gate = match gate {
        Some(gate) => Some((gate.gate_tn.detach().contiguous()?, gate.neuron_expert.detach())),
        None => None,
    };
    let spread = |(gate_tn, owners): &(Tensor, Tensor)| columns(&gate_tn.to_dtype(x_td.dtype())?, owners);
    let gate_ti = gate.as_ref().map(spread).transpose()?;
    let values = MlpValues::new(x_td, &matrices, weights.activation, gate_ti)?;
    let y = values.output(&matrices)?.reshape(x.shape())?;
    Ok((y, Saved { matrices, values: values.without_hidden(), gate }))
}

impl Saved {
    pub(super) fn of(matrices: [Tensor; 3], values: MlpValues, gate: Option<(Tensor, Tensor)>) -> Self {
        Self { matrices, values, gate }
    }

    /// h ⊙ c `[t, i]`, where neurons have gates.
    #[must_use]
    pub(crate) fn hidden_ti(&self) -> Option<&Tensor> {
        self.values.hidden_ti()
    }

    /// How many channels of x W_g read, `[t]` f32, where that is not all of them.
    pub(crate) fn inputs_t(&self) -> Result<Option<Tensor>> {
        let count = |x_td: &Tensor| x_td.ne(0f64)?.to_dtype(DType::F32)?.sum(1);
        self.values.gate_x_td().map(count).transpose()
    }

    /// The pass as imaging sees it.
    #[must_use]
    pub fn image<'a>(&'a self, deltas: &'a Deltas) -> MlpBackward<'a> {
        self.values.seen(&self.matrices, deltas)
    }
}

impl SlicedMlp for Saved {
    type Deltas = Deltas;

    fn deltas(&self, dy: &Tensor) -> Result<Deltas> {
        self.values.deltas(&self.matrices, rows(dy)?)
    }

    fn seen<R>(&self, deltas: &Deltas, see: impl FnOnce(&MlpBackward<'_>) -> Result<R>) -> Result<R> {
        see(&self.image(deltas))
    }

    fn input_gradient(&self, deltas: &Deltas) -> Result<Tensor> {
        self.values.own_input_gradient(&self.matrices, deltas)
    }

    fn gate_gradient(&self, deltas: &Deltas) -> Result<Option<Tensor>> {
        self.gate.as_ref().map(|gate| gate_gradient(gate, deltas)).transpose()
    }

    fn weight_gradients(
        &self,
        weights: MlpWeights<'_>,
        deltas: &Deltas,
        learners: &Learners,
        grads: &mut Grads,
    ) -> Result<u64> {
        weight_gradients(weights, [0, 1, 2].map(|which| self.values.factors(which, deltas)), learners, grads)
    }
}

/// ∂L/∂w[t, n] = Σ over the neurons of n of δ_h ⊙ h, of w and the neurons' experts; sums of narrow values are f32.
pub(super) fn gate_gradient((gate_tn, owners): &(Tensor, Tensor), deltas: &Deltas) -> Result<Tensor> {
    let wide = if gate_tn.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let product_ti = MlpValues::gate_products(deltas)?.to_dtype(wide)?;
    gate_tn.to_dtype(wide)?.zeros_like()?.index_add(owners, &product_ti, 1)?.to_dtype(gate_tn.dtype())
}

/// The gradients of an MLP's three matrices, vᵀ a of their factors v `[t, i]` and a `[t, d]`, only the learners' rows; returns the multiply-adds.
pub(super) fn weight_gradients(
    weights: MlpWeights<'_>,
    factors: [(&Tensor, &Tensor); 3],
    learners: &Learners,
    grads: &mut Grads,
) -> Result<u64> {
    let mut done = 0;
    for (weight, (v_ti, a_td)) in [weights.gate, weights.up, weights.down].into_iter().zip(factors) {
        if !grads.learns(weight) {
            continue;
        }
        match learners {
            Learners::All => {
                grads.add_product(weight, v_ti, a_td)?;
                done += multiply_adds(v_ti, a_td)?;
            }
            Learners::Neurons(neurons) => {
                let v_tm = neurons.columns(v_ti)?;
                neurons.add_rows(&v_tm.t()?.matmul(a_td)?, weight, grads)?;
                done += multiply_adds(&v_tm, a_td)?;
            }
        }
    }
    Ok(done)
}

/// The whole gradient of one matrix of an MLP, in its shape (`which` 0, 1, 2: W_g, W_u, W_d).
pub(super) fn weight_gradient(which: usize, values: &MlpValues, deltas: &Deltas) -> Result<Tensor> {
    let (v_ti, a_td) = values.factors(which, deltas);
    v_ti.t()?.matmul(a_td)
}
