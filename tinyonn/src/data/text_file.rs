//! A file of text, read in pieces: whether it is text at all, its lines, its parts. Of a large file no more than a piece is in memory.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek as _, SeekFrom};
use std::path::Path;

use serde_json::Value;

use super::Document;
use super::conversation::is_conversation;
use super::json_line::JsonLine;
use super::text_kind::{self, TextKind};
use crate::files::{BYTE_ORDER_MARK, without_mark};
use crate::{Error, Result};

/// Size a part of a cut file aims at, in bytes.
const PART_BYTES: usize = 4 << 10;
/// A file above this size, in bytes, is read in pieces, and cut into parts in a folder.
const WHOLE_FILE_BYTES: usize = 1 << 20;
/// Bytes that are asked of the system at a time.
const PIECE: usize = 64 << 10;

/// A file is known by its beginning, which holds its first line if that is no longer than this, in bytes.
const LONGEST_FIRST_LINE: usize = 64 << 20;

/// What [`Documents::visit`](super::Documents::visit) is given.
pub(super) type Each<'a> = &'a mut dyn FnMut(Document) -> Result<()>;

/// A file, and its bytes where they are few or can be read but once (a pipe).
pub(super) struct TextFile<'a> {
    path: &'a Path,
    held: Option<Vec<u8>>,
    /// The file as far as its first line at least, and whether more follows.
    beginning: (Vec<u8>, bool),
    /// Bytes before the text: those of a byte order mark.
    skipped: usize,
}

/// What the bytes of a file are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Checked {
    /// The first byte that is not UTF-8.
    pub(super) invalid_at: Option<usize>,
    /// Whether a character is NUL.
    pub(super) nul: bool,
}

impl<'a> TextFile<'a> {
    pub(super) fn open(path: &'a Path) -> Result<Self> {
        let io = |source| Error::io(path, source);
        let metadata = std::fs::metadata(path).map_err(io)?;
        let in_pieces = metadata.is_file() && metadata.len() > WHOLE_FILE_BYTES as u64;
        let held = if in_pieces { None } else { Some(std::fs::read(path).map_err(io)?) };
        let beginning = match &held {
            Some(bytes) => beginning(bytes.as_slice()),
            None => beginning(File::open(path).map_err(io)?),
        };
        let beginning = beginning.map_err(io)?;
        let skipped = if beginning.0.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
        Ok(Self { path, held, beginning, skipped })
    }

    /// What the file is, if it must be unpacked before it is text.
    pub(super) fn packed(&self) -> Option<Error> {
        text_kind::packed(self.path, &self.beginning.0)
    }

    /// How it is to be read: `alone`, if it was named itself.
    ///
    /// # Errors
    /// JSON that is not in lines.
    pub(super) fn kind(&self, alone: bool) -> Result<TextKind> {
        let (bytes, more) = &self.beginning;
        let bytes = &bytes[self.skipped..];
        // A character may be cut where the beginning ends.
        let text = std::str::from_utf8(bytes).or_else(|e| std::str::from_utf8(&bytes[..e.valid_up_to()]));
        text_kind::kind(self.path, text.unwrap_or_default(), *more, alone)
    }

    /// Whether a folder's file of this size is cut into parts.
    pub(super) fn is_large(&self) -> bool {
        self.held.as_ref().is_none_or(|bytes| bytes.len() > WHOLE_FILE_BYTES)
    }

    /// Reads the file once, to the first byte that is not UTF-8.
    pub(super) fn check(&self) -> Result<Checked> {
        let (mut pieces, mut text, mut nul) = (Pieces::new(self.reader()?), String::new(), false);
        loop {
            text.clear();
            let more = pieces.read_into(&mut text);
            nul |= text.contains('\0');
            match more {
                Ok(true) => {}
                Ok(false) => return Ok(Checked { invalid_at: None, nul }),
                Err(Stop::NotUtf8(at)) => return Ok(Checked { invalid_at: Some(self.skipped + at), nul }),
                Err(Stop::Io(source)) => return Err(Error::io(self.path, source)),
            }
        }
    }

    /// All of it.
    pub(super) fn text(self) -> Result<String> {
        let mut text = String::new();
        self.reader()?.read_to_string(&mut text).map_err(|source| Error::io(self.path, source))?;
        Ok(text)
    }

