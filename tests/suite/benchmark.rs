//! Benchmarks: reading items, scoring them against the naive loop, what is right, and what accuracies are worth. All items are made up.

mod files;
mod likelihoods;
mod requests;

use rstest::rstest;
use tinyonn::benchmark::{Answer, BenchmarkTask, Choice, Item, Metric, TaskFigures, answers, best_constant};
use tinyonn::data::{Corpus, TextTokenizer, sorting};
use tinyonn::decoder::{Continuation, Likelihood};

use crate::models::message;

fn tokenizer() -> TextTokenizer {
    TextTokenizer::train(&Corpus { tasks: vec![sorting(0, 20_000)] }, 280).unwrap()
}

fn choice(context: &str, continuation: &str) -> Choice {
    Choice { context: context.into(), continuation: continuation.into() }
}

/// An item of these continuations of one context.
fn item(id: u64, continuations: &[&str], gold: usize) -> Item {
    Item { id, choices: continuations.iter().map(|text| choice("which one?", text)).collect(), gold }
}

fn task(metric: Metric, items: Vec<Item>) -> BenchmarkTask {
    BenchmarkTask { name: "made_up".into(), metric, items }
}

/// The answers of a model that finds the continuations of every item so probable.
fn said(task: &BenchmarkTask, log_likelihoods: &[f64], greedy: Option<bool>) -> Vec<Answer> {
    let model = |asked: &[Continuation], asks: bool| {
        assert_eq!((asked.len(), asks), (log_likelihoods.len(), greedy.is_some()));
        Ok(log_likelihoods.iter().map(|ll| Likelihood { log_likelihood: *ll, greedy }).collect())
    };
    answers(task, &tokenizer(), 64, 1, model).unwrap()
}

/// The right answer stands first, in the middle and last: no place is favoured.
#[rstest]
#[case::highest(Metric::Sum, &[-3.0, -1.0, -2.0], Some(1))]
#[case::by_character(Metric::PerCharacter, &[-3.0, -1.0, -2.1], Some(2))]
#[case::tie(Metric::Sum, &[-1.0, -1.0, -2.0], None)]
#[case::tie_of_all(Metric::Sum, &[-1.0, -1.0, -1.0], None)]
#[case::tie_below(Metric::Sum, &[-2.0, -1.0, -2.0], Some(1))]
#[case::tie_by_character(Metric::PerCharacter, &[-2.0, -1.0, -5.0], None)]
#[case::not_a_number(Metric::Sum, &[-3.0, -1.0, f64::NAN], None)]
#[case::not_a_number_first(Metric::Sum, &[f64::NAN, -1.0, -2.0], None)]
#[case::none_is_one(Metric::Sum, &[f64::NAN, f64::NAN, f64::NAN], None)]
#[case::impossible(Metric::Sum, &[f64::NEG_INFINITY, -1.0, f64::NEG_INFINITY], Some(1))]
#[case::all_impossible(Metric::Sum, &[f64::NEG_INFINITY; 3], None)]
fn a_tie_or_a_nan_is_no_answer(
    #[case] metric: Metric,
    #[case] log_likelihoods: &[f64],
    #[case] answer: Option<usize>,
    #[values(0, 1, 2)] gold: usize,
) {
    // Of 4, 2 and 5 characters, the blank among them.
    let task = task(metric, vec![item(7, &[" one", " 2", " four"], gold)]);
    let found = said(&task, log_likelihoods, None).remove(0);
    assert_eq!((found.item, found.answer, found.right), (7, answer, answer == Some(gold)));
    assert_eq!((found.characters, found.bytes), (vec![4, 2, 5], vec![4, 2, 5]));
}

#[rstest]
#[case(Some(true), true)]
#[case(Some(false), false)]
fn a_greedy_match_is_right_and_nothing_else_is(#[case] greedy: Option<bool>, #[case] right: bool) {
    let task = task(Metric::GreedyMatch, vec![item(0, &[" übung"], 0)]);
    let found = said(&task, &[-14.0 * std::f64::consts::LN_2], greedy).remove(0);
    assert_eq!((found.right, found.bytes[0], found.characters[0]), (right, 7, 6));
    approx::assert_relative_eq!(found.bits_per_byte(), 2.0);
}

#[rstest]
#[case::yes_and_no(Metric::Sum, vec![item(0, &[" yes", " no"], 0), item(1, &[" no", " yes"], 1), item(2, &[" yes", " no"], 1)], 2.0 / 3.0)]
// Where all right answers stand is how a file was written.
#[case::one_place(Metric::Sum, vec![item(0, &["a", "b"], 1), item(1, &["c", "d"], 1)], 0.5)]
#[case::places(Metric::Sum, vec![item(0, &["a", "b"], 1), item(1, &["c", "d"], 1), item(2, &["e", "f"], 0), item(3, &["g", "h"], 1)], 0.75)]
// The same continuation behind two contexts: its text is no answer.
#[case::same_text(Metric::Sum, vec![item(0, &["a", "a"], 1), item(1, &["a", "a"], 0)], 0.5)]
#[case::words(Metric::GreedyMatch, vec![item(0, &["a"], 0), item(1, &["b"], 0), item(2, &["a"], 0), item(3, &["c"], 0)], 0.5)]
fn the_best_constant_answer_is_a_text_or_a_place(#[case] metric: Metric, #[case] items: Vec<Item>, #[case] share: f64) {
    approx::assert_relative_eq!(best_constant(&task(metric, items)), share);
}

#[test]
fn a_task_carries_signal_above_its_floor_alone() {
    let items = |golds: &dyn Fn(u64) -> usize| (0..60).map(|id| item(id, &[" a", " b", " c"], golds(id))).collect();
    // The model says "b" always: the best constant answer.
    let even = task(Metric::Sum, items(&|id| usize::from(id < 40)));
    let figures = TaskFigures::new(&even, &said(&even, &[-2.0, -1.0, -3.0], None), 0).unwrap();
    assert_eq!((figures.items, figures.accuracy.mean, figures.signal, figures.cut), (60, 40.0 / 60.0, false, 0));
    approx::assert_relative_eq!(figures.chance, 1.0 / 3.0, max_relative = 1e-12);
    assert_eq!((figures.constant, figures.floor), (40.0 / 60.0, 40.0 / 60.0));
    // 40 items of 1 nat and 20 of 2, over two bytes each.
    approx::assert_relative_eq!(figures.bits_per_byte.mean, 80.0 / 60.0 / 2.0 / 2f64.ln(), max_relative = 1e-12);

    let mut knowing = said(&even, &[-2.0, -1.0, -3.0], None);
    for answer in &mut knowing {
        (answer.answer, answer.right) = (Some(answer.gold), true);
    }
    let figures = TaskFigures::new(&even, &knowing, 0).unwrap();
    assert!(figures.signal && figures.accuracy.low == 1.0, "{figures:?}");

    // What one number spoils is said, and is no signal.
    knowing[3].log_likelihoods[1] = f64::NAN;
    assert!(TaskFigures::new(&even, &knowing, 0).unwrap().bits_per_byte.mean.is_nan());
    // What was asked is known by all of it.
    let mut other = even.clone();
    other.items[0].choices[0].context.push('?');
    assert_eq!(even.sha256(), TaskFigures::new(&even, &knowing, 0).unwrap().items_sha256);
    assert_ne!(even.sha256(), other.sha256());
    let refused = message(TaskFigures::new(&even, &knowing[1..], 0));
    assert!(refused.contains("59 answers") && refused.contains("60 items of made_up"), "{refused}");
}
