//! Which neurons fire together: |h| of every neuron on a sample of tokens, by one forward pass (`partition = coactivation`).
//!
//! h = h(W_g x, W_u x), all active (DESIGN §1). The sample is spread evenly over tasks, and over each task's text.

use candle_core::{Device, Tensor};

use super::ScanOptions;
use crate::data::TokenSet;
use crate::decoder::{Ask, CausalLm, Mlp, Pass};
use crate::ops::host;
use crate::{Error, Result};

/// Tokens of the sample, at most.
///
/// ```
/// assert_eq!(tinyonn::imaging::coactivation::SAMPLE, 2048);
/// ```
pub const SAMPLE: usize = 2048;

/// |h| `[t, I]` f32 of each layer on at most [`SAMPLE`] tokens of `set`, all tasks alike; a task with fewer tokens gives all it has.
/// Memory: layers · t · I · 4 bytes. Deterministic.
///
/// # Errors
/// A task without a token that has a target; whatever the model reports.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::data::{TaskTokens, TokenSet};
/// use tinyonn::imaging::{Partition, PartitionSources, ScanOptions, coactivation, partition};
/// use tinyonn::moe::moe;
/// use tinyonn::decoder::{Arch, CausalLm};
///
/// #[moe(groups = 2, experts = 2)]
/// struct Together;
///
/// let cfg = Arch::from_json(&serde_json::json!({
///     "model_type": "qwen3", "vocab_size": 280, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
///     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
/// }), "config.json")?;
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?;
/// let task = TaskTokens { name: "count".into(), tokens: (0..200).collect(), documents: vec![0; 200] };
/// let set = TokenSet { tasks: vec![task], documents: vec!["count/a".into()], eos: 0 };
///
/// let options = ScanOptions { length: 32, batch: 4, tokens_per_task: 100 };
/// let hidden = coactivation(&model, &set, options, &Device::Cpu)?;
/// assert_eq!(hidden[0].dims(), [100, 24]);
/// let sources = PartitionSources { coactivation: Some(&hidden), ..PartitionSources::default() };
/// let units = partition::assign(Partition::Coactivation, &Together::SPEC, (1, 24), sources, 0)?;
/// assert_eq!(units[0].iter().filter(|expert| **expert == 3).count(), 6);
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub fn coactivation(
    model: &CausalLm<Mlp>,
    set: &TokenSet,
    options: ScanOptions,
    device: &Device,
) -> Result<Vec<Tensor>> {
    let width = model.config().intermediate_size;
    let mut hidden: Vec<Vec<f32>> = vec![Vec::new(); model.config().num_hidden_layers];
    let of_task = SAMPLE / set.tasks.len().max(1) * set.tasks.len();
    sampled_hidden(model, set, options, of_task, device, |layer, hidden_ti| {
        hidden[layer].extend(host::values(hidden_ti)?);
        Ok(())
    })?;
    let of_layer = |values: Vec<f32>| {
        let rows = values.len() / width;
        Ok(Tensor::from_vec(values, (rows, width), &Device::Cpu)?)
    };
    hidden.into_iter().map(of_layer).collect()
}

/// Shows `see` |h| `[k, I]` of each layer on about `most` tokens of `set`, no fewer where there are so many, some at a time: all tasks alike, in their order, each in the order of its text; a task with fewer tokens gives
/// all it has.
///
/// # Errors
/// A task without a token that has a target; whatever the model or `see` reports.
pub(super) fn sampled_hidden(
    model: &CausalLm<Mlp>,
    set: &TokenSet,
    options: ScanOptions,
    most: usize,
    device: &Device,
    mut see: impl FnMut(usize, &Tensor) -> Result<()>,
) -> Result<()> {
    let set = &options.part(set);
    if let Some(task) = set.tasks.iter().find(|task| task.targets() == 0) {
        let problem = format!("task `{}` has no token with a target", task.name);
        return Err(Error::setting("coactivation", problem, "give every task two tokens or more to read"));
    }
    for (task, tokens) in set.tasks.iter().enumerate() {
        let mut picked = spread(tokens.targets(), most.div_ceil(set.tasks.len())).into_iter().peekable();
        let mut read = 0;
        for batch in set.batches_of_task(task, options.length, options.batch, device)? {
            let inputs = batch?.inputs;
            let end = read + inputs.elem_count();
            let rows: Vec<u32> =
                std::iter::from_fn(|| picked.next_if(|at| *at < end)).map(|at| (at - read) as u32).collect();
            read = end;
            if rows.is_empty() {
                continue;
            }
            let hidden = Some(Tensor::new(rows, device)?);
            let pass = Pass { ask: Ask { hidden, ..Ask::default() }, ..Pass::all() };
            for (layer, trace) in model.hidden(&inputs, &pass)?.1.iter().enumerate() {
                trace.hidden.as_ref().map_or(Ok(()), |hidden_ti| see(layer, hidden_ti))?;
            }
        }
    }
    Ok(())
}

/// At most `most` (at least one) of 0..count, ascending: one in each of as many equal parts, where multiples of the golden ratio modulo
/// 1 put it, or rows of text whose length divides the parts would all be read at the same place.
fn spread(count: usize, most: usize) -> Vec<usize> {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let most = most.max(1);
    if count <= most {
        return (0..count).collect();
    }
    let part = count as f64 / most as f64;
    let within = |at: usize| ((at as f64 + (at as f64 * GOLDEN).fract()) * part) as usize;
    (0..most).map(|at| within(at).min(count - 1)).collect()
}
