//! Settings by name, and the values they take.

use proc_macro2::{Ident, Span};
use quote::ToTokens;
use syn::LitInt;
use syn::spanned::Spanned;
use tinyonn_spec::{MOST, Word};

use crate::errors::Errors;
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

    /// Sets `place` to `key` as `read` understands it, if it is given. `false`: it is wrong, which has been said.
    pub(super) fn set<T>(
        &self,
        key: &str,
        place: &mut T,
        errors: &mut Errors,
        read: impl FnOnce(&str, &'a Value, &mut Errors) -> Option<T>,
    ) -> bool {
        let found = self.value(key).and_then(|value| read(key, value, errors));
        let is_known = found.is_some() || !self.is_given(key);
        if let Some(found) = found {
            *place = found;
        }
        is_known
    }

    /// Where the value of `key` stands, or the one argument of it.
    pub(super) fn innermost(&self, key: &str) -> Option<Span> {
        self.value(key).map(innermost)
    }

    /// Where the argument `name` of the value of `key` stands, or the one argument of that; the value where it has no such argument.
    pub(super) fn argument(&self, key: &str, name: &str) -> Option<Span> {
        let value = self.value(key)?;
        let named = arguments(value).iter().find_map(|argument| match argument {
            Argument::Named(Setting { key, value }) if key == name => value.as_ref(),
            _ => None,
        });
        Some(innermost(named.unwrap_or(value)))
    }

    /// The number `key`, which has no default: an error at `span` says what to add if it is missing.
    pub(super) fn required(&self, key: &str, what: &str, span: Span, errors: &mut Errors) -> Number {
        if !self.is_meant(key) {
            errors.at(span, format!("`{key}` is missing; add `{key} = 10`, {what}"));
        }
        Number::read(key, self.value(key), errors)
    }
}

/// What stands in the parentheses behind a word.
fn arguments(value: &Value) -> &[Argument] {
    match value {
        Value::Word { arguments, .. } => arguments,
        _ => &[],
    }
}

/// Where a value stands, or its one argument.
fn innermost(value: &Value) -> Span {
    let innermost = if let [Argument::Plain(argument)] = arguments(value) { argument } else { value };
    innermost.to_token_stream().span()
}

/// A number as it was written; `None` if it could not be read, which has been said.
#[derive(Clone, Copy)]
pub(super) struct Number {
    pub(super) value: Option<usize>,
    pub(super) span: Span,
}

impl Number {
    pub(super) fn read(key: &str, value: Option<&Value>, errors: &mut Errors) -> Self {
        let span = value.map_or_else(Span::call_site, |value| value.to_token_stream().span());
        Self { value: value.and_then(|value| count(key, value, errors)), span }
    }
}

/// A whole number.
pub(super) fn count(key: &str, value: &Value, errors: &mut Errors) -> Option<usize> {
    match value {
        Value::Number(number) => whole(number, errors),
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

fn whole(number: &LitInt, errors: &mut Errors) -> Option<usize> {
    if !number.suffix().is_empty() {
        let digits = number.base10_digits();
        errors.on(number, format!("`{number}` has a suffix; write `{digits}`"));
        return None;
    }
    let value = number.base10_parse().ok();
    if value.is_none() {
        errors.on(number, format!("`{number}` is more than anything here can be; use {MOST} or less"));
    }
    value
}

/// A number, with a point or without; `example` writes one.
pub(super) fn real(key: &str, value: &Value, example: &str, errors: &mut Errors) -> Option<f64> {
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
    digits.parse().ok()
}

/// Reads one of some words that stand for themselves.
pub(super) fn word<K: Word>(all: &'static [K]) -> impl FnOnce(&str, &Value, &mut Errors) -> Option<K> {
    move |key, value, errors| {
        let known: Vec<&'static str> = all.iter().map(|word| word.word()).collect();
        let call = Call::of(key, value, &known, errors)?;
        call.without_arguments(key, errors)?;
        all.iter().copied().find(|word| word.word() == call.word)
    }
}

/// A known word and its arguments.
pub(super) struct Call<'a> {
    pub(super) word: &'static str,
    name: &'a Ident,
    pub(super) arguments: &'a [Argument],
}

impl<'a> Call<'a> {
    /// The value of `key`, which is one of the words `known`.
    pub(super) fn of(key: &str, value: &'a Value, known: &[&'static str], errors: &mut Errors) -> Option<Self> {
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
