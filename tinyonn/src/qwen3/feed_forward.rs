//! What fills the feed-forward slot of a block, and what travels with a forward pass to it.

use std::sync::Arc;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::ops::MlpProbe;

/// The second half of a block: x `[B, T, d]` to y `[B, T, d]`.
pub trait FeedForward: Send + Sync {
    /// y, under the routing that `ctx` asks for. A dense feed-forward has none and ignores it.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not go together.
    fn forward(&self, x: &Tensor, ctx: &RouteCtx) -> Result<Tensor>;

    /// Whether routing reads [`RouteCtx::surprisal`].
    fn reads_surprisal(&self) -> bool {
        false
    }
}

impl<F: FeedForward + ?Sized> FeedForward for Box<F> {
    fn forward(&self, x: &Tensor, ctx: &RouteCtx) -> Result<Tensor> {
        (**self).forward(x, ctx)
    }

    fn reads_surprisal(&self) -> bool {
        (**self).reads_surprisal()
    }
}

/// Which experts take part.
#[derive(Clone, Debug, Default)]
pub enum Active {
    /// All of them, without gates: the pseudo-dense pass.
    #[default]
    All,
    /// Those that the routers choose.
    Routed,
    /// Those on a given path of each sequence's task ([`RouteCtx::tasks`]): an oracle that reads the task.
    Paths(Arc<PathTable>),
}

/// Fixed computation paths: the chosen experts of every task and layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathTable {
    /// `experts[task][layer]`, ascending flat indices.
    pub experts: Vec<Vec<Vec<u32>>>,
}

/// What travels with a forward pass: the routing mode, the tasks of the sequences, and who watches.
#[derive(Clone, Default)]
pub struct RouteCtx {
    /// Which experts take part.
    pub active: Active,
    /// The task of each sequence of the batch; needed for given paths only.
    pub tasks: Option<Arc<[u32]>>,
    /// The paths that a routed variant takes which decides by task (`route_per = task`).
    pub paths: Option<Arc<PathTable>>,
    /// The surprisal of each input token given those before it, in nats, `[B, T]` f32: what adaptive gating by surprisal reads.
    pub surprisal: Option<Tensor>,
    /// In training, the seed of the step: routers' inputs are jittered, auxiliary losses reported, where a variant declares them.
    pub training: Option<u64>,
    /// Watches the backward pass of every feed-forward.
    pub probe: Option<Arc<dyn MlpProbe>>,
    /// Watches the forward pass.
    pub observer: Option<Arc<dyn Observer>>,
}

impl RouteCtx {
    /// Everything active, nobody watching.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Routed, nobody watching.
    #[must_use]
    pub fn routed() -> Self {
        Self { active: Active::Routed, ..Self::default() }
    }
}

/// Watches a forward pass. Each method does nothing unless implemented.
pub trait Observer: Send + Sync {
    /// The input x `[B, T, d]` of a layer's feed-forward.
    ///
    /// # Errors
    /// Whatever the observer reports; the pass stops with it.
    fn feed_forward_input(&self, layer: usize, x: &Tensor) -> Result<()> {
        let _ = (layer, x);
        Ok(())
    }

    /// The gates `[B·T, N]` of a layer that was routed. `routed[t]`: whether a decision is for token t; the others, which a shared
    /// decision reads, ran all active.
    ///
    /// # Errors
    /// As above.
    fn gates(&self, layer: usize, gate_tn: &Tensor, routed: &[bool]) -> Result<()> {
        let _ = (layer, gate_tn, routed);
        Ok(())
    }

    /// The declared auxiliary loss of a layer that was routed in training, a scalar to be added to the loss.
    ///
    /// # Errors
    /// As above.
    fn auxiliary_loss(&self, layer: usize, loss: &Tensor) -> Result<()> {
        let _ = (layer, loss);
        Ok(())
    }

    /// The output `[B, T, d]` of a layer's block.
    ///
    /// # Errors
    /// As above.
    fn block_output(&self, layer: usize, x: &Tensor) -> Result<()> {
        let _ = (layer, x);
        Ok(())
    }
}
