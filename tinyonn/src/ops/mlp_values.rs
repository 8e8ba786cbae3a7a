//! One MLP over some rows: its values, kept for its derivative. What every way of combining experts is made of.
//!
//! The matrices are given anew to each step: who merges them need not keep what they can make again.

use candle_core::{Result, Tensor};

use super::activation::Activation;
use super::elementwise;
use super::linear::sum_of_products;

/// The values of y = W_d (h ⊙ c), h = h(W_g x, W_u x).
#[derive(Debug)]
pub(super) struct MlpValues {
    activation: &'static dyn Activation,
    pub(super) x_td: Tensor,
    /// What W_g reads of x, where that is not all: zeros for the rest.
    gate_x_td: Option<Tensor>,
    g_ti: Tensor,
    u_ti: Tensor,
    /// h; none where the backward makes it again.
    h_ti: Option<Tensor>,
    /// c, `[t, i]` or `[1, i]`; `None` is all ones, with which nothing is multiplied.
    pub(super) gate_ti: Option<Tensor>,
    gated_ti: Option<Tensor>,
}

/// What one backward pass sends to an MLP's inner values.
///
/// ```
/// use candle_core::{Result, Tensor};
/// use tinyonn::ops::{SlicedMlp, glu_mlp};
///
/// type Deltas = <glu_mlp::Saved as SlicedMlp>::Deltas;
///
/// fn gradients(saved: &glu_mlp::Saved, deltas: &Deltas) -> Result<Tensor> {
///     saved.input_gradient(deltas)
/// }
/// ```
#[derive(Debug)]
pub struct Deltas {
    /// δ_y, `[t, d]`.
    pub(super) y_td: Tensor,
    /// δ_h, of the gated h, `[t, i]`.
    pub(super) h_ti: Tensor,
    /// δ_g, `[t, i]`.
    pub(super) g_ti: Tensor,
    /// δ_u, `[t, i]`.
    pub(super) u_ti: Tensor,
    /// h before its gate, `[t, i]`, kept or made again.
    pub(super) hidden_ti: Tensor,
}

/// What the backward knows before it forms weight gradients.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::min_k::surprise_squares;
/// use tinyonn::ops::neuron_moments::{Imaging, activation_and_surprise, image_moments};
/// use tinyonn::ops::removal::{squared_removal, squared_sensitivity};
/// use tinyonn::ops::{ExpertNeurons, GradSite, KeptSet, MlpBackward, MlpWeights, Removal, Silu, SlicedMlp as _, glu_mlp};
///
/// let matrix = |rows, columns| Tensor::randn(0f32, 1f32, (rows, columns), &Device::Cpu);
/// let (x, gate, up, down) = (matrix(3, 4)?, matrix(6, 4)?, matrix(6, 4)?, matrix(6, 4)?);
/// let weights = MlpWeights { gate: &gate, up: &up, down: &down, activation: &Silu };
/// let (y, saved) = glu_mlp::forward(&x, weights, None)?;
/// let deltas = saved.deltas(&y.ones_like()?)?;
/// saved.seen(&deltas, |pass: &MlpBackward<'_>| {
///     let [activation, surprise] = activation_and_surprise(pass)?;
///     assert_eq!((activation.dims(), surprise.dims()), (&[3, 6][..], &[3, 6][..]));
///     // The second of the three tokens is padding.
///     let counted_t = Tensor::new(&[1u8, 0, 1], &Device::Cpu)?;
///     let experts = ExpertNeurons::new(&[0, 0, 0, 1, 1, 1], 2)?;
///     let sums = image_moments(pass, &counted_t, &Imaging { site: GradSite::Weight, experts: Some(&experts), scale: None })?;
///     assert_eq!((sums.neurons.dims(), sums.experts.map(|sums| sums.dims().to_vec())), (&[7, 6][..], Some(vec![4, 2])));
///     let squares = surprise_squares(pass, Some(&counted_t))?;
///     assert_eq!((squares.dims(), squared_sensitivity(pass, &counted_t)?.dims()), (&[6][..], &[6][..]));
///
///     // What it costs to keep all neurons, and the first three alone.
///     let ones = Tensor::ones(6, candle_core::DType::F32, &Device::Cpu)?;
///     let order_i = Tensor::arange(0u32, 6, &Device::Cpu)?;
///     let sets = [6, 3].map(|candidates| KeptSet { candidates, least_input: 0.0, least_score: 0.0, least_hidden: 0.0 }).to_vec();
///     let column_norm_d = Tensor::ones(4, candle_core::DType::F32, &Device::Cpu)?;
///     let asked = Removal { order_i, mean_up_i: ones.clone(), worth_i: ones, column_norm_d, activation: &Silu, sets };
///     let damage = squared_removal(pass, &counted_t, &asked)?.to_vec1::<f64>()?;
///     assert!(damage[0] < 1e-9 && damage[1] > 0.0);
///     Ok(())
/// })?;
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
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
    /// Whether W_g read a part of x alone: what is formed here of W_g and x is not its gradient then.
    pub reads_a_part: bool,
}

