//! Which (query, key) pairs attention computes in a routed pass: all, or those that a cheap index promises most of (DESIGN §8).
//!
//! ```
//! use tinyonn::moe::{AttentionSpec, KeptPairs, PairIndex, PairsBy, PairsChosen, PairsSpec, Prefill, moe};
//!
//! /// The dense MLP, and an eighth of the pairs.
//! #[moe(attention = pairs(keep = 0.125, index = components(8)))]
//! struct Long;
//!
//! let pairs = PairsSpec::new(KeptPairs::Share(0.125), PairIndex::Components(8));
//! assert_eq!(Long::SPEC.attention, AttentionSpec::Pairs(pairs));
//! assert_eq!((pairs.near, pairs.first, pairs.by), (32, 4, PairsBy::KvHead));
//! assert_eq!((pairs.choose, pairs.prefill), (PairsChosen::TopK, Prefill::Dense));
//! assert!(AttentionSpec::default().is_dense() && Long::SPEC.levels.is_empty());
//! ```

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::words::words;

/// Which pairs attention computes in a routed pass; any other pass computes all. It is read from a table, `{ pairs = { .. } }`, or from the words of a declaration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionSpec {
    /// All causal pairs.
    #[default]
    Dense,
    /// Some keys a query.
    Pairs(PairsSpec),
}

/// How many keys a query attends to, and by what they are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairsSpec {
    /// How many keys are kept.
    pub keep: KeptPairs,
    /// What scores a pair before its logit is computed.
    pub index: PairIndex,
    /// So many keys next to the query are kept whatever their score, its own among them.
    #[serde(default = "near")]
    pub near: usize,
    /// So many keys at the beginning are kept whatever their score.
    #[serde(default = "first")]
    pub first: usize,
    /// Whose choice it is.
    #[serde(default)]
    pub by: PairsBy,
    /// What of the scores decides.
    #[serde(default)]
    pub choose: PairsChosen,
    /// Whether what a cache reads first chooses as well.
    #[serde(default)]
    pub prefill: Prefill,
}

/// n(t), the keys that the query at position t keeps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KeptPairs {
    /// ⌈share · (t + 1)⌉, 0 < share ≤ 1. Written as a number with a point.
    Share(f64),
    /// So many, or all that there are.
    Keys(usize),
}

/// What scores a pair: s(t, j), of the query q at position t and the key k at position j ≤ t.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PairIndex {
    /// The logit of so many components of largest |q| alone (SparQ).
    Components(usize),
    /// The logit of so many main directions of the keys alone, fitted on text (Loki).
    Directions(usize),
    /// The logit of the mean key of j's block of so many positions (Quest, MoBA).
    Blocks(usize),
    /// j: the nearest keys.
    Window,
    /// The logit itself: for studies.
    Exact,
}

words! {
    /// Whose choice the kept keys are.
    pub enum PairsBy {
        /// Each query head's own.
        Head = "head",
        /// One for all query heads that share a key head: the fewest rows of keys and values are read.
        KvHead = "kv_head",
    }

    /// What of the scores decides which keys are kept.
    pub enum PairsChosen {
        /// The n(t) largest, ties to the lower position.
        TopK = "top_k",
    }

    /// What the positions do that a cache reads first.
    pub enum Prefill {
        /// They attend to all.
        Dense = "dense",
        /// They choose as later ones do.
        Sparse = "sparse",
    }
}

impl Default for PairsBy {
    /// What a specification without the word means.
    fn default() -> Self {
        Self::KvHead
    }
}

impl Default for PairsChosen {
    /// What a specification without the word means.
    fn default() -> Self {
        Self::TopK
    }
}

impl Default for Prefill {
    /// What a specification without the word means.
    fn default() -> Self {
        Self::Dense
    }
}

/// The nearest keys that are kept unless said otherwise.
fn near() -> usize {
    PairsSpec::NEAR
}

/// The first keys that are kept unless said otherwise.
fn first() -> usize {
    PairsSpec::FIRST
}

impl AttentionSpec {
    /// Whether all pairs are computed, which goes without saying.
    #[must_use]
    pub fn is_dense(&self) -> bool {
        *self == Self::Dense
    }

    /// Whether the index reads the main directions of the keys, which are fitted on text.
    ///
    /// ```
    /// use tinyonn::moe::AttentionSpec;
    ///
    /// let reads = |text: &str| text.parse().map(|spec: AttentionSpec| spec.reads_directions());
    /// assert_eq!(reads("pairs(keep = 0.25, index = directions(16))"), Ok(true));
    /// assert_eq!(reads("pairs(keep = 0.25, index = components(16))"), Ok(false));
    /// ```
    #[must_use]
    pub fn reads_directions(&self) -> bool {
        self.pairs().is_some_and(|pairs| matches!(pairs.index, PairIndex::Directions(_)))
    }

