//! The scan: one forward and one backward to activations only, with every neuron's sums fused in (DESIGN §3).
//!
//! L is the *sum* of the tokens' cross-entropies; all experts are active; all weights are frozen, so no weight gradient is
//! formed. Sums are f64 and linear, so scans of parts of a corpus add up to the scan of the whole.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Device;

use super::RouterInputs;
use crate::data::{Batch, NO_TARGET, TaskTokens, TokenSet};
use crate::metrics::{Progress, check_loss};
use crate::ops::{self, MlpBackward, MlpProbe, NeuronSums, WeightGrads};
use crate::qwen3::{FeedForward, Observer, Qwen3ForCausalLm, RouteCtx};
use crate::{Error, Result};

/// How a corpus is read: rows of `length` tokens, `batch` at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanOptions {
    /// Tokens a sequence.
    pub length: usize,
    /// Sequences a batch.
    pub batch: usize,
    /// At most this many tokens of each task, from its beginning.
    pub tokens_per_task: usize,
}

impl ScanOptions {
    /// The part of `set` that is read: each task's first tokens, `tokens_per_task` of them with a target.
    pub(super) fn part(&self, set: &TokenSet) -> TokenSet {
        let cut = |values: &Vec<u32>| values[..values.len().min(self.tokens_per_task.saturating_add(1))].to_vec();
        let task = |task: &TaskTokens| TaskTokens {
            name: task.name.clone(),
            tokens: cut(&task.tokens),
            documents: cut(&task.documents),
        };
        TokenSet { tasks: set.tasks.iter().map(task).collect(), documents: set.documents.clone(), eos: set.eos }
    }
}

/// What a scan saw: for every layer and task the sums over tokens of every neuron.
#[derive(Clone, Debug, PartialEq)]
pub struct NeuronScan {
    /// The tasks' names.
    pub tasks: Vec<String>,
    /// Tokens counted, by task.
    pub tokens: Vec<u64>,
    /// Σ of the tokens' losses in nats, by task.
    pub loss: Vec<f64>,
    /// `sums[layer][task]`.
    pub sums: Vec<Vec<NeuronSums>>,
}

impl NeuronScan {
    /// Nothing seen.
    #[must_use]
    pub fn zero(tasks: Vec<String>, layers: usize, width: usize) -> Self {
        let count = tasks.len();
        let sums = vec![vec![NeuronSums::zero(width); count]; layers];
        Self { tasks, tokens: vec![0; count], loss: vec![0.0; count], sums }
    }

    /// Adds a scan of other text of the same tasks through the same model.
    ///
    /// # Errors
    /// Other tasks, layers or widths.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let shape =
            |scan: &Self| (scan.sums.len(), scan.sums.first().and_then(|l| l.first()).map(|s| s.activation.len()));
        if self.tasks != other.tasks || shape(self) != shape(other) {
            let problem = "the scans are of different tasks or models";
            return Err(Error::setting("scan", problem, "merge scans of the same model and tasks"));
        }
        for task in 0..self.tasks.len() {
            self.tokens[task] += other.tokens[task];
            self.loss[task] += other.loss[task];
        }
        for (layer, other) in self.sums.iter_mut().zip(&other.sums) {
            layer.iter_mut().zip(other).for_each(|(sums, other)| sums.add(other));
        }
        Ok(())
    }

    /// Neurons of a layer.
    #[must_use]
    pub fn width(&self) -> usize {
        self.sums.first().and_then(|layer| layer.first()).map_or(0, |sums| sums.activation.len())
    }

    /// The share of (layer, token, neuron) with a surprise above zero; 0 of a scan without tokens.
    #[must_use]
    pub fn gradient_nonzero_share(&self) -> f64 {
        let surprised: f64 = self.sums.iter().flatten().flat_map(|sums| &sums.surprised).sum();
        let seen = self.tokens.iter().sum::<u64>() as f64 * self.width() as f64 * self.sums.len() as f64;
        if seen > 0.0 { surprised / seen } else { 0.0 }
    }
}

