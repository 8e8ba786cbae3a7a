//! Which pairs attention computes, as written: `attention = pairs(keep = 0.125, index = components(8), ..)`.

use tinyonn_spec::{AttentionSpec, KeptPairs, PairIndex, PairsBy, PairsChosen, PairsSpec, Prefill};

use super::settings::{Call, Settings, count, real, word};
use crate::errors::Errors;
use crate::parse::{Argument, Value};

/// What attention can compute.
pub(crate) const ATTENTION: [&str; 2] = ["pairs", "dense"];
/// What can be said of `pairs`.
pub(crate) const PAIRS: [&str; 7] = ["keep", "index", "near", "first", "by", "choose", "prefill"];
/// What can score a pair.
pub(crate) const INDICES: [&str; 5] = ["components", "directions", "blocks", "window", "exact"];

/// What stands where `pairs` or one of its arguments could not be read: no rule objects to it.
pub(super) const STAND_IN: PairsSpec = PairsSpec::new(KeptPairs::Share(1.0), PairIndex::Exact);

pub(super) fn attention(key: &str, value: &Value, errors: &mut Errors) -> Option<AttentionSpec> {
    let call = Call::of(key, value, &ATTENTION, errors)?;
    if call.word == "dense" {
        return call.without_arguments(key, errors).map(|()| AttentionSpec::Dense);
    }
    let mut named = Vec::new();
    for argument in call.arguments {
        match argument {
            Argument::Named(setting) => named.push(setting),
            Argument::Plain(value) => {
                errors.on(
                    value,
                    "this argument of `pairs` has no name; write `pairs(keep = 0.125, index = components(8))`",
                );
            }
        }
    }
    let given = Settings::new(named.into_iter(), "argument of `pairs`", &PAIRS, &[], errors);
    for (name, add) in [
        ("keep", "keep = 0.125`, the share of keys that a query keeps, or `keep = keys(1024)`"),
        ("index", "index = components(8)`, what scores a key"),
    ] {
        if !given.is_meant(name) {
            errors.on(value, format!("`{name}` of `pairs` is missing; add `{add}"));
        }
    }
    let mut pairs = STAND_IN;
    given.set("keep", &mut pairs.keep, errors, keep);
    given.set("index", &mut pairs.index, errors, index);
    given.set("near", &mut pairs.near, errors, count);
    given.set("first", &mut pairs.first, errors, count);
    given.set("by", &mut pairs.by, errors, word(&PairsBy::ALL));
    given.set("choose", &mut pairs.choose, errors, word(&PairsChosen::ALL));
    given.set("prefill", &mut pairs.prefill, errors, word(&Prefill::ALL));
    Some(AttentionSpec::Pairs(pairs))
}

/// A share, which has a point, or a number of keys.
fn keep(key: &str, value: &Value, errors: &mut Errors) -> Option<KeptPairs> {
    match value {
        Value::Real(_) => real(key, value, "keep = 0.125", errors).map(KeptPairs::Share),
        Value::Number(number) => {
            let share = if number.base10_digits() == "1" {
                "`keep = 1.0` for all pairs"
            } else {
                "a share, such as `keep = 0.125`"
            };
            let keys = format!("`keep = keys({number})` for so many keys a query");
            let problem = format!("`keep = {number}` is neither a share nor a number of keys");
            errors.on(number, format!("{problem}; write {share}, or {keys}"));
            None
        }
        Value::Word { .. } | Value::Path(_) => {
            let call = Call::of(key, value, &["keys"], errors)?;
            let keys = call.argument("the keys that a query keeps", "keys(1024)", errors)?;
            count("keys", keys, errors).map(KeptPairs::Keys)
        }
        other => {
            errors.on(other, "`keep` takes a share or a number of keys; write `keep = 0.125`, or `keep = keys(1024)`");
            None
        }
    }
}

fn index(key: &str, value: &Value, errors: &mut Errors) -> Option<PairIndex> {
    let call = Call::of(key, value, &INDICES, errors)?;
    match call.word {
        "components" => {
            let r = call.argument("the components of a query that are read", "components(8)", errors)?;
            count(call.word, r, errors).map(PairIndex::Components)
        }
        "directions" => {
            let r = call.argument("the directions of keys that are read", "directions(16)", errors)?;
            count(call.word, r, errors).map(PairIndex::Directions)
        }
        "blocks" => {
            let size = call.argument("the positions of a block", "blocks(16)", errors)?;
            count(call.word, size, errors).map(PairIndex::Blocks)
        }
        word => {
            call.without_arguments(key, errors)?;
            Some(if word == "exact" { PairIndex::Exact } else { PairIndex::Window })
        }
    }
}
