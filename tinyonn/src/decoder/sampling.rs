//! How the next token is chosen from the logits of all.
//!
//! In the order of transformers: the logits of tokens that the text already has are divided by the repetition penalty where they are above zero and
//! multiplied by it where they are below (Keskar et al., 2019); without a temperature the highest is taken. Else p = softmax(logits / temperature), of which
//! stay the `top_k` highest (Fan et al., 2018), of these the fewest whose sum is at least `top_p` (Holtzman et al., 2020), of these all with at least `min_p`
//! of the highest (Nguyen et al., 2024); one is drawn.

use rand::Rng as _;

use crate::random::Rng;
use crate::{Error, Result};

/// How the next token is chosen.
///
/// ```
/// use tinyonn::decoder::Sampling;
/// use tinyonn::random;
///
/// let mut rng = random::stream(0, "example");
/// let logits = [0.0, 3.0, 2.9, -1.0];
/// assert_eq!(Sampling::GREEDY.choose(&logits, &[], &mut rng)?, 1);
/// // Token 1 is already there: 3.0 / 1.5 is less than 2.9.
/// assert_eq!(Sampling { repetition_penalty: 1.5, ..Sampling::GREEDY }.choose(&logits, &[1], &mut rng)?, 2);
/// let two = Sampling { top_k: Some(2), ..Sampling::at(1.0) };
/// assert!((0..50).all(|_| [1, 2].contains(&two.choose(&logits, &[], &mut rng).unwrap())));
/// assert!(Sampling { top_p: Some(0.0), ..two }.choose(&logits, &[], &mut rng).is_err());
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most probable token, ties to the lower id.
    pub temperature: f64,
    /// So many of the most probable tokens may be drawn.
    pub top_k: Option<usize>,
    /// The fewest most probable tokens may be drawn whose probabilities sum to this.
    pub top_p: Option<f64>,
    /// Tokens may be drawn of at least this share of the highest probability.
    pub min_p: Option<f64>,
    /// What tokens that the text already has are held back by; 1 is nothing.
    pub repetition_penalty: f64,
}

/// None of the logits can be chosen.
pub(super) fn no_numbers() -> Error {
    Error::setting("logits", "the model's logits are no numbers", "check its weights, or compute in f32")
}

impl Sampling {
    /// The most probable token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: None, top_p: None, min_p: None, repetition_penalty: 1.0 };

    /// Whether the highest logit is all that it looks at.
    pub(super) fn is_greedy(&self) -> bool {
        self.temperature == 0.0 && self.repetition_penalty == 1.0
    }

    /// At random from softmax(logits / temperature).
    #[must_use]
    pub const fn at(temperature: f64) -> Self {
        Self { temperature, ..Self::GREEDY }
    }