    /// The pairs, if only some are computed.
    #[must_use]
    pub fn pairs(&self) -> Option<&PairsSpec> {
        match self {
            Self::Dense => None,
            Self::Pairs(pairs) => Some(pairs),
        }
    }
}

impl PairsSpec {
    const NEAR: usize = 32;
    const FIRST: usize = 4;

    /// So many pairs by this index, the rest as by default.
    #[must_use]
    pub const fn new(keep: KeptPairs, index: PairIndex) -> Self {
        let (near, first) = (Self::NEAR, Self::FIRST);
        let (by, choose, prefill) = (PairsBy::KvHead, PairsChosen::TopK, Prefill::Dense);
        Self { keep, index, near, first, by, choose, prefill }
    }

    /// How many keys a query keeps of the `seen` = t + 1 that it sees: n(t), and not fewer than `near` and `first` alone are.
    ///
    /// ```
    /// use tinyonn::moe::{KeptPairs, PairIndex, PairsSpec};
    ///
    /// let eighth = PairsSpec::new(KeptPairs::Share(0.125), PairIndex::Components(8));
    /// assert_eq!([20, 100, 1000, 1001].map(|seen| eighth.keys(seen)), [20, 36, 125, 126]);
    /// let few = PairsSpec { near: 1, first: 0, ..PairsSpec::new(KeptPairs::Keys(64), PairIndex::Window) };
    /// assert_eq!([20, 100].map(|seen| few.keys(seen)), [20, 64]);
    /// ```
    #[must_use]
    pub fn keys(&self, seen: usize) -> usize {
        let kept = match self.keep {
            // A product that is a whole number but for its rounding is that number.
            KeptPairs::Share(share) => (share * seen as f64 * (1.0 - 1e-12)).ceil() as usize,
            KeptPairs::Keys(keys) => keys,
        };
        kept.max(self.near.saturating_add(self.first)).min(seen)
    }

    /// Whether every query among the last `queries` of `positions` keeps all that it sees: then attention is the dense one.
    ///
    /// ```
    /// use tinyonn::moe::{KeptPairs, PairIndex, PairsSpec};
    ///
    /// let all = PairsSpec::new(KeptPairs::Share(1.0), PairIndex::Exact);
    /// let thousand = PairsSpec::new(KeptPairs::Keys(1000), PairIndex::Exact);
    /// assert!(all.keeps_all(9, 10_000) && thousand.keeps_all(1000, 1000) && !thousand.keeps_all(1, 1001));
    /// ```
    #[must_use]
    pub fn keeps_all(&self, queries: usize, positions: usize) -> bool {
        (positions.saturating_sub(queries)..positions).all(|t| self.keys(t + 1) == t + 1)
    }
}

impl<'de> Deserialize<'de> for AttentionSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AttentionVisitor)
    }
}

struct AttentionVisitor;

impl<'de> Visitor<'de> for AttentionVisitor {
    type Value = AttentionSpec;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`dense`, words like `pairs(keep = 0.125, index = components(8))`, or a table `pairs`")
    }

    fn visit_str<E: Error>(self, words: &str) -> Result<AttentionSpec, E> {
        words.parse().map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<AttentionSpec, A::Error> {
        /// The table.
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Table {
            Pairs(PairsSpec),
        }
        let Table::Pairs(pairs) = Table::deserialize(MapAccessDeserializer::new(map))?;
        Ok(AttentionSpec::Pairs(pairs))
    }
}

impl Serialize for KeptPairs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Share(share) => serializer.serialize_f64(*share),
            Self::Keys(keys) => serializer.collect_map([("keys", keys)]),
        }
    }
}

impl<'de> Deserialize<'de> for KeptPairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KeptVisitor)
    }
}

struct KeptVisitor;

impl<'de> Visitor<'de> for KeptVisitor {
    type Value = KeptPairs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a share with a point, such as 0.125, or a number of keys, { keys = 1024 }")
    }

    fn visit_f64<E: Error>(self, share: f64) -> Result<KeptPairs, E> {
        Ok(KeptPairs::Share(share))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<KeptPairs, E> {
        let share = if number == 1 { "`1.0` for all pairs" } else { "a share, such as `0.125`" };
        let keys = format!("`{{ keys = {number} }}` for so many keys a query");
        Err(E::custom(format!("`keep` is {number}, neither a share nor a number of keys; write {share}, or {keys}")))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<KeptPairs, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::custom(format!("`keep` is {number}; write a share, such as `0.125`"))),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<KeptPairs, A::Error> {
        let (Some(key), keys) = (map.next_key::<String>()?, map.next_value()?) else {
            return Err(A::Error::missing_field("keys"));
        };
        match (key.as_str(), map.next_key::<String>()?) {
            ("keys", None) => Ok(KeptPairs::Keys(keys)),
            (other, None) => Err(A::Error::unknown_field(other, &["keys"])),
            (_, Some(other)) => Err(A::Error::unknown_field(&other, &["keys"])),
        }
    }
}
