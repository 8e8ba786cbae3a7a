//! Shared set-up of the benches: devices, models, and two pieces of work timed in turns.
//!
//! A ratio is worth more than a time: on a machine with other work, times drift by more than what is to be seen. [`compare`] therefore runs
//! both sides alternately within one measurement and reports the median of the pairs' ratios and the ratio of the minima.
//!
//! `cargo bench -p benches` runs all of them on the CPU; with `--features cuda` on the first GPU too.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode};
use rand::Rng as _;
use tinyonn::checkpoint::{ParamStore, dense_params};
use tinyonn::decoder::{Arch, AttentionBias, CausalLm, Family, RopeScaling};
use tinyonn::phases::DeviceName;
use tinyonn::{Result, random};

/// What timing needs of a device.
pub trait BenchDevice {
    /// Waits until all work that was given to it is done.
    ///
    /// # Errors
    /// What the device reports: a kernel that failed.
    fn sync(&self) -> Result<()>;

    /// `name` with the device in front, the name of a group of benches.
    fn bench_name(&self, name: &str) -> String;
}

impl BenchDevice for Device {
    fn sync(&self) -> Result<()> {
        Ok(self.synchronize()?)
    }

    fn bench_name(&self, name: &str) -> String {
        let device = if self.is_cuda() { "cuda" } else { "cpu" };
        format!("{device}/{name}")
    }
}

/// The CPU and, in a build with `cuda`, the first GPU.
///
/// # Errors
/// A GPU that cannot be opened.
pub fn devices() -> Result<Vec<Device>> {
    let mut devices = vec![Device::Cpu];
    if cfg!(feature = "cuda") {
        devices.push(DeviceName::Cuda(0).open()?);
    }
    Ok(devices)
}

/// Runs `bench` on every device, as the `main` of a bench does.
///
/// # Errors
/// Whatever `bench` reports.
pub fn run(bench: impl Fn(&mut Criterion, &Device) -> Result<()>) -> Result<()> {
    let criterion =
        Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(5));
    let mut criterion = criterion.sample_size(20).configure_from_args();
    devices()?.iter().try_for_each(|device| bench(&mut criterion, device))?;
    criterion.final_summary();
    Ok(())
}

/// An iteration on a device, which says how long it took.
type Iteration<'a> = dyn FnMut(&Device) -> Result<Duration> + 'a;

/// One side of a comparison.
pub struct Side<'a> {
    /// Its name within the group.
    pub name: &'static str,
    /// The time of one iteration.
    iteration: Box<Iteration<'a>>,
}

impl<'a> Side<'a> {
    /// A side that does `work` once an iteration.
    pub fn new(name: &'static str, mut work: impl FnMut() -> Result<()> + 'a) -> Self {
        Self::prepared(name, || Ok(()), move |()| work())
    }

    /// A side that does `work` once an iteration on what `prepare` makes, whose time does not count.
    pub fn prepared<T>(
        name: &'static str,
        mut prepare: impl FnMut() -> Result<T> + 'a,
        mut work: impl FnMut(T) -> Result<()> + 'a,
    ) -> Self {
        let iteration = move |device: &Device| {
            let made = prepare()?;
            device.sync()?;
            let start = Instant::now();
            work(made)?;
            device.sync()?;
            Ok(start.elapsed())
        };
        Self { name, iteration: Box::new(iteration) }
    }
}

/// A group for work of milliseconds: every sample has the same number of iterations.
pub fn group<'a>(criterion: &'a mut Criterion, device: &Device, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(device.bench_name(name));
    group.sampling_mode(SamplingMode::Flat);
    group
}

