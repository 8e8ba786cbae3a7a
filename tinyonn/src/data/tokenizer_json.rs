//! What a `tokenizer.json` must be before its engine reads it: the engine ends the process on some of what it does not expect there.

use serde::Deserialize;
use serde_json::{Map, Value};

/// The parts that are looked at. Held as values, their syntax, numbers and depth are sound.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
}

type Object = Map<String, Value>;

/// Refuses what is no JSON, and what the engine does not survive.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn check(json: &[u8]) -> Result<(), String> {
    let parts: Parts = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    each_object(&parts.normalizer, normalizer)?;
    each_object(&parts.post_processor, post_processor)?;
    each_object(&parts.decoder, decoder)
}

fn each_object(value: &Value, check: fn(&Object) -> Result<(), String>) -> Result<(), String> {
    match value {
        Value::Object(object) => {
            check(object)?;
            object.values().try_for_each(|value| each_object(value, check))
        }
        Value::Array(values) => values.iter().try_for_each(|value| each_object(value, check)),
        _ => Ok(()),
    }
}

fn is_called(object: &Object, name: &str) -> bool {
    object.get("type").is_some_and(|kind| kind == name)
}

/// A table of SentencePiece's, which no family of this library has, is followed wherever it leads.
fn normalizer(object: &Object) -> Result<(), String> {
    let precompiled = is_called(object, "Precompiled") || object.contains_key("precompiled_charsmap");
    if precompiled { Err("its normalizer is `Precompiled`, which is not read".into()) } else { Ok(()) }
}

/// A template of one text must name its own tokens and that text alone.
fn post_processor(object: &Object) -> Result<(), String> {
    let Some(pieces) = object.get("single").and_then(Value::as_array) else { return Ok(()) };
    let known = |name: &str| object.get("special_tokens").is_some_and(|tokens| tokens.get(name).is_some());
    for piece in pieces {
        let of = |kind: &str| piece.get(kind).and_then(|piece| piece.get("id")).and_then(Value::as_str);
        if let Some(name) = of("SpecialToken").filter(|name| !known(name)) {
            return Err(format!("its template has the token {name:?}, which is not among its `special_tokens`"));
        }
        if of("Sequence").is_some_and(|name| name != "A") {
            return Err("its template of one text reads a second one".into());
        }
    }
    Ok(())
}

/// Both look for an end that an empty text does not have.
fn decoder(object: &Object) -> Result<(), String> {
    if is_called(object, "BPEDecoder") {
        return Err("its decoder is `BPEDecoder`, which is not read".into());
    }
    match object.get("stop") {
        Some(stop) if stop != 0 => {
            Err(format!("its decoder strips the ends of tokens (`stop` = {stop}), which is not read"))
        }
        _ => Ok(()),
    }
}
