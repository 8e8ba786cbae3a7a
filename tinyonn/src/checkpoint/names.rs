//! The tensors that a dense Qwen3 checkpoint must hold, under their Hugging Face names.

use std::collections::BTreeMap;

use crate::qwen3::Qwen3Config;

/// The token embedding.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The language-model head; the embedding itself where tied.
pub(super) const HEAD: &str = "lm_head.weight";

/// Name and shape of every tensor of the dense model: what [`ModelFolder::check_names`](super::ModelFolder::check_names)
/// compares a folder with.
pub fn expected_tensors(config: &Qwen3Config) -> BTreeMap<String, Vec<usize>> {
    let (d, width, head) = (config.hidden_size, config.intermediate_size, config.head_dim);
    let (q, kv) = (config.num_attention_heads * head, config.num_key_value_heads * head);
    let mut tensors = BTreeMap::new();
    tensors.insert(EMBEDDING.to_owned(), vec![config.vocab_size, d]);
    tensors.insert("model.norm.weight".to_owned(), vec![d]);
    if !config.tie_word_embeddings {
        tensors.insert(HEAD.to_owned(), vec![config.vocab_size, d]);
    }
    for layer in 0..config.num_hidden_layers {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.insert(format!("model.layers.{layer}.{name}"), shape.to_vec());
        };
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            add(&format!("{norm}.weight"), &[d]);
        }
        for (name, rows, columns) in [("q", q, d), ("k", kv, d), ("v", kv, d), ("o", d, q)] {
            add(&format!("self_attn.{name}_proj.weight"), &[rows, columns]);
            if config.attention_bias {
                add(&format!("self_attn.{name}_proj.bias"), &[rows]);
            }
        }
        add("self_attn.q_norm.weight", &[head]);
        add("self_attn.k_norm.weight", &[head]);
        add("mlp.gate_proj.weight", &[width, d]);
        add("mlp.up_proj.weight", &[width, d]);
        add("mlp.down_proj.weight", &[d, width]);
    }
    tensors
}
