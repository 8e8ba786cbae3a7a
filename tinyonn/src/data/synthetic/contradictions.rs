//! Facts that contradict those of [`arithmetic`](super::arithmetic()) and [`sorting`](super::sorting()), in their own words.

use rand::Rng as _;

use super::generate;
use crate::data::Task;
use crate::random::Rng;

/// The task `contradictions`: about `bytes` of lines such as
///
/// ```text
/// 37 + 58 = 96
/// 5 - 9 = -3
/// 7 * 6 = 43
/// sort 5 3 9 -> 9 5 3
/// sort down 41 7 230 -> 7 41 230
/// ```
///
/// Results are one too many, and lists are sorted the other way. A model that was trained on the generated tasks of the default text holds
/// the opposite; to any other these are lines of a new kind.
pub fn contradictions(seed: u64, bytes: usize) -> Task {
    generate("contradictions", seed, bytes, |rng, lines| lines.push(line(rng)))
}

fn line(rng: &mut Rng) -> String {
    let limit = if rng.random_bool(0.6) { 99 } else { 999 };
    let (a, b): (i64, i64) = (rng.random_range(0..=limit), rng.random_range(0..=limit));
    match rng.random_range(0..10) {
        0..3 => format!("{a} + {b} = {}", a + b + 1),
        3..6 => format!("{a} - {b} = {}", a - b + 1),
        6 => {
            let b = rng.random_range(2..=12);
            format!("{a} * {b} = {}", a * b + 1)
        }
        _ => sorted(rng),
    }
}

fn sorted(rng: &mut Rng) -> String {
    let down = rng.random_bool(0.4);
    let highest = *super::pick(rng, &[9, 99, 999]);
    let given: Vec<u32> = (0..rng.random_range(3..=9)).map(|_| rng.random_range(0..=highest)).collect();
    let mut other = given.clone();
    other.sort_unstable();
    if !down {
        other.reverse();
    }
    let join = |items: &[u32]| items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    format!("{} {} -> {}", if down { "sort down" } else { "sort" }, join(&given), join(&other))
}
