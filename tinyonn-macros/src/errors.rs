//! Every error of a declaration, so that one compilation reports them all.

use std::fmt::Display;

use proc_macro2::{Span, TokenStream};
use quote::ToTokens;

/// The errors found so far.
#[derive(Default)]
pub(crate) struct Errors(Vec<syn::Error>);

impl Errors {
    /// An error on `tokens`; `message` names the problem, then the remedy.
    pub(crate) fn on(&mut self, tokens: impl ToTokens, message: impl Display) {
        self.0.push(syn::Error::new_spanned(tokens, message));
    }

    /// An error at `span`.
    pub(crate) fn at(&mut self, span: Span, message: impl Display) {
        self.0.push(syn::Error::new(span, message));
    }

    /// What a parser of Rust itself reports.
    pub(crate) fn push(&mut self, error: syn::Error) {
        self.0.push(error);
    }

    /// `word` is none of the `known` words for a `what`; returns the one that was probably meant.
    pub(crate) fn unknown<'a>(&mut self, word: &impl ToTokens, what: &str, known: &[&'a str]) -> Option<&'a str> {
        let written = source(word);
        let meant = nearest(&written, known);
        let guess = meant.map_or(String::new(), |meant| format!("did you mean `{meant}`? "));
        self.on(word, format!("`{written}` is no {what}; {guess}known: {}", known.join(", ")));
        meant
    }

    /// Whether nothing is wrong.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A `compile_error!` for each.
    pub(crate) fn to_compile_errors(&self) -> TokenStream {
        self.0.iter().map(syn::Error::to_compile_error).collect()
    }

    /// The messages, in the order they were found.
    #[cfg(test)]
    pub(crate) fn messages(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }
}

/// Tokens as a person writes them: spaces only where words would run together.
pub(crate) fn source(tokens: &impl ToTokens) -> String {
    let spaced = tokens.to_token_stream().to_string();
    let mut written = String::new();
    let mut characters = spaced.chars().peekable();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    while let Some(c) = characters.next() {
        let between_words = written.ends_with(is_word) && characters.peek().is_some_and(|next| is_word(*next));
        if c != ' ' || between_words {
            written.push(c);
        }
    }
    written
}

/// The known word nearest to `word`, if a slip of the finger could have made one of the other.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let slips = (word.chars().count() / 3).max(1);
    known
        .iter()
        .map(|known| (strsim::levenshtein(&word.to_lowercase(), known), *known))
        .filter(|(distance, _)| *distance <= slips)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}
