//! Where a matrix lies otherwise in memory than in a file: W_d is `[d, I]` there, as in transformers, and `[I, d]` here, so that a neuron is
//! one row of all three matrices of its MLP: what selects, masks, steps or dispatches neurons moves whole rows.

use candle_core::Tensor;

use crate::Result;

/// How the tensors of a file lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// As transformers has them: of a checkpoint.
    Stored,
    /// As in memory: of a state that a training goes on from.
    Memory,
}

impl Order {
    /// A tensor in memory as it is written.
    pub(super) fn written(self, name: &str, tensor: &Tensor) -> Result<Tensor> {
        if self == Self::Stored { turned(name, tensor.clone()) } else { Ok(tensor.clone()) }
    }

    /// The same of its shape.
    pub(super) fn written_shape(self, name: &str, shape: Vec<usize>) -> Vec<usize> {
        if self == Self::Stored { turned_shape(name, shape) } else { shape }
    }
}

/// Whether files hold the transpose: W_d of a layer's MLP, and what a replica adds to it; of a router nothing, whatever its parameters are
/// called.
pub(super) fn is_turned(name: &str) -> bool {
    let own = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once(".mlp."));
    let Some(rest) = own.and_then(|(_, own)| own.strip_suffix("down_proj.weight")) else { return false };
    let of_delta =
        || rest.strip_prefix("delta.").and_then(|n| n.strip_suffix('.')).is_some_and(|n| n.parse::<u32>().is_ok());
    rest.is_empty() || of_delta()
}

/// What lies in a file as `value`, as it lies in memory; and the other way round.
pub(super) fn turned(name: &str, value: Tensor) -> Result<Tensor> {
    if is_turned(name) && value.rank() == 2 { Ok(value.t()?.contiguous()?) } else { Ok(value) }
}

/// The same of a shape.
pub(super) fn turned_shape(name: &str, mut shape: Vec<usize>) -> Vec<usize> {
    if is_turned(name) && shape.len() == 2 {
        shape.reverse();
    }
    shape
}
