//! The gated MLP of [`glu_mlp`](super::glu_mlp), computed only where gates are not zero: each token goes to its own experts.
//!
//! y_t = Σ_n w[t, n] Expert_n(x_t) over the n with w[t, n] ≠ 0. Legend and formulas are those of [`glu_mlp`](super::glu_mlp);
//! h, δ_h, δ_g, δ_u exist for the neurons of chosen experts alone. Values and gradients equal `glu_mlp`'s but for the order of
//! sums (about 1e-6 of their norm in f32), except one: a gate of zero has a gradient there, and none here (it is 0), as
//! what the expert would have said is not known.
//!
//! The cost follows the chosen share; at 10 of 100 experts it is well below that of the dense products.
//! A form for main memory: which pairs are chosen is read from the gates, which on a GPU would wait for it.

use candle_core::{Result, Tensor};

use super::activation::Activation;
use super::block_sparse::BlockSparse;
use super::columns::columns;
use super::glu_mlp::{MlpGate, MlpWeights, SlicedMlp};
use super::linear::rows;
use super::mlp_values::MlpBackward;
use super::{Grads, Learners, lanes};

/// What the backward needs.
///
/// ```
/// use candle_core::Tensor;
/// use tinyonn::ops::dispatch_mlp::{Deltas, Saved};
/// use tinyonn::ops::{SlicedMlp as _};
///
/// fn gate_gradient(saved: &Saved, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
///     let deltas: Deltas = saved.deltas(dy)?;
///     saved.gate_gradient(&deltas)
/// }
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug)]
pub struct Saved {
    activation: &'static dyn Activation,
    x_td: Tensor,
    gate_id: Tensor,
    up_id: Tensor,
    down_id: Tensor,
    gate_tn: Tensor,
    neuron_expert: Tensor,
    pattern: BlockSparse,
    computed: Option<Computed>,
}

/// Values at the pattern's places `[l]`; there are none if no gate was open.
#[derive(Debug)]
struct Computed {
    g: Tensor,
    u: Tensor,
    h: Tensor,
    gate: Tensor,
    gated: Tensor,
}

/// What the backward pass sends to the inner values.
#[derive(Debug)]
pub struct Deltas {
    y_td: Tensor,
    /// δ_h, δ_g, δ_u at the pattern's places `[l]`.
    inner: Option<[Tensor; 3]>,
}

/// y = W_d (h ⊙ c) without the neurons whose c is zero.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together; a neuron of an expert that has no gate.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::{MlpGate, MlpWeights, Silu, dispatch_mlp, glu_mlp};
///
/// let matrix = |rows, columns| Tensor::randn(0f32, 1f32, (rows, columns), &Device::Cpu);
/// let (x, gate, up, down) = (matrix(3, 4)?, matrix(6, 4)?, matrix(6, 4)?, matrix(6, 4)?);
/// let weights = MlpWeights { gate: &gate, up: &up, down: &down, activation: &Silu };
/// let gate_tn = Tensor::new(&[[1f32, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 0.0]], &Device::Cpu)?;
/// let neuron_expert = Tensor::new(&[0u32, 1, 2, 0, 1, 2], &Device::Cpu)?;
/// let gate = MlpGate { gate_tn: &gate_tn, neuron_expert: &neuron_expert };
/// let (few, all) = (dispatch_mlp::forward(&x, weights, gate)?.0, glu_mlp::forward(&x, weights, Some(gate))?.0);
/// assert!((few - all)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn forward(x: &Tensor, weights: MlpWeights<'_>, gate: MlpGate<'_>) -> Result<(Tensor, Saved)> {
    let x_td = rows(x)?;
    let [gate_id, up_id, down_id] = weights.matrices().map(|matrix| matrix.contiguous());
    let (gate_id, up_id, down_id) = (gate_id?, up_id?, down_id?);
    check(&x_td, [&gate_id, &up_id, &down_id], gate.neuron_expert)?;
    let fused = lanes::fused(&[&x_td, &gate_id, &up_id, &down_id]);
    let pattern = BlockSparse::new(gate, x_td.dim(0)?, fused)?;
    let activation = weights.activation;
    let (computed, y_td) = if pattern.is_empty() {
        (None, x_td.zeros_like()?)
    } else {
        let g = pattern.sampled_product(&x_td, &gate_id)?;
        let u = pattern.sampled_product(&x_td, &up_id)?;
        let h = activation.forward(&g, &u)?;
        let open = pattern.gates(&gate.gate_tn.detach(), h.dtype())?;
        let gated = (&h * &open)?;
        let y_td = pattern.product([(&gated, &down_id)])?;
        (Some(Computed { g, u, h, gate: open, gated }), y_td)
    };
    let (gate_tn, neuron_expert) = (gate.gate_tn.detach().contiguous()?, gate.neuron_expert.detach());
    let saved = Saved { activation, x_td, gate_id, up_id, down_id, gate_tn, neuron_expert, pattern, computed };
    Ok((y_td.reshape(x.shape())?, saved))
}

