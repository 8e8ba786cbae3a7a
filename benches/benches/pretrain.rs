//! Seconds of one training step of a dense model: forward, backward, clip, AdamW.
//!
//! The model and the batch are the defaults of `peers/pretrain_torch.py`; `peers/compare_pretrain.py` runs the two in turns.

use std::time::{Duration, Instant};

use benches::{BATCH, BenchDevice as _, LENGTH, config, group, run, tokens, weights};
use candle_core::{DType, Device, Tensor};
use criterion::Criterion;
use tinyonn::Result;
use tinyonn::checkpoint::Role;
use tinyonn::decoder::{CausalLm, Learn, Pass};
use tinyonn::ops::host;
use tinyonn::train::{Memory, OptimizerConfig, Slot, TrainState};

fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let cfg = config(128, 384);
    let store = weights(&cfg, device)?;
    let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| true))?;
    let slots =
        store.trainable(|_| true).into_iter().map(|(name, var)| Slot::new(name, Role::Expert, 0, var)).collect();
    let optimizer = OptimizerConfig { rate: 2e-3, ..OptimizerConfig::DEFAULT };
    let mut state = TrainState::new(slots, &Memory::DEFAULT)?;
    let mut number = 0;
    let mut step = || -> Result<Duration> {
        number += 1;
        let text = (BATCH, LENGTH);
        let (ids, targets) =
            (tokens(cfg.vocab_size, 2 * number, text, device)?, tokens(cfg.vocab_size, 2 * number + 1, text, device)?);
        device.sync()?;
        let start = Instant::now();
        let forward = model.forward(&ids, &targets, &Pass::all().kept())?;
        let (b, t) = ids.dims2()?;
        let dlosses = Tensor::full(1.0 / (b * t) as f32, (b, t), device)?;
        model.backward(forward.saved, &dlosses, &Learn::default(), &mut state.grads)?;
        state.update(&optimizer, optimizer.rate)?;
        // A training loop looks at its loss.
        host::values(&forward.losses.mean_all()?)?;
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
