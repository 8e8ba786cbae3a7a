//! What declarations are refused, and what accepted ones expand to.

use std::path::Path;

use proc_macro2::TokenStream;
use rstest::rstest;

use crate::errors::Errors;
use crate::validate::{ROUTE_PER, ROUTERS, RoutePer, SETTINGS, Variant};
use crate::{declare, expand, parse, validate};

const UNIT: &str = "pub struct Name;";

fn tokens(text: &str) -> TokenStream {
    text.parse().unwrap()
}

/// The first two passes: what was understood, or every message.
fn understood(settings: &str, item: &str) -> Result<Variant, Vec<String>> {
    let mut errors = Errors::default();
    let declaration = parse::parse(tokens(settings), tokens(item), &mut errors);
    let variant = validate::validate(declaration, &mut errors);
    assert_eq!(variant.is_none(), !errors.is_empty(), "a variant, or else a reason");
    variant.ok_or_else(|| errors.messages())
}

fn refused(settings: &str, item: &str) -> Vec<String> {
    understood(settings, item).err().unwrap()
}

fn pretty(settings: &str, item: &str) -> String {
    prettyplease::unparse(&syn::parse2(declare(tokens(settings), tokens(item))).unwrap())
}

/// The settings in the right-hand column of the grammar's table.
fn examples() -> Vec<&'static str> {
    let rows = include_str!("../grammar.md").lines().filter(|line| line.starts_with("| `"));
    rows.filter_map(|row| row.trim_end_matches([' ', '|', '`']).rsplit('`').next()).collect()
}

/// After a deliberate change: `UPDATE_EXPANSION=1 cargo test -p tinyonn-macros`, then read the difference.
#[rstest]
#[case::tiny_onn(
    "tiny_onn.rs",
    "groups = 10, experts = 10, router = gaussian, top_k = [8, 8]",
    "/// The seed's hierarchy.\n#[must_use] pub struct TinyOnn;"
)]
#[case::by_sequence(
    "by_sequence.rs",
    "experts = 3, groups = 7, route_per = sequence(8), router = gaussian(dim = 5)",
    "#[derive(Debug, Default)] pub(crate) struct BySequence;"
)]
fn expands_to(#[case] file: &str, #[case] settings: &str, #[case] item: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/expansion").join(file);
    let written = pretty(settings, item);
    if std::env::var_os("UPDATE_EXPANSION").is_some() {
        std::fs::write(&path, &written).unwrap();
    }
    assert_eq!(written, std::fs::read_to_string(&path).unwrap(), "the expansion differs from {}", path.display());
}

#[test]
fn every_example_of_the_grammar_is_accepted_and_every_word_has_one() {
    let examples = examples();
    for settings in &examples {
        assert_eq!(understood(settings, UNIT).err(), None, "{settings}");
    }
    for word in SETTINGS.iter().chain(&ROUTERS).chain(&ROUTE_PER) {
        let has_word = |example: &&str| example.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|w| w == *word);
        assert!(examples.iter().any(has_word), "no example of `{word}`");
    }
}

#[rstest]
#[case("groups = 1, experts = 1", [1, 1], None)]
#[case("groups = 1, experts = 9", [1, 2], None)]
#[case("groups = 9, experts = 1", [1, 1], None)]
#[case("groups = 9, experts = 9, route_per = token,", [1, 2], None)]
#[case("groups = 9, experts = 9, top_k = [9, 9,], route_per = sequence", [9, 9], Some(64))]
#[case("groups = 9, experts = 0x9, top_k = [3, 1], route_per = sequence(1_000)", [3, 1], Some(1000))]
fn defaults(#[case] settings: &str, #[case] top_k: [usize; 2], #[case] sequence: Option<usize>) {
    let variant = understood(settings, UNIT).ok().unwrap();
    assert_eq!(variant.levels.iter().map(|level| level.top_k).collect::<Vec<_>>(), top_k);
    let first = match variant.route_per {
        RoutePer::Token => None,
        RoutePer::Sequence { first } => Some(first),
    };
    assert_eq!(first, sequence);
}

