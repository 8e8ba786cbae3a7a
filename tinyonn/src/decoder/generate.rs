//! Continuing texts, token by token.
//!
//! Prompts that are equally long go through the model together, each row with its own keys and values; a row that has ended leaves the batch. Prompts of other
//! lengths go by themselves, so that no position is ever padded or masked, and each prompt gets the tokens that it gets alone (up to ties within the rounding
//! of products of more rows). Keys and values lie in room that is made once for all positions (of 4096 at most; behind these it doubles): a token more reads and writes its own alone, but for attention.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use rayon::prelude::*;

use super::causal_lm::inference;
#[cfg(feature = "cuda")]
use super::decode::Decoding;
#[cfg(feature = "cuda")]
use super::sampling::no_numbers;
use super::{CausalLm, FeedForward, KvCache, Pass, Sampling, Trace};
#[cfg(feature = "cuda")]
use crate::ops::next_token;
use crate::ops::{host, linear};
use crate::random::{self, Rng};
use crate::{Error, Result};

/// A text to go on with.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// What the tokens behind it are drawn by.
    pub rng: Rng,
}

impl Prompt {
    /// The prompt `number` under `seed`: what is drawn behind it depends on no other prompt.
    #[must_use]
    pub fn new(tokens: Vec<u32>, seed: u64, number: usize) -> Self {
        Self { tokens, rng: random::stream(seed, &format!("generate/{number}")) }
    }
}

/// How prompts are continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// Tokens behind each prompt, at most.
    pub tokens: usize,
    /// Each of these ends a text, of which it is the last.
    pub stop_ids: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// One token more behind each of some prompts: what a listener is told, before the tokens are read.
///
/// ```
/// use tinyonn::decoder::Step;
///
/// /// Ends every text behind a second token, whatever it is.
/// fn hear(written: &mut usize, step: &mut Step<'_>) {
///     *written += 1;
///     if *written == 2 {
///         step.ended.fill(true);
///     }
/// }
/// let (mut ended, mut written) = ([false], 1);
/// hear(&mut written, &mut Step { prompts: &[0], tokens: &[7], ended: &mut ended, read: 1, traces: &[] });
/// assert_eq!(ended, [true]);
/// ```
#[derive(Debug)]
pub struct Step<'a> {
    /// The prompt of each row, by its number.
    pub prompts: &'a [usize],
    /// The token chosen for each row.
    pub tokens: &'a [u32],
    /// Whether the row's text ends with it. A listener may end others.
    pub ended: &'a mut [bool],
    /// Positions of each row that were read for it: the whole prompt at first, then one; always the whole text where nothing is cached.
    pub read: usize,
    /// What was asked of each layer about the rows' positions, `[rows · read]`.
    pub traces: &'a [Trace],
}

