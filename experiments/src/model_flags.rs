//! How a checkpoint is read, in words of the command line.

use candle_core::DType;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tinyonn::model::ActiveMode;

/// Whose experts take part.
#[derive(Clone, Copy, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Active {
    /// All of them
    All,
    /// Those that the routers choose
    Routed,
}

/// The type that a model computes in.
#[expect(missing_docs, reason = "what is said of a word is printed by --help, and these say all")]
#[derive(Clone, Copy, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    F32,
    Bf16,
    F16,
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::BF16,
            Dtype::F16 => Self::F16,
        }
    }
}

impl From<Active> for ActiveMode {
    fn from(active: Active) -> Self {
        match active {
            Active::All => Self::All,
            Active::Routed => Self::Routed,
        }
    }
}
