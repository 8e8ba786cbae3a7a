//! The same layer under another selection than it declares: other numbers of choices, or another form of adaptive gating. Routers and
//! experts are untouched; what changes is how many are taken. This is what a curve of loss against active share is made of.

use candle_core::Tensor;

use super::{MoeLayer, MoeModule, MoeSpec, Pfag, Router, TinyOnnExpert, route};
use crate::Result;
use crate::qwen3::{FeedForward, RouteCtx};

impl MoeSpec {
    /// The same declaration with `top_k[level]` choices of every router of a level (at most as many as it has), under `pfag`.
    ///
    /// ```
    /// use tinyonn::moe::{Pfag, moe};
    ///
    /// #[moe(groups = 10, experts = 10)]
    /// struct Hundred;
    ///
    /// let half = Hundred::SPEC.taking(&[5, 10], Pfag::Off);
    /// assert_eq!(half.active_experts(), 50);
    /// ```
    #[must_use]
    pub fn taking(&self, top_k: &[usize], pfag: Pfag) -> Self {
        let mut spec = Self { pfag, ..self.clone() };
        for (level, k) in spec.levels.to_mut().iter_mut().zip(top_k) {
            level.routers.to_mut().iter_mut().for_each(|run| run.top_k = (*k).clamp(1, run.choices));
        }
        spec
    }

    /// Choices of a router of each level, the most where they differ.
    #[must_use]
    pub fn choices(&self) -> Vec<usize> {
        let most = |level: &super::LevelSpec| level.routers.iter().map(|run| run.choices).max().unwrap_or(1);
        self.levels.iter().map(most).collect()
    }
}

/// A layer that selects as another declaration says.
pub(crate) struct Taking {
    layer: MoeLayer,
    spec: MoeSpec,
}

impl Taking {
    /// `spec` is [`MoeSpec::taking`] of the layer's own.
    pub(crate) fn boxed(layer: MoeLayer, spec: MoeSpec) -> MoeLayer {
        Box::new(Self { layer, spec })
    }
}

impl FeedForward for Taking {
    fn forward(&self, x: &Tensor, ctx: &RouteCtx) -> Result<Tensor> {
        let routing = route(self, x, ctx)?;
        self.experts().forward(x, &routing, ctx)
    }

    fn reads_surprisal(&self) -> bool {
        self.spec.pfag == Pfag::Surprisal
    }
}

impl MoeModule for Taking {
    fn spec(&self) -> &MoeSpec {
        &self.spec
    }

    fn experts(&self) -> &TinyOnnExpert {
        self.layer.experts()
    }

    fn routers(&self) -> Vec<Vec<&dyn Router>> {
        self.layer.routers()
    }
}
