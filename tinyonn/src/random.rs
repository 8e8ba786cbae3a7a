//! Seeded random numbers: one ChaCha stream per purpose, independent of the order in which streams are opened.
//!
//! ```
//! use rand::Rng;
//! use tinyonn::random;
//! let a: u64 = random::stream(0, "pretrain/order").random();
//! let b: u64 = random::stream(0, "pretrain/order").random();
//! let c: u64 = random::stream(0, "smk/order").random();
//! assert_eq!(a, b);
//! assert_ne!(a, c);
//! ```

use std::f64::consts::TAU;

use rand::{Rng as _, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// The generator behind every random choice in the library.
pub type Rng = ChaCha8Rng;

/// The stream of `purpose` under `seed`: the ChaCha key is SHA-256 of both, so streams never overlap by accident.
#[must_use]
pub fn stream(seed: u64, purpose: &str) -> Rng {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(purpose.as_bytes());
    Rng::from_seed(hash.finalize().into())
}

/// `count` normal values. Box-Muller: two of them from two uniform ones.
pub(crate) fn normal(count: usize, mean: f64, stdev: f64, rng: &mut Rng) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        // 1 - u lies in (0, 1]: its logarithm is finite.
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        let (sin, cos) = (TAU * rng.random::<f64>()).sin_cos();
        values.extend([radius * cos, radius * sin].map(|z| (mean + stdev * z) as f32));
    }
    values.truncate(count);
    values
}
