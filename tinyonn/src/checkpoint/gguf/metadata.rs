//! The keys and values of a GGUF file. Lists stay in the file: what is kept of one is where it is.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use super::cursor::Cursor;
use super::fault::{Fault, damaged};

/// A value; numbers in their widest type.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    List(List),
}

/// A list: the type of its elements, how many, and where they are in the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct List {
    kind: Kind,
    count: usize,
    place: Range<usize>,
}

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    List,
    U64,
    I64,
    F64,
}

impl Kind {
    fn from_id(id: u32) -> Option<Self> {
        const KINDS: [Kind; 13] = [
            Kind::U8,
            Kind::I8,
            Kind::U16,
            Kind::I16,
            Kind::U32,
            Kind::I32,
            Kind::F32,
            Kind::Bool,
            Kind::Text,
            Kind::List,
            Kind::U64,
            Kind::I64,
            Kind::F64,
        ];
        KINDS.get(id as usize).copied()
    }

    /// Bytes of a value; of text and lists the least.
    fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::Text | Self::U64 | Self::I64 | Self::F64 => 8,
            Self::List => 12,
        }
    }
}

/// The value of `key`, whose type comes first.
pub(super) fn read_value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, Fault> {
    let what = format!("key `{key}`");
    let kind = read_kind(cursor, &what)?;
    if kind != Kind::List {
        return read_one(cursor, kind, &what);
    }
    let kind = read_kind(cursor, &what)?;
    if kind == Kind::List {
        return Err(damaged(format!("{what} is a list of lists")));
    }
    let count = cursor.count(kind.size(), &format!("elements of {what}"))?;
    let begin = cursor.at();
    if kind == Kind::Text {
        for _ in 0..count {
            cursor.string_bytes(&what)?;
        }
    } else {
        cursor.take((count * kind.size()) as u64, &what)?;
    }
    Ok(Value::List(List { kind, count, place: begin..cursor.at() }))
}

fn read_kind(cursor: &mut Cursor<'_>, what: &str) -> Result<Kind, Fault> {
    let id = cursor.u32(what)?;
    Kind::from_id(id).ok_or_else(|| damaged(format!("{what} is of the unknown type {id}")))
}

fn read_one(cursor: &mut Cursor<'_>, kind: Kind, what: &str) -> Result<Value, Fault> {
    if kind == Kind::Text {
        return Ok(Value::Text(cursor.string(what)?.to_owned()));
    }
    let bytes = cursor.take(kind.size() as u64, what)?;
    match (kind, number(kind, bytes)) {
        (Kind::Bool, Some(Value::Unsigned(flag @ 0..=1))) => Ok(Value::Bool(flag == 1)),
        (Kind::Bool, _) => Err(damaged(format!("{what} is neither true nor false"))),
        (_, Some(value)) => Ok(value),
        (_, None) => Err(damaged(format!("{what} is cut short"))),
    }
}

/// The number in `bytes`; `None` where they are too few.
fn number(kind: Kind, bytes: &[u8]) -> Option<Value> {
    let unsigned = |wide: u64| Some(Value::Unsigned(wide));
    let signed = |wide: i64| Some(Value::Signed(wide));
    match kind {
        Kind::U8 | Kind::Bool => unsigned((*bytes.first()?).into()),
        Kind::I8 => signed(i8::from_le_bytes(*bytes.first_chunk()?).into()),
        Kind::U16 => unsigned(u16::from_le_bytes(*bytes.first_chunk()?).into()),
        Kind::I16 => signed(i16::from_le_bytes(*bytes.first_chunk()?).into()),
        Kind::U32 => unsigned(u32::from_le_bytes(*bytes.first_chunk()?).into()),
        Kind::I32 => signed(i32::from_le_bytes(*bytes.first_chunk()?).into()),
        Kind::U64 => unsigned(u64::from_le_bytes(*bytes.first_chunk()?)),
        Kind::I64 => signed(i64::from_le_bytes(*bytes.first_chunk()?)),
        Kind::F32 => Some(Value::Float(widened(f32::from_le_bytes(*bytes.first_chunk()?)))),
        Kind::F64 => Some(Value::Float(f64::from_le_bytes(*bytes.first_chunk()?))),
        Kind::Text | Kind::List => None,
    }
}

