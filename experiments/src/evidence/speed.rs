//! How fast finalists read and write one text on this machine's processor: apart from their records, which may have been made on a GPU and elsewhere.
//!
//! Records keep no models, so each finalist in closed form is made anew from little text: what a token takes is met by thresholds, and how fast it is computed does not depend on how well they were calibrated. The
//! share that text takes of it is kept beside. A distilled finalist computes the same products of other numbers, so that its closed form's times are its own. Every figure is the median of rounds, in each of which
//! the dense model is timed too.

use std::time::Instant;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use tinyonn::Result;
use tinyonn::data::TokenSet;
use tinyonn::decoder::{CausalLm, FeedForward, Generation, Mlp, Pass, Prompt, Sampling};
use tinyonn::metrics::{Interval, Stopwatch};
use tinyonn::phases::{DeviceName, Prepared, Run};
use tinyonn::train::Precision;

use super::{Cell, EvidenceConfig, EvidenceStore, Method};

/// Training tokens of each kind that such a model is calibrated and repaired on, at most.
const CALIBRATED: usize = 2048;
/// Validation tokens of each kind that its share of the operations is taken over.
const COUNTED: usize = 1024;
/// Tokens behind the prompt.
const WRITTEN: usize = 33;
/// Tokens whose MLPs are timed, one by one.
const TOKENS: usize = 8;
/// Rounds of texts, and of MLPs.
const ROUNDS: [usize; 2] = [5, 21];

/// A figure of a finalist, and of the dense model in the same rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BesideDense {
    /// Its own.
    pub own: f64,
    /// The dense model's.
    pub dense: f64,
}

/// How fast a finalist is at batch 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Which, in closed form.
    pub cell: Cell,
    /// Threads that computed.
    pub threads: usize,
    /// Tokens that its choices were calibrated by.
    pub calibrated_on: usize,
    /// The share of the MLPs' operations that it takes of held-out text.
    pub operations: f64,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Of the prompt, tokens a second.
    pub prefill: BesideDense,
    /// Behind it, tokens a second.
    pub decode: BesideDense,
    /// The time of its MLPs for one token over that of the dense model's: the median of rounds, the least and the greatest.
    pub mlp: Interval,
}

/// Times those finalists in closed form that were not timed, until `until`; `done` is told of each. Returns how many are left.
///
/// # Errors
/// No study in the folder; text or models that cannot be read.
pub fn time_cells(config: &EvidenceConfig, until: Option<Instant>, mut done: impl FnMut(&Speed)) -> Result<usize> {
    let store = EvidenceStore::new(&config.out);
    let here = EvidenceConfig {
        device: DeviceName::Cpu,
        dtype: Precision::F32,
        calibration_tokens: config.calibration_tokens.min(CALIBRATED),
        share_tokens: config.share_tokens.min(COUNTED),
        ..config.clone()
    };
    let timed = |cell: &Cell| config.is_final(cell) && cell.steps == 0;
    let timed = |cell: &Cell| timed(cell) && (cell.method.is_declared() || cell.method == Method::Dense);
    let cells: Vec<Cell> = config.cells().into_iter().filter(timed).collect();
    for cell in &cells {
        if store.speed_file(cell).exists() || until.is_some_and(|until| Instant::now() >= until) {
            continue;
        }
        let speed = time(&here, cell)?;
        store.keep_speed(&speed)?;
        done(&speed);
    }
    Ok(cells.iter().filter(|cell| !store.speed_file(cell).exists()).count())
}

fn time(config: &EvidenceConfig, cell: &Cell) -> Result<Speed> {
    let mut watch = Stopwatch::new();
    let mut settings = config.sparsify(cell)?;
    settings.out = config.out.join("work").join(format!("speed-{}", cell.id()));
    let (of_run, prepared) = (settings.run(), Prepared::of_sparsify(&settings, &mut watch)?);
    let run = prepared.run(&of_run);
    let dense = run.dense_model()?;
    if cell.method == Method::Dense {
        return measured(&run, *cell, (&dense, &Pass::all()), &dense, (0, 1.0));
    }
    let made = run.sparse_model(&settings, &mut watch)?;
    let model = run.model(&made.store)?;
    let (_, load) = run.evaluate_load(&model, &beginnings(&prepared.tokens.validation), &Pass::routed())?;
    let operations = run.operations(&run.taken(&made, &load)?);
    measured(&run, *cell, (model.lm(), &Pass::routed()), &dense, (made.calibrated_on, operations))
}

