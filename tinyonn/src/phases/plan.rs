//! What a run would do, found out before it does anything: its text, its model, and the memory of each stage, of trainings the steps and
//! tokens too. Of a model that is on paper, a `config.json` without weights, all but the text.
//!
//! Memory is counted, not measured: bytes a weight that learns ([`Memory::bytes_a_weight`]), the weights that do not,
//! and what the passes of one part of a batch keep. An allocator's slack, the text and the program itself come on top. What of it lies on a GPU is held against
//! what is free there before a run begins (`room`).

use std::path::Path;

use candle_core::{DType, Device};
use serde::Serialize;

use super::config::hidden_act;
use super::continuation::{LeftByPhase1, same_text};
use super::inputs::{Keeping, Split};
use super::prepared::check_routers;
use super::{Dense, LabelUnit, RunConfig, Text, weights};
use crate::Result;
use crate::checkpoint::{Param, Role, is_on_paper, read_arch, stored_type, variant_params};
use crate::data::{self, Sampler, TextTokenizer, TokenSet};
use crate::decoder::Arch;
use crate::imaging::{Partition, partition};
use crate::moe::expert::check_width;
use crate::moe::{Variant, variant};
use crate::train::smk::learning_role;
use crate::train::{Memory, OptimizerConfig, Precision};

/// What a run would do, in numbers.
///
/// ```
/// use tinyonn::phases::plan::PlannedStage;
/// use tinyonn::phases::{DenseShape, Plan, PlannedTraining, RunConfig, Stages, plan};
///
/// # let dir = tempfile::tempdir()?;
/// # let tasks = [tinyonn::data::sorting(0, 12_000), tinyonn::data::arithmetic(0, 12_000)].map(|task| {
/// #     let path = dir.path().join(&task.name).with_extension("jsonl");
/// #     let lines = task.documents.iter().map(|d| serde_json::json!({ "text": d.text }).to_string());
/// #     std::fs::write(&path, lines.collect::<Vec<_>>().join("\n"))?;
/// #     Ok(format!("{}={}", task.name, path.display()))
/// # });
/// # let data = tasks.into_iter().collect::<Result<Vec<_>, std::io::Error>>()?;
/// # let (out, cache) = (dir.path().join("run"), dir.path().join("cache"));
/// let mut config = RunConfig { variant: "Mixtral".into(), data, out, cache, ..RunConfig::quick() };
/// config.dense = DenseShape { vocab_size: 300, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, ..config.dense };
/// (config.length, config.scan_tokens, config.test_tokens) = (32, 512, 256);
/// (config.pretrain.steps, config.router.steps, config.smk.steps) = (4, 4, 2);
/// let found: Plan = plan(&config, Stages::Both)?;
/// let trainings: Vec<&str> = found.trainings.iter().map(|training: &PlannedTraining| training.name).collect();
/// let stages: Vec<&str> = found.stages.iter().map(|stage: &PlannedStage| stage.name).collect();
/// assert_eq!((found.tasks.len(), trainings.len()), (2, 2), "{trainings:?} {stages:?}");
/// assert!(!config.out.exists()); // nothing was done
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Plan {
    /// The tasks, and the tokens of their training, validation and test texts, of the last as many as are read; none of a model on paper,
    /// which has no tokenizer.
    pub tasks: Vec<(String, [usize; 3])>,
    /// The dense model, in words: its family and sizes.
    pub shape: String,
    /// The weights of the dense model.
    pub parameters: usize,
    /// Those of the variant by what they are for; deltas of replicas, which grow, are not among them.
    pub by_role: Vec<(Role, usize)>,
    /// Scan, proof and router fits, where the run has them.
    pub stages: Vec<PlannedStage>,
    /// The trainings, in their order.
    pub trainings: Vec<PlannedTraining>,
    /// Tokens of all tasks that a scan reads; 0: there is none.
    pub scanned: usize,
}

/// A stage of a plan in which no weight of the model learns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PlannedStage {
    /// Its name.
    pub name: &'static str,
    /// Bytes of all weights, as they are held and as models have them.
    pub weights: u64,
    /// Bytes that the passes over a batch keep; of the router fit, what its layers need that are at work at once.
    pub values: u64,
    /// Bytes of what routers see, in main memory.
    pub inputs: u64,
}

/// The type that weights are held in which are stored in `stored`; those of a model on paper are taken to be stored in what passes compute in.
pub(super) fn held(dtype: Precision, stored: Option<DType>) -> DType {
    weights::held_in(dtype).or(stored).unwrap_or(dtype.dtype())
}

/// Bytes of a weight that no training moves: as it is held and, where passes compute in another type, as a model has it.
pub(super) fn frozen_bytes(held: DType, passes: Precision) -> u64 {
    let converted = if held == passes.dtype() { 0 } else { passes.bytes() };
    held.size_in_bytes() as u64 + converted
}

