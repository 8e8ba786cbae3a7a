//! All that the golden figures ask of the library. Whoever changes the library's insides ports this file; the sections and the
//! fixtures stay as they are.
//!
//! What leaves this file is plain: numbers in the order of a Hugging Face checkpoint, and figures of scans, fits and logs as the
//! library's own records hold them.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use rand::Rng as _;
use tinyonn::checkpoint::{ParamStore, grow_deltas, is_delta, upcycle};
use tinyonn::data::{Corpus, Sampler, SplitShares, Splits, TextTokenizer, TokenSet, arithmetic, records, sorting};
use tinyonn::decoder::{Active, Arch, CausalLm, Generation, Pass, PathTable, Prompt, Sampling};
use tinyonn::imaging::inputs::{Samples, Thinning, Window};
use tinyonn::imaging::partition::{self, gate_rows};
use tinyonn::imaging::{
    Integral, LabelBalance, Labels, NeuronScan, Partition, PartitionSources, RouterInputs, RowLabels, ScanOptions,
    ScanRequest, Score, TokenPass, TokenScore, coactivation, scan, scan_with, token_labels, token_prices,
};
use tinyonn::metrics::{self, MetricsLog, Record};
use tinyonn::model::TinyOnnForCausalLm;
use tinyonn::moe::{ExpertsAre, MoeLayer, MoeSpec, Variant, variant};
use tinyonn::random;
use tinyonn::train::evaluate::{EvaluateOptions, evaluate_load};
use tinyonn::train::{
    Losses, PretrainConfig, RouterAccuracy, RouterFitConfig, RouterFitter, SmkConfig, pretrain, router_accuracy,
    row_accuracy, train_smk,
};

const CPU: Device = Device::Cpu;

/// Generated text, which no edit of the workspace changes.
pub(super) struct Text {
    pub(super) train: TokenSet,
    pub(super) validation: TokenSet,
    pub(super) test: TokenSet,
}

impl Text {
    /// Arithmetic, sorting and records of about `bytes` each, split by document, in tokens of a vocabulary learnt from them.
    pub(super) fn generated(bytes: usize, vocabulary: usize) -> Self {
        let corpus = Corpus { tasks: vec![arithmetic(0, bytes), sorting(0, bytes), records(0, bytes)] };
        let splits = Splits::new(&corpus, SplitShares::default(), 0).unwrap();
        let tokenizer = TextTokenizer::train(&splits.train, vocabulary).unwrap();
        let [train, validation, test] =
            [&splits.train, &splits.validation, &splits.test].map(|split| TokenSet::encode(split, &tokenizer).unwrap());
        Self { train, validation, test }
    }
}

/// Which experts take part.
#[derive(Clone, Copy)]
pub(super) enum Routing<'a> {
    All,
    /// Those of the routers; a variant that is routed by its task is given the tasks' paths.
    Routed(&'a Labels),
    /// Those of the tasks' paths, whatever the routers say.
    Paths(&'a Labels),
}

impl Routing<'_> {
    /// For sequences of the tasks 0, 1, ..: what reads a whole set of tokens sets its tasks itself.
    fn pass(self, sequences: usize) -> Pass {
        let table = |labels: &Labels| -> Arc<PathTable> { Arc::new(labels.paths.clone()) };
        let pass = match self {
            Self::All => Pass::all(),
            Self::Routed(labels) => Pass { paths: Some(table(labels)), ..Pass::routed() },
            Self::Paths(labels) => Pass { active: Active::Paths(table(labels)), ..Pass::all() },
        };
        Pass { tasks: Some((0..sequences as u32).collect()), ..pass }
    }
}

/// Router inputs of every layer, by token and by sequence.
pub(super) struct Inputs {
    pub(super) tokens: Vec<Samples>,
    pub(super) sequences: Vec<Samples>,
}

/// A loss on held-out text, and the share of tokens that each expert of each layer took meanwhile.
pub(super) struct Evaluated {
    pub(super) losses: Losses,
    pub(super) load: Vec<Vec<f64>>,
}

/// A dense model, or one of experts.
pub(super) struct Model {
    pub(super) cfg: Arch,
    variant: Option<&'static Variant>,
    store: ParamStore,
}

impl Model {
    /// Weights drawn at random, matrices `size` times larger than new ones: every part of the network then bends what passes
    /// through it, and no training decides what later sections see.
    pub(super) fn drawn(cfg: &Arch, seed: u64, size: f64) -> Self {
        let construct = |vb| CausalLm::dense(cfg, &vb).map(drop);
        let store = ParamStore::initialise(&CPU, seed, construct).unwrap();
        for (_, var) in store.iter().filter(|(_, var)| var.rank() == 2) {
            var.set(&(var.as_detached_tensor() * size).unwrap()).unwrap();
        }
        Self { cfg: cfg.clone(), variant: None, store }
    }

