//! GGUF models: equal to what transformers reads of the same file, tokens equal to the tokenizer's, and whatever is wrong with a file
//! said in one line.

mod damage;
mod forge;
mod kinds;
mod tokens;

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use serde_json::json;
use tinyonn::checkpoint::gguf::{GgmlType, is_gguf};
use tinyonn::checkpoint::{GgufFile, MappedSafetensors, ModelFolder, WeightSource, compare_with_reference, load_model};
use tinyonn::phases::text;

use crate::models::message;

/// A committed file, or the one of its parts that ends in `-0000n-of-00003`.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/gguf").join(name)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[rstest]
#[case::k_blocks("llama_k.gguf", "llama_k", &[GgmlType::Q4K, GgmlType::Q5K, GgmlType::Q6K, GgmlType::F32])]
#[case::blocks_of_32(
    "llama_blocks.gguf",
    "llama_blocks",
    &[GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q5_0, GgmlType::Q5_1, GgmlType::Q8_0, GgmlType::F32],
)]
#[case::halves("qwen2_f16.gguf", "qwen2_f16", &[GgmlType::F16, GgmlType::F32])]
#[case::brain_floats("qwen3_bf16.gguf", "qwen3_bf16", &[GgmlType::BF16, GgmlType::F32])]
#[case::three_parts("llama3_split-00001-of-00003.gguf", "llama3_split", &[GgmlType::F32])]
#[case::a_middle_part("llama3_split-00002-of-00003.gguf", "llama3_split", &[GgmlType::F32])]
#[case::a_mistral("mistral_linear.gguf", "mistral_linear", &[GgmlType::F16, GgmlType::F32])]
fn tensors_are_those_that_transformers_reads(#[case] file: &str, #[case] reference: &str, #[case] kinds: &[GgmlType]) {
    let model = GgufFile::open(fixture(file)).unwrap();
    let reference = MappedSafetensors::open(fixture(&format!("{reference}.safetensors"))).unwrap();
    for kind in kinds {
        assert!(model.tensors().any(|(_, tensor)| tensor.kind == *kind), "{kind} is not met");
    }
    let expected: Vec<&str> = reference.names().filter_map(|name| name.strip_prefix("values/")).collect();
    for (name, tensor) in model.tensors() {
        assert!(kinds.contains(&tensor.kind));
        let read = model.load(name, &Device::Cpu, Some(DType::F32)).unwrap();
        assert_eq!(read.dims(), tensor.info.shape);
        let read = values(&read);
        let step = (read.len() / 200).max(1) | 1;
        let sampled: Vec<f32> = read.into_iter().step_by(step).collect();
        let expected = values(&reference.load(&format!("values/{name}"), &Device::Cpu).unwrap());
        let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        assert_eq!(sampled.len(), expected.len(), "{name}");
        for (ours, theirs) in sampled.iter().zip(&expected) {
            // Blocks multiply a scale and add a minimum: two roundings, in one order or another.
            assert!((ours - theirs).abs() <= 2e-7 * largest, "{name}: {ours} is not {theirs}");
        }
    }
    let tied = model.config()["tie_word_embeddings"] == true;
    let untied = expected.iter().filter(|name| !(tied && **name == "lm_head.weight"));
    assert_eq!(model.tensors().map(|(name, _)| name).collect::<Vec<_>>(), untied.copied().collect::<Vec<_>>());
}

#[rstest]
#[case::k_blocks("llama_k.gguf", "llama_k")]
#[case::blocks_of_32("llama_blocks.gguf", "llama_blocks")]
#[case::biases("qwen2_f16.gguf", "qwen2_f16")]
#[case::normalised_queries("qwen3_bf16.gguf", "qwen3_bf16")]
#[case::scaled_frequencies("llama3_split-00002-of-00003.gguf", "llama3_split")]
#[case::scaled_positions("mistral_linear.gguf", "mistral_linear")]
fn logits_are_those_that_transformers_computes(#[case] file: &str, #[case] reference: &str) {
    let model = load_model(fixture(file), &Device::Cpu, Some(DType::F32)).unwrap();
    let reference = fixture(&format!("{reference}.safetensors"));
    let compared = compare_with_reference(&model, reference, &Device::Cpu, None, 2).unwrap();
    assert_eq!(compared.tokens, 38);
    println!("max |difference| {:e}", compared.max_abs_difference);
    assert!(compared.max_abs_difference < 1e-4, "{compared:?}");
}

