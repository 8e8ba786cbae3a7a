//! Tokens written one by one, as `generate` does: the dense model, variants of it with all experts active, and routed; one prompt and eight of equal length; f32
//! on the CPU, bf16 on a GPU. The shape is SmolLM2-135M's with fresh weights, on a GPU Qwen3-1.7B's; milliseconds a token of each row's median run, all kinds in
//! turns, and on a GPU the rate at which the weights would have to be read for it, beside the rate of a copy. `--rounds N` sets how many; a build for a GPU times that alone.
//! `peers/decode_llama_cpp.py` runs it and llama.cpp in turns.

use std::time::Instant;

use benches::{BenchDevice as _, config, devices, drawn, median, qwen3, weights};
use candle_core::{DType, Device, Tensor};
use tinyonn::checkpoint::{LoadedModel, upcycle};
use tinyonn::decoder::{Arch, CausalLm, Generation, Prompt, Sampling};
use tinyonn::imaging::{Partition, PartitionSources, partition};
use tinyonn::model::{ActiveMode, TinyOnnForCausalLm};
use tinyonn::moe::{self, MOST, Neurons, moe};
use tinyonn::{Error, Result};

const PROMPT: u32 = 64;
const TOKENS: usize = 33;
/// The share of the MLPs' operations that a token of single neurons takes: all rows of W_g, and a quarter of the others.
const SHARE: f64 = 0.5;

fn main() -> Result<()> {
    let rounds = rounds()?;
    devices()?.last().map_or(Ok(()), |device| bench(device, rounds))
}

/// A tenth of a fine-grained layer.
#[moe(groups = 10, experts = 10, router = gaussian, top_k = [5, 2], gate = scaled, combine = dispatch)]
pub struct Tenth;

/// A billion values of bf16 copied: bytes read and written a second.
fn copy_rate(device: &Device) -> Result<f64> {
    let values = Tensor::zeros(1 << 30, DType::BF16, device)?;
    let mut seconds = Vec::new();
    for _ in 0..5 {
        device.sync()?;
        let start = Instant::now();
        let copy = values.copy()?;
        device.sync()?;
        seconds.push(start.elapsed().as_secs_f64());
        drop(copy);
    }
    Ok(2.0 * 2.0 * f64::from(1 << 30) / median(seconds))
}

fn bench(device: &Device, rounds: usize) -> Result<()> {
    let dtype = if device.is_cpu() { DType::F32 } else { DType::BF16 };
    let cfg = if device.is_cpu() { smollm2() } else { qwen3() };
    let store = if device.is_cpu() { weights(&cfg, device)? } else { drawn(&cfg, device)? };
    let copied = if device.is_cpu() { None } else { Some(copy_rate(device)?) };
    // All but the embedding's, of which a token reads a row; a tied head reads it whole.
    let bytes = store.iter().map(|(_, var)| var.elem_count() * dtype.size_in_bytes()).sum::<usize>() as f64;
    let dense = LoadedModel::Dense(CausalLm::dense(&cfg, &store.builder(dtype, |_| false))?);
    let mut kinds = vec![("dense".to_owned(), dense, ActiveMode::All)];
    let names = if device.is_cpu() { ["TinyOnn", "Mixtral", "OwnGate"] } else { ["Tenth", "Mixtral", "OwnGate"] };
    for name in names {
        let variant = moe::variant(name)?;
        let layers = (cfg.num_hidden_layers, cfg.intermediate_size);
        let units = partition::assign(Partition::Contiguous, &variant.spec, layers, PartitionSources::default(), 0)?;
        let sparse = upcycle(store.share(), &cfg, variant, &units, 0)?;
        let chosen = ((3.0 * SHARE - 1.0) / 2.0 * cfg.intermediate_size as f64) as f32;
        if variant.spec.neurons == Neurons::Gate {
            for layer in 0..cfg.num_hidden_layers {
                let name = format!("model.layers.{layer}.mlp.{MOST}");
                sparse.set(&name, &Tensor::new(&[chosen], device)?)?;
            }
        }
        for (mode, active) in [("all active", ActiveMode::All), ("routed", ActiveMode::Routed)] {
            let model = TinyOnnForCausalLm::new(&cfg, variant, &sparse.builder(dtype, |_| false))?;
            kinds.push((format!("{name}, {mode}"), LoadedModel::TinyOnn(model, active), active));
        }
    }
    for rows in [1, 8] {
        let mut times = vec![Vec::with_capacity(rounds); kinds.len()];
        for _ in 0..rounds {
            for ((_, model, active), times) in kinds.iter().zip(&mut times) {
                times.push(a_token(model, *active, rows)?);
            }
        }
        let medians: Vec<f64> = times.into_iter().map(median).collect();
        for ((name, ..), time) in kinds.iter().zip(&medians) {
            let rate = copied.map_or_else(String::new, |copied| {
                let read = bytes / time;
                format!(
                    ", all weights at {:.2} TB/s, {:.2} of a copy's {:.2}",
                    read / 1e12,
                    read / copied,
                    copied / 1e12
                )
            });
            println!(
                "{}: {rows} × {name}: {:.3} ms a step, {:.1} tokens/s, {:.2} of dense{rate}",
                device.bench_name("decode"),
                1e3 * time,
                f64::from(rows) / time,
                time / medians[0]
            );
        }
    }
    Ok(())
}

/// SmolLM2-135M.
fn smollm2() -> Arch {
    Arch {
        vocab_size: 49_152,
        num_hidden_layers: 30,
        num_attention_heads: 9,
        num_key_value_heads: 3,
        head_dim: 64,
        ..config(576, 1536)
    }
}

/// What `--rounds` says; cargo's own arguments pass.
fn rounds() -> Result<usize> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--rounds").skip(1);
    let Some(given) = arguments.next() else { return Ok(5) };
    match given.parse() {
        Ok(rounds) if rounds > 0 => Ok(rounds),
        _ => Err(Error::setting("--rounds", format!("{given} is no number of rounds"), "give 1 or more")),
    }
}

/// Seconds from a token to the next, of `rows` prompts.
fn a_token(model: &LoadedModel, active: ActiveMode, rows: u32) -> Result<f64> {
    let prompt = |row| Prompt::new((0..PROMPT).map(|at| 7 * at + row).collect(), 0, 0);
    let how = Generation { tokens: TOKENS, stop_ids: Vec::new(), sampling: Sampling::GREEDY };
    let mut steps = Vec::with_capacity(TOKENS);
    model.generate((0..rows).map(prompt).collect(), &how, &active.pass(), &mut |_| {
        steps.push(Instant::now());
        Ok(())
    })?;
    let spent = steps.last().zip(steps.first()).map_or(0.0, |(last, first)| (*last - *first).as_secs_f64());
    Ok(spent / (TOKENS - 1) as f64)
}
