//! The header of a GGUF file, read and checked by hand.
//!
//! candle's own reader divides by an alignment of 0, lets the second of two equal names win, sees no overlap and multiplies shapes
//! unchecked. Here every count and length is held against the bytes that are left, lists of the metadata stay in the file until
//! they are asked for, and each tensor must lie aligned, inside the file and apart from the others. So what a header takes in
//! memory is bounded by its own bytes, whatever it claims.

use std::collections::BTreeMap;
use std::ops::Range;

use super::cursor::Cursor;
use super::fault::{Fault, damaged};
use super::ggml::GgmlType;
use super::metadata::{Metadata, Value, read_value};

pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// Where the tensors begin is a multiple of it, as is every tensor's place, unless the file says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;
const ALIGNMENT: &str = "general.alignment";

/// The most dimensions that a tensor has.
const MOST_DIMENSIONS: u32 = 4;

/// Least bytes of a key and its value: a length, a letter, a type, a byte.
const LEAST_PAIR: usize = 8 + 1 + 4 + 1;
/// Least bytes of a tensor's entry: a length, a letter, the count of its sizes, one size, its type, its place.
const LEAST_ENTRY: usize = 8 + 1 + 4 + 8 + 4 + 8;

/// What a file says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) kind: GgmlType,
    /// Sizes, outermost first (a file has them innermost first).
    pub(super) shape: Vec<usize>,
    /// Its bytes in the file.
    pub(super) bytes: Range<usize>,
}

/// The metadata and the tensors' places.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: Metadata,
    pub(super) tensors: BTreeMap<String, Place>,
}

impl Header {
    /// Reads the header of a file of these bytes.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Fault> {
        let mut cursor = Cursor::new(bytes, 0);
        if bytes.get(..MAGIC.len()) != Some(MAGIC.as_slice()) {
            let problem = if bytes.is_empty() { "is empty" } else { "does not begin with GGUF" };
            return Err(Fault::new(problem, "give a GGUF file"));
        }
        cursor.take(MAGIC.len() as u64, "its magic")?;
        check_version(cursor.u32("its version")?)?;
        // Held against all that follows: the second count and the pairs come before the entries.
        let tensors = cursor.count(LEAST_ENTRY, "tensors")?;
        let pairs = cursor.count(LEAST_PAIR, "metadata keys")?;
        let mut values = BTreeMap::new();
        for _ in 0..pairs {
            let (key, value) = read_pair(&mut cursor)?;
            if values.insert(key.to_owned(), value).is_some() {
                return Err(damaged(format!("it has the key `{key}` twice")));
            }
        }
        let metadata = Metadata::new(values);
        let alignment = alignment(&metadata)?;
        let mut entries = BTreeMap::new();
        for _ in 0..tensors {
            let (name, entry) = read_entry(&mut cursor, alignment)?;
            if entries.insert(name.to_owned(), entry).is_some() {
                return Err(damaged(format!("it has the tensor `{name}` twice")));
            }
        }
        let tensors = place(entries, cursor.at(), bytes.len(), alignment)?;
        Ok(Self { metadata, tensors })
    }
}

fn check_version(version: u32) -> Result<(), Fault> {
    let again = "convert the model again with a current llama.cpp";
    match version {
        2 | 3 => Ok(()),
        1 => Err(Fault::new("is GGUF version 1, which counts in 32 bits", again)),
        // The low half is 0 where the bytes of a small version stand the other way round.
        _ if version.trailing_zeros() >= 16 && version != 0 => {
            Err(Fault::new("is a big-endian GGUF file", "convert the model again on a little-endian machine"))
        }
        _ => Err(Fault::new(format!("is GGUF version {version}"), "give a file of version 2 or 3")),
    }
}

fn read_pair<'a>(cursor: &mut Cursor<'a>) -> Result<(&'a str, Value), Fault> {
    let key = cursor.string("a metadata key")?;
    if key.is_empty() {
        return Err(damaged("it has a metadata key without a name"));
    }
    Ok((key, read_value(cursor, key)?))
}

