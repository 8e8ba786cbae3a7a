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

use rand::SeedableRng;
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