    /// Refuses numbers that choose nothing.
    ///
    /// ```
    /// use tinyonn::decoder::Sampling;
    /// assert!(Sampling::at(0.7).validate().is_ok());
    /// assert!(Sampling { min_p: Some(2.0), ..Sampling::at(0.7) }.validate().is_err());
    /// ```
    ///
    /// # Errors
    /// Names the number.
    pub fn validate(&self) -> Result<()> {
        let refuse = |name: &str, problem: String, remedy: &str| Err(Error::setting(name, problem, remedy));
        let Self { temperature, top_k, top_p, min_p, repetition_penalty } = *self;
        if !(temperature.is_finite() && temperature >= 0.0) {
            let remedy = "give a number above 0, or 0 for the most probable token";
            return refuse("temperature", format!("{temperature} is no temperature"), remedy);
        }
        if top_k == Some(0) {
            return refuse("top_k", "0 leaves no token to draw".into(), "give 1 or more, or leave it out");
        }
        if let Some(p) = top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            let remedy = "give a number above 0 and at most 1, or leave it out";
            return refuse("top_p", format!("{p} is no share of probability to draw from"), remedy);
        }
        if let Some(p) = min_p.filter(|p| !(0.0..=1.0).contains(p)) {
            let remedy = "give a number from 0 to 1, or leave it out";
            return refuse("min_p", format!("{p} is no share of the highest probability"), remedy);
        }
        if !(repetition_penalty.is_finite() && repetition_penalty > 0.0) {
            let remedy = "give a number above 0; 1 changes nothing";
            return refuse("repetition_penalty", format!("{repetition_penalty} divides no logit"), remedy);
        }
        if temperature == 0.0 && (top_k.is_some() || top_p.is_some() || min_p.is_some()) {
            let remedy = "give a temperature, or leave top_k, top_p and min_p out";
            return refuse("temperature", "is 0, which draws nothing to be cut off".into(), remedy);
        }
        Ok(())
    }

    /// The token behind a text, from the logits of all tokens `[V]`.
    ///
    /// # Errors
    /// Numbers that choose nothing ([`validate`](Self::validate)); logits of which none is a number.
    pub fn choose(&self, logits: &[f32], text: &[u32], rng: &mut Rng) -> Result<u32> {
        self.validate()?;
        let penalised = self.penalised(logits, text);
        let logits = penalised.as_deref().unwrap_or(logits);
        let numbers = logits.iter().enumerate().filter(|(_, logit)| !logit.is_nan());
        // The last of several that are equally high is the first from behind.
        let best = numbers.rev().max_by(|a, b| a.1.total_cmp(b.1)).filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        let Some((best, highest)) = best.map(|(token, logit)| (token as u32, f64::from(*logit))) else {
            return Err(no_numbers());
        };
        if self.temperature == 0.0 || highest.is_infinite() {
            return Ok(best);
        }
        // Relative to the best, so that nothing overflows; NaN weighs nothing.
        let weight = |logit: f32| ((f64::from(logit) - highest) / self.temperature).exp().max(0.0);
        let weights: Vec<f64> = logits.iter().map(|logit| weight(*logit)).collect();
        let kept = self.kept(&weights);
        let total: f64 = kept.iter().map(|token| weights[*token as usize]).sum();
        let mut left = rng.random::<f64>() * total;
        let drawn = kept.iter().find(|token| {
            left -= weights[**token as usize];
            left < 0.0
        });
        Ok(drawn.copied().unwrap_or(best))
    }

    fn penalised(&self, logits: &[f32], text: &[u32]) -> Option<Vec<f32>> {
        if self.repetition_penalty == 1.0 {
            return None;
        }
        let (penalty, mut changed) = (self.repetition_penalty as f32, logits.to_vec());
        for token in text {
            if let (Some(new), Some(old)) = (changed.get_mut(*token as usize), logits.get(*token as usize)) {
                *new = if *old < 0.0 { old * penalty } else { old / penalty };
            }
        }
        Some(changed)
    }

    /// The tokens that may be drawn, ascending.
    fn kept(&self, weights: &[f64]) -> Vec<u32> {
        let all = || (0..weights.len() as u32).filter(|token| weights[*token as usize] > 0.0);
        let weigh = |token: &u32| weights[*token as usize];
        let mut kept: Vec<u32> = match (self.top_k, self.top_p) {
            // All that are left out of this list weigh less than 1 − top_p together.
            (None, Some(top_p)) => {
                let total: f64 = weights.iter().sum();
                let least = (1.0 - top_p) * total / weights.len() as f64;
                all().filter(|token| weigh(token) >= least).collect()
            }
            _ => all().collect(),
        };
        if self.top_k.is_some() || self.top_p.is_some() {
            let heavier = |a: &u32, b: &u32| weigh(b).total_cmp(&weigh(a)).then(a.cmp(b));
            let total: f64 = match self.top_k {
                Some(k) => {
                    if k < kept.len() {
                        kept.select_nth_unstable_by(k, heavier);
                        kept.truncate(k);
                    }
                    kept.iter().map(weigh).sum()
                }
                None => weights.iter().sum(),
            };
            kept.sort_unstable_by(heavier);
            if let Some(top_p) = self.top_p {
                let mut sum = 0.0;
                let enough = kept.iter().position(|token| {
                    sum += weigh(token);
                    sum >= top_p * total
                });
                kept.truncate(enough.map_or(kept.len(), |at| at + 1));
            }
        }
        if let Some(min_p) = self.min_p {
            // The highest weighs 1.
            kept.retain(|token| weigh(token) >= min_p);
        }
        kept.sort_unstable();
        kept
    }
}