/// Scans `set` through `model`, all active. `inputs`, if given, collects what the routers will see, in the same pass.
///
/// # Errors
/// Sequences longer than the model was made for; a task without a token that has a target; a loss that is no finite
/// number; a scan whose gradients are all zero: nothing can be read from it.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::data::{Corpus, TextTokenizer, TokenSet, arithmetic, sorting};
/// use tinyonn::imaging::{Integral, ScanOptions, Score, scan};
/// use tinyonn::qwen3::{Qwen3Config, Qwen3ForCausalLm};
///
/// let corpus = Corpus { tasks: vec![arithmetic(0, 2_000), sorting(0, 2_000)] };
/// let set = TokenSet::encode(&corpus, &TextTokenizer::train(&corpus, 300)?)?;
/// let cfg = Qwen3Config::from_json(&serde_json::json!({
///     "model_type": "qwen3", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
///     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
/// }), "config.json")?;
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| Qwen3ForCausalLm::dense(&cfg, &vb).map(drop))?;
/// let model = Qwen3ForCausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?;
///
/// let options = ScanOptions { length: 32, batch: 4, tokens_per_task: 500 };
/// let seen = scan(&model, &set, options, &Device::Cpu, None)?;
/// assert_eq!(seen.tokens, [500, 500]);
/// assert_eq!(Integral::new(&seen, Score::Sps).neurons[1][0].len(), 24);
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub fn scan<F: FeedForward>(
    model: &Qwen3ForCausalLm<F>,
    set: &TokenSet,
    options: ScanOptions,
    device: &Device,
    inputs: Option<&Arc<RouterInputs>>,
) -> Result<NeuronScan> {
    let cfg = model.config();
    if options.length > cfg.max_position_embeddings {
        let (length, most) = (options.length, cfg.max_position_embeddings);
        let problem = format!("sequences of {length} tokens are longer than the {most} that the model was made for");
        return Err(Error::setting("length", problem, format!("use {most} or less")));
    }
    let set = &options.part(set);
    if let Some(task) = set.tasks.iter().find(|task| task.targets() == 0) {
        let problem = format!("task `{}` has no token with a target", task.name);
        return Err(Error::setting("scan", problem, "give every task two tokens or more to read"));
    }
    let names = set.tasks.iter().map(|task| task.name.clone()).collect();
    let scanner = Arc::new(Scanner {
        state: Mutex::new(State {
            scan: NeuronScan::zero(names, cfg.num_hidden_layers, cfg.intermediate_size),
            task: 0,
            counted: Vec::new(),
        }),
    });
    let ctx = RouteCtx {
        probe: Some(scanner.clone()),
        observer: inputs.map(|inputs| inputs.clone() as Arc<dyn Observer>),
        ..RouteCtx::all()
    };
    let batches = |rows: usize| rows.div_ceil(options.batch.max(1)) as u64;
    let progress = Progress::new(set.rows(options.length).into_iter().map(batches).sum(), "scan");
    for task in 0..set.tasks.len() {
        for batch in set.batches_of_task(task, options.length, options.batch, device)? {
            let batch = batch?;
            scanner.begin(task, &batch)?;
            if let Some(inputs) = inputs {
                inputs.begin(task, &batch)?;
            }
            let losses = model.token_losses(&batch.inputs, &batch.targets, &ctx)?;
            ops::backward(&losses.sum_all()?)?;
            let losses = losses.flatten_all()?.to_vec1::<f32>()?;
            let loss = losses.iter().map(|loss| f64::from(*loss)).sum::<f64>();
            check_loss("scan", &set.tasks[task].name, loss)?;
            scanner.lock().scan.loss[task] += loss;
            progress.set(progress.position() + 1);
        }
    }
    progress.finish();
    drop(ctx);
    let scan = scanner.lock().scan.clone();
    if scan.gradient_nonzero_share() <= 0.0 {
        let problem = "every surprise of the scan is zero: no gradient reached the experts";
        return Err(Error::setting("scan", problem, "scan text that has targets, through an unquantised model"));
    }
    Ok(scan)
}

struct Scanner {
    state: Mutex<State>,
}

struct State {
    scan: NeuronScan,
    task: usize,
    /// Tokens of the batch that have a target.
    counted: Vec<bool>,
}

impl Scanner {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, task: usize, batch: &Batch) -> Result<()> {
        let targets: Vec<u32> = batch.targets.flatten_all()?.to_vec1()?;
        let mut state = self.lock();
        state.task = task;
        state.counted = targets.iter().map(|target| *target != NO_TARGET).collect();
        state.scan.tokens[task] += state.counted.iter().filter(|counted| **counted).count() as u64;
        Ok(())
    }
}

impl MlpProbe for Scanner {
    fn observe(&self, layer: usize, pass: &MlpBackward<'_>) -> candle_core::Result<WeightGrads> {
        let mut state = self.lock();
        let sums = ops::neuron_moments(pass, &state.counted)?;
        let task = state.task;
        state.scan.sums[layer][task].add(&sums);
        Ok(WeightGrads::All)
    }
}
