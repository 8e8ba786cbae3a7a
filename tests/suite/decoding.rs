//! Writing token by token, of one row and of several: every token is the best by the logits of the whole text, and rows do not see each other. On a GPU the steps are captured.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use tinyonn::checkpoint::upcycle;
use tinyonn::decoder::{Arch, AttentionBias, Family, FeedForward, Generation, Pass, Prompt, Sampling};
use tinyonn::imaging::Partition;
use tinyonn::model::ActiveMode;
use tinyonn::moe::{self, KEPT, LEAST_HIDDEN, LEAST_INPUT, LEAST_SCORE, MOST, WORTH, moe};

use crate::gradients::devices;
use crate::models;

/// The same as the gallery's, for fewer neurons.
#[moe(groups = 3, experts = 4, router = gaussian(dim = 5), top_k = [2, 1], gate = scaled, combine = dispatch)]
pub struct DecodedTenth;

/// Neurons that choose themselves among those of a group.
#[moe(levels = [3], router = linear, top_k = 2, neurons = gate)]
pub struct DecodedNeurons;

type Work = Box<dyn FnOnce() + Send>;

/// Does the work of a test on the one thread of this subject, which never ends. A device has one thread of a process (DESIGN); where several test threads captured graphs and ended, a
/// destructor of libcuda's for what is a thread's own has ended the process by a segmentation fault.
fn on_one_thread(work: impl FnOnce() + Send + 'static) {
    static WORKER: OnceLock<Sender<Work>> = OnceLock::new();
    let worker = WORKER.get_or_init(|| {
        let (worker, asked) = channel::<Work>();
        thread::spawn(move || asked.into_iter().for_each(|work| work()));
        worker
    });
    let (tell, told) = channel();
    let work = move || tell.send(catch_unwind(AssertUnwindSafe(work))).unwrap();
    worker.send(Box::new(work)).unwrap();
    if let Err(panic) = told.recv().unwrap() {
        resume_unwind(panic);
    }
}

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
/// Tokens of a prompt.
const LENGTH: usize = 5;

fn how(sampling: Sampling) -> Generation {
    Generation { tokens: TOKENS, stop_ids: Vec::new(), sampling }
}

/// Whether each token behind a prompt is the best by the logits of the whole text, or as good within `tolerance` of their standard deviation.
fn assert_best<F: FeedForward>(
    lm: &tinyonn::decoder::CausalLm<F>,
    pass: &Pass,
    [rows, length]: [usize; 2],
    tolerance: f32,
    of: &str,
) {
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
    #[case] activation: &'static str,
    #[case] group: usize,
    #[values(DType::F32, DType::BF16)] dtype: DType,
    #[values(1, 2, 3, 8, 9)] rows: usize,
) {
    on_one_thread(move || {
        let cfg = Arch { hidden_act: activation.into(), ..shape(family, group) };
        for device in devices() {
            if device.is_cpu() && dtype == DType::BF16 {
                continue;
            }
            let store = models::on(&models::weights(&cfg, dtype), &device);
            assert_best(
                &models::dense(&cfg, &store, dtype),
                &Pass::all(),
                [rows, LENGTH],
                tolerance(dtype),
                &format!("{device:?}"),
            );
        }
    });
}

#[rstest]
fn experts_write_their_best_tokens(
    #[values("DecodedTenth", "Mixtral", "DeepSeek", "OwnGate", "DecodedNeurons", "Pruned", "RandomPaths", "Nucleus")]
    name: &'static str,
    #[values(ActiveMode::All, ActiveMode::Routed)] active: ActiveMode,
    #[values(DType::F32, DType::BF16)] dtype: DType,
    #[values(1, 2, 3)] rows: usize,
) {
    on_one_thread(move || {
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
            assert_best(model.lm(), &active.pass(), [rows, LENGTH], allowed, &format!("{name} on {device:?}"));
        }
    });
}

/// Gates that read a part of x, which lie by channels, and neurons of which a part goes on; among all of them, and among candidates.
#[rstest]
fn three_thresholds_write_their_best_tokens(
    #[values(false, true)] within: bool,
    #[values(DType::F32, DType::BF16)] dtype: DType,
    #[values(1, 2, 3)] rows: usize,
) {
    on_one_thread(move || {
        let cfg = shape(Family::Qwen3, 2);
        let variant = moe::variant("OwnGate").unwrap();
        let units = models::partition(Partition::Random, &variant.spec, &cfg).unwrap();
        let dense = models::weights(&cfg, dtype);
        for device in devices() {
            if device.is_cpu() && dtype == DType::BF16 {
                continue;
            }
            let mut store = models::on(&upcycle(dense.share(), &cfg, variant, &units, 0).unwrap(), &device);
            for layer in 0..cfg.num_hidden_layers {
                let of_layer = format!("model.layers.{layer}.mlp.");
                let gate = dense.get(&format!("{of_layer}gate_proj.weight")).unwrap().as_detached_tensor();
                let size = gate.to_dtype(DType::F32).unwrap().sqr().unwrap().sum(0).unwrap().sqrt().unwrap();
                // A number of spread 1 is larger than a half in six of ten cases.
                let least_input = 0.5 * size.mean_all().unwrap().to_scalar::<f32>().unwrap();
                let one = |value: f32| Tensor::new(&[value], &device).unwrap();
                store.set(&format!("{of_layer}{LEAST_SCORE}"), &one(0.05)).unwrap();
                for (part, value) in [(LEAST_INPUT, least_input), (LEAST_HIDDEN, 0.02)] {
                    store.insert(format!("{of_layer}{part}"), one(value)).unwrap();
                }
                if within {
                    let kept: Vec<f32> =
                        (0..cfg.intermediate_size).map(|at| f32::from(u8::from(at % 3 != 1))).collect();
                    store.insert(format!("{of_layer}{KEPT}"), Tensor::new(kept, &device).unwrap()).unwrap();
                }
            }
            let model = models::sparse(&cfg, variant, &store, dtype);
            // In bf16 a score at the border of a choice moves a neuron in or out.
            let allowed = if dtype == DType::BF16 { 0.5 } else { tolerance(dtype) };
            let pass = ActiveMode::Routed.pass();
            assert_best(model.lm(), &pass, [rows, LENGTH], allowed, &format!("{device:?}"));
        }
    });
}