/// The f64 that is written with the same digits: 1e-5 stays 1e-5, as its author wrote it.
fn widened(narrow: f32) -> f64 {
    narrow.to_string().parse().unwrap_or(f64::from(narrow))
}

impl Value {
    pub(super) fn is_text(&self, text: &str) -> bool {
        matches!(self, Self::Text(own) if own == text)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(number) => write!(f, "{number}"),
            Self::Signed(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Bool(flag) => write!(f, "{flag}"),
            Self::Text(text) => {
                let short: String = text.chars().take(LONGEST_SHOWN).collect();
                write!(f, "{short:?}")
            }
            Self::List(list) => write!(f, "a list of {}", list.count),
        }
    }
}

/// At most so many characters of a text in an error.
const LONGEST_SHOWN: usize = 60;

/// All keys and values of a file.
#[derive(Debug)]
pub(super) struct Metadata {
    values: BTreeMap<String, Value>,
}

impl Metadata {
    pub(super) fn new(values: BTreeMap<String, Value>) -> Self {
        Self { values }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, Fault> {
        self.typed(key, "no text", |value| if let Value::Text(text) = value { Some(text.as_str()) } else { None })
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, Fault> {
        self.typed(
            key,
            "neither true nor false",
            |value| {
                if let Value::Bool(flag) = value { Some(*flag) } else { None }
            },
        )
    }

    /// A count or an id.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>, Fault> {
        self.typed(key, "no count", |value| match value {
            Value::Unsigned(number) => usize::try_from(*number).ok(),
            Value::Signed(number) => usize::try_from(*number).ok(),
            _ => None,
        })
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>, Fault> {
        self.typed(key, "no finite number", |value| match value {
            Value::Float(number) => Some(*number).filter(|number| number.is_finite()),
            _ => None,
        })
    }

    pub(super) fn list(&self, key: &str) -> Result<Option<&List>, Fault> {
        self.typed(key, "no list", |value| if let Value::List(list) = value { Some(list) } else { None })
    }

    fn typed<'a, T>(&'a self, key: &str, not: &str, take: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, Fault> {
        let Some(value) = self.get(key) else { return Ok(None) };
        take(value).map(Some).ok_or_else(|| damaged(format!("`{key}` is {value}, {not}")))
    }
}

impl List {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Its texts, of the file's `bytes`.
    pub(super) fn texts<'a>(&self, bytes: &'a [u8], key: &str) -> Result<Vec<&'a str>, Fault> {
        if self.kind != Kind::Text {
            return Err(damaged(format!("`{key}` is no list of texts")));
        }
        let mut cursor = Cursor::new(bytes, self.place.start);
        (0..self.count).map(|i| cursor.string(&format!("element {i} of `{key}`"))).collect()
    }

    /// Its numbers, whole ones and fractions alike: an f64 holds every token type, score and count of heads.
    pub(super) fn numbers(&self, bytes: &[u8], key: &str) -> Result<Vec<f64>, Fault> {
        let taken = bytes.get(self.place.clone()).unwrap_or_default();
        let number = |bytes| match number(self.kind, bytes)? {
            Value::Unsigned(number) => Some(number as f64),
            Value::Signed(number) => Some(number as f64),
            Value::Float(number) => Some(number),
            _ => None,
        };
        let numbers: Option<Vec<f64>> = taken.chunks_exact(self.kind.size()).map(number).collect();
        numbers.ok_or_else(|| damaged(format!("`{key}` is no list of numbers")))
    }
}
