//! Writing token by token, of one row and of several: every token is the best by the logits of the whole text, and rows do not see each other. On a GPU the steps are captured.

use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use tinyonn::checkpoint::upcycle;
use tinyonn::decoder::{Arch, AttentionBias, Family, FeedForward, Generation, Pass, Prompt, Sampling};
use tinyonn::imaging::Partition;
use tinyonn::model::ActiveMode;
use tinyonn::moe::{self, LEAST_SCORE, MOST, moe};

use crate::gradients::devices;
use crate::models;

/// The same as the gallery's, for fewer neurons.
#[moe(groups = 3, experts = 4, router = gaussian(dim = 5), top_k = [2, 1], gate = scaled, combine = dispatch)]
pub struct DecodedTenth;

/// Neurons that choose themselves among those of a group.
#[moe(levels = [3], router = linear, top_k = 2, neurons = gate)]
pub struct DecodedNeurons;

/// Widths that divide by little, heads that kernels take.
fn shape(family: Family, group: usize) -> Arch {
    Arch {
        vocab_size: 211,
        hidden_size: 72,
        num_attention_heads: 2 * group,
        num_key_value_heads: 2,
        head_dim: 32,
        attention_bias: if family == Family::Qwen2 { AttentionBias::Qkv } else { AttentionBias::None },
        family,
        ..models::config(123, family == Family::Llama)
    }
}

fn prompts(rows: usize, length: usize) -> Vec<Prompt> {
    let prompt =
        |row: usize| Prompt::new((0..length).map(|at| ((31 * at + 17 * row * row + 5) % 211) as u32).collect(), 3, row);
    (0..rows).map(prompt).collect()
}

const TOKENS: usize = 9;

fn how(sampling: Sampling) -> Generation {
    Generation { tokens: TOKENS, stop_ids: Vec::new(), sampling }
}

