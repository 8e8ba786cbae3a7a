//! How probable a model finds the end of a text given its beginning: ℓ = Σ_{t ≥ from} ln p(x_t | x_<t).
//!
//! Texts that follow one another and begin alike are read together: what they share goes through the model once, and the rest of each stands on a copy of its
//! keys and values, all in one batch that is padded behind (no position sees what follows it). The head reads only what is scored. Where a declaration says `prefill = dense`, what is given
//! is read first and attends to all, as a prompt does.

use candle_core::{D, DType, Tensor};
use tinyonn_spec::Prefill;

use super::causal_lm::inference;
use super::{Active, Block, CausalLm, FeedForward, KvCache, Pass};
use crate::ops::{cross_entropy, host, linear};
use crate::{Error, Result};

/// A text whose end is scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    /// All of it.
    pub tokens: Vec<u32>,
    /// The first token that is scored; those before it are given.
    pub from: usize,
}

/// What a model says of a [`Continuation`].
///
/// ```
/// use tinyonn::decoder::Likelihood;
///
/// let choices = [-4.5, -3.25].map(|log_likelihood| Likelihood { log_likelihood, greedy: None });
/// assert!(choices[1].log_likelihood > choices[0].log_likelihood); // the second is the answer
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// Σ ln p over the tokens that are scored, in nats, summed in f64.
    pub log_likelihood: f64,
    /// Whether each of these tokens is the only one of highest logit, where that was asked.
    pub greedy: Option<bool>,
}

impl<F: FeedForward> CausalLm<F> {
    /// The likelihood of each of `asked`; with `greedy` also whether it is what the model itself would have written. `cached` reads what
    /// they begin with in common once; without it each is read alone, which a routed model needs that decides by more than the newest token.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use tinyonn::checkpoint::ParamStore;
    /// use tinyonn::decoder::{Arch, CausalLm, Continuation, Pass};
    ///
    /// let cfg = Arch::from_json(&serde_json::json!({
    ///     "model_type": "qwen3", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    ///     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    /// }), "config.json")?;
    /// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
    /// let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?;
    ///
    /// let asked = [vec![1, 2, 3, 4], vec![1, 2, 3, 5, 6]].map(|tokens| Continuation { tokens, from: 3 });
    /// let found = model.likelihoods(&asked, &Pass::all(), false, true)?;
    /// assert!((found[0].log_likelihood + 32f64.ln()).abs() < 0.5); // it knows nothing yet
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// A text of which nothing is given or nothing scored; ids beyond the vocabulary; what the device reports.
    pub fn likelihoods(
        &self,
        asked: &[Continuation],
        pass: &Pass,
        greedy: bool,
        cached: bool,
    ) -> Result<Vec<Likelihood>> {
        if let Some(Continuation { tokens, from }) =
            asked.iter().find(|one| one.from == 0 || one.from >= one.tokens.len())
        {
            let problem = format!("token {from} of {} is no place to score from", tokens.len());
            return Err(Error::setting("from", problem, "give one token or more, and score one or more"));
        }
        // Where what is read first attends to all, that is what is given, neither less nor more.
        let given_first = cached && self.prefills_densely(pass);
        let alike = |shared: usize| asked.iter().all(|one| one.from == shared);
        let together = if cached && (!given_first || alike(shared_tokens(asked))) { asked.len() } else { 1 };
        let mut found = Vec::with_capacity(asked.len());
        for asked in asked.chunks(together.max(1)) {
            let beginnings = match asked {
                [one] if given_first => Beginnings { shared: one.from, counts: vec![1] },
                _ if given_first => Beginnings { shared: shared_tokens(asked), counts: vec![asked.len()] },
                _ => Beginnings::cheapest(asked),
            };
            found.extend(self.likelihoods_of_batch(asked, &beginnings, pass, greedy)?);
        }
        Ok(found)
    }

