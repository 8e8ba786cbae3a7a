//! The scan: one forward and one backward to activations only, with every unit's sums fused in (DESIGN §3).
//!
//! L is the *sum* of the tokens' cross-entropies; all experts are active; all weights are frozen, so no weight gradient is
//! formed. Sums are f64 and linear, so scans of parts of a corpus add up to the scan of the whole. What a scan holds is its sums
//! and one batch, however long the text, if that is on disk ([`scan_batches`], [`TokenFile`](crate::data::TokenFile)).

mod shard;

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

pub use self::shard::Shard;
use super::scan_file::{Keeper, ScanFile};
use super::{NeuronScan, RouterInputs, Units};
use crate::data::{Batches, TaskTokens, TokenSet};
use crate::decoder::{Ask, CausalLm, FeedForward, ImageAsk, Learn, Pass};
use crate::metrics::{Progress, check_loss};
use crate::ops::{ExpertNeurons, GradSite, Grads, ImageSums, ImageTensors, Log1pScale, NeuronSums, host};
use crate::{Error, Result};

/// How a corpus is read: rows of `length` tokens, `batch` at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
    pub(crate) fn part<'a>(&self, set: &'a TokenSet) -> Cow<'a, TokenSet> {
        let most = self.tokens_per_task.saturating_add(1);
        if set.tasks.iter().all(|task| task.tokens.len() <= most) {
            return Cow::Borrowed(set);
        }
        let cut = |values: &Vec<u32>| values[..values.len().min(most)].to_vec();
        let task = |task: &TaskTokens| TaskTokens {
            name: task.name.clone(),
            tokens: cut(&task.tokens),
            documents: cut(&task.documents),
        };
        let tasks = set.tasks.iter().map(task).collect();
        Cow::Owned(TokenSet { tasks, documents: set.documents.clone(), eos: set.eos })
    }
}

/// Sums of log1p(x / scale), for `norm = log1p`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Log1p {
    /// None.
    #[default]
    Off,
    /// Over the mean a and the mean S of each layer, tasks weighted equally, over the first batch of every task: read once before
    /// the scan, the same for every shard of a text.
    Measured,
    /// Over given scales, by layer: those of another scan, which this one is to be merged with.
    Given(Vec<Log1pScale>),
}

/// All that decides what a scan reads and sums.
#[derive(Clone, Debug, PartialEq)]
pub struct ScanRequest {
    /// How the text is read.
    pub options: ScanOptions,
    /// The shard of its batches.
    pub shard: Shard,
    /// Which gradient's norm surprise is.
    pub grad_site: GradSite,
    /// The experts whose norms are summed as well.
    pub units: Option<Units>,
    /// Sums of log1p values.
    pub log1p: Log1p,
}

impl ScanRequest {
    /// The whole text, neurons alone.
    #[must_use]
    pub fn new(options: ScanOptions) -> Self {
        let (shard, grad_site, log1p) = (Shard::WHOLE, GradSite::Weight, Log1p::Off);
        Self { options, shard, grad_site, units: None, log1p }
    }

    /// Refuses what does not fit the model.
    fn check<F: FeedForward>(&self, model: &CausalLm<F>) -> Result<()> {
        let cfg = model.config();
        let (length, most) = (self.options.length, cfg.max_position_embeddings);
        if length > most {
            let problem =
                format!("sequences of {length} tokens are longer than the {most} that the model was made for");
            return Err(Error::setting("length", problem, format!("use {most} or less")));
        }
        self.shard.check()?;
        let layers = cfg.num_hidden_layers;
        if let Some(units) = &self.units {
            let fits = |layer: &Vec<u32>| layer.len() == cfg.intermediate_size;
            if units.neuron_expert.len() != layers || !units.neuron_expert.iter().all(fits) {
                let problem =
                    format!("they do not give each of {} neurons in {layers} layers an expert", cfg.intermediate_size);
                return Err(Error::setting("units", problem, "take them from this model (`neuron_experts`)"));
            }
        }
        if let Log1p::Given(scales) = &self.log1p {
            let fits =
                |scale: &Log1pScale| [scale.activation, scale.surprise].iter().all(|x| x.is_finite() && *x > 0.0);
            if scales.len() != layers || !scales.iter().all(fits) {
                let problem = format!("the scales are not {layers} pairs of numbers above zero");
                return Err(Error::setting(
                    "log1p",
                    problem,
                    "take them from a scan of this model, or have them measured",
                ));
            }
        }
        Ok(())
    }
}

