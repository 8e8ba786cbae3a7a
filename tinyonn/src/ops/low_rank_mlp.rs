//! The MLP of gated linear units whose matrices carry a low-rank difference (LoRA; Hu et al., 2021): W' = W + B A, with W frozen.
//!
//! Legend: t tokens, d hidden, i neurons, r rank. x, y `[.., d]`; W_g, W_u, W_d `[i, d]` as they lie in memory; B `[i, r]`, A `[r, d]`. The paper's α is r:
//! B A counts once.
//!
//! W' is formed anew in each pass, i r d multiply-adds for each matrix, which are few beside the t i d of the product. The whole gradient of W', vᵀ a
//! (v `[t, i]`, a `[t, d]`), is never formed: ∂L/∂B = vᵀ (a Aᵀ), ∂L/∂A = (v B)ᵀ a. With B = 0 the function is that of W.
//!
//! ```
//! use candle_core::{DType, Device, Tensor, Var};
//! use tinyonn::ops::low_rank_mlp::{LowRank, Saved, forward};
//! use tinyonn::ops::{Grads, MlpWeights, Silu, glu_mlp};
//!
//! let matrix = |rows, columns| Tensor::randn(0f32, 1f32, (rows, columns), &Device::Cpu);
//! let (x, gate, up, down) = (matrix(3, 4)?, matrix(6, 4)?, matrix(6, 4)?, matrix(6, 4)?);
//! let weights = MlpWeights { gate: &gate, up: &up, down: &down, activation: &Silu };
//! // New: A at random, B zero, so that nothing is different yet.
//! let (a, b) = (Var::from_tensor(&matrix(2, 4)?)?, Var::from_tensor(&Tensor::zeros((6, 2), DType::F32, &Device::Cpu)?)?);
//! let low_rank = [LowRank { a_rd: &a, b_ir: &b }; 3];
//! assert_eq!(low_rank[0].product()?.dims(), [6, 4]);
//! let (y, saved): (Tensor, Saved) = forward(&x, weights, low_rank)?;
//! assert!((&y - glu_mlp::forward(&x, weights, None)?.0)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5);
//!
//! let deltas = saved.deltas(&y.ones_like()?)?;
//! let mut grads = Grads::new([(b.as_tensor(), 0)])?;
//! saved.gradients(low_rank, &deltas, &mut grads)?;
//! assert!(grads.get(&b).is_some());
//! assert_eq!((saved.input_gradient(&deltas)?.dims(), saved.image(&deltas).h_ti.dims()), (x.dims(), &[3, 6][..]));
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{Result, Tensor};

use super::Grads;
use super::glu_mlp::MlpWeights;
use super::linear::rows;
use super::mlp_values::{Deltas, MlpBackward, MlpValues};

/// The difference of one matrix.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// A `[r, d]`.
    pub a_rd: &'a Tensor,
    /// B `[i, r]`.
    pub b_ir: &'a Tensor,
}

impl LowRank<'_> {
    /// B A `[i, d]`.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not go together.
    pub fn product(&self) -> Result<Tensor> {
        self.b_ir.detach().matmul(&self.a_rd.detach())
    }
}

/// What the backward needs.
#[derive(Debug)]
pub struct Saved {
    matrices: [Tensor; 3],
    values: MlpValues,
}

/// y, with the differences of W_g, W_u and W_d.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn forward(x: &Tensor, weights: MlpWeights<'_>, low_rank: [LowRank<'_>; 3]) -> Result<(Tensor, Saved)> {
    let [gate, up, down] = weights.matrices();
    let [of_gate, of_up, of_down] = low_rank;
    let matrices = [(gate + of_gate.product()?)?, (up + of_up.product()?)?, (down + of_down.product()?)?];
    let values = MlpValues::new(rows(x)?, &matrices, weights.activation, None)?;
    let y = values.output(&matrices)?.reshape(x.shape())?;
    Ok((y, Saved { matrices, values }))
}

impl Saved {
    /// δ_h, δ_g and δ_u from δ_y.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not go together.
    pub fn deltas(&self, dy: &Tensor) -> Result<Deltas> {
        self.values.deltas(&self.matrices, rows(dy)?)
    }

    /// The pass as imaging sees it.
    #[must_use]
    pub fn image<'a>(&'a self, deltas: &'a Deltas) -> MlpBackward<'a> {
        self.values.seen(&self.matrices, deltas)
    }

    /// ∂L/∂x `[t, d]`.
    ///
    /// # Errors
    /// What the device reports.
    pub fn input_gradient(&self, deltas: &Deltas) -> Result<Tensor> {
        MlpValues::input_gradient(&self.matrices, deltas)
    }

    /// ∂L/∂A and ∂L/∂B go to `grads`, where they learn.
    ///
    /// # Errors
    /// What the device reports.
    pub fn gradients(&self, low_rank: [LowRank<'_>; 3], deltas: &Deltas, grads: &mut Grads) -> Result<()> {
        for (which, LowRank { a_rd, b_ir }) in low_rank.into_iter().enumerate() {
            let (v_ti, a_td) = self.values.factors(which, deltas);
            if grads.learns(b_ir) {
                grads.add_product(b_ir, v_ti, &a_td.matmul(&a_rd.detach().t()?)?)?;
            }
            if grads.learns(a_rd) {
                grads.add_product(a_rd, &v_ti.matmul(&b_ir.detach())?, a_td)?;
            }
        }
        Ok(())
    }
}
