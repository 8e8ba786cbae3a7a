//! A training step of a dense model in bf16 under f32 masters and moments, gradients in bf16, and of variants of it with all experts active and routed:
//! forward, backward, norm, clip, AdamW; seconds of the median step and of its parts, tokens a second, the load of the busiest expert beside the mean
//! and, on a GPU, the memory taken.
//!
//! On a GPU the shape is Qwen3-1.7B's, 4 × 2048 tokens; without one it is the small one of `peers/pretrain_torch.py`, in f32, so that the bench can be tried.
//! `-- --layers N` takes N of the layers, for a look at single kernels with a profiler.

use std::time::Instant;

use benches::{BenchDevice as _, config, devices};
use candle_core::{D, DType, Device, Tensor};
use rand::Rng as _;
use tinyonn::checkpoint::{ParamStore, dense_params, upcycle, variant_params};
use tinyonn::decoder::{Arch, Ask, CausalLm, FeedForward, Learn, Pass};
use tinyonn::imaging::{Partition, PartitionSources, partition};
use tinyonn::model::TinyOnnForCausalLm;
use tinyonn::moe::{self, moe};
use tinyonn::ops::host;
use tinyonn::train::state::slots;
use tinyonn::train::{Memory, OptimizerConfig, Precision, TrainState};
use tinyonn::{Result, random};

const STEPS: usize = 8;

/// A tenth of a fine-grained layer.
#[moe(groups = 10, experts = 10, router = gaussian, top_k = [5, 2], gate = scaled, combine = dispatch)]
pub struct Tenth;

/// A quarter of it.
#[moe(groups = 10, experts = 10, router = gaussian, top_k = [5, 5], gate = scaled, combine = dispatch)]
pub struct Quarter;

/// Half of ten wide experts.
#[moe(levels = [10], router = gaussian, top_k = 5, gate = scaled, combine = dispatch)]
pub struct HalfOfTen;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--layers").skip(1);
    let layers = arguments.next().and_then(|count| count.parse().ok());
    devices()?.last().map_or(Ok(()), |device| bench(device, layers))
}

fn bench(device: &Device, layers: Option<usize>) -> Result<()> {
    let on_a_card = device.is_cuda();
    let (whole, rows, length) = if on_a_card { (qwen3(), 4, 2048) } else { (config(128, 384), 8, 128) };
    let cfg = Arch { num_hidden_layers: layers.unwrap_or(whole.num_hidden_layers), ..whole };
    let precision = if on_a_card { Precision::Bf16 } else { Precision::F32 };
    let memory = Memory { weights: precision, gradients: precision, ..Memory::DEFAULT };
    let dtype = if on_a_card { DType::BF16 } else { DType::F32 };
    let store = fresh(&cfg, device)?;
    let work = store.work_weights(dtype, |_| Some(dtype))?;
    let mut state = TrainState::new(slots(&work, dense_params(&cfg)), &memory)?;
    let model = CausalLm::dense(&cfg, work.builder())?;
    time("dense", &model, &mut state, &Pass::all(), (rows, length), device)?;
    drop((model, state, work, store));
    for name in ["Tenth", "Quarter", "HalfOfTen"] {
        let variant = moe::variant(name)?;
        let layers = (cfg.num_hidden_layers, cfg.intermediate_size);
        let units = partition::assign(Partition::Random, &variant.spec, layers, PartitionSources::default(), 0)?;
        let store = upcycle(fresh(&cfg, device)?, &cfg, variant, &units, 0)?;
        even(&store)?;
        // Routers stay in f32.
        let learns = |name: &str| (!name.contains("_router")).then_some(dtype);
        let work = store.work_weights(dtype, learns)?;
        let mut state = TrainState::new(slots(&work, variant_params(&cfg, variant)?), &memory)?;
        let model = TinyOnnForCausalLm::new(&cfg, variant, work.builder())?;
        if name == "Tenth" {
            time("Tenth, all active", model.lm(), &mut state, &Pass::all(), (rows, length), device)?;
        }
        time(name, model.lm(), &mut state, &Pass::routed(), (rows, length), device)?;
    }
    Ok(())
}

/// Weights drawn on the device.
fn fresh(cfg: &Arch, device: &Device) -> Result<ParamStore> {
    let mut store = ParamStore::new(device);
    for param in dense_params(cfg) {
        let norm = param.stored.len() == 1;
        let value = if norm {
            Tensor::ones(param.stored.as_slice(), DType::F32, device)?
        } else {
            Tensor::randn(0f32, 0.02, param.stored.as_slice(), device)?
        };
        store.insert_stored(&param.name, value)?;
    }
    Ok(store)
}