/// Scans `set` through `model`, all active, neurons alone. `inputs`, if given, collects what the routers will see, in the same pass.
///
/// # Errors
/// As [`scan_with`].
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::data::{Corpus, TextTokenizer, TokenSet, arithmetic, sorting};
/// use tinyonn::imaging::{Integral, ScanOptions, Score, scan};
/// use tinyonn::decoder::{Arch, CausalLm};
///
/// let corpus = Corpus { tasks: vec![arithmetic(0, 2_000), sorting(0, 2_000)] };
/// let set = TokenSet::encode(&corpus, &TextTokenizer::train(&corpus, 300)?)?;
/// let cfg = Arch::from_json(&serde_json::json!({
///     "model_type": "qwen3", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
///     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
/// }), "config.json")?;
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?;
///
/// let options = ScanOptions { length: 32, batch: 4, tokens_per_task: 500 };
/// let seen = scan(&model, &set, options, &Device::Cpu, None)?;
/// assert_eq!(seen.tokens, [500, 500]);
/// assert_eq!(Integral::new(&seen, Score::Sps).neurons[1][0].len(), 24);
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub fn scan<F: FeedForward>(
    model: &CausalLm<F>,
    set: &TokenSet,
    options: ScanOptions,
    device: &Device,
    inputs: Option<&mut RouterInputs>,
) -> Result<NeuronScan> {
    let request = ScanRequest::new(options);
    request.check(model)?;
    let set = options.part(set);
    Reading { model, text: &*set, request: &request, device }.scan(None, inputs)
}

/// Scans as `request` says. With a `file` the scan is kept there as it goes: whole-or-nothing every so often and at the end, and
/// one that is there already is continued from where it stands (or returned, if it is finished), bit-equal to one that was never
/// interrupted. Router inputs are not kept in files: collect them with [`RouterInputs::collect`].
///
/// # Errors
/// Sequences longer than the model was made for; a task without a token that has a target; units, scales or a shard that do not
/// fit; a loss that is no finite number; a scan whose gradients are all zero: nothing can be read from it; a file that is damaged,
/// or of another scan than this.
///
/// ```
/// # use candle_core::{DType, Device};
/// # use tinyonn::checkpoint::ParamStore;
/// # use tinyonn::data::{Corpus, TextTokenizer, TokenSet, arithmetic, sorting};
/// # use tinyonn::decoder::{Arch, CausalLm};
/// # let corpus = Corpus { tasks: vec![arithmetic(0, 2_000), sorting(0, 2_000)] };
/// # let set = TokenSet::encode(&corpus, &TextTokenizer::train(&corpus, 300)?)?;
/// # let cfg = Arch::from_json(&serde_json::json!({
/// #     "model_type": "qwen3", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
/// #     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
/// # }), "config.json")?;
/// # let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// # let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?;
/// use tinyonn::imaging::{ExpertForm, Form, Integral, Norm, ScanOptions, ScanRequest, Score, Shard, Units, scan_with};
///
/// // Two halves of the text, each of which another machine could read, with the norms of four experts.
/// let options = ScanOptions { length: 32, batch: 4, tokens_per_task: 500 };
/// let units = Units { neuron_expert: vec![(0..24).map(|i| i / 6).collect(); 2], count: 4 };
/// let request = |index| ScanRequest {
///     shard: Shard { index, of: 2 },
///     units: Some(units.clone()),
///     ..ScanRequest::new(options)
/// };
/// let mut seen = scan_with(&model, &set, &request(0), &Device::Cpu, None)?;
/// seen.merge(&scan_with(&model, &set, &request(1), &Device::Cpu, None)?)?;
/// let form = Form { norm: Norm::Global, expert: ExpertForm::Norm };
/// let by_expert = Integral::of(&seen, Score::Sps, form)?.by_unit(&units.neuron_expert, units.count);
/// assert_eq!((by_expert.len(), by_expert[0].len(), by_expert[0][0].len()), (2, 2, 4));
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub fn scan_with<F: FeedForward>(
    model: &CausalLm<F>,
    set: &TokenSet,
    request: &ScanRequest,
    device: &Device,
    file: Option<&ScanFile<'_>>,
) -> Result<NeuronScan> {
    scan_batches(model, &*request.options.part(set), request, device, file)
}