impl MlpBackward<'_> {
    /// Refuses a pass in which W_g read a part of x.
    ///
    /// # Errors
    /// It did.
    pub(crate) fn check_whole(&self) -> Result<()> {
        if self.reads_a_part {
            candle_core::bail!(
                "gates that read a part of x cannot be imaged; make the model with `inputs = 1`, or pass it all active"
            )
        }
        Ok(())
    }
}

impl MlpValues {
    /// Of x `[t, d]` under W_g `[i, d]`, W_u and W_d, `[i, d]` each.
    pub(super) fn new(
        x_td: Tensor,
        matrices: &[Tensor; 3],
        activation: &'static dyn Activation,
        gate_ti: Option<Tensor>,
    ) -> Result<Self> {
        let g_ti = x_td.matmul(&matrices[0].t()?)?;
        let u_ti = x_td.matmul(&matrices[1].t()?)?;
        let h_ti = activation.forward(&g_ti, &u_ti)?;
        let gated_ti = gate_ti.as_ref().map(|gate_ti| gated(&h_ti, gate_ti)).transpose()?;
        Ok(Self { activation, x_td, gate_x_td: None, g_ti, u_ti, h_ti: Some(h_ti), gate_ti, gated_ti })
    }

    /// Of g, u and h that are known, h zero where c is.
    pub(super) fn of(
        activation: &'static dyn Activation,
        x_td: Tensor,
        [g_ti, u_ti, h_ti]: [Tensor; 3],
        gate_ti: Tensor,
    ) -> Result<Self> {
        let gated_ti = Some(gated(&h_ti, &gate_ti)?);
        Ok(Self { activation, x_td, gate_x_td: None, g_ti, u_ti, h_ti: Some(h_ti), gate_ti: Some(gate_ti), gated_ti })
    }

    /// With g = W_g of less than x.
    pub(super) fn reading(self, gate_x_td: Option<Tensor>) -> Self {
        Self { gate_x_td, ..self }
    }

    /// What W_g reads of x, where that is not all.
    pub(super) fn gate_x_td(&self) -> Option<&Tensor> {
        self.gate_x_td.as_ref()
    }

    /// h ⊙ c, unless it was let go.
    pub(super) fn hidden_ti(&self) -> Option<&Tensor> {
        self.gated_ti.as_ref().or(self.h_ti.as_ref())
    }

    /// y `[t, d]`.
    pub(super) fn output(&self, matrices: &[Tensor; 3]) -> Result<Tensor> {
        match self.hidden_ti() {
            Some(hidden_ti) => hidden_ti.matmul(&matrices[2]),
            None => self.activation.forward(&self.g_ti, &self.u_ti)?.matmul(&matrices[2]),
        }
    }

    /// Lets h go, where a GPU's backward makes it again beside what it computes anyway: a third of what an MLP keeps beside x, for a fifth more bytes
    /// of that kernel.
    pub(super) fn without_hidden(mut self) -> Self {
        if self.gated_ti.is_none() && self.x_td.device().is_cuda() {
            self.h_ti = None;
        }
        self
    }

