//! The table of the grammar: each of its rows has an example that expands, and each word of the grammar a row.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use rstest::rstest;
use tinyonn_spec::{
    AlwaysBy, Combine, Covariance, ExpertsAre, Neurons, PairsBy, PairsChosen, PartitionStrategy, Prefill, Project,
    Reduce, Word,
};

use super::{UNIT, tokens, understood};
use crate::declare;
use crate::read::{
    ACTIVATIONS, ATTENTION, BALANCE, GATES, GAUSSIAN_ARGUMENTS, GROUP_SETTINGS, INDICES, LINEAR_ARGUMENTS, PAIRS, PFAG,
    ROUTE_PER, ROUTERS, SETTINGS,
};

/// The first and the last cell of each row of the table.
fn rows() -> Vec<(&'static str, &'static str)> {
    let rows = include_str!("../../grammar.md").lines().filter(|line| line.starts_with("| `"));
    let cell = |cell: &'static str| cell.trim().trim_matches('`');
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        assert_eq!(cells.len(), 4, "setting, meaning, default, example: {row}");
        assert!(cells[3].starts_with(" `") && cells[3].ends_with("` "), "an example is code: {row}");
        (cell(cells[0]), cell(cells[3]))
    })
    .collect()
}

fn words<K: Word>(all: &[K]) -> Vec<&'static str> {
    all.iter().map(|word| word.word()).collect()
}

/// An example's settings and item: `#[moe(..)] enum ..`, or settings alone, for a unit struct.
fn parts(example: &str) -> (String, String) {
    let Some(rest) = example.strip_prefix("#[moe") else { return (example.to_owned(), UNIT.to_owned()) };
    let (attribute, item) = rest.split_once("] ").unwrap();
    (attribute.trim_start_matches('(').trim_end_matches(')').to_owned(), item.to_owned())
}

/// Words and punctuation in their order, without the brackets around them.
fn flat(stream: TokenStream) -> Vec<String> {
    let flat = stream.into_iter().flat_map(|token| match token {
        TokenTree::Group(group) if group.delimiter() != Delimiter::None => flat(group.stream()),
        token => vec![token.to_string()],
    });
    flat.collect()
}

#[test]
fn each_row_has_an_example_of_its_setting_that_expands() {
    for (setting, example) in rows() {
        let (settings, item) = parts(example);
        assert_eq!(understood(&settings, &item).err(), None, "{example}");
        let expansion = declare(tokens(&settings), tokens(&item));
        assert!(syn::parse2::<syn::File>(expansion).is_ok(), "{example}");
        // Lower-case words of the setting are literal; capitals and ε stand for what is filled in.
        let written = flat(tokens(example));
        for word in flat(tokens(
            &setting.replace("[C, ..]", "").replace("[X, ..]", "").replace("[K, ..]", "").replace("a::B", ""),
        )) {
            let literal = word.len() > 1 && word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            assert!(!literal || written.contains(&word), "the example of `{setting}` lacks `{word}`: {example}");
        }
    }
}

#[rstest]
#[case::settings(&SETTINGS)]
#[case::of_a_group(&GROUP_SETTINGS)]
#[case::routers(&ROUTERS)]
#[case::of_gaussian(&GAUSSIAN_ARGUMENTS)]
#[case::of_linear(&LINEAR_ARGUMENTS)]
#[case::route_per(&ROUTE_PER)]
#[case::pfag(&PFAG)]
#[case::balance(&BALANCE)]
#[case::activation(&ACTIVATIONS)]
#[case::reduce(&words(&Reduce::ALL))]
#[case::covariance(&words(&Covariance::ALL))]
#[case::project(&words(&Project::ALL))]
#[case::experts_are(&words(&ExpertsAre::ALL))]
#[case::combine(&words(&Combine::ALL))]
#[case::gate(&words(&GATES))]
#[case::neurons(&words(&Neurons::ALL))]
#[case::attention(&ATTENTION)]
#[case::of_pairs(&PAIRS)]
#[case::index(&INDICES)]
#[case::by(&words(&PairsBy::ALL))]
#[case::choose(&words(&PairsChosen::ALL))]
#[case::prefill(&words(&Prefill::ALL))]
#[case::always_by(&words(&AlwaysBy::ALL))]
#[case::partition(&words(&PartitionStrategy::ALL))]
fn each_word_has_a_row(#[case] words: &[&str]) {
    for word in words {
        let has_word = |setting: &str| setting.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|w| w == *word);
        assert!(rows().iter().any(|(setting, _)| has_word(setting)), "no row for `{word}`");
    }
}
