//! The angles of rotary position embedding: position · θ^(−2j/D).

use candle_core::{DType, Device, Tensor};

use super::Qwen3Config;
use crate::Result;

/// cos and sin `[T, D/2]` for a run of positions.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
}

impl Rotary {
    /// The angles of positions `first .. first + count`, computed in f32 as `transformers` does.
    ///
    /// # Errors
    /// What the device reports.
    pub fn new(cfg: &Qwen3Config, first: usize, count: usize, dtype: DType, device: &Device) -> Result<Self> {
        let half = cfg.head_dim / 2;
        let rates: Vec<f32> =
            (0..half).map(|j| 1.0 / (cfg.rope_theta as f32).powf((2 * j) as f32 / cfg.head_dim as f32)).collect();
        let angles =
            || (first..first + count).flat_map(|position| rates.iter().map(move |rate| position as f32 * rate));
        let table = |values: Vec<f32>| Tensor::from_vec(values, (count, half), device)?.to_dtype(dtype);
        Ok(Self { cos: table(angles().map(f32::cos).collect())?, sin: table(angles().map(f32::sin).collect())? })
    }
}
