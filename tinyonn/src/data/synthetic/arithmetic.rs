//! Sums, differences, products and quotients, in figures and in words.

use rand::Rng as _;

use super::generate;
use crate::data::Task;
use crate::random::Rng;

const SMALL: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: [&str; 10] = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];

/// The task `arithmetic`: about `bytes` of lines such as
///
/// ```text
/// 37 + 58 = 95
/// 5 - 9 = -4
/// 85 / 7 = 12 rem 1
/// 3 + 4 * 5 = 23
/// (20 - 8) * 3 = 36
/// thirty-seven plus five is forty-two
/// ```
pub fn arithmetic(seed: u64, bytes: usize) -> Task {
    generate("arithmetic", seed, bytes, |rng, lines| lines.push(line(rng)))
}

fn line(rng: &mut Rng) -> String {
    let limit = if rng.random_bool(0.6) { 99 } else { 999 };
    let (a, b) = (rng.random_range(0..=limit), rng.random_range(0..=limit));
    match rng.random_range(0..10) {
        0 | 1 => format!("{a} + {b} = {}", a + b),
        2 | 3 => format!("{a} - {b} = {}", a - b),
        4 => {
            let b = rng.random_range(2..=12);
            format!("{a} * {b} = {}", a * b)
        }
        5 | 6 => quotient(a, rng.random_range(2..=12)),
        7 | 8 => two_steps(rng),
        _ => in_words(rng),
    }
}

fn quotient(a: i64, b: i64) -> String {
    match a % b {
        0 => format!("{a} / {b} = {}", a / b),
        rest => format!("{a} / {b} = {} rem {rest}", a / b),
    }
}

fn two_steps(rng: &mut Rng) -> String {
    let (a, b) = (rng.random_range(0..=50), rng.random_range(0..=50));
    let c: i64 = rng.random_range(2..=9);
    match rng.random_range(0..5) {
        0 => format!("{a} + {b} * {c} = {}", a + b * c),
        1 => format!("({a} + {b}) * {c} = {}", (a + b) * c),
        2 => format!("({a} - {b}) * {c} = {}", (a - b) * c),
        3 => format!("{a} - ({b} + {c}) = {}", a - (b + c)),
        _ => format!("{a} + {b} - {c} = {}", a + b - c),
    }
}

fn in_words(rng: &mut Rng) -> String {
    let (a, b): (usize, usize) = (rng.random_range(0u32..50) as usize, rng.random_range(0u32..50) as usize);
    let (high, low) = (a.max(b), a.min(b));
    match rng.random_range(0..3) {
        0 => format!("{} plus {} is {}", words(a), words(b), words(a + b)),
        1 => format!("{} minus {} is {}", words(high), words(low), words(high - low)),
        _ => {
            let (a, b) = (a % 10, b % 10);
            format!("{} times {} is {}", words(a), words(b), words(a * b))
        }
    }
}

/// `number` below 100, in English.
fn words(number: usize) -> String {
    match (number / 10, number % 10) {
        (0 | 1, _) => SMALL[number].to_owned(),
        (tens, 0) => TENS[tens].to_owned(),
        (tens, ones) => format!("{}-{}", TENS[tens], SMALL[ones]),
    }
}