/// As [`scan_with`], of tokens that need not be in memory: `text` is the part that is read, at most
/// [`tokens_per_task`](ScanOptions::tokens_per_task) of them with a target. Of one part the sums are the same bits wherever it is.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::data::{TaskTokens, TokenSet};
/// use tinyonn::decoder::CausalLm;
/// use tinyonn::imaging::{Log1p, ScanFile, ScanOptions, ScanRequest, Shard, StoredScan, scan_batches};
/// use tinyonn::phases::RunConfig;
///
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?;
/// let task = TaskTokens { name: "t".into(), tokens: (0..64).collect(), documents: vec![0; 64] };
/// let set = TokenSet { tasks: vec![task], documents: vec!["t/a".into()], eos: 0 };
///
/// // The first of two halves, with sums of log1p as well, kept in a file that a killed scan goes on from.
/// let options = ScanOptions { length: 16, batch: 1, tokens_per_task: 64 };
/// let request = ScanRequest { shard: Shard { index: 0, of: 2 }, log1p: Log1p::Measured, ..ScanRequest::new(options) };
/// # let dir = tempfile::tempdir().map_err(|e| tinyonn::Error::io("temporary folder", e))?;
/// # let path = dir.path().join("scan.safetensors");
/// let file = ScanFile { path: &path, corpus: "of the text", model: "of the model", every: std::time::Duration::from_secs(60) };
/// let found = scan_batches(&model, &set, &request, &Device::Cpu, Some(&file))?;
/// let stored = StoredScan::load(&path)?;
/// assert_eq!(stored.scan.tokens, found.tokens);
/// assert_eq!(stored.missing(), [Shard { index: 1, of: 2 }]);
/// assert!(found.tokens[0] < 63 && Shard::WHOLE.of == 1 && Shard::MOST == 65_536);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As [`scan_with`]; a task with more tokens than are to be read.
pub fn scan_batches<F: FeedForward>(
    model: &CausalLm<F>,
    text: &dyn Batches,
    request: &ScanRequest,
    device: &Device,
    file: Option<&ScanFile<'_>>,
) -> Result<NeuronScan> {
    request.check(model)?;
    let most = request.options.tokens_per_task;
    if let Some(targets) = text.targets().into_iter().find(|targets| *targets > most) {
        let problem = format!("a task has {targets} tokens with a target, and {most} are to be read");
        return Err(Error::setting("tokens_per_task", problem, "give the part of the text that is to be read"));
    }
    Reading { model, text, request, device }.scan(file, None)
}

/// What stays the same while a text is read.
struct Reading<'a, F> {
    model: &'a CausalLm<F>,
    /// The part that is read.
    text: &'a dyn Batches,
    request: &'a ScanRequest,
    device: &'a Device,
}

