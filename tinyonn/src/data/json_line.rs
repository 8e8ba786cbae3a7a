//! A line of a `.jsonl`: its fields `text` and `messages`, whatever the others hold.
//!
//! Python writes what JSON does not know: `NaN`, `Infinity`, halves of surrogate pairs. Fields that are not read are passed over, with
//! whatever is in them and however deep it lies.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::conversation::is_conversation;

/// What a line says of each: nothing, or a value of any kind.
#[derive(Debug, Default)]
pub(super) struct JsonLine {
    pub(super) text: Option<Value>,
    pub(super) messages: Option<Value>,
}

impl JsonLine {
    /// Whether it is a document: a text, or a conversation.
    pub(super) fn is_document(&self) -> bool {
        self.text.as_ref().is_some_and(Value::is_string) || self.messages.as_ref().is_some_and(is_conversation)
    }

    /// Reads a line that is an object.
    pub(super) fn parse(line: &str) -> serde_json::Result<Self> {
        serde_json::from_str(line).or_else(|error| match without_python_numbers(line) {
            Cow::Owned(line) => serde_json::from_str(&line),
            Cow::Borrowed(_) => Err(error),
        })
    }
}

impl<'de> Deserialize<'de> for JsonLine {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = JsonLine;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<JsonLine, M::Error> {
        let mut line = JsonLine::default();
        while let Some(key) = map.next_key()? {
            // Of several the last holds, as in Python.
            match key {
                Key::Text => line.text = Some(map.next_value()?),
                Key::Messages => line.messages = Some(map.next_value()?),
                Key::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(line)
    }
}

/// The name of a field, which need not be Unicode.
enum Key {
    Text,
    Messages,
    Other,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a field")
            }

            fn visit_bytes<E>(self, name: &[u8]) -> Result<Key, E> {
                Ok(match name {
                    b"text" => Key::Text,
                    b"messages" => Key::Messages,
                    _ => Key::Other,
                })
            }
        }
        from.deserialize_bytes(Name)
    }
}

/// `line` with null for each `NaN` and `Infinity` outside of its strings.
fn without_python_numbers(line: &str) -> Cow<'_, str> {
    const NUMBERS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    let (mut written, mut from) = (String::new(), 0);
    let (mut in_string, mut escaped) = (false, false);
    for (at, byte) in line.bytes().enumerate() {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else if byte == b'"' {
            in_string = true;
        } else if let Some(number) =
            NUMBERS.iter().find(|number| at >= from && line.as_bytes()[at..].starts_with(number.as_bytes()))
        {
            written.push_str(&line[from..at]);
            written.push_str("null");
            from = at + number.len();
        }
    }
    if from == 0 { Cow::Borrowed(line) } else { Cow::Owned(written + &line[from..]) }
}
