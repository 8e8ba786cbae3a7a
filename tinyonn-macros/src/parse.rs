//! First pass: tokens to a [`Declaration`]. It knows what settings look like, not what they mean.
//!
//! ```text
//! settings := setting ("," setting)* ","?
//! setting  := name "=" value | name
//! value    := number | word | word "(" argument ("," argument)* ","? ")" | path | "[" value ("," value)* ","? "]"
//! argument := setting | value
//! ```
//! A lower-case single word is a word, a `CamelCase` one or `a::B` a path. A setting that cannot be read is reported and its
//! neighbours are read all the same.

use proc_macro2::{Delimiter, Group, Ident, TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, Item, ItemEnum, ItemStruct, Lit, LitFloat, LitInt, Meta, Path, PathArguments};

use crate::errors::{Errors, source};

/// What was written, before anyone asks whether it makes sense.
pub(crate) struct Declaration {
    /// What stands under the attribute.
    pub(crate) item: Subject,
    /// The settings in their order.
    pub(crate) settings: Vec<Setting>,
}

/// What stands under the attribute.
pub(crate) enum Subject {
    Struct(ItemStruct),
    Enum(Named),
    /// Another item.
    Other(Item),
    /// No Rust.
    Unreadable(TokenStream),
}

/// An enum of groups.
pub(crate) struct Named {
    /// The enum, its variants without `#[group(..)]`.
    pub(crate) item: ItemEnum,
    /// The `#[group(..)]` of each variant, if it has one.
    pub(crate) groups: Vec<Option<GroupAttribute>>,
}

/// `#[group(..)]`
pub(crate) struct GroupAttribute {
    pub(crate) attribute: Attribute,
    /// `None` if it is of another form, which has been reported.
    pub(crate) settings: Option<Vec<Setting>>,
}

/// `key = value`.
pub(crate) struct Setting {
    pub(crate) key: Ident,
    /// `None` if it could not be read, which has been reported.
    pub(crate) value: Option<Value>,
}

/// What stands right of a `=`, in a list or among arguments.
pub(crate) enum Value {
    /// Nothing: a setting that is but named.
    Flag(Ident),
    /// `10`
    Number(LitInt),
    /// `0.9`
    Real(LitFloat),
    /// `gaussian`, `gaussian(dim = 64)`, `sequence(64)`
    Word { name: Ident, arguments: Vec<Argument> },
    /// `Mine`, `my::Router`
    Path(Path),
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
            Self::Real(number) => number.to_tokens(tokens),
            Self::Flag(name) | Self::Word { name, .. } => name.to_tokens(tokens),
            Self::Path(path) => path.to_tokens(tokens),
            Self::List { brackets, .. } => brackets.to_tokens(tokens),
        }
    }
}

/// Reads the attribute's arguments and the item below it.
pub(crate) fn parse(written: TokenStream, item: TokenStream, errors: &mut Errors) -> Declaration {
    let item = match syn::parse2(item.clone()) {
        Ok(Item::Struct(item)) => Subject::Struct(item),
        Ok(Item::Enum(item)) => Subject::Enum(named(item, errors)),
        Ok(item) => Subject::Other(item),
        Err(error) => {
            errors.push(error);
            Subject::Unreadable(item)
        }
    };
    Declaration { item, settings: settings(written, errors) }
}

fn settings(written: TokenStream, errors: &mut Errors) -> Vec<Setting> {
    comma_separated(written, errors).iter().filter_map(|part| setting(part, errors)).collect()
}

/// Takes `#[group(..)]` off the variants and reads it.
fn named(mut item: ItemEnum, errors: &mut Errors) -> Named {
    let mut groups = Vec::new();
    for variant in &mut item.variants {
        let (mut own, others) = variant.attrs.drain(..).partition::<Vec<_>, _>(|attr| attr.path().is_ident("group"));
        variant.attrs = others;
        for second in own.drain(1.min(own.len())..) {
            errors.on(second, format!("`{}` has a second `#[group]`; write all in one", variant.ident));
        }
        groups.push(own.pop().map(|attribute| {
            let settings = match &attribute.meta {
                Meta::List(list) => Some(settings(list.tokens.clone(), errors)),
                Meta::Path(_) => Some(Vec::new()),
                Meta::NameValue(_) => {
                    errors.on(&attribute, "`#[group]` takes settings in parentheses; write `#[group(experts = 10)]`");
                    None
                }
            };
            GroupAttribute { attribute, settings }
        }));
    }
    Named { item, groups }
}

/// The parts between commas, none of them empty. A comma between `<` and `>` is a path's own.
fn comma_separated(tokens: TokenStream, errors: &mut Errors) -> Vec<Vec<TokenTree>> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let mut angles = 0_usize;
    for token in flatten(tokens) {
        match &token {
            TokenTree::Punct(comma) if comma.as_char() == ',' && angles == 0 => {
                if part.is_empty() {
                    errors.at(comma.span(), "nothing stands before this comma; remove it");
                } else {
                    parts.push(std::mem::take(&mut part));
                }
                continue;
            }
            TokenTree::Punct(open) if open.as_char() == '<' => angles += 1,
            TokenTree::Punct(close) if close.as_char() == '>' => angles = angles.saturating_sub(1),
            _ => (),
        }
        part.push(token);
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
        [TokenTree::Ident(key)] => Some(Setting { key: key.clone(), value: Some(Value::Flag(key.clone())) }),
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
        [TokenTree::Literal(literal)] => match syn::parse2(literal.to_token_stream()) {
            Ok(Lit::Int(number)) => Some(Value::Number(number)),
            Ok(Lit::Float(number)) => Some(Value::Real(number)),
            _ => {
                errors.on(literal, format!("`{literal}` is no number; write one without quotes"));
                None
            }
        },
        [TokenTree::Punct(minus), TokenTree::Literal(literal)] if minus.as_char() == '-' => {
            errors.on(join(tokens), format!("`-{literal}` is negative, which no setting can be; remove the minus"));
            None
        }
        [TokenTree::Ident(name)] if !names_a_type(name) => {
            Some(Value::Word { name: name.clone(), arguments: Vec::new() })
        }
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
        _ => path(tokens).map(Value::Path).or_else(|| {
            let found = join(tokens);
            let problem = format!("`{}` is not a value", source(&found));
            errors.on(
                found,
                format!("{problem}; write a number, a word, the path of a type, or a list such as `[1, 2]`"),
            );
            None
        }),
    }
}

/// Whether a single word is the name of a type, by its first letter.
pub(crate) fn names_a_type(name: &Ident) -> bool {
    name.to_string().trim_start_matches("r#").starts_with(char::is_uppercase)
}

/// `Mine`, `my::Router`, `::my::Router<3>`
fn path(tokens: &[TokenTree]) -> Option<Path> {
    let path: Path = syn::parse2(join(tokens)).ok()?;
    let called = path.segments.iter().any(|segment| matches!(segment.arguments, PathArguments::Parenthesized(_)));
    (!called).then_some(path)
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
