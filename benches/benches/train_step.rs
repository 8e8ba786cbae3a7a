//! A training step of a dense model in bf16 under f32 masters and moments, gradients in bf16, and of variants of it with all experts active and routed, a token
//! and a segment at a time, and of the experts alone under Surprise Min-K: forward, backward, norm, clip, AdamW; seconds of the median step and of its parts,
//! tokens a second, the load of the busiest expert beside the mean and, on a GPU, the memory taken.
//!
//! On a GPU the shape is Qwen3-1.7B's, 4 × 2048 tokens; without one it is the small one of `peers/pretrain_torch.py`, in f32, so that the bench can be tried.
//! `-- --layers N` takes N of the layers, for a look at single kernels with a profiler, `--only NAME` those rows alone whose names begin with it, `--parts N` that
//! many micro-batches. Started as several ranks (torchrun's variables and TINYONN_TOKEN), each on its own GPU, they train one model, each as many tokens as one alone;
//! then each card trains by itself, as many tokens as its part and as many as all of them, and what the slowest took stands beside the row.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use benches::{BenchDevice as _, config, devices, drawn, qwen3};
use candle_core::{D, DType, Device, Tensor, Var};
use rand::Rng as _;
use tinyonn::checkpoint::{ParamStore, Role, dense_params, upcycle, variant_params};
use tinyonn::decoder::{Arch, Ask, CausalLm, Experts, FeedForward, Learn, Pass, Smk};
use tinyonn::imaging::{Partition, PartitionSources, partition};
use tinyonn::model::TinyOnnForCausalLm;
use tinyonn::moe::{self, moe};
use tinyonn::ops::host;
use tinyonn::phases::DeviceName;
use tinyonn::ranks::address::meeting_place;
use tinyonn::ranks::launcher::of_environment;
use tinyonn::ranks::{Collective, Greeting, Meeting, Token, end_now};
use tinyonn::train::state::slots;
use tinyonn::train::{Memory, OptimizerConfig, Precision, Slot, TrainState, begin};
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

/// What the command line asks.
struct Asked {
    layers: Option<usize>,
    parts: usize,
    only: String,
}

/// Where it runs: alone, or as one of several ranks.
struct Place {
    device: Device,
    ranks: Option<Arc<dyn Collective>>,
}

impl Place {
    fn rank(&self) -> usize {
        self.ranks.as_ref().map_or(0, |ranks| ranks.rank())
    }

    fn count(&self) -> usize {
        self.ranks.as_ref().map_or(1, |ranks| ranks.ranks())
    }

    fn own_text(&self) -> Range<usize> {
        self.rank()..self.rank() + 1
    }
}

fn main() -> Result<()> {
    let after = |flag: &str| std::env::args().skip_while(|argument| argument != flag).nth(1);
    let number = |flag: &str| after(flag).and_then(|count| count.parse().ok());
    let only = after("--only").unwrap_or_default();
    let asked = Asked { layers: number("--layers"), parts: number("--parts").unwrap_or(1), only };
    let Some(launched) = of_environment()? else {
        let Some(device) = devices()?.pop() else { return Ok(()) };
        return bench(&Place { device, ranks: None }, &asked);
    };
    let variable = |name: &str| std::env::var(name).ok();
    let device = DeviceName::Cuda(launched.gpu(&variable)).open()?;
    let meeting = Meeting {
        place: &meeting_place(None, &launched, &variable)?,
        launched: &launched,
        token: &Token::of_environment(&variable)?,
        limit: Duration::from_mins(2),
        shared: None,
        gift: &|| Ok(Vec::new()),
    };
    let together = begin(&meeting, Greeting::default(), &device, Duration::from_mins(1), |error| end_now(&error, 2))?;
    bench(&Place { device, ranks: Some(together.ranks.clone()) }, &asked)
}