#[rstest]
#[case::missing("groups = 4", "`experts` is missing; add `experts = 10`, the number of experts in each group")]
#[case::slip(
    "group = 4, groups = 4, experts = 4",
    "`group` is no setting; did you mean `groups`? known: groups, experts, router, top_k, route_per"
)]
#[case::unknown(
    "groups = 4, experts = 4, colour = 1",
    "`colour` is no setting; known: groups, experts, router, top_k, route_per"
)]
#[case::twice("groups = 4, groups = 5, experts = 4", "`groups` is given twice; keep one")]
#[case::no_value("groups = 4, experts", "`experts` has no value; write `experts = ..`")]
#[case::no_right_side("groups = 4, experts =", "`experts =` has no value; write one after the `=`")]
#[case::no_setting("groups = 4, experts = 4, 7", "this is not a setting; write `name = value`, such as `groups = 10`")]
#[case::comma("groups = 4,, experts = 4", "nothing stands before this comma; remove it")]
#[case::zero("groups = 0, experts = 4", "`groups` is 0; use 1 or more")]
#[case::negative("groups = -2, experts = 4", "`-2` is negative; use 1 or more")]
#[case::fraction("groups = 4.0, experts = 4", "`4.0` is not a whole number; write one without quotes or a point")]
#[case::text("groups = \"4\", experts = 4", "`\"4\"` is not a whole number; write one without quotes or a point")]
#[case::suffix("groups = 4usize, experts = 4", "`4usize` has a suffix; write `4`")]
#[case::large("groups = 16777217, experts = 1", "`groups` is 16777217; use 16777216 or less")]
#[case::larger("groups = 99999999999999999999, experts = 1", "`groups` is 99999999999999999999; use 16777216 or less")]
#[case::product(
    "groups = 5000, experts = 5000",
    "5000 groups of 5000 are 25000000 experts; use 16777216 or fewer: each needs a neuron"
)]
#[case::word_for_number("groups = many, experts = 4", "`groups` takes a number; write `groups = 10`")]
#[case::expression(
    "groups = 2 + 2, experts = 4",
    "`2 + 2` is not a value; write a number, a word, or a list such as `[1, 2]`"
)]
#[case::router(
    "groups = 4, experts = 4, router = gausian",
    "`gausian` is no router; did you mean `gaussian`? known: gaussian"
)]
#[case::no_router(
    "groups = 4, experts = 4, router = 3",
    "`router` takes the kind of router; write `router = gaussian`"
)]
#[case::argument(
    "groups = 4, experts = 4, router = gaussian(din = 3)",
    "`din` is no argument of `gaussian`; did you mean `dim`? known: dim"
)]
#[case::argument_twice(
    "groups = 4, experts = 4, router = gaussian(dim = 3, dim = 3)",
    "`dim` is given twice; keep one"
)]
#[case::plain_argument(
    "groups = 4, experts = 4, router = gaussian(3)",
    "this argument of `gaussian` has no name; write `gaussian(dim = 64)`"
)]
#[case::no_dim("groups = 4, experts = 4, router = gaussian(dim = 0)", "`dim` is 0; use 1 or more")]
#[case::too_many_groups("groups = 4, experts = 4, top_k = [5, 1]", "top_k = 5 exceeds the 4 groups; use 4 or fewer")]
#[case::too_many_experts(
    "groups = 10, experts = 10, top_k = [1, 12]",
    "top_k = 12 exceeds the 10 experts of a group; use 10 or fewer"
)]
#[case::one_group("groups = 1, experts = 4, top_k = [2, 1]", "top_k = 2 exceeds the 1 group; use 1")]
#[case::none_taken("groups = 4, experts = 4, top_k = [0, 1]", "`top_k` is 0; use 1 or more")]
#[case::one_k(
    "groups = 4, experts = 4, top_k = 2",
    "`top_k` takes a number for each level; write `top_k = [1, 2]`: groups, experts of a group"
)]
#[case::three_ks(
    "groups = 4, experts = 4, top_k = [1, 2, 3]",
    "`top_k` has 3 numbers for 2 levels; write `top_k = [1, 2]`: groups, experts of a group"
)]
#[case::share(
    "groups = 4, experts = 4, route_per = tokens",
    "`tokens` is no way to share a decision; did you mean `token`? known: token, sequence"
)]
#[case::token_argument(
    "groups = 4, experts = 4, route_per = token(3)",
    "`token` takes no argument; write `route_per = token`"
)]
#[case::two_arguments(
    "groups = 4, experts = 4, route_per = sequence(3, 4)",
    "`sequence` takes one number, the tokens it reads first; write `sequence(64)`"
)]
#[case::named_argument(
    "groups = 4, experts = 4, route_per = sequence(first = 4)",
    "`sequence` takes one number, the tokens it reads first; write `sequence(64)`"
)]
#[case::no_tokens("groups = 4, experts = 4, route_per = sequence(0)", "`sequence` is 0; use 1 or more")]
#[case::no_share(
    "groups = 4, experts = 4, route_per = 3",
    "`route_per` takes what shares a decision; write `route_per = token`"
)]
fn refuses_settings(#[case] settings: &str, #[case] message: &str) {
    assert_eq!(refused(settings, UNIT), [message]);
}

