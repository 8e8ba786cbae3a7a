//! The names of a GGUF file's tensors in a Hugging Face folder, and the order of their rows.

use candle_core::Tensor;

use super::architecture::Architecture;
use crate::Result;

/// Frequencies of the rotary embedding: a setting that is stored as a tensor.
pub(super) const ROPE_FREQUENCIES: &str = "rope_freqs.weight";

/// Of a layer: GGUF's name, Hugging Face's.
const OF_LAYER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The Hugging Face name of a tensor; `None` for one that these architectures do not have.
pub(super) fn hugging_face(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".to_owned()),
        "output_norm.weight" => return Some("model.norm.weight".to_owned()),
        "output.weight" => return Some("lm_head.weight".to_owned()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    // A layer that is not written as numbers are (`007`) would take the name of another.
    let layer = layer.parse::<u32>().ok().filter(|number| number.to_string() == layer)?;
    let (part, kind) = rest.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    let (_, other) = OF_LAYER.iter().find(|(gguf, _)| *gguf == part)?;
    Some(format!("model.layers.{layer}.{other}.{kind}"))
}

/// The heads whose rows the writer put into another order, in the tensor of this Hugging Face name.
///
/// Llama's queries and keys are written for a rotary embedding that turns neighbours (0, 1), (2, 3), ..; a Hugging Face model turns
/// (0, d/2), (1, d/2 + 1), .. The other architectures keep that order in GGUF as well.
pub(super) fn permuted_heads(
    architecture: Architecture,
    name: &str,
    heads: usize,
    key_value_heads: usize,
) -> Option<usize> {
    match architecture {
        Architecture::Llama if name.contains(".q_proj.") => Some(heads),
        Architecture::Llama if name.contains(".k_proj.") => Some(key_value_heads),
        _ => None,
    }
}

/// Puts the rows of `heads` heads back: within each, first the even ones, then the odd ones.
pub(super) fn restore_rows(tensor: &Tensor, heads: usize) -> Result<Tensor> {
    let shape = tensor.dims().to_vec();
    let rows = shape.first().copied().unwrap_or_default();
    let columns: usize = shape.iter().skip(1).product();
    let half = rows / heads / 2;
    let turned = tensor.reshape((heads, half, 2, columns))?.transpose(1, 2)?.contiguous()?;
    Ok(turned.reshape(shape)?)
}
