//! The gated MLP of [`glu_mlp`](super::glu_mlp) on a GPU, whose kernels find the gate of a neuron by its expert and sum the gates' gradients by expert: what
//! takes a gate of every expert to every neuron, `[t, i]`, is never written. All neurons are computed. Formulas and legend are those of `glu_mlp`.
//!
//! ```no_run
//! use candle_core::{Result, Tensor};
//! use tinyonn::ops::expert_neurons::NeuronLists;
//! use tinyonn::ops::gated_mlp::{Deltas, Saved, forward, takes};
//! use tinyonn::ops::{MlpGate, MlpWeights, SlicedMlp as _};
//!
//! /// ∂L/∂w of a layer's gates, given ∂L/∂y of ones; `None` where the kernels do not take it.
//! fn of_gates(x: &Tensor, weights: MlpWeights<'_>, gate: MlpGate<'_>, neurons: &NeuronLists) -> Result<Option<Tensor>> {
//!     if !takes(x, weights, gate.gate_tn)? {
//!         return Ok(None);
//!     }
//!     let (y, saved): (Tensor, Saved) = forward(x, weights, gate, neurons)?;
//!     let deltas: Deltas = saved.deltas(&y.ones_like()?)?;
//!     saved.gate_gradient(&deltas)
//! }
//! # Ok::<(), tinyonn::Error>(())
//! ```

use candle_core::{DType, Result, Tensor};

use super::activation::Activation as _;
use super::columns::columns;
use super::expert_neurons::NeuronLists;
use super::glu_mlp::{MlpGate, MlpWeights, SlicedMlp, weight_gradients};
use super::kernel::are_read;
use super::linear::{rows, sum_of_products};
use super::mlp_values::MlpBackward;
use super::{Grads, Learners, Silu, silu_kernel};

/// What the backward needs.
#[derive(Debug)]
pub struct Saved {
    matrices: [Tensor; 3],
    x_td: Tensor,
    g_ti: Tensor,
    u_ti: Tensor,
    /// h under its gates.
    hidden_ti: Tensor,
    gate_tn: Tensor,
    neuron_expert: Tensor,
    neurons: NeuronLists,
}

/// What the backward pass sends to the inner values.
#[derive(Debug)]
pub struct Deltas {
    y_td: Tensor,
    h_ti: Tensor,
    g_ti: Tensor,
    u_ti: Tensor,
    /// Of the gates themselves.
    gate_tn: Tensor,
}

/// Whether the kernels take this MLP: SwiGLU in f32 or bf16, gates in the type of x.
///
/// # Errors
/// What the driver reports.
pub fn takes(x: &Tensor, weights: MlpWeights<'_>, gate_tn: &Tensor) -> Result<bool> {
    let x_td = rows(x)?;
    let of = [&x_td, gate_tn, weights.gate, weights.up, weights.down];
    Ok(x_td.elem_count() > 0
        && are_read(&of)
        && weights.activation.is_silu()
        && silu_kernel::has_room(&x_td, weights.gate.dim(0)?)?)
}

/// y = W_d (h ⊙ c), of what [`takes`] has agreed to; `neurons` are those of the experts that the gate names.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn forward(
    x: &Tensor,
    weights: MlpWeights<'_>,
    gate: MlpGate<'_>,
    neurons: &NeuronLists,
) -> Result<(Tensor, Saved)> {
    let (x_td, matrices) = (rows(x)?, weights.matrices());
    let (gate_tn, neuron_expert) = (gate.gate_tn.detach(), gate.neuron_expert.detach());
    let ((t, experts), i) = (gate_tn.dims2()?, matrices[0].dim(0)?);
    let lists = neurons.order_i.dims() == [i] && neurons.starts.dims() == [experts + 1];
    if x_td.dim(0)? != t || neuron_expert.dims() != [i] || neuron_expert.dtype() != DType::U32 || !lists {
        candle_core::bail!(
            "gated_mlp: x {:?}, gates {:?} and {i} neurons do not go together",
            x.shape(),
            gate_tn.shape()
        );
    }
    let (g_ti, u_ti) = (x_td.matmul(&matrices[0].t()?)?, x_td.matmul(&matrices[1].t()?)?);
    let own = MlpGate { gate_tn: &gate_tn, neuron_expert: &neuron_expert };
    let hidden_ti = silu_kernel::gated_forward(&g_ti, &u_ti, own)?;
    let y = hidden_ti.matmul(&matrices[2])?.reshape(x.shape())?;
    let neurons = neurons.clone();
    Ok((y, Saved { matrices, x_td, g_ti, u_ti, hidden_ti, gate_tn, neuron_expert, neurons }))
}

impl SlicedMlp for Saved {
    type Deltas = Deltas;

    fn deltas(&self, dy: &Tensor) -> Result<Deltas> {
        let y_td = rows(dy)?;
        let h_ti = y_td.matmul(&self.matrices[2].t()?)?;
        let gate = MlpGate { gate_tn: &self.gate_tn, neuron_expert: &self.neuron_expert };
        let [g_ti, u_ti, gate_tn] = silu_kernel::gated_backward([&self.g_ti, &self.u_ti, &h_ti], gate, &self.neurons)?;
        Ok(Deltas { y_td, h_ti, g_ti, u_ti, gate_tn })
    }

    fn seen<R>(&self, deltas: &Deltas, see: impl FnOnce(&MlpBackward<'_>) -> Result<R>) -> Result<R> {
        see(&MlpBackward {
            x_td: &self.x_td,
            h_ti: &Silu.forward(&self.g_ti, &self.u_ti)?,
            gate_ti: Some(&columns(&self.gate_tn, &self.neuron_expert)?),
            delta_y_td: &deltas.y_td,
            delta_h_ti: &deltas.h_ti,
            delta_g_ti: &deltas.g_ti,
            delta_u_ti: &deltas.u_ti,
            input_matrices: Some([&self.matrices[0], &self.matrices[1]]),
            reads_a_part: false,
        })
    }

    fn input_gradient(&self, deltas: &Deltas) -> Result<Tensor> {
        sum_of_products([(&deltas.g_ti, &self.matrices[0]), (&deltas.u_ti, &self.matrices[1])])
    }

    fn gate_gradient(&self, deltas: &Deltas) -> Result<Option<Tensor>> {
        Ok(Some(deltas.gate_tn.clone()))
    }

    fn weight_gradients(
        &self,
        weights: MlpWeights<'_>,
        deltas: &Deltas,
        learners: &Learners,
        grads: &mut Grads,
    ) -> Result<u64> {
        let factors = [(&deltas.g_ti, &self.x_td), (&deltas.u_ti, &self.x_td), (&self.hidden_ti, &deltas.y_td)];
        weight_gradients(weights, factors, learners, grads)
    }
}
