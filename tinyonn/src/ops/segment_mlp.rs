//! The gated MLP of [`glu_mlp`](super::glu_mlp) on a GPU where runs of tokens share their gates, and some have none: these take the dense MLP, and the
//! others, each with its decision's gates, only their experts ([`grouped_mlp`](super::grouped_mlp)).
//!
//! Legend as there. *Open* tokens are those of runs without a decision. Which they are is known to the host: runs follow from the declaration, and nothing is
//! read from the device.
//!
//! ```no_run
//! use candle_core::{Result, Tensor};
//! use tinyonn::ops::grouped_mlp::{Choice, takes};
//! use tinyonn::ops::segment_mlp::{Deltas, Saved, forward, pays};
//! use tinyonn::ops::{MlpGate, MlpWeights, RowRun, SlicedMlp as _};
//!
//! /// ∂L/∂x, given ∂L/∂y of ones; `None` where another form is quicker.
//! fn of_input(x: &Tensor, weights: MlpWeights<'_>, gate: MlpGate<'_>, choice: Choice<'_>, runs: &[RowRun]) -> Result<Option<Tensor>> {
//!     if !pays(runs, choice)? || !takes(x, weights)? {
//!         return Ok(None);
//!     }
//!     let (y, saved): (Tensor, Saved) = forward(x, weights, gate, choice, runs)?;
//!     let deltas: Deltas = saved.deltas(&y.ones_like()?)?;
//!     saved.input_gradient(&deltas).map(Some)
//! }
//! # Ok::<(), tinyonn::Error>(())
//! ```

use candle_core::{Device, Result, Tensor};

use super::gather_kernel::rows_of;
use super::glu_mlp::{self, MlpGate, MlpWeights, SlicedMlp};
use super::grouped_mlp::{self, Choice};
use super::linear::rows;
use super::mlp_values::{self, MlpBackward};
use super::runs::RowRun;
use super::{Grads, Learners};

/// What the backward needs.
#[derive(Debug)]
pub struct Saved {
    kinds: Kinds,
    open: glu_mlp::Saved,
    decided: grouped_mlp::Saved,
}

/// What the backward pass sends to the inner values of either form.
#[derive(Debug)]
pub struct Deltas {
    open: mlp_values::Deltas,
    decided: grouped_mlp::Deltas,
}

/// Tokens of either kind, u32.
#[derive(Debug)]
struct Kinds {
    open: Tensor,
    decided: Tensor,
    /// The place of each token behind open ones and decided ones, `[t]`.
    place_t: Tensor,
}

/// Whether this pays and there are tokens of both kinds; [`grouped_mlp::takes`] says whether its kernels take the MLP.
///
/// # Errors
/// What the driver reports.
pub fn pays(runs: &[RowRun], choice: Choice<'_>) -> Result<bool> {
    let of = |open: bool| runs.iter().any(|run| run.decision.is_none() == open && !run.rows.is_empty());
    Ok(of(true) && of(false) && choice.pays()?)
}

/// y = W_d (h ⊙ c), c of every token from `gate` `[t, n]`, which is not looked at for open ones.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together; runs that are not all rows one after the other.
pub fn forward(
    x: &Tensor,
    weights: MlpWeights<'_>,
    gate: MlpGate<'_>,
    choice: Choice<'_>,
    runs: &[RowRun],
) -> Result<(Tensor, Saved)> {
    let x_td = rows(x)?;
    let kinds = Kinds::new(runs, x.device())?;
    if kinds.place_t.dims() != [x_td.dim(0)?] || gate.gate_tn.dim(0)? != x_td.dim(0)? {
        candle_core::bail!("segment_mlp: runs and gates {:?} of x {:?}", gate.gate_tn.shape(), x.shape());
    }
    let [open_x, decided_x] = kinds.apart(&x_td)?;
    let [_, gate_tn] = kinds.apart(&gate.gate_tn.detach().contiguous()?)?;
    let (open_y, open) = glu_mlp::forward(&open_x, weights, None)?;
    let own = MlpGate { gate_tn: &gate_tn, ..gate };
    let (decided_y, decided) = grouped_mlp::forward(&decided_x, weights, own, choice)?;
    let y = kinds.together([&open_y, &decided_y])?.reshape(x.shape())?;
    Ok((y, Saved { kinds, open, decided }))
}