fn beginnings(set: &TokenSet) -> TokenSet {
    let mut set = set.clone();
    set.spread_documents(COUNTED, COUNTED);
    set.beginnings(COUNTED);
    set
}

fn measured<F: FeedForward>(
    run: &Run<'_>,
    cell: Cell,
    (own, pass): (&CausalLm<F>, &Pass),
    dense: &CausalLm<Mlp>,
    (calibrated_on, operations): (usize, f64),
) -> Result<Speed> {
    let prompt = prompt(run)?;
    let mut texts = Vec::with_capacity(ROUNDS[0]);
    for _ in 0..ROUNDS[0] {
        texts.push([text_seconds(own, pass, &prompt)?, text_seconds(dense, &Pass::all(), &prompt)?]);
    }
    let xs = seen(dense, &prompt)?;
    let mut mlps = Vec::with_capacity(ROUNDS[1]);
    for _ in 0..ROUNDS[1] {
        mlps.push(mlp_seconds(own, pass, &xs)? / mlp_seconds(dense, &Pass::all(), &xs)?);
    }
    mlps.sort_by(f64::total_cmp);
    let a_second = |part: usize, tokens: usize| {
        let of = |model: usize| tokens as f64 / median(texts.iter().map(|round| round[model][part]).collect());
        BesideDense { own: of(0), dense: of(1) }
    };
    Ok(Speed {
        cell,
        threads: rayon::current_num_threads(),
        calibrated_on,
        operations,
        prompt: prompt.len(),
        prefill: a_second(0, prompt.len()),
        decode: a_second(1, WRITTEN - 1),
        mlp: Interval {
            mean: mlps[mlps.len() / 2],
            low: mlps.first().copied().unwrap_or(f64::NAN),
            high: mlps.last().copied().unwrap_or(f64::NAN),
        },
    })
}

/// Held-out text, half as long as a sequence of the study.
fn prompt(run: &Run<'_>) -> Result<Vec<u32>> {
    let length = (run.config.length / 2).max(TOKENS);
    let none = || tinyonn::Error::setting("data", "has no held-out text", "give more text");
    let first = run.tokens.validation.tasks.first().ok_or_else(none)?;
    Ok(first.tokens.iter().copied().take(length).collect())
}

/// Seconds of the prompt, and of what is written behind it.
fn text_seconds<F: FeedForward>(model: &CausalLm<F>, pass: &Pass, prompt: &[u32]) -> Result<[f64; 2]> {
    let how = Generation { tokens: WRITTEN, stop_ids: Vec::new(), sampling: Sampling::GREEDY };
    let (start, mut steps) = (Instant::now(), Vec::with_capacity(WRITTEN));
    model.generate(vec![Prompt::new(prompt.to_vec(), 0, 0)], &how, pass, true, &mut |_| {
        steps.push(start.elapsed().as_secs_f64());
        Ok(())
    })?;
    let (first, last) = (steps.first().copied().unwrap_or(f64::NAN), steps.last().copied().unwrap_or(f64::NAN));
    Ok([first, last - first])
}

/// What the MLP of each layer of the dense model sees of the prompt's last tokens: by token and layer `[1, 1, d]`.
fn seen(dense: &CausalLm<Mlp>, prompt: &[u32]) -> Result<Vec<Vec<Tensor>>> {
    let decoder = dense.model();
    let mut x = decoder.embed(&Tensor::new(prompt, dense.head().device())?.unsqueeze(0)?)?;
    let tokens = TOKENS.min(prompt.len());
    let mut xs = vec![Vec::new(); tokens];
    for (layer, block) in decoder.layers().iter().enumerate() {
        let [middle, normed] = decoder.attend(layer, &x)?;
        for (at, xs) in xs.iter_mut().enumerate() {
            xs.push(normed.narrow(1, prompt.len() - tokens + at, 1)?.contiguous()?);
        }
        x = (middle + block.mlp().output(&normed)?)?;
    }
    Ok(xs)
}

/// Seconds that the MLPs of all layers take, token by token: more weights than a cache holds lie between a layer's turns.
fn mlp_seconds<F: FeedForward>(model: &CausalLm<F>, pass: &Pass, xs: &[Vec<Tensor>]) -> Result<f64> {
    let start = Instant::now();
    for of_token in xs {
        for (block, x) in model.model().layers().iter().zip(of_token) {
            block.mlp().forward(x, pass)?;
        }
    }
    Ok(start.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
