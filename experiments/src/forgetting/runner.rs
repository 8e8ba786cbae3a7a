//! Runs what a shard has of a study, and says what is to be run.

use std::time::Instant;

use tinyonn::Result;
use tinyonn::imaging::Shard;
use tinyonn::metrics::Stopwatch;
use tinyonn::moe::variant;
use tinyonn::phases::Prepared;
use tinyonn::phases::forgetting::{forgetting, multiply_adds};
use tinyonn::train::Checkpoints;

use super::{RunKey, RunRecord, Store, StudyConfig};
use crate::compare::shards_of;

/// Multiply-adds a second of one process on two cores, where no run was made yet: the default pretraining takes 3.4e12 of them, and some two minutes there.
const PACE: f64 = 2.8e10;

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
    let mut prepared: Option<(u64, Prepared)> = None;
    while let Some(key) = left.pop() {
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(left.len() + 1);
        }
        let (run, of) = config.settings(&key);
        let kept = prepared.take().filter(|(seed, _)| *seed == key.seed);
        let own = match kept {
            Some((_, own)) => own,
            None => Prepared::new(&run, &mut Stopwatch::new(), Some(checkpoints))?,
        };
        let record = RunRecord { key, corpus_sha256: own.text.sha256.clone(), record: forgetting(&own, &run, &of)? };
        store.keep(&record)?;
        done(&record);
        prepared = Some((key.seed, own));
    }
    Ok(0)
}

impl StudyConfig {
    /// What each of `keys` takes, counted from the settings; at the pace of the runs that were made, or else of those where this was written.
    ///
    /// # Errors
    /// A variant that is unknown; a record that cannot be read.
    pub fn plan(&self, keys: &[RunKey]) -> Result<Vec<Planned>> {
        let store = Store::new(&self.out);
        let experts = variant(&self.run.variant)?.spec.experts();
        let cfg = self.run.dense.arch(self.run.dense.vocab_size, "silu");
        let held_out = [tinyonn::data::DEFAULT_TASKS * self.run.test_tokens, self.run.test_tokens];
        let (mut planned, mut made) = (Vec::new(), (0.0, 0.0));
        for key in keys {
            let (run, of) = self.settings(key);
            let record = store.record(key)?;
            if let Some(RunRecord { record, .. }) = &record {
                made = (made.0 + record.multiply_adds, made.1 + record.seconds);
            }
            let counted = multiply_adds(&cfg, (&run, &of), experts, (tinyonn::data::DEFAULT_TASKS, held_out));
            planned.push(Planned { key: *key, multiply_adds: counted, seconds: 0.0, done: record.is_some() });
        }
        let pace = if made.1 > 0.0 { made.0 / made.1 } else { PACE };
        planned.iter_mut().for_each(|run| run.seconds = run.multiply_adds / pace);
        Ok(planned)
    }
}