/// Benches `ours` and `theirs` in turns and prints the ratio of their times, with the `target` it should stay under, if there is one.
///
/// # Errors
/// Whatever either side reports.
pub fn compare(
    criterion: &mut Criterion,
    device: &Device,
    name: &str,
    [ours, theirs]: [Side<'_>; 2],
    target: Option<f64>,
) -> Result<()> {
    let names = [ours.name, theirs.name];
    let sides = RefCell::new([ours, theirs]);
    let pairs = RefCell::new(Vec::new());
    let failure = RefCell::new(None);
    let turn = |first: usize| -> Result<[Duration; 2]> {
        let mut sides = sides.borrow_mut();
        let mut times = [Duration::ZERO; 2];
        for side in [first, 1 - first] {
            times[side] = (sides[side].iteration)(device)?;
        }
        Ok(times)
    };
    let mut group = group(criterion, device, name);
    for side in 0..2 {
        group.bench_function(names[side], |bencher| {
            bencher.iter_custom(|iterations| {
                let mut own = Duration::ZERO;
                for iteration in 0..iterations as usize {
                    // Each side goes first in half of the turns.
                    match turn(iteration % 2) {
                        Ok(times) => {
                            pairs.borrow_mut().push(times.map(|time| time.as_secs_f64()));
                            own += times[side];
                        }
                        Err(e) => *failure.borrow_mut() = Some(e),
                    }
                }
                // Criterion refuses a measurement of nothing.
                own.max(Duration::from_nanos(1))
            });
        });
    }
    group.finish();
    if let Some(e) = failure.into_inner() {
        return Err(e);
    }
    report(&device.bench_name(name), names, &pairs.into_inner(), target);
    Ok(())
}

fn report(name: &str, names: [&str; 2], pairs: &[[f64; 2]], target: Option<f64>) {
    if pairs.is_empty() {
        return;
    }
    let ratios = pairs.iter().map(|[ours, theirs]| ours / theirs).collect();
    let [least_ours, least_theirs] =
        [0, 1].map(|side| pairs.iter().map(|pair| pair[side]).fold(f64::INFINITY, f64::min));
    let target = target.map_or(String::new(), |target| format!("; target ≤ {target}"));
    println!(
        "{name}: {} ÷ {} = {:.3} (median of {} pairs), {:.3} (minima: {:.3} and {:.3} ms){target}\n",
        names[0],
        names[1],
        median(ratios),
        pairs.len(),
        least_ours / least_theirs,
        least_ours * 1e3,
        least_theirs * 1e3,
    );
}

/// The middle of the values in their order, or between the middle two; of one value or more.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

/// Sequences a batch.
pub const BATCH: usize = 8;
/// Tokens a sequence.
pub const LENGTH: usize = 128;

/// The shape of `peers/pretrain_torch.py` and of the default dense model, at a width.
#[must_use]
pub fn config(hidden_size: usize, intermediate_size: usize) -> Arch {
    Arch {
        vocab_size: 2048,
        hidden_size,
        intermediate_size,
        hidden_act: "silu".into(),
        num_hidden_layers: 4,
        num_attention_heads: hidden_size / 32,
        num_key_value_heads: hidden_size / 64,
        head_dim: 32,
        max_position_embeddings: 4096,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        attention_bias: AttentionBias::None,
        family: Family::Qwen3,
        rope_scaling: RopeScaling::None,
        nope_layers: Vec::new(),
    }
}

/// Fresh weights of a dense model.
///
/// # Errors
/// What the device reports.
pub fn weights(cfg: &Arch, device: &Device) -> Result<ParamStore> {
    ParamStore::initialise(device, 0, |vb| CausalLm::dense(cfg, &vb).map(drop))
}

/// Qwen3-1.7B.
#[must_use]
pub fn qwen3() -> Arch {
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

/// Weights of a dense model, drawn on the device itself.
///
/// # Errors
/// What the device reports.
pub fn drawn(cfg: &Arch, device: &Device) -> Result<ParamStore> {
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

/// Random token ids `[rows, length]` below `vocab`, different for each `step`.
///
/// # Errors
/// What the device reports.
pub fn tokens(vocab: usize, step: u64, (rows, length): (usize, usize), device: &Device) -> Result<Tensor> {
    let mut rng = random::stream(step, "bench/tokens");
    let ids: Vec<u32> = (0..rows * length).map(|_| rng.random_range(0..vocab as u32)).collect();
    Ok(Tensor::from_vec(ids, (rows, length), device)?)
}

/// Values drawn evenly from −1 to 1, f32.
///
/// # Errors
/// What the device reports.
pub fn values(seed: u64, shape: &[usize], device: &Device) -> Result<Tensor> {
    let mut rng = random::stream(seed, "bench/values");
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Ok(Tensor::from_vec(values, shape, device)?.to_dtype(DType::F32)?)
}