/// The stages of phase 1 of a run under `config` that reads `targets[split][task]` tokens: the weights that were upcycled are the dense ones, and the proof
/// reads them back from disk.
fn stages_of_phase1(
    config: &RunConfig,
    (cfg, variant, held): (&Arch, &Variant, DType),
    targets: &[Vec<usize>; 3],
) -> Vec<PlannedStage> {
    let store = frozen_bytes(held, config.dtype) * cfg.parameters() as u64;
    let values = Memory::DEFAULT.within(config.dtype).values(cfg, (config.batch * config.length) as u64);
    let keeping = Keeping { config, spec: &variant.spec, cfg };
    let [train, validation, test] = targets;
    let fitted = keeping.bytes(train, Split::Fitted);
    let held_out = keeping.bytes(validation, Split::HeldOut);
    let all = fitted + held_out + keeping.bytes(test, Split::HeldOut);
    // A refit collects anew what it fits to and is stopped by.
    let again = if config.router.refit_rounds > 0 { fitted + held_out } else { 0 };
    let layers = rayon::current_num_threads().min(cfg.num_hidden_layers) as u64;
    let rows = keeping.rows().min(train.iter().sum()) as u64;
    let fits = layers * fit_bytes(cfg.hidden_size as u64, rows) + keeping.projected_bytes(train);
    // Tokens are labelled by a pass of their own, beside what routers see.
    let labels = if config.label == LabelUnit::Token { values } else { 0 };
    let on_the_way = keeping.bytes_on_the_way(train);
    let stage = |name, stores: u64, values, inputs| PlannedStage { name, weights: stores * store, values, inputs };
    vec![
        stage("scan", 1, values, fitted + on_the_way),
        stage("proof", 2, 0, fitted),
        stage("router fit", 1, fits.max(labels), all + again),
    ]
}

/// Bytes that a layer's projection is found in, and its routers fitted: its scatter, its eigenvectors and as much again twice to find them, in
/// f64; and its rows once more.
fn fit_bytes(d: u64, rows: u64) -> u64 {
    6 * 8 * d * d + 4 * rows * d
}

/// A training of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PlannedTraining {
    /// Its name.
    pub name: &'static str,
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens of a step.
    pub tokens: u64,
    /// Weights that learn.
    pub learning: usize,
    /// Bytes of all weights, and of gradients (twice, where each micro-batch chooses by its own) and moments of those that learn.
    pub weights: u64,
    /// Bytes that the passes of one part of a batch keep.
    pub values: u64,
    /// Bytes of one state on disk.
    pub state: u64,
}

