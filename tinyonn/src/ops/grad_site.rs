//! Where surprise is measured: which gradient's norm S(t, unit) is (DESIGN §3).
//!
//! Legend: t tokens, d hidden, i neurons, n experts. With the rows w_g, w_u of a neuron in W_g, W_u:
//!
//! - `weight`: S² = ‖δ_y‖² h_i² + (δ_g² + δ_u²) ‖x‖², the token's part of the gradient of the neuron's weights; an expert's S² is
//!   the sum over its neurons.
//! - `input`: S = ‖δ_g w_g + δ_u w_u‖, the neuron's part of ∂L/∂x, from three dot products a neuron:
//!   S² = δ_g² ⟨w_g, w_g⟩ + 2 δ_g δ_u ⟨w_g, w_u⟩ + δ_u² ⟨w_u, w_u⟩. An expert's is the norm of the sum of its neurons' parts, which
//!   takes the products of ∂L/∂x once more.
//! - `output`: S = ‖δ_y‖, the same for every unit: the degenerate control.

use candle_core::{DType, Result, Tensor};
use serde::{Deserialize, Serialize};

use super::expert_neurons::ExpertNeurons;
use super::mlp_values::MlpBackward;

/// Which gradient's norm surprise is.
///
/// ```
/// use tinyonn::ops::GradSite;
/// assert_eq!([GradSite::Weight, GradSite::Input, GradSite::Output].map(GradSite::name), ["weight", "input", "output"]);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GradSite {
    /// The token's part of the gradient of the unit's weights.
    #[default]
    Weight,
    /// The unit's part of the gradient of the MLP's input.
    Input,
    /// The gradient of the MLP's output, of which all units have the same: the degenerate control.
    Output,
}

impl GradSite {
    /// Its name in configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Input => "input",
            Self::Output => "output",
        }
    }
}

/// In f32, or in f64 what is: a type that squares can be summed in.
pub(crate) fn wide(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 })
}

/// c h, in f32 or wider, `[t, i]`.
pub(super) fn gated(pass: &MlpBackward<'_>) -> Result<Tensor> {
    let h_ti = wide(pass.h_ti)?;
    pass.gate_ti.map_or(Ok(h_ti.clone()), |gate_ti| h_ti * wide(gate_ti)?)
}

/// ‖row‖² of each row, `[t, 1]`.
fn squares_t1(x_td: &Tensor) -> Result<Tensor> {
    wide(x_td)?.sqr()?.sum_keepdim(1)
}

/// W_g and W_u, in f32 or wider.
fn input_matrices(pass: &MlpBackward<'_>) -> Result<[Tensor; 2]> {
    let Some([gate_id, up_id]) = pass.input_matrices else {
        candle_core::bail!(
            "grad_site = input needs the matrices that all tokens share, and this pass has none; use grad_site = weight"
        )
    };
    Ok([wide(gate_id)?, wide(up_id)?])
}

/// ⟨w_g, w_g⟩, ⟨w_g, w_u⟩ and ⟨w_u, w_u⟩ of every neuron, `[1, i]`.
pub(super) fn input_dots(pass: &MlpBackward<'_>) -> Result<[Tensor; 3]> {
    let [gate_id, up_id] = &input_matrices(pass)?;
    let dot = |a_id: &Tensor, b_id: &Tensor| (a_id * b_id)?.sum(1)?.unsqueeze(0);
    Ok([dot(gate_id, gate_id)?, dot(gate_id, up_id)?, dot(up_id, up_id)?])
}

impl GradSite {
    /// S² of every token and neuron, `[t, i]`: the definition, in plain operations.
    pub(super) fn neuron_squares(self, pass: &MlpBackward<'_>) -> Result<Tensor> {
        let [g_ti, u_ti] = [wide(pass.delta_g_ti)?, wide(pass.delta_u_ti)?];
        match self {
            Self::Weight => {
                let input_ti = (g_ti.sqr()? + u_ti.sqr()?)?.broadcast_mul(&squares_t1(pass.x_td)?)?;
                gated(pass)?.sqr()?.broadcast_mul(&squares_t1(pass.delta_y_td)?)? + input_ti
            }
            Self::Input => {
                let [gg, gu, uu] = input_dots(pass)?;
                let own_ti = (g_ti.sqr()?.broadcast_mul(&gg)? + u_ti.sqr()?.broadcast_mul(&uu)?)?;
                // Where the two cancel, rounding may leave less than nothing.
                ((g_ti * u_ti)?.broadcast_mul(&(gu * 2.0)?)? + own_ti)?.relu()
            }
            Self::Output => squares_t1(pass.delta_y_td)?.broadcast_as(g_ti.shape())?.contiguous(),
        }
    }

    /// S² of every token and expert, `[t, n]`, given that of its neurons.
    pub(super) fn expert_squares(
        self,
        pass: &MlpBackward<'_>,
        neuron_squares_ti: &Tensor,
        experts: &ExpertNeurons,
    ) -> Result<Tensor> {
        match self {
            Self::Weight => experts.sums(neuron_squares_ti),
            Self::Input => Self::input_parts(pass, experts),
            Self::Output => {
                let y_t1 = squares_t1(pass.delta_y_td)?;
                y_t1.broadcast_as((y_t1.dim(0)?, experts.count()))?.contiguous()
            }
        }
    }

    /// ‖Σ over the expert's neurons of δ_g w_g + δ_u w_u‖² by token and expert, `[t, n]`.
    pub(super) fn input_parts(pass: &MlpBackward<'_>, experts: &ExpertNeurons) -> Result<Tensor> {
        let [gate_id, up_id] = input_matrices(pass)?;
        let [g_ti, u_ti] = [wide(pass.delta_g_ti)?, wide(pass.delta_u_ti)?];
        let of_expert = |n: usize| {
            if experts.neurons(n).is_empty() {
                return Tensor::zeros((g_ti.dim(0)?, 1), g_ti.dtype(), g_ti.device());
            }
            let index = Tensor::new(experts.neurons(n), g_ti.device())?;
            let product = |delta_ti: &Tensor, matrix_id: &Tensor| {
                delta_ti.index_select(&index, 1)?.matmul(&matrix_id.index_select(&index, 0)?)
            };
            (product(&g_ti, &gate_id)? + product(&u_ti, &up_id)?)?.sqr()?.sum_keepdim(1)
        };
        Tensor::cat(&(0..experts.count()).map(of_expert).collect::<Result<Vec<_>>>()?, 1)
    }
}