/// Past 64 positions attention has several parts, past some 128 a lane several rounds of keys.
#[rstest]
fn tokens_behind_long_texts_are_the_best(
    #[values(60, 122, 300)] length: usize,
    #[values(1, 4)] group: usize,
    #[values(DType::F32, DType::BF16)] dtype: DType,
    #[values(1, 2, 3)] rows: usize,
) {
    on_one_thread(move || {
        let cfg = Arch { max_position_embeddings: 512, ..shape(Family::Qwen3, group) };
        for device in devices() {
            if device.is_cpu() && dtype == DType::BF16 {
                continue;
            }
            let lm = models::dense(&cfg, &models::on(&models::weights(&cfg, dtype), &device), dtype);
            assert_best(&lm, &Pass::all(), [rows, length], tolerance(dtype), &format!("{device:?}"));
        }
    });
}

/// What a choice of single neurons has to settle: scores that many share, of which the first ones are taken, and scores that are all below the least one. Rows of W_d and W_u differ, so
/// that other neurons write other tokens.
#[rstest]
#[case::few_share_a_score(300, 0.0)]
#[case::many_share_a_score(5, 0.0)]
#[case::all_share_a_score(1, 0.0)]
#[case::none_stands(300, 1e9)]
fn scores_that_are_level_are_settled_alike(
    #[case] kinds: u32,
    #[case] least: f32,
    #[values(40, 700, 1499)] most: u32,
    #[values(1, 2, 3)] rows: usize,
) {
    on_one_thread(move || {
        let neurons = 1500u32;
        let cfg = Arch { intermediate_size: neurons as usize, ..shape(Family::Qwen3, 2) };
        let variant = moe::variant("OwnGate").unwrap();
        let units = models::partition(Partition::Random, &variant.spec, &cfg).unwrap();
        let like: Vec<u32> = (0..neurons).map(|neuron| neuron % kinds).collect();
        let dense = models::weights(&cfg, DType::F32);
        let of_layer = |layer: usize, part: &str| format!("model.layers.{layer}.mlp.{part}");
        for layer in 0..cfg.num_hidden_layers {
            let gate_proj = of_layer(layer, "gate_proj.weight");
            let gate = dense.get(&gate_proj).unwrap().as_detached_tensor();
            let alike = gate.index_select(&Tensor::new(like.as_slice(), &Device::Cpu).unwrap(), 0).unwrap();
            dense.set(&gate_proj, &alike).unwrap();
        }
        for device in devices() {
            let mut store = models::on(&upcycle(dense.share(), &cfg, variant, &units, 0).unwrap(), &device);
            for layer in 0..cfg.num_hidden_layers {
                let worth = Tensor::ones(neurons as usize, DType::F32, &device).unwrap();
                store.insert(of_layer(layer, WORTH), worth).unwrap();
                for (part, value) in [(MOST, most as f32), (LEAST_SCORE, least)] {
                    store.set(&of_layer(layer, part), &Tensor::new(&[value], &device).unwrap()).unwrap();
                }
            }
            let model = models::sparse(&cfg, variant, &store, DType::F32);
            let pass = ActiveMode::Routed.pass();
            assert_best(model.lm(), &pass, [rows, LENGTH], tolerance(DType::F32), &format!("{device:?}"));
        }
    });
}

/// Draws follow the logits: on every device those of the processor, but for draws at a border.
#[test]
fn texts_are_drawn_alike_on_every_device() {
    on_one_thread(move || {
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
    });
}

/// A row that ends leaves the others what they would have written without it, and so does room that grows.
#[rstest]
fn rows_that_end_change_no_other(#[values(DType::F32, DType::BF16)] dtype: DType) {
    on_one_thread(move || {
        let cfg = shape(Family::Qwen3, 2);
        for device in devices() {
            if device.is_cpu() && dtype == DType::BF16 {
                continue;
            }
            let lm = models::dense(&cfg, &models::on(&models::weights(&cfg, dtype), &device), dtype);
            let whole =
                lm.generate(prompts(3, 5), &how(Sampling::GREEDY), &Pass::all(), true, &mut |_| Ok(())).unwrap();
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
    });
}
