//! `Arch`: what transformers 4 and 5 write is read, what is not computed is refused by name.

use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};
use tinyonn::decoder::{Arch, AttentionBias, Family, RopeScaling};

const PATH: &str = "some/config.json";

/// Qwen3-1.7B as transformers 4 published it.
fn published() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
        "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-6,
        "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false,
        "vocab_size": 151936
    })
}

/// The published configuration with one key changed.
fn with(key: &str, value: Value) -> Value {
    let mut json = published();
    json[key] = value;
    json
}

fn without(keys: &[&str]) -> Value {
    let mut json = published();
    let object = json.as_object_mut().unwrap();
    for key in keys {
        object.remove(*key);
    }
    json
}

fn read(json: &Value) -> tinyonn::Result<Arch> {
    Arch::from_json(json, PATH)
}

#[test]
fn the_published_1_7b_is_read_and_counted() {
    let config = read(&published()).unwrap();
    assert_eq!(config.hidden_size, 2048);
    assert_eq!(config.rope_theta.to_bits(), 1e6f64.to_bits());
    assert!(config.tie_word_embeddings);
    assert_eq!(config.kv_groups(), 2);
    assert_eq!(config.parameters(), 1_720_574_976);
}

#[rstest]
#[case::top(json!({ "rope_theta": 5e5 }), 5e5)]
#[case::parameters(json!({ "rope_parameters": { "rope_theta": 5e5, "rope_type": "default" } }), 5e5)]
#[case::parameters_without_type(json!({ "rope_parameters": { "rope_theta": 5e5 } }), 5e5)]
#[case::by_layer_type(json!({ "layer_types": ["full_attention"], "num_hidden_layers": 1, "rope_parameters": { "full_attention": { "rope_theta": 5e5, "rope_type": "default" } } }), 5e5)]
#[case::both(json!({ "rope_theta": 5e5, "rope_parameters": { "rope_theta": 5e5 } }), 5e5)]
#[case::top_beside_type(json!({ "rope_theta": 5e5, "rope_parameters": { "rope_type": "default" } }), 5e5)]
#[case::default_scaling(json!({ "rope_theta": 5e5, "rope_scaling": { "type": "default" } }), 5e5)]
#[case::missing(json!({}), 1e4)]
#[case::null(json!({ "rope_parameters": null }), 1e4)]
fn rope_theta_is_found_where_either_version_puts_it(#[case] keys: Value, #[case] theta: f64) {
    let mut json = without(&["rope_theta", "rope_scaling"]);
    for (key, value) in keys.as_object().unwrap() {
        json[key] = value.clone();
    }
    assert_eq!(read(&json).unwrap().rope_theta.to_bits(), theta.to_bits());
}

#[test]
fn missing_keys_take_the_defaults_of_transformers() {
    let config = read(&json!({ "model_type": "qwen3" })).unwrap();
    let expected = Arch {
        vocab_size: 151_936,
        hidden_size: 4096,
        intermediate_size: 22_016,
        hidden_act: "silu".into(),
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: 32,
        head_dim: 128,
        max_position_embeddings: 32_768,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: false,
        attention_bias: AttentionBias::None,
        family: Family::Qwen3,
        rope_scaling: RopeScaling::None,
        nope_layers: Vec::new(),
    };
    assert_eq!(config, expected);
}

#[test]
fn null_heads_follow_from_the_other_sizes() {
    assert_eq!(read(&with("head_dim", Value::Null)).unwrap().head_dim, 2048 / 16);
    assert_eq!(read(&with("num_key_value_heads", Value::Null)).unwrap().num_key_value_heads, 16);
}

#[test]
fn the_dense_part_of_a_tiny_onn_checkpoint_is_read() {
    let mut json = with("model_type", json!("tinyonn"));
    json["architectures"] = json!(["TinyOnnForCausalLM"]);
    json["tinyonn"] = json!({ "variant": "TinyOnn", "active": "all" });
    assert_eq!(read(&json).unwrap(), read(&published()).unwrap());
}