    /// Every line's `text`, or its `messages`, as a document.
    pub(super) fn json_lines(&self, id: &str, each: Each<'_>) -> Result<()> {
        let mut reader = BufReader::with_capacity(PIECE, self.reader()?);
        let mut line = String::new();
        for number in 1.. {
            line.clear();
            if reader.read_line(&mut line).map_err(|source| Error::io(self.path, source))? == 0 {
                break;
            }
            if let Some((text, conversation)) = self.text_of_line(&line, number)? {
                each(Document { id: format!("{id}#{number}"), text, conversation })?;
            }
        }
        Ok(())
    }

    /// The text of a document, and whether it is a conversation.
    fn text_of_line(&self, line: &str, number: usize) -> Result<Option<(String, bool)>> {
        // As `str::lines` has it: what a message calls the end of a line is the line's own.
        let line = line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
        // Files put together bring the mark of each.
        let line = line.trim_start_matches('\u{feff}');
        if line.trim().is_empty() {
            return Ok(None);
        }
        let refuse = |problem: String| {
            let problem = format!("line {number}: {problem}");
            Error::file(self.path, problem, "write one JSON object a line, with a string `text` or a list `messages`")
        };
        match JsonLine::parse(line).map_err(|error| refuse(error.to_string()))? {
            JsonLine { text: None | Some(Value::Null), messages: Some(messages) } if is_conversation(&messages) => {
                Ok(Some((messages.to_string(), true)))
            }
            JsonLine { text: Some(text), .. } => {
                let text = text.as_str().ok_or_else(|| refuse("`text` is not a string".into()))?;
                Ok((!text.trim().is_empty()).then(|| (text.to_owned(), false)))
            }
            JsonLine { messages: Some(_), .. } => Err(refuse("`messages` is no list of messages with a `role`".into())),
            JsonLine { .. } => Err(refuse("no field `text`, nor `messages`".into())),
        }
    }

    /// The file cut into documents of about [`PART_BYTES`]; their texts put together are the file.
    pub(super) fn parts(&self, id: &str, each: Each<'_>) -> Result<()> {
        parts(self.reader()?, id, each, |stop| match stop {
            Stop::Io(source) => Error::io(self.path, source),
            Stop::NotUtf8(at) => not_utf8(self.path, self.skipped + at),
        })
    }

    fn reader(&self) -> Result<Box<dyn Read + '_>> {
        if let Some(bytes) = &self.held {
            return Ok(Box::new(&bytes[self.skipped..]));
        }
        let io = |source| Error::io(self.path, source);
        let mut file = File::open(self.path).map_err(io)?;
        file.seek(SeekFrom::Start(self.skipped as u64)).map_err(io)?;
        Ok(Box::new(file))
    }
}

/// A piece, and as much more as the first line takes; whether more follows.
fn beginning(mut reader: impl Read) -> std::io::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    loop {
        let read = reader.by_ref().take(PIECE as u64).read_to_end(&mut bytes)?;
        let more = read == PIECE;
        let of_line = bytes.trim_ascii_start();
        if !more || of_line.contains(&b'\n') || bytes.len() >= LONGEST_FIRST_LINE {
            return Ok((bytes, more));
        }
        // Prose has no line to wait for.
        if !of_line.is_empty() && !without_mark(of_line).starts_with(b"{") {
            return Ok((bytes, more));
        }
    }
}

/// Of a file that ought to be text.
pub(super) fn not_utf8(path: &Path, at: usize) -> Error {
    Error::file(path, format!("not UTF-8 at byte {at}"), "convert the file, for example with `iconv -t UTF-8`")
}

/// Why a file is read no further.
#[derive(Debug)]
enum Stop {
    Io(std::io::Error),
    NotUtf8(usize),
}

/// Text as it comes from a reader, which may end anywhere within a character.
struct Pieces<R> {
    reader: R,
    /// The beginning of a character.
    begun: Vec<u8>,
    /// Bytes before it.
    at: usize,
}

impl<R: Read> Pieces<R> {
    fn new(reader: R) -> Self {
        Self { reader, begun: Vec::new(), at: 0 }
    }

    /// Appends a piece to `text`; `false` at the end.
    fn read_into(&mut self, text: &mut String) -> Result<bool, Stop> {
        let before = self.begun.len();
        self.begun.resize(before + PIECE, 0);
        let read = loop {
            match self.reader.read(&mut self.begun[before..]) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                read => break read.map_err(Stop::Io)?,
            }
        };
        self.begun.truncate(before + read);
        let (valid, broken) = match std::str::from_utf8(&self.begun) {
            Ok(piece) => (piece, false),
            Err(e) => {
                // A character that the next piece may end is none that is broken.
                let broken = e.error_len().is_some() || read == 0;
                (std::str::from_utf8(&self.begun[..e.valid_up_to()]).unwrap_or_default(), broken)
            }
        };
        text.push_str(valid);
        let valid = valid.len();
        self.begun.drain(..valid);
        self.at += valid;
        if broken { Err(Stop::NotUtf8(self.at)) } else { Ok(read > 0) }
    }
}

