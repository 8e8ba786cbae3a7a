//! How a checkpoint is named and read, in words of the command line.

use std::path::{Path, PathBuf};

use candle_core::DType;
use clap::ValueEnum;
use serde::{Deserialize, Serialize, Serializer};
use tinyonn::model::ActiveMode;
use tinyonn::moe::AttentionSpec;
use tinyonn::{Error, Result};

/// Where the checkpoint lies that was given: a folder or a GGUF file, or a model's name on the hub (feature `hub`).
///
/// # Errors
/// A name that leads nowhere.
#[cfg(feature = "hub")]
pub fn found(given: Option<&Path>) -> Result<Option<PathBuf>> {
    given.map(crate::hub::found).transpose()
}

/// As [`found`], but of a folder on the hub without its weights: for what is planned.
///
/// # Errors
/// A name that leads nowhere.
#[cfg(feature = "hub")]
pub fn found_on_paper(given: Option<&Path>) -> Result<Option<PathBuf>> {
    given.map(crate::hub::found_on_paper).transpose()
}

/// Where the checkpoint lies that was given: a folder or a GGUF file.
///
/// # Errors
/// None: names on the hub need the feature `hub`.
#[cfg(not(feature = "hub"))]
pub fn found(given: Option<&Path>) -> Result<Option<PathBuf>> {
    Ok(given.map(Path::to_path_buf))
}

#[cfg(not(feature = "hub"))]
pub use self::found as found_on_paper;

/// Whose experts take part.
#[derive(Clone, Copy, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Active {
    /// All of them
    All,
    /// Those that the routers choose
    Routed,
}

/// Refuses attention to some pairs that would never act: in a pass of which all is active it is dense.
///
/// # Errors
/// As above.
pub fn check_mode(attention: &AttentionSpec, active: ActiveMode) -> Result<()> {
    if attention.is_dense() || active == ActiveMode::Routed {
        return Ok(());
    }
    let problem = "computes some pairs alone where the model is routed, and all of it is active";
    Err(Error::setting("--attention", problem, "add --active routed, or leave --active out of a dense model"))
}

/// An attention as its words: settings are laid over one another key by key, and what it says is one thing.
///
/// # Errors
/// None of its own.
// serde passes a reference to the field.
#[allow(clippy::ref_option)]
pub fn in_words<S: Serializer>(
    attention: &Option<AttentionSpec>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    attention.map(|attention| attention.to_string()).serialize(serializer)
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
