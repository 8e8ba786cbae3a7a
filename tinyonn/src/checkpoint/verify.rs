//! Whether two models compute the same: logits and layers compared on given tokens.
//!
//! Logits are compared in f32 (a conversion from bf16 or f16 that loses nothing), a batch of sequences at a time, and are never
//! held whole. Sums are f64, in the order of the tokens, so that a comparison gives the same figures each time.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde::Serialize;

use super::loaded::LoadedModel;
use super::mmap::MappedSafetensors;
use super::tokens;
use crate::decoder::{Ask, Pass};
use crate::model::ActiveMode;
use crate::{Error, Result};

/// How far two models' logits are apart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Tokens compared.
    pub tokens: usize,
    /// max |Δlogit|; NaN if any difference is.
    pub max_abs_difference: f64,
    /// Mean |Δlogit| over tokens and vocabulary.
    pub mean_abs_difference: f64,
    /// KL(A‖B) in nats, the mean over tokens.
    pub kl_divergence: f64,
    /// The share of tokens whose most probable next token is the same. Where a logit is no number there is none.
    pub top1_agreement: f64,
    /// Every logit has the same bits.
    pub bit_equal: bool,
    /// The first layer whose output differs in a bit; `None` if none does, or if layers were not compared.
    pub first_differing_layer: Option<usize>,
}

/// Compares `a` and `b` on token ids `[B, T]`, `batch` sequences at a time, both in the mode `active`, or each in its own
/// where `None`.
///
/// ```
/// use candle_core::Device;
/// use tinyonn::checkpoint::{Comparison, compare, load_model, tokens::random_tokens};
///
/// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/decoders/llama3_tied_bf16");
/// let [one, other] = [load_model(dir, &Device::Cpu, None)?, load_model(dir, &Device::Cpu, None)?];
/// let ids = random_tokens(one.config().vocab_size, (2, 8), 0, &Device::Cpu)?;
/// let found: Comparison = compare(&one, &other, &ids, None, 2)?;
/// assert_eq!((found.tokens, found.bit_equal, found.max_abs_difference, found.top1_agreement), (16, true, 0.0, 1.0));
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// Models of different vocabularies; no tokens; ids beyond the vocabulary; sequences longer than a model was made for.
pub fn compare(
    a: &LoadedModel,
    b: &LoadedModel,
    ids: &Tensor,
    active: Option<ActiveMode>,
    batch: usize,
) -> Result<Comparison> {
    let vocabulary = a.config().vocab_size;
    check_vocabulary(vocabulary, b.config().vocab_size)?;
    let mut total = Total::default();
    let most = a.config().max_position_embeddings.min(b.config().max_position_embeddings);
    for ids in batches(ids, vocabulary, most, batch)? {
        let [(logits_a, layers_a), (logits_b, layers_b)] = [watched(a, &ids, active)?, watched(b, &ids, active)?];
        total.add(&values(&logits_a)?, &values(&logits_b)?, vocabulary);
        total.note_layers(&layers_a, &layers_b)?;
    }
    Ok(total.comparison(vocabulary))
}

/// Compares `model` with the `logits` `[B, T, V]` f32 that a safetensors file holds for its `input_ids` `[B, T]`, `batch` sequences
/// at a time; layers are not compared.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::{compare_with_reference, load_model};
///
/// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/decoders/llama_untied_f32");
/// let model = load_model(dir, &Device::Cpu, Some(DType::F32))?;
/// let found = compare_with_reference(&model, format!("{dir}/reference.safetensors"), &Device::Cpu, None, 1)?; // logits by transformers
/// assert!(found.max_abs_difference < 1e-3);
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// A file without these tensors, or of another vocabulary; what [`compare`] reports.
pub fn compare_with_reference(
    model: &LoadedModel,
    reference: impl AsRef<Path>,
    device: &Device,
    active: Option<ActiveMode>,
    batch: usize,
) -> Result<Comparison> {
    let path = reference.as_ref();
    let ids = tokens::read(path, device)?;
    let (b, t) = ids.dims2()?;
    let logits = MappedSafetensors::open(path)?.load("logits", &Device::Cpu)?;
    let vocabulary = model.config().vocab_size;
    match *logits.dims() {
        [rows, columns, width] if (rows, columns) == (b, t) && logits.dtype() == DType::F32 => {
            check_vocabulary(vocabulary, width)?;
        }
        _ => {
            let problem = format!("is {:?} {:?} for input_ids [{b}, {t}]", logits.dtype(), logits.dims());
            return Err(Error::tensor("logits", problem, "store logits [B, T, V] in F32"));
        }
    }
    let mut total = Total::default();
    let mut row = 0;
    for ids in batches(&ids, vocabulary, model.config().max_position_embeddings, batch)? {
        let rows = ids.dim(0)?;
        let ours = model.logits(&ids, &active.unwrap_or(model.active()).pass())?;
        total.add(&values(&ours)?, &values(&logits.narrow(0, row, rows)?)?, vocabulary);
        row += rows;
    }
    Ok(total.comparison(vocabulary))
}

