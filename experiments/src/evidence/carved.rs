//! Makes a model of a method that is no declared variant, as the library makes its own: layer by layer on what the sparse layers below make of the
//! calibration text, repaired in closed form towards the dense model's stream.

use candle_core::{DType, Device, Tensor};
use tinyonn::data::TokenSet;
use tinyonn::decoder::{CausalLm, Mlp};
use tinyonn::imaging::{DamageOptions, sensitivity};
use tinyonn::phases::{Run, SparsifyConfig};
use tinyonn::train::RepairSums;
use tinyonn::{Error, Result, random};

use super::choice::{Choice, Score, Seen, by_run};
use super::chosen_mlp::ChosenMlp;
use super::{Cell, Method, cmoe};

/// Tokens of a layer that thresholds and experts are found by, at most.
const SCORED: usize = 4096;

/// The model, and on how many tokens its layers were calibrated and repaired.
pub(crate) struct Carved {
    pub(crate) model: CausalLm<ChosenMlp>,
    pub(crate) calibrated_on: usize,
    pub(crate) repaired_on: usize,
}

/// Carves the model of `run` as `cell` says.
pub(crate) fn carved(run: &Run<'_>, cell: &Cell, config: &SparsifyConfig) -> Result<Carved> {
    let dense = run.dense_model()?;
    let decoder = dense.model();
    let options = DamageOptions {
        length: config.length,
        batch: config.batch,
        tokens: config.validation_tokens,
        choose: tinyonn::imaging::Choose::Threshold,
    };
    let worth = sensitivity(&dense, &run.tokens.validation, options)?;
    let mut set = run.tokens.train.clone();
    set.truncate(config.calibration_tokens.saturating_add(1));
    let batches = batches(&set, config, &run.device)?;
    let streams = batches.iter().map(|batch| decoder.embed(&batch.inputs)).collect::<Result<Vec<_>>>()?;
    let (mut dense_streams, mut sparse_streams) = (streams.clone(), streams);
    // Whole sequences, for choices of runs: the first of some batches, or of all.
    let tokens = batches.len().max(1) * config.length;
    let (stride, each) = (tokens.div_ceil(SCORED), (SCORED / tokens).max(1));
    let mut calibrated_on = 0;
    let mut layers = Vec::with_capacity(decoder.layers().len());
    for (layer, block) in decoder.layers().iter().enumerate() {
        let attend = |streams: &[Tensor]| {
            let attend = |x: &Tensor| decoder.attend(layer, &x.to_dtype(block.mlp().weights().gate.dtype())?);
            streams.iter().map(attend).collect::<Result<Vec<_>>>()
        };
        let (from_dense, from_sparse) = (attend(&dense_streams)?, attend(&sparse_streams)?);
        let some = from_sparse.iter().step_by(stride);
        let seen = some.map(|[_, normed]| Ok(normed.narrow(0, 0, each.min(normed.dim(0)?))?));
        let seen = Tensor::cat(&seen.collect::<Result<Vec<_>>>()?, 0)?;
        calibrated_on = seen.dim(0)? * seen.dim(1)?;
        let choice = calibrated(cell, (&seen, layer), block.mlp(), &worth[layer])?;
        let chosen = ChosenMlp::new(block.mlp().clone(), choice);
        let mut sums = RepairSums::new(block.mlp().weights().gate.dim(0)?);
        let mut hidden = Vec::with_capacity(batches.len());
        for (at, ([r, normed_r], [s, normed_s])) in from_dense.into_iter().zip(from_sparse).enumerate() {
            let taken = chosen.take(&normed_s)?;
            let sparse = wide_sum(&s, &chosen.output(&taken)?.reshape(s.shape())?)?;
            let whole = wide_sum(&r, &block.mlp().output(&normed_r)?)?;
            if config.ridge > 0.0 {
                let (missing_td, rows) = ((&whole - &sparse)?.flatten_to(1)?, &batches[at].rows);
                sums.push(&taken.hidden_ti.index_select(rows, 0)?, &missing_td.index_select(rows, 0)?)?;
                hidden.push(taken.hidden_ti);
            }
            (dense_streams[at], sparse_streams[at]) = (whole, sparse);
        }
        if config.ridge == 0.0 {
            layers.push(Some(chosen));
            continue;
        }
        let repair = sums.solve(config.ridge, config.bias, &run.device)?;
        for (sparse, h_ti) in sparse_streams.iter_mut().zip(hidden) {
            let more = h_ti.to_dtype(DType::F32)?.matmul(&repair.down_id)?.broadcast_add(&repair.bias_d)?;
            *sparse = (&*sparse + more.reshape(sparse.shape())?)?;
        }
        layers.push(Some(chosen.repaired(&repair)?));
    }
    let rows = batches.iter().map(|batch| batch.rows.elem_count()).sum();
    let model = CausalLm::new(&run.dense.cfg, &run.dense.store.frozen(), |layer, _| {
        let made = layers.get_mut(layer).and_then(Option::take);
        made.ok_or_else(|| Error::setting("layers", format!("{layer} was asked for twice"), "report this as a defect"))
    })?;
    let repaired_on = if config.ridge > 0.0 { rows } else { 0 };
    Ok(Carved { model, calibrated_on: calibrated_on.min(rows), repaired_on })
}

