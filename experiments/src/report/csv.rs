//! Comma-separated values: a header, then an observation a line, quoted as RFC 4180 has it, lines ended by a line feed.

use std::borrow::Cow;

use csv::{Writer, WriterBuilder};

/// What stands between two commas; [`Field::EMPTY`] where nothing was measured.
pub(super) struct Field<'a>(Cow<'a, str>);

impl Field<'_> {
    pub(super) const EMPTY: Self = Self(Cow::Borrowed(""));
}

impl<'a> From<&'a str> for Field<'a> {
    fn from(text: &'a str) -> Self {
        Self(text.into())
    }
}

impl From<f64> for Field<'_> {
    fn from(number: f64) -> Self {
        // The shortest digits that read back as the same number; `NaN`, `inf` and `-inf` where it is none.
        Self(format!("{number:?}").into())
    }
}

impl From<Option<f64>> for Field<'_> {
    fn from(number: Option<f64>) -> Self {
        number.map_or(Self::EMPTY, Self::from)
    }
}

/// A table that is being written.
pub(super) struct Csv(Writer<Vec<u8>>);

impl Csv {
    pub(super) fn new(header: &[&str]) -> Self {
        let mut csv = Self(WriterBuilder::new().flexible(true).from_writer(Vec::new()));
        csv.line(header.iter().map(|&name| name.into()));
        csv
    }

    pub(super) fn line<'a>(&mut self, fields: impl IntoIterator<Item = Field<'a>>) {
        // Memory takes whatever is written to it.
        let _ = self.0.write_record(fields.into_iter().map(|Field(text)| text.into_owned()));
    }

    pub(super) fn finish(self) -> String {
        // What was text is text.
        self.0.into_inner().ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
    }
}
