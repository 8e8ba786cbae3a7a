//! What attention computes, as a text says it: in the words of `#[moe(..)]`, for flags of programs.
//!
//! ```
//! use tinyonn::moe::{AttentionSpec, KeptPairs, PairIndex, PairsBy, PairsSpec};
//!
//! let said = "pairs(keep = 0.125, index = directions(16), by = head)".parse::<AttentionSpec>()?;
//! let pairs = PairsSpec::new(KeptPairs::Share(0.125), PairIndex::Directions(16));
//! assert_eq!(said, AttentionSpec::Pairs(PairsSpec { by: PairsBy::Head, ..pairs }));
//! assert_eq!(said.to_string(), "pairs(keep = 0.125, index = directions(16), near = 32, first = 4, by = head)");
//! assert_eq!("dense".parse(), Ok(AttentionSpec::Dense));
//! let refused = "pairs(keep = 1, index = window)".parse::<AttentionSpec>().unwrap_err();
//! assert!(refused.contains("`keep = 1.0`") && refused.contains("`keep = keys(1)`"));
//! # Ok::<(), String>(())
//! ```

use std::fmt;
use std::str::FromStr;

use crate::{AttentionSpec, KeptPairs, PairIndex, PairsSpec, Prefill, Word};

/// How it is written.
const EXAMPLE: &str = "pairs(keep = 0.125, index = components(8))";
/// What can be said of `pairs`.
const NAMES: [&str; 7] = ["keep", "index", "near", "first", "by", "choose", "prefill"];

impl FromStr for AttentionSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (word, inner) = call(text)?;
        match (word, inner) {
            ("dense", None) => Ok(Self::Dense),
            ("pairs", Some(inner)) => pairs(inner).map(Self::Pairs),
            _ => Err(format!("`{}` is neither `dense` nor like `{EXAMPLE}`", text.trim())),
        }
    }
}

/// As a declaration says it, all but how keys are chosen and a prefill that is dense.
impl fmt::Display for AttentionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Pairs(PairsSpec { keep, index, near, first, by, choose: _, prefill }) = self else {
            return f.write_str("dense");
        };
        match keep {
            // With a point, whatever the number.
            KeptPairs::Share(share) => write!(f, "pairs(keep = {share:?}, ")?,
            KeptPairs::Keys(keys) => write!(f, "pairs(keep = keys({keys}), ")?,
        }
        match index {
            PairIndex::Components(r) => write!(f, "index = components({r})")?,
            PairIndex::Directions(r) => write!(f, "index = directions({r})")?,
            PairIndex::Blocks(size) => write!(f, "index = blocks({size})")?,
            PairIndex::Window => f.write_str("index = window")?,
            PairIndex::Exact => f.write_str("index = exact")?,
        }
        let prefill = if *prefill == Prefill::Sparse { ", prefill = sparse" } else { "" };
        write!(f, ", near = {near}, first = {first}, by = {}{prefill})", by.word())
    }
}

fn pairs(inner: &str) -> Result<PairsSpec, String> {
    let mut given: Vec<(&str, &str)> = Vec::new();
    for argument in arguments(inner) {
        let Some((name, value)) = argument.split_once('=') else {
            return Err(format!("`{}` of `pairs` has no name; write `{EXAMPLE}`", argument.trim()));
        };
        let (name, value) = (name.trim(), value.trim());
        if !NAMES.contains(&name) {
            return Err(format!("`pairs` has no `{name}`; it has `{}`", NAMES.join("`, `")));
        }
        if given.iter().any(|(other, _)| *other == name) {
            return Err(format!("`{name}` of `pairs` is said twice; say it once"));
        }
        given.push((name, value));
    }
    let value = |name: &str| given.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
    let needed = |name: &str| value(name).ok_or_else(|| format!("`{name}` of `pairs` is missing; write `{EXAMPLE}`"));
    let mut pairs = PairsSpec::new(keep(needed("keep")?)?, index(needed("index")?)?);
    for (name, place) in [("near", &mut pairs.near), ("first", &mut pairs.first)] {
        if let Some(value) = value(name) {
            *place = count(name, value)?;
        }
    }
    set("by", value("by"), &mut pairs.by)?;
    set("choose", value("choose"), &mut pairs.choose)?;
    set("prefill", value("prefill"), &mut pairs.prefill)?;
    Ok(pairs)
}

/// A share, which has a point, or a number of keys.
fn keep(value: &str) -> Result<KeptPairs, String> {
    if let ("keys", Some(keys)) = call(value)? {
        return count("keys", keys).map(KeptPairs::Keys);
    }
    if value.parse::<u64>().is_ok() {
        let share = if value == "1" { "`keep = 1.0` for all pairs" } else { "a share, such as `keep = 0.125`" };
        return Err(format!(
            "`keep = {value}` is neither a share nor a number of keys; write {share}, or `keep = keys({value})` for so many keys a query"
        ));
    }
    let share = value.parse().ok().filter(|share: &f64| share.is_finite());
    share.map(KeptPairs::Share).ok_or_else(|| {
        format!("`keep = {value}` is no share; write `keep = 0.125`, or `keep = keys(1024)` for so many keys a query")
    })
}

fn index(value: &str) -> Result<PairIndex, String> {
    match call(value)? {
        ("components", Some(r)) => count("components", r).map(PairIndex::Components),
        ("directions", Some(r)) => count("directions", r).map(PairIndex::Directions),
        ("blocks", Some(size)) => count("blocks", size).map(PairIndex::Blocks),
        ("window", None) => Ok(PairIndex::Window),
        ("exact", None) => Ok(PairIndex::Exact),
        _ => {
            let known = "`components(8)`, `directions(16)`, `blocks(16)`, `window`, `exact`";
            Err(format!("`index = {value}` is none; use one of {known}"))
        }
    }
}

fn count(name: &str, value: &str) -> Result<usize, String> {
    value.trim().parse().map_err(|_| format!("`{}` of `{name}` is no whole number; write one", value.trim()))
}

fn set<W: Word>(name: &str, value: Option<&str>, place: &mut W) -> Result<(), String> {
    let Some(value) = value else { return Ok(()) };
    let words = || W::ALL.iter().map(|word| word.word()).collect::<Vec<_>>().join("`, `");
    let found = W::ALL.iter().find(|word| word.word() == value);
    *place = *found.ok_or_else(|| format!("`{name} = {value}` is not known; use one of `{}`", words()))?;
    Ok(())
}

/// A word, and what stands in its brackets, if it has any.
fn call(text: &str) -> Result<(&str, Option<&str>), String> {
    let text = text.trim();
    let Some((word, rest)) = text.split_once('(') else { return Ok((text, None)) };
    match rest.strip_suffix(')') {
        Some(inner) => Ok((word.trim(), Some(inner))),
        None => Err(format!("`{text}` does not end with a bracket; close it")),
    }
}

/// What commas divide that stand in no brackets; behind the last may stand nothing.
fn arguments(text: &str) -> Vec<&str> {
    let mut depth = 0usize;
    let divides = |c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => (),
        }
        c == ',' && depth == 0
    };
    text.split(divides).filter(|argument| !argument.trim().is_empty()).collect()
}