impl<F: FeedForward> CausalLm<F> {
    /// The tokens behind each of `prompts`, as `how` says; `hear` is told of each step, and may end texts. `cached` keeps keys and values; without it the whole
    /// text is read again for each token, which a routed model needs that decides by more than the newest token.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use tinyonn::checkpoint::ParamStore;
    /// use tinyonn::decoder::{Arch, CausalLm, Generation, Pass, Prompt, Sampling};
    ///
    /// let cfg = Arch::from_json(&serde_json::json!({
    ///     "model_type": "qwen3", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    ///     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    /// }), "config.json")?;
    /// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
    /// let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?;
    ///
    /// let prompts = [vec![1, 2, 3], vec![4, 5]].map(|tokens| Prompt::new(tokens, 0, 0)).to_vec();
    /// let how = Generation { tokens: 6, stop_ids: vec![], sampling: Sampling::GREEDY };
    /// let texts = model.generate(prompts, &how, &Pass::all(), true, &mut |_| Ok(()))?;
    /// assert_eq!(texts.iter().map(Vec::len).collect::<Vec<_>>(), [6, 6]);
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// An empty prompt; numbers that choose nothing; more positions than the model was made for; ids beyond the vocabulary; what `hear` reports.
    pub fn generate(
        &self,
        prompts: Vec<Prompt>,
        how: &Generation,
        pass: &Pass,
        cached: bool,
        hear: &mut dyn FnMut(&mut Step<'_>) -> Result<()>,
    ) -> Result<Vec<Vec<u32>>> {
        how.sampling.validate()?;
        let count = prompts.len();
        let mut groups: BTreeMap<usize, Vec<(usize, Prompt)>> = BTreeMap::new();
        for (number, prompt) in prompts.into_iter().enumerate() {
            self.check_length(prompt.tokens.len(), how.tokens)?;
            groups.entry(prompt.tokens.len()).or_default().push((number, prompt));
        }
        let mut written = vec![Vec::new(); count];
        for (length, mut rows) in groups {
            let mut reader = Reader::new(self, pass, count, cached.then_some(length + how.tokens));
            reader.best_suffices = how.sampling.is_greedy();
            for position in 0..how.tokens {
                let (found, traces, read) = reader.read(&rows, position == 0)?;
                let tokens = match found {
                    Found::Best(tokens) => {
                        rows.iter_mut().zip(&tokens).for_each(|((_, prompt), token)| prompt.tokens.push(*token));
                        tokens
                    }
                    Found::Logits(logits_bv) => {
                        let logits = logits_bv.par_chunks(self.config().vocab_size);
                        let chosen = rows.par_iter_mut().zip(logits).map(|((_, prompt), logits)| {
                            let token = how.sampling.choose(logits, &prompt.tokens, &mut prompt.rng)?;
                            prompt.tokens.push(token);
                            Ok(token)
                        });
                        chosen.collect::<Result<Vec<u32>>>()?
                    }
                };
                let last = position + 1 == how.tokens;
                let mut ended: Vec<bool> = tokens.iter().map(|token| last || how.stop_ids.contains(token)).collect();
                let numbers: Vec<usize> = rows.iter().map(|(number, _)| *number).collect();
                hear(&mut Step { prompts: &numbers, tokens: &tokens, ended: &mut ended, read, traces: &traces })?;
                for ((number, _), token) in rows.iter().zip(&tokens) {
                    written[*number].push(*token);
                }
                let going: Vec<u32> = (0..rows.len() as u32).filter(|row| !ended[*row as usize]).collect();
                if going.is_empty() {
                    break;
                }
                if going.len() < rows.len() {
                    reader.keep(&going)?;
                    let mut row = 0..;
                    rows.retain(|_| row.next().is_some_and(|row: usize| !ended[row]));
                }
            }
        }
        Ok(written)
    }

    fn check_length(&self, prompt: usize, tokens: usize) -> Result<()> {
        if prompt == 0 {
            return Err(Error::setting("prompt", "it is empty", "give at least one token"));
        }
        let most = self.config().max_position_embeddings;
        if prompt > most {
            let problem = format!("has {prompt} tokens, and the model was made for {most} positions");
            return Err(Error::setting("prompt", problem, "shorten it"));
        }
        // The last token is written, not read.
        if tokens > most + 1 - prompt {
            let problem = format!(
                "{tokens} tokens behind a prompt of {prompt} are more than the {most} positions that the model was made for"
            );
            return Err(Error::setting("tokens", problem, format!("ask for {} or fewer", most + 1 - prompt)));
        }
        Ok(())
    }
}

/// Equally long texts on their way through a model.
struct Reader<'a, F> {
    lm: &'a CausalLm<F>,
    pass: &'a Pass,
    /// Of all prompts, which a pass may name the tasks of.
    prompts: usize,
    cache: Option<KvCache>,
    /// Whether nobody looks at any logit but the highest.
    best_suffices: bool,
    /// The rows as a GPU's step has them, where it has one.
    #[cfg(feature = "cuda")]
    decoding: Option<Decoding>,
    /// Whether a step of it was refused: the next ones would be, too.
    #[cfg(feature = "cuda")]
    refused: bool,
}

/// What was read says of the next token of each row.
enum Found {
    /// Every logit, `[rows · V]`.
    Logits(Vec<f32>),
    /// The token of the highest.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    Best(Vec<u32>),
}

/// Positions that room is made for at once, at most; of longer texts it doubles as they come.
const MOST_ROOM: usize = 4096;

