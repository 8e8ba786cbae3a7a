//! An answer as it is written, up to what ends it.

use super::TextStream;
use crate::data::TextTokenizer;
use crate::{Error, Result};

/// The text of tokens that come one by one, up to one of some ids or strings, which is not part of it.
#[derive(Debug)]
pub struct AnswerStream<'t> {
    stream: TextStream<'t>,
    end_ids: Vec<u32>,
    stops: Vec<String>,
    /// What may be the beginning of a stop string.
    held: String,
    ended: bool,
}

impl<'t> AnswerStream<'t> {
    /// Behind a prompt, ended by any of `end_ids`, or by any of `stops` in the text, of which the first that is whole counts; one that is the name of a special
    /// token is this token.
    ///
    /// # Errors
    /// A stop string that is empty; what the tokenizer reports.
    pub fn new(
        tokenizer: &'t TextTokenizer,
        prompt: &[u32],
        end_ids: &[u32],
        stops: &[impl AsRef<str>],
    ) -> Result<Self> {
        let stops: Vec<String> = stops.iter().map(|stop| stop.as_ref().to_owned()).collect();
        if stops.iter().any(String::is_empty) {
            return Err(Error::setting("stop", "an empty text stands everywhere", "give one character or more"));
        }
        // The name of a special token is never part of the text; the token itself is what ends it.
        let special = stops.iter().filter_map(|stop| tokenizer.special_id(stop));
        let (stream, end_ids) =
            (TextStream::behind(tokenizer, prompt)?, end_ids.iter().copied().chain(special).collect());
        Ok(Self { stream, end_ids, stops, held: String::new(), ended: false })
    }

    /// What `token` adds to the answer. Behind its end nothing does.
    ///
    /// # Errors
    /// What the tokenizer reports.
    pub fn push(&mut self, token: u32) -> Result<String> {
        if self.ended {
            return Ok(String::new());
        }
        if self.end_ids.contains(&token) {
            return self.finish();
        }
        let piece = self.stream.push(token)?;
        Ok(self.up_to_a_stop(&piece))
    }

    /// What is left of it where nothing follows: its end.
    ///
    /// # Errors
    /// What the tokenizer reports.
    pub fn finish(&mut self) -> Result<String> {
        if self.ended {
            return Ok(String::new());
        }
        let rest = self.stream.finish()?;
        let mut text = self.up_to_a_stop(&rest);
        if !self.ended {
            text += &std::mem::take(&mut self.held);
            self.ended = true;
        }
        Ok(text)
    }

    /// Whether it is at its end.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    fn up_to_a_stop(&mut self, piece: &str) -> String {
        self.held.push_str(piece);
        let found = |stop: &String| self.held.find(stop.as_str()).map(|at| (at + stop.len(), at));
        // By their ends, so that it does not matter how much came at once.
        if let Some((_, at)) = self.stops.iter().filter_map(found).min() {
            self.ended = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let begun = |stop: &String| {
            let ends = stop.char_indices().map(|(at, _)| at).skip(1);
            ends.filter(|end| self.held.ends_with(&stop[..*end])).max().unwrap_or(0)
        };
        let kept = self.stops.iter().map(begun).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        std::mem::replace(&mut self.held, rest)
    }
}
