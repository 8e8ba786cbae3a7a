//! Makes the cells of a study that nobody else makes, in their order, and says what is to be made.

use std::time::Instant;

use tinyonn::benchmark::{Choice, Item};
use tinyonn::checkpoint::ModelFolder;
use tinyonn::train::{Checkpoints, Precision};
use tinyonn::{Error, Result};

use super::{Cell, EvidenceConfig, EvidenceStore, Found, Lacking, Method, Subject};

/// Cells that are made one behind another of one model: closed form, then distilled.
fn jobs(cells: &[Cell]) -> Vec<Vec<Cell>> {
    let mut jobs: Vec<Vec<Cell>> = Vec::new();
    for cell in cells {
        match jobs.iter_mut().find(|job| job[0].closed() == cell.closed()) {
            Some(job) => job.push(*cell),
            None => jobs.push(vec![*cell]),
        }
    }
    jobs
}

/// Makes what is lacking of `cells` and no other process makes, until `until`; `done` is told of it. Any number of processes may do so at
/// once. Returns of how many cells something is left.
///
/// # Errors
/// What a cell reports.
pub fn run_cells(
    config: &EvidenceConfig,
    cells: &[Cell],
    until: Option<Instant>,
    checkpoints: &Checkpoints,
    mut done: impl FnMut(&Found),
) -> Result<usize> {
    let store = EvidenceStore::new(&config.out);
    let model_sha256 = ModelFolder::open(&config.model)?.sha256()?;
    let left = |cells: &[Cell]| {
        let all = cells.iter().map(|cell| store.lacking(config, cell, &model_sha256));
        Ok::<Vec<Lacking>, Error>(all.collect::<Result<Vec<_>>>()?.into_iter().filter(Lacking::any).collect())
    };
    let mut subject: Option<(u64, Subject)> = None;
    for job in jobs(cells) {
        if left(&job)?.is_empty() || until.is_some_and(|until| Instant::now() >= until) {
            continue;
        }
        let Some(_places) = store.claim(&job)? else { continue };
        // Another process may have made it before it gave its places back.
        let own = left(&job)?;
        let Some(Lacking { cell: first, .. }) = own.first() else { continue };
        let kept = subject.take().filter(|(seed, _)| *seed == first.seed);
        let shared = match kept {
            Some(kept) => kept,
            None => (first.seed, Subject::new(config, first.seed)?),
        };
        shared.1.run(config, &own, Some(checkpoints), |found| {
            match &found {
                Found::Record(record) => store.keep(record)?,
                Found::Answers(answers) => store.keep_answers(answers)?,
            }
            done(&found);
            Ok(())
        })?;
        subject = Some(shared);
    }
    Ok(left(cells)?.len())
}

/// What is lacking of a cell, and what it takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlannedCell {
    /// What is to be made.
    pub lacking: Lacking,
    /// Tokens that go through the model for that, forwards, backwards counted as two.
    pub tokens: f64,
    /// Multiply-adds.
    pub multiply_adds: f64,
    /// What these take one H200.
    pub seconds: f64,
}

/// Multiply-adds a second of one H200 in f32 and in bf16, as its pace was on SmolLM2-135M.
const PACE: [f64; 2] = [6e12, 4e13];

impl EvidenceConfig {
    /// Counts what is left to make of each of `cells`, of a model of `parameters` parameters; benchmarks by their bytes, four a token.
    ///
    /// # Errors
    /// Text, benchmarks or a model that are not there.
    pub fn plan(&self, cells: &[Cell], parameters: usize) -> Result<Vec<PlannedCell>> {
        let [kinds, unseen] = [self.kinds("text")?.len(), self.kinds("held_out_text")?.len()];
        let asked = self.benchmarks()?.iter().flat_map(|task| &task.items).map(bytes_read).sum::<usize>() / 4;
        let (store, model_sha256) = (EvidenceStore::new(&self.out), ModelFolder::open(&self.model)?.sha256()?);
        let of = |cell: &Cell| {
            let lacking = store.lacking(self, cell, &model_sha256)?;
            // Distilled behind a closed form that is made in the same go, it is not made twice.
            let follows = cell.steps > 0
                && cells.contains(&cell.closed())
                && store.lacking(self, &cell.closed(), &model_sha256)?.any();
            let made = if cell.method == Method::Dense || follows {
                0
            } else {
                kinds * (2 * self.calibration_tokens + 6 * self.share_tokens)
            };
            // The teacher's forward, the pupil's and its way back.
            let distilled = 4 * cell.steps as usize * self.distil.batch * self.length;
            let test = if self.is_final(cell) { (kinds + unseen) * self.test_tokens } else { 0 };
            let part = |lacks: bool, tokens: usize| if lacks { tokens as f64 } else { 0.0 };
            let plainly = part(lacking.any(), made + kinds * self.validation_tokens)
                + part(lacking.record, test)
                + part(lacking.answers, asked);
            let distilled = part(lacking.any(), distilled);
            let parameters = parameters as f64;
            let pace = PACE[usize::from(self.distil.memory.weights == Precision::Bf16)];
            Ok(PlannedCell {
                lacking,
                tokens: plainly + distilled,
                multiply_adds: (plainly + distilled) * parameters,
                seconds: parameters * (plainly / PACE[0] + distilled / pace),
            })
        };
        cells.iter().map(of).collect()
    }
}

/// Of an item: what all of its choices are given is read once.
fn bytes_read(item: &Item) -> usize {
    let given = item.choices.first().map_or("", |choice| choice.context.as_str());
    let once = item.choices.iter().all(|choice| choice.context == given);
    let own = |choice: &Choice| choice.continuation.len() + if once { 0 } else { choice.context.len() };
    item.choices.iter().map(own).sum::<usize>() + if once { given.len() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_one_model_closed_form_first() {
        let config = EvidenceConfig::default();
        let (cells, jobs) = (config.cells(), jobs(&config.cells()));
        assert_eq!(jobs.iter().map(Vec::len).sum::<usize>(), cells.len());
        assert!(jobs.iter().all(|job| job.len() <= 2 && job[0].steps == 0));
        let ids: std::collections::BTreeSet<String> = cells.iter().map(Cell::id).collect();
        assert_eq!(ids.len(), cells.len());
    }
}
