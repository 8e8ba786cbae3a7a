//! What ranks say to each other: a length, bounded, and JSON. No tensor passes here.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Bytes of a message: settings are some thousand.
const LONGEST: usize = 1 << 20;
/// What is sent must be taken within so long.
const WRITE: Duration = Duration::from_secs(2);

/// What begins every conversation, from rank 0, so that anything else that listens is known at once.
pub(super) const MAGIC: [u8; 8] = *b"tinyonn1";

/// What a rank says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) rank: usize,
    pub(super) ranks: usize,
    pub(super) job: String,
    pub(super) restart: u64,
    /// What must be alike.
    pub(super) facts: Value,
    /// What may differ, and is said.
    pub(super) notes: Value,
    /// What no two ranks may have: a card.
    pub(super) own: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// Who sends it is there.
    Beat,
    /// Rank 0 to all once they have met: where a word lies that all must be able to read, and what rank 0 gives them.
    Welcome { word: Option<String>, gift: Vec<u8> },
    /// A rank has all it needs.
    Ready,
    /// Rank 0 to all: begin.
    Begin,
    /// A rank cannot go on, or is not there any more.
    Lost { rank: usize, problem: String, remedy: String },
    /// Who sends it has done all it had to.
    Leave,
}

/// One end of a conversation.
#[derive(Debug)]
pub(super) struct Link(TcpStream);

impl Link {
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(WRITE))?;
        Ok(Self(stream))
    }

    pub(super) fn another(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    pub(super) fn close(&self) {
        // It may be closed already.
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }

    /// Whether the other end is gone. Nothing is read.
    pub(super) fn is_closed(&self) -> bool {
        if self.0.set_nonblocking(true).is_err() {
            return true;
        }
        let found = self.0.peek(&mut [0]);
        let open = match found {
            Ok(count) => count > 0,
            Err(e) => e.kind() == ErrorKind::WouldBlock,
        };
        !open || self.0.set_nonblocking(false).is_err()
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Fills `bytes` before `deadline`.
    pub(super) fn read(&mut self, bytes: &mut [u8], deadline: Instant) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            self.0.set_read_timeout(Some(left))?;
            match self.0.read(&mut bytes[done..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// A length and so many bytes.
    pub(super) fn read_long(&mut self, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.read(&mut length, deadline)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > LONGEST {
            return Err(io::Error::new(ErrorKind::InvalidData, format!("a message of {length} bytes")));
        }
        // Room grows with what comes, not with what is announced.
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let from = bytes.len();
            bytes.resize(length.min(from + (1 << 16)), 0);
            self.read(&mut bytes[from..], deadline)?;
        }
        Ok(bytes)
    }

    pub(super) fn write_long(&mut self, bytes: &[u8]) -> io::Result<()> {
        let too_long = || io::Error::new(ErrorKind::InvalidInput, format!("a message of {} bytes", bytes.len()));
        let length =
            u32::try_from(bytes.len()).ok().filter(|length| *length as usize <= LONGEST).ok_or_else(too_long)?;
        // In one piece, so that two threads never mix what they send.
        self.write(&[&length.to_le_bytes()[..], bytes].concat())
    }

    pub(super) fn send(&mut self, message: &Message) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        self.write_long(&bytes)
    }

    pub(super) fn receive(&mut self, deadline: Instant) -> io::Result<Message> {
        Ok(serde_json::from_slice(&self.read_long(deadline)?)?)
    }
}
