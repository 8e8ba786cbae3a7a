//! What the rows of a pass were made from and with: the record in the file of a shard ([`PassFile`](super::PassFile)), which decides whether files add up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::fitting::LabelSet;
use crate::imaging::Shard;

/// The format of files of passes.
pub(super) const FORMAT: u64 = 1;

/// Passes over the text of a run that make rows; what each makes of a shard is a file of its own, named like the pass.
///
/// ```
/// use tinyonn::phases::{LabelSet, RowPass};
/// assert_eq!([RowPass::Inputs, RowPass::Losses].map(|pass| pass.to_string()), ["inputs", "losses"]);
/// assert_eq!(RowPass::Refit { round: 1, set: LabelSet::Random(2) }.to_string(), "refit-1-random-2");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RowPass {
    /// What routers see of each split.
    Inputs,
    /// The labels that tokens have of their own.
    Labels,
    /// What routers that are fitted to a set of labels see of training and validation text once they route.
    Refit {
        /// From 1: what the fit of the round before routes by is seen.
        round: usize,
        /// Whose labels they were fitted to.
        set: LabelSet,
    },
    /// The losses of the test text's tokens.
    Losses,
}

impl fmt::Display for RowPass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inputs => f.write_str("inputs"),
            Self::Labels => f.write_str("labels"),
            Self::Losses => f.write_str("losses"),
            Self::Refit { round, set } => write!(f, "refit-{round}-{set}"),
        }
    }
}

/// What the rows were made from and with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    format: u64,
    version: String,
    pub(super) pass: RowPass,
    /// All that decides the rows, by name.
    pub(super) of: BTreeMap<String, String>,
    /// What passes computed in.
    pub(super) dtype: String,
    /// What they computed on.
    pub(super) devices: BTreeSet<String>,
    pub(super) shards: Vec<Shard>,
    /// How classes count in the scatter, where there is any.
    pub(super) by_rows: Option<bool>,
    /// The pass that the run makes next, if there is one; it decides no rows.
    pub(super) then: Option<String>,
}

/// What decides rows by itself, by its name in [`Record::of`]: named before what follows from it.
const CAUSES: [&str; 4] = [MODEL, TEXT, LENGTH, TEST_TEXT];
/// The model's SHA-256.
pub(super) const MODEL: &str = "model";
/// The SHA-256 of all splits.
pub(super) const TEXT: &str = "text, seed or split";
/// How it is read.
pub(super) const LENGTH: &str = "length, batch or scan_tokens";
/// The SHA-256 of what losses are taken over.
pub(super) const TEST_TEXT: &str = "test text, or test_tokens";

impl Record {
    pub(super) fn new(
        pass: RowPass,
        of: BTreeMap<String, String>,
        (dtype, device, shard): (&str, String, Shard),
    ) -> Self {
        let (dtype, version, shards) = (dtype.to_owned(), env!("CARGO_PKG_VERSION").into(), vec![shard]);
        Self { format: FORMAT, version, pass, of, dtype, devices: [device].into(), shards, by_rows: None, then: None }
    }

    /// What this record has other than `other`, in words; of what passes computed in and on nothing, if `mixed`.
    pub(super) fn differs_from(&self, other: &Self, mixed: bool) -> Option<String> {
        if self.pass != other.pass {
            return Some(format!("pass ({} and {})", self.pass, other.pass));
        }
        if self.version != other.version {
            return Some(format!("version of this program ({} and {})", self.version, other.version));
        }
        let names: BTreeSet<&str> = self.of.keys().chain(other.of.keys()).map(String::as_str).collect();
        let mut causes_first = CAUSES.into_iter().chain(names);
        if let Some(name) = causes_first.find(|name| self.of.get(*name) != other.of.get(*name)) {
            return Some(name.to_owned());
        }
        let joined = |devices: &BTreeSet<String>| devices.iter().cloned().collect::<Vec<_>>().join(" and ");
        let [own, others] = [self, other].map(|record| joined(&record.devices));
        match mixed {
            false if self.dtype != other.dtype => Some(format!("dtype ({} and {})", self.dtype, other.dtype)),
            false if own != others => Some(format!("device ({own} and {others})")),
            _ => None,
        }
    }

