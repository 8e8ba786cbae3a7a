//! A cursor over a header's bytes. Every length is held against the bytes that are left before anything is made of it, so that no
//! count in a file decides how much memory is taken.

use super::fault::{Fault, damaged};

/// Where the reading stands.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    /// Bytes read so far.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    /// The next `length` bytes, of `what`.
    pub(super) fn take(&mut self, length: u64, what: &str) -> Result<&'a [u8], Fault> {
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let taken = end.and_then(|end| Some((self.bytes.get(self.at..end)?, end)));
        let (taken, end) = taken.ok_or_else(|| {
            damaged(format!("{what} claims {length} bytes at byte {}, {} are left", self.at, self.left()))
        })?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Fault> {
        let taken = self.take(N as u64, what)?;
        taken.first_chunk().copied().ok_or_else(|| damaged(format!("{what} is cut short")))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, Fault> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, Fault> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// The bytes of a string, behind its length.
    pub(super) fn string_bytes(&mut self, what: &str) -> Result<&'a [u8], Fault> {
        let length = self.u64(what)?;
        self.take(length, what)
    }

    pub(super) fn string(&mut self, what: &str) -> Result<&'a str, Fault> {
        let bytes = self.string_bytes(what)?;
        std::str::from_utf8(bytes).map_err(|_| damaged(format!("{what} is not UTF-8 text")))
    }

    /// A count of things that take `least` bytes each.
    pub(super) fn count(&mut self, least: usize, what: &str) -> Result<usize, Fault> {
        let count = self.u64(what)?;
        let most = self.left() / least.max(1);
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(damaged(format!("it claims {count} {what}, {} bytes are left", self.left()))),
        }
    }
}