    /// A new model trained on `set`, and its log.
    pub(super) fn pretrained(
        cfg: &Arch,
        config: &PretrainConfig,
        (set, length): (&TokenSet, usize),
        seed: u64,
    ) -> (Self, Vec<Record>) {
        let sampler = Sampler::new(set, length, config.batch, seed, &CPU).unwrap();
        let (store, records) =
            logged(|log| pretrain(cfg, config, (&sampler, None), seed, log, None).expect("pretraining goes through"));
        (Self { cfg: cfg.clone(), variant: None, store }, records)
    }

    pub(super) fn copy(&self) -> Self {
        Self { cfg: self.cfg.clone(), variant: self.variant, store: self.store.deep_copy().unwrap() }
    }

    /// The same as experts of a declared variant, over a random partition; replicas are given deltas that were drawn: between equal
    /// replicas a router's gradient is rounding alone, which AdamW makes steps of.
    pub(super) fn upcycled(&self, name: &str, seed: u64) -> Self {
        let variant = variant(name).unwrap();
        let units = self.partition(name, Partition::Random, None, seed);
        let mut store = upcycle(self.store.deep_copy().unwrap(), &self.cfg, variant, &units, seed).unwrap();
        grow_deltas(&mut store, &self.cfg, &variant.spec).unwrap();
        for (name, var) in store.iter().filter(|(name, _)| is_delta(name)) {
            let mut rng = random::stream(seed, name);
            let values = (0..var.elem_count()).map(|_| 0.1 * (rng.random::<f32>() - 0.5)).collect::<Vec<f32>>();
            // Drawn in the order of files, in which W_d has a column a neuron.
            let turned = name.ends_with("down_proj.weight");
            let (rows, columns) = var.dims2().unwrap();
            let value = Tensor::from_vec(values, if turned { (columns, rows) } else { (rows, columns) }, &CPU).unwrap();
            let value = if turned { value.t().unwrap().contiguous().unwrap() } else { value };
            var.set(&value).unwrap();
        }
        Self { cfg: self.cfg.clone(), variant: Some(variant), store }
    }

    /// The expert of each neuron of each layer; `read` is a scan and what `coactivation` reads.
    pub(super) fn partition(
        &self,
        name: &str,
        by: Partition,
        read: Option<(&NeuronScan, &TokenSet, ScanOptions)>,
        seed: u64,
    ) -> Vec<Vec<u32>> {
        let spec = &variant(name).unwrap().spec;
        if spec.experts_are == ExpertsAre::Replicate {
            return Vec::new();
        }
        let integral = partition::profile(by).zip(read).map(|(score, (scan, ..))| Integral::new(scan, score));
        let gate_rows = |layer| gate_rows(&self.store, layer);
        let hidden = read
            .filter(|_| by == Partition::Coactivation)
            .map(|(_, set, options)| coactivation(&self.dense(), set, options, &CPU).unwrap());
        let sources = PartitionSources {
            integral: integral.as_ref(),
            gate_rows: Some(&gate_rows),
            coactivation: hidden.as_deref(),
            marks: None,
        };
        partition::assign(by, spec, (self.cfg.num_hidden_layers, self.cfg.intermediate_size), sources, seed).unwrap()
    }

