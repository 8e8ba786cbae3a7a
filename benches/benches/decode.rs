//! Tokens written one by one, as `generate` does: the dense model, variants of it with all experts active, and routed; one prompt and eight of equal length.
//! The shape is SmolLM2-135M's with fresh weights; milliseconds a token of each row's median run, all kinds in turns.

use std::time::Instant;

use benches::{config, weights};
use candle_core::{DType, Device};
use tinyonn::Result;
use tinyonn::checkpoint::{LoadedModel, upcycle};
use tinyonn::decoder::{Arch, CausalLm, Generation, Prompt, Sampling};
use tinyonn::imaging::{Partition, PartitionSources, partition};
use tinyonn::model::{ActiveMode, TinyOnnForCausalLm};
use tinyonn::moe;

const PROMPT: u32 = 64;
const TOKENS: usize = 33;
const ROUNDS: usize = 5;

fn main() -> Result<()> {
    let shape = config(576, 1536);
    let cfg = Arch {
        vocab_size: 49_152,
        num_hidden_layers: 30,
        num_attention_heads: 9,
        num_key_value_heads: 3,
        head_dim: 64,
        ..shape
    };
    let store = weights(&cfg, &Device::Cpu)?;
    let dense = LoadedModel::Dense(CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?);
    let mut kinds = vec![("dense".to_owned(), dense, ActiveMode::All)];
    for name in ["TinyOnn", "Mixtral"] {
        let variant = moe::variant(name)?;
        let layers = (cfg.num_hidden_layers, cfg.intermediate_size);
        let units = partition::assign(Partition::Contiguous, &variant.spec, layers, PartitionSources::default(), 0)?;
        let sparse = upcycle(store.share(), &cfg, variant, &units, 0)?;
        for (mode, active) in [("all active", ActiveMode::All), ("routed", ActiveMode::Routed)] {
            let model = TinyOnnForCausalLm::new(&cfg, variant, &sparse.builder(DType::F32, |_| false))?;
            kinds.push((format!("{name}, {mode}"), LoadedModel::TinyOnn(model, active), active));
        }
    }
    for rows in [1, 8] {
        let mut times = vec![Vec::with_capacity(ROUNDS); kinds.len()];
        for _ in 0..ROUNDS {
            for ((_, model, active), times) in kinds.iter().zip(&mut times) {
                times.push(a_token(model, *active, rows)?);
            }
        }
        let medians: Vec<f64> = times.into_iter().map(median).collect();
        for ((name, ..), time) in kinds.iter().zip(&medians) {
            println!("cpu/decode: {rows} × {name}: {:.2} ms a step, {:.2} of dense", 1e3 * time, time / medians[0]);
        }
    }
    Ok(())
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

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
