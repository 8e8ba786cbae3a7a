//! A file format that nobody else writes: accounts whose every line and whose end can be checked.

use rand::Rng as _;
use rand::seq::SliceRandom as _;

use super::generate;
use crate::data::Task;
use crate::random::{self, Rng};

const GOODS: [&str; 20] = [
    "barley", "brass", "chalk", "cork", "dates", "felt", "flax", "hemp", "honey", "indigo", "lime", "malt", "mica",
    "oats", "pitch", "resin", "salt", "silk", "tallow", "wax",
];
/// Goods that a seed's accounts know.
const KNOWN: usize = 12;

/// The task `ledger`: about `bytes` of accounts such as
///
/// ```text
/// <<417
///  ~flax 40 +7 => 47
///  ~salt 12 -5 => 7
/// 417>> #2 %54
/// ```
///
/// The last line repeats the account's number and has how many lines it has and the sum of their results. Which goods there are is drawn from
/// `seed`.
pub fn ledger(seed: u64, bytes: usize) -> Task {
    let mut goods = GOODS;
    goods.shuffle(&mut random::stream(seed, "data/ledger/goods"));
    generate("ledger", seed, bytes, |rng, lines| account(rng, &goods[..KNOWN], lines))
}

fn account(rng: &mut Rng, goods: &[&str], lines: &mut Vec<String>) {
    let number = rng.random_range(100..1000);
    lines.push(format!("<<{number}"));
    let count = rng.random_range(1..=4);
    let mut sum = 0;
    for _ in 0..count {
        let good = super::pick(rng, goods);
        let held: i32 = rng.random_range(10..=60);
        let change: i32 = rng.random_range(1..=9);
        let (sign, result) = if rng.random_bool(0.5) { ('+', held + change) } else { ('-', held - change) };
        lines.push(format!(" ~{good} {held} {sign}{change} => {result}"));
        sum += result;
    }
    lines.push(format!("{number}>> #{count} %{sum}"));
}
