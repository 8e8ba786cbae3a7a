//! The gated MLP of [`glu_mlp`](super::glu_mlp()), computed only where gates are not zero: each token goes to its own experts.
//!
//! y_t = Σ_n w[t, n] Expert_n(x_t) over the n with w[t, n] ≠ 0. Legend and formulas are those of [`glu_mlp`](mod@super::glu_mlp);
//! h, δ_h, δ_g, δ_u exist for the neurons of chosen experts alone. Values and gradients equal `glu_mlp`'s but for the order of
//! sums (about 1e-6 of their norm in f32), except one: a gate of zero has a gradient there, and none here (it is 0), as
//! what the expert would have said is not known.
//!
//! The cost follows the chosen share; at 10 of 100 experts it is well below that of the dense products.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::activation::Activation;
use super::block_sparse::BlockSparse;
use super::glu_mlp::{MlpBackward, MlpGate, MlpProbe, MlpWeights, WeightGrads};
use super::lanes;
use super::linear::rows;
use super::tape::{self, Backward};

/// y = W_d (h ⊙ c) without the neurons whose c is zero. Differentiable in x, the chosen gates and the three matrices;
/// `probe` watches `(observer, layer)` and sees zeros for what was not computed.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together; a neuron of an expert that has no gate.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::{self, MlpGate, MlpWeights, Silu};
///
/// let matrix = |rows, columns| Tensor::randn(0f32, 1f32, (rows, columns), &Device::Cpu);
/// let (x, gate, up, down) = (matrix(3, 4)?, matrix(6, 4)?, matrix(6, 4)?, matrix(4, 6)?);
/// let weights = MlpWeights { gate: &gate, up: &up, down: &down, activation: &Silu };
/// let gate_tn = Tensor::new(&[[1f32, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 0.0]], &Device::Cpu)?;
/// let neuron_expert = Tensor::new(&[0u32, 1, 2, 0, 1, 2], &Device::Cpu)?;
/// let gate = MlpGate { gate_tn: &gate_tn, neuron_expert: &neuron_expert };
/// let (few, all) = (ops::dispatch_mlp(&x, weights, gate, None)?, ops::glu_mlp(&x, weights, Some(gate), None)?);
/// assert!((few - all)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn dispatch_mlp(
    x: &Tensor,
    weights: MlpWeights<'_>,
    gate: MlpGate<'_>,
    probe: Option<(Arc<dyn MlpProbe>, usize)>,
) -> Result<Tensor> {
    let x_td = rows(&x.detach())?;
    let matrices = [weights.gate, weights.up, weights.down].map(|m| m.detach().contiguous());
    let [gate_id, up_id, down_di] = matrices;
    let (gate_id, up_id, down_di) = (gate_id?, up_id?, down_di?);
    check(&x_td, [&gate_id, &up_id, &down_di], gate.neuron_expert)?;
    let fused = lanes::fused(&[&x_td, &gate_id, &up_id, &down_di]);
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
        let y_td = pattern.product([(&gated, &pattern.by_neuron(&down_di)?)])?;
        (Some(Computed { g, u, h, gate: open, gated }), y_td)
    };
    let y = y_td.reshape(x.shape())?;
    let gate_tn = gate.gate_tn.detach().contiguous()?;
    let neuron_expert = gate.neuron_expert.detach();
    let derivative =
        DispatchMlp { activation, x_td, gate_id, up_id, down_di, gate_tn, neuron_expert, pattern, computed, probe };
    tape::record(&[x, weights.gate, weights.up, weights.down, gate.gate_tn], y, derivative)
}

/// The loops over rows trust these shapes.
fn check(x_td: &Tensor, [gate_id, up_id, down_di]: [&Tensor; 3], neuron_expert: &Tensor) -> Result<()> {
    let (d, i) = (x_td.dim(1)?, neuron_expert.dims1()?);
    if gate_id.dims() != [i, d] || up_id.dims() != [i, d] || down_di.dims() != [d, i] {
        candle_core::bail!(
            "dispatch_mlp: x of {d} channels, matrices {:?}, {:?}, {:?} and experts of {i} neurons do not go together",
            gate_id.shape(),
            up_id.shape(),
            down_di.shape()
        );
    }
    Ok(())
}

