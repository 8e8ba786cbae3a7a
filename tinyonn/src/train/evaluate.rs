//! The loss of a model on held-out text, in nats a token.

use candle_core::{Device, Tensor};

use super::scored_tokens::{LossSums, ScoredTokens};
use crate::Result;
use crate::data::{Batch, TokenSet};
use crate::decoder::{Ask, CausalLm, FeedForward, Keep, Mlp, Pass, Trace};
use crate::imaging::Shard;
use crate::metrics::check_loss;
use crate::moe::LoadMeter;
use crate::ops::{distillation, host};

/// Mean cross-entropies.
///
/// ```
/// use tinyonn::train::{DocumentLoss, Losses};
///
/// let document = |sum, tokens| DocumentLoss { task: 0, sum, tokens };
/// let losses = Losses { mean: 2.5, by_task: vec![2.5], by_document: vec![document(20.0, 10.0), document(30.0, 10.0)] };
/// let clusters: Vec<(f64, f64)> = losses.by_document.iter().map(|seen| (seen.sum, seen.tokens)).collect();
/// assert_eq!(tinyonn::metrics::interval(&clusters, 0).mean, losses.mean); // with an interval over documents
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Losses {
    /// Over all tokens.
    pub mean: f64,
    /// By task, in the set's order.
    pub by_task: Vec<f64>,
    /// By document, in the set's order.
    pub by_document: Vec<DocumentLoss>,
}

/// The loss over one document: what intervals are drawn over, since tokens of one document are not independent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DocumentLoss {
    /// Its task.
    pub task: usize,
    /// Σ of its tokens' losses, in nats.
    pub sum: f64,
    /// Its tokens that were scored.
    pub tokens: f64,
}

impl Losses {
    /// Those of other tasks behind these, as [`TokenSet::beside`] has them.
    #[must_use]
    pub fn beside(mut self, other: Self) -> Self {
        let tokens = |losses: &Self| losses.by_document.iter().map(|document| document.tokens).sum::<f64>();
        let (own, others, tasks) = (tokens(&self), tokens(&other), self.by_task.len());
        self.mean = (self.mean * own + other.mean * others) / f64::max(own + others, 1.0);
        self.by_task.extend(other.by_task);
        let behind = |document: DocumentLoss| DocumentLoss { task: document.task + tasks, ..document };
        self.by_document.extend(other.by_document.into_iter().map(behind));
        self
    }
}

/// How held-out text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvaluateOptions {
    /// Tokens a sequence.
    pub length: usize,
    /// Sequences a batch.
    pub batch: usize,
    /// The first positions of every sequence that are read but not scored (what a shared decision reads, DESIGN §1).
    pub skip: usize,
}

/// Every token of `set` that has a target, once, under `pass`; each sequence's task is added to it.
///
/// # Errors
/// A task without a token to score; a loss that is no finite number; whatever the model reports.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::data::{TaskTokens, TokenSet};
/// use tinyonn::decoder::{Arch, CausalLm, Pass};
/// use tinyonn::train::evaluate;
/// use tinyonn::train::evaluate::EvaluateOptions;
///
/// let cfg = Arch::from_json(&serde_json::json!({
///     "model_type": "qwen3", "vocab_size": 280, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
///     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
/// }), "config.json")?;
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?;
///
/// let task = TaskTokens { name: "count".into(), tokens: (0..100).collect(), documents: vec![0; 100] };
/// let set = TokenSet { tasks: vec![task], documents: vec!["count/a".into()], eos: 0 };
/// let options = EvaluateOptions { length: 32, batch: 4, skip: 0 };
/// let losses = evaluate(&model, &set, options, &Pass::all(), &Device::Cpu)?;
/// assert!((losses.mean - 280f64.ln()).abs() < 0.1); // it knows nothing yet
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub fn evaluate<F: FeedForward>(
    model: &CausalLm<F>,
    set: &TokenSet,
    options: EvaluateOptions,
    pass: &Pass,
    device: &Device,
) -> Result<Losses> {
    mean_of(set, options, device, |batch| losses(model, batch, pass), |_, _, _| ())
}