    /// Whether attention chooses its pairs, but for what is read first.
    fn prefills_densely(&self, pass: &Pass) -> bool {
        let dense_first = |layer: &Block<F>| layer.pairs().pairs().is_some_and(|pairs| pairs.prefill == Prefill::Dense);
        matches!(pass.active, Active::Routed) && self.model().layers().iter().any(dense_first)
    }

    /// Of texts of which some begin alike: what these share goes through the model once.
    fn likelihoods_of_batch(
        &self,
        asked: &[Continuation],
        Beginnings { shared, counts }: &Beginnings,
        pass: &Pass,
        greedy: bool,
    ) -> Result<Vec<Likelihood>> {
        let (shared, device) = (*shared, self.model().embed_tokens().device());
        let (mut cache, mut hidden) = (None, Vec::new());
        let read = |ids: &Tensor, cache: Option<&mut KvCache>| {
            Ok::<_, Error>(self.model().forward(ids, &inference(&*self.with_surprisal(ids, pass)?), cache)?.0)
        };
        // Of each text, the beginning that is its own.
        let of_text: Vec<usize> =
            counts.iter().enumerate().flat_map(|(own, count)| std::iter::repeat_n(own, *count)).collect();
        let held_rows = if shared > 0 { counts.len() } else { 0 };
        if shared > 0 {
            let mut held = KvCache::new(self.config().num_hidden_layers);
            let firsts = counts.iter().scan(0, |next, count| {
                let first = *next;
                *next += count;
                Some(first)
            });
            let ids: Vec<u32> = firsts.flat_map(|first| &asked[first].tokens[..shared]).copied().collect();
            let read = read(&Tensor::from_vec(ids, (counts.len(), shared), device)?, Some(&mut held))?;
            hidden.push(read.narrow(1, shared - 1, 1)?.flatten_to(1)?);
            cache = Some(held.repeated(counts)?);
        }
        // The last token is predicted, not read.
        let longest = asked.iter().map(|one| one.tokens.len() - 1 - shared).max().unwrap_or(0);
        if longest > 0 {
            let mut ids = Vec::with_capacity(asked.len() * longest);
            for one in asked {
                let rest = &one.tokens[shared..one.tokens.len() - 1];
                ids.extend(rest);
                ids.extend(std::iter::repeat_n(one.tokens[0], longest - rest.len()));
            }
            let ids = Tensor::from_vec(ids, (asked.len(), longest), device)?;
            hidden.push(read(&ids, cache.as_mut())?.flatten_to(1)?);
        }
        let (mut rows, mut targets) = (Vec::new(), Vec::<u32>::new());
        for (at, one) in asked.iter().enumerate() {
            // Of what is shared the last position alone predicts a token that is scored: a row of each beginning, ahead of all others.
            let row = |read: usize| match read.checked_sub(shared) {
                Some(own) => held_rows + at * longest + own,
                None => of_text[at],
            };
            rows.extend((one.from..one.tokens.len()).map(|target| row(target - 1) as u32));
            targets.extend(&one.tokens[one.from..]);
        }
        let count = rows.len();
        let hidden = Tensor::cat(&hidden, 0)?.index_select(&Tensor::from_vec(rows, count, device)?, 0)?;
        let targets = Tensor::from_vec(targets, count, device)?;
        // In f32: of logits in bf16 many are equal, and a tie is a wrong answer.
        let [hidden, head] = [&hidden, &self.lm_head].map(|x| x.to_dtype(DType::F32));
        let (hidden, head) = (hidden?, head?);
        let mut wanted = vec![cross_entropy::forward(&hidden, &head, &targets, false)?.0];
        if greedy {
            wanted.push(at_least_as_high(&hidden, &head, &targets)?);
        }
        let values = host::read(&wanted.iter().collect::<Vec<_>>())?;
        let mut at = 0;
        let take = |one: &Continuation| {
            let own = at..at + one.tokens.len() - one.from;
            at = own.end;
            let log_likelihood = -values[0][own.clone()].iter().sum::<f64>();
            // A logit that is not a number is above none: the loss says that there is one.
            let first =
                |ranks: &Vec<f64>| log_likelihood.is_finite() && ranks[own.clone()].iter().all(|rank| *rank == 1.0);
            Likelihood { log_likelihood, greedy: values.get(1).map(first) }
        };
        Ok(asked.iter().map(take).collect())
    }
}

