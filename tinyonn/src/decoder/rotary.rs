//! The angles of rotary position embedding: position · θ^(−2j/D).

use candle_core::{DType, Device, Tensor};

use super::Arch;
use crate::Result;

/// cos and sin `[T, D/2]` for a run of positions.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
    rates: Vec<f32>,
}

impl Rotary {
    /// The angles of the positions that a model is made for, computed once, in f32 as `transformers` does.
    ///
    /// # Errors
    /// What the device reports.
    pub fn new(cfg: &Arch, device: &Device) -> Result<Self> {
        let half = cfg.head_dim / 2;
        let rates: Vec<f32> =
            (0..half).map(|j| 1.0 / (cfg.rope_theta as f32).powf((2 * j) as f32 / cfg.head_dim as f32)).collect();
        Self::of(rates, 0, cfg.max_position_embeddings.min(TABLE), device)
    }

    fn of(rates: Vec<f32>, first: usize, count: usize, device: &Device) -> Result<Self> {
        let half = rates.len();
        let angles =
            || (first..first + count).flat_map(|position| rates.iter().map(move |rate| position as f32 * rate));
        let table = |values: Vec<f32>| Tensor::from_vec(values, (count, half), device);
        let (cos, sin) = (table(angles().map(f32::cos).collect())?, table(angles().map(f32::sin).collect())?);
        Ok(Self { cos, sin, rates })
    }

    /// Those of positions `first .. first + count`, in `dtype`; beyond the table they are computed.
    ///
    /// # Errors
    /// What the device reports.
    pub fn positions(&self, first: usize, count: usize, dtype: DType) -> Result<Self> {
        let own = if first + count <= self.cos.dim(0)? {
            let part = |table: &Tensor| table.narrow(0, first, count)?.contiguous();
            Self { cos: part(&self.cos)?, sin: part(&self.sin)?, rates: self.rates.clone() }
        } else {
            Self::of(self.rates.clone(), first, count, self.cos.device())?
        };
        Ok(Self { cos: own.cos.to_dtype(dtype)?, sin: own.sin.to_dtype(dtype)?, rates: own.rates })
    }
}

/// Positions that are kept at most: 4 MB at 64 pairs.
const TABLE: usize = 8192;