/// Logits, and the output of every layer on the way.
fn watched(model: &LoadedModel, ids: &Tensor, active: Option<ActiveMode>) -> Result<(Tensor, Vec<Tensor>)> {
    let pass = active.unwrap_or(model.active()).pass();
    let pass = Pass { ask: Ask { outputs: true, ..Ask::default() }, ..pass };
    let (logits, traces) = model.traced_logits(ids, &pass)?;
    Ok((logits, traces.into_iter().filter_map(|trace| trace.output).collect()))
}

fn check_vocabulary(a: usize, b: usize) -> Result<()> {
    if a == b {
        return Ok(());
    }
    let problem = format!("the vocabularies differ: {a} and {b} tokens");
    Err(Error::setting("vocab_size", problem, "compare models that share a tokenizer"))
}

fn batches(ids: &Tensor, vocabulary: usize, most: usize, batch: usize) -> Result<Vec<Tensor>> {
    let (b, t) = ids.dims2()?;
    if b * t == 0 || batch == 0 {
        let problem = format!("there is nothing to compare: ids [{b}, {t}], {batch} sequences at a time");
        return Err(Error::setting("tokens", problem, "give at least one token"));
    }
    tokens::check(ids, vocabulary, most)?;
    let starts = (0..b).step_by(batch);
    starts.map(|start| Ok(ids.narrow(0, start, batch.min(b - start))?.contiguous()?)).collect()
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// What has been compared so far.
struct Total {
    tokens: usize,
    max: f64,
    sum: f64,
    divergence: f64,
    agreeing: usize,
    bit_equal: bool,
    first_layer: Option<usize>,
}

impl Default for Total {
    fn default() -> Self {
        Self { tokens: 0, max: 0.0, sum: 0.0, divergence: 0.0, agreeing: 0, bit_equal: true, first_layer: None }
    }
}

impl Total {
    fn add(&mut self, a: &[f32], b: &[f32], vocabulary: usize) {
        let rows: Vec<LogitDifference> =
            a.par_chunks(vocabulary).zip(b.par_chunks(vocabulary)).map(|(a, b)| LogitDifference::new(a, b)).collect();
        for row in rows {
            self.tokens += 1;
            self.max = larger(self.max, row.max);
            self.sum += row.sum;
            self.divergence += row.divergence;
            self.agreeing += usize::from(row.agrees);
            self.bit_equal &= row.bit_equal;
        }
    }

    fn note_layers(&mut self, a: &[Tensor], b: &[Tensor]) -> Result<()> {
        let mut differing = None;
        for (layer, (a, b)) in a.iter().zip(b).enumerate() {
            let bits = |x: &Tensor| Ok::<_, Error>(values(x)?.into_iter().map(f32::to_bits).collect::<Vec<_>>());
            if a.dims() != b.dims() || bits(a)? != bits(b)? {
                differing = Some(layer);
                break;
            }
        }
        self.first_layer = [self.first_layer, differing].into_iter().flatten().min();
        Ok(())
    }

    fn comparison(&self, vocabulary: usize) -> Comparison {
        let tokens = self.tokens as f64;
        Comparison {
            tokens: self.tokens,
            max_abs_difference: self.max,
            mean_abs_difference: self.sum / (tokens * vocabulary as f64),
            kl_divergence: self.divergence / tokens,
            top1_agreement: self.agreeing as f64 / tokens,
            bit_equal: self.bit_equal,
            first_differing_layer: self.first_layer,
        }
    }
}

/// The comparison of one token's logits.
struct LogitDifference {
    max: f64,
    sum: f64,
    divergence: f64,
    agrees: bool,
    bit_equal: bool,
}

impl LogitDifference {
    fn new(a: &[f32], b: &[f32]) -> Self {
        let bit_equal = a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
        // Equal infinities are no difference, though their difference is no number. NaNs always are one.
        let difference = |(a, b): (&f32, &f32)| {
            let same_infinity = a.is_infinite() && a.to_bits() == b.to_bits();
            if same_infinity { 0.0 } else { (f64::from(*a) - f64::from(*b)).abs() }
        };
        let (mut max, mut sum) = (0.0, 0.0);
        for d in a.iter().zip(b).map(difference) {
            max = larger(max, d);
            sum += d;
        }
        Self { max, sum, divergence: divergence(a, b), agrees: best(a).is_some_and(|a| best(b) == Some(a)), bit_equal }
    }
}

/// The maximum, NaN if either is.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// The most probable token; ties to the lower id. Beside a logit that is no number none is more probable than others.
fn best(logits: &[f32]) -> Option<usize> {
    if logits.iter().any(|logit| logit.is_nan()) {
        return None;
    }
    (0..logits.len()).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
}

/// Σ p_a (log p_a − log p_b).
fn divergence(a: &[f32], b: &[f32]) -> f64 {
    let log_sum_exp = |logits: &[f32]| {
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|x| (f64::from(*x) - f64::from(top)).exp()).sum();
        (f64::from(top), sum.ln())
    };
    let ((top_a, log_a), (top_b, log_b)) = (log_sum_exp(a), log_sum_exp(b));
    a.iter().zip(b).fold(0.0, |sum, (a, b)| {
        let log_p = f64::from(*a) - top_a - log_a;
        let log_q = f64::from(*b) - top_b - log_b;
        // A token that A rules out adds nothing, whatever B holds.
        sum + if log_p == f64::NEG_INFINITY { 0.0 } else { log_p.exp() * (log_p - log_q) }
    })
}
