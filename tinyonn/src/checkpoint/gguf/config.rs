//! The `config.json` that a Hugging Face folder of the same model would have, from a GGUF file's settings and shapes.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::architecture::Architecture;
use super::fault::{Fault, damaged};
use super::header::Place;
use super::metadata::{List, Metadata, Value as Stored};
use super::rope;

/// What is read of a file before its tensors are named.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) heads: usize,
    pub(super) key_value_heads: usize,
    pub(super) config: Value,
}

/// The settings of a file of these `bytes`, whose tensors are listed by their names in it; `rope_frequencies` are the values of that
/// tensor.
pub(super) fn settings(
    architecture: Architecture,
    metadata: &Metadata,
    tensors: &BTreeMap<String, &Place>,
    bytes: &[u8],
    rope_frequencies: Option<&[f32]>,
) -> Result<Settings, Fault> {
    let read = Reader { architecture, metadata, bytes };
    let (hidden, layers) = (read.count("embedding_length")?, read.count("block_count")?);
    // What lists a layer's tensors is bounded by the file then.
    if layers == 0 || layers > tensors.len() {
        let problem = format!("`{}` is {layers}, it holds {} tensors", architecture.key("block_count"), tensors.len());
        return Err(damaged(problem));
    }
    let heads = read.count("attention.head_count")?;
    let key_value_heads = read.optional("attention.head_count_kv")?.unwrap_or(heads);
    if heads == 0 || key_value_heads == 0 || hidden == 0 {
        return Err(damaged(format!("it has {heads} heads, {key_value_heads} of keys, on a width of {hidden}")));
    }
    let head_dim = read.optional("attention.key_length")?.unwrap_or(hidden / heads);
    read.same("attention.value_length", head_dim)?;
    read.same("rope.dimension_count", head_dim)?;
    // Rows are put back in pairs.
    if head_dim == 0 || head_dim % 2 == 1 {
        return Err(damaged(format!("its heads are {head_dim} wide, no even width")));
    }
    let theta = metadata.float(&architecture.key("rope.freq_base"))?.unwrap_or(10_000.0);
    let scaling = rope::scaling(architecture, metadata, rope_frequencies, theta, head_dim)?;
    let vocabulary = tensors.get("token_embd.weight").and_then(|place| place.shape.first()).copied();
    let has = |part: &str| tensors.keys().any(|name| name.starts_with("blk.") && name.ends_with(part));
    let window = read.optional("attention.sliding_window")?.filter(|window| *window > 0);
    // Llama's file with a window is a Mistral.
    let (model_type, class) = match architecture {
        Architecture::Llama if window.is_some() => ("mistral", "MistralForCausalLM"),
        Architecture::Llama => ("llama", "LlamaForCausalLM"),
        Architecture::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
        Architecture::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
    };
    let epsilon = metadata.float(&architecture.key("attention.layer_norm_rms_epsilon"))?;
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| drop(config.insert(key.to_owned(), value));
    set("architectures", json!([class]));
    set("model_type", json!(model_type));
    set("vocab_size", json!(vocabulary));
    set("hidden_size", json!(hidden));
    set("intermediate_size", json!(read.count("feed_forward_length")?));
    set("num_hidden_layers", json!(layers));
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(key_value_heads));
    set("head_dim", json!(head_dim));
    set("hidden_act", json!("silu"));
    set("max_position_embeddings", json!(read.count("context_length")?));
    set("rms_norm_eps", json!(epsilon.ok_or_else(|| read.missing("attention.layer_norm_rms_epsilon"))?));
    set("rope_theta", json!(theta));
    set("rope_scaling", scaling);
    set("tie_word_embeddings", json!(!tensors.contains_key("output.weight")));
    if architecture != Architecture::Qwen2 {
        set("attention_bias", json!(has(".attn_q.bias")));
    }
    if model_type == "llama" {
        set("mlp_bias", json!(has(".ffn_gate.bias")));
    } else {
        set("sliding_window", json!(window));
    }
    if matches!(architecture, Architecture::Qwen2 | Architecture::Qwen3) {
        set("use_sliding_window", json!(window.is_some()));
    }
    for (key, stored) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        if let Some(id) = metadata.count(&format!("tokenizer.ggml.{stored}_token_id"))? {
            set(key, json!(id));
        }
    }
    Ok(Settings { heads, key_value_heads, config: Value::Object(config) })
}

/// Reads an architecture's settings.
struct Reader<'a> {
    architecture: Architecture,
    metadata: &'a Metadata,
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn count(&self, setting: &str) -> Result<usize, Fault> {
        self.optional(setting)?.ok_or_else(|| self.missing(setting))
    }

    /// A count, or a list of one count for all layers.
    fn optional(&self, setting: &str) -> Result<Option<usize>, Fault> {
        let key = self.architecture.key(setting);
        match self.metadata.get(&key) {
            Some(Stored::List(list)) => self.of_all_layers(list, &key).map(Some),
            _ => self.metadata.count(&key),
        }
    }

    fn of_all_layers(&self, list: &List, key: &str) -> Result<usize, Fault> {
        let numbers = list.numbers(self.bytes, key)?;
        match numbers.split_first() {
            Some((first, rest)) if *first >= 0.0 && rest.iter().all(|other| other == first) => Ok(*first as usize),
            _ => Err(Fault::new(format!("`{key}` differs by layer"), "give a model whose layers are all alike")),
        }
    }

    /// A setting that must be `value`, where the file has it.
    fn same(&self, setting: &str, value: usize) -> Result<(), Fault> {
        match self.optional(setting)? {
            Some(other) if other != value => {
                let problem =
                    format!("`{}` is {other}, and its heads are {value} wide", self.architecture.key(setting));
                Err(Fault::new(problem, "give a model whose keys and values are turned whole"))
            }
            _ => Ok(()),
        }
    }

    fn missing(&self, setting: &str) -> Fault {
        damaged(format!("has no key `{}`", self.architecture.key(setting)))
    }
}
