//! What a rank shows at the meeting: 128 bits that only the ranks of one job know. They are never in a command line, and never printed.

use std::fmt;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::{Error, Result};

/// The token of a job.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 16]);

/// The variable that holds a token.
pub const VARIABLE: &str = "TINYONN_TOKEN";
/// The variable that names a file with a token.
pub const FILE: &str = "TINYONN_TOKEN_FILE";

impl Token {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// Of 32 hexadecimal digits.
    ///
    /// # Errors
    /// Anything else; `from` is where it was read.
    ///
    /// ```
    /// use tinyonn::ranks::Token;
    ///
    /// let token = Token::parse("a pipe", &Token::random().hex())?;
    /// assert_eq!(format!("{token:?}"), "Token");
    /// assert!(Token::parse("a pipe", "secret").is_err());
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    pub fn parse(from: &str, text: &str) -> Result<Self> {
        let text = text.trim();
        let wrong =
            || Error::setting(from, "holds no 32 hexadecimal digits", "make a token with `openssl rand -hex 16`");
        if text.len() != 32 || !text.bytes().all(|letter| letter.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        u128::from_str_radix(text, 16).map(|bits| Self(bits.to_be_bytes())).map_err(|_| wrong())
    }

    /// Of the environment: the variable [`VARIABLE`], or the file that [`FILE`] names, which nobody else may read.
    ///
    /// ```
    /// use tinyonn::ranks::Token;
    /// use tinyonn::ranks::token::{FILE, VARIABLE};
    ///
    /// let token = Token::random();
    /// let given = |name: &str| (name == VARIABLE).then(|| token.hex());
    /// assert_eq!(Token::of_environment(&given)?.hex(), token.hex());
    /// let said = Token::of_environment(&|_| None).unwrap_err().to_string();
    /// assert!(said.contains(VARIABLE) && said.contains(FILE));
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// Neither is there; a file that others can read.
    pub fn of_environment(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        if let Some(text) = variable(VARIABLE) {
            return Self::parse(VARIABLE, &text);
        }
        let Some(path) = variable(FILE) else {
            let remedy = "export TINYONN_TOKEN=$(openssl rand -hex 16) before the launcher, or name a file with TINYONN_TOKEN_FILE";
            return Err(Error::setting(VARIABLE, "is not set, and ranks know each other by it", remedy));
        };
        let path = Path::new(&path);
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                let problem = format!("can be read by others (mode {mode:o})");
                return Err(Error::file(path, problem, "make it yours alone: chmod 600"));
            }
        }
        Self::parse(&path.display().to_string(), &text)
    }

    /// As 32 hexadecimal digits: for the pipe to a process that was started.
    #[must_use]
    pub fn hex(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }

    /// What answers a challenge: SHA-256 of token, challenge and what is said with it, so that nobody who listens has the token.
    #[must_use]
    pub(super) fn answer(&self, challenge: &[u8; 16], said: &[u8]) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in [&self.0[..], &challenge[..], said] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }

    /// Whether `shown` answers the challenge. It takes as long whatever differs.
    #[must_use]
    pub(super) fn accepts(&self, shown: &[u8; 32], challenge: &[u8; 16], said: &[u8]) -> bool {
        let expected = self.answer(challenge, said);
        shown.iter().zip(expected).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}
