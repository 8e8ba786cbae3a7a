//! What is heard of texts while they are written: the text as it comes, how fast it comes, what was active, which paths were taken.

use std::time::{Duration, Instant};

use serde::Serialize;
use tinyonn::checkpoint::LoadedModel;
use tinyonn::data::TextTokenizer;
use tinyonn::decoder::{Ask, Step};
use tinyonn::generation::AnswerStream;
use tinyonn::model::ActiveMode;
use tinyonn::moe::LoadMeter;
use tinyonn::ops::host;
use tinyonn::{Error, Result};

use crate::say;
use crate::token_paths::{PathKeeper, TokenPaths};

/// What of it is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    /// The first text is printed as it comes.
    pub streams: bool,
    /// Speed and active share.
    pub stats: bool,
    /// The paths of the first text, and the layer that colours it: the middle one, unless one is named.
    pub paths: Option<Option<usize>>,
}

/// A text that was written.
#[derive(Clone, Debug)]
pub struct Answer {
    /// It, without what ended it.
    pub text: String,
    /// What ended it.
    pub ended: Ended,
}

/// What ends a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// A token or a text that ends it.
    Stop,
    /// There were as many tokens as were asked for.
    Length,
}

/// Listens to [`LoadedModel::generate`].
pub struct Listener<'a> {
    answers: Vec<AnswerStream<'a>>,
    texts: Vec<String>,
    streams: bool,
    clock: Clock,
    load: Option<(LoadMeter, &'a LoadedModel)>,
    paths: Option<(PathKeeper, usize)>,
}

/// When tokens came.
struct Clock {
    started: Instant,
    /// To the first step.
    first: Option<Duration>,
    /// Of all steps, once all is written.
    whole: Duration,
    read: usize,
    written: usize,
    /// Written in the first step.
    written_first: usize,
}

impl<'a> Listener<'a> {
    /// Of texts behind `prompts`, which end with ids and texts, by a model in its mode.
    ///
    /// # Errors
    /// Paths of a model that routes nothing, or that has no groups; a layer that there is not; an empty text to stop at.
    pub fn new(
        (model, active): (&'a LoadedModel, ActiveMode),
        tokenizer: &'a TextTokenizer,
        prompts: &[Vec<u32>],
        (ids, stops): (&[u32], &[String]),
        shown: Shown,
    ) -> Result<Self> {
        let layers = model.config().num_hidden_layers;
        let routed = model.spec().filter(|_| active == ActiveMode::Routed);
        let paths = match (shown.paths, routed) {
            (None, _) => None,
            (Some(_), None) => {
                let problem = "the model runs with all of itself active, and routes nothing";
                let remedy = "name a Tiny-ONN checkpoint, and add --active routed";
                return Err(Error::setting("--show-routing", problem, remedy));
            }
            (Some(layer), Some(spec)) => {
                let layer = layer.unwrap_or(layers / 2);
                if layer >= layers {
                    let problem = format!("there is no layer {layer} of {layers}");
                    return Err(Error::setting("--routing-layer", problem, format!("give 0 to {}", layers - 1)));
                }
                Some((PathKeeper::new(spec, prompts.len())?, layer))
            }
        };
        let answers = prompts.iter().map(|prompt| AnswerStream::new(tokenizer, prompt, ids, stops));
        let load = routed.filter(|_| shown.stats).map(|spec| (LoadMeter::new(layers, spec.experts()), model));
        let read = prompts.iter().map(Vec::len).sum();
        let (started, whole) = (Instant::now(), Duration::ZERO);
        let clock = Clock { started, first: None, whole, read, written: 0, written_first: 0 };
        let (answers, texts) = (answers.collect::<Result<_>>()?, vec![String::new(); prompts.len()]);
        Ok(Self { answers, texts, streams: shown.streams, clock, load, paths })
    }

    /// What a pass must be asked for it.
    #[must_use]
    pub fn ask(&self) -> Ask {
        Ask { load: self.load.is_some(), gates: self.paths.is_some(), ..Ask::default() }
    }

    /// Hears a step, and ends texts that came to one of the texts to stop at.
    ///
    /// # Errors
    /// What the tokenizer and the device report.
    pub fn hear(&mut self, step: &mut Step<'_>) -> Result<()> {
        self.clock.written += step.tokens.len();
        if self.clock.first.is_none() {
            (self.clock.first, self.clock.written_first) = (Some(self.clock.started.elapsed()), step.tokens.len());
        }
        let rows = step.prompts.iter().zip(step.tokens).zip(step.ended.iter_mut());
        for ((number, token), ended) in rows {
            let (Some(answer), Some(text)) = (self.answers.get_mut(*number), self.texts.get_mut(*number)) else {
                continue;
            };
            let piece = answer.push(*token)?;
            if self.streams && *number == 0 && !piece.is_empty() {
                say::part(&piece);
            }
            text.push_str(&piece);
            *ended |= answer.has_ended();
        }
        if let Some((load, _)) = &mut self.load {
            let values = host::read(&LoadMeter::wanted(step.traces))?;
            load.add(step.traces, &values);
        }
        if let Some((paths, _)) = &mut self.paths {
            paths.hear(step)?;
        }
        Ok(())
    }

    /// The texts, once all are written.
    ///
    /// # Errors
    /// What the tokenizer reports.
    pub fn finish(&mut self) -> Result<Vec<Answer>> {
        self.clock.whole = self.clock.started.elapsed();
        let mut written = Vec::with_capacity(self.texts.len());
        for (number, (answer, text)) in self.answers.iter_mut().zip(&self.texts).enumerate() {
            let ended = if answer.has_ended() { Ended::Stop } else { Ended::Length };
            let rest = answer.finish()?;
            if self.streams && number == 0 {
                say::part(&rest);
            }
            written.push(Answer { text: format!("{text}{rest}"), ended });
        }
        Ok(written)
    }

    /// The paths of the first text's tokens, and the layer that colours it.
    ///
    /// # Errors
    /// What the tokenizer reports.
    pub fn paths(
        &self,
        tokenizer: &TextTokenizer,
        prompt: &[u32],
        written: &[u32],
    ) -> Result<Option<(TokenPaths, usize)>> {
        let paths = self.paths.as_ref().map(|(paths, layer)| Ok((paths.paths(0, tokenizer, prompt, written)?, *layer)));
        paths.transpose()
    }

    /// How fast it was and what was active, in a line.
    ///
    /// # Errors
    /// What the device reports.
    pub fn stats(&self) -> Result<String> {
        let Clock { first, whole, read, written, written_first, .. } = self.clock;
        let (first, whole) = (first.unwrap_or_default().as_secs_f64(), whole.as_secs_f64());
        let later = written - written_first;
        let rate = if later > 0 && whole > first {
            format!(", then {:.1} tokens a second", later as f64 / (whole - first))
        } else {
            String::new()
        };
        let share = self.load.as_ref().map_or(Ok(1.0), |(load, model)| model.active_share(load))?;
        Ok(format!(
            "{read} tokens read, {written} written in {whole:.2} s: the first after {first:.2} s{rate}; {:.1} % active",
            100.0 * share
        ))
    }
}
