//! Conversations as text to learn from: what a model's template makes of their messages, and what of it the model itself says.
//!
//! A document that is a conversation holds its messages, as JSON; it becomes text where the model is known, by the [`Conversations`] of the
//! model's [`TextTokenizer`](super::TextTokenizer). Only tokens of the assistant's turns are predicted, the others read.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use crate::Result;

/// A conversation as one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// The text, names of special tokens standing for them.
    pub text: String,
    /// What the model says of it, in characters, ascending.
    pub answers: Vec<Range<usize>>,
}

/// How a model writes conversations: of a list of messages, the text.
///
/// ```
/// use serde_json::json;
/// use tinyonn::data::{Conversation, Conversations};
///
/// let conversations = Conversations::new(|messages| {
///     let said = messages[1]["content"].as_str().unwrap_or_default();
///     Ok(Conversation { text: format!("> {said}"), answers: vec![2..2 + said.chars().count()] })
/// });
/// let written = conversations.write(&json!([{ "role": "user", "content": "2 + 2" }, { "role": "assistant", "content": "4" }]))?;
/// assert_eq!((written.text.as_str(), &written.answers), ("> 4", &vec![2..3]));
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone)]
pub struct Conversations(Arc<Write>);

type Write = dyn Fn(&Value) -> Result<Conversation> + Send + Sync;

impl Conversations {
    /// As `write` does.
    pub fn new(write: impl Fn(&Value) -> Result<Conversation> + Send + Sync + 'static) -> Self {
        Self(Arc::new(write))
    }

    /// The text of `messages`.
    ///
    /// # Errors
    /// A conversation that the model's template refuses, or of which it does not say who says what.
    pub fn write(&self, messages: &Value) -> Result<Conversation> {
        (self.0)(messages)
    }
}

impl fmt::Debug for Conversations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Conversations")
    }
}

/// Whether `value` is a list of messages, tables with a `role`.
pub(super) fn is_conversation(value: &Value) -> bool {
    let is_message = |message: &Value| message.get("role").is_some_and(Value::is_string);
    value.as_array().is_some_and(|messages| !messages.is_empty() && messages.iter().all(is_message))
}