fn bench(place: &Place, asked: &Asked) -> Result<()> {
    let (device, ranks, only) = (&place.device, place.ranks.as_ref(), asked.only.as_str());
    let on_a_card = device.is_cuda();
    let (whole, rows, length) = if on_a_card { (qwen3(), 4, 2048) } else { (config(128, 384), 8, 128) };
    let cfg = Arch { num_hidden_layers: asked.layers.unwrap_or(whole.num_hidden_layers), ..whole };
    let precision = if on_a_card { Precision::Bf16 } else { Precision::F32 };
    let memory = Memory { weights: precision, gradients: precision, ..Memory::DEFAULT };
    let dtype = if on_a_card { DType::BF16 } else { DType::F32 };
    let batch = (asked.parts, rows, length);
    if "dense".starts_with(only) {
        let mut store = drawn(&cfg, device)?;
        if ranks.is_some() {
            store.keep_on_host(|_| true)?;
        }
        let work = store.work_weights(dtype, |_| Some(dtype))?;
        drop(store);
        let mut state = TrainState::among(slots(&work, dense_params(&cfg)), &memory, ranks)?;
        let model = CausalLm::dense(&cfg, work.builder())?;
        let texts = place.own_text();
        let row = Row { name: "dense", model: &model, pass: &Pass::all(), learn: &ALL_LEARN, batch, texts };
        let together = row.time(&mut state, place)?;
        collectives(&state, place)?;
        drop(state);
        row.beside(together, || TrainState::new(on_card(slots(&work, dense_params(&cfg)))?, &memory), place)?;
    }
    let ten = Experts::Smk(Smk { min_k: 10, ..Smk::DEFAULT });
    let experts_alone = Learn { experts: ten, ranks: ranks.cloned(), ..Learn::default() };
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
        let mut store = upcycle(drawn(&cfg, device)?, &cfg, variant, &units, 0)?;
        even(&store)?;
        // Routers stay in f32; under Min-K experts alone learn.
        let mut params = variant_params(&cfg, variant)?;
        params.retain(|param| learn.routers || param.role == Role::Expert);
        let names: HashSet<&str> = params.iter().map(|param| param.name.as_str()).collect();
        let own = |name: &str| if name.contains("_router") { DType::F32 } else { dtype };
        if ranks.is_some() {
            store.keep_on_host(|name| names.contains(name) && own(name) != DType::F32)?;
        }
        let work = store.work_weights(dtype, |name| names.contains(name).then(|| own(name)))?;
        drop(store);
        let mut state = TrainState::among(slots(&work, params.clone()), &memory, ranks)?;
        let model = TinyOnnForCausalLm::new(&cfg, variant, work.builder())?;
        let texts = place.own_text();
        let row = Row { name: row, model: model.lm(), pass: &pass, learn, batch, texts };
        let together = row.time(&mut state, place)?;
        drop(state);
        row.beside(together, || TrainState::new(on_card(slots(&work, params.clone()))?, &memory), place)?;
    }
    Ok(())
}

/// The slots with their masters on the card, where one rank steps all of them.
fn on_card(slots: Vec<Slot>) -> Result<Vec<Slot>> {
    let moved = slots.into_iter().map(|mut slot| {
        let device = slot.var.device();
        let whole = |master: &Var| Var::from_tensor(&master.as_detached_tensor().to_device(device)?);
        slot.master = slot.master.as_ref().map(whole).transpose()?;
        Ok(slot)
    });
    moved.collect()
}

/// All weights and the routers.
const ALL_LEARN: Learn = Learn { experts: Experts::All, routers: true, image: None, ranks: None };

/// What the sums and copies of a step take by themselves, where there are several ranks.
fn collectives(state: &TrainState, place: &Place) -> Result<()> {
    let Some(ranks) = &place.ranks else { return Ok(()) };
    let buckets = state.grads.buckets().iter().map(|bucket| &bucket.values);
    let shards = buckets.clone().map(|bucket| Ok(bucket.narrow(0, 0, bucket.dim(0)? / ranks.ranks())?));
    let shards = shards.collect::<Result<Vec<Tensor>>>()?;
    let mut best = [f64::INFINITY; 2];
    for _ in 0..STEPS {
        place.device.sync()?;
        let began = Instant::now();
        buckets.clone().try_for_each(|bucket| ranks.reduce_scatter(bucket).map(drop))?;
        place.device.sync()?;
        let summed = Instant::now();
        shards.iter().try_for_each(|shard| ranks.all_gather(shard).map(drop))?;
        place.device.sync()?;
        best[0] = best[0].min((summed - began).as_secs_f64());
        best[1] = best[1].min(summed.elapsed().as_secs_f64());
    }
    if place.rank() == 0 {
        let [sum, gather] = best.map(|seconds| 1e3 * seconds);
        println!("collectives alone, least of {STEPS}: {sum:.2} ms to sum, {gather:.2} ms to gather");
    }
    Ok(())
}

/// Means of routers of one norm: no choice is likelier than another, as behind a fit, and unlike drawn ones.
fn even(store: &ParamStore) -> Result<()> {
    for (name, mean) in store.iter().filter(|(name, _)| name.ends_with("_router.mean")) {
        let root = mean.sqr()?.mean_keepdim(D::Minus1)?.sqrt()?;
        store.set(name, &mean.broadcast_div(&root)?)?;
    }
    Ok(())
}

/// What is timed.
struct Row<'a, F: FeedForward> {
    name: &'a str,
    model: &'a CausalLm<F>,
    pass: &'a Pass,
    learn: &'a Learn,
    /// Micro-batches of each text, sequences of each, tokens of a sequence.
    batch: (usize, usize, usize),
    /// The ranks whose text this process reads.
    texts: Range<usize>,
}