fn alignment(metadata: &Metadata) -> Result<u64, Fault> {
    let Some(value) = metadata.get(ALIGNMENT) else { return Ok(DEFAULT_ALIGNMENT) };
    match value {
        // 8 is the format's least, and enough for every type of block.
        Value::Unsigned(alignment) if alignment.is_power_of_two() && *alignment >= 8 => Ok(*alignment),
        other => Err(damaged(format!("`{ALIGNMENT}` is {other}, no power of two from 8 on"))),
    }
}

/// A tensor as listed: type, shape, bytes, and where they begin behind the header.
struct Entry {
    kind: GgmlType,
    shape: Vec<usize>,
    size: u64,
    offset: u64,
}

fn read_entry<'a>(cursor: &mut Cursor<'a>, alignment: u64) -> Result<(&'a str, Entry), Fault> {
    let name = cursor.string("a tensor's name")?;
    if name.is_empty() {
        return Err(damaged("it has a tensor without a name"));
    }
    let what = format!("tensor `{name}`");
    let dimensions = cursor.u32(&what)?;
    if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
        return Err(damaged(format!("{what} has {dimensions} dimensions, 1 to {MOST_DIMENSIONS} are possible")));
    }
    let mut sizes = Vec::with_capacity(dimensions as usize);
    for _ in 0..dimensions {
        sizes.push(cursor.u64(&what)?);
    }
    let kind = GgmlType::from_id(cursor.u32(&what)?).map_err(|kind| {
        let remedy = "give a file in F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K";
        Fault::new(format!("{what} is of {kind}, which is not read"), remedy)
    })?;
    let offset = cursor.u64(&what)?;
    if offset % alignment != 0 {
        return Err(damaged(format!("{what} begins at {offset}, no multiple of the alignment {alignment}")));
    }
    let size = kind.bytes(&sizes).map_err(|problem| damaged(format!("{what}: {problem}")))?;
    // Every size is now known to fit: their product does.
    let shape = sizes.iter().rev().map(|size| *size as usize).collect();
    Ok((name, Entry { kind, shape, size, offset }))
}

/// Where each tensor's bytes are in a file of `length` bytes whose header ends at `end`.
fn place(
    entries: BTreeMap<String, Entry>,
    end: usize,
    length: usize,
    alignment: u64,
) -> Result<BTreeMap<String, Place>, Fault> {
    // An alignment beyond the file's end leaves no room for tensors, and none may be listed.
    let start = (end as u64).checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    let mut places = BTreeMap::new();
    for (name, entry) in entries {
        let begin = start.checked_add(entry.offset);
        let bounds = begin.and_then(|begin| Some((begin, begin.checked_add(entry.size)?)));
        let bytes = match bounds {
            Some((begin, end)) if end <= length as u64 => begin as usize..end as usize,
            _ => {
                let Entry { size, offset, .. } = entry;
                let left = (length as u64).saturating_sub(start);
                return Err(damaged(format!(
                    "tensor `{name}` claims {size} bytes from {offset} on, the file holds {left} bytes of tensors"
                )));
            }
        };
        places.insert(name, Place { kind: entry.kind, shape: entry.shape, bytes });
    }
    check_apart(&places)?;
    Ok(places)
}

fn check_apart(places: &BTreeMap<String, Place>) -> Result<(), Fault> {
    let mut order: Vec<(&str, &Range<usize>)> =
        places.iter().map(|(name, place)| (name.as_str(), &place.bytes)).collect();
    order.sort_by_key(|(_, bytes)| bytes.start);
    for pair in order.windows(2) {
        if let [(before, a), (after, b)] = pair
            && b.start < a.end
        {
            return Err(damaged(format!("the tensors `{before}` and `{after}` overlap")));
        }
    }
    Ok(())
}