/// Whether each token behind a prompt is the best by the logits of the whole text, or as good within `tolerance` of their standard deviation.
fn assert_best<F: FeedForward>(lm: &tinyonn::decoder::CausalLm<F>, pass: &Pass, rows: usize, tolerance: f32, of: &str) {
    let length = 5;
    let written = lm.generate(prompts(rows, length), &how(Sampling::GREEDY), pass, true, &mut |_| Ok(())).unwrap();
    for (prompt, written) in prompts(rows, length).iter().zip(&written) {
        let text = [&prompt.tokens[..], written].concat();
        let ids = Tensor::new(text.as_slice(), lm.head().device()).unwrap().unsqueeze(0).unwrap();
        let logits = lm.logits(&ids, pass, None).unwrap().squeeze(0).unwrap().to_dtype(DType::F32).unwrap();
        let logits = logits.to_device(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        for (at, token) in written.iter().enumerate() {
            let row = &logits[length - 1 + at];
            let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mean = row.iter().sum::<f32>() / row.len() as f32;
            let deviation = (row.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / row.len() as f32).sqrt();
            let short = (best - row[*token as usize]) / deviation;
            assert!(short <= tolerance, "{of}, token {at}: {short} below the best");
        }
    }
}

/// Of f32 some hundred roundings; bf16 has eight bits, and two layers of it.
fn tolerance(dtype: DType) -> f32 {
    if dtype == DType::F32 { 1e-4 } else { 0.1 }
}

#[rstest]
#[case::qwen3(Family::Qwen3, "silu", 2)]
#[case::llama_by_gelu(Family::Llama, "gelu", 1)]
#[case::qwen2_with_biases(Family::Qwen2, "silu", 5)]
fn a_dense_model_writes_its_best_tokens(
    #[case] family: Family,
    #[case] activation: &str,
    #[case] group: usize,
    #[values(DType::F32, DType::BF16)] dtype: DType,
    #[values(1, 3, 8, 9)] rows: usize,
) {
    let cfg = Arch { hidden_act: activation.into(), ..shape(family, group) };
    for device in devices() {
        if device.is_cpu() && dtype == DType::BF16 {
            continue;
        }
        let store = models::on(&models::weights(&cfg, dtype), &device);
        assert_best(&models::dense(&cfg, &store, dtype), &Pass::all(), rows, tolerance(dtype), &format!("{device:?}"));
    }
}

#[rstest]
fn experts_write_their_best_tokens(
    #[values("DecodedTenth", "Mixtral", "DeepSeek", "OwnGate", "DecodedNeurons", "Pruned", "RandomPaths", "Nucleus")]
    name: &str,
    #[values(ActiveMode::All, ActiveMode::Routed)] active: ActiveMode,
    #[values(DType::F32, DType::BF16)] dtype: DType,
    #[values(1, 3)] rows: usize,
) {
    let cfg = shape(Family::Qwen3, 2);
    let variant = moe::variant(name).unwrap();
    let units = models::partition(Partition::Random, &variant.spec, &cfg).unwrap();
    for device in devices() {
        if device.is_cpu() && dtype == DType::BF16 {
            continue;
        }
        let store = models::on(&upcycle(models::weights(&cfg, dtype), &cfg, variant, &units, 0).unwrap(), &device);
        for layer in 0..cfg.num_hidden_layers {
            let of_layer = format!("model.layers.{layer}.mlp.");
            // The first layer takes the 40 best, the second all above a score.
            let own = [(MOST, [40.0, 123.0][layer % 2]), (LEAST_SCORE, [0.0, 0.05][layer % 2])];
            for (part, value) in own.into_iter().filter(|_| name == "OwnGate" || name == "DecodedNeurons") {
                store.set(&format!("{of_layer}{part}"), &Tensor::new(&[value as f32], &device).unwrap()).unwrap();
            }
        }
        let model = models::sparse(&cfg, variant, &store, dtype);
        // In bf16 a score at the border of a choice moves a neuron, or an expert, in or out.
        let allowed = if dtype == DType::BF16 && active == ActiveMode::Routed { 0.5 } else { tolerance(dtype) };
        assert_best(model.lm(), &active.pass(), rows, allowed, &format!("{name} on {device:?}"));
    }
}

/// Draws follow the logits: on every device those of the processor, but for draws at a border.
#[test]
fn texts_are_drawn_alike_on_every_device() {
    let cfg = shape(Family::Qwen3, 2);
    let written = |device: &Device| {
        let store = models::on(&models::weights(&cfg, DType::F32), device);
        let lm = models::dense(&cfg, &store, DType::F32);
        lm.generate(prompts(4, 6), &how(Sampling::at(1.0)), &Pass::all(), true, &mut |_| Ok(())).unwrap()
    };
    let expected = written(&Device::Cpu);
    for device in devices() {
        assert_eq!(written(&device), expected, "{device:?}");
        assert_eq!(written(&device), written(&device), "again on {device:?}");
    }
}

/// A row that ends leaves the others what they would have written without it, and so does room that grows.
#[rstest]
fn rows_that_end_change_no_other(#[values(DType::F32, DType::BF16)] dtype: DType) {
    let cfg = shape(Family::Qwen3, 2);
    for device in devices() {
        if device.is_cpu() && dtype == DType::BF16 {
            continue;
        }
        let lm = models::dense(&cfg, &models::on(&models::weights(&cfg, dtype), &device), dtype);
        let whole = lm.generate(prompts(3, 5), &how(Sampling::GREEDY), &Pass::all(), true, &mut |_| Ok(())).unwrap();
        let mut steps = 0;
        let ended = lm.generate(prompts(3, 5), &how(Sampling::GREEDY), &Pass::all(), true, &mut |step| {
            steps += 1;
            if steps == 4 {
                step.ended[1] = true;
            }
            Ok(())
        });
        let ended = ended.unwrap();
        assert_eq!((&ended[0], &ended[2]), (&whole[0], &whole[2]), "{device:?}");
        assert_eq!(ended[1], whole[1][..4]);
    }
}
