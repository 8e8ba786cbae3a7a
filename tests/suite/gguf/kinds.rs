//! What is no dense language model of a known architecture is refused by what it is.

use rstest::rstest;
use serde_json::json;

use super::forge::{Forge, Value, f32, numbers, text, u32};

type Change = fn(&mut Forge);

#[rstest]
#[case::projector(|f: &mut Forge| f.set("general.type", text("mmproj")), "a projector of images or sound (mmproj)")]
#[case::old_projector(|f: &mut Forge| f.set("general.architecture", text("clip")), "a projector of images or sound (mmproj)")]
#[case::adapter(|f: &mut Forge| f.set("general.type", text("adapter")), "an adapter (LoRA)")]
#[case::old_adapter(|f: &mut Forge| f.tensors[2].name = "blk.0.attn_q.weight.lora_a".into(), "an adapter (LoRA)")]
#[case::control_vector(|f: &mut Forge| f.set("general.architecture", text("controlvector")), "a control vector")]
#[case::importance(|f: &mut Forge| f.set("general.type", text("imatrix")), "an importance matrix")]
#[case::another_type(|f: &mut Forge| f.set("general.type", text("novel")), "of the type \"novel\"")]
#[case::experts(|f: &mut Forge| f.set("llama.expert_count", u32(8)), "a mixture of experts already (`llama.expert_count`)")]
#[case::experts_by_tensor(|f: &mut Forge| f.tensors[7].name = "blk.0.ffn_gate_exps.weight".into(), "(`blk.0.ffn_gate_exps.weight`)")]
#[case::qwen2_experts(|f: &mut Forge| f.set("general.architecture", text("qwen2moe")), "a mixture of experts already (`qwen2moe`)")]
#[case::qwen3_experts(|f: &mut Forge| f.set("general.architecture", text("qwen3moe")), "a mixture of experts already (`qwen3moe`)")]
#[case::bert(|f: &mut Forge| f.set("general.architecture", text("nomic-bert")), "an embedding model (architecture \"nomic-bert\")")]
#[case::pooling(|f: &mut Forge| f.set("llama.pooling_type", u32(3)), "an embedding model (`llama.pooling_type`)")]
#[case::sees_all(|f: &mut Forge| f.set("llama.attention.causal", Value(7, vec![0])), "an embedding model (`llama.attention.causal` is false)")]
#[case::vocabulary(|f: &mut Forge| f.tensors.clear(), "holds a vocabulary and no weights")]
#[case::no_embedding(|f: &mut Forge| f.tensors[0].name = "output.weight".into(), "has no `token_embd.weight`")]
#[case::gemma(|f: &mut Forge| f.set("general.architecture", text("gemma3")), "of the architecture \"gemma3\", which is not read")]
#[case::nothing(|f: &mut Forge| f.remove("general.architecture"), "has no key `general.architecture`")]
#[case::a_tensor_of_another(|f: &mut Forge| f.add("blk.0.ssm_a.weight", &[32]), "the tensor `blk.0.ssm_a.weight`, which a llama model does not have")]
#[case::a_layer_by_another_name(|f: &mut Forge| f.add("blk.00.attn_norm.weight", &[32]), "the tensor `blk.00.attn_norm.weight`")]
#[case::yarn(|f: &mut Forge| f.set("llama.rope.scaling.type", text("yarn")), "scales its rotary embedding by \"yarn\", which is not read")]
#[case::stretched_attention(|f: &mut Forge| f.set("llama.rope.scaling.attn_factor", f32(1.25)), "scales its attention by `llama.rope.scaling.attn_factor` = 1.25")]
#[case::half_turned(|f: &mut Forge| f.set("llama.rope.dimension_count", u32(8)), "`llama.rope.dimension_count` is 8, and its heads are 16 wide")]
#[case::narrow_values(|f: &mut Forge| f.set("llama.attention.value_length", u32(8)), "`llama.attention.value_length` is 8")]
#[case::unlike_layers(|f: &mut Forge| f.set("llama.feed_forward_length", numbers(4, &[[64, 0, 0, 0], [32, 0, 0, 0]])), "differs by layer")]
#[case::unknown_frequencies(|f: &mut Forge| f.add("rope_freqs.weight", &[8]), "")]
fn another_kind_of_file_is_refused_by_what_it_is(#[case] change: Change, #[case] problem: &str) {
    let mut forge = Forge::llama();
    change(&mut forge);
    if problem.is_empty() {
        // Ones scale nothing.
        assert_eq!(forge.open().unwrap().config()["rope_scaling"], json!(null));
        return;
    }
    let error = forge.refused();
    assert!(error.contains(problem), "{error}");
}

#[rstest]
#[case::none(|_: &mut Forge| {}, json!(null))]
#[case::stated_none(|f: &mut Forge| f.set("llama.rope.scaling.type", text("none")), json!(null))]
#[case::linear(
    |f: &mut Forge| { f.set("llama.rope.scaling.type", text("linear")); f.set("llama.rope.scaling.factor", f32(4.0)); },
    json!({ "rope_type": "linear", "factor": 4.0 }),
)]
#[case::old_linear(|f: &mut Forge| f.set("llama.rope.scale_linear", f32(4.0)), json!({ "rope_type": "linear", "factor": 4.0 }))]
#[case::by_one(|f: &mut Forge| f.set("llama.rope.scaling.factor", f32(1.0)), json!(null))]
fn scaling_of_the_rotary_embedding(#[case] change: Change, #[case] expected: serde_json::Value) {
    let mut forge = Forge::llama();
    change(&mut forge);
    assert_eq!(forge.open().unwrap().config()["rope_scaling"], expected);
}

#[test]
fn one_count_for_all_layers_may_be_a_list() {
    let mut forge = Forge::llama();
    forge.set("llama.feed_forward_length", numbers(4, &[[64, 0, 0, 0]; 3]));
    assert_eq!(forge.open().unwrap().config()["intermediate_size"], 64);
}
