//! The parts of a split GGUF model: `NAME-00001-of-0000N.gguf`, the settings in the first, the tensors in all.

use std::path::Path;

use super::fault::{Fault, damaged};
use super::file::Part;
use super::metadata::Metadata;
use crate::{Error, Result};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// The most parts that the five digits in a name can count.
const MOST_PARTS: usize = 99_999;

/// Opens the file `path` or, if it is a part, all parts; returns the first and the others, in order.
pub(super) fn open(path: &Path) -> Result<(Part, Vec<Part>)> {
    let part = Part::open(path)?;
    let count = count(&part.header.metadata).map_err(|fault| fault.of(path))?;
    if count <= 1 {
        return Ok((part, Vec::new()));
    }
    let number = number(&part.header.metadata, count).map_err(|fault| fault.of(path))?;
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return Err(Error::file(path, "is one of several parts, and its name is no text", rename(number, count)));
    };
    let Some(prefix) = name.strip_suffix(suffix(number, count).as_str()) else {
        let problem = format!("is part {} of {count}, which its name does not say", number + 1);
        return Err(Error::file(path, problem, rename(number, count)));
    };
    let sibling = |i: usize| open_part(&path.with_file_name(format!("{prefix}{}", suffix(i, count))), i, count);
    let first = sibling(0)?;
    let others = (1..count).map(sibling).collect::<Result<Vec<Part>>>()?;
    check_tensors(&first, &others)?;
    Ok((first, others))
}

fn open_part(path: &Path, i: usize, count: usize) -> Result<Part> {
    if !path.exists() {
        let problem = format!("is missing, part {} of {count} of the model", i + 1);
        return Err(Error::file(path, problem, "put all parts into one folder"));
    }
    let part = Part::open(path)?;
    let (found, of) = (|| {
        let metadata = &part.header.metadata;
        let of = self::count(metadata)?;
        Ok((number(metadata, of)?, of))
    })()
    .map_err(|fault: Fault| fault.of(path))?;
    if (found, of) != (i, count) {
        let problem = format!("says that it is part {} of {of}, its name says part {} of {count}", found + 1, i + 1);
        return Err(Error::file(path, problem, "put the parts of one model into one folder, each under its own name"));
    }
    Ok(part)
}

fn check_tensors(first: &Part, others: &[Part]) -> Result<()> {
    let all = || std::iter::once(first).chain(others);
    let held: usize = all().map(|part| part.header.tensors.len()).sum();
    for part in all() {
        let claimed = part.header.metadata.count(TENSORS).map_err(|fault| fault.of(part.map.path()))?;
        if let Some(claimed) = claimed.filter(|claimed| *claimed != held) {
            let problem = format!("`{TENSORS}` is {claimed}, its {} parts hold {held} tensors", others.len() + 1);
            return Err(damaged(problem).of(part.map.path()));
        }
    }
    Ok(())
}

fn count(metadata: &Metadata) -> Result<usize, Fault> {
    let count = metadata.count(COUNT)?.unwrap_or(1);
    if count > MOST_PARTS {
        return Err(damaged(format!("`{COUNT}` is {count}")));
    }
    Ok(count)
}

fn number(metadata: &Metadata, count: usize) -> Result<usize, Fault> {
    let number = metadata.count(NUMBER)?.unwrap_or(0);
    if number >= count.max(1) {
        return Err(damaged(format!("`{NUMBER}` is {number} of {count}")));
    }
    Ok(number)
}

/// The end of a part's name; `number` counts from 0.
fn suffix(number: usize, count: usize) -> String {
    format!("-{:05}-of-{count:05}.gguf", number + 1)
}

fn rename(number: usize, count: usize) -> String {
    format!("give it back its name, which ended in {}", suffix(number, count))
}
