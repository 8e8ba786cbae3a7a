//! JSON as Python's `json.dumps` writes it, which templates of conversations are written for.

use std::io::{Result, Write};

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// The filter `tojson` of transformers: `json.dumps(x, ensure_ascii = False, indent, separators, sort_keys)`.
pub(super) fn tojson(value: &Value, options: Kwargs) -> std::result::Result<String, Error> {
    let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let failed = |problem: String| Error::new(ErrorKind::InvalidOperation, format!("tojson: {problem}"));
    let mut value = serde_json::to_value(value).map_err(|e| failed(e.to_string()))?;
    if sort_keys {
        value.sort_all_objects();
    }
    let mut out = Vec::new();
    let written = match indent {
        Some(indent) => {
            let blanks = " ".repeat(indent);
            value.serialize(&mut Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(blanks.as_bytes())))
        }
        None => {
            let [item, key] = match separators.as_deref() {
                None => [", ", ": "],
                Some([item, key]) => [item.as_str(), key.as_str()],
                Some(_) => return Err(failed("`separators` are two texts".into())),
            };
            value.serialize(&mut Serializer::with_formatter(&mut out, OneLine { item, key }))
        }
    };
    written.map_err(|e| failed(e.to_string()))?;
    let text = String::from_utf8(out).map_err(|e| failed(e.to_string()))?;
    Ok(if ensure_ascii { in_ascii(&text) } else { text })
}

fn in_ascii(text: &str) -> String {
    let mut units = [0u16; 2];
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            escaped.push(c);
        } else {
            c.encode_utf16(&mut units).iter().for_each(|unit| escaped += &format!("\\u{unit:04x}"));
        }
    }
    escaped
}

/// On one line, with these texts between entries and behind keys.
struct OneLine<'a> {
    item: &'a str,
    key: &'a str,
}

impl Formatter for OneLine<'_> {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}
