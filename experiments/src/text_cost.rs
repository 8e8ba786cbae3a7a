//! What text costs a model, by kind of text, with intervals over documents.

use std::f64::consts::LN_2;

use serde::Serialize;
use tinyonn::data::Task;
use tinyonn::metrics::{Interval, interval};
use tinyonn::train::DocumentLoss;
use tinyonn::{Error, Result};

/// What a document cost, copies of it taken together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Σ −ln p of its tokens that are scored.
    pub nats: f64,
    /// These tokens.
    pub tokens: f64,
    /// Their bytes.
    pub bytes: f64,
}

impl Reading {
    /// Those of a task's documents, of which the first `skipped` bytes each are not scored; copies stand in the place of the first.
    #[must_use]
    pub fn of_documents(task: &Task, losses: &[DocumentLoss], skipped: &[usize]) -> Vec<Self> {
        let mut readings = vec![Self::default(); task.documents.len()];
        let documents = task.documents.iter().zip(losses).zip(skipped).zip(task.first_copies());
        for (((document, loss), skipped), first) in documents {
            if let Some(reading) = readings.get_mut(first).filter(|_| loss.tokens > 0.0) {
                reading.nats += loss.sum;
                reading.tokens += loss.tokens;
                reading.bytes += document.text.len().saturating_sub(*skipped) as f64;
            }
        }
        readings
    }
}

/// What a kind of text costs.
#[derive(Clone, Debug, Serialize)]
pub struct TextCost {
    /// The kind of text.
    pub task: String,
    /// Documents with a token that is scored, each text once.
    pub documents: usize,
    /// Tokens that are scored.
    pub tokens: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Σ nats / Σ tokens.
    pub nats_per_token: Interval,
    /// Its exponential.
    pub perplexity: Interval,
    /// Σ nats / (ln 2 · Σ bytes).
    pub bits_per_byte: Interval,
    /// How many bits a byte more than of another model, in pairs of documents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub more_bits: Option<Interval>,
}

/// What the documents of `task` cost, and how much more than `against`, the same documents by another model.
///
/// # Errors
/// A task without a token to score.
///
/// ```
/// use experiments::text_cost::{Reading, costs};
/// let readings = [Reading { nats: 6.0, tokens: 3.0, bytes: 9.0 }, Reading { nats: 2.0, tokens: 1.0, bytes: 3.0 }];
/// let cost = costs("prose", &readings, Some(&readings), 0)?;
/// assert_eq!((cost.nats_per_token.mean, cost.perplexity.mean), (2.0, 2f64.exp()));
/// assert_eq!((cost.tokens, cost.bytes), (4, 12));
/// assert_eq!(cost.bits_per_byte.mean, 8.0 / std::f64::consts::LN_2 / 12.0);
/// assert_eq!(cost.more_bits.unwrap().mean, 0.0);
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub fn costs(task: &str, readings: &[Reading], against: Option<&[Reading]>, seed: u64) -> Result<TextCost> {
    let tokens: f64 = readings.iter().map(|reading| reading.tokens).sum();
    if tokens == 0.0 {
        let problem = format!("`{task}` has no token to score");
        return Err(Error::setting("data", problem, "give it more text, or longer documents"));
    }
    let over = |pair: fn(&Reading) -> (f64, f64)| interval(&readings.iter().map(pair).collect::<Vec<_>>(), seed);
    let nats_per_token = over(|reading| (reading.nats, reading.tokens));
    let Interval { mean, low, high } = nats_per_token;
    let more_bits = against.map(|others| {
        let more = |(own, other): (&Reading, &Reading)| ((own.nats - other.nats) / LN_2, own.bytes);
        interval(&readings.iter().zip(others).map(more).collect::<Vec<_>>(), seed)
    });
    Ok(TextCost {
        task: task.to_owned(),
        documents: readings.iter().filter(|reading| reading.tokens > 0.0).count(),
        tokens: tokens as usize,
        bytes: readings.iter().map(|reading| reading.bytes).sum::<f64>() as usize,
        nats_per_token,
        perplexity: Interval { mean: mean.exp(), low: low.exp(), high: high.exp() },
        bits_per_byte: over(|reading| (reading.nats / LN_2, reading.bytes)),
        more_bits,
    })
}