impl PlannedTraining {
    /// Of `learning` weights of a model of `all`, which are held in `held`.
    fn new(
        (name, steps, batch, length): (&'static str, u64, usize, usize),
        (cfg, held): (&Arch, DType),
        [learning, all]: [usize; 2],
        (optimizer, memory): (&OptimizerConfig, &Memory),
        (look, apart): (u64, bool),
    ) -> Self {
        // With looks at held-out text the best masters so far are kept, f32.
        let best = if look > 0 { 4 } else { 0 };
        let apart = if apart { memory.gradients.dtype().size_in_bytes() as u64 } else { 0 };
        let frozen = (all - learning) as u64 * frozen_bytes(held, memory.weights);
        // The dense model stays as it is beside masters that are other tensors.
        let before = if held == DType::F32 { 0 } else { held.size_in_bytes() as u64 };
        Self {
            name,
            steps,
            tokens: (batch * length) as u64,
            learning,
            weights: learning as u64 * (memory.bytes_a_weight(optimizer.rule) + best + apart + before) + frozen,
            values: memory.values(cfg, (batch / memory.micro_batches * length) as u64),
            state: learning as u64 * (memory.bytes_a_weight_on_disk(optimizer.rule) + best),
        }
    }
}

/// The stages that a run would go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stages<'a> {
    /// [`phase1`](super::phase1()).
    Phase1,
    /// [`phase2`](super::phase2()).
    Both,
    /// [`phase2_from`](super::phase2_from()) this folder.
    From(&'a Path),
}

/// The plan of a run. Reads text and configurations, and no weights.
///
/// # Errors
/// What the run itself would refuse before its first step, but for weights that cannot be read.
pub fn plan(config: &RunConfig, stages: Stages<'_>) -> Result<Plan> {
    let variant = variant(&config.variant)?;
    check_routers(variant)?;
    config.validate(variant)?;
    partition::choose(config.partition, &variant.spec, Partition::Sps)?;
    if let Some(path) = config.model.as_deref().filter(|path| is_on_paper(path)) {
        let cfg = read_arch(path)?;
        config.check_length(&cfg)?;
        // How long the text is nobody knows yet: each of its tasks as long as is read.
        let tasks = match config.data.as_slice() {
            [] => data::DEFAULT_TASKS,
            [source] if source == data::TOOLCHAIN => data::TOOLCHAIN_TASKS,
            sources => sources.len(),
        };
        let targets = [(); 3].map(|()| vec![config.scan_tokens; tasks]);
        return Plan::new(config, stages, (&cfg, variant, held(config.dtype, None)), (false, &targets));
    }
    // What keeps a model from being read is said before all text is.
    let given = match (&config.model, stages) {
        (Some(dir), Stages::Phase1 | Stages::Both) => Some(Dense::open_model(dir, config)?),
        _ => None,
    };
    let text = Text::new(&config.data, config.seed)?;
    let (cfg, tokenizer, stored) = if let Stages::From(dir) = stages {
        same_text(&LeftByPhase1::read(dir, config)?.summary.corpus.sha256, &text.sha256, "run exp_phase1 again")?;
        let (folder, cfg, tokenizer) = Dense::open_routed(dir)?;
        (cfg, tokenizer, stored_type(folder.folder()))
    } else if let Some((folder, cfg, tokenizer)) = given {
        (cfg, tokenizer, stored_type(&folder))
    } else {
        let tokenizer = TextTokenizer::train(&text.splits.train, config.dense.vocab_size)?;
        (config.dense.arch(tokenizer.vocab_size(), hidden_act(variant)), tokenizer, Some(DType::F32))
    };
    config.check_length(&cfg)?;
    let mut tokens = text.encode(&tokenizer)?;
    tokens.test.beginnings(config.test_tokens);
    let batches = |batch: usize| Sampler::new(&tokens.train, config.length, batch, config.seed, &Device::Cpu).map(drop);
    batches(config.smk.batch)?;
    let pretrains = !matches!(stages, Stages::From(_)) && config.model.is_none() && !Dense::is_cached(config, &text)?;
    if pretrains {
        batches(config.pretrain.batch)?;
    }
    let sizes = |task: usize| [&tokens.train, &tokens.validation, &tokens.test].map(|set| set.tasks[task].tokens.len());
    let read = |set: &TokenSet| set.tasks.iter().map(|task| task.targets().min(config.scan_tokens)).collect::<Vec<_>>();
    let targets = [&tokens.train, &tokens.validation, &tokens.test].map(read);
    let plan = Plan::new(config, stages, (&cfg, variant, held(config.dtype, stored)), (pretrains, &targets))?;
    Ok(Plan {
        tasks: text.tasks.iter().cloned().zip((0..text.tasks.len()).map(sizes)).collect(),
        scanned: if matches!(stages, Stages::From(_)) { 0 } else { targets[0].iter().sum() },
        ..plan
    })
}

impl Plan {
    /// All but the text, of which `targets[split][task]` tokens are read.
    pub(super) fn new(
        config: &RunConfig,
        stages: Stages<'_>,
        (cfg, variant, held): (&Arch, &Variant, DType),
        (pretrains, targets): (bool, &[Vec<usize>; 3]),
    ) -> Result<Self> {
        check_width(&variant.spec, cfg.intermediate_size, 0)?;
        let mut trainings = Vec::new();
        if pretrains {
            let of = &config.pretrain_in_dtype();
            let name = ("pretraining", of.steps, of.batch, config.length);
            let count = cfg.parameters();
            let look = (of.look, false);
            trainings.push(PlannedTraining::new(
                name,
                (cfg, DType::F32),
                [count, count],
                (&of.optimizer, &of.memory),
                look,
            ));
        }
        let params = variant_params(cfg, variant)?;
        let weights = |of: &dyn Fn(&Param) -> bool| {
            let own = params.iter().filter(|param| !matches!(param.role, Role::Partition | Role::Repair) && of(param));
            own.map(|param| param.stored.iter().product::<usize>()).sum::<usize>()
        };
        if stages != Stages::Phase1 {
            let of = &config.smk_in_dtype();
            let role = learning_role(&variant.spec);
            let learning = weights(&|param| param.role == role || (of.routers && param.role == Role::Router));
            let name = ("Surprise Min-K", of.steps, of.batch, config.length);
            let counts = [learning, weights(&|_| true)];
            let apart = of.choice(&variant.spec).rule.keeps_parts_apart(of.memory.micro_batches);
            let memory = (&of.optimizer, &of.memory);
            trainings.push(PlannedTraining::new(name, (cfg, held), counts, memory, (of.look, apart)));
        }
        let mut by_role: Vec<(Role, usize)> = Vec::new();
        for param in params.iter().filter(|param| !matches!(param.role, Role::Partition | Role::Delta | Role::Repair)) {
            if by_role.iter().all(|(role, _)| *role != param.role) {
                by_role.push((param.role, weights(&|other| other.role == param.role)));
            }
        }
        by_role.sort_by_key(|(role, _)| *role);
        let from_the_first = !matches!(stages, Stages::From(_));
        Ok(Self {
            tasks: Vec::new(),
            shape: cfg.to_string(),
            parameters: cfg.parameters(),
            by_role,
            stages: if from_the_first { stages_of_phase1(config, (cfg, variant, held), targets) } else { Vec::new() },
            trainings,
            scanned: 0,
        })
    }
}