/// Values at the pattern's places `[l]`; there are none if no gate was open.
struct Computed {
    g: Tensor,
    u: Tensor,
    h: Tensor,
    gate: Tensor,
    gated: Tensor,
}

struct DispatchMlp {
    activation: &'static dyn Activation,
    x_td: Tensor,
    gate_id: Tensor,
    up_id: Tensor,
    down_di: Tensor,
    gate_tn: Tensor,
    neuron_expert: Tensor,
    pattern: BlockSparse,
    computed: Option<Computed>,
    probe: Option<(Arc<dyn MlpProbe>, usize)>,
}

/// Gradients at the pattern's places `[l]`.
struct Deltas {
    h: Tensor,
    g: Tensor,
    u: Tensor,
}

impl Backward for DispatchMlp {
    fn name(&self) -> &'static str {
        "dispatch_mlp"
    }

    fn observed(&self) -> bool {
        self.probe.is_some()
    }

    fn backward(&self, output: &Tensor, grad: &Tensor, needs: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let delta_y_td = rows(grad)?;
        let Some(computed) = &self.computed else { return self.nothing_computed(output, &delta_y_td, needs) };
        let pattern = &self.pattern;
        let h = pattern.sampled_product(&delta_y_td, &pattern.by_neuron(&self.down_di)?)?;
        let (g, u) = self.activation.backward(&computed.g, &computed.u, &(&h * &computed.gate)?)?;
        let deltas = Deltas { h, g, u };
        let learners = self.observe(computed, &deltas, &delta_y_td)?;
        let need = |i: usize| needs.get(i).copied().unwrap_or(false);
        let dx = || pattern.product([(&deltas.g, &self.gate_id), (&deltas.u, &self.up_id)])?.reshape(output.shape());
        let rows = |delta_l: &Tensor| pattern.transposed_product(delta_l, &self.x_td, &learners);
        let columns = || pattern.transposed_product(&computed.gated, &delta_y_td, &learners)?.t()?.contiguous();
        let gates = || pattern.pair_sums(&(&deltas.h * &computed.h)?)?.to_dtype(self.gate_tn.dtype());
        Ok(vec![
            need(0).then(dx).transpose()?,
            need(1).then(|| rows(&deltas.g)).transpose()?,
            need(2).then(|| rows(&deltas.u)).transpose()?,
            need(3).then(columns).transpose()?,
            need(4).then(gates).transpose()?,
        ])
    }
}

impl DispatchMlp {
    /// Shows the pass to the probe, at full width.
    fn observe(&self, computed: &Computed, deltas: &Deltas, delta_y_td: &Tensor) -> Result<WeightGrads> {
        if self.probe.is_none() {
            return Ok(WeightGrads::All);
        }
        let [h, delta_h, delta_g, delta_u] =
            [&computed.h, &deltas.h, &deltas.g, &deltas.u].map(|v_l| self.pattern.dense(v_l));
        self.show([&h?, &delta_h?, &delta_g?, &delta_u?], delta_y_td)
    }

    fn show(
        &self,
        [h_ti, delta_h_ti, delta_g_ti, delta_u_ti]: [&Tensor; 4],
        delta_y_td: &Tensor,
    ) -> Result<WeightGrads> {
        let Some((probe, layer)) = &self.probe else { return Ok(WeightGrads::All) };
        let gate_ti = self.gate_tn.to_dtype(h_ti.dtype())?.index_select(&self.neuron_expert, 1)?;
        let pass = MlpBackward {
            x_td: &self.x_td,
            h_ti,
            gate_ti: Some(&gate_ti),
            delta_y_td,
            delta_h_ti,
            delta_g_ti,
            delta_u_ti,
            input_matrices: Some([&self.gate_id, &self.up_id]),
        };
        probe.observe(*layer, &pass)
    }

    /// Every gate is zero: so is every gradient.
    fn nothing_computed(&self, output: &Tensor, delta_y_td: &Tensor, needs: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let zeros_ti = Tensor::zeros((self.x_td.dim(0)?, self.gate_id.dim(0)?), self.x_td.dtype(), self.x_td.device())?;
        self.show([&zeros_ti; 4], delta_y_td)?;
        [output, &self.gate_id, &self.up_id, &self.down_di, &self.gate_tn]
            .into_iter()
            .zip(needs)
            .map(|(like, need)| need.then(|| like.zeros_like()).transpose())
            .collect()
    }
}
