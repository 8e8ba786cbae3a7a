//! Continuing a text, token by token.

use candle_core::{IndexOp, Tensor};
use rand::Rng as _;

use super::{CausalLm, FeedForward, KvCache, Pass};
use crate::ops::host;
use crate::random::Rng;
use crate::{Error, Result};

/// How the next token is chosen.
#[derive(Debug)]
pub enum Sampling<'a> {
    /// The most probable; ties to the lower id.
    Greedy,
    /// At random from softmax(logits / temperature).
    Temperature(f64, &'a mut Rng),
}

impl<F: FeedForward> CausalLm<F> {
    /// Up to `count` tokens after `prompt`, stopping behind `eos`. `cached` keeps keys and values; without it the whole text is
    /// read again for each token.
    ///
    /// # Errors
    /// An empty prompt; a temperature that is not positive; ids beyond the vocabulary.
    pub fn generate(
        &self,
        prompt: &[u32],
        count: usize,
        eos: Option<u32>,
        pass: &Pass,
        mut sampling: Sampling<'_>,
        cached: bool,
    ) -> Result<Vec<u32>> {
        if prompt.is_empty() {
            return Err(Error::setting("prompt", "it is empty", "give at least one token"));
        }
        let device = self.model().embed_tokens().device().clone();
        let mut cache = cached.then(|| KvCache::new(self.config().num_hidden_layers));
        let (mut fresh, mut new) = (prompt.to_vec(), Vec::with_capacity(count));
        while new.len() < count {
            let ids = Tensor::new(fresh.as_slice(), &device)?.unsqueeze(0)?;
            let logits = self.logits(&ids, pass, cache.as_mut())?;
            let last = host::values(&logits.i((0, fresh.len() - 1))?)?;
            let token = choose(&last, &mut sampling)?;
            new.push(token);
            if eos == Some(token) {
                break;
            }
            if cached {
                fresh = vec![token];
            } else {
                fresh.push(token);
            }
        }
        Ok(new)
    }
}

fn choose(logits: &[f32], sampling: &mut Sampling<'_>) -> Result<u32> {
    let best = (0..logits.len()).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or(0);
    match sampling {
        Sampling::Greedy => Ok(best as u32),
        Sampling::Temperature(temperature, rng) => {
            if temperature.is_nan() || *temperature <= 0.0 {
                return Err(Error::setting("temperature", format!("{temperature} is not positive"), "sample greedily"));
            }
            let weight = |x: &f32| (f64::from(x - logits[best]) / *temperature).exp();
            let total: f64 = logits.iter().map(weight).sum();
            let mut left = rng.random::<f64>() * total;
            let drawn = logits.iter().position(|x| {
                left -= weight(x);
                left < 0.0
            });
            Ok(drawn.unwrap_or(best) as u32)
        }
    }
}
