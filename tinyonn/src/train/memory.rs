//! What a step holds in memory. In exact arithmetic a training would be the same whatever is said here.
//!
//! Bytes a weight that learns, with the types of work weight, master, gradient and moments (two of AdamW's, one of others): f32 throughout
//! 16 (the work weight is the master); bf16 work, f32 the rest 18; bf16 gradients 16; bf16 gradients and moments 12.

use std::fmt;
use std::str::FromStr;

use candle_core::DType;
use serde::{Deserialize, Serialize};

use super::UpdateRule;
use crate::decoder::Arch;
use crate::{Error, Result};

/// A type of floating-point numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Precision {
    /// 24 bits of mantissa.
    #[default]
    F32,
    /// 8 bits of mantissa, the range of f32.
    Bf16,
}

impl Precision {
    /// As candle has it.
    #[must_use]
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Bytes of a number.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.dtype().size_in_bytes() as u64
    }

    /// Whether it is f32: what records leave out.
    // Serde asks by reference.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    #[must_use]
    pub fn is_f32(&self) -> bool {
        *self == Self::F32
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(Error::setting("--dtype", format!("there is no `{text}`"), "use f32 or bf16")),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// What a step holds in memory.
///
/// ```
/// use candle_core::DType;
/// use tinyonn::phases::RunConfig;
/// use tinyonn::train::{Memory, Precision, UpdateRule};
///
/// let memory = Memory { micro_batches: 4, recompute: true, weights: Precision::Bf16, ..Memory::DEFAULT };
/// assert!(memory.check("smk.memory", 8).is_ok());
/// assert!(memory.check("smk.memory", 6).is_err()); // four parts of six rows
/// assert_eq!((memory.weights.dtype(), memory.bytes_a_weight_on_disk(UpdateRule::Adamw)), (DType::BF16, 12));
/// let arch = RunConfig::default().dense.arch(64, "silu");
/// assert!(memory.values(&arch, 256) < Memory { recompute: false, ..memory }.values(&arch, 256));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    /// The parts that a batch is passed in, one after the other; their gradients add up. Auxiliary losses and Min-K see one part at a time: an
    /// expert learns from a step if it was among the k in any of its parts.
    pub micro_batches: usize,
    /// Keep only the input of each layer for the backward, which computes the rest once more: the same bits, by one more forward pass.
    pub recompute: bool,
    /// What passes compute in. Masters, which the optimizer steps, stay f32.
    pub weights: Precision,
    /// Gradients; bf16 needs bf16 weights.
    pub gradients: Precision,
    /// The optimizer's moments.
    pub moments: Precision,
}

impl Memory {
    /// All in f32, a batch at once, everything kept.
    pub const DEFAULT: Self = Self {
        micro_batches: 1,
        recompute: false,
        weights: Precision::F32,
        gradients: Precision::F32,
        moments: Precision::F32,
    };

    /// Refuses what cannot be done with batches of `batch` rows; `key` is where it stands in the settings.
    ///
    /// # Errors
    /// A batch that is not cut into that many equal parts; bf16 gradients of f32 weights.
    pub fn check(&self, key: &str, batch: usize) -> Result<()> {
        if self.micro_batches == 0 || !batch.is_multiple_of(self.micro_batches) {
            let problem = format!("a batch of {batch} rows is not cut into {} equal parts", self.micro_batches);
            return Err(Error::setting(format!("{key}.micro_batches"), problem, "use a divisor of the batch"));
        }
        if self.gradients == Precision::Bf16 && self.weights == Precision::F32 {
            let remedy = format!("set {key}.weights = \"bf16\" too, or leave gradients in f32");
            return Err(Error::setting(format!("{key}.gradients"), "are bf16 of weights in f32", remedy));
        }
        Ok(())
    }

    /// The same for the trainings of a run whose other passes compute in `run`: in nothing wider, as the weights that do not learn are held in what they
    /// compute in.
    ///
    /// ```
    /// use tinyonn::train::{Memory, Precision};
    ///
    /// let run = Memory::DEFAULT.within(Precision::Bf16);
    /// assert!(Memory::DEFAULT.weights.is_f32() && !run.weights.is_f32() && run.moments.is_f32());
    /// ```
    #[must_use]
    pub fn within(self, run: Precision) -> Self {
        let weights = if run == Precision::Bf16 { run } else { self.weights };
        Self { weights, ..self }
    }

    /// Bytes of a weight that learns: work weight, master, gradient, moments.
    ///
    /// ```
    /// use tinyonn::train::{Memory, Precision, UpdateRule};
    ///
    /// let bytes = |memory: Memory| memory.bytes_a_weight(UpdateRule::Adamw);
    /// assert_eq!(bytes(Memory::DEFAULT), 16);
    /// assert_eq!(bytes(Memory { weights: Precision::Bf16, ..Memory::DEFAULT }), 18);
    /// ```
    #[must_use]
    pub fn bytes_a_weight(&self, rule: UpdateRule) -> u64 {
        let master = 4 + if self.weights == Precision::F32 { 0 } else { self.weights.bytes() };
        let moments = if rule == UpdateRule::Adamw { 2 } else { 1 };
        master + self.gradients.bytes() + moments * self.moments.bytes()
    }

    /// Bytes of a weight that learns in a state on disk: master and moments.
    #[must_use]
    pub fn bytes_a_weight_on_disk(&self, rule: UpdateRule) -> u64 {
        let moments = if rule == UpdateRule::Adamw { 2 } else { 1 };
        4 + moments * self.moments.bytes()
    }

    /// Bytes that the forward pass over `tokens` tokens (those of one micro-batch) keeps for the backward, about. A layer keeps of each token
    /// its input, that of its feed-forward and both normalised (4 d); queries, keys and values before and behind norm and rotation, and what was
    /// attended to (3 q + 3 kv); g, u and h (3 I). With `recompute` all layers keep their input and one keeps the rest. Gates and what routes
    /// them come on top where experts are routed.
    #[must_use]
    pub fn values(&self, cfg: &Arch, tokens: u64) -> u64 {
        let [d, i, layers] = [cfg.hidden_size, cfg.intermediate_size, cfg.num_hidden_layers].map(|size| size as u64);
        let [q, kv] = [cfg.num_attention_heads, cfg.num_key_value_heads].map(|heads| (heads * cfg.head_dim) as u64);
        let layer = 4 * d + 3 * q + 3 * kv + 3 * i;
        let all = if self.recompute { layers * d + layer } else { layers * layer };
        tokens * all * self.weights.bytes()
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::DEFAULT
    }
}
