//! The greedy-ablation oracle (DESIGN §3, controls): each task's path is found by taking experts away and measuring the loss on a
//! little of its training text. What a score only guesses is measured here, and paid for.
//!
//! All experts are active at first. Level by level (groups before experts), within a level layer by layer from the first, within a
//! layer router by router along the path: of the choices still active the one whose removal leaves the lowest loss is taken away,
//! until as many are left as a path takes ([`crate::moe::select::path_widths`]). Coarse before fine, since a group that
//! goes spares the search among its experts; the first layer first, since what later layers see follows from it, while a
//! later layer that is still whole makes up for little that is lost before it. Ties go to the lower index.
//!
//! Cost: a router of C choices of which k are kept takes (C(C+1) − k(k+1))/2 losses (none if k = C). Ten groups of ten experts at
//! k = 1, 2: 54 + 52 a layer and task; on the default model's 4 layers and 5 tasks 2120 losses of `tokens` tokens each.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::Labels;
use crate::data::{TaskTokens, TokenSet};
use crate::decoder::{Active, CausalLm, FeedForward, Pass, PathTable};
use crate::metrics::{Progress, check_loss};
use crate::moe::{ExpertsAre, MoeSpec, select};
use crate::ops::host;
use crate::{Error, Result};

/// The text that losses are measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GreedyOptions {
    /// Tokens a sequence.
    pub length: usize,
    /// Sequences of each task, evenly spread over its text; all losses of a task are over these.
    pub sequences: usize,
}

impl Default for GreedyOptions {
    fn default() -> Self {
        Self { length: 128, sequences: 4 }
    }
}

/// Candidates that one pass measures side by side.
const SIDE_BY_SIDE: usize = 16;

impl Labels {
    /// The paths that greedy ablation finds for the tasks of `set`, training text (DESIGN §3). Deterministic.
    ///
    /// # Errors
    /// Replicas, which are all alike; a task of fewer tokens than a sequence; a loss that is no finite number; what the model reports.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use tinyonn::checkpoint::{ParamStore, upcycle};
    /// use tinyonn::data::{TaskTokens, TokenSet};
    /// use tinyonn::imaging::{GreedyOptions, Labels, Partition, PartitionSources, partition};
    /// use tinyonn::model::TinyOnnForCausalLm;
    /// use tinyonn::moe::{self, moe};
    /// use tinyonn::decoder::{Arch, CausalLm};
    ///
    /// #[moe(groups = 2, experts = 3, top_k = [1, 2])]
    /// struct Ablated;
    ///
    /// let variant = moe::variant("Ablated")?;
    /// let cfg = Arch::from_json(&serde_json::json!({
    ///     "model_type": "qwen3", "vocab_size": 280, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    ///     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    /// }), "config.json")?;
    /// let dense = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
    /// let units = partition::assign(Partition::Contiguous, &Ablated::SPEC, (1, 24), PartitionSources::default(), 0)?;
    /// let store = upcycle(dense, &cfg, variant, &units, 0)?;
    /// let model = TinyOnnForCausalLm::new(&cfg, variant, &store.builder(DType::F32, |_| false))?;
    ///
    /// let task = TaskTokens { name: "count".into(), tokens: (0..200).collect(), documents: vec![0; 200] };
    /// let set = TokenSet { tasks: vec![task], documents: vec!["count/a".into()], eos: 0 };
    /// let options = GreedyOptions { length: 32, sequences: 2 };
    /// let labels = Labels::greedy(model.lm(), &Ablated::SPEC, &set, options, &Device::Cpu)?;
    /// assert_eq!(labels.paths.experts[0][0].len(), 2); // of one group's three
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    pub fn greedy<F: FeedForward>(
        model: &CausalLm<F>,
        spec: &MoeSpec,
        set: &TokenSet,
        options: GreedyOptions,
        device: &Device,
    ) -> Result<Self> {
        if spec.experts_are == ExpertsAre::Replicate {
            let problem = "its experts are replicas, which are all alike before they have learnt";
            return Err(Error::variant(spec.name.clone(), problem, "ablate the experts of slices"));
        }
        let layers = model.config().num_hidden_layers;
        let losses = (set.tasks.len() * layers * losses_of_layer(spec)) as u64;
        let progress = Progress::new(losses, "greedy ablation");
        let of_task = |task: &TaskTokens| {
            let (inputs, targets) = sequences(task, options, device)?;
            let text = Text { model, task: &task.name, inputs, targets, progress: &progress };
            text.ablate(spec, layers)
        };
        let experts = set.tasks.iter().map(of_task).collect::<Result<_>>()?;
        progress.finish();
        Ok(Self { paths: PathTable { experts } })
    }
}

