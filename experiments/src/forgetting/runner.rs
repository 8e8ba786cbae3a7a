//! Runs what a shard has of a study, and says what is to be run.

use std::time::Instant;

use tinyonn::benchmark::{BenchmarkTask, TASKS};
use tinyonn::checkpoint::{ModelFolder, read_arch};
use tinyonn::data::DEFAULT_TASKS;
use tinyonn::imaging::Shard;
use tinyonn::metrics::Stopwatch;
use tinyonn::moe::variant;
use tinyonn::phases::forgetting::{asked_tokens, forgetting, multiply_adds, multiply_adds_of_knowledge};
use tinyonn::phases::text::tokenizer;
use tinyonn::phases::{DeviceName, OldKnowledge, Prepared, RunConfig};
use tinyonn::train::Checkpoints;
use tinyonn::{Error, Result};

use super::{RunKey, RunRecord, Store, StudyConfig, own_text};
use crate::compare::shards_of;

/// Multiply-adds a second of one process on two cores, where no run was made yet: the default pretraining takes 3.4e12 of them, and some two minutes there.
const PACE: f64 = 2.8e10;
/// The same of an H200, where a step of SmolLM2-135M over 16 × 512 tokens, 2.9e12 of them, takes some 0.3 s, and shorter ones fill it less.
const PACE_ON_CUDA: f64 = 5e12;

/// What is to be run.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// The run.
    pub key: RunKey,
    /// Its multiply-adds, counted.
    pub multiply_adds: f64,
    /// Seconds that it should take, by the pace of the runs that were made.
    pub seconds: f64,
    /// Whether it was made.
    pub done: bool,
}

/// The runs of `keys` that `shard` has. A seed, whose runs share a dense model, is dealt to as few shards as there have to be.
#[must_use]
pub fn dealt(keys: &[RunKey], shard: Shard) -> Vec<RunKey> {
    let mut seeds: Vec<u64> = Vec::new();
    for key in keys {
        if !seeds.contains(&key.seed) {
            seeds.push(key.seed);
        }
    }
    let of_seed = |(at, seed): (usize, &u64)| {
        let shards = shards_of(at, seeds.len(), shard.of);
        let own = keys.iter().filter(move |key| key.seed == *seed).copied();
        let (skip, step) = (shard.index.wrapping_sub(shards.start), shards.len());
        if shards.contains(&shard.index) { own.skip(skip).step_by(step).collect() } else { Vec::new() }
    };
    seeds.iter().enumerate().flat_map(of_seed).collect()
}

/// Runs those of `keys` that `shard` has and that were not made, until `until`; `done` is told of each. Returns how many it left.
///
/// # Errors
/// What a run reports; what the system reports.
pub fn run_shard(
    config: &StudyConfig,
    (keys, shard): (&[RunKey], Shard),
    until: Option<Instant>,
    checkpoints: &Checkpoints,
    mut done: impl FnMut(&RunRecord),
) -> Result<usize> {
    let store = Store::new(&config.out);
    let own = dealt(keys, shard);
    let mut left: Vec<RunKey> = own.into_iter().filter(|key| !store.file(key).exists()).rev().collect();
    let own_text = own_text(config)?;
    let mut prepared: Option<(u64, Subject)> = None;
    while let Some(key) = left.pop() {
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(left.len() + 1);
        }
        let (mut run, of) = config.settings(&key);
        if let Some(sources) = &own_text {
            run.data.clone_from(sources);
        }
        let kept = prepared.take().filter(|(seed, _)| *seed == key.seed);
        let own = match kept {
            Some((_, own)) => own,
            None => Subject::new(config, &run, checkpoints)?,
        };
        let record = forgetting(&own.prepared, &run, &of, own.knowledge.as_ref())?;
        let record = RunRecord { key, corpus_sha256: own.prepared.text.sha256.clone(), record };
        store.keep(&record)?;
        done(&record);
        prepared = Some((key.seed, own));
    }
    Ok(0)
}

/// What the runs of a seed share.
struct Subject {
    prepared: Prepared,
    /// Of a pretrained model.
    knowledge: Option<OldKnowledge>,
}

impl Subject {
    fn new(config: &StudyConfig, run: &RunConfig, checkpoints: &Checkpoints) -> Result<Self> {
        let benchmarks = config.benchmarks()?;
        let prepared = Prepared::new(run, &mut Stopwatch::new(), Some(checkpoints))?;
        let asked = config.knowledge.as_ref();
        let knowledge = asked.map(|asked| OldKnowledge::new(&prepared, run, benchmarks, asked.every)).transpose()?;
        Ok(Self { prepared, knowledge })
    }
}

impl StudyConfig {
    /// What a pretrained model is asked; of others nothing.
    ///
    /// # Errors
    /// A benchmark that is not known or not there.
    fn benchmarks(&self) -> Result<Vec<BenchmarkTask>> {
        let Some(knowledge) = &self.knowledge else { return Ok(Vec::new()) };
        let read = |name: &String| {
            let Some((_, folder)) = TASKS.iter().find(|(known, _)| known == name) else {
                let known = TASKS.map(|(known, _)| known).join(", ");
                let problem = format!("`{name}` is not known");
                return Err(Error::setting("knowledge.benchmarks", problem, format!("choose from {known}")));
            };
            let mut task = BenchmarkTask::read(knowledge.material.join("benchmarks").join(folder))?;
            task.items.truncate(knowledge.items);
            Ok(task)
        };
        knowledge.benchmarks.iter().map(read).collect()
    }

    /// What each of `keys` takes, counted from the settings; at the pace of the runs that were made, or else of those where this was written.
    ///
    /// # Errors
    /// A variant that is unknown; a record that cannot be read.
    pub fn plan(&self, keys: &[RunKey]) -> Result<Vec<Planned>> {
        let store = Store::new(&self.out);
        let experts = variant(&self.run.variant)?.spec.experts();
        let cfg = match &self.run.model {
            Some(model) => read_arch(model)?,
            None => self.run.dense.arch(self.run.dense.vocab_size, "silu"),
        };
        let old_tasks = if self.run.data.is_empty() { DEFAULT_TASKS } else { self.run.data.len() };
        let held_out = [old_tasks * self.run.test_tokens, self.run.test_tokens];
        let asked = match (&self.knowledge, &self.run.model) {
            (Some(known), Some(model)) => {
                let tokenizer = tokenizer(&ModelFolder::open(model)?)?;
                Some((known.every, asked_tokens(&self.benchmarks()?, &tokenizer)?))
            }
            _ => None,
        };
        let (mut planned, mut made) = (Vec::new(), (0.0, 0.0));
        for key in keys {
            let (run, of) = self.settings(key);
            let record = store.record(key)?;
            if let Some(RunRecord { record, .. }) = &record {
                made = (made.0 + record.multiply_adds, made.1 + record.seconds);
            }
            let mut counted = multiply_adds(&cfg, (&run, &of), experts, (old_tasks, held_out));
            if let Some((every, asked)) = asked {
                counted += multiply_adds_of_knowledge(&cfg, &run, (of.order.len(), every), (held_out[0], asked));
            }
            planned.push(Planned { key: *key, multiply_adds: counted, seconds: 0.0, done: record.is_some() });
        }
        let pace = match (made, self.run.device) {
            ((counted, seconds), _) if seconds > 0.0 => counted / seconds,
            (_, DeviceName::Cpu) => PACE,
            _ => PACE_ON_CUDA,
        };
        planned.iter_mut().for_each(|run| run.seconds = run.multiply_adds / pace);
        Ok(planned)
    }
}