    /// δ_h = W_dᵀ δ_y and, through the gate and the activation, δ_g and δ_u.
    pub(super) fn deltas(&self, matrices: &[Tensor; 3], y_td: Tensor) -> Result<Deltas> {
        let h_ti = y_td.matmul(&matrices[2].t()?)?;
        let gated_ti = self.gate_ti.as_ref().map(|gate_ti| gated(&h_ti, gate_ti)).transpose()?;
        let own_ti = gated_ti.as_ref().unwrap_or(&h_ti);
        let [g_ti, u_ti, hidden_ti] = match &self.h_ti {
            Some(hidden_ti) => {
                let (g_ti, u_ti) = self.activation.backward(&self.g_ti, &self.u_ti, own_ti)?;
                [g_ti, u_ti, hidden_ti.clone()]
            }
            None => self.activation.backward_again(&self.g_ti, &self.u_ti, own_ti)?,
        };
        Ok(Deltas { y_td, h_ti, g_ti, u_ti, hidden_ti })
    }

    /// The pass as imaging sees it.
    pub(super) fn seen<'a>(&'a self, matrices: &'a [Tensor; 3], deltas: &'a Deltas) -> MlpBackward<'a> {
        MlpBackward {
            x_td: &self.x_td,
            h_ti: &deltas.hidden_ti,
            gate_ti: self.gate_ti.as_ref(),
            delta_y_td: &deltas.y_td,
            delta_h_ti: &deltas.h_ti,
            delta_g_ti: &deltas.g_ti,
            delta_u_ti: &deltas.u_ti,
            input_matrices: Some([&matrices[0], &matrices[1]]),
            reads_a_part: self.gate_x_td.is_some(),
        }
    }

    /// ∂L/∂x = δ_g W_g + δ_u W_u `[t, d]`.
    pub(super) fn input_gradient(matrices: &[Tensor; 3], deltas: &Deltas) -> Result<Tensor> {
        sum_of_products([(&deltas.g_ti, &matrices[0]), (&deltas.u_ti, &matrices[1])])
    }

    /// The same, where W_g may have read less than x: what it did not read has no part in it.
    pub(super) fn own_input_gradient(&self, matrices: &[Tensor; 3], deltas: &Deltas) -> Result<Tensor> {
        let Some(gate_x_td) = &self.gate_x_td else { return Self::input_gradient(matrices, deltas) };
        let through_gate = deltas.g_ti.matmul(&matrices[0])?;
        let read = gate_x_td.ne(0f64)?.to_dtype(through_gate.dtype())?;
        (through_gate * read)? + deltas.u_ti.matmul(&matrices[1])?
    }

    /// δ_h ⊙ h, whose sums over an expert's neurons are the gates' gradients, `[t, i]`.
    pub(super) fn gate_products(deltas: &Deltas) -> Result<Tensor> {
        elementwise::multiply(&deltas.h_ti, &deltas.hidden_ti)
    }

    /// The two factors of ∂L/∂W_g, ∂L/∂W_u or ∂L/∂W_d (`which` 0, 1, 2): v `[t, i]` and a `[t, d]`, the gradient being vᵀ a, a row a
    /// neuron.
    pub(super) fn factors<'a>(&'a self, which: usize, deltas: &'a Deltas) -> (&'a Tensor, &'a Tensor) {
        match which {
            0 => (&deltas.g_ti, self.gate_x_td.as_ref().unwrap_or(&self.x_td)),
            1 => (&deltas.u_ti, &self.x_td),
            _ => (self.gated_ti.as_ref().unwrap_or(&deltas.hidden_ti), &deltas.y_td),
        }
    }
}

/// Multiply-adds of vᵀ a, for v `[t, m]` and a `[t, d]`.
pub(super) fn multiply_adds(v_tm: &Tensor, a_td: &Tensor) -> Result<u64> {
    Ok((v_tm.elem_count() * a_td.dim(1)?) as u64)
}

/// h ⊙ c for c `[t, i]` or `[1, i]`.
fn gated(h_ti: &Tensor, gate_ti: &Tensor) -> Result<Tensor> {
    if h_ti.dims() == gate_ti.dims() { elementwise::multiply(h_ti, gate_ti) } else { h_ti.broadcast_mul(gate_ti) }
}
