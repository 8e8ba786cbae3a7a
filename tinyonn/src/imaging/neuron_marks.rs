//! Which neurons stand out among those of their token, on sampled tokens: what `partition = coactivation_binary | rate` and `always_by` read.
//!
//! What neuron i adds to the MLP's output at token t has the norm o[t, i] = |h[t, i]| · ‖w_i‖, w_i its row of W_d. A token *marks* the tenth of its neurons with the largest o (a tenth of I
//! rounded, at least one; ties to the lower index). The rate of a neuron is the share of tokens that mark it, its output the mean of o.

use candle_core::{D, DType, Device, Tensor};

use super::ScanOptions;
use super::balanced_k_means::Points;
use super::coactivation::sampled_hidden;
use crate::data::TokenSet;
use crate::decoder::{CausalLm, Mlp};
use crate::moe::AlwaysBy;
use crate::ops::host;
use crate::{Error, Result};

/// Tokens of the sample: so many at least, where the text has them.
///
/// ```
/// assert_eq!(tinyonn::imaging::neuron_marks::SAMPLE, 4096);
/// ```
pub const SAMPLE: usize = 4096;
/// One neuron in so many is marked.
const TENTH: f64 = 10.0;

/// The marks of one layer's neurons.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::imaging::NeuronMarks;
/// use tinyonn::moe::AlwaysBy;
///
/// // Two tokens of four neurons: one is marked a token, of equals the first.
/// let marks = NeuronMarks::of(&Tensor::new(&[[3f32, 0.0, 3.0, 1.0], [0.0, 0.0, 9.0, 1.0]], &Device::Cpu)?)?;
/// assert_eq!(marks.rates(), [0.5, 0.0, 0.5, 0.0]);
/// assert_eq!(marks.best(AlwaysBy::Rate), [0, 2, 1, 3]);
/// assert_eq!(marks.best(AlwaysBy::Output), [2, 0, 3, 1]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct NeuronMarks {
    width: usize,
    /// Token by token, the neurons that it marks, ascending.
    marked: Vec<Vec<u32>>,
    /// Σ o over tokens.
    outputs: Vec<f64>,
}

impl NeuronMarks {
    fn new(width: usize) -> Self {
        Self { width, marked: Vec::new(), outputs: vec![0.0; width] }
    }

    /// Of o `[t, I]`.
    ///
    /// # Errors
    /// What the device reports.
    pub fn of(outputs_ti: &Tensor) -> Result<Self> {
        let mut marks = Self::new(outputs_ti.dim(D::Minus1)?);
        marks.add(&host::values(outputs_ti)?);
        Ok(marks)
    }

    /// More tokens, a row of o each.
    fn add(&mut self, outputs: &[f32]) {
        let most = ((self.width as f64 / TENTH).round() as usize).clamp(1, self.width.max(1));
        for row in outputs.chunks_exact(self.width.max(1)) {
            let mut order: Vec<u32> = (0..row.len() as u32).collect();
            let output = |at: &u32| row[*at as usize];
            order.select_nth_unstable_by(most - 1, |a, b| output(b).total_cmp(&output(a)).then(a.cmp(b)));
            order.truncate(most);
            order.sort_unstable();
            self.marked.push(order);
            self.outputs.iter_mut().zip(row).for_each(|(sum, output)| *sum += f64::from(*output));
        }
    }

    /// How many neurons the layer has.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// The share of tokens that mark each neuron.
    #[must_use]
    pub fn rates(&self) -> Vec<f64> {
        let mut counts = vec![0.0; self.width];
        self.marked.iter().flatten().for_each(|neuron| counts[*neuron as usize] += 1.0);
        counts.into_iter().map(|count: f64| count / self.marked.len().max(1) as f64).collect()
    }

    /// The mean of o of each neuron.
    fn outputs(&self) -> Vec<f64> {
        self.outputs.iter().map(|sum| sum / self.marked.len().max(1) as f64).collect()
    }

    /// All neurons, those of the largest rate or output first; ties to the lower index.
    #[must_use]
    pub fn best(&self, by: AlwaysBy) -> Vec<usize> {
        let scores = match by {
            AlwaysBy::Rate => self.rates(),
            AlwaysBy::Output => self.outputs(),
        };
        let mut order: Vec<usize> = (0..self.width).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        order
    }

    /// A point a neuron: of every token 1 if it marks it, else 0.
    pub(super) fn points(&self) -> Points {
        let tokens = self.marked.len();
        let mut values = vec![0.0; self.width * tokens];
        for (token, marked) in self.marked.iter().enumerate() {
            marked.iter().for_each(|neuron| values[*neuron as usize * tokens + token] = 1.0);
        }
        Points::new(values, tokens)
    }
}

/// The marks of each layer on about [`SAMPLE`] tokens of `set`, all tasks alike and no fewer where the text has them; a task with fewer tokens gives all it has. Deterministic.
///
/// # Errors
/// A task without a token that has a target; whatever the model reports.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::data::{TaskTokens, TokenSet};
/// use tinyonn::decoder::{Arch, CausalLm};
/// use tinyonn::imaging::{Partition, PartitionSources, ScanOptions, neuron_marks, partition};
/// use tinyonn::moe::moe;
///
/// #[moe(groups = 2, experts = 2, always = 2, always_by = output)]
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
/// let marks = neuron_marks(&model, &set, options, &Device::Cpu)?;
/// assert!((marks[0].rates().iter().sum::<f64>() - 2.0).abs() < 1e-9); // a tenth of 24
/// let sources = PartitionSources { marks: Some(&marks), ..PartitionSources::default() };
/// let units = partition::assign(Partition::CoactivationBinary, &Together::SPEC, (1, 24), sources, 0)?;
/// let of_shared: Vec<usize> = (0..24).filter(|neuron| units[0][*neuron] >= 4).collect();
/// let mut best = marks[0].best(tinyonn::moe::AlwaysBy::Output)[..8].to_vec();
/// best.sort_unstable();
/// assert_eq!(of_shared, best);
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub fn neuron_marks(
    model: &CausalLm<Mlp>,
    set: &TokenSet,
    options: ScanOptions,
    device: &Device,
) -> Result<Vec<NeuronMarks>> {
    let layers = model.model().layers();
    let norm = |layer: usize| {
        let down_id = layers[layer].mlp().weights().down.detach().to_dtype(DType::F32)?;
        Ok::<_, Error>(down_id.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.t()?)
    };
    let norms: Vec<Tensor> = (0..layers.len()).map(norm).collect::<Result<_>>()?;
    let mut marks = vec![NeuronMarks::new(model.config().intermediate_size); layers.len()];
    sampled_hidden(model, set, options, SAMPLE, device, |layer, hidden_ti| {
        let outputs_ti = hidden_ti.to_dtype(DType::F32)?.broadcast_mul(&norms[layer])?;
        marks[layer].add(&host::values(&outputs_ti)?);
        Ok(())
    })?;
    Ok(marks)
}