impl Kinds {
    fn new(runs: &[RowRun], device: &Device) -> Result<Self> {
        let (mut open, mut decided) = (Vec::new(), Vec::new());
        for RowRun { rows, decision } in runs {
            let kind = if decision.is_none() { &mut open } else { &mut decided };
            kind.extend(rows.start as u32..rows.end as u32);
        }
        let mut place_t = vec![u32::MAX; open.len() + decided.len()];
        for (place, token) in (0..).zip(open.iter().chain(&decided)) {
            let Some(own) = place_t.get_mut(*token as usize) else {
                candle_core::bail!("segment_mlp: runs that are not all rows one after the other")
            };
            *own = place;
        }
        let of = |rows: Vec<u32>| Tensor::new(rows.as_slice(), device);
        Ok(Self { open: of(open)?, decided: of(decided)?, place_t: of(place_t)? })
    }

    /// The rows of open tokens, and of the others.
    fn apart(&self, rows_td: &Tensor) -> Result<[Tensor; 2]> {
        let (rows_td, none) = (rows_td.contiguous()?, rows_td.narrow(0, 0, 0)?);
        Ok([rows_of([&rows_td, &none], &self.open)?, rows_of([&rows_td, &none], &self.decided)?])
    }

    /// The rows of all tokens in their order.
    fn together(&self, [open, decided]: [&Tensor; 2]) -> Result<Tensor> {
        rows_of([open, decided], &self.place_t)
    }
}

impl SlicedMlp for Saved {
    type Deltas = Deltas;

    fn deltas(&self, dy: &Tensor) -> Result<Deltas> {
        let [open, decided] = self.kinds.apart(&rows(dy)?)?;
        Ok(Deltas { open: self.open.deltas(&open)?, decided: self.decided.deltas(&decided)? })
    }

    fn seen<R>(&self, deltas: &Deltas, see: impl FnOnce(&MlpBackward<'_>) -> Result<R>) -> Result<R> {
        self.decided.seen(&deltas.decided, |decided| {
            let open = self.open.image(&deltas.open);
            let ones_ti = open.h_ti.ones_like()?;
            let decided_gate_ti =
                decided.gate_ti.map_or_else(|| decided.h_ti.ones_like(), |gate_ti| Ok(gate_ti.clone()))?;
            see(&MlpBackward {
                x_td: &self.kinds.together([open.x_td, decided.x_td])?,
                h_ti: &self.kinds.together([open.h_ti, decided.h_ti])?,
                gate_ti: Some(&self.kinds.together([&ones_ti, &decided_gate_ti])?),
                delta_y_td: &self.kinds.together([open.delta_y_td, decided.delta_y_td])?,
                delta_h_ti: &self.kinds.together([open.delta_h_ti, decided.delta_h_ti])?,
                delta_g_ti: &self.kinds.together([open.delta_g_ti, decided.delta_g_ti])?,
                delta_u_ti: &self.kinds.together([open.delta_u_ti, decided.delta_u_ti])?,
                input_matrices: open.input_matrices,
                reads_a_part: open.reads_a_part,
            })
        })
    }

    fn input_gradient(&self, deltas: &Deltas) -> Result<Tensor> {
        self.kinds.together([&self.open.input_gradient(&deltas.open)?, &self.decided.input_gradient(&deltas.decided)?])
    }

    /// An open token's gates have 0.
    fn gate_gradient(&self, deltas: &Deltas) -> Result<Option<Tensor>> {
        let Some(decided_tn) = self.decided.gate_gradient(&deltas.decided)? else { return Ok(None) };
        let open = (self.kinds.open.elem_count(), decided_tn.dim(1)?);
        let open_tn = Tensor::zeros(open, decided_tn.dtype(), decided_tn.device())?;
        self.kinds.together([&open_tn, &decided_tn]).map(Some)
    }

    fn weight_gradients(
        &self,
        weights: MlpWeights<'_>,
        deltas: &Deltas,
        learners: &Learners,
        grads: &mut Grads,
    ) -> Result<u64> {
        let open = self.open.weight_gradients(weights, &deltas.open, learners, grads)?;
        Ok(open + self.decided.weight_gradients(weights, &deltas.decided, learners, grads)?)
    }
}