/// As [`evaluate`], of how far the next token's distribution is from that of `original` in place of losses: Σ_v p_v (ln p_v − ln q_v) of each token that
/// has a target, p the original's, all active, q the model's; both have one head.
///
/// # Errors
/// As above.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::data::{TaskTokens, TokenSet};
/// use tinyonn::decoder::{Arch, CausalLm, Pass};
/// use tinyonn::train::divergence;
/// use tinyonn::train::evaluate::EvaluateOptions;
///
/// let cfg = Arch::from_json(&serde_json::json!({
///     "model_type": "qwen3", "vocab_size": 280, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
///     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
/// }), "config.json")?;
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?;
/// let task = TaskTokens { name: "count".into(), tokens: (0..100).collect(), documents: vec![0; 100] };
/// let set = TokenSet { tasks: vec![task], documents: vec!["count/a".into()], eos: 0 };
///
/// let options = EvaluateOptions { length: 32, batch: 4, skip: 0 };
/// let found = divergence((&model, &model), &set, options, &Pass::all(), &Device::Cpu)?;
/// assert_eq!((found.mean, found.by_document[0].tokens), (0.0, 99.0)); // from itself
/// assert_eq!(found.clone().beside(found).by_task, [0.0, 0.0]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub fn divergence<F: FeedForward>(
    (model, original): (&CausalLm<F>, &CausalLm<Mlp>),
    set: &TokenSet,
    options: EvaluateOptions,
    pass: &Pass,
    device: &Device,
) -> Result<Losses> {
    let of = |batch: &Batch| {
        let (own, traces) = model.hidden(&batch.inputs, &pass.of_tasks(&batch.tasks))?;
        let (first, _) = original.hidden(&batch.inputs, &Pass::all())?;
        Ok((distillation::values(&own.flatten_to(1)?, &first.flatten_to(1)?, model.head())?, traces))
    };
    mean_of(set, options, device, of, |_, _, _| ())
}

/// As [`evaluate`], of a routed model; with what each of `experts` experts was given to do.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::{ParamStore, upcycle};
/// use tinyonn::data::{TaskTokens, TokenSet};
/// use tinyonn::decoder::{CausalLm, Pass};
/// use tinyonn::model::TinyOnnForCausalLm;
/// use tinyonn::moe::variant;
/// use tinyonn::phases::RunConfig;
/// use tinyonn::train::evaluate::{EvaluateOptions, evaluate_load};
///
/// let (cfg, mixtral) = (RunConfig::default().dense.arch(64, "silu"), variant("Mixtral")?);
/// let dense = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let owners = vec![(0..cfg.intermediate_size).map(|i| i as u32 % 8).collect(); cfg.num_hidden_layers];
/// let store = upcycle(dense, &cfg, mixtral, &owners, 0)?;
/// let model = TinyOnnForCausalLm::new(&cfg, mixtral, &store.builder(DType::F32, |_| false))?;
/// let task = TaskTokens { name: "t".into(), tokens: (0..64).collect(), documents: vec![0; 64] };
/// let set = TokenSet { tasks: vec![task], documents: vec!["t/a".into()], eos: 0 };
///
/// let options = EvaluateOptions { length: 16, batch: 2, skip: 0 };
/// let (losses, load) = evaluate_load(model.lm(), &set, options, &Pass::routed(), &Device::Cpu, 8)?;
/// assert_eq!((losses.by_task.len(), load.expert_share()), (1, 2.0 / 8.0)); // two of eight experts a token
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// As above.
pub fn evaluate_load<F: FeedForward>(
    model: &CausalLm<F>,
    set: &TokenSet,
    options: EvaluateOptions,
    pass: &Pass,
    device: &Device,
    experts: usize,
) -> Result<(Losses, LoadMeter)> {
    let mut load = LoadMeter::new(model.config().num_hidden_layers, experts);
    let pass = Pass { ask: Ask { load: true, ..pass.ask.clone() }, ..pass.clone() };
    let losses = mean_of(
        set,
        options,
        device,
        |batch| losses(model, batch, &pass),
        |traces, values, counted| {
            load.add_scored(traces, values, |at| counted[at] && at % options.length >= options.skip);
        },
    )?;
    Ok((losses, load))
}

