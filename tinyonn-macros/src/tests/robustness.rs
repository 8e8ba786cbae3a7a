//! Whatever is written, it expands or is refused with words; and what is refused leaves the item.

use proc_macro2::TokenStream;

use super::{UNIT, refused, tokens};
use crate::errors::Errors;
use crate::read::SETTINGS;
use crate::{declare, expand, parse, read};

const VALUES: [&str; 26] = [
    "",
    "=",
    "= 0",
    "= 1",
    "= -1",
    "= 1e9",
    "= 0.5",
    "= 1f32",
    "= x",
    "= x()",
    "= x(y = )",
    "= []",
    "= [,]",
    "= [1, [2]]",
    "= [16777216, 16777216, 16777216, 16777216]",
    "= [1, 1, 1, 1, 1]",
    "= {}",
    "= gaussian(dim)",
    "= gaussian(project = identity)",
    "= X",
    "= a::B<3, 4>",
    "= a::B(3)",
    "= <A as B>::C",
    "= sequence(0.5)",
    "= nucleus(99999999999999999999999999999999999999999)",
    "= 1e999",
];

/// Both forms of items; of each, one that can be accepted.
const ITEMS: [(&str, &str); 2] = [
    ("groups = 2, experts = 2,", UNIT),
    ("", "enum Name { #[group(experts = 2)] A, #[group(SETTING)] B, #[group(experts = 1, always)] C }"),
];

#[test]
fn no_combination_of_values_panics() {
    let keys = SETTINGS.into_iter().chain(["always", "λ", "r#type", "group"]);
    let mut accepted = 0;
    for (key, value) in keys.flat_map(|key| VALUES.map(|value| (key, value))) {
        for (given, item) in ITEMS {
            let item = item.replace("SETTING", &format!("experts = 3, {key} {value}"));
            let settings = format!("{given} {key} {value}");
            let mut errors = Errors::default();
            let declaration = parse::parse(tokens(&settings), tokens(&item), &mut errors);
            match read::read(&declaration, &mut errors) {
                Some(variant) => assert!(syn::parse2::<syn::File>(expand::expand(&variant)).is_ok(), "{settings}"),
                None => assert!(!errors.is_empty(), "{settings}"),
            }
            accepted += usize::from(errors.is_empty());
            let written = declare(tokens(&settings), tokens(&item)).to_string();
            assert!(!written.contains("a bug of tinyonn"), "{settings} on {item}");
        }
    }
    assert!(accepted > 10, "hardly any was accepted: {accepted}");
}

#[test]
fn all_errors_come_at_once_and_the_item_stays() {
    let settings = "groups = 0, expert = 4, router = gausian(dim = 0), top_k = [3, -1], route_per = sequence(x), ?, \
                    combine = merge, pfag = nucleus(2), balance = los(1), jitter = 1";
    let item = "/// Kept.\nstruct Name { field: u32 }";
    let messages = refused(settings, item);
    assert_eq!(messages.len(), 11, "{messages:#?}");
    let written = declare(tokens(settings), tokens(item)).to_string();
    assert!(written.starts_with(&tokens(item).to_string()), "{written}");
    assert_eq!(written.matches("compile_error").count(), messages.len(), "{written}");
    assert!(!written.contains("inventory"), "{written}");
}

#[test]
fn errors_of_every_group_come_at_once_and_its_attributes_go() {
    let item =
        "enum Name { #[group(expert = 2)] A, #[group(experts = 2, top_k = 3)] B { b: u8 }, #[group(always)] C = 3, D }";
    let messages = refused("", item);
    assert_eq!(messages.len(), 7, "{messages:#?}");
    let written = declare(TokenStream::new(), tokens(item)).to_string();
    assert!(!written.contains("# [group"), "{written}");
    assert!(written.contains("enum NameGroup") && written.contains("ALL : [Self ; 4]"), "{written}");
}

#[test]
fn what_an_unreadable_setting_would_have_said_is_not_called_missing() {
    assert_eq!(refused("groups = ?, experts = 4, top_k = [9, 1]", UNIT).len(), 1);
    assert_eq!(refused("groups = 4, experts = 4, router = ?", UNIT).len(), 1);
    assert_eq!(refused("level = [4, 4], top_k = [9, 1]", UNIT).len(), 1);
    assert_eq!(refused("levels = [4, ?], top_k = [1, 9]", UNIT).len(), 1);
    assert_eq!(refused("levels = [4, 4], pfag = ?", UNIT).len(), 1);
}