#[rstest]
#[case("model_type", json!("gemma3"))]
#[case("model_type", json!("qwen3_moe"))]
#[case("model_type", json!(3))]
#[case("hidden_act", json!("swish"))]
#[case("hidden_act", json!(7))]
#[case("rope_scaling", json!({ "rope_type": "yarn", "factor": 4.0 }))]
#[case("rope_scaling", json!({ "type": "linear", "factor": 0.0 }))]
#[case("rope_scaling", json!({ "type": "linear" }))]
#[case("rope_scaling", json!({ "factor": 2.0 }))]
#[case("rope_scaling", json!("yarn"))]
#[case("rope_parameters", json!({ "rope_type": "llama3", "rope_theta": 1e6 }))]
#[case("rope_parameters", json!({ "full_attention": { "rope_type": "default", "rope_theta": 1e6 } }))]
#[case("is_causal", json!(false))]
#[case("mlp_bias", json!(true))]
#[case("rope_parameters", json!({ "rope_type": 7 }))]
#[case("rope_parameters.rope_theta", json!({ "rope_theta": "much" }))]
#[case("rope_theta", json!(0.0))]
#[case("rope_theta", json!(-1e4))]
#[case("rope_theta", json!("1e6"))]
#[case("partial_rotary_factor", json!(0.5))]
#[case("use_sliding_window", json!(true))]
#[case("use_sliding_window", json!("no"))]
#[case("layer_types", json!(vec!["sliding_attention"; 28]))]
#[case("layer_types", json!(["full_attention"]))]
#[case("layer_types", json!("full_attention"))]
#[case("num_key_value_heads", json!(3))]
#[case("num_key_value_heads", json!(32))]
#[case("num_key_value_heads", json!(0))]
#[case("head_dim", json!(5))]
#[case("head_dim", json!(0))]
#[case("vocab_size", json!(0))]
#[case("vocab_size", json!(u64::MAX))]
#[case("hidden_size", json!("2048"))]
#[case("hidden_size", json!(2048.5))]
#[case("intermediate_size", json!(-1))]
#[case("num_hidden_layers", json!(0))]
#[case("num_hidden_layers", json!(1u64 << 40))]
#[case("num_hidden_layers", json!(4097))]
#[case("intermediate_size", json!(1 << 22))]
#[case("num_attention_heads", json!([16]))]
#[case("max_position_embeddings", json!(0))]
#[case("rms_norm_eps", json!(0))]
#[case("rms_norm_eps", json!("small"))]
#[case("tie_word_embeddings", json!(1))]
fn what_cannot_work_is_refused_with_file_and_key(#[case] key: &str, #[case] value: Value) {
    let top = key.split('.').next().unwrap();
    let error = read(&with(top, value)).unwrap_err().to_string();
    assert!(error.starts_with(PATH), "{error}");
    assert!(error.contains(&format!("`{key}`")), "{error}");
    assert!(error.contains("; "), "no remedy: {error}");
}

/// Its layers without positions are listed: no list is made of a depth that is refused.
#[test]
fn an_endless_depth_is_refused_before_its_layers_are_listed() {
    let error = read(&json!({ "model_type": "smollm3", "num_hidden_layers": usize::MAX })).unwrap_err().to_string();
    assert!(error.contains("`num_hidden_layers`"), "{error}");
}

#[test]
fn thetas_that_disagree_are_refused() {
    let error = read(&with("rope_parameters", json!({ "rope_theta": 1e4 }))).unwrap_err().to_string();
    assert!(error.contains("1000000") && error.contains("10000 "), "{error}");
}

#[rstest]
#[case(json!([]))]
#[case(json!("qwen3"))]
#[case(json!({}))]
fn no_object_and_no_model_type_are_refused(#[case] json: Value) {
    assert!(read(&json).unwrap_err().to_string().starts_with(PATH));
}

/// Two places for one number that disagree, of which readers take one or the other.
#[test]
fn the_trained_length_of_a_scaling_stands_once() {
    let scaling = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 40 });
    let mut json = with("rope_scaling", scaling);
    let read_as = |json: &Value| match read(json).unwrap().rope_scaling {
        RopeScaling::Llama3 { original, .. } => original,
        other => panic!("{other:?}"),
    };
    assert_eq!(read_as(&json), 40);
    json["original_max_position_embeddings"] = json!(40);
    assert_eq!(read_as(&json), 40);
    json["original_max_position_embeddings"] = json!(11);
    let refused = read(&json).unwrap_err().to_string();
    assert!(refused.contains("`original_max_position_embeddings` is 11") && refused.contains("40"), "{refused}");
    json["rope_scaling"].as_object_mut().unwrap().remove("original_max_position_embeddings");
    assert_eq!(read_as(&json), 11);
    json.as_object_mut().unwrap().remove("original_max_position_embeddings");
    assert_eq!(read_as(&json), 40_960);
}

