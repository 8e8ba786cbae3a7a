//! The dense decoder of the families Qwen3, Qwen2, Llama, Mistral and SmolLM3 ([`Family`]), trainable, generic over the feed-forward of its blocks.
//!
//! [`CausalLm`]`<`[`Mlp`]`>` is the dense model; with a mixture of experts in the [`FeedForward`] slot the very same
//! code is the sparse one, so that losslessness compares one generic function with itself. Struct fields mirror the
//! names in a Hugging Face checkpoint.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use tinyonn::checkpoint::ParamStore;
//! use tinyonn::decoder::{Block, CausalLm, Mlp, Pass};
//! use tinyonn::phases::RunConfig;
//!
//! let cfg = RunConfig::default().dense.arch(64, "silu");
//! let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
//! let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?;
//! let logits = model.logits(&Tensor::new(&[[3u32, 1, 4]], &Device::Cpu)?, &Pass::all(), None)?;
//! assert_eq!(logits.dims(), [1, 3, 64]);
//! let first: &Block<Mlp> = &model.model().layers()[0];
//! assert_eq!(first.mlp().weights().up.dims(), [cfg.intermediate_size, cfg.hidden_size]);
//! # Ok::<(), tinyonn::Error>(())
//! ```

pub mod arch;
pub mod attention;
pub mod block;
pub mod cache;
pub mod causal_lm;
mod config_json;
#[cfg(feature = "cuda")]
mod decode;
pub mod family;
pub mod feed_forward;
pub mod generate;
pub mod likelihood;
pub mod low_rank;
pub mod mlp;
pub mod model;
mod norm;
pub mod pass;
pub mod rotary;
pub mod sampling;
pub mod smk_rule;

pub use arch::{Arch, AttentionBias};
pub use attention::Attention;
pub use block::Block;
pub use cache::KvCache;
pub use causal_lm::{CausalLm, Forward};
pub use family::Family;
pub use feed_forward::FeedForward;
pub use generate::{Generation, Prompt, Step};
pub use likelihood::{Continuation, Likelihood};
pub use low_rank::LowRankMlp;
pub use mlp::Mlp;
pub use model::Decoder;
pub(crate) use norm::RmsNorm;
pub use pass::{
    Active, Answers, Ask, Experts, ImageAsk, InTraining, InputRows, Keep, Learn, Load, NeuronMask, Pass, PathTable,
    Surprises, Trace,
};
pub use rotary::RopeScaling;
pub(crate) use rotary::Rotary;
pub use sampling::Sampling;
pub use smk_rule::{Smk, SmkRule};
