//! First pass: tokens to a [`Declaration`]. It knows what settings look like, not what they mean.
//!
//! ```text
//! settings := setting ("," setting)* ","?
//! setting  := name "=" value
//! value    := integer | word | word "(" argument ("," argument)* ","? ")" | "[" value ("," value)* ","? "]"
//! argument := setting | value
//! ```
//! A setting that cannot be read is reported and its neighbours are read all the same.

use proc_macro2::{Delimiter, Group, Ident, TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Item, LitInt};

use crate::errors::Errors;

/// What was written, before anyone asks whether it makes sense.
pub(crate) struct Declaration {
    /// The item under the attribute; `None` if it is no Rust.
    pub(crate) item: Option<Item>,
    /// The settings in their order.
    pub(crate) settings: Vec<Setting>,
}

/// `key = value`.
pub(crate) struct Setting {
    pub(crate) key: Ident,
    /// `None` if it could not be read, which has been reported.
    pub(crate) value: Option<Value>,
}

/// What stands right of a `=`, in a list or among arguments.
pub(crate) enum Value {
    /// `10`
    Number(LitInt),
    /// `gaussian`, `gaussian(dim = 64)`, `sequence(64)`
    Word { name: Ident, arguments: Vec<Argument> },
    /// `[1, 2]`
    List { brackets: Group, values: Vec<Option<Value>> },
}

/// One of a word's arguments.
pub(crate) enum Argument {
    /// `dim = 64`
    Named(Setting),
    /// `64`
    Plain(Value),
}

impl ToTokens for Value {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        match self {
            Self::Number(number) => number.to_tokens(tokens),
            Self::Word { name, .. } => name.to_tokens(tokens),
            Self::List { brackets, .. } => brackets.to_tokens(tokens),
        }
    }
}

/// Reads the attribute's arguments and the item below it.
pub(crate) fn parse(settings: TokenStream, item: TokenStream, errors: &mut Errors) -> Declaration {
    let item = syn::parse2(item).map_err(|error| errors.push(error)).ok();
    let settings = comma_separated(settings, errors).iter().filter_map(|part| setting(part, errors)).collect();
    Declaration { item, settings }
}

/// The parts between commas, none of them empty.
fn comma_separated(tokens: TokenStream, errors: &mut Errors) -> Vec<Vec<TokenTree>> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    for token in flatten(tokens) {
        match &token {
            TokenTree::Punct(comma) if comma.as_char() == ',' => {
                if part.is_empty() {
                    errors.at(comma.span(), "nothing stands before this comma; remove it");
                } else {
                    parts.push(std::mem::take(&mut part));
                }
            }
            _ => part.push(token),
        }
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

/// Opens the invisible groups that `macro_rules!` puts around what it substitutes.
fn flatten(tokens: TokenStream) -> Vec<TokenTree> {
    tokens
        .into_iter()
        .flat_map(|token| match token {
            TokenTree::Group(group) if group.delimiter() == Delimiter::None => flatten(group.stream()),
            token => vec![token],
        })
        .collect()
}

fn setting(tokens: &[TokenTree], errors: &mut Errors) -> Option<Setting> {
    match tokens {
        [TokenTree::Ident(key), TokenTree::Punct(equals), rest @ ..] if equals.as_char() == '=' => {
            if rest.is_empty() {
                errors.on(join(tokens), format!("`{key} =` has no value; write one after the `=`"));
            }
            Some(Setting { key: key.clone(), value: if rest.is_empty() { None } else { value(rest, errors) } })
        }
        [TokenTree::Ident(key), ..] => {
            errors.on(join(tokens), format!("`{key}` has no value; write `{key} = ..`"));
            Some(Setting { key: key.clone(), value: None })
        }
        _ => {
            errors.on(join(tokens), "this is not a setting; write `name = value`, such as `groups = 10`");
            None
        }
    }
}

fn value(tokens: &[TokenTree], errors: &mut Errors) -> Option<Value> {
    match tokens {
        [TokenTree::Literal(literal)] => {
            let number = syn::parse2(literal.to_token_stream()).ok();
            if number.is_none() {
                errors.on(literal, format!("`{literal}` is not a whole number; write one without quotes or a point"));
            }
            number.map(Value::Number)
        }
        [TokenTree::Punct(minus), TokenTree::Literal(literal)] if minus.as_char() == '-' => {
            errors.on(join(tokens), format!("`-{literal}` is negative; use 1 or more"));
            None
        }
        [TokenTree::Ident(name)] => Some(Value::Word { name: name.clone(), arguments: Vec::new() }),
        [TokenTree::Ident(name), TokenTree::Group(group)] if group.delimiter() == Delimiter::Parenthesis => {
            let parts = comma_separated(group.stream(), errors);
            let arguments = parts.iter().filter_map(|part| argument(part, errors)).collect();
            Some(Value::Word { name: name.clone(), arguments })
        }
        [TokenTree::Group(brackets)] if brackets.delimiter() == Delimiter::Bracket => {
            let parts = comma_separated(brackets.stream(), errors);
            let values = parts.iter().map(|part| value(part, errors)).collect();
            Some(Value::List { brackets: brackets.clone(), values })
        }
        _ => {
            let found = join(tokens);
            errors.on(&found, format!("`{found}` is not a value; write a number, a word, or a list such as `[1, 2]`"));
            None
        }
    }
}

fn argument(tokens: &[TokenTree], errors: &mut Errors) -> Option<Argument> {
    match tokens {
        [TokenTree::Ident(_), TokenTree::Punct(equals), ..] if equals.as_char() == '=' => {
            setting(tokens, errors).map(Argument::Named)
        }
        _ => value(tokens, errors).map(Argument::Plain),
    }
}

fn join(tokens: &[TokenTree]) -> TokenStream {
    tokens.iter().cloned().collect()
}
