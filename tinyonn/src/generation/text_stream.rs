//! Text out of tokens that come one by one.

use crate::Result;
use crate::data::TextTokenizer;

/// What a decoder writes for bytes that are no character (yet).
const NO_CHARACTER: char = '\u{fffd}';
/// So many tokens may wait for a character to become whole: one has four bytes at most, and a token one byte at least.
const WAITING: usize = 16;

/// Decodes tokens as they come, without ever giving away a part of a character. All pieces together are the text of all tokens, special tokens left out.
///
/// ```
/// use tinyonn::data::{Corpus, TextTokenizer, sorting};
/// use tinyonn::generation::TextStream;
///
/// let tokenizer = TextTokenizer::train(&Corpus { tasks: vec![sorting(0, 20_000)] }, 300)?;
/// // This tokenizer knows no crabs: one is four tokens of a byte each.
/// let mut stream = TextStream::new(&tokenizer);
/// let pieces = tokenizer.encode("a🦀")?.into_iter().map(|token| stream.push(token));
/// assert_eq!(pieces.collect::<tinyonn::Result<Vec<_>>>()?, ["a", "", "", "", "🦀"]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t TextTokenizer,
    /// The tokens that wait, behind those before them, in whose company some decoders give other blanks.
    window: Vec<u32>,
    /// Of these, how many do not wait.
    given: usize,
    /// The part of the window's text that was given away.
    text: String,
}

impl<'t> TextStream<'t> {
    /// At the beginning of a text.
    #[must_use]
    pub fn new(tokenizer: &'t TextTokenizer) -> Self {
        Self { tokenizer, window: Vec::new(), given: 0, text: String::new() }
    }

    /// Behind a text of these tokens, which is not given again.
    ///
    /// ```
    /// use tinyonn::data::{Corpus, TextTokenizer, sorting};
    /// use tinyonn::generation::TextStream;
    ///
    /// let tokenizer = TextTokenizer::train(&Corpus { tasks: vec![sorting(0, 20_000)] }, 300)?;
    /// let mut stream = TextStream::behind(&tokenizer, &tokenizer.encode("sort 2 1")?)?;
    /// let mut said = String::new();
    /// for token in tokenizer.encode(" -> 1 2")? {
    ///     said += &stream.push(token)?;
    /// }
    /// said += &stream.finish()?;
    /// assert_eq!(said, " -> 1 2");
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the tokenizer reports.
    pub fn behind(tokenizer: &'t TextTokenizer, tokens: &[u32]) -> Result<Self> {
        let window = tokens[tokens.len().saturating_sub(WAITING)..].to_vec();
        let text = tokenizer.decode_plain(&window)?;
        Ok(Self { tokenizer, given: window.len(), window, text })
    }

    /// What `token` adds to the text, as far as it is whole.
    ///
    /// # Errors
    /// What the tokenizer reports.
    pub fn push(&mut self, token: u32) -> Result<String> {
        self.window.push(token);
        let now = self.tokenizer.decode_plain(&self.window)?;
        let whole = if self.window.len() - self.given < WAITING {
            now.trim_end_matches(NO_CHARACTER).len()
        } else {
            // They will never be characters, but perhaps the last.
            now.strip_suffix(NO_CHARACTER).unwrap_or(&now).len()
        };
        let Some(piece) = now[..whole].strip_prefix(self.text.as_str()).map(str::to_owned) else {
            // To a decoder of bytes that fall back, what was a character is none beside bytes that are none, or not yet.
            if self.window.len() - self.given < WAITING {
                return Ok(String::new());
            }
            let piece = self.tokenizer.decode_plain(&self.window[self.given..])?;
            self.window.drain(..self.window.len() - 1);
            (self.given, self.text) = (1, self.tokenizer.decode_plain(&self.window)?);
            return Ok(piece);
        };
        self.text.push_str(&piece);
        if whole == now.len() && !piece.is_empty() {
            self.window.drain(..self.given);
            self.given = self.window.len();
            self.text = self.tokenizer.decode_plain(&self.window)?;
        }
        Ok(piece)
    }

    /// What is left when no token follows: bytes that became no character stand as U+FFFD.
    ///
    /// # Errors
    /// What the tokenizer reports.
    pub fn finish(&mut self) -> Result<String> {
        let now = self.tokenizer.decode_plain(&self.window)?;
        let rest = match now.strip_prefix(self.text.as_str()) {
            Some(rest) => rest.to_owned(),
            None => self.tokenizer.decode_plain(&self.window[self.given..])?,
        };
        (self.given, self.text) = (self.window.len(), now);
        Ok(rest)
    }
}
