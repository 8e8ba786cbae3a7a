//! Comma-separated values: a header, then an observation a line, quoted as RFC 4180 has it, lines ended by a line feed.

use std::fmt::Write;

/// What stands between two commas.
pub(super) enum Field<'a> {
    Text(&'a str),
    Number(f64),
    /// Nothing was measured here.
    Empty,
}

impl<'a> From<&'a str> for Field<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl From<f64> for Field<'_> {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<Option<f64>> for Field<'_> {
    fn from(number: Option<f64>) -> Self {
        number.map_or(Self::Empty, Self::Number)
    }
}

/// A table that is being written.
pub(super) struct Csv {
    text: String,
}

impl Csv {
    pub(super) fn new(header: &[&str]) -> Self {
        let mut csv = Self { text: String::new() };
        csv.line(header.iter().map(|&name| Field::Text(name)));
        csv
    }

    pub(super) fn line<'a>(&mut self, fields: impl IntoIterator<Item = Field<'a>>) {
        for (i, field) in fields.into_iter().enumerate() {
            if i > 0 {
                self.text.push(',');
            }
            match field {
                Field::Text(text) => self.text.push_str(&quoted(text)),
                // The shortest digits that read back as the same number; `NaN`, `inf` and `-inf` where it is none.
                Field::Number(number) => {
                    let _ = write!(self.text, "{number:?}");
                }
                Field::Empty => {}
            }
        }
        self.text.push('\n');
    }

    pub(super) fn finish(self) -> String {
        self.text
    }
}

fn quoted(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}