/// The tokens that [`evaluate`] scores in a shard of the batches of `set`; with what each expert was given to do, as [`evaluate_load`], of a routed model of
/// so many `experts`.
pub(crate) fn score_shard<F: FeedForward>(
    model: &CausalLm<F>,
    (set, shard): (&TokenSet, Shard),
    options: EvaluateOptions,
    pass: &Pass,
    device: &Device,
    experts: Option<usize>,
) -> Result<ScoredTokens> {
    let pass = Pass { ask: Ask { load: experts.is_some(), ..pass.ask.clone() }, ..pass.clone() };
    let (mut scored, mut loads) = (ScoredTokens::default(), Vec::new());
    read(
        (set, shard),
        options,
        device,
        |batch| losses(model, batch, &pass),
        |number, traces, values, counted| {
            if let Some(experts) = experts {
                let mut load = LoadMeter::new(model.config().num_hidden_layers, experts);
                load.add_scored(traces, values, |at| counted[at] && at % options.length >= options.skip);
                loads.push((number, load));
            }
        },
        |number, of, loss| scored.add(number, of, loss),
    )?;
    Ok(ScoredTokens { loads, ..scored })
}

/// Of each position its loss; and what was asked of layers.
fn losses<F: FeedForward>(model: &CausalLm<F>, batch: &Batch, pass: &Pass) -> Result<(Tensor, Vec<Trace>)> {
    let pass = Pass { keep: Keep::Nothing, ..pass.of_tasks(&batch.tasks) };
    let forward = model.forward(&batch.inputs, &batch.targets, &pass)?;
    Ok((forward.losses, forward.traces))
}

/// Sums up what `said` finds of each position of `set`, and gives `routed` the loads that were asked for.
fn mean_of(
    set: &TokenSet,
    options: EvaluateOptions,
    device: &Device,
    said: impl Fn(&Batch) -> Result<(Tensor, Vec<Trace>)>,
    mut routed: impl FnMut(&[Trace], &[Vec<f64>], &[bool]),
) -> Result<Losses> {
    let mut sums = LossSums::new(set);
    read(
        (set, Shard::WHOLE),
        options,
        device,
        said,
        |_, traces, loads, counted| routed(traces, loads, counted),
        |_, of, loss| sums.add(of, loss),
    )?;
    sums.losses(set, options.skip)
}

/// What `said` finds of each position of a shard that is scored, with the number of its batch, its task and document, for `scored`. One copy to the host a batch:
/// that, and the loads that were asked for, which `routed` is given.
fn read(
    (set, shard): (&TokenSet, Shard),
    options: EvaluateOptions,
    device: &Device,
    said: impl Fn(&Batch) -> Result<(Tensor, Vec<Trace>)>,
    mut routed: impl FnMut(u32, &[Trace], &[Vec<f64>], &[bool]),
    mut scored: impl FnMut(u32, (usize, u32), f64),
) -> Result<()> {
    let mut begun = 0;
    for task in 0..set.tasks.len() {
        let batches = set.batches_of_task(task, options.length, options.batch, device)?;
        for batch in batches {
            let (batch, number) = (batch?, begun);
            begun += 1;
            if !shard.has(number as usize) {
                continue;
            }
            let (losses, traces) = said(&batch)?;
            let values = host::read(&[vec![&losses], LoadMeter::wanted(&traces)].concat())?;
            let Some((losses, loads)) = values.split_first() else { continue };
            routed(number, &traces, loads, &batch.counted);
            let mut sum = 0.0;
            for (position, (loss, counted)) in losses.iter().zip(&batch.counted).enumerate() {
                if *counted && position % options.length >= options.skip {
                    sum += loss;
                    scored(number, (task, batch.documents[position]), *loss);
                }
            }
            check_loss("evaluate", &set.tasks[task].name, sum)?;
        }
    }
    Ok(())
}
