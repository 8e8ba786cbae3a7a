//! What imaging adds to the pass that it rides on.
//!
//! Both sides run the same frozen model forward and backward to activations, down to the MLP of layer 0; one sums every neuron's
//! activation and surprise on the way, and in a second comparison every expert's norms as well (`imaging::scan_with` does no more a
//! batch), the other looks and does nothing.

use std::sync::{Arc, Mutex, PoisonError};

use benches::{BATCH, LENGTH, Side, compare, config, run, tokens, weights};
use candle_core::{DType, Device};
use criterion::Criterion;
use rand::seq::SliceRandom as _;
use tinyonn::ops::{self, ExpertNeurons, ImageSums, Imaging, MlpBackward, MlpProbe, WeightGrads};
use tinyonn::qwen3::{Qwen3ForCausalLm, RouteCtx};
use tinyonn::{Result, random};

/// Watches, so that the backward runs, and does nothing.
struct Idle;

impl MlpProbe for Idle {
    fn observe(&self, _: usize, _: &MlpBackward<'_>) -> candle_core::Result<WeightGrads> {
        Ok(WeightGrads::All)
    }
}

/// Sums, as the scan does.
struct Scanning {
    counted: Vec<bool>,
    experts: Option<ExpertNeurons>,
    /// By layer, once it was seen.
    sums: Mutex<Vec<Option<ImageSums>>>,
}

impl MlpProbe for Scanning {
    fn observe(&self, layer: usize, pass: &MlpBackward<'_>) -> candle_core::Result<WeightGrads> {
        let imaging = Imaging { experts: self.experts.as_ref(), ..Imaging::default() };
        let seen = ops::image_moments(pass, &self.counted, &imaging)?;
        match &mut self.sums.lock().unwrap_or_else(PoisonError::into_inner)[layer] {
            Some(sums) => sums.add(&seen),
            sums => *sums = Some(seen),
        }
        Ok(WeightGrads::All)
    }
}

/// A random partition into a hundred experts, as widths allow: neurons of an expert lie apart.
fn partition(width: usize) -> Result<ExpertNeurons> {
    let mut experts: Vec<u32> = (0..width).map(|i| (i % 100) as u32).collect();
    experts.shuffle(&mut random::stream(0, "bench/partition"));
    Ok(ExpertNeurons::new(&experts, 100)?)
}

fn bench(
    criterion: &mut Criterion,
    device: &Device,
    (hidden, intermediate): (usize, usize),
    target: f64,
) -> Result<()> {
    let cfg = config(hidden, intermediate);
    let model = Qwen3ForCausalLm::dense(&cfg, &weights(&cfg, device)?.builder(DType::F32, |_| false))?;
    let (ids, targets) = (tokens(cfg.vocab_size, 0, device)?, tokens(cfg.vocab_size, 1, device)?);
    let pass = |probe: Arc<dyn MlpProbe>| {
        let ctx = RouteCtx { probe: Some(probe), ..RouteCtx::all() };
        ops::backward(&model.token_losses(&ids, &targets, &ctx)?.sum_all()?)?;
        Ok(())
    };
    for (name, experts) in [("neurons", None), ("experts", Some(partition(intermediate)?))] {
        let (counted, sums) = (vec![true; BATCH * LENGTH], Mutex::new(vec![None; cfg.num_hidden_layers]));
        let scanning = Arc::new(Scanning { counted, experts, sums });
        let sides = [Side::new("imaging", || pass(scanning.clone())), Side::new("without", || pass(Arc::new(Idle)))];
        compare(criterion, device, &format!("scan/{name}/{hidden}x{intermediate}"), sides, Some(target))?;
    }
    Ok(())
}

fn main() -> Result<()> {
    run(|criterion, device| {
        bench(criterion, device, (128, 384), 1.25)?;
        bench(criterion, device, (256, 768), 1.05)
    })
}
