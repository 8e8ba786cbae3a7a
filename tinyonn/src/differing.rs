//! In which settings two differ.

use serde_json::{Map, Value};

/// The settings in which two differ, each with its path and both values.
pub(crate) fn differing<'a>(a: &'a Value, b: &'a Value) -> Vec<(String, &'a Value, &'a Value)> {
    fn walk<'a>(name: &str, a: &'a Value, b: &'a Value, found: &mut Vec<(String, &'a Value, &'a Value)>) {
        match (a, b) {
            (Value::Object(own), Value::Object(other)) => {
                let behind = other.keys().filter(|key| !own.contains_key(*key));
                for key in own.keys().chain(behind) {
                    let at = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                    let of = |object: &'a Map<String, Value>| object.get(key).unwrap_or(&Value::Null);
                    walk(&at, of(own), of(other), found);
                }
            }
            _ if a == b => {}
            _ => found.push((name.to_owned(), a, b)),
        }
    }
    let mut found = Vec::new();
    walk("", a, b, &mut found);
    found
}