impl<'a, F: FeedForward> Reader<'a, F> {
    /// `room` is for keys and values of so many positions.
    fn new(lm: &'a CausalLm<F>, pass: &'a Pass, prompts: usize, room: Option<usize>) -> Self {
        let cache = room.map(|room| KvCache::with_room(lm.config().num_hidden_layers, room.min(MOST_ROOM)));
        Self {
            lm,
            pass,
            prompts,
            cache,
            best_suffices: false,
            #[cfg(feature = "cuda")]
            decoding: None,
            #[cfg(feature = "cuda")]
            refused: false,
        }
    }

    /// Reads what is new of each text: what is found behind the last position, what layers said, and the positions of a row that were read.
    fn read(&mut self, rows: &[(usize, Prompt)], first: bool) -> Result<(Found, Vec<Trace>, usize)> {
        #[cfg(feature = "cuda")]
        if !first && let Some(found) = self.decoded(rows)? {
            return Ok((found, vec![Trace::default(); self.lm.config().num_hidden_layers], 1));
        }
        let length = rows.first().map_or(0, |(_, prompt)| prompt.tokens.len());
        let from = if first || self.cache.is_none() { 0 } else { length - 1 };
        let fresh: Vec<u32> = rows.iter().flat_map(|(_, prompt)| prompt.tokens[from..].iter().copied()).collect();
        let device = self.lm.model().embed_tokens().device();
        let ids = Tensor::from_vec(fresh, (rows.len(), length - from), device)?;
        let pass = self.pass_of(rows);
        let pass = inference(&*self.lm.with_surprisal(&ids, &pass)?);
        let (hidden_btd, traces, _) = self.lm.model().forward(&ids, &pass, self.cache.as_mut())?;
        let last_bd = hidden_btd.narrow(1, length - from - 1, 1)?.squeeze(1)?.contiguous()?;
        let logits_bv = host::values(&linear::forward(&last_bd, &self.lm.lm_head, None)?)?;
        Ok((Found::Logits(logits_bv), traces, length - from))
    }

    /// The newest token of each row read by a GPU's own step; `None` where there is none for them.
    #[cfg(feature = "cuda")]
    fn decoded(&mut self, rows: &[(usize, Prompt)]) -> Result<Option<Found>> {
        if self.refused {
            return Ok(None);
        }
        let pass = self.pass_of(rows);
        let Some(cache) = self.cache.as_mut().filter(|cache| cache.with_room_for_one().is_some()) else {
            // Room that grows is another place.
            self.decoding = None;
            return Ok(None);
        };
        let newest: Vec<u32> = rows.iter().filter_map(|(_, prompt)| prompt.tokens.last().copied()).collect();
        let begun = match self.decoding.take() {
            Some(decoding) => Some(decoding),
            None => Decoding::new(self.lm, &pass, cache, &newest)?,
        };
        let Some(mut decoding) = begun else { return Ok(None) };
        let by_host = (!self.best_suffices).then_some(newest.as_slice());
        if !decoding.step(self.lm, &pass, cache, by_host)? {
            self.refused = true;
            return Ok(None);
        }
        let found = if self.best_suffices { Found::Best(decoding.best()?) } else { Found::Logits(decoding.logits()?) };
        self.decoding = Some(decoding);
        match found {
            Found::Best(tokens) if tokens.contains(&next_token::NONE) => Err(no_numbers()),
            found => Ok(Some(found)),
        }
    }

    /// The pass, of the tasks of these rows.
    fn pass_of(&self, rows: &[(usize, Prompt)]) -> Cow<'a, Pass> {
        match self.pass.tasks.as_deref().filter(|tasks| tasks.len() == self.prompts) {
            Some(tasks) => {
                let tasks: Arc<[u32]> = rows.iter().map(|(number, _)| tasks[*number]).collect();
                Cow::Owned(Pass { tasks: Some(tasks), ..self.pass.clone() })
            }
            None => Cow::Borrowed(self.pass),
        }
    }

    /// Leaves the other rows out.
    fn keep(&mut self, rows: &[u32]) -> Result<()> {
        #[cfg(feature = "cuda")]
        {
            self.decoding = None;
        }
        self.cache.as_mut().map_or(Ok(()), |cache| cache.keep(rows))
    }
}