    /// The shards that are not here.
    pub(super) fn missing(&self) -> Vec<Shard> {
        let of = self.shards.first().map_or(0, |shard| shard.of);
        (0..of).map(|index| Shard { index, of }).filter(|shard| !self.shards.contains(shard)).collect()
    }

    pub(super) fn is_possible(&self) -> bool {
        let of = self.shards.first().map_or(0, |shard| shard.of);
        let distinct: BTreeSet<usize> = self.shards.iter().map(|shard| shard.index).collect();
        of > 0
            && distinct.len() == self.shards.len()
            && self.shards.iter().all(|shard| shard.of == of && shard.check().is_ok())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn record(index: usize) -> Record {
        let of = [("model".to_owned(), "m".to_owned()), ("text, seed or split".to_owned(), "t".to_owned())].into();
        Record::new(RowPass::Losses, of, ("f32", "cpu".into(), Shard { index, of: 2 }))
    }

    /// What differs is named, what passes computed in and on unless that is allowed; which shard it is, and what comes next, decide nothing.
    #[rstest]
    #[case::another_shard(|other: &mut Record| (other.shards, other.then) = (vec![Shard { index: 1, of: 2 }], Some("x".into())), [None, None])]
    #[case::pass(|other: &mut Record| other.pass = RowPass::Inputs, [Some("pass (losses and inputs)"); 2])]
    #[case::round(
        |other: &mut Record| other.pass = RowPass::Refit { round: 2, set: LabelSet::Own },
        [Some("pass (losses and refit-2-own)"); 2]
    )]
    #[case::version(|other: &mut Record| other.version = "9.0.0".into(), [Some(concat!("version of this program (", env!("CARGO_PKG_VERSION"), " and 9.0.0)")); 2])]
    #[case::model(|other: &mut Record| drop(other.of.insert("model".into(), "n".into())), [Some("model"); 2])]
    #[case::model_and_what_follows(
        |other: &mut Record| other.of.extend([("model", "n"), ("labels", "l")].map(|(name, value)| (name.into(), value.into()))),
        [Some("model"); 2]
    )]
    #[case::text(|other: &mut Record| drop(other.of.remove("text, seed or split")), [Some("text, seed or split"); 2])]
    #[case::dtype(|other: &mut Record| other.dtype = "bf16".into(), [Some("dtype (f32 and bf16)"), None])]
    #[case::device(|other: &mut Record| other.devices = ["H200".to_owned()].into(), [Some("device (cpu and H200)"), None])]
    fn what_differs_is_named(#[case] change: impl Fn(&mut Record), #[case] named: [Option<&str>; 2]) {
        let mut other = record(0);
        change(&mut other);
        // Strictly, and where kinds of device and types may be mixed.
        assert_eq!(
            [false, true].map(|mixed| record(0).differs_from(&other, mixed)),
            named.map(|name| name.map(str::to_owned))
        );
    }

    #[test]
    fn shards_that_cannot_be_are_no_record() {
        let of = |shards: &[(usize, usize)]| {
            let shards = shards.iter().map(|(index, of)| Shard { index: *index, of: *of }).collect();
            Record { shards, ..record(0) }
        };
        assert!(of(&[(1, 3), (0, 3)]).is_possible());
        assert_eq!(of(&[(1, 3), (0, 3)]).missing(), [Shard { index: 2, of: 3 }]);
        for shards in [&[(0, 2), (0, 2)][..], &[(0, 2), (1, 3)], &[(2, 2)], &[]] {
            assert!(!of(shards).is_possible(), "{shards:?}");
        }
    }
}
