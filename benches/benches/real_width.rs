//! What phase 1 asks of the host for a layer of Qwen3-1.7B (d 2048, I 6144): 32,768 tokens summed up, the projection found, routers of a
//! 10 × 10 hierarchy fitted, in closed form and refined. Random weights and inputs. One run: seconds, on as many threads as there are cores.

use std::sync::Arc;
use std::time::Instant;

use benches::{config, values};
use candle_core::Device;
use tinyonn::Result;
use tinyonn::checkpoint::{ParamStore, upcycle};
use tinyonn::decoder::{Arch, CausalLm};
use tinyonn::imaging::inputs::Samples;
use tinyonn::imaging::{Labels, Partition, PartitionSources, partition};
use tinyonn::moe;
use tinyonn::ops::{ClassScatter, Weigh};
use tinyonn::train::projection::lda;
use tinyonn::train::{FitBy, RouterFitConfig, RouterFitter};

const D: usize = 2048;
const I: usize = 6144;
const TASKS: usize = 3;
/// Rows that are summed up, and those that are kept of them: of 28 layers 1 GiB.
const ROWS: usize = 32_768;
const KEPT: usize = 4_681;
const HELD: usize = 2_048;

/// Rows of tasks in turn, around a mean that the task decides.
fn samples(seed: u64, count: usize) -> Result<Samples> {
    let mut x: Vec<f32> = values(seed, &[count, D], &Device::Cpu)?.flatten_all()?.to_vec1()?;
    let means: Vec<f32> = values(1, &[TASKS, D], &Device::Cpu)?.flatten_all()?.to_vec1()?;
    let tasks: Vec<u32> = (0..count).map(|row| (row * TASKS / count) as u32).collect();
    for (row, task) in x.chunks_exact_mut(D).zip(&tasks) {
        row.iter_mut().zip(&means[*task as usize * D..][..D]).for_each(|(x, mean)| *x += 0.1 * mean);
    }
    Ok(Samples { values: x, tasks, documents: (0..count as u32).collect(), scatter: None })
}

fn timed<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let done = work()?;
    println!("cpu/real-width: {what}: {:.2} s", start.elapsed().as_secs_f64());
    Ok(done)
}

fn main() -> Result<()> {
    let cfg = Arch { num_hidden_layers: 1, ..config(D, I) };
    let dense = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
    let (variant, layers) = (moe::variant("TinyOnn")?, cfg.num_hidden_layers);
    let units = partition::assign(Partition::Random, &variant.spec, (layers, I), PartitionSources::default(), 0)?;
    let store = upcycle(dense, &cfg, variant, &units, 0)?;

    let rows = samples(2, ROWS)?;
    let scatter = timed("scatter of 32,768 tokens, a layer", || {
        let mut scatter = ClassScatter::new(Weigh::Classes);
        for task in 0..TASKS {
            let own: Vec<usize> = (0..ROWS).filter(|row| rows.tasks[*row] as usize == task).collect();
            for batch in own.chunks(2048) {
                let x: Vec<f32> = batch.iter().flat_map(|row| &rows.values[row * D..][..D]).copied().collect();
                scatter.push(&candle_core::Tensor::from_vec(x, (batch.len(), D), &Device::Cpu)?, task)?;
            }
        }
        scatter.close()?;
        Ok(Arc::new(scatter))
    })?;
    let kept = Samples { scatter: Some(scatter), ..samples(3, KEPT)? };
    timed("projection (lda, r = 64), a layer", || lda(&kept, 64).map(drop))?;
    let (train, validation) = (vec![kept; layers], vec![samples(4, HELD)?; layers]);
    let labels = Labels::random(TASKS, layers, &variant.spec, 0);
    let model = (&store, &cfg, variant);
    for fit in [FitBy::Gda, FitBy::GdaSgd] {
        let mut fitter = RouterFitter::new(&train, &validation, TASKS, 64)?;
        let config = RouterFitConfig { fit, ..RouterFitConfig::default() };
        // Once to find projections, which later fits share; then what is timed.
        fitter.fit(model, &labels, &config, 0)?;
        timed(&format!("fit ({}), a layer", config.id()), || fitter.fit(model, &labels, &config, 0))?;
    }
    Ok(())
}
