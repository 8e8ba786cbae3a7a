//! JSON records, questions on their fields, and records written out from `key=value` pairs.

use rand::Rng as _;
use serde_json::{Map, Value};

use super::{generate, pick};
use crate::data::Task;
use crate::random::Rng;

const NAMES: [&str; 24] = [
    "Ada", "Amir", "Bela", "Chen", "Dora", "Elif", "Femi", "Greta", "Hugo", "Ines", "Jonas", "Kemal", "Lena", "Mira",
    "Noor", "Olga", "Pablo", "Qing", "Rosa", "Samir", "Tove", "Uma", "Viktor", "Yara",
];
const CITIES: [&str; 16] = [
    "Accra", "Bergen", "Cusco", "Dakar", "Essen", "Fes", "Genoa", "Hanoi", "Izmir", "Jaipur", "Kyoto", "Lima", "Malmo",
    "Nairobi", "Oslo", "Quito",
];
const COLORS: [&str; 8] = ["amber", "black", "blue", "green", "grey", "red", "violet", "white"];

/// The task `records`: about `bytes` of blocks such as
///
/// ```text
/// {"id":17,"name":"Ada","city":"Oslo","age":41,"colors":["red","blue"]}
/// city of 17 -> "Oslo"
/// colors of 17 -> ["red","blue"]
/// id=902 name=Chen active=true -> {"id":902,"name":"Chen","active":true}
/// ```
///
/// Every answer and every record is JSON; a question is about the last record of that id in its document.
pub fn records(seed: u64, bytes: usize) -> Task {
    generate("records", seed, bytes, block)
}

/// One to three records and questions on them, or one conversion.
fn block(rng: &mut Rng, lines: &mut Vec<String>) {
    if rng.random_bool(0.5) {
        let record = record(rng, false);
        let pairs: Vec<String> = record.iter().map(|(key, value)| format!("{key}={}", bare(value))).collect();
        lines.push(format!("{} -> {}", pairs.join(" "), Value::Object(record)));
        return;
    }
    let mut known: Vec<Map<String, Value>> = Vec::new();
    for _ in 0..rng.random_range(1..=3) {
        let record = record(rng, true);
        // A second record of one id would leave its questions in doubt.
        if known.iter().all(|other| other.get("id") != record.get("id")) {
            lines.push(Value::Object(record.clone()).to_string());
            known.push(record);
        }
    }
    for _ in 0..rng.random_range(2..=4) {
        let record = pick(rng, &known);
        let fields: Vec<(&String, &Value)> = record.iter().collect();
        // The id comes first and is the key, not an answer.
        let (field, answer) = pick(rng, &fields[1..]);
        lines.push(format!("{field} of {} -> {answer}", record["id"]));
    }
}

/// An id and two fields or more; `lists` also allows a field that holds several values.
fn record(rng: &mut Rng, lists: bool) -> Map<String, Value> {
    let mut record = Map::new();
    record.insert("id".into(), rng.random_range(1..1000).into());
    record.insert("name".into(), (*pick(rng, &NAMES)).into());
    if rng.random_bool(0.7) {
        record.insert("city".into(), (*pick(rng, &CITIES)).into());
    }
    if rng.random_bool(0.6) || record.len() == 2 {
        record.insert("age".into(), rng.random_range(18..90).into());
    }
    if rng.random_bool(0.4) {
        record.insert("active".into(), rng.random_bool(0.5).into());
    }
    if lists && rng.random_bool(0.5) {
        let colors: Vec<Value> = (0..rng.random_range(0..=3)).map(|_| (*pick(rng, &COLORS)).into()).collect();
        record.insert("colors".into(), colors.into());
    }
    record
}

/// A value without JSON's quotes.
fn bare(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
