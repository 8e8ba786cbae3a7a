//! The byte order mark that some editors write in front of UTF-8: it is no part of the text.

/// Its bytes.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What a file from elsewhere holds behind its byte order mark, if it has one.
///
/// ```
/// use tinyonn::files::without_mark;
/// assert_eq!(without_mark(b"\xef\xbb\xbf{}"), b"{}");
/// assert_eq!(without_mark(b"{}"), b"{}");
/// ```
#[must_use]
pub fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)
}