impl<F: FeedForward> Reading<'_, F> {
    /// (task, number of the batch within the task) of the batches of the shard.
    fn batches(&self) -> Result<impl Iterator<Item = (usize, usize)>> {
        let ScanRequest { options: ScanOptions { length, batch, .. }, shard, .. } = *self.request;
        let counts = self.text.counts((length, batch))?.into_iter().enumerate();
        let all = counts.flat_map(|(task, count)| (0..count).map(move |number| (task, number)));
        Ok(all.enumerate().filter(move |(at, _)| shard.has(*at)).map(|(_, batch)| batch))
    }

    fn scan(&self, file: Option<&ScanFile<'_>>, mut inputs: Option<&mut RouterInputs>) -> Result<NeuronScan> {
        let names = self.text.names();
        if let Some((name, _)) = names.iter().zip(self.text.targets()).find(|(_, targets)| *targets == 0) {
            let problem = format!("task `{name}` has no token with a target");
            return Err(Error::setting("scan", problem, "give every task two tokens or more to read"));
        }
        let batches = self.batches()?.count();
        let mut keeper = file.map(|file| self.keeper(file, batches)).transpose()?;
        let (mut scan, done) = match keeper.as_mut().and_then(Keeper::take) {
            Some((scan, done)) => (scan, done),
            None => (self.nothing_seen()?, 0),
        };
        let asked = Asked::new(&scan, self.request.units.as_ref())?;
        let progress = Progress::resumed(done as u64, batches as u64, "scan");
        let mut sums: Option<TaskSums> = None;
        for (at, batch) in self.batches()?.enumerate().skip(done) {
            progress.set(at as u64);
            if let Some(read) = sums.take_if(|sums| sums.task != batch.0) {
                read.store(&mut scan, inputs.as_deref_mut())?;
            }
            let of_task = match &mut sums {
                Some(sums) => sums,
                None => sums.insert(TaskSums::of(&scan, batch.0, self.device)?),
            };
            self.read(batch, &asked, of_task, inputs.as_deref_mut())?;
            if let Some(keeper) = keeper.as_mut().filter(|keeper| keeper.is_due(at + 1)) {
                of_task.store(&mut scan, inputs.as_deref_mut())?;
                keeper.keep(&scan, at + 1)?;
            }
        }
        if let Some(read) = sums {
            read.store(&mut scan, inputs)?;
        }
        progress.finish();
        scan.check_gradients()?;
        if let Some(keeper) = &mut keeper {
            keeper.finish(&scan)?;
        }
        Ok(scan)
    }

    fn keeper<'b>(&self, file: &'b ScanFile<'b>, batches: usize) -> Result<Keeper<'b>> {
        Keeper::open(file, (self.request, self.model.head().dtype(), self.device), (self.text.sha256(), batches))
    }

    fn nothing_seen(&self) -> Result<NeuronScan> {
        let scales = match &self.request.log1p {
            Log1p::Off => None,
            Log1p::Given(scales) => Some(scales.clone()),
            Log1p::Measured => Some(self.scales()?),
        };
        let zero = NeuronScan::zero(self.text.names(), self.layers(), self.model.config().intermediate_size);
        Ok(zero.measuring(self.request.grad_site, self.request.units.as_ref(), scales.as_deref()))
    }

    fn layers(&self) -> usize {
        self.model.config().num_hidden_layers
    }

    /// The mean a and the mean S of each layer over the first batch of every task, tasks weighted equally; 1 where that is zero.
    fn scales(&self) -> Result<Vec<Log1pScale>> {
        let width = self.model.config().intermediate_size;
        let zero = NeuronScan::zero(self.text.names(), self.layers(), width);
        let mut scan = zero.measuring(self.request.grad_site, None, None);
        let asked = Asked::new(&scan, None)?;
        for task in 0..self.text.names().len() {
            let mut sums = TaskSums::of(&scan, task, self.device)?;
            self.read((task, 0), &asked, &mut sums, None)?;
            sums.store(&mut scan, None)?;
        }
        let mean = |layer: &Vec<NeuronSums>, of: fn(&NeuronSums) -> &Vec<f64>| {
            let of_task =
                |(sums, tokens): (&NeuronSums, &u64)| of(sums).iter().sum::<f64>() / (*tokens as f64 * width as f64);
            let mean = layer.iter().zip(&scan.tokens).map(of_task).sum::<f64>() / layer.len() as f64;
            if mean > 0.0 && mean.is_finite() { mean } else { 1.0 }
        };
        let scale = |layer: &Vec<NeuronSums>| Log1pScale {
            activation: mean(layer, |sums| &sums.activation),
            surprise: mean(layer, |sums| &sums.surprise),
        };
        Ok(scan.sums.iter().map(scale).collect())
    }

    /// One batch, forward and backward.
    fn read(
        &self,
        (task, number): (usize, usize),
        asked: &Asked,
        sums: &mut TaskSums,
        mut inputs: Option<&mut RouterInputs>,
    ) -> Result<()> {
        let ScanOptions { length, batch, .. } = self.request.options;
        let batch = self.text.batch_of_task(task, number, (length, batch), self.device)?;
        let rows = inputs.as_mut().map(|inputs| inputs.begin(task, &batch)).transpose()?;
        let pass = Pass { ask: Ask { inputs: rows, ..Ask::default() }, ..Pass::all() }.kept();
        let forward = self.model.forward(&batch.inputs, &batch.targets, &pass)?;
        let image = ImageAsk::Sums {
            counted_t: batch.counted_t()?,
            site: self.request.grad_site,
            experts: asked.experts.clone(),
            scales: asked.scales.clone(),
        };
        let learn = Learn { image: Some(Arc::new(image)), ..Learn::default() };
        let ones = forward.losses.ones_like()?;
        let answers = self.model.backward(forward.saved, &ones, &learn, &mut Grads::none())?;
        for (sum, answer) in sums.layers.iter_mut().zip(answers) {
            if let Some(seen) = answer.sums {
                *sum = sum.add(&seen)?;
            }
        }
        sums.loss = (&sums.loss + forward.losses.to_dtype(DType::F64)?.sum_all()?)?;
        sums.tokens += batch.counted.iter().filter(|counted| **counted).count() as u64;
        if let Some(inputs) = inputs {
            inputs.add(&forward.traces)?;
        }
        Ok(())
    }
}

