//! Settings: flags over a TOML file.
//!
//! A binary declares one struct of `Option`s that is both its flags (`clap::Args`) and its file (`Deserialize` with
//! `deny_unknown_fields`); [`RunFlags`](crate::RunFlags) and [`OutFlags`](crate::OutFlags) are flattened into it. A key of the file
//! is the flag's name, with `_` for `-`; a flag that is given wins.
//!
//! ```
//! #[derive(Default, serde::Serialize, serde::Deserialize)]
//! #[serde(deny_unknown_fields, default)]
//! struct Settings {
//!     seed: Option<u64>,
//!     min_k: Option<usize>,
//! }
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let file = dir.path().join("run.toml");
//! std::fs::write(&file, "seed = 1\nmin_k = 5").unwrap();
//! let flags = Settings { seed: Some(2), min_k: None };
//! let settings = experiments::settings::over_file(&flags, Some(&file))?;
//! assert_eq!((settings.seed, settings.min_k), (Some(2), Some(5)));
//! # Ok::<(), tinyonn::Error>(())
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tinyonn::{Error, Result};
use toml::Spanned;

/// The settings of `file`, each replaced by the flag of the same name where `flags` has it.
///
/// # Errors
/// A file that cannot be read or is not TOML; a key that is unknown or of the wrong type. The error names file, line and key.
pub fn over_file<S: Serialize + DeserializeOwned>(flags: &S, file: Option<&Path>) -> Result<S> {
    let mut merged = file.map_or(Ok(Value::Object(Map::new())), read_keys::<S>)?;
    overlay(&mut merged, serde_json::to_value(flags).map_err(defect)?);
    serde_json::from_value(merged).map_err(defect)
}

/// `base` with the keys of `file` over it, tables key by key, and the flags that were given over both.
///
/// # Errors
/// A file that cannot be read or is not TOML; a key that is unknown or of the wrong type. The error names file, line and key.
pub fn layered<S: Serialize + DeserializeOwned>(base: &S, file: Option<&Path>, flags: &impl Serialize) -> Result<S> {
    let mut settings = serde_json::to_value(base).map_err(defect)?;
    if let Some(path) = file {
        // A pipe is read once. Parsed once for its errors, which name the line; once for the keys that it really has.
        let text = text(path)?;
        parsed::<S>(path, &text)?;
        let keys = parsed::<Value>(path, &text)?;
        refuse_null(path, "", &keys)?;
        overlay(&mut settings, keys);
    }
    overlay(&mut settings, serde_json::to_value(flags).map_err(defect)?);
    serde_json::from_value(settings).map_err(defect)
}

/// TOML has no null: what JSON shows as one is a number that it cannot hold.
fn refuse_null(path: &Path, name: &str, value: &Value) -> Result<()> {
    match value {
        Value::Null => Err(Error::file(path, format!("`{name}` is not a finite number"), "give a finite one")),
        Value::Object(object) => object
            .iter()
            .try_for_each(|(key, value)| refuse_null(path, format!("{name}.{key}").trim_start_matches('.'), value)),
        _ => Ok(()),
    }
}

fn overlay(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            // What was not given leaves no key where there was none: settings leave out what has its default.
            for (key, value) in over.into_iter().filter(|(_, value)| !value.is_null()) {
                // Its name in earlier files, when there was one rule.
                let earlier = key == "adamw" && under.contains_key("optimizer");
                let key = if earlier { "optimizer".to_owned() } else { key };
                overlay(under.entry(key).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (under, over) => *under = over,
    }
}

/// A setting that has no default.
///
/// # Errors
/// It was given neither as the flag `--name` nor as a key of the file.
pub fn required<T>(value: Option<T>, name: &str) -> Result<T> {
    value.ok_or_else(|| {
        let key = name.replace('-', "_");
        let remedy = format!("give it, or `{key}` in a file with --config; see --help");
        Error::setting(format!("--{name}"), "it is needed and was not given", remedy)
    })
}

/// A setting that is one of a few words, as configurations spell them; its default where it was not given.
///
/// ```
/// use experiments::settings::word;
/// use tinyonn::imaging::Norm;
/// assert_eq!(word::<Norm>("norm", Some("log1p"))?, Norm::Log1p);
/// assert_eq!(word::<Norm>("norm", None)?, Norm::Layer);
/// let error = word::<Norm>("norm", Some("batch")).unwrap_err().to_string();
/// assert!(error.starts_with("`--norm`") && error.contains("`layer`, `global`, `log1p`"));
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// Another word; the error lists those there are.
pub fn word<T: DeserializeOwned + Default>(name: &str, text: Option<&str>) -> Result<T> {
    let Some(text) = text else { return Ok(T::default()) };
    let unknown = |e: serde_json::Error| Error::setting(format!("--{name}"), e.to_string(), "use one of those");
    serde_json::from_value(Value::String(text.to_owned())).map_err(unknown)
}

/// The keys of a file for `S`, each tried by itself: what is flattened into a struct is read from a copy that no longer knows its
/// line.
fn read_keys<S: DeserializeOwned>(path: &Path) -> Result<Value> {
    let text = text(path)?;
    let keys: BTreeMap<Spanned<String>, toml::Value> =
        toml::from_str(&text).map_err(|e| refused(path, &text, e.span(), e.message()))?;
    let mut values = Map::new();
    for (key, value) in keys {
        let one = toml::Table::from_iter([(key.get_ref().clone(), value.clone())]);
        S::deserialize(one).map_err(|e| refused(path, &text, Some(key.span()), e.message()))?;
        values.insert(key.into_inner(), serde_json::to_value(value).map_err(defect)?);
    }
    let values = Value::Object(values);
    refuse_null(path, "", &values)?;
    Ok(values)
}

fn text(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

fn parsed<S: DeserializeOwned>(path: &Path, text: &str) -> Result<S> {
    toml::from_str(text).map_err(|e| refused(path, text, e.span(), e.message()))
}

fn refused(path: &Path, text: &str, at: Option<Range<usize>>, message: &str) -> Error {
    let line = at.map_or(1, |span| text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1);
    let problem = format!("line {line}: {}", message.lines().collect::<Vec<_>>().join(" "));
    Error::file(path, problem, "see --help for the settings; keys are the flags' names with `_` for `-`")
}

// By value, to be mapped over.
#[allow(clippy::needless_pass_by_value)]
fn defect(e: serde_json::Error) -> Error {
    Error::setting("settings", e.to_string(), "report this as a defect")
}
