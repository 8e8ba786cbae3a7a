//! A model that reads a text with the attention of a cell.

use candle_core::{D, DType, Tensor};
use tinyonn::Result;
use tinyonn::checkpoint::KeyDirections;
use tinyonn::decoder::{CausalLm, Mlp};
use tinyonn::moe::PairsSpec;
use tinyonn::ops::{cross_entropy, host};

use super::facts::{Answer, FactText};
use super::masked::{Counted, attend};
use super::{Asked, Method};

/// A model with the attention of a cell.
pub(super) struct Reader<'a> {
    pub(super) lm: &'a CausalLm<Mlp>,
    pub(super) directions: &'a KeyDirections,
    pub(super) method: Method,
    pub(super) pairs: PairsSpec,
}

/// What the head reads of a text, and what its attention kept.
struct Hidden {
    /// `[1, T, d]`.
    hidden: Tensor,
    counted: Counted,
}

impl Reader<'_> {
    /// The sum of the losses of a text's tokens from position `from` on, given all before each, the first `prefill` read densely; and what was kept.
    pub(super) fn document(&self, tokens: &[u32], from: usize, prefill: usize) -> Result<(f64, usize, Counted)> {
        let Hidden { hidden, counted } = self.hidden(tokens, prefill)?;
        let losses = self.losses(&hidden, tokens)?;
        let scored = losses.get(from.saturating_sub(1)..).unwrap_or_default();
        Ok((scored.iter().map(|loss| f64::from(*loss)).sum(), scored.len(), counted))
    }

    /// The facts of a text, the first `prefill` tokens read densely.
    pub(super) fn facts(&self, text: &FactText, prefill: usize) -> Result<Vec<Asked>> {
        let Hidden { hidden, .. } = self.hidden(&text.tokens, prefill)?;
        let losses = self.losses(&hidden, &text.tokens)?;
        let digits = |answer: &Answer| answer.first..answer.first + answer.tokens;
        let rows: Vec<u32> = text.answers.iter().flat_map(digits).map(|at| at as u32 - 1).collect();
        let rows = Tensor::new(rows, hidden.device())?;
        let logits = hidden.squeeze(0)?.index_select(&rows, 0)?.matmul(&self.lm.head().t()?)?;
        let best = host::ids(&logits.to_dtype(DType::F32)?.argmax(D::Minus1)?)?;
        let mut best = best.into_iter();
        let asked = |answer: &Answer| {
            // As many of the best as there are digits, whether or not the first is right.
            let right = digits(answer).filter(|at| best.next() == Some(text.tokens[*at])).count() == answer.tokens;
            let nats = digits(answer).map(|at| f64::from(losses[at - 1])).sum();
            Asked { distance: answer.distance, nats, right }
        };
        Ok(text.answers.iter().map(asked).collect())
    }

    fn hidden(&self, tokens: &[u32], prefill: usize) -> Result<Hidden> {
        let (model, device) = (self.lm.model(), self.lm.head().device());
        let mut x = model.embed(&Tensor::new(tokens, device)?.unsqueeze(0)?)?;
        let mut counted = Counted::default();
        for (layer, block) in model.layers().iter().enumerate() {
            let own = &self.directions.layers()[layer];
            let [stream, seen] = model.attend_by(layer, &x, |qkv| {
                let (y, kept) = attend(self.method, &self.pairs, Some(own), qkv, prefill)?;
                counted = counted.with(kept);
                Ok(y)
            })?;
            x = (stream + block.mlp().output(&seen)?)?;
        }
        Ok(Hidden { hidden: model.last(&x)?, counted })
    }

    /// Of each token but the first.
    fn losses(&self, hidden: &Tensor, tokens: &[u32]) -> Result<Vec<f32>> {
        let next: Vec<u32> = tokens.iter().skip(1).copied().chain([u32::MAX]).collect();
        let (losses, _) = cross_entropy::forward(hidden, self.lm.head(), &Tensor::new(next, hidden.device())?, false)?;
        let mut losses = host::values(&losses)?;
        losses.pop();
        Ok(losses)
    }
}