#[rstest]
#[case::tuple("struct Name(u32);", "the macro writes the fields; write `struct Name;`")]
#[case::braces("struct Name { a: u32 }", "the macro writes the fields; write `struct Name;`")]
#[case::generic("struct Name<T>;", "a variant is one type, without parameters; write `struct Name;`")]
#[case::bounds("struct Name where u32: Copy;", "a variant is one type, without bounds; write `struct Name;`")]
#[case::enumeration(
    "enum Name { A }",
    "`#[moe]` declares a variant on a unit struct; write `pub struct Name;` below it"
)]
#[case::function("fn name() {}", "`#[moe]` declares a variant on a unit struct; write `pub struct Name;` below it")]
fn refuses_items(#[case] item: &str, #[case] message: &str) {
    assert_eq!(refused("groups = 2, experts = 2", item), [message]);
}

#[test]
fn all_errors_come_at_once_and_the_item_stays() {
    let settings = "groups = 0, expert = 4, router = gausian(dim = 0), top_k = [3, -1], route_per = sequence(x), ?";
    let item = "/// Kept.\nstruct Name { field: u32 }";
    let messages = refused(settings, item);
    assert_eq!(messages.len(), 7, "{messages:#?}");
    let written = declare(tokens(settings), tokens(item)).to_string();
    assert!(written.starts_with(&tokens(item).to_string()), "{written}");
    assert_eq!(written.matches("compile_error").count(), messages.len(), "{written}");
    assert!(!written.contains("impl"), "{written}");
}

#[test]
fn what_an_unreadable_setting_would_have_said_is_not_called_missing() {
    assert_eq!(refused("groups = ?, experts = 4, top_k = [9, 1]", UNIT).len(), 1);
    assert_eq!(refused("groups = 4, experts = 4, router = ?", UNIT).len(), 1);
}

#[test]
fn what_is_substituted_by_another_macro_is_read_through() {
    use proc_macro2::{Delimiter, Group};
    let ten = Group::new(Delimiter::None, tokens("10"));
    let mut errors = Errors::default();
    let declaration = parse::parse(quote::quote!(groups = #ten, experts = #ten), tokens(UNIT), &mut errors);
    let variant = validate::validate(declaration, &mut errors);
    assert_eq!(variant.map(|variant| variant.experts()), Some(100));
}

/// Any setting that is put into a declaration either expands to Rust or is refused with words; nothing panics.
#[test]
fn no_combination_of_values_panics() {
    let values = [
        "",
        "=",
        "= 0",
        "= 1",
        "= -1",
        "= 1e9",
        "= x",
        "= x()",
        "= x(y = )",
        "= []",
        "= [,]",
        "= [1, [2]]",
        "= {}",
        "= gaussian(dim)",
    ];
    for key in SETTINGS {
        for value in values {
            let settings = format!("groups = 2, experts = 2, {key} {value}");
            let mut errors = Errors::default();
            let declaration = parse::parse(tokens(&settings), tokens(UNIT), &mut errors);
            match validate::validate(declaration, &mut errors) {
                Some(variant) => assert!(syn::parse2::<syn::File>(expand::expand(&variant)).is_ok(), "{settings}"),
                None => assert!(!errors.is_empty(), "{settings}"),
            }
        }
    }
}