impl<F: FeedForward> Row<'_, F> {
    /// Seconds of the median step; the first rank prints its row.
    fn time(&self, state: &mut TrainState, place: &Place) -> Result<f64> {
        let Self { name, model, pass, learn, batch: (parts, rows, length), ref texts } = *self;
        let parts_in_all = parts * texts.len();
        let device = &place.device;
        let optimizer = OptimizerConfig { rate: 1e-5, ..OptimizerConfig::DEFAULT };
        let vocab = model.config().vocab_size as u32;
        let mut texts: Vec<_> = texts.clone().map(|rank| random::stream(rank as u64, "bench/train step")).collect();
        let mut times = Vec::with_capacity(STEPS);
        let tokens = parts_in_all * rows * length * place.count();
        let (mut loss, mut busiest) = (0.0, 1.0);
        for step in 0..STEPS + 2 {
            let (mut spent, mut losses) = ([0.0; 3], Vec::with_capacity(parts_in_all));
            state.grads.begin();
            for part in 0..parts_in_all {
                let rng = &mut texts[part / parts];
                let text: Vec<u32> = (0..=rows * length).map(|_| rng.random_range(0..vocab)).collect();
                let cut = |from: usize| Tensor::from_slice(&text[from..][..rows * length], (rows, length), device);
                let (ids, targets) = (cut(0)?, cut(1)?);
                device.sync()?;
                let began = Instant::now();
                let forward = model.forward(&ids, &targets, &pass.kept())?;
                device.sync()?;
                let passed = Instant::now();
                let dlosses = Tensor::full(1.0 / tokens as f32, (rows, length), device)?;
                model.backward(forward.saved, &dlosses, learn, &mut state.grads)?;
                device.sync()?;
                spent[0] += (passed - began).as_secs_f64();
                spent[1] += passed.elapsed().as_secs_f64();
                losses.push(forward.losses.mean_all()?);
                if step == 0 && part == 0 {
                    busiest = load(model, (&ids, &targets), pass)?;
                }
            }
            let began = Instant::now();
            state.update(&optimizer, optimizer.rate)?;
            let mean = Tensor::stack(&losses, 0)?.mean_all()?;
            loss = f64::from(host::values(&mean)?.first().copied().unwrap_or(f32::NAN));
            device.sync()?;
            spent[2] = began.elapsed().as_secs_f64();
            // The first steps load kernels.
            if step >= 2 {
                times.push(spent);
            }
        }
        let whole = |parts: &[f64; 3]| parts.iter().sum::<f64>();
        times.sort_by(|a, b| whole(a).total_cmp(&whole(b)));
        let median = times[times.len() / 2];
        if place.rank() == 0 {
            println!(
                "{}: {:.1} ms (forward {:.1}, backward {:.1}, update {:.1}), {:.0} tokens/s, loss {loss:.3}, load {busiest:.2}{}",
                device.bench_name(&format!("train_step/{name}{}", how_many(place.count(), parts_in_all))),
                1e3 * whole(&median),
                1e3 * median[0],
                1e3 * median[1],
                1e3 * median[2],
                tokens as f64 / whole(&median),
                memory_taken(device)
            );
        }
        Ok(whole(&median))
    }

    /// What several ranks gain: a step of theirs took `together`; then each card trains by itself on its own text, from `alone` on, all at once, and on that of all ranks.
    fn beside(&self, together: f64, alone: impl Fn() -> Result<TrainState>, place: &Place) -> Result<()> {
        let Some(ranks) = &place.ranks else { return Ok(()) };
        let learn = Learn { ranks: None, ..self.learn.clone() };
        let place = Place { device: place.device.clone(), ranks: None };
        // Each its own part of a step, then all parts.
        for texts in [self.texts.clone(), 0..ranks.ranks()] {
            let count = texts.len();
            let row = Row { learn: &learn, texts, ..*self };
            let took = row.time(&mut alone()?, &place)?;
            let all = ranks.all_gather(&Tensor::new(&[took], &place.device)?)?;
            let slowest = all.to_vec1::<f64>()?.into_iter().fold(0.0, f64::max);
            if ranks.rank() > 0 {
                continue;
            }
            let what = if count == 1 { "a rank's part" } else { "the same batch" };
            // What a step would take if ranks shared the work and nothing else.
            let ideal = slowest / count as f64;
            let (gain, added) = (ranks.ranks() as f64 * ideal / together, 1e3 * (together - ideal));
            println!(
                "  {} ranks beside {what} on the slowest card alone ({:.1} ms): {gain:.3} times as fast, {added:+.1} ms a step",
                ranks.ranks(),
                1e3 * slowest
            );
        }
        Ok(())
    }
}

fn how_many(ranks: usize, parts: usize) -> String {
    let ranks = if ranks > 1 { format!(", {ranks} ranks") } else { String::new() };
    let parts = if parts > 1 { format!(", {parts} parts") } else { String::new() };
    ranks + &parts
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

/// Memory of the card that is not free (this process's, where nobody else is on it), and the most that tensors have taken of it at once in any row so far.
#[cfg(feature = "cuda")]
fn memory_taken(device: &Device) -> String {
    let taken = candle_core::cuda_backend::cudarc::driver::result::mem_get_info().map(|(free, total)| total - free);
    match (taken, tinyonn::ops::card::most_used(device)) {
        (Ok(taken), Ok(most)) => {
            format!(", {:.1} GB taken, {:.1} by tensors at most", taken as f64 / 1e9, most as f64 / 1e9)
        }
        _ => String::new(),
    }
}

#[cfg(not(feature = "cuda"))]
fn memory_taken(_: &Device) -> String {
    String::new()
}
