//! What a file holds, known by its first bytes: prose, JSON lines, or what must become text first.

use std::path::Path;

use super::json_line::JsonLine;
use crate::files::{IS_LFS_POINTER, LFS_POINTER, PULL};
use crate::{Error, Result};

/// Formats by the bytes that files of them begin with, what they are, and what makes text of them.
const PACKED: [(&[u8], &str, &str); 9] = [
    (b"\x1f\x8b", "is compressed (gzip)", "decompress it: `gunzip -k FILE`"),
    (b"\x28\xb5\x2f\xfd", "is compressed (zstd)", "decompress it: `zstd -d FILE`"),
    (b"\xfd7zXZ\x00", "is compressed (xz)", "decompress it: `unxz -k FILE`"),
    (b"BZh", "is compressed (bzip2)", "decompress it: `bunzip2 -k FILE`"),
    (b"\x04\x22\x4d\x18", "is compressed (lz4)", "decompress it: `lz4 -d FILE`"),
    (b"PK\x03\x04", "is an archive (zip)", "unpack it into a folder: `unzip FILE -d FOLDER`"),
    (
        b"PAR1",
        "is a Parquet table",
        "write it as JSON lines, for example with `to_json` of the Python package datasets",
    ),
    (
        b"ARROW1",
        "is an Arrow table",
        "write it as JSON lines, for example with `to_json` of the Python package datasets",
    ),
    (LFS_POINTER, IS_LFS_POINTER, PULL),
];
/// Endings of names whose files are JSON lines whatever is in them.
const JSON_LINES: [&str; 2] = ["jsonl", "ndjson"];
/// Endings of files of text.
const TEXTS: [&str; 8] = ["jsonl", "ndjson", "json", "txt", "text", "md", "csv", "tsv"];
/// Endings of tables that hold text.
const TABLES: [&str; 2] = ["parquet", "arrow"];

/// How a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextKind {
    Prose,
    JsonLines,
}

/// Says what is packed, and how to unpack it.
pub(super) fn packed(path: &Path, beginning: &[u8]) -> Option<Error> {
    let (_, is, remedy) = PACKED.iter().find(|(begins, ..)| beginning.starts_with(begins))?;
    Some(Error::file(path, *is, remedy.replace("FILE", &path.display().to_string())))
}

/// Whether a packed file in a folder of text must have been meant to be read: `shard-0.jsonl.gz`, `train.parquet`, or a `.txt` that is none.
pub(super) fn is_meant(path: &Path) -> bool {
    let names = [extension(path), path.file_stem().map(Path::new).and_then(extension)];
    let [own, _] = &names;
    own.as_ref().is_some_and(|own| TABLES.contains(&own.as_str()))
        || names.iter().flatten().any(|ending| TEXTS.contains(&ending.as_str()))
}

/// The kind of a file that begins with `text`, whole lines but perhaps for the last, if there is `more`. One that was named itself, `alone`, is JSON lines if it
/// reads so; one of many, which may be anything, if the first line has a `text` or `messages` as well.
pub(super) fn kind(path: &Path, text: &str, more: bool, alone: bool) -> Result<TextKind> {
    if extension(path).is_some_and(|ending| JSON_LINES.contains(&ending.as_str())) {
        return Ok(TextKind::JsonLines);
    }
    if alone && is_table(text) {
        let problem = "is one JSON array of objects with a `text` or `messages`, not one object a line";
        let remedy = format!("write it as JSON lines: `jq -c '.[]' {}`", path.display());
        return Err(Error::file(path, problem, remedy));
    }
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if more && lines.len() > 1 {
        lines.pop();
    }
    let mut parsed = lines.iter().map(|line| line.trim_start().starts_with('{').then(|| JsonLine::parse(line).ok())?);
    match parsed.next() {
        Some(Some(first)) if parsed.all(|line| line.is_some()) => {
            Ok(if alone || first.is_document() { TextKind::JsonLines } else { TextKind::Prose })
        }
        _ => Ok(TextKind::Prose),
    }
}

/// `[{"text": ..`
fn is_table(text: &str) -> bool {
    let Some(rest) = text.trim_start().strip_prefix('[') else { return false };
    let mut objects = serde_json::Deserializer::from_str(rest).into_iter::<JsonLine>();
    rest.trim_start().starts_with('{') && matches!(objects.next(), Some(Ok(first)) if first.is_document())
}

fn extension(path: &Path) -> Option<String> {
    path.extension().map(|extension| extension.to_string_lossy().to_lowercase())
}
