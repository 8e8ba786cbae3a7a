//! Keys and values of the positions already read, for generation.

use candle_core::Tensor;

use crate::Result;

/// Keys and values `[B, S, K, D]` of every layer.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<Option<(Tensor, Tensor)>>,
}

impl KvCache {
    /// Empty, for a model of `layers` layers.
    #[must_use]
    pub fn new(layers: usize) -> Self {
        Self { layers: vec![None; layers] }
    }

    /// Positions held.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.layers.first().and_then(Option::as_ref).map_or(0, |(k, _)| k.dims()[1])
    }

    /// Appends a layer's new keys and values; returns all of them.
    pub(super) fn extend(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let slot = &mut self.layers[layer];
        let (k, v) = match slot.take() {
            Some((past_k, past_v)) => (Tensor::cat(&[&past_k, k], 1)?, Tensor::cat(&[&past_v, v], 1)?),
            None => (k.clone(), v.clone()),
        };
        *slot = Some((k.clone(), v.clone()));
        Ok((k, v))
    }
}