/// What `cell` takes of the layer `mlp`, from what it sees: `[B, T, d]`.
fn calibrated(cell: &Cell, (x, layer): (&Tensor, usize), mlp: &Mlp, worth_i: &Tensor) -> Result<Choice> {
    let (share, weights, device) = (cell.share(), mlp.weights(), x.device());
    let (x_td, length, width) = (x.flatten_to(1)?, x.dim(1)?, weights.gate.dim(0)?);
    let seen = Seen::new(&x_td, weights)?;
    // Of all gate rows and of W_u and W_d of what is taken.
    let behind_gates = (3.0 * share - 1.0) / 2.0;
    let above = |score: Score, part: f64| -> Result<(Score, f64)> {
        let least = least_of(&score.of(&seen)?, part)?;
        Ok((score, least))
    };
    let hidden = || Score::Hidden { worth_i: worth_i.clone() };
    Ok(match cell.method {
        Method::Oracle => {
            let (score, least) = above(hidden(), share)?;
            Choice::Scored { score, least }
        }
        Method::Cats => {
            let (score, least) = above(Score::Activation, behind_gates)?;
            Choice::Scored { score, least }
        }
        Method::Permuted => {
            let mean_up_i = seen.up_ti.to_dtype(DType::F32)?.abs()?.mean(0)?;
            let (score, least) = above(Score::Gate { mean_up_i, worth_i: worth_i.clone() }, behind_gates)?;
            Choice::OfAnother { score, least }
        }
        Method::Shared { tokens } => {
            let scores_ti = hidden().of(&seen)?.sqr()?;
            let mean_i = scores_ti.mean(0)?;
            let least = least_of(&by_run(&scores_ti, (length, tokens), &mean_i)?, share)?;
            Choice::Runs { tokens, worth_i: worth_i.clone(), mean_i, least }
        }
        Method::Random => {
            use rand::seq::SliceRandom as _;
            let mut order: Vec<usize> = (0..width).collect();
            order.shuffle(&mut random::stream(cell.seed.wrapping_add(layer as u64 * 1000), "random set"));
            let mut mask = vec![0f32; width];
            order.iter().take((share * width as f64).round() as usize).for_each(|neuron| mask[*neuron] = 1.0);
            Choice::Fixed(Tensor::from_vec(mask, width, device)?)
        }
        Method::Teal => {
            let input = least_of(&x_td.to_dtype(DType::F32)?.abs()?, share)?;
            let open_td = x_td.to_dtype(DType::F32)?.abs()?.ge(input)?.to_dtype(x_td.dtype())?;
            let seen = Seen::new(&(&x_td * open_td)?, weights)?;
            let hidden = least_of(&seen.hidden_ti.to_dtype(DType::F32)?.abs()?, share)?;
            Choice::Sizes { input, hidden }
        }
        Method::Cmoe { experts } => cmoe::carve(&seen.hidden_ti, (experts, share), cell.seed, device)?,
        Method::Dense | Method::OwnGate | Method::Pruned | Method::GroupedGate | Method::WholeGroups => {
            let problem = format!("{} is not carved by the study", cell.method.name());
            return Err(Error::setting("method", problem, "report this as a defect"));
        }
    })
}

/// The least of the largest values that make up the part of all.
fn least_of(values: &Tensor, part: f64) -> Result<f64> {
    let mut values = values.flatten_all()?.to_vec1::<f32>()?;
    let count = ((part * values.len() as f64).round() as usize).clamp(1, values.len());
    let (_, least, _) = values.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
    Ok(f64::from(least.max(f32::MIN_POSITIVE)))
}

/// A batch of whole sequences, and the rows of it that have a target.
struct Rows {
    inputs: Tensor,
    rows: Tensor,
}

fn batches(set: &TokenSet, config: &SparsifyConfig, device: &Device) -> Result<Vec<Rows>> {
    let mut found = Vec::new();
    for task in 0..set.tasks.len() {
        for batch in set.batches_of_task(task, config.length, config.batch, device)? {
            let batch = batch?;
            let own = batch.counted.iter().zip(0u32..).filter(|(counted, _)| **counted).map(|(_, at)| at);
            let own: Vec<u32> = own.collect();
            let count = own.len();
            found.push(Rows { inputs: batch.inputs, rows: Tensor::from_vec(own, count, device)? });
        }
    }
    Ok(found)
}

/// a + b in f32.
fn wide_sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok((a.to_dtype(DType::F32)? + b.to_dtype(DType::F32)?)?)
}

/// The share of the MLPs' operations that `model` takes of the beginning of each kind of `set`.
pub(crate) fn operations(
    model: &CausalLm<ChosenMlp>,
    set: &TokenSet,
    config: &SparsifyConfig,
    device: &Device,
) -> Result<f64> {
    let decoder = model.model();
    let (mut sum, mut count) = (0.0, 0.0);
    for task in 0..set.tasks.len() {
        let Some(batch) = set.batches_of_task(task, config.length, config.batch, device)?.next() else { continue };
        let mut x = decoder.embed(&batch?.inputs)?;
        for (layer, block) in decoder.layers().iter().enumerate() {
            let [middle, normed] = decoder.attend(layer, &x)?;
            let taken = block.mlp().take(&normed)?;
            sum += f64::from(taken.operations.to_dtype(DType::F32)?.to_scalar::<f32>()?);
            count += 1.0;
            x = (middle + block.mlp().output(&taken)?.reshape(normed.shape())?)?;
        }
    }
    Ok(sum / f64::max(count, 1.0))
}