/// Means of routers of one norm: no choice is likelier than another, as behind a fit, and unlike drawn ones.
fn even(store: &ParamStore) -> Result<()> {
    for (name, mean) in store.iter().filter(|(name, _)| name.ends_with("_router.mean")) {
        let root = mean.sqr()?.mean_keepdim(D::Minus1)?.sqrt()?;
        store.set(name, &mean.broadcast_div(&root)?)?;
    }
    Ok(())
}

fn time<F: FeedForward>(
    name: &str,
    model: &CausalLm<F>,
    state: &mut TrainState,
    pass: &Pass,
    (rows, length): (usize, usize),
    device: &Device,
) -> Result<()> {
    let optimizer = OptimizerConfig { rate: 1e-5, ..OptimizerConfig::DEFAULT };
    let vocab = model.config().vocab_size as u32;
    let mut rng = random::stream(0, "bench/train step");
    let mut times = Vec::with_capacity(STEPS);
    let learn = Learn { routers: true, ..Learn::default() };
    let (mut loss, mut busiest) = (0.0, 1.0);
    for step in 0..STEPS + 2 {
        let text: Vec<u32> = (0..=rows * length).map(|_| rng.random_range(0..vocab)).collect();
        let part = |from: usize| Tensor::from_slice(&text[from..][..rows * length], (rows, length), device);
        let (ids, targets) = (part(0)?, part(1)?);
        device.sync()?;
        let mut marks = vec![Instant::now()];
        let forward = model.forward(&ids, &targets, &pass.kept())?;
        device.sync()?;
        marks.push(Instant::now());
        let dlosses = Tensor::full(1.0 / (rows * length) as f32, (rows, length), device)?;
        state.grads.begin();
        model.backward(forward.saved, &dlosses, &learn, &mut state.grads)?;
        device.sync()?;
        marks.push(Instant::now());
        state.update(&optimizer, optimizer.rate)?;
        loss = f64::from(host::values(&forward.losses.mean_all()?)?.first().copied().unwrap_or(f32::NAN));
        device.sync()?;
        marks.push(Instant::now());
        if step == 0 {
            busiest = load(model, (&ids, &targets), pass)?;
        }
        // The first steps load kernels.
        if step >= 2 {
            times.push([0, 1, 2].map(|part| (marks[part + 1] - marks[part]).as_secs_f64()));
        }
    }
    let whole = |parts: &[f64; 3]| parts.iter().sum::<f64>();
    times.sort_by(|a, b| whole(a).total_cmp(&whole(b)));
    let median = times[times.len() / 2];
    println!(
        "{}: {:.1} ms (forward {:.1}, backward {:.1}, update {:.1}), {:.0} tokens/s, loss {loss:.3}, load {busiest:.2}{}",
        device.bench_name(&format!("train_step/{name}")),
        1e3 * whole(&median),
        1e3 * median[0],
        1e3 * median[1],
        1e3 * median[2],
        (rows * length) as f64 / whole(&median),
        memory_taken()
    );
    Ok(())
}

/// The tokens of the busiest expert of any layer beside the mean; 1 where nothing is routed.
fn load<F: FeedForward>(model: &CausalLm<F>, (ids, targets): (&Tensor, &Tensor), pass: &Pass) -> Result<f32> {
    let ask = Ask { load: true, ..Ask::default() };
    let forward = model.forward(ids, targets, &Pass { ask, ..pass.clone() })?;
    let mut busiest = 1f32;
    for load in forward.traces.iter().filter_map(|trace| trace.load.as_ref()) {
        let tokens = host::values(&load.tokens_n)?;
        let mean = tokens.iter().sum::<f32>() / tokens.len().max(1) as f32;
        busiest = tokens.iter().fold(busiest, |most, tokens| most.max(tokens / mean.max(1.0)));
    }
    Ok(busiest)
}

/// Memory of the card that is not free: this process's, where nobody else is on it.
#[cfg(feature = "cuda")]
fn memory_taken() -> String {
    match candle_core::cuda_backend::cudarc::driver::result::mem_get_info() {
        Ok((free, total)) => format!(", {:.1} GB taken", (total - free) as f64 / 1e9),
        Err(_) => String::new(),
    }
}

#[cfg(not(feature = "cuda"))]
fn memory_taken() -> String {
    String::new()
}

/// Qwen3-1.7B.
fn qwen3() -> Arch {
    Arch {
        vocab_size: 151_936,
        num_hidden_layers: 28,
        num_attention_heads: 16,
        num_key_value_heads: 8,
        head_dim: 128,
        max_position_embeddings: 40_960,
        rope_theta: 1e6,
        ..config(2048, 6144)
    }
}
