//! Settings by name, and the values they take.

use proc_macro2::{Ident, Span};
use syn::LitInt;

use super::MOST;
use crate::errors::Errors;
use crate::keywords::Keyword;
use crate::parse::{Argument, Setting, Value};

/// The settings by name, each known and given once.
pub(crate) struct Settings<'a> {
    given: Vec<(&'a Ident, Option<&'a Value>)>,
    /// What unknown names were probably meant to be: not missing besides.
    meant: Vec<&'a str>,
}

impl<'a> Settings<'a> {
    /// Of `known` names; those in `flags` have no value, the others have.
    pub(super) fn new(
        all: impl Iterator<Item = &'a Setting>,
        what: &str,
        known: &'a [&'a str],
        flags: &[&str],
        errors: &mut Errors,
    ) -> Self {
        let mut settings = Self { given: Vec::new(), meant: Vec::new() };
        for Setting { key, value } in all {
            let is_flag = flags.iter().any(|flag| key == flag);
            if !known.iter().any(|known| key == known) {
                settings.meant.extend(errors.unknown(key, what, known));
            } else if settings.is_given(&key.to_string()) {
                errors.at(key.span(), format!("`{key}` is given twice; keep one"));
            } else {
                let value = match value {
                    Some(Value::Flag(_)) if !is_flag => {
                        errors.at(key.span(), format!("`{key}` has no value; write `{key} = ..`"));
                        None
                    }
                    Some(Value::Flag(_)) | None => value.as_ref(),
                    Some(value) if is_flag => {
                        errors.on(value, format!("`{key}` takes no value; write `{key}` alone"));
                        None
                    }
                    Some(value) => Some(value),
                };
                settings.given.push((key, value));
            }
        }
        settings
    }

    /// Whether `key` is given, readable or not.
    pub(super) fn is_given(&self, key: &str) -> bool {
        self.key(key).is_some()
    }

    /// `key` where it is given.
    pub(super) fn key(&self, key: &str) -> Option<&'a Ident> {
        self.given.iter().find(|(given, _)| *given == key).map(|(given, _)| *given)
    }

    /// Whether `key` is given, or what it was probably meant to be.
    pub(super) fn is_meant(&self, key: &str) -> bool {
        self.is_given(key) || self.meant.contains(&key)
    }

    /// The value of `key`, if it is given and could be read.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.given.iter().find(|(given, _)| *given == key).and_then(|(_, value)| *value)
    }

    /// `key` as `read` understands it, or `default` if it is not given. `None`: it is wrong, which has been said.
    pub(super) fn or<T>(
        &self,
        key: &str,
        default: T,
        errors: &mut Errors,
        read: impl FnOnce(&str, &'a Value, &mut Errors) -> Option<T>,
    ) -> Option<T> {
        if self.is_given(key) { read(key, self.value(key)?, errors) } else { Some(default) }
    }

    /// The number `key`, which has no default: an error at `span` says what to add if it is missing.
    pub(super) fn required(&self, key: &str, what: &str, span: Span, errors: &mut Errors) -> Option<usize> {
        if !self.is_meant(key) {
            errors.at(span, format!("`{key}` is missing; add `{key} = 10`, {what}"));
        }
        count(key, self.value(key)?, errors)
    }
}

/// A number of one or more.
pub(super) fn count(key: &str, value: &Value, errors: &mut Errors) -> Option<usize> {
    match value {
        Value::Number(number) => whole(key, number, errors),
        Value::Real(number) => {
            errors.on(number, format!("`{number}` is not a whole number; write one without a point"));
            None
        }
        other => {
            errors.on(other, format!("`{key}` takes a number; write `{key} = 10`"));
            None
        }
    }
}

fn whole(key: &str, number: &LitInt, errors: &mut Errors) -> Option<usize> {
    if !number.suffix().is_empty() {
        let digits = number.base10_digits();
        errors.on(number, format!("`{number}` has a suffix; write `{digits}`"));
        return None;
    }
    match number.base10_parse() {
        Ok(0) => errors.on(number, format!("`{key}` is 0; use 1 or more")),
        Ok(value) if value <= MOST => return Some(value),
        _ => errors.on(number, format!("`{key}` is {number}; use {MOST} or less")),
    }
    None
}

/// A number, with a point or without, that `allowed` allows: `range` says what that is, `example` writes one.
pub(super) fn real(
    key: &str,
    value: &Value,
    (allowed, range): (impl Fn(f64) -> bool, &str),
    example: &str,
    errors: &mut Errors,
) -> Option<f64> {
    let (digits, suffix) = match value {
        Value::Number(number) => (number.base10_digits(), number.suffix()),
        Value::Real(number) => (number.base10_digits(), number.suffix()),
        other => {
            errors.on(other, format!("`{key}` takes a number; write `{example}`"));
            return None;
        }
    };
    if !suffix.is_empty() {
        errors.on(value, format!("`{digits}{suffix}` has a suffix; write `{digits}`"));
        return None;
    }
    let parsed = digits.parse().ok().filter(|value: &f64| value.is_finite() && allowed(*value));
    if parsed.is_none() {
        errors.on(value, format!("`{key}` is {digits}; use {range}"));
    }
    parsed
}

/// A word that stands for itself.
pub(super) fn word<K: Keyword>(key: &str, value: &Value, errors: &mut Errors) -> Option<K> {
    let call = Call::of(key, value, K::WORDS, errors)?;
    call.without_arguments(key, errors)?;
    K::of(call.word)
}

/// A known word and its arguments.
pub(super) struct Call<'a> {
    pub(super) word: &'static str,
    name: &'a Ident,
    pub(super) arguments: &'a [Argument],
}

impl<'a> Call<'a> {
    /// The value of `key`, which is one of the words `known`.
    pub(super) fn of(key: &str, value: &'a Value, known: &'static [&'static str], errors: &mut Errors) -> Option<Self> {
        match value {
            Value::Word { name, arguments } => {
                if let Some(word) = known.iter().copied().find(|word| name == word) {
                    return Some(Self { word, name, arguments });
                }
                errors.unknown(name, &format!("`{key}`"), known);
            }
            Value::Path(path) => {
                errors.unknown(path, &format!("`{key}`"), known);
            }
            other => errors.on(other, format!("`{key}` takes a word; write `{key} = {}`", known[0])),
        }
        None
    }

    /// Refuses arguments.
    pub(super) fn without_arguments(&self, key: &str, errors: &mut Errors) -> Option<()> {
        if self.arguments.is_empty() {
            return Some(());
        }
        errors.at(self.name.span(), format!("`{0}` takes no argument; write `{key} = {0}`", self.word));
        None
    }

    /// The one argument, which is `what`, as in `example`.
    pub(super) fn argument(&self, what: &str, example: &str, errors: &mut Errors) -> Option<&'a Value> {
        if let [Argument::Plain(value)] = self.arguments {
            return Some(value);
        }
        errors.at(self.name.span(), format!("`{}` takes one number, {what}; write `{example}`", self.word));
        None
    }
}
