//! Shards of a text, or of a grid of experiments, each for a machine of its own.

use serde::{Deserialize, Serialize};

use crate::ranks::Collective;
use crate::{Error, Result};

/// The remedy for a shard that there is not.
const SHARD: &str = "use I/N with I from 0 to N − 1, and N of at most 65536";

/// The `index`-th (from 0) of `of` shards of a text (every `of`-th batch), or of a grid. All shards together are the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Which.
    pub index: usize,
    /// Of how many.
    pub of: usize,
}

impl Shard {
    /// All of it.
    pub const WHOLE: Self = Self { index: 0, of: 1 };
    /// Shards of one text, or of one grid, at most.
    pub const MOST: usize = 1 << 16;

    /// What a rank reads where several read one text.
    ///
    /// ```
    /// use tinyonn::imaging::Shard;
    /// use tinyonn::ranks::Threads;
    ///
    /// let dealt: Vec<Shard> = Threads::new(2).iter().map(|rank| Shard::of_rank(rank)).collect();
    /// assert_eq!(dealt, [Shard { index: 0, of: 2 }, Shard { index: 1, of: 2 }]);
    /// ```
    #[must_use]
    pub fn of_rank(ranks: &dyn Collective) -> Self {
        Self { index: ranks.rank(), of: ranks.ranks() }
    }

    pub(crate) fn check(self) -> Result<()> {
        if self.index < self.of && self.of <= Self::MOST {
            return Ok(());
        }
        Err(Error::setting("shard", format!("there is no shard {self}"), SHARD))
    }

    pub(crate) fn has(self, batch: usize) -> bool {
        batch % self.of == self.index
    }
}

impl Default for Shard {
    fn default() -> Self {
        Self::WHOLE
    }
}

impl std::str::FromStr for Shard {
    type Err = Error;

    /// `I/N`, I from 0 to N − 1.
    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split_once('/').map(|(index, of)| (index.parse(), of.parse()));
        let Some((Ok(index), Ok(of))) = numbers else {
            return Err(Error::setting("shard", format!("`{text}` is no shard"), SHARD));
        };
        let shard = Self { index, of };
        shard.check().map(|()| shard)
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}
