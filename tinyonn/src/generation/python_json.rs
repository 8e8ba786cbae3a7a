//! JSON as Python's `json.dumps` writes it, which templates of conversations are written for.

use std::io::{Result, Write};

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Blanks of a level, and bytes between entries, at most: a template must not fill the memory.
const MOST_INDENT: usize = 64;

/// The filter `tojson` of transformers: `json.dumps(x, ensure_ascii = False, indent, separators, sort_keys)`.
// By value, as minijinja calls it.
#[allow(clippy::needless_pass_by_value)]
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
    if indent.is_some_and(|indent| indent > MOST_INDENT) {
        return Err(failed(format!("`indent` is above {MOST_INDENT}")));
    }
    let written = if let Some(indent) = indent {
        let blanks = " ".repeat(indent);
        value.serialize(&mut Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(blanks.as_bytes())))
    } else {
        let [item, key] = match separators.as_deref() {
            None => [", ", ": "],
            Some([item, key]) if item.len().max(key.len()) > MOST_INDENT => {
                return Err(failed(format!("`separators` are longer than {MOST_INDENT} bytes")));
            }
            Some([item, key]) => [item.as_str(), key.as_str()],
            Some(_) => return Err(failed("`separators` are two texts".into())),
        };
        value.serialize(&mut Serializer::with_formatter(&mut out, OneLine { item, key }))
    };
    written.map_err(|e| failed(e.to_string()))?;
    let text = String::from_utf8(out).map_err(|e| failed(e.to_string()))?;
    Ok(if ensure_ascii { in_ascii(&text) } else { text })
}

fn in_ascii(text: &str) -> String {
    let escaped = |c: char| {
        let mut units = [0u16; 2];
        let units = c.encode_utf16(&mut units).iter();
        if c.is_ascii() { c.to_string() } else { units.map(|unit| format!("\\u{unit:04x}")).collect() }
    };
    text.chars().map(escaped).collect()
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
