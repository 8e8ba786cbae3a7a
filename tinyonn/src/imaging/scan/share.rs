//! Shares of a text, which several machines may read.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The remedy for a share that there is not.
const SHARE: &str = "use I/N with I from 0 to N − 1";

/// The `index`-th (from 0) of `of` shares of a text: every `of`-th batch. All shares together are the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Which.
    pub index: usize,
    /// Of how many.
    pub of: usize,
}

impl Share {
    /// All of it.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    pub(super) fn check(self) -> Result<()> {
        if self.index < self.of {
            return Ok(());
        }
        Err(Error::setting("share", format!("there is no share {self}"), SHARE))
    }

    pub(super) fn has(self, batch: usize) -> bool {
        batch % self.of == self.index
    }
}

impl Default for Share {
    fn default() -> Self {
        Self::WHOLE
    }
}

impl std::str::FromStr for Share {
    type Err = Error;

    /// `I/N`, I from 0 to N − 1.
    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split_once('/').map(|(index, of)| (index.parse(), of.parse()));
        let Some((Ok(index), Ok(of))) = numbers else {
            return Err(Error::setting("share", format!("`{text}` is no share"), SHARE));
        };
        let share = Self { index, of };
        share.check().map(|()| share)
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}
