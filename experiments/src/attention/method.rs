//! The ways to choose keys that the study compares.

use serde::{Deserialize, Serialize};
use tinyonn::moe::{KeptPairs, PairIndex, PairsBy, PairsSpec};

/// How it is found which keys a query attends to.
///
/// ```
/// use experiments::attention::Method;
/// use tinyonn::moe::PairsBy;
///
/// let directions = Method::Directions { r: 16, by: PairsBy::KvHead };
/// assert_eq!(directions.name(), "directions_16, kv_head");
/// // Of heads of 64 values the index reads 16 of the 128 that a cache holds of a key.
/// assert_eq!(directions.index_bytes(64, 3), 0.125);
/// let pairs = directions.pairs(0.125, 32, 4);
/// assert_eq!((pairs.near, pairs.first, pairs.keys(4096)), (32, 4, 512));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// All keys.
    Dense,
    /// The r largest components of q (SparQ's index), by the library.
    Components {
        /// Components.
        r: usize,
        /// Whose choice it is.
        by: PairsBy,
    },
    /// The r main directions of the keys (Loki's index), by the library.
    Directions {
        /// Directions.
        r: usize,
        /// Whose choice it is.
        by: PairsBy,
    },
    /// The mean key of each block (MoBA), by the library.
    BlockMeans {
        /// Positions of a block.
        size: usize,
    },
    /// The bounds of a block's logits by its least and greatest components (Quest: Tang et al., 2024).
    MinMax {
        /// Positions of a block.
        size: usize,
    },
    /// What mass a block really has: a ceiling for blocks, which saves nothing.
    LargestMass {
        /// Positions of a block.
        size: usize,
    },
    /// The nearest keys and the first, by the library.
    Window,
    /// The largest logits, none kept anyway, by the library: a ceiling that is none, for studies.
    Exact,
    /// As published (Ribar et al., 2024): components of largest Σ |q| of a key head's queries, the nearest kept, and what is left out given back as its estimated share of the mean value.
    Sparq {
        /// Components.
        r: usize,
        /// Whether the mean value is given back.
        mean_value: bool,
    },
    /// A cache that keeps half of its room for the nearest keys and half for those of largest attention so far, and never takes back what it let go (H2O: Zhang et al., 2023).
    HeavyHitters,
    /// All keys of a cache whose keys and values are rounded to 8 bits, a scale a key head and position.
    EightBits,
}

impl Method {
    /// As records and tables name it.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Dense => "dense".into(),
            Self::Components { r, by } => format!("components_{r}, {}", by.word()),
            Self::Directions { r, by } => format!("directions_{r}, {}", by.word()),
            Self::BlockMeans { size } => format!("block_means_{size}"),
            Self::MinMax { size } => format!("min_max_{size}"),
            Self::LargestMass { size } => format!("largest_mass_{size}"),
            Self::Window => "window".into(),
            Self::Exact => "largest_logits, head".into(),
            Self::Sparq { r, mean_value: true } => format!("sparq_{r}"),
            Self::Sparq { r, mean_value: false } => format!("sparq_{r}, no mean value"),
            Self::HeavyHitters => "h2o".into(),
            Self::EightBits => "cache of 8 bits".into(),
        }
    }

    /// Whether a share of keys says anything of it.
    #[must_use]
    pub fn has_shares(self) -> bool {
        !matches!(self, Self::Dense | Self::EightBits)
    }

    /// Positions of a block, where blocks are chosen.
    pub(super) fn block(self) -> Option<usize> {
        match self {
            Self::BlockMeans { size } | Self::MinMax { size } | Self::LargestMass { size } => Some(size),
            _ => None,
        }
    }

    /// What the library computes at a share, or what comes nearest to it: how many keys are kept, which of them anyway, and whose choice it is. `near` and `first` are those of methods
    /// that do not say themselves what they keep.
    #[must_use]
    pub fn pairs(self, share: f64, near: usize, first: usize) -> PairsSpec {
        let of =
            |index, by, near, first| PairsSpec { near, first, by, ..PairsSpec::new(KeptPairs::Share(share), index) };
        match self {
            Self::Components { r, by } => of(PairIndex::Components(r), by, near, first),
            Self::Directions { r, by } => of(PairIndex::Directions(r), by, near, first),
            Self::BlockMeans { size } | Self::MinMax { size } | Self::LargestMass { size } => {
                of(PairIndex::Blocks(size), PairsBy::KvHead, near, first)
            }
            Self::Window => of(PairIndex::Window, PairsBy::KvHead, 0, first),
            Self::Sparq { r, .. } => of(PairIndex::Components(r), PairsBy::KvHead, near, 0),
            Self::Exact => of(PairIndex::Exact, PairsBy::Head, 0, 0),
            Self::Dense | Self::HeavyHitters | Self::EightBits => of(PairIndex::Exact, PairsBy::KvHead, 0, 0),
        }
    }

    /// What its index reads of a key's bytes in a dense cache of two bytes a number, in heads of `head_dim` values, `group` query heads to a key head.
    #[must_use]
    pub fn index_bytes(self, head_dim: usize, group: usize) -> f64 {
        let of = |values: usize| values as f64 / (2 * head_dim) as f64;
        match self {
            Self::Components { r, by: PairsBy::Head } => of((r * group).min(head_dim)),
            Self::Components { r, .. } | Self::Directions { r, .. } | Self::Sparq { r, .. } => of(r),
            Self::BlockMeans { size } => 0.5 / size as f64,
            Self::MinMax { size } => 1.0 / size as f64,
            Self::LargestMass { .. } | Self::Exact => 0.5,
            Self::Dense | Self::Window | Self::HeavyHitters | Self::EightBits => 0.0,
        }
    }

    /// What a row of a cache takes, of the two bytes a number of a dense one: a byte a number, and two for each scale.
    #[must_use]
    pub fn row_bytes(self, head_dim: usize) -> f64 {
        if self == Self::EightBits { 0.5 + 1.0 / head_dim as f64 } else { 1.0 }
    }
}