/// Null is "not given", whatever key it stands under, but for the heads, which follow from the other sizes then.
#[test]
fn null_is_not_given() {
    for key in published().as_object().unwrap().keys().filter(|key| !["model_type", "head_dim"].contains(&key.as_str()))
    {
        let (null, absent) = (with(key, Value::Null), without(&[key]));
        let heads = key == "num_key_value_heads";
        assert!(heads || read(&null).unwrap() == read(&absent).unwrap(), "{key}");
    }
    let nested = with("rope_parameters", json!({ "rope_theta": null, "rope_type": null, "factor": null }));
    assert_eq!(read(&nested).unwrap(), read(&published()).unwrap());
}

#[test]
fn a_configuration_made_in_code_is_validated_likewise() {
    let config = read(&published()).unwrap();
    config.validate().unwrap();
    let error = Arch { head_dim: 7, ..config.clone() }.validate().unwrap_err().to_string();
    assert!(error.contains("head_dim"), "{error}");
    let error = Arch { num_key_value_heads: 5, ..config }.validate().unwrap_err().to_string();
    assert!(error.contains("num_key_value_heads"), "{error}");
}

fn scalings() -> impl Strategy<Value = RopeScaling> {
    prop_oneof![
        Just(RopeScaling::None),
        (1u32..100).prop_map(|factor| RopeScaling::Linear { factor: f64::from(factor) / 3.0 }),
        (1u32..100, 1u32..9, 1u32..9, 1usize..9000).prop_map(|(factor, low, more, original)| RopeScaling::Llama3 {
            factor: f64::from(factor),
            low_freq_factor: f64::from(low),
            high_freq_factor: f64::from(low + more),
            original,
        }),
    ]
}

fn configs() -> impl Strategy<Value = Arch> {
    let sizes = (1usize..500, 1usize..500, 1usize..500, 1usize..40);
    let heads = (1usize..9, 1usize..9, 1usize..80);
    let family = (0..Family::ALL.len(), scalings(), any::<u64>());
    (sizes, heads, 1usize..100_000, 1u32.., 1i32..13, any::<bool>(), any::<bool>(), family).prop_map(
        |((vocab, hidden, width, layers), (kv, groups, half), positions, theta, digits, tied, bias, kind)| Arch {
            family: Family::ALL[kind.0],
            vocab_size: vocab,
            hidden_size: hidden,
            intermediate_size: width,
            hidden_act: if tied { "gelu" } else { "silu" }.into(),
            num_hidden_layers: layers,
            num_attention_heads: kv * groups,
            num_key_value_heads: kv,
            head_dim: 2 * half,
            max_position_embeddings: positions,
            rope_theta: f64::from(theta),
            rope_scaling: kind.1,
            nope_layers: (0..layers)
                .filter(|at| Family::ALL[kind.0] == Family::SmolLm3 && kind.2 >> at & 1 == 1)
                .collect(),
            rms_norm_eps: 1.0 / 10f64.powi(digits),
            tie_word_embeddings: tied,
            attention_bias: match Family::ALL[kind.0] {
                Family::Qwen2 => AttentionBias::Qkv,
                Family::Mistral => AttentionBias::None,
                _ if bias => AttentionBias::All,
                _ => AttentionBias::None,
            },
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_reads_back_the_same(config in configs()) {
        let text = config.to_json().to_string();
        prop_assert_eq!(read(&serde_json::from_str(&text).unwrap()).unwrap(), config);
    }

    #[test]
    fn the_count_is_that_of_the_tensors_listed(config in configs()) {
        let tensors = tinyonn::checkpoint::expected_tensors(&config);
        let count: usize = tensors.values().map(|shape| shape.iter().product::<usize>()).sum();
        prop_assert_eq!(config.parameters(), count);
    }
}
