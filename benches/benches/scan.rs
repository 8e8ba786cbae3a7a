//! What imaging adds to the pass that it rides on.
//!
//! Both sides run the same frozen model forward and backward to activations, down to the MLP of layer 0; one sums every neuron's
//! activation and surprise on the way, and in a second comparison every expert's norms as well (`imaging::scan_with` does no more a
//! batch), the other asks nothing. Small models in f32, and on a GPU one of Qwen3-1.7B's shape in bf16 on 4 × 2048 tokens.

use std::cell::RefCell;
use std::sync::Arc;

use benches::{BATCH, LENGTH, Side, compare, config, drawn, qwen3, run, tokens};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use criterion::Criterion;
use rand::seq::SliceRandom as _;
use tinyonn::decoder::{Answers, Arch, CausalLm, FeedForward, ImageAsk, Learn, Mlp, Pass, Trace};
use tinyonn::ops::{ExpertNeurons, GradSite, Grads, ImageTensors};
use tinyonn::{Result, random};

/// An MLP that takes a gradient though nothing of it learns or is asked: the backward runs down to it.
struct Reached(Mlp);

impl FeedForward for Reached {
    type Saved = <Mlp as FeedForward>::Saved;

    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<(Tensor, Trace, Option<Self::Saved>)> {
        self.0.forward(x, pass)
    }

    fn backward(
        &self,
        saved: Self::Saved,
        dy: &Tensor,
        learn: &Learn,
        input: bool,
        grads: &mut Grads,
    ) -> Result<(Option<Tensor>, Answers)> {
        self.0.backward(saved, dy, learn, input, grads)
    }

    fn learns(&self, _: &Learn, _: &Grads) -> bool {
        true
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
    (cfg, dtype): (&Arch, DType),
    text: (usize, usize),
    target: f64,
) -> Result<()> {
    let intermediate = cfg.intermediate_size;
    let reached = |layer, vb: VarBuilder<'_>| Ok(Reached(Mlp::new(cfg, layer, &vb)?));
    let model = CausalLm::new(cfg, &drawn(cfg, device)?.builder(dtype, |_| false), reached)?;
    let (ids, targets) = (tokens(cfg.vocab_size, 0, text, device)?, tokens(cfg.vocab_size, 1, text, device)?);
    let pass = |learn: &Learn| {
        let forward = model.forward(&ids, &targets, &Pass::all().kept())?;
        let ones = forward.losses.ones_like()?;
        model.backward(forward.saved, &ones, learn, &mut Grads::none())
    };
    for (name, experts) in [("neurons", None), ("experts", Some(partition(intermediate)?))] {
        let experts: Vec<ExpertNeurons> =
            experts.iter().flat_map(|experts| vec![experts.clone(); cfg.num_hidden_layers]).collect();
        let image = ImageAsk::Sums {
            counted_t: Tensor::ones(text.0 * text.1, DType::U8, device)?,
            site: GradSite::Weight,
            experts: experts.into(),
            scales: Arc::from([]),
        };
        let asked = Learn { image: Some(Arc::new(image)), ..Learn::default() };
        let sums: RefCell<Vec<Option<ImageTensors>>> = RefCell::new(vec![None; cfg.num_hidden_layers]);
        let imaging = || {
            for (sums, answers) in sums.borrow_mut().iter_mut().zip(pass(&asked)?) {
                *sums = match (sums.take(), answers.sums) {
                    (Some(before), Some(seen)) => Some(before.add(&seen)?),
                    (_, seen) => seen,
                };
            }
            Ok(())
        };
        let without = || pass(&Learn::default()).map(drop);
        let sides = [Side::new("imaging", imaging), Side::new("without", without)];
        compare(criterion, device, &format!("scan/{name}/{}x{intermediate}", cfg.hidden_size), sides, Some(target))?;
    }
    Ok(())
}

fn main() -> Result<()> {
    run(|criterion, device| {
        for (hidden, target) in [(128, 1.25), (256, 1.05)] {
            bench(criterion, device, (&config(hidden, 3 * hidden), DType::F32), (BATCH, LENGTH), target)?;
        }
        if device.is_cpu() {
            return Ok(());
        }
        bench(criterion, device, (&qwen3(), DType::BF16), (4, 2048), 1.05)
    })
}
