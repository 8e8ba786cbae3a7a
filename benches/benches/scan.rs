//! What imaging adds to the pass that it rides on.
//!
//! Both sides run the same frozen model forward and backward to activations, down to the MLP of layer 0; one sums every neuron's
//! activation and surprise on the way (`imaging::scan` does no more a batch), the other looks and does nothing.

use std::sync::{Arc, Mutex, PoisonError};

use benches::{BATCH, LENGTH, Side, compare, config, run, tokens, weights};
use candle_core::{DType, Device};
use criterion::Criterion;
use tinyonn::Result;
use tinyonn::ops::{self, MlpBackward, MlpProbe, NeuronSums, WeightGrads};
use tinyonn::qwen3::{Qwen3ForCausalLm, RouteCtx};

/// Watches, so that the backward runs, and does nothing.
struct Idle;

impl MlpProbe for Idle {
    fn observe(&self, _: usize, _: &MlpBackward<'_>) -> candle_core::Result<WeightGrads> {
        Ok(WeightGrads::All)
    }
}

/// Sums, as the scan does.
struct Imaging {
    counted: Vec<bool>,
    sums: Mutex<Vec<NeuronSums>>,
}

impl MlpProbe for Imaging {
    fn observe(&self, layer: usize, pass: &MlpBackward<'_>) -> candle_core::Result<WeightGrads> {
        let sums = ops::neuron_moments(pass, &self.counted)?;
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)[layer].add(&sums);
        Ok(WeightGrads::All)
    }
}

fn bench(criterion: &mut Criterion, device: &Device, hidden: usize, intermediate: usize) -> Result<()> {
    let cfg = config(hidden, intermediate);
    let model = Qwen3ForCausalLm::dense(&cfg, &weights(&cfg, device)?.builder(DType::F32, |_| false))?;
    let (ids, targets) = (tokens(cfg.vocab_size, 0, device)?, tokens(cfg.vocab_size, 1, device)?);
    let pass = |probe: Arc<dyn MlpProbe>| {
        let ctx = RouteCtx { probe: Some(probe), ..RouteCtx::all() };
        ops::backward(&model.token_losses(&ids, &targets, &ctx)?.sum_all()?)?;
        Ok(())
    };
    let imaging = Arc::new(Imaging {
        counted: vec![true; BATCH * LENGTH],
        sums: Mutex::new(vec![NeuronSums::zero(intermediate); cfg.num_hidden_layers]),
    });
    let sides = [Side::new("imaging", || pass(imaging.clone())), Side::new("without", || pass(Arc::new(Idle)))];
    compare(criterion, device, &format!("scan/{hidden}x{intermediate}"), sides, Some(1.25))
}

fn main() -> Result<()> {
    run(|criterion, device| {
        bench(criterion, device, 128, 384)?;
        bench(criterion, device, 256, 768)
    })
}
