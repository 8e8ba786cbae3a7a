//! The dense decoder of the families Qwen3, Qwen2, Llama, Mistral and SmolLM3 ([`Family`]), trainable, generic over the feed-forward of its blocks.
//!
//! [`CausalLm`]`<`[`Mlp`]`>` is the dense model; with a mixture of experts in the [`FeedForward`] slot the very same
//! code is the sparse one, so that losslessness compares one generic function with itself. Struct fields mirror the
//! names in a Hugging Face checkpoint.

pub mod arch;
pub mod attention;
pub mod block;
pub mod cache;
pub mod causal_lm;
mod config_json;
pub mod family;
pub mod feed_forward;
pub mod generate;
pub mod likelihood;
pub mod low_rank;
pub mod mlp;
pub mod model;
pub mod norm;
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
pub use norm::RmsNorm;
pub use pass::{
    Active, Answers, Ask, Experts, ImageAsk, InTraining, InputRows, Keep, Learn, Load, NeuronMask, Pass, PathTable,
    Surprises, Trace,
};
pub use rotary::{RopeScaling, Rotary};
pub use sampling::Sampling;
pub use smk_rule::{Smk, SmkRule};
