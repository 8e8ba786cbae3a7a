//! What a GGUF file is: a dense language model of a known architecture, or something else that is refused by what it is.

use std::collections::BTreeMap;

use super::fault::Fault;
use super::header::Place;
use super::metadata::Metadata;

pub(super) const ARCHITECTURE: &str = "general.architecture";

const DENSE: &str = "give a dense Llama, Mistral, Qwen2 or Qwen3 model";

/// The architectures that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    /// Llama and what shares its layers: Mistral, SmolLM, ..
    Llama,
    Qwen2,
    Qwen3,
}

impl Architecture {
    /// The file's architecture.
    pub(super) fn of(metadata: &Metadata, tensors: &BTreeMap<String, &Place>) -> Result<Self, Fault> {
        if let Some(other) = other_than_model(metadata, tensors)? {
            return Err(Fault::new(format!("is {other}, no language model"), DENSE));
        }
        let Some(name) = metadata.text(ARCHITECTURE)? else {
            return Err(Fault::new(format!("has no key `{ARCHITECTURE}`"), DENSE));
        };
        if let Some(sign) = sign_of_experts(name, metadata, tensors)? {
            let remedy = "give a dense model: its own experts are what upcycling would make";
            return Err(Fault::new(format!("is a mixture of experts already (`{sign}`)"), remedy));
        }
        if let Some(sign) = sign_of_embedding(name, metadata)? {
            return Err(Fault::new(format!("is an embedding model ({sign}), which predicts no next token"), DENSE));
        }
        let architecture = match name {
            "llama" => Self::Llama,
            "qwen2" => Self::Qwen2,
            "qwen3" => Self::Qwen3,
            _ => return Err(Fault::new(format!("is of the architecture {name:?}, which is not read"), DENSE)),
        };
        if !tensors.contains_key("token_embd.weight") {
            let problem =
                if tensors.is_empty() { "holds a vocabulary and no weights" } else { "has no `token_embd.weight`" };
            return Err(Fault::new(problem, DENSE));
        }
        Ok(architecture)
    }

    /// The name under which GGUF keeps its settings.
    pub(super) fn key(self, setting: &str) -> String {
        format!("{}.{setting}", self.name())
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

/// What a file is that holds no model of its own.
fn other_than_model(metadata: &Metadata, tensors: &BTreeMap<String, &Place>) -> Result<Option<String>, Fault> {
    let lora = |name: &String| name.ends_with(".lora_a") || name.ends_with(".lora_b");
    let kind = metadata.text("general.type")?;
    let architecture = metadata.text(ARCHITECTURE)?;
    let other = match (kind, architecture) {
        (Some("mmproj"), _) | (_, Some("clip")) => "a projector of images or sound (mmproj)".to_owned(),
        (Some("adapter"), _) => "an adapter (LoRA)".to_owned(),
        (Some("imatrix"), _) | (_, Some("imatrix")) => "an importance matrix".to_owned(),
        (_, Some("controlvector")) => "a control vector".to_owned(),
        _ if metadata.get("adapter.type").is_some() || tensors.keys().any(lora) => "an adapter (LoRA)".to_owned(),
        (Some("model") | None, _) => return Ok(None),
        (Some(other), _) => format!("of the type {other:?}"),
    };
    Ok(Some(other))
}

/// The key or tensor that only a mixture of experts has.
fn sign_of_experts(
    architecture: &str,
    metadata: &Metadata,
    tensors: &BTreeMap<String, &Place>,
) -> Result<Option<String>, Fault> {
    if architecture.ends_with("moe") {
        return Ok(Some(architecture.to_owned()));
    }
    let count = format!("{architecture}.expert_count");
    if metadata.count(&count)?.is_some_and(|count| count > 0) {
        return Ok(Some(count));
    }
    let of_experts = |name: &&String| name.contains("_exps.") || name.contains(".ffn_gate_inp.");
    Ok(tensors.keys().find(of_experts).cloned())
}

fn sign_of_embedding(architecture: &str, metadata: &Metadata) -> Result<Option<String>, Fault> {
    if architecture.contains("bert") || architecture.ends_with("-embedding") || architecture == "t5encoder" {
        return Ok(Some(format!("architecture {architecture:?}")));
    }
    let pooling = format!("{architecture}.pooling_type");
    if metadata.count(&pooling)?.is_some_and(|kind| kind > 0) {
        return Ok(Some(format!("`{pooling}`")));
    }
    let causal = format!("{architecture}.attention.causal");
    Ok((metadata.flag(&causal)? == Some(false)).then(|| format!("`{causal}` is false")))
}