/// Losses that one layer of one task takes: those of the routers along a path, the widest where they differ.
fn losses_of_layer(spec: &MoeSpec) -> usize {
    let widths = select::path_widths(spec);
    let mut routers = 1;
    let mut losses = 0;
    for (declared, widths) in spec.levels.iter().zip(&widths) {
        let of_router = |(slot, k): (crate::moe::RouterSlot, &usize)| {
            let choices = slot.nodes.len();
            (choices * (choices + 1) - k * (k + 1)) / 2
        };
        let most = declared.slots().zip(widths).filter(|(slot, k)| slot.nodes.len() > **k).map(of_router).max();
        losses += routers * most.unwrap_or(0);
        routers *= widths.iter().max().copied().unwrap_or(1);
    }
    losses
}

/// Inputs and targets `[B, T]` of a task's sequences, evenly spread over its text.
fn sequences(task: &TaskTokens, options: GreedyOptions, device: &Device) -> Result<(Tensor, Tensor)> {
    let GreedyOptions { length, sequences } = options;
    let rows = task.full_rows(length);
    let count = rows.min(sequences);
    if count == 0 || length == 0 {
        let problem = format!("task `{}` has no {sequences} sequences of {length} tokens", task.name);
        return Err(Error::setting("greedy", problem, "give it more text, or ask for one short sequence or more"));
    }
    let from = |at: usize| rows * at / count * length;
    let gather = |ahead: usize| -> Vec<u32> {
        (0..count).flat_map(|at| &task.tokens[from(at) + ahead..][..length]).copied().collect()
    };
    let tensor = |ahead| Tensor::from_vec(gather(ahead), (count, length), device);
    Ok((tensor(0)?, tensor(1)?))
}

/// The text of one task, and the model that reads it.
struct Text<'a, F> {
    model: &'a CausalLm<F>,
    task: &'a str,
    inputs: Tensor,
    targets: Tensor,
    progress: &'a Progress,
}

impl<F: FeedForward> Text<'_, F> {
    /// The path that is left, by layer.
    fn ablate(&self, spec: &MoeSpec, layers: usize) -> Result<Vec<Vec<u32>>> {
        let widths = select::path_widths(spec);
        let mut paths: Vec<Vec<u32>> = vec![(0..spec.routed_experts() as u32).collect(); layers];
        // The nodes of the level before that are left, by layer.
        let mut parents = vec![vec![0]; layers];
        for (level, declared) in spec.levels.iter().enumerate() {
            let (under, slots) = (spec.experts_under(level), declared.slots().collect::<Vec<_>>());
            for layer in 0..layers {
                let mut left = Vec::new();
                for parent in std::mem::take(&mut parents[layer]) {
                    let mut nodes: Vec<usize> = slots[parent].nodes.clone().collect();
                    while nodes.len() > widths[level][parent] {
                        let without = |node: &usize| {
                            let mut candidate = paths.clone();
                            candidate[layer].retain(|expert| !under[*node].contains(&(*expert as usize)));
                            candidate
                        };
                        let candidates: Vec<Vec<Vec<u32>>> = nodes.iter().map(without).collect();
                        let losses = self.losses(&candidates)?;
                        // Among equals the last is taken away.
                        let best =
                            (1..nodes.len()).fold(0, |best, at| if losses[at] <= losses[best] { at } else { best });
                        nodes.remove(best);
                        paths.clone_from(&candidates[best]);
                    }
                    left.extend(nodes);
                }
                parents[layer] = left;
            }
        }
        Ok(paths)
    }

    /// Nats over all tokens, of each candidate.
    fn losses(&self, candidates: &[Vec<Vec<u32>>]) -> Result<Vec<f64>> {
        let (rows, length) = self.inputs.dims2()?;
        let mut sums = Vec::with_capacity(candidates.len());
        for candidates in candidates.chunks(SIDE_BY_SIDE) {
            // To the model each candidate is a task of its own.
            let tasks =
                (0..candidates.len() as u32).flat_map(|candidate| std::iter::repeat_n(candidate, rows)).collect();
            let table = PathTable { experts: candidates.to_vec() };
            let pass = Pass { active: Active::Paths(Arc::new(table)), tasks: Some(tasks), ..Pass::default() };
            let [inputs, targets] = [&self.inputs, &self.targets].map(|ids| ids.repeat((candidates.len(), 1)));
            let losses = host::values(&self.model.token_losses(&inputs?, &targets?, &pass)?)?;
            sums.extend(losses.chunks(rows * length).map(|own| own.iter().map(|loss| f64::from(*loss)).sum::<f64>()));
            self.progress.set(self.progress.position() + candidates.len() as u64);
        }
        sums.iter().try_for_each(|sum| check_loss("greedy ablation", self.task, *sum))?;
        Ok(sums)
    }
}
