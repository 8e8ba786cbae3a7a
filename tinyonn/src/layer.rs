//! A decoder layer whose feed-forward is a mixture of experts: attention unchanged, `mlp` replaced.

use crate::moe::MoeLayer;
use crate::qwen3::Block;

/// A Qwen3 decoder layer over routed experts.
pub type TinyOnnLayer = Block<MoeLayer>;
