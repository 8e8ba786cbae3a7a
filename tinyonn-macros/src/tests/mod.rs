//! What declarations are refused, and what accepted ones mean and expand to.

mod expansion;
mod grammar;
mod meaning;
mod refusals;
mod robustness;

use proc_macro2::TokenStream;

use crate::errors::Errors;
use crate::variant::Variant;
use crate::{parse, read};

const UNIT: &str = "pub struct Name;";

fn tokens(text: &str) -> TokenStream {
    text.parse().unwrap()
}

/// All steps but the last: what was understood, or every message.
fn understood(settings: &str, item: &str) -> Result<Variant, Vec<String>> {
    let mut errors = Errors::default();
    let declaration = parse::parse(tokens(settings), tokens(item), &mut errors);
    let variant = read::read(&declaration, &mut errors);
    assert_eq!(variant.is_none(), !errors.is_empty(), "a variant, or else a reason");
    variant.ok_or_else(|| errors.messages())
}

fn refused(settings: &str, item: &str) -> Vec<String> {
    understood(settings, item).err().unwrap()
}