    pub(super) fn spec(&self) -> &'static MoeSpec {
        &self.variant.expect("this model has experts").spec
    }

    /// The expert of each neuron of each layer; none of replicas.
    pub(super) fn units(&self) -> Vec<Vec<u32>> {
        self.sparse().neuron_experts().unwrap().unwrap_or_default()
    }

    /// Every parameter by its name, in the order of names; experts' numbers are left out.
    pub(super) fn parameters(&self) -> Vec<(String, Vec<f32>)> {
        let floats = self.store.iter().filter(|(_, var)| var.dtype().is_float());
        let in_file = |name: &str, var: &candle_core::Var| {
            let value = var.as_detached_tensor();
            if name.ends_with("down_proj.weight") { value.t().unwrap().contiguous().unwrap() } else { value }
        };
        floats.map(|(name, var)| (name.to_owned(), values(&in_file(name, var)))).collect()
    }

    /// Logits of sequences of equal length, one after another.
    pub(super) fn logits(&self, ids: &[Vec<u32>], routing: Routing<'_>) -> Vec<f32> {
        let pass = routing.pass(ids.len());
        let ids = Tensor::new(ids.to_vec(), &CPU).unwrap();
        values(&match self.variant {
            None => self.dense().logits(&ids, &pass, None).unwrap(),
            Some(_) => self.sparse().logits(&ids, &pass, None).unwrap(),
        })
    }

    /// The loss of each token but the first of each sequence.
    pub(super) fn token_losses(&self, ids: &[Vec<u32>], routing: Routing<'_>) -> Vec<f32> {
        let pass = routing.pass(ids.len());
        let ids = Tensor::new(ids.to_vec(), &CPU).unwrap();
        let count = ids.dim(1).unwrap() - 1;
        let part = |first: usize| ids.narrow(1, first, count).unwrap().contiguous().unwrap();
        values(&match self.variant {
            None => self.dense().token_losses(&part(0), &part(1), &pass).unwrap(),
            Some(_) => self.sparse().lm().token_losses(&part(0), &part(1), &pass).unwrap(),
        })
    }

    /// The loss on `set`; what a shared decision reads is not scored.
    pub(super) fn evaluate(&self, set: &TokenSet, (length, batch): (usize, usize), routing: Routing<'_>) -> Evaluated {
        let spec = self.variant.map(|variant| &variant.spec);
        let (skip, experts) = spec.map_or((0, 0), |spec| (spec.open_positions(), spec.experts()));
        let options = EvaluateOptions { length, batch, skip };
        let pass = routing.pass(0);
        let (losses, load) = match self.variant {
            None => evaluate_load(&self.dense(), set, options, &pass, &CPU, experts).unwrap(),
            Some(_) => evaluate_load(self.sparse().lm(), set, options, &pass, &CPU, experts).unwrap(),
        };
        Evaluated { losses, load: load.load() }
    }

    /// Up to `count` tokens after a prompt of task 0: the most probable ones, or drawn at this temperature.
    pub(super) fn generate(
        &self,
        prompt: &[u32],
        count: usize,
        routing: Routing<'_>,
        temperature: Option<f64>,
    ) -> Vec<u32> {
        let pass = routing.pass(1);
        let rng = random::stream(0, "tests/golden/generate");
        let prompts = vec![Prompt { tokens: prompt.to_vec(), rng }];
        let sampling = temperature.map_or(Sampling::GREEDY, Sampling::at);
        let how = Generation { tokens: count, stop_ids: Vec::new(), sampling };
        let texts = match self.variant {
            None => self.dense().generate(prompts, &how, &pass, true, &mut |_| Ok(())),
            Some(_) => self.sparse().generate(prompts, &how, &pass, &mut |_| Ok(())),
        };
        texts.unwrap().remove(0)
    }

    /// A scan of the dense model, as `request` says.
    pub(super) fn scan(&self, set: &TokenSet, request: &ScanRequest) -> NeuronScan {
        scan_with(&self.dense(), set, request, &CPU, None).unwrap()
    }

    /// A scan of neurons, and the inputs that routers see in the same pass: one token in `stride`, and the means of the first
    /// `first` tokens of sequences.
    pub(super) fn scan_with_inputs(
        &self,
        set: &TokenSet,
        options: ScanOptions,
        (stride, first): (usize, usize),
    ) -> (NeuronScan, Inputs) {
        let mut inputs = RouterInputs::new(self.cfg.num_hidden_layers, Thinning::one_in(stride, Window::First(first)));
        let scan = scan(&self.dense(), set, options, &CPU, Some(&mut inputs)).unwrap();
        let [tokens, sequences] = inputs.into_samples();
        (scan, Inputs { tokens, sequences })
    }

    /// What routers see of `set`, in the dense model or, routed, in one of experts.
    pub(super) fn inputs(
        &self,
        set: &TokenSet,
        options: ScanOptions,
        (stride, first): (usize, usize),
        routing: Routing<'_>,
    ) -> Inputs {
        let mut inputs = RouterInputs::new(self.cfg.num_hidden_layers, Thinning::one_in(stride, Window::First(first)));
        let pass = routing.pass(0);
        match self.variant {
            None => inputs.collect(&self.dense(), set, options, &pass, &CPU).unwrap(),
            Some(_) => inputs.collect(self.sparse().lm(), set, options, &pass, &CPU).unwrap(),
        }
        let [tokens, sequences] = inputs.into_samples();
        Inputs { tokens, sequences }
    }

    /// The tasks' labels, from the partition of this model of experts.
    pub(super) fn labels(&self, scan: &NeuronScan, score: Score, contrast: bool, balance: LabelBalance) -> Labels {
        let integral = Integral::new(scan, score);
        let integral = if contrast { integral.contrasted() } else { integral };
        Labels::balanced(&integral, &self.units(), self.spec(), balance)
    }

    /// The labels of one token in `stride`, by layer, from the dense model `dense` of these experts.
    pub(super) fn token_labels(
        &self,
        dense: &Self,
        (set, options, stride): (&TokenSet, ScanOptions, usize),
        (scan, score, contrast): (&NeuronScan, Score, bool),
        balance: LabelBalance,
    ) -> Vec<RowLabels> {
        let (model, units) = (dense.dense(), self.units());
        let pass = TokenPass { model: &model, set, options, stride, device: &CPU };
        let by = TokenScore { scan, score, contrast, units: &units, spec: self.spec(), prices: None };
        let prices = (balance == LabelBalance::Sinkhorn).then(|| token_prices(&pass, by).unwrap());
        token_labels(&pass, TokenScore { prices: prices.as_deref(), ..by }).unwrap()
    }

    /// Fits the routers to labels of tasks, or of the rows of training and validation.
    pub(super) fn fit(&self, [train, validation]: [&[Samples]; 2], asked: Asked<'_>, config: &RouterFitConfig) {
        let variant = self.variant.expect("this model has routers");
        let tasks = 1 + train.iter().flat_map(|layer| &layer.tasks).max().copied().unwrap_or(0) as usize;
        let dim = variant.spec.projection_width(self.cfg.hidden_size);
        let (mut fitter, model) =
            (RouterFitter::new(train, validation, tasks, dim).unwrap(), (&self.store, &self.cfg, variant));
        match asked {
            Asked::Tasks(labels) => fitter.fit(model, labels, config, 0).unwrap(),
            Asked::Rows(rows) => fitter.fit_rows(model, rows, config, 0).unwrap(),
        }
    }

    /// How well the routers find the labels' paths on other inputs.
    pub(super) fn router_accuracy(&self, inputs: &[Samples], labels: &Labels) -> RouterAccuracy {
        let model = self.sparse();
        let modules: Vec<&MoeLayer> = (0..self.cfg.num_hidden_layers).map(|layer| model.moe(layer)).collect();
        router_accuracy(&modules, inputs, labels).unwrap()
    }

    /// The accuracies against labels of the rows themselves, `[layer][level]`.
    pub(super) fn row_accuracy(&self, inputs: &[Samples], rows: &[RowLabels]) -> Vec<Vec<f64>> {
        let model = self.sparse();
        let modules: Vec<&MoeLayer> = (0..self.cfg.num_hidden_layers).map(|layer| model.moe(layer)).collect();
        row_accuracy(&modules, inputs, rows).unwrap().into_iter().map(|layer| layer.accuracy).collect()
    }

    /// Surprise Min-K on `set`: the share that was updated, and the log.
    pub(super) fn smk(
        &self,
        config: &SmkConfig,
        (set, length): (&TokenSet, usize),
        routing: Routing<'_>,
        seed: u64,
    ) -> (f64, Vec<Record>) {
        let sampler = Sampler::new(set, length, config.batch, seed, &CPU).unwrap();
        let model = (&self.store, &self.cfg, self.variant.expect("this model has experts"));
        let (outcome, records) = logged(|log| {
            train_smk(model, &routing.pass(0), (&sampler, None), config, log, None).expect("SMK goes through")
        });
        (outcome.updated_share, records)
    }

    fn dense(&self) -> CausalLm<tinyonn::decoder::Mlp> {
        assert!(self.variant.is_none(), "this model has experts");
        CausalLm::dense(&self.cfg, &self.store.builder(DType::F32, |_| false)).unwrap()
    }

    fn sparse(&self) -> TinyOnnForCausalLm {
        let variant = self.variant.expect("this model has experts");
        TinyOnnForCausalLm::new(&self.cfg, variant, &self.store.builder(DType::F32, |_| false)).unwrap()
    }
}

/// What routers are fitted to.
#[derive(Clone, Copy)]
pub(super) enum Asked<'a> {
    Tasks(&'a Labels),
    Rows([&'a [RowLabels]; 2]),
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// What `run` returns, and the log that it wrote.
fn logged<T>(run: impl FnOnce(&mut MetricsLog) -> T) -> (T, Vec<Record>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.jsonl");
    let outcome = run(&mut MetricsLog::create(&path).unwrap());
    (outcome, metrics::read(&path).unwrap())
}
