//! A shuffled order without a table: where element `i` of `0..n` goes, in constant time and memory.
//!
//! A Feistel network permutes the 2ᵇ numbers just above n (b even, 2ᵇ < 4n for n > 1); a result outside `0..n` is
//! permuted again until it lies inside (cycle walking), which is again a permutation.

use rand::Rng as _;

use crate::random;

const ROUNDS: usize = 6;

/// A permutation of `0..len`.
pub(super) struct Order {
    len: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Order {
    /// The permutation of `0..len` drawn from the stream `purpose` of `seed`.
    pub(super) fn new(len: u64, seed: u64, purpose: &str) -> Self {
        let mut rng = random::stream(seed, purpose);
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Self { len, half_bits: bits.div_ceil(2).max(1), keys: std::array::from_fn(|_| rng.random()) }
    }

    /// The element at `index < len`.
    pub(super) fn at(&self, index: u64) -> u64 {
        let mut value = self.permute(index);
        while value >= self.len {
            value = self.permute(value);
        }
        value
    }

    fn permute(&self, value: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        (left << self.half_bits) | right
    }
}

/// The finaliser of SplitMix64: every input bit moves every output bit.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(len: u64, purpose: &str) -> Vec<u64> {
        let order = Order::new(len, 3, purpose);
        (0..len).map(|index| order.at(index)).collect()
    }

    #[test]
    fn every_element_once() {
        for len in (1..70).chain([255, 256, 257, 1000, 4097]) {
            let mut sorted = order(len, "a");
            sorted.sort_unstable();
            assert_eq!(sorted, (0..len).collect::<Vec<_>>(), "len {len}");
        }
    }

    #[test]
    fn purposes_shuffle_differently_and_far() {
        let (a, b) = (order(1000, "a"), order(1000, "b"));
        let fixed = a.iter().zip(&b).filter(|(x, y)| x == y).count();
        assert!(fixed < 10, "{fixed} of 1000 elements lie in the same place");
        // Uniform order: neighbours lie n/3 apart on average.
        let step = a.windows(2).map(|pair| pair[0].abs_diff(pair[1])).sum::<u64>() / 999;
        assert!((280..390).contains(&step), "neighbours lie {step} apart");
    }
}
