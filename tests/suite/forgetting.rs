//! Forgetting: what is taught, by what, and what the figures of it are.

mod course;
mod knowledge;
mod low_rank;
mod study;
mod tasks;

use std::path::Path;

use tempfile::TempDir;
use tinyonn::data::NovelTask;
use tinyonn::metrics::Stopwatch;
use tinyonn::phases::{ForgettingConfig, ForgettingRecord, Method, Prepared, RunConfig, forgetting};
use tinyonn::train::{OptimizerConfig, SmkConfig};

use crate::phase2;

/// A tiny model, two tasks, a few steps of each.
fn setting(dir: &Path) -> RunConfig {
    let config = phase2::setting(dir, candle_core::DType::F32);
    let optimizer = OptimizerConfig { rate: 1e-2, decay: 0.0, ..OptimizerConfig::DEFAULT };
    RunConfig { smk: SmkConfig { steps: 4, batch: 4, look: 2, min_k: 2, optimizer, ..SmkConfig::DEFAULT }, ..config }
}

fn of(method: Method) -> ForgettingConfig {
    let order = vec![NovelTask::Ledger, NovelTask::LetterSums];
    ForgettingConfig { order, task_bytes: 12_000, method, fisher_sequences: 3 }
}

fn prepared(config: &RunConfig) -> Prepared {
    Prepared::new(config, &mut Stopwatch::new(), None).unwrap()
}

/// A run, but for its seconds.
fn run(prepared: &Prepared, config: &RunConfig, method: Method) -> ForgettingRecord {
    ForgettingRecord { seconds: 0.0, ..forgetting(prepared, config, &of(method), None).unwrap() }
}

struct Place {
    _dir: TempDir,
    config: RunConfig,
    prepared: Prepared,
}

fn place() -> Place {
    let dir = TempDir::new().unwrap();
    let config = setting(dir.path());
    let prepared = prepared(&config);
    Place { _dir: dir, config, prepared }
}