/// What every layer is asked.
struct Asked {
    /// By layer, if experts are scanned.
    experts: Arc<[ExpertNeurons]>,
    /// By layer, if log1p values are summed.
    scales: Arc<[Log1pScale]>,
}

impl Asked {
    fn new(scan: &NeuronScan, units: Option<&Units>) -> Result<Self> {
        let of_layer = |units: &Units| {
            let layers = units.neuron_expert.iter().map(|layer| ExpertNeurons::new(layer, units.count));
            layers.collect::<candle_core::Result<Vec<_>>>()
        };
        let experts = units.map(of_layer).transpose()?.unwrap_or_default();
        let scales = scan.log1p.as_ref().map(|log1p| log1p.scales.clone()).unwrap_or_default();
        Ok(Self { experts: experts.into(), scales: scales.into() })
    }
}

/// The sums of the task that is being read, on the device; they reach the host when the task is done.
struct TaskSums {
    task: usize,
    /// What the scan holds of the task so far, as the sums' shape.
    host: Vec<ImageSums>,
    layers: Vec<ImageTensors>,
    /// `[]` f64.
    loss: Tensor,
    tokens: u64,
}

impl TaskSums {
    /// Of a task, beginning with what the scan holds of it.
    fn of(scan: &NeuronScan, task: usize, device: &Device) -> Result<Self> {
        let host: Vec<ImageSums> = (0..scan.sums.len()).map(|layer| scan.image(layer, task)).collect();
        let layers = host.iter().map(|sums| ImageTensors::new(sums, device)).collect::<candle_core::Result<_>>()?;
        Ok(Self { task, host, layers, loss: Tensor::new(scan.loss[task], device)?, tokens: scan.tokens[task] })
    }

    /// Puts the sums into the scan, and what routers saw to its own: one copy each.
    fn store(&self, scan: &mut NeuronScan, inputs: Option<&mut RouterInputs>) -> Result<()> {
        let flat = self.layers.iter().map(ImageTensors::flat).collect::<candle_core::Result<Vec<_>>>()?;
        let values = host::read(&flat.iter().chain([&self.loss]).collect::<Vec<_>>())?;
        let loss = values.last().and_then(|loss| loss.first()).copied().unwrap_or(f64::NAN);
        check_loss("scan", &scan.tasks[self.task], loss)?;
        for (layer, (sums, values)) in self.host.iter().zip(values).enumerate() {
            let mut sums = sums.clone();
            sums.read(&mut values.into_iter());
            scan.set(layer, self.task, sums);
        }
        (scan.loss[self.task], scan.tokens[self.task]) = (loss, self.tokens);
        inputs.map_or(Ok(()), RouterInputs::read)
    }
}