/// The loops over rows trust these shapes.
fn check(x_td: &Tensor, [gate_id, up_id, down_id]: [&Tensor; 3], neuron_expert: &Tensor) -> Result<()> {
    let (d, i) = (x_td.dim(1)?, neuron_expert.dims1()?);
    if gate_id.dims() != [i, d] || up_id.dims() != [i, d] || down_id.dims() != [i, d] {
        candle_core::bail!(
            "dispatch_mlp: x of {d} channels, matrices {:?}, {:?}, {:?} and experts of {i} neurons do not go together",
            gate_id.shape(),
            up_id.shape(),
            down_id.shape()
        );
    }
    Ok(())
}

impl SlicedMlp for Saved {
    type Deltas = Deltas;

    fn deltas(&self, dy: &Tensor) -> Result<Deltas> {
        let y_td = rows(dy)?;
        let Some(computed) = &self.computed else { return Ok(Deltas { y_td, inner: None }) };
        let h = self.pattern.sampled_product(&y_td, &self.down_id)?;
        let (g, u) = self.activation.backward(&computed.g, &computed.u, &(&h * &computed.gate)?)?;
        Ok(Deltas { y_td, inner: Some([h, g, u]) })
    }

    fn input_gradient(&self, deltas: &Deltas) -> Result<Tensor> {
        match &deltas.inner {
            Some([_, g, u]) => self.pattern.product([(g, &self.gate_id), (u, &self.up_id)]),
            None => self.x_td.zeros_like(),
        }
    }

    fn gate_gradient(&self, deltas: &Deltas) -> Result<Option<Tensor>> {
        match (&deltas.inner, &self.computed) {
            (Some([h, ..]), Some(computed)) => {
                self.pattern.pair_sums(&(h * &computed.h)?)?.to_dtype(self.gate_tn.dtype()).map(Some)
            }
            _ => self.gate_tn.zeros_like().map(Some),
        }
    }

    fn weight_gradients(
        &self,
        weights: MlpWeights<'_>,
        deltas: &Deltas,
        learners: &Learners,
        grads: &mut Grads,
    ) -> Result<u64> {
        let (Some([_, g, u]), Some(computed)) = (&deltas.inner, &self.computed) else {
            let zeros = |weight: &Tensor, grads: &mut Grads| grads.add_with(weight, || weight.detach().zeros_like());
            [weights.gate, weights.up, weights.down].into_iter().try_for_each(|weight| zeros(weight, grads))?;
            return Ok(0);
        };
        let mut all = 0;
        let mut product = |v_l: &Tensor, a_td: &Tensor| -> Result<Tensor> {
            let (gradient, done) = self.pattern.transposed_product(v_l, a_td, learners)?;
            all += done;
            Ok(gradient)
        };
        grads.add_with(weights.gate, || product(g, &self.x_td))?;
        grads.add_with(weights.up, || product(u, &self.x_td))?;
        grads.add_with(weights.down, || product(&computed.gated, &deltas.y_td))?;
        Ok(all)
    }

    fn seen<R>(&self, deltas: &Deltas, see: impl FnOnce(&MlpBackward<'_>) -> Result<R>) -> Result<R> {
        let [h_ti, delta_h_ti, delta_g_ti, delta_u_ti] = match (&deltas.inner, &self.computed) {
            (Some([h, g, u]), Some(computed)) => [&computed.h, h, g, u].map(|v_l| self.pattern.dense(v_l)),
            _ => [(); 4].map(|()| {
                let shape = (self.x_td.dim(0)?, self.gate_id.dim(0)?);
                Tensor::zeros(shape, self.x_td.dtype(), self.x_td.device())
            }),
        };
        let h_ti = h_ti?;
        let gate_ti = columns(&self.gate_tn.to_dtype(h_ti.dtype())?, &self.neuron_expert)?;
        see(&MlpBackward {
            x_td: &self.x_td,
            h_ti: &h_ti,
            gate_ti: Some(&gate_ti),
            delta_y_td: &deltas.y_td,
            delta_h_ti: &delta_h_ti?,
            delta_g_ti: &delta_g_ti?,
            delta_u_ti: &delta_u_ti?,
            input_matrices: Some([&self.gate_id, &self.up_id]),
            reads_a_part: false,
        })
    }
}
