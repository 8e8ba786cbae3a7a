//! Arithmetic in an odd notation: numbers of base seven, written in letters, the lowest digit first, the operator behind its operands.

use rand::Rng as _;
use rand::seq::SliceRandom as _;

use super::generate;
use crate::data::Task;
use crate::random::{self, Rng};

/// Letters that may be digits.
const LETTERS: [char; 14] = ['b', 'd', 'f', 'g', 'h', 'k', 'l', 'm', 'p', 'q', 'v', 'w', 'x', 'z'];
const BASE: usize = 7;

/// The task `letter_sums`: about `bytes` of lines such as
///
/// ```text
/// kf mt & :: pbk
/// zq m @ :: kkz
/// ```
///
/// `&` adds and `@` multiplies by a single digit. Which letters are the digits 0 to 6 is drawn from `seed`.
pub fn letter_sums(seed: u64, bytes: usize) -> Task {
    let mut digits = LETTERS;
    digits.shuffle(&mut random::stream(seed, "data/letter_sums/digits"));
    generate("letter_sums", seed, bytes, |rng, lines| lines.push(line(rng, &digits[..BASE])))
}

fn line(rng: &mut Rng, digits: &[char]) -> String {
    let write = |number: usize| written(number, digits);
    let a = rng.random_range(0..343u32) as usize;
    if rng.random_bool(0.7) {
        let b = rng.random_range(0..343u32) as usize;
        format!("{} {} & :: {}", write(a), write(b), write(a + b))
    } else {
        let b = rng.random_range(2..7u32) as usize;
        format!("{} {} @ :: {}", write(a), write(b), write(a * b))
    }
}

/// `number` in these digits, the lowest first.
fn written(mut number: usize, digits: &[char]) -> String {
    let mut text = String::new();
    loop {
        text.push(digits[number % digits.len()]);
        number /= digits.len();
        if number == 0 {
            return text;
        }
    }
}
