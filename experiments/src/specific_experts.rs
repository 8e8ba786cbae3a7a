//! What a model's most specific experts are for: the task on whose text each puts out most, the tokens of training text that light it up, and what the loss of every task
//! becomes without it.
//!
//! The output of expert e at token t has the size `o = √Σ_{i ∈ e} h_i² ‖w_i‖²`, w_i the row of W_d (cross terms left out). An expert is as *specific* as the largest of the tasks' `√E[o²]` is
//! times their mean. Contexts are of training text alone, at most twenty tokens each, with the document they stand in.

use std::collections::BTreeSet;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use tinyonn::Result;
use tinyonn::data::{Batch, TokenSet};
use tinyonn::decoder::{Ask, Pass};
use tinyonn::imaging::NeuronScan;
use tinyonn::metrics::Progress;
use tinyonn::ops::host;
use tinyonn::phases::Run;

use crate::causal::{down_projection, output_power, touched, unit_power};

/// Experts of each layer.
const EXPERTS: usize = 10;
/// Contexts of each expert, each of another document.
const CONTEXTS: usize = 3;
/// Tokens of a context, at most.
const CONTEXT: usize = 20;
/// Of these, the token that lights the expert up and those behind it.
const BEHIND: usize = 7;
/// Tokens that are read together: h of every layer is held of them.
const TOGETHER: usize = 2048;
/// Training tokens of each task that are looked at, at most, and of each document.
const LOOKED_AT: (usize, usize) = (8192, 512);

/// An expert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpecificExpert {
    /// Its layer.
    pub layer: usize,
    /// Its number there.
    pub expert: usize,
    /// The task on whose text it puts out most, by its number.
    pub task: usize,
    /// How much more than on the mean task.
    pub specificity: f64,
    /// What lights it up, most first.
    pub contexts: Vec<Context>,
    /// The change of the loss of each task without it, nats a token.
    pub rise: Vec<f64>,
}

/// A token and what stands around it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Context {
    /// The document, as `task/file`.
    pub source: String,
    /// The text before the token.
    pub before: String,
    /// The token.
    pub token: String,
    /// The text behind it.
    pub after: String,
}

/// A place of text and how much an expert puts out there.
struct Lit {
    output: f64,
    document: u32,
    tokens: Vec<u32>,
    /// Of these tokens, the one that lights it up.
    at: usize,
}

/// The ten most specific experts of three layers; `units[layer][i]` is the expert of neuron i.
///
/// # Errors
/// Whatever the device reports.
pub fn specific_experts(run: &Run<'_>, scan: &NeuronScan, units: &[Vec<u32>]) -> Result<Vec<SpecificExpert>> {
    let count = run.variant.spec.experts();
    let power = unit_power(&output_power(run, scan)?, units, count);
    let layers = units.len();
    let three: BTreeSet<usize> = [1, 2, 3].map(|quarter| (layers * quarter / 4).min(layers.saturating_sub(1))).into();
    let mut found: Vec<SpecificExpert> =
        three.into_iter().flat_map(|layer| most_specific(&power, layer, count)).collect();
    contexts(run, units, &mut found)?;
    let mut set = run.tokens.test.clone();
    set.beginnings(run.config.study_tokens.max(run.config.length + 1));
    let dense = run.evaluate_on(&run.dense_model()?, &set, &Pass::all())?;
    let progress = Progress::new(found.len() as u64, "experts left out");
    for own in &mut found {
        let mut left_out = vec![Vec::new(); layers];
        left_out[own.layer].push(own.expert);
        let without = touched(run, &left_out, units, &vec![0.0; layers])?;
        let after = run.evaluate_on(&without, &set, &Pass::all())?;
        own.rise = after.by_task.iter().zip(&dense.by_task).map(|(after, dense)| after - dense).collect();
        progress.set(progress.position() + 1);
    }
    progress.finish();
    Ok(found)
}

/// Of a layer, by `power[task][layer][expert]`; ties to the lower index.
fn most_specific(power: &[Vec<Vec<f64>>], layer: usize, count: usize) -> Vec<SpecificExpert> {
    let of_expert = |expert: usize| {
        let outputs: Vec<f64> = power.iter().map(|task| task[layer][expert].sqrt()).collect();
        let mean = outputs.iter().sum::<f64>() / outputs.len().max(1) as f64;
        let best = outputs.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
        let (task, most) = best.map_or((0, 0.0), |(task, most)| (task, *most));
        let specificity = if mean > 0.0 { most / mean } else { 0.0 };
        SpecificExpert { layer, expert, task, specificity, contexts: Vec::new(), rise: Vec::new() }
    };
    let mut all: Vec<SpecificExpert> = (0..count).map(of_expert).collect();
    all.sort_by(|a, b| b.specificity.total_cmp(&a.specificity).then(a.expert.cmp(&b.expert)));
    all.truncate(EXPERTS);
    all
}

