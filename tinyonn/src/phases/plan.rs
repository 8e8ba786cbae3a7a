//! What a run would do, found out before it does anything: its text, its model, and of each training the steps, tokens and memory.
//!
//! Memory is counted, not measured: bytes a weight that learns ([`Memory::bytes_a_weight`]), the weights that do not,
//! and what the passes of one part of a batch keep. An allocator's slack, the text and the program itself come on top.

use serde::Serialize;

use super::config::hidden_act;
use super::{Dense, RunConfig, Text};
use crate::checkpoint::{ModelFolder, Role, variant_params};
use crate::data::TextTokenizer;
use crate::imaging::{Partition, partition};
use crate::moe::{ExpertsAre, variant};
use crate::qwen3::Qwen3Config;
use crate::train::{Memory, OptimizerConfig};
use crate::{Error, Result};

/// What a run would do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The tasks, and the tokens of their training, validation and test texts.
    pub tasks: Vec<(String, [usize; 3])>,
    /// The weights of the dense model.
    pub parameters: usize,
    /// The trainings, in their order.
    pub trainings: Vec<PlannedTraining>,
    /// Tokens of all tasks that a scan reads.
    pub scanned: usize,
}

/// A training of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedTraining {
    /// Its name.
    pub name: &'static str,
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens of a step.
    pub tokens: u64,
    /// Weights that learn.
    pub learning: usize,
    /// Bytes of all weights, and of gradients and moments of those that learn.
    pub weights: u64,
    /// Bytes that the passes of one part of a batch keep.
    pub values: u64,
    /// Bytes of one state on disk.
    pub state: u64,
}

impl PlannedTraining {
    fn new(
        (name, steps, batch): (&'static str, u64, usize),
        (cfg, learning): (&Qwen3Config, usize),
        (optimizer, memory): (&OptimizerConfig, &Memory),
        length: usize,
    ) -> Self {
        let frozen = cfg.parameters().saturating_sub(learning) as u64 * memory.weights.dtype().size_in_bytes() as u64;
        let part = (batch / memory.micro_batches.max(1) * length) as u64;
        Self {
            name,
            steps,
            tokens: (batch * length) as u64,
            learning,
            weights: learning as u64 * memory.bytes_a_weight(optimizer.rule) + frozen,
            values: memory.values(cfg, part),
            state: learning as u64 * memory.bytes_a_weight_on_disk(optimizer.rule),
        }
    }
}

/// The plan of a run; `all` of phase 2, or without Surprise Min-K. Reads text and configurations, and no weights.
///
/// # Errors
/// What the run itself would refuse before its first step.
pub fn plan(config: &RunConfig, all: bool) -> Result<Plan> {
    let variant = variant(&config.variant)?;
    config.validate(variant)?;
    partition::choose(config.partition, &variant.spec, Partition::Sps)?;
    let text = Text::new(&config.data, config.seed)?;
    let (cfg, tokenizer) = if let Some(dir) = &config.model {
        let folder = ModelFolder::open(dir)?;
        (folder.qwen3_config()?, super::text::tokenizer(&folder)?)
    } else {
        let tokenizer = TextTokenizer::train(&text.splits.train, config.dense.vocab_size)?;
        (config.dense.qwen3(tokenizer.vocab_size(), hidden_act(variant)), tokenizer)
    };
    if config.length > cfg.max_position_embeddings {
        let problem = format!("is longer than the {} that the model was made for", cfg.max_position_embeddings);
        return Err(Error::setting("length", problem, "use a shorter one"));
    }
    let tokens = text.encode(&tokenizer)?;
    let sizes = |task: usize| [&tokens.train, &tokens.validation, &tokens.test].map(|set| set.tasks[task].tokens.len());
    let mut trainings = Vec::new();
    if config.model.is_none() && !Dense::is_cached(config, &text)? {
        let of = &config.pretrain;
        of.memory.check("pretrain.memory", of.batch)?;
        of.optimizer.check("pretrain.optimizer")?;
        let name = ("pretraining", of.steps, of.batch);
        let learning = (&cfg, cfg.parameters());
        trainings.push(PlannedTraining::new(name, learning, (&of.optimizer, &of.memory), config.length));
    }
    if all {
        let of = &config.smk;
        of.memory.check("smk.memory", of.batch)?;
        of.optimizer.check("smk.optimizer")?;
        let role = if variant.spec.experts_are == ExpertsAre::Slice { Role::Expert } else { Role::Delta };
        let params = variant_params(&cfg, variant)?;
        let learns = |found: Role| found == role || (of.routers && found == Role::Router);
        let learning =
            params.iter().filter(|param| learns(param.role)).map(|param| param.stored.iter().product::<usize>());
        let name = ("Surprise Min-K", of.steps, of.batch);
        trainings.push(PlannedTraining::new(name, (&cfg, learning.sum()), (&of.optimizer, &of.memory), config.length));
    }
    Ok(Plan {
        tasks: text.tasks.iter().cloned().zip((0..text.tasks.len()).map(sizes)).collect(),
        parameters: cfg.parameters(),
        scanned: tokens.train.tasks.iter().map(|task| task.targets().min(config.scan_tokens)).sum(),
        trainings,
    })
}
