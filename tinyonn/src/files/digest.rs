//! What content is known by: SHA-256 over parts that are each preceded by their length, so that no two lists of parts run into one.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// A digest that is being made.
///
/// ```
/// use tinyonn::files::Digest;
/// let of = |parts: &[&str]| {
///     let mut digest = Digest::new();
///     parts.iter().for_each(|part| digest.text(part));
///     digest.hex()
/// };
/// assert_eq!(of(&["a", "bc"]), of(&["a", "bc"]));
/// assert_ne!(of(&["a", "bc"]), of(&["ab", "c"]));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Digest(Sha256);

impl Digest {
    /// Of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a number.
    pub fn number(&mut self, n: u64) {
        self.0.update(n.to_le_bytes());
    }

    /// Adds a text.
    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Adds bytes.
    ///
    /// ```
    /// use tinyonn::files::Digest;
    ///
    /// let (mut text, mut bytes) = (Digest::new(), Digest::new());
    /// text.text("bits");
    /// bytes.bytes(b"bits");
    /// assert_eq!(text.hex(), bytes.hex());
    /// ```
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    /// Adds words of 32 bits.
    pub fn words(&mut self, words: &[u32]) {
        self.number(words.len() as u64);
        self.more_words(words);
    }

    /// Adds words to a list whose length was added before: those of [`words`](Self::words) that come in pieces.
    ///
    /// ```
    /// use tinyonn::files::Digest;
    ///
    /// let (mut whole, mut in_pieces) = (Digest::new(), Digest::new());
    /// whole.words(&[1, 2, 3]);
    /// in_pieces.number(3);
    /// in_pieces.more_words(&[1]);
    /// in_pieces.more_words(&[2, 3]);
    /// assert_eq!(whole.hex(), in_pieces.hex());
    /// ```
    pub fn more_words(&mut self, words: &[u32]) {
        for some in words.chunks(4096) {
            self.0.update(some.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>());
        }
    }

    /// The digest in hexadecimal digits.
    #[must_use]
    pub fn hex(self) -> String {
        self.0.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}
