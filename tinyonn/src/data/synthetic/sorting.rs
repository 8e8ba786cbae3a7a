//! Lists of numbers and of words, put in order.

use rand::Rng as _;

use super::{generate, pick};
use crate::data::Task;
use crate::random::Rng;

const WORDS: [&str; 48] = [
    "anchor", "apple", "badger", "basin", "beetle", "candle", "cedar", "copper", "desk", "dune", "eagle", "ember",
    "fable", "fern", "fig", "garnet", "glove", "harbor", "heron", "island", "ivory", "jacket", "jade", "kettle",
    "lantern", "lemon", "maple", "meadow", "mirror", "needle", "oak", "olive", "otter", "pear", "pebble", "quartz",
    "quill", "raven", "river", "saddle", "stone", "table", "thorn", "umbrella", "velvet", "walnut", "yarrow", "zinc",
];

/// The task `sorting`: about `bytes` of lines such as
///
/// ```text
/// sort 5 3 9 -> 3 5 9
/// sort down 41 7 230 -> 230 41 7
/// sort pear fig apple -> apple fig pear
/// sort down pear fig apple -> pear fig apple
/// ```
pub fn sorting(seed: u64, bytes: usize) -> Task {
    generate("sorting", seed, bytes, |rng, lines| lines.push(line(rng)))
}

fn line(rng: &mut Rng) -> String {
    let down = rng.random_bool(0.4);
    let (given, sorted) = if rng.random_bool(0.6) {
        let highest = *pick(rng, &[9, 99, 999]);
        let numbers: Vec<u32> = (0..rng.random_range(3..=9)).map(|_| rng.random_range(0..=highest)).collect();
        both_orders(&numbers, down)
    } else {
        let words: Vec<&str> = (0..rng.random_range(3..=6)).map(|_| *pick(rng, &WORDS)).collect();
        both_orders(&words, down)
    };
    let verb = if down { "sort down" } else { "sort" };
    format!("{verb} {given} -> {sorted}")
}

fn both_orders<T: Ord + Clone + ToString>(items: &[T], down: bool) -> (String, String) {
    let join = |items: &[T]| items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let mut sorted = items.to_vec();
    sorted.sort();
    if down {
        sorted.reverse();
    }
    (join(items), join(&sorted))
}
