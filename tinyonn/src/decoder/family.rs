//! The families of dense decoders: one table a family, found by the `model_type` of `config.json`.
//!
//! All are the same decoder: RMS norms, grouped-query attention with rotary positions, a gated MLP. They differ in what the table says, and in
//! what a configuration may ask for. What none of them here computes is refused by name where the configuration is read.

use super::arch::AttentionBias;

/// A family of dense decoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// Qwen3: queries and keys are normalised.
    Qwen3,
    /// Qwen2 and 2.5: queries, keys and values have a bias.
    Qwen2,
    /// Llama 1 to 3.x, SmolLM2, and what else has its `model_type`.
    Llama,
    /// Mistral 7B and its like: a sliding window, which must be off or longer than the context here.
    Mistral,
    /// SmolLM3: some layers without rotary positions.
    SmolLm3,
}

/// What distinguishes a family, and the values that transformers takes for keys that a configuration leaves out.
#[derive(Clone, Copy, Debug)]
pub(super) struct FamilyTable {
    /// `model_type`.
    pub model_type: &'static str,
    /// `architectures[0]`.
    pub architecture: &'static str,
    /// Queries and keys are normalised, head by head.
    pub qk_norm: bool,
    /// The biases of an attention; where none are named, the key `attention_bias` gives all four projections one.
    pub bias: Option<AttentionBias>,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// As many as query heads where none is named.
    pub num_key_value_heads: Option<usize>,
    /// The width divided by the heads where none is named.
    pub head_dim: Option<usize>,
    pub max_position_embeddings: usize,
    pub rope_theta: f64,
    pub tied: bool,
    /// The sliding window, of families where the window alone says whether anything slides.
    pub window: Option<usize>,
    /// Every so many layers, one has no rotary positions.
    pub nope_interval: Option<usize>,
}

const QWEN3: FamilyTable = FamilyTable {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    qk_norm: true,
    bias: None,
    vocab_size: 151_936,
    hidden_size: 4096,
    intermediate_size: 22_016,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: Some(32),
    head_dim: Some(128),
    max_position_embeddings: 32_768,
    rope_theta: 10_000.0,
    tied: false,
    window: None,
    nope_interval: None,
};

const QWEN2: FamilyTable = FamilyTable {
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    qk_norm: false,
    bias: Some(AttentionBias::Qkv),
    head_dim: None,
    ..QWEN3
};

const LLAMA: FamilyTable = FamilyTable {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    qk_norm: false,
    bias: None,
    vocab_size: 32_000,
    intermediate_size: 11_008,
    num_key_value_heads: None,
    head_dim: None,
    max_position_embeddings: 2048,
    ..QWEN3
};

const MISTRAL: FamilyTable = FamilyTable {
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    bias: Some(AttentionBias::None),
    intermediate_size: 14_336,
    num_key_value_heads: Some(8),
    max_position_embeddings: 131_072,
    window: Some(4096),
    ..LLAMA
};

const SMOLLM3: FamilyTable = FamilyTable {
    model_type: "smollm3",
    architecture: "SmolLM3ForCausalLM",
    vocab_size: 128_256,
    hidden_size: 2048,
    num_hidden_layers: 36,
    num_attention_heads: 16,
    num_key_value_heads: Some(4),
    max_position_embeddings: 32_768,
    rope_theta: 2_000_000.0,
    tied: true,
    nope_interval: Some(4),
    ..LLAMA
};

impl Family {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Qwen3, Self::Qwen2, Self::Llama, Self::Mistral, Self::SmolLm3];

    pub(super) fn table(self) -> &'static FamilyTable {
        match self {
            Self::Qwen3 => &QWEN3,
            Self::Qwen2 => &QWEN2,
            Self::Llama => &LLAMA,
            Self::Mistral => &MISTRAL,
            Self::SmolLm3 => &SMOLLM3,
        }
    }

    /// Whether its attention has a sliding window of its own.
    pub(super) fn has_window(self) -> bool {
        self.table().window.is_some()
    }

    /// The `model_type` of its `config.json`.
    ///
    /// ```
    /// use tinyonn::decoder::Family;
    /// assert_eq!(Family::of("mistral"), Some(Family::Mistral));
    /// assert_eq!(Family::of("mixtral"), None);
    /// assert!(Family::ALL.iter().all(|family| Family::of(family.model_type()) == Some(*family)));
    /// ```
    #[must_use]
    pub fn model_type(self) -> &'static str {
        self.table().model_type
    }

    /// The family of this `model_type`.
    #[must_use]
    pub fn of(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.model_type() == model_type)
    }
}