/// Of each row, how many logits are at least as high as the target's, its own among them: `[n]`, f32.
fn at_least_as_high(hidden: &Tensor, head: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let logits = linear::forward(hidden, head, None)?;
    let target = logits.gather(&targets.unsqueeze(1)?, 1)?;
    Ok(logits.broadcast_ge(&target)?.to_dtype(DType::F32)?.sum(D::Minus1)?)
}

/// Texts that begin alike, by what they begin with: runs of so many, each with the same `shared` tokens.
#[derive(Debug, PartialEq)]
struct Beginnings {
    shared: usize,
    counts: Vec<usize>,
}

impl Beginnings {
    /// As fewest tokens go through the model, the rest of each padded to the longest.
    fn cheapest(asked: &[Continuation]) -> Self {
        let given = asked.iter().map(|one| one.from).min().unwrap_or(0);
        let longest = asked.iter().map(|one| one.tokens.len()).max().unwrap_or(0);
        let in_common = |pair: &[Continuation]| {
            pair[0].tokens.iter().zip(&pair[1].tokens).take_while(|(a, b)| a == b).count().min(given)
        };
        let pairs: Vec<usize> = asked.windows(2).map(in_common).collect();
        let runs = |shared: usize| 1 + pairs.iter().filter(|pair| **pair < shared).count();
        let cost = |shared: usize| runs(shared) * shared + asked.len() * (longest - shared);
        let mut tried: Vec<usize> = pairs.clone();
        tried.sort_unstable();
        tried.dedup();
        // Where nothing is gained nothing is shared: one go in place of two.
        let none = (0, cost(0));
        let best = tried
            .into_iter()
            .map(|shared| (shared, cost(shared)))
            .fold(none, |best, one| if one.1 < best.1 { one } else { best });
        let mut counts = vec![usize::from(!asked.is_empty())];
        for pair in &pairs {
            match counts.last_mut() {
                Some(count) if *pair >= best.0 => *count += 1,
                _ => counts.push(1),
            }
        }
        Self { shared: best.0, counts }
    }
}

/// The tokens that all begin with, as far as they are given to each; none of a single one, which is read in one go.
fn shared_tokens(asked: &[Continuation]) -> usize {
    let [first, others @ ..] = asked else { return 0 };
    if others.is_empty() {
        return 0;
    }
    let in_common = |one: &Continuation| first.tokens.iter().zip(&one.tokens).take_while(|(a, b)| a == b).count();
    let given = asked.iter().map(|one| one.from);
    others.iter().map(in_common).chain(given).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(texts: &[&[u32]]) -> Vec<Continuation> {
        texts.iter().map(|tokens| Continuation { tokens: tokens.to_vec(), from: 3 }).collect()
    }

    #[test]
    fn what_runs_of_texts_begin_with_is_read_once_each() {
        let two_items = asked(&[&[1, 2, 3, 4], &[1, 2, 3, 5], &[6, 7, 8, 4], &[6, 7, 8, 9]]);
        assert_eq!(Beginnings::cheapest(&two_items), Beginnings { shared: 3, counts: vec![2, 2] });
        // One token in common saves nothing beside three of the others'.
        let apart = asked(&[&[1, 2, 3, 4], &[5, 2, 3, 5]]);
        assert_eq!(Beginnings::cheapest(&apart), Beginnings { shared: 0, counts: vec![2] });
        assert_eq!(Beginnings::cheapest(&asked(&[&[1, 2, 3, 4]])), Beginnings { shared: 0, counts: vec![1] });
    }
}
