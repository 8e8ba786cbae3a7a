//! One layer of a mixture of experts, and the routing every layer shares.

use candle_core::{D, Tensor};

use super::{MoeSpec, RoutePer, TinyOnnExpert, select};
use crate::qwen3::{Active, FeedForward, RouteCtx};
use crate::{Error, Result};

/// A feed-forward of routed experts: what `#[moe(..)]` implements.
pub trait MoeModule: FeedForward {
    /// The declaration.
    fn spec(&self) -> &MoeSpec;

    /// The experts.
    fn experts(&self) -> &TinyOnnExpert;

    /// log p of every level for inputs x `[t, d]`: level l is `[t, parents(l), choices(l)]` f32.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not go together.
    fn log_probs(&self, x_td: &Tensor) -> Result<Vec<Tensor>>;
}

/// A layer of any declared variant: what fills a decoder layer's feed-forward slot past `model`.
pub type MoeLayer = Box<dyn MoeModule>;

/// The gates `[B·T, N]` of a layer under `ctx` for inputs x `[B, T, d]`; `None` is all active.
///
/// `log_probs` is asked only if the routers decide: of each token, or of the mean of each sequence's first tokens, which
/// themselves run all active (DESIGN §1, "what shares a decision").
///
/// # Errors
/// Paths without tasks, or of other tasks, layers or experts than the model's; what `log_probs` reports.
pub fn route(
    spec: &MoeSpec,
    layer: usize,
    x: &Tensor,
    ctx: &RouteCtx,
    log_probs: impl FnOnce(&Tensor) -> Result<Vec<Tensor>>,
) -> Result<Option<Tensor>> {
    match &ctx.active {
        Active::All => Ok(None),
        Active::Paths(table) => {
            let (b, t, _) = x.dims3()?;
            let tasks = ctx.tasks.as_deref().filter(|tasks| tasks.len() == b).ok_or_else(|| {
                Error::setting("tasks", format!("paths need the task of each of {b} sequences"), "set RouteCtx::tasks")
            })?;
            let mut gates = vec![0f32; b * spec.experts()];
            for (gates, task) in gates.chunks_exact_mut(spec.experts()).zip(tasks) {
                let path = table.experts.get(*task as usize).and_then(|layers| layers.get(layer)).ok_or_else(|| {
                    Error::setting(
                        "paths",
                        format!("none for task {task}, layer {layer}"),
                        "label every task and layer",
                    )
                })?;
                for expert in path {
                    *gates.get_mut(*expert as usize).ok_or_else(|| {
                        Error::setting("paths", format!("expert {expert} of {}", spec.experts()), "label this variant")
                    })? = 1.0;
                }
            }
            let gates_bn = Tensor::from_vec(gates, (b, spec.experts()), x.device())?.to_dtype(x.dtype())?;
            Ok(Some(spread(&gates_bn, t, 0)?))
        }
        Active::Routed => match spec.route_per {
            RoutePer::Token => {
                let x_td = x.reshape(((), x.dim(D::Minus1)?))?;
                Ok(Some(select(spec, &log_probs(&x_td)?, x.dtype())?))
            }
            RoutePer::Sequence { first } => {
                let t = x.dim(1)?;
                let read = first.clamp(1, t);
                let mean_bd = x.narrow(1, 0, read)?.mean(1)?;
                Ok(Some(spread(&select(spec, &log_probs(&mean_bd)?, x.dtype())?, t, read)?))
            }
        },
    }
}

/// Gates of sequences `[B, N]` to those of their tokens `[B·T, N]`; the first `open` tokens run all active.
fn spread(gates_bn: &Tensor, t: usize, open: usize) -> Result<Tensor> {
    let (b, n) = gates_bn.dims2()?;
    let rest = gates_bn.unsqueeze(1)?.broadcast_as((b, t - open, n))?;
    let gates = if open == 0 {
        rest.contiguous()?
    } else {
        Tensor::cat(&[&Tensor::ones((b, open, n), gates_bn.dtype(), gates_bn.device())?, &rest.contiguous()?], 1)?
    };
    Ok(gates.reshape((b * t, n))?)
}
