//! A training step of a dense model in bf16 under f32 masters and moments, gradients in bf16, and of variants of it with all experts active and routed, a token
//! and a segment at a time, and of the experts alone under Surprise Min-K: forward, backward, norm, clip, AdamW; seconds of the median step and of its parts,
//! tokens a second, the load of the busiest expert beside the mean and, on a GPU, the memory taken.
//!
//! On a GPU the shape is Qwen3-1.7B's, 4 × 2048 tokens; without one it is the small one of `peers/pretrain_torch.py`, in f32, so that the bench can be tried.
//! `-- --layers N` takes N of the layers, for a look at single kernels with a profiler, and `--only NAME` those rows alone whose names begin with it.

use std::collections::HashSet;
use std::time::Instant;

use benches::{BenchDevice as _, config, devices, drawn, qwen3};
use candle_core::{D, DType, Device, Tensor};
use rand::Rng as _;
use tinyonn::checkpoint::{ParamStore, Role, dense_params, upcycle, variant_params};
use tinyonn::decoder::{Arch, Ask, CausalLm, Experts, FeedForward, Learn, Pass, Smk};
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

/// A tenth, for 512 tokens at once; the first of a sequence are computed by all.
#[moe(groups = 10, experts = 10, router = gaussian, top_k = [5, 2], gate = scaled, route_per = segment(512))]
pub struct Segments;

fn main() -> Result<()> {
    let after = |flag: &str| std::env::args().skip_while(|argument| argument != flag).nth(1);
    let layers = after("--layers").and_then(|count| count.parse().ok());
    let only = after("--only").unwrap_or_default();
    devices()?.last().map_or(Ok(()), |device| bench(device, layers, &only))
}

fn bench(device: &Device, layers: Option<usize>, only: &str) -> Result<()> {
    let on_a_card = device.is_cuda();
    let (whole, rows, length) = if on_a_card { (qwen3(), 4, 2048) } else { (config(128, 384), 8, 128) };
    let cfg = Arch { num_hidden_layers: layers.unwrap_or(whole.num_hidden_layers), ..whole };
    let precision = if on_a_card { Precision::Bf16 } else { Precision::F32 };
    let memory = Memory { weights: precision, gradients: precision, ..Memory::DEFAULT };
    let dtype = if on_a_card { DType::BF16 } else { DType::F32 };
    if "dense".starts_with(only) {
        let store = drawn(&cfg, device)?;
        let work = store.work_weights(dtype, |_| Some(dtype))?;
        let mut state = TrainState::new(slots(&work, dense_params(&cfg)), &memory)?;
        let model = CausalLm::dense(&cfg, work.builder())?;
        time("dense", &model, &mut state, &Pass::all(), &ALL_LEARN, (rows, length), device)?;
    }
    let experts_alone = Learn { experts: Experts::Smk(Smk { min_k: 10, ..Smk::DEFAULT }), ..Learn::default() };
    for (name, row, pass, learn) in [
        ("Tenth", "Tenth, all active", Pass::all(), &ALL_LEARN),
        ("Tenth", "Tenth", Pass::routed(), &ALL_LEARN),
        ("Quarter", "Quarter", Pass::routed(), &ALL_LEARN),
        ("HalfOfTen", "HalfOfTen", Pass::routed(), &ALL_LEARN),
        ("Segments", "Segments", Pass::routed(), &ALL_LEARN),
        ("Tenth", "Min-K, 10 of 100, all active", Pass::all(), &experts_alone),
    ] {
        if !row.starts_with(only) {
            continue;
        }
        let variant = moe::variant(name)?;
        let layers = (cfg.num_hidden_layers, cfg.intermediate_size);
        let units = partition::assign(Partition::Random, &variant.spec, layers, PartitionSources::default(), 0)?;
        let store = upcycle(drawn(&cfg, device)?, &cfg, variant, &units, 0)?;
        even(&store)?;
        // Routers stay in f32; under Min-K experts alone learn.
        let mut params = variant_params(&cfg, variant)?;
        params.retain(|param| learn.routers || param.role == Role::Expert);
        let names: HashSet<&str> = params.iter().map(|param| param.name.as_str()).collect();
        let own = |name: &str| if name.contains("_router") { DType::F32 } else { dtype };
        let work = store.work_weights(dtype, |name| names.contains(name).then(|| own(name)))?;
        drop(store);
        let mut state = TrainState::new(slots(&work, params), &memory)?;
        let model = TinyOnnForCausalLm::new(&cfg, variant, work.builder())?;
        time(row, model.lm(), &mut state, &pass, learn, (rows, length), device)?;
    }
    Ok(())
}

/// All weights and the routers.
const ALL_LEARN: Learn = Learn { experts: Experts::All, routers: true, image: None };

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
    learn: &Learn,
    (rows, length): (usize, usize),
    device: &Device,
) -> Result<()> {
    let optimizer = OptimizerConfig { rate: 1e-5, ..OptimizerConfig::DEFAULT };
    let vocab = model.config().vocab_size as u32;
    let mut rng = random::stream(0, "bench/train step");
    let mut times = Vec::with_capacity(STEPS);
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
        model.backward(forward.saved, &dlosses, learn, &mut state.grads)?;
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