/// Looks for what lights each expert up in training text.
fn contexts(run: &Run<'_>, units: &[Vec<u32>], found: &mut [SpecificExpert]) -> Result<()> {
    let (mut set, c) = (run.tokens.train.clone(), run.config);
    let (most, each) = LOOKED_AT;
    set.spread_documents(each, most);
    set.beginnings(most);
    let model = run.dense_model()?;
    let squares = found.iter().map(|own| squared_rows(run, own, &units[own.layer])).collect::<Result<Vec<_>>>()?;
    let mut lit: Vec<Vec<Lit>> = found.iter().map(|_| Vec::new()).collect();
    for task in 0..set.tasks.len() {
        for batch in set.batches_of_task(task, c.length, (TOGETHER / c.length).max(1), &run.device)? {
            let batch = batch?;
            let rows = Tensor::arange(0u32, batch.inputs.elem_count() as u32, &run.device)?;
            let pass = Pass { ask: Ask { hidden: Some(rows), ..Ask::default() }, ..Pass::all() };
            let (_, traces) = model.hidden(&batch.inputs, &pass)?;
            let ids = host::ids(&batch.inputs)?;
            for ((own, squares_i1), lit) in found.iter().zip(&squares).zip(&mut lit) {
                let Some(hidden_ti) = &traces[own.layer].hidden else { continue };
                let outputs = host::values(&hidden_ti.to_dtype(DType::F32)?.sqr()?.matmul(squares_i1)?)?;
                look(lit, &batch, &ids, (&outputs, set.eos))?;
            }
        }
    }
    for (own, lit) in found.iter_mut().zip(lit) {
        own.contexts = lit.iter().map(|lit| told(run, &set, lit)).collect::<Result<_>>()?;
    }
    Ok(())
}

/// ‖w_i‖² of the neurons of an expert, 0 of others, `[I, 1]`.
fn squared_rows(run: &Run<'_>, own: &SpecificExpert, owner: &[u32]) -> Result<Tensor> {
    let down_id = down_projection(run, own.layer)?.to_dtype(DType::F32)?;
    let is_own: Vec<f32> = owner.iter().map(|unit| f32::from(u8::from(*unit as usize == own.expert))).collect();
    let is_own_i1 = Tensor::from_vec(is_own, (owner.len(), 1), down_id.device())?;
    Ok((down_id.sqr()?.sum_keepdim(1)? * is_own_i1)?)
}

/// Keeps the places of largest output, each of another document.
fn look(lit: &mut Vec<Lit>, batch: &Batch, ids: &[u32], (outputs, eos): (&[f32], u32)) -> Result<()> {
    let length = batch.inputs.dim(1)?;
    for (at, output) in outputs.iter().enumerate() {
        let (document, output) = (batch.documents[at], f64::from(*output));
        if !batch.counted[at] || ids[at] == eos {
            continue;
        }
        let known = lit.iter().position(|lit| lit.document == document);
        let least = known.map_or_else(
            || if lit.len() < CONTEXTS { -1.0 } else { lit[CONTEXTS - 1].output },
            |known| lit[known].output,
        );
        if output <= least {
            continue;
        }
        // Within its row and its document.
        let row = at / length * length;
        let is_of_it = |at: &usize| batch.documents[*at] == document && ids[*at] != eos;
        let before = (row..at).rev().take_while(is_of_it).take(CONTEXT - BEHIND).count();
        let behind = (at + 1..row + length).take_while(is_of_it).take(BEHIND - 1).count();
        let tokens = ids[at - before..=at + behind].to_vec();
        if let Some(known) = known {
            lit.remove(known);
        }
        lit.push(Lit { output, document, tokens, at: before });
        lit.sort_by(|a, b| b.output.total_cmp(&a.output));
        lit.truncate(CONTEXTS);
    }
    Ok(())
}

fn told(run: &Run<'_>, set: &TokenSet, lit: &Lit) -> Result<Context> {
    let text = |tokens: &[u32]| run.dense.tokenizer.decode(tokens);
    let source = set.documents.get(lit.document as usize).cloned().unwrap_or_default();
    let (before, rest) = lit.tokens.split_at(lit.at);
    let (token, after) = rest.split_at(1);
    Ok(Context { source, before: text(before)?, token: text(token)?, after: text(after)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_come_first() {
        // Two tasks, one layer, three experts: even, all of the second task, a little more of the first.
        let power = vec![vec![vec![4.0, 0.0, 9.0]], vec![vec![4.0, 16.0, 1.0]]];
        let found = most_specific(&power, 0, 3);
        let told: Vec<(usize, usize, f64)> = found.iter().map(|own| (own.expert, own.task, own.specificity)).collect();
        assert_eq!(told, [(1, 1, 2.0), (2, 0, 1.5), (0, 0, 1.0)]);
    }
}
