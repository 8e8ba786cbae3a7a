//! Seconds of one training step of a dense model: forward, backward, clip, AdamW.
//!
//! The model and the batch are the defaults of `peers/pretrain_torch.py`; `peers/compare_pretrain.py` runs the two in turns.

use std::time::{Duration, Instant};

use benches::{BenchDevice as _, config, group, run, tokens, weights};
use candle_core::{DType, Device};
use criterion::Criterion;
use tinyonn::qwen3::{Qwen3ForCausalLm, RouteCtx};
use tinyonn::train::{AdamW, AdamwConfig};
use tinyonn::{Result, ops};

fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let cfg = config(128, 384);
    let store = weights(&cfg, device)?;
    let model = Qwen3ForCausalLm::dense(&cfg, &store.builder(DType::F32, |_| true))?;
    let vars = store.trainable(|_| true);
    let mut optimizer = AdamW::new(AdamwConfig { rate: 2e-3, ..AdamwConfig::default() });
    let mut number = 0;
    let mut step = || -> Result<Duration> {
        number += 1;
        let (ids, targets) =
            (tokens(cfg.vocab_size, 2 * number, device)?, tokens(cfg.vocab_size, 2 * number + 1, device)?);
        device.sync()?;
        let start = Instant::now();
        let loss = model.token_losses(&ids, &targets, &RouteCtx::all())?.mean_all()?;
        optimizer.step(&vars, &ops::backward(&loss)?, |_| None)?;
        // A training loop looks at its loss.
        loss.to_scalar::<f32>()?;
        device.sync()?;
        Ok(start.elapsed())
    };
    let mut outcome = Ok(());
    group(criterion, device, "pretrain").bench_function("step", |bencher| {
        bencher.iter_custom(|steps| {
            let total: Result<Duration> = (0..steps).map(|_| step()).sum();
            total.unwrap_or_else(|e| {
                outcome = Err(e);
                Duration::from_nanos(1)
            })
        });
    });
    outcome
}

fn main() -> Result<()> {
    run(bench)
}
