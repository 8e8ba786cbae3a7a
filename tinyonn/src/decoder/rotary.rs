//! The angles of rotary position embedding: position · θ^(−2j/D), or what a scaling makes of the rate θ^(−2j/D).

use std::f32::consts::PI;

use candle_core::{DType, Device, Tensor};

use super::Arch;
use crate::Result;

/// How the rates of rotary positions are changed so that a model reads further than it was trained to.
///
/// ```
/// use tinyonn::decoder::{Arch, RopeScaling};
/// use tinyonn::phases::RunConfig;
///
/// let twice = Arch { rope_scaling: RopeScaling::Linear { factor: 2.0 }, ..RunConfig::default().dense.arch(64, "silu") };
/// assert!(twice.validate().is_ok());
/// assert_eq!(Arch::from_json(&twice.to_json(), "config.json")?.rope_scaling, twice.rope_scaling);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    None,
    /// All are divided by `factor` (Chen et al., 2023).
    Linear {
        /// How much further.
        factor: f64,
    },
    /// Those of long waves are divided by `factor`, those of short ones kept, between them it fades (Llama 3.1).
    Llama3 {
        /// How much further.
        factor: f64,
        /// Waves longer than `original / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Waves shorter than `original / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Positions that the model was trained to read.
        original: usize,
    },
}

impl RopeScaling {
    /// The rates of the D/2 pairs, in f32 in the order of operations that transformers has.
    fn rates(self, theta: f64, head_dim: usize) -> Vec<f32> {
        let plain = (0..head_dim / 2).map(|j| 1.0 / (theta as f32).powf((2 * j) as f32 / head_dim as f32));
        plain.map(|rate| self.scaled(rate)).collect()
    }

    /// Why it cannot work, if it cannot.
    pub(super) fn problem(self) -> Option<String> {
        let positive = |name: &str, value: f64| {
            (!(value.is_finite() && value > 0.0))
                .then(|| format!("has {name} = {value}, which must be a number above 0"))
        };
        match self {
            Self::None => None,
            Self::Linear { factor } => positive("factor", factor),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original } => positive("factor", factor)
                .or_else(|| positive("low_freq_factor", low_freq_factor))
                .or_else(|| positive("original_max_position_embeddings", original as f64))
                .or_else(|| {
                    let between = high_freq_factor.is_finite() && high_freq_factor > low_freq_factor;
                    (!between).then(|| {
                        format!("has high_freq_factor = {high_freq_factor}, which must be above low_freq_factor = {low_freq_factor}")
                    })
                }),
        }
    }

    fn scaled(self, rate: f32) -> f32 {
        match self {
            Self::None => rate,
            Self::Linear { factor } => rate / factor as f32,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let (original, wave) = (original as f64, 2.0 * PI / rate);
                if f64::from(wave) > original / low_freq_factor {
                    return rate / factor as f32;
                }
                if f64::from(wave) < original / high_freq_factor {
                    return rate;
                }
                let kept =
                    (original as f32 / wave - low_freq_factor as f32) / (high_freq_factor - low_freq_factor) as f32;
                (1.0 - kept) * rate / factor as f32 + kept * rate
            }
        }
    }
}

/// cos and sin `[T, D/2]` for a run of positions.
#[derive(Clone, Debug)]
pub(crate) struct Rotary {
    /// Cosines.
    pub(crate) cos: Tensor,
    /// Sines.
    pub(crate) sin: Tensor,
    rates: Vec<f32>,
}

impl Rotary {
    /// The angles of the positions that a model is made for, computed once, in f32 as `transformers` does.
    ///
    /// # Errors
    /// What the device reports.
    pub(crate) fn new(cfg: &Arch, device: &Device) -> Result<Self> {
        let rates = cfg.rope_scaling.rates(cfg.rope_theta, cfg.head_dim);
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
    pub(crate) fn positions(&self, first: usize, count: usize, dtype: DType) -> Result<Self> {
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
