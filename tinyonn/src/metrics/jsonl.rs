//! The log on disk: JSON Lines, `{"step":3,"stage":"smk","loss":2.125}`.
//!
//! Keys stand in the order given, numbers are the shortest decimals that name the float, every line is flushed: the same run
//! writes the same bytes, and a killed one loses at most the line it was writing.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::value::{Record, check};
use crate::{Error, Result};

/// A log of metrics that is being written.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
}

impl MetricsLog {
    /// Begins a log at `path`; what the file held before is gone.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let file = File::create(&path).map_err(|source| Error::io(&path, source))?;
        Ok(Self { file, path })
    }

    /// Appends the values of one step and flushes them. A value that is not finite is refused by its name.
    pub fn log(&mut self, step: u64, stage: &str, values: &[(&str, f64)]) -> Result<()> {
        check(step, stage, values)?;
        let mut object = Map::new();
        object.insert("step".into(), step.into());
        object.insert("stage".into(), stage.into());
        object.extend(values.iter().map(|&(name, value)| (name.to_owned(), value.into())));
        let line = format!("{}\n", Value::Object(object));
        // One write a line: whoever reads along, or is left after a kill, sees whole lines.
        self.file.write_all(line.as_bytes()).map_err(|source| Error::io(&self.path, source))?;
        self.file.flush().map_err(|source| Error::io(&self.path, source))
    }
}

/// Reads a log back, in its order and to the last bit. A last line without an end (the run was killed while writing it) is left
/// out.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<Record>> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
    let lines = whole_lines(&text).enumerate();
    lines.map(|(number, line)| parse(line).map_err(|problem| unreadable(path, number, &problem))).collect()
}

fn whole_lines(text: &str) -> impl Iterator<Item = &str> {
    let end = text.rfind('\n').map_or(0, |last| last + 1);
    text[..end].split_terminator('\n')
}

fn unreadable(path: &Path, number: usize, problem: &str) -> Error {
    Error::file(path, format!("line {}: {problem}", number + 1), "remove the line, or log the run anew")
}

fn parse(line: &str) -> Result<Record, String> {
    let mut object: Map<String, Value> =
        serde_json::from_str(&quote_numbers(line)).map_err(|error| error.to_string())?;
    let mut text = |name: &str| match object.shift_remove(name) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(format!("`{name}` is missing")),
    };
    let step = text("step")?.parse().map_err(|_| "`step` is no whole number")?;
    let stage = text("stage")?;
    let number = |(name, value): (String, Value)| match value.as_str().and_then(|text| text.parse::<f64>().ok()) {
        Some(value) if value.is_finite() => Ok((name, value)),
        _ => Err(format!("`{name}` is no number")),
    };
    let values = object.into_iter().map(number).collect::<Result<_, _>>()?;
    Ok(Record { step, stage, values })
}

/// The line with its numbers as strings: the standard library reads decimals to the last bit, `serde_json` only nearly so.
fn quote_numbers(line: &str) -> String {
    let (mut quoted, mut in_text, mut escaped, mut in_number) =
        (String::with_capacity(line.len() + 32), false, false, false);
    for c in line.chars() {
        let numeric = !in_text && matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E');
        if numeric != in_number {
            quoted.push('"');
            in_number = numeric;
        }
        if c == '"' && !escaped {
            in_text = !in_text;
        }
        escaped = in_text && c == '\\' && !escaped;
        quoted.push(c);
    }
    quoted
}