#[test]
fn a_folder_may_be_a_file() {
    let folder = ModelFolder::open(fixture("llama_blocks.gguf")).unwrap();
    let name = "model.layers.0.self_attn.q_proj.weight";
    let (_, info) = folder.tensors().find(|(own, _)| *own == name).unwrap();
    assert_eq!(folder.bytes(name).unwrap().len(), info.shape.iter().product::<usize>() * 4);
    let stored = folder.load(&Device::Cpu, None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    ModelFolder::save(&copy, folder.config(), &stored, Some(folder.dir())).unwrap();
    let copy = ModelFolder::open(&copy).unwrap();
    assert_eq!(copy.sha256().unwrap(), folder.sha256().unwrap());
    let [ours, theirs] = [&copy, &folder].map(|folder| text::tokenizer(folder).unwrap());
    assert_eq!((ours.eos(), ours.encode("The cat 🙂").unwrap()), (theirs.eos(), theirs.encode("The cat 🙂").unwrap()));
    assert!(copy.dir().join("generation_config.json").is_file());
}

#[rstest]
#[case::f16_stays(None, DType::F16)]
#[case::f16_to_bf16(Some(DType::BF16), DType::BF16)]
fn a_tensor_comes_in_the_type_asked_for(#[case] asked: Option<DType>, #[case] given: DType) {
    let model = GgufFile::open(fixture("qwen2_f16.gguf")).unwrap();
    let name = "model.layers.0.mlp.gate_proj.weight";
    assert_eq!(model.load(name, &Device::Cpu, asked).unwrap().dtype(), given);
    assert_eq!(model.bytes(name).unwrap().len(), 50 * 36 * 2);
    assert_eq!(model.info(name).unwrap().computed(), Some(DType::F16));
    let error = message(model.load("lm_head.weight", &Device::Cpu, asked));
    assert!(error.contains("`lm_head.weight`") && error.contains("qwen2_f16.gguf"), "{error}");
}

#[test]
fn settings_become_a_config() {
    let config = |name: &str| GgufFile::open(fixture(name)).unwrap().config().clone();
    assert_eq!(
        config("llama_blocks.gguf"),
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 424, "hidden_size": 96,
            "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1,
            "head_dim": 32, "hidden_act": "silu", "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
            "rope_theta": 500.0, "rope_scaling": null, "tie_word_embeddings": false, "attention_bias": false,
            "mlp_bias": false, "bos_token_id": 1, "eos_token_id": 2,
        })
    );
    assert_eq!(
        config("qwen2_f16.gguf"),
        json!({
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 384, "hidden_size": 36,
            "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 3,
            "head_dim": 12, "hidden_act": "silu", "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
            "rope_theta": 1e6, "rope_scaling": null, "tie_word_embeddings": true, "sliding_window": null,
            "use_sliding_window": false, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
        })
    );
    let qwen3 = config("qwen3_bf16.gguf");
    assert_eq!(
        [&qwen3["model_type"], &qwen3["attention_bias"], &qwen3["head_dim"]],
        [&json!("qwen3"), &json!(false), &json!(128)]
    );
    let mistral = config("mistral_linear.gguf");
    assert_eq!(mistral["model_type"], "mistral");
    assert_eq!(mistral["sliding_window"], 512);
    assert_eq!(mistral["rope_scaling"], json!({ "rope_type": "linear", "factor": 2.0 }));
    assert_eq!(
        config("llama3_split-00003-of-00003.gguf")["rope_scaling"],
        json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        })
    );
}

#[rstest]
#[case::blocks("llama_blocks.gguf", "llama_blocks.gguf: Q4_0, 0.2 MB, dequantised to f32 (0.9 MB)")]
#[case::halves("qwen2_f16.gguf", "qwen2_f16.gguf: F16, 0.1 MB, read as f32 (0.1 MB)")]
#[case::parts(
    "llama3_split-00003-of-00003.gguf",
    "llama3_split-00001-of-00003.gguf: F32, 0.1 MB in 3 parts, read as f32 (0.1 MB)"
)]
fn one_line_says_what_is_read(#[case] file: &str, #[case] line: &str) {
    assert_eq!(GgufFile::open(fixture(file)).unwrap().describe(DType::F32), line);
}

#[test]
fn a_file_is_known_by_its_first_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let renamed = dir.path().join("weights.bin");
    std::fs::copy(fixture("qwen2_f16.gguf"), &renamed).unwrap();
    let text = dir.path().join("text.gguf");
    std::fs::write(&text, "GGU").unwrap();
    let found = [renamed.as_path(), &text, dir.path(), &dir.path().join("absent.gguf")].map(is_gguf);
    assert_eq!(found, [true, false, false, false]);
}

#[rstest]
#[case::a_part_is_missing(2, None, "part 2 of 3 of the model")]
#[case::a_part_is_another(
    2,
    Some("llama3_split-00003-of-00003.gguf"),
    "says that it is part 3 of 3, its name says part 2 of 3"
)]
#[case::a_part_is_a_whole_model(2, Some("qwen2_f16.gguf"), "says that it is part 1 of 1")]
fn parts_belong_together(#[case] replaced: usize, #[case] by: Option<&str>, #[case] problem: &str) {
    let dir = tempfile::tempdir().unwrap();
    let part = |number: usize| format!("llama3_split-0000{number}-of-00003.gguf");
    for number in 1..=3 {
        let source = if number == replaced { by.map(str::to_owned) } else { Some(part(number)) };
        if let Some(source) = source {
            std::fs::copy(fixture(&source), dir.path().join(part(number))).unwrap();
        }
    }
    let error = message(GgufFile::open(dir.path().join(part(1))));
    assert!(error.contains(problem) && error.contains(&part(replaced)), "{error}");
    let whole = dir.path().join("model.gguf");
    std::fs::copy(fixture(&part(2)), &whole).unwrap();
    let error = message(GgufFile::open(whole));
    assert!(error.contains("is part 2 of 3, which its name does not say"), "{error}");
}