fn parts(reader: impl Read, id: &str, each: Each<'_>, refused: impl Fn(Stop) -> Error) -> Result<()> {
    let mut pieces = Pieces::new(reader);
    let (mut rest, mut more) = (String::new(), true);
    let (mut part, mut number) = (String::new(), 0);
    let mut begin = 0;
    loop {
        // Where to cut is seen in twice a part, and the character that lies across its end.
        while more && rest.len() - begin < 2 * PART_BYTES + 4 {
            rest.drain(..begin);
            begin = 0;
            more = pieces.read_into(&mut rest).map_err(&refused)?;
        }
        let text = &rest[begin..];
        if text.is_empty() {
            break;
        }
        let text = &text[..cut_at(text)];
        begin += text.len();
        // White space is no document of its own.
        if number == 0 || !text.trim().is_empty() {
            give(&mut part, id, number, each)?;
            number += 1;
        }
        part.push_str(text);
    }
    give(&mut part, id, number, each)
}

/// Hands on a part that is whole, if there is anything in it.
fn give(part: &mut String, id: &str, number: usize, each: Each<'_>) -> Result<()> {
    let text = std::mem::take(part);
    if text.trim().is_empty() { Ok(()) } else { each(Document::new(format!("{id}#{number}"), text)) }
}

/// Where to cut: after the first blank line past the size aimed at; failing that within twice that size, after the
/// first line end; failing that, between two characters.
fn cut_at(text: &str) -> usize {
    let (from, to) = (text.ceil_char_boundary(PART_BYTES), text.ceil_char_boundary(2 * PART_BYTES));
    if text.len() <= from {
        return text.len();
    }
    let window = &text[from..to];
    let after = |pattern: &str| window.find(pattern).map(|at| from + at + pattern.len());
    after("\n\n").or_else(|| after("\n\r\n")).or_else(|| after("\n")).unwrap_or(to)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Endless lines, in reads of uneven sizes that cut characters; counts what was taken of it.
    struct Lines<'a> {
        left: usize,
        taken: &'a Cell<usize>,
    }

    const LINE: &[u8] = "ein Wört mit Umläuten 🦀, und noch eines\n".as_bytes();

    impl Read for Lines<'_> {
        fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
            let count = to.len().min(self.left).min(1 + self.taken.get() % 7001);
            for (at, byte) in to[..count].iter_mut().enumerate() {
                *byte = LINE[(self.taken.get() + at) % LINE.len()];
            }
            self.left -= count;
            self.taken.set(self.taken.get() + count);
            Ok(count)
        }
    }

    #[test]
    fn of_a_file_a_piece_and_a_part_are_in_memory() -> Result<()> {
        let (size, taken, given) = (20_000_000, Cell::new(0), Cell::new(0));
        let size = size - size % LINE.len();
        let mut each = |document: Document| {
            given.set(given.get() + document.text.len());
            let held = taken.get() - given.get();
            assert!(held <= PIECE + 4 * PART_BYTES, "{held} bytes are held");
            Ok(())
        };
        let lines = Lines { left: size, taken: &taken };
        parts(lines, "x", &mut each, |stop| Error::setting("x", format!("{stop:?}"), ""))?;
        assert_eq!((taken.get(), given.get()), (size, size));
        Ok(())
    }

    fn of_bytes(bytes: Vec<u8>) -> TextFile<'static> {
        TextFile { path: Path::new("x"), held: Some(bytes), beginning: (Vec::new(), false), skipped: 0 }
    }

    #[test]
    fn a_byte_that_is_no_text_is_found_wherever_pieces_end() -> Result<()> {
        for at in [0, 1, PIECE - 2, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE - 1] {
            let mut bytes = "é".repeat(PIECE * 2).into_bytes();
            let at = at - at % 2;
            bytes[at] = 0xff;
            let check = |bytes: Vec<u8>| of_bytes(bytes).check();
            assert_eq!(check(bytes)?, Checked { invalid_at: Some(at), nul: false });
        }
        let cut = of_bytes(b"caf\xc3".to_vec());
        assert_eq!(cut.check()?.invalid_at, Some(3));
        Ok(())
    }
}
