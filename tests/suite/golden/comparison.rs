//! The comparison itself: a net that cannot tear catches nothing.

use super::figures::{By, Figure, Figures, Tolerance};
use super::fixture::{Rule, all_differences};

const NARROW: Tolerance = Tolerance { relative: 1e-3, absolute: 1e-6, why: "a test" };

/// Ten times as many numbers as are kept whole, two of short length, and words.
fn figures(at: usize, moved: f64) -> Vec<(String, Figure)> {
    let mut values: Vec<f64> = (0..240).map(|i| (f64::from(i) * 0.37).sin()).collect();
    values[at] += moved;
    let mut figures = Figures::default();
    figures.numbers("short", [values[0], 7.0]);
    figures.numbers("long", values);
    figures.words("words", ["1f".to_owned(), "3".to_owned()]);
    figures.0
}

/// Through a file and back.
fn stored(figures: &[(String, Figure)]) -> Vec<(String, Figure)> {
    let json = serde_json::to_string(figures).unwrap();
    serde_json::from_str(&json).unwrap()
}

#[test]
fn the_same_figures_are_the_same_through_a_file() {
    for by in [By::Bits, By::Tolerance(&NARROW)] {
        assert_eq!(all_differences(&figures(3, 0.0), &stored(&figures(3, 0.0)), by), [""; 0]);
    }
}

/// The last bit of one number of many, sampled or not.
#[test]
fn bits_catch_the_last_bit_of_any_number() {
    for at in [0, 1, 100, 239] {
        let found = all_differences(&figures(at, 1e-15), &figures(at, 0.0), By::Bits);
        assert!(found.iter().any(|words| words.starts_with("figure `long`")), "{at}: {found:?}");
        assert_eq!(all_differences(&figures(at, 1e-15), &figures(at, 0.0), By::Tolerance(&NARROW)), [""; 0]);
    }
}

#[test]
fn a_tolerance_catches_what_is_beyond_it() {
    // A sample, and a number that only the sums see.
    for (at, moved) in [(0, 2e-3), (1, 0.5)] {
        let found = all_differences(&figures(at, moved), &figures(at, 0.0), By::Tolerance(&NARROW));
        assert!(!found.is_empty(), "{at}");
        assert!(found.iter().all(|words| words.contains("found") && words.contains("expected")), "{found:?}");
    }
}

#[test]
fn bits_are_asked_for_on_a_machine_like_the_fixtures_alone() {
    let bits = |rule: Rule, alike| matches!(rule.by(alike), By::Bits);
    assert!(bits(Rule::Exact(NARROW), true));
    assert!(!bits(Rule::Exact(NARROW), false) && !bits(Rule::Within(NARROW), true));
}

#[test]
fn words_have_to_be_the_same_whatever_the_tolerance() {
    let mut found = figures(0, 0.0);
    found[2].1 = Figure::Words(vec!["1f".to_owned(), "2".to_owned()]);
    for by in [By::Bits, By::Tolerance(&NARROW)] {
        let differences = all_differences(&found, &figures(0, 0.0), by);
        assert_eq!(differences, ["figure `words`[1]: found \"2\", expected \"3\""]);
    }
}

#[test]
fn a_figure_that_is_missing_or_new_is_told() {
    let (all, some) = (figures(0, 0.0), figures(0, 0.0)[..2].to_vec());
    for by in [By::Bits, By::Tolerance(&NARROW)] {
        assert_eq!(all_differences(&some, &all, by), ["figure `words`: is in the fixture, and nothing computes it"]);
        assert_eq!(all_differences(&all, &some, by), ["figure `words`: is not in the fixture"]);
    }
}

/// What is neither a number nor words would pass for any.
#[test]
#[should_panic(expected = "not finite")]
fn what_is_not_finite_is_no_figure() {
    Figures::default().numbers("loss", [1.0, f64::NAN]);
}
