//! Mixture-of-experts language models that grow out of dense ones, on candle.
//!
//! A pretrained dense decoder (Qwen3, Qwen2, Llama, Mistral, SmolLM3) is decomposed into a hierarchy of experts without changing a single logit, imaged (∫SPS:
//! activation minus surprise, integrated over a task), given hierarchical Gaussian routers trained from that image alone,
//! and differentiated under Surprise Min-K.

// The code that `#[moe(..)]` writes names this crate from outside and from within.
extern crate self as tinyonn;

pub mod benchmark;
pub mod checkpoint;
pub mod data;
pub mod decoder;
mod differing;
pub mod error;
pub mod files;
pub mod gallery;
pub mod generation;
pub mod imaging;
pub mod interrupt;
pub mod metrics;
pub mod model;
pub mod moe;
pub mod ops;
pub mod phases;
pub mod random;
pub mod ranks;
mod signal;
pub mod train;

pub use error::{Error, Result};

/// The names that [`decoder`] had while it knew Qwen3 alone.
///
/// ```
/// use tinyonn::qwen3::{Mlp, Qwen3Config, Qwen3ForCausalLm};
///
/// let config: Qwen3Config = tinyonn::decoder::Arch::from_json(&serde_json::json!({ "model_type": "qwen3" }), "config.json")?;
/// let _: fn(&Qwen3Config, &candle_nn::VarBuilder<'_>) -> tinyonn::Result<Qwen3ForCausalLm<Mlp>> = Qwen3ForCausalLm::dense;
/// assert_eq!(config.head_dim, 128);
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub mod qwen3 {
    pub use crate::decoder::{Arch as Qwen3Config, CausalLm as Qwen3ForCausalLm, Decoder as Qwen3, *};
}

/// SHA-256 of this crate's sources, and of those of the declarations it stands on: other code may compute other bits, so what is half done is gone on with by
/// the same alone.
///
/// ```
/// assert_eq!(tinyonn::SOURCES_SHA256.len(), 64);
/// ```
pub const SOURCES_SHA256: &str = env!("TINYONN_SOURCES_SHA256");

// The code that `#[moe(..)]` writes names these; a user's crate needs no dependency but this one, and has candle in the version
// whose types this one takes.
#[doc(no_inline)]
pub use {candle_core, candle_nn, inventory};
